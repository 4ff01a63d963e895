"""Where a number comes from: commit, versions, device, time and memory."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch

from vmrepro import ops, paths, store

PACKAGES = ("torch", "timm", "torchvision", "numpy", "scikit-learn", "triton", "mamba-ssm", "av", "decord")


def commit() -> dict[str, Any]:
    """The commit of the checkout and whether files differ from it; ``VMREPRO_COMMIT`` where there is no git history."""
    if os.environ.get("VMREPRO_COMMIT"):
        return {"commit": os.environ["VMREPRO_COMMIT"], "modified": None}
    git = ["git", "-C", str(paths.root())]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain", "vmrepro"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}
    return {"commit": head, "modified": bool(changes.strip())}


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide numbers; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def image() -> dict[str, Any] | None:
    """What the container image is made of, from the file that ``VMREPRO_MANIFEST`` names; None outside of a container."""
    manifest = os.environ.get("VMREPRO_MANIFEST")
    return json.loads(Path(manifest).read_text()) if manifest else None


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name and settings of the device that computes."""
    if device.type != "cuda":
        return {"type": device.type, "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    return {
        "type": "cuda",
        "name": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use so far: allocated tensors on a GPU, the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def sha256(file: Path) -> str:
    """The digest of a file's content, in hexadecimal."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def collect(device: torch.device, backend: str, processes: int) -> dict[str, Any]:
    """Everything about this process that a reader of a number may ask for, as JSON values."""
    return {
        **commit(),
        "code": store.code_digest(),
        "versions": versions(),
        "image": image(),
        "device": describe_device(device),
        "backend": ops.resolve_backend(backend, device),
        "processes": processes,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
