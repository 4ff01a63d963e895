"""What this machine and this environment offer to vmrepro: one finding each, and what to do where it is not enough."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmrepro import paths

Status = Literal["ok", "warn", "fail"]
Finding = tuple[Status, str, str]  # status, what was found, what to do

MINIMUM_PYTHON = (3, 11)
MINIMUM_SHARED_MEMORY_GIB = 1  # below it, loader processes that hand over batches hang or die
MINIMUM_FREE_DISK_GIB = 5
IMAGENET_CLASSES = 1000
DECODERS = ("decord", "av", "torchcodec")
PROBE_TIMEOUT = 60  # seconds
# What a result or a notebook's text can depend on.
KEY_PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "matplotlib", "seaborn"),
    *("papermill", "nbclient", "ipykernel", "jupyterlab", "nbval", "pytest", "ruff"),
)


@dataclass(frozen=True)
class Check:
    """One finding: ok, warn (something will not work or differ) or fail (nothing will work); advice is empty when ok."""

    name: str
    status: Status
    found: str
    advice: str


def checks() -> list[Check]:
    """Every check, in the order of a reader's questions; one that breaks is itself a warning."""
    return [_made(name, look) for name, look in LOOKS.items()]


def _made(name: str, look: Callable[[], Finding]) -> Check:
    try:
        return Check(name, *look())
    except Exception as error:
        return Check(name, "warn", f"could not be checked: {type(error).__name__}: {error}", "see the error")


def render(results: list[Check]) -> str:
    """The checks as lines of text, advice under each that needs some, and a count at the end."""
    width = max(len(check.name) for check in results)
    lines = []
    for check in results:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.advice}")
    counts = ", ".join(f"{sum(check.status == status for check in results)} {status}" for status in ("ok", "warn", "fail"))
    return "\n".join([*lines, counts])


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < MINIMUM_PYTHON:
        return "fail", found, "use Python 3.11 or newer: make PYTHON=/path/to/python"
    return "ok", found, ""


def _platform() -> Finding:
    found = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if platform.system() not in ("Linux", "Darwin"):
        return "warn", found, "Linux and macOS are supported; on Windows use WSL or the container"
    return "ok", found, ""


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:  # a broken build raises OSError and more
        return "fail", f"does not import: {error}", "make the environment anew from environment/lock.txt: make clean test"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "ROCm" if torch.version.hip else "CPU"
    return "ok", f"{torch.__version__}, {build} build, {torch.get_num_threads()} threads", ""


def _gpu() -> Finding:
    import torch

    driver = _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    if torch.cuda.is_available():
        return _usable_gpu(torch.cuda.get_arch_list(), driver)
    if driver is None:
        return "ok", "none; everything runs on the CPU", ""
    if torch.version.cuda is None:
        return "warn", f"{driver}, but this torch is a CPU build", "install the CUDA build of the torch in environment/lock.txt"
    advice = f"the driver must support CUDA {torch.version.cuda}, and CUDA_VISIBLE_DEVICES must not hide the GPU. "
    advice += "A container that lost NVML, as after `systemctl daemon-reload` on its host, must be started anew"
    return "warn", f"{driver}, but torch reaches no GPU", advice


def _usable_gpu(built_for: list[str], driver: str | None) -> Finding:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        found.append(f"{torch.cuda.get_device_name(index)}, capability {capability[0]}.{capability[1]}")
        if not any(runs_on(arch, capability) for arch in built_for):
            advice = "install a torch built for this GPU, or set CUDA_VISIBLE_DEVICES= to work on the CPU"
            return "fail", f"{found[-1]}; torch is built for {', '.join(built_for)} only", advice
    return "ok", f"{'; '.join(found)} (driver: {driver or 'nvidia-smi not found'})", ""


def runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code built for ``arch``, such as sm_90 or compute_90, runs on a GPU of this compute capability.

    Machine code (sm) runs within its major version, from its minor version up; with a suffix on exactly that one;
    intermediate code (compute) on every later GPU (CUDA programming guide, "Binary compatibility").
    """
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)(\w?)", arch)
    if match is None:
        return False
    kind, suffix, built = match[1], match[4], (int(match[2]), int(match[3]))
    if suffix:
        return built == capability
    return built <= capability and (kind == "compute" or built[0] == capability[0])


def _said(*command: str) -> str | None:
    """What a program printed, on one line; None when there is no such program."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=False)
    return "; ".join((done.stdout.strip() or done.stderr.strip()).splitlines())


def _packages() -> Finding:
    lock = paths.root() / "environment" / "lock.txt"
    if not lock.is_file():
        return "warn", f"no {lock} to compare with", "work in a checkout of the repository"
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(), flags=re.MULTILINE))
    differences = []
    for name in KEY_PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "absent"
        if version.partition("+")[0] != pins[name]:  # +cpu and +cu130 are builds of one version
            differences.append(f"{name} {version} instead of {pins[name]}")
    if differences:
        return "warn", ", ".join(differences), "numbers may differ; `environment/install.sh .venv` takes those of lock.txt"
    return "ok", f"{len(KEY_PACKAGES)} key packages as in environment/lock.txt", ""


def _backends() -> Finding:
    import torch

    from vmrepro import ops

    device = "cuda" if torch.cuda.is_available() else "cpu"
    absent = {name: reason for name, reason in ops.available_backends(device).items() if reason is not None}
    present = [name for name in ops.BACKENDS if name not in absent]
    if not present:
        return "fail", "no operator backend runs: " + "; ".join(absent.values()), "reinstall vmrepro"
    found = f"{', '.join(present)}; auto takes {ops.resolve_backend('auto', device)}"
    found += "".join(f"; not {name}: {reason}" for name, reason in absent.items())
    if absent and device == "cuda":
        return "warn", found, "training on the GPU will be slow until the missing backend runs"
    return "ok", found, ""


def _decoders() -> Finding:
    found = {name: _imported(name) for name in DECODERS}
    text = ", ".join(f"{name} {state}" for name, state in found.items())
    usable = [name for name, state in found.items() if not state.startswith(("absent", "does not"))]
    if "av" not in usable:
        return "warn", text, "no videos can be read, only generated data: pip install -c environment/lock.txt decord av"
    chosen = "decord, and av where decord could mistake a file" if "decord" in usable else "av"
    return "ok", f"{text}; auto takes {chosen}", ""


def _imported(module: str) -> str:
    """Its version, or why it cannot be used; imported in another process, which a broken library may take down."""
    if importlib.util.find_spec(module) is None:
        return "absent"
    command = [sys.executable, "-c", f"import {module}; print({module}.__version__)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    return f"does not import ({(done.stderr.strip().splitlines() or [f'exit {done.returncode}'])[-1]})"


def _shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    if not folder.is_dir():
        return "ok", f"no {folder} on this system", ""
    size = shutil.disk_usage(folder).total / 2**30
    if size < MINIMUM_SHARED_MEMORY_GIB:
        return "warn", f"{size:.2f} GiB", "loader processes may hang: start the container with --shm-size 8g"
    return "ok", f"{size:.1f} GiB", ""


def _runs_folder() -> Finding:
    runs = paths.runs()
    place = next(parent for parent in (runs, *runs.parents) if parent.exists())
    free = shutil.disk_usage(place).free / 2**30
    found = f"{runs}, {free:.0f} GiB free"
    if not os.access(place, os.W_OK):
        return "fail", f"{runs} cannot be written", "give this user the folder, or set VMREPRO_RUNS to another"
    if free < MINIMUM_FREE_DISK_GIB:
        return "warn", found, "free some space, or set VMREPRO_RUNS to a folder on another disk"
    return "ok", found, ""


def _imagenet() -> Finding:
    from vmrepro.data import imagenet

    try:
        imagenet.check_folder(imagenet.folder(), IMAGENET_CLASSES)
    except FileNotFoundError as error:
        return "warn", "absent or incomplete; only runs on ImageNet need it", str(error)
    return "ok", str(imagenet.folder()), ""


def _checkpoints() -> Finding:
    folder = paths.checkpoints()
    files = [file for file in folder.rglob("*") if file.suffix in (".pth", ".pt", ".safetensors")]
    if not files:
        return "warn", f"none in {folder}", "only what evaluates the released weights needs them: put the files there"
    return "ok", f"{len(files)} files in {folder}", ""


def _commit() -> Finding:
    from vmrepro.runs import provenance

    recorded = provenance.commit()
    if recorded["commit"] is None:
        advice = "results will not name the code they came from: work in a git clone, or set VMREPRO_COMMIT"
        return "warn", "unknown", advice
    return "ok", recorded["commit"][:12] + (" with uncommitted changes" if recorded["modified"] else ""), ""


def _papermill() -> Finding:
    launcher = shutil.which("papermill")
    if launcher is None:
        return "warn", "no papermill on PATH", f"put {Path(sys.executable).parent} on PATH: . .venv/bin/activate"
    if "vmrepro.notebooks" not in Path(launcher).read_text(errors="replace"):
        advice = "`papermill x.ipynb` alone and the check of parameters need ours: environment/papermill.sh "
        return "warn", f"the stock command, {launcher}", advice + sys.executable
    return "ok", f"the project's, {launcher}", ""


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager

    program = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
    # Jupyter replaces a bare "python" by the interpreter it runs in; environments are told apart by folder, as their
    # interpreters are links to one file.
    if program.is_absolute() and program.parent.resolve() != Path(sys.executable).parent.resolve():
        return "warn", f"the kernel python3 starts {program}", "notebooks would run elsewhere: jupyter kernelspec remove python3"
    return "ok", "python3 starts this Python", ""


LOOKS: dict[str, Callable[[], Finding]] = {
    "python": _python,
    "platform": _platform,
    "torch": _torch,
    "gpu": _gpu,
    "packages": _packages,
    "operators": _backends,
    "video decoders": _decoders,
    "shared memory": _shared_memory,
    "runs folder": _runs_folder,
    "imagenet": _imagenet,
    "checkpoints": _checkpoints,
    "commit": _commit,
    "papermill": _papermill,
    "kernel": _kernel,
}
