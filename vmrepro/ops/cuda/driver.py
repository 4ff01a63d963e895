"""CUDA source to running kernels, with nothing compiled at install: NVRTC and the driver API through ctypes.

NVRTC comes with every CUDA build of torch. A kernel is compiled for the device at hand at its first use, which takes about a
second; its machine code is kept under ``VMREPRO_CACHE`` (default ``~/.cache/vmrepro``), named after a hash of all it depends on.
"""

import ctypes
import hashlib
import importlib.util
import os
import tempfile
import threading
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent
MIN_CAPABILITY = (8, 0)  # bf16 conversions and background copies
MAX_DYNAMIC_SHARED_SIZE, PREFERRED_SHARED_CARVEOUT = 8, 9  # CUfunction_attribute
MOST_SHARED_BYTES = 97  # CUdevice_attribute
# What a block may have of shared memory without asking the driver for more.
PLAIN_SHARED_BYTES = 48 * 1024

Defines = tuple[tuple[str, int], ...]


class CudaError(RuntimeError):
    """The driver or the run-time compiler refused; the message is its own."""


def cache_folder() -> Path:
    """Where compiled kernels are kept; it may not exist yet."""
    return Path(os.environ.get("VMREPRO_CACHE") or Path.home() / ".cache" / "vmrepro").expanduser()


def unavailable(device: torch.device) -> str | None:
    """Why kernels cannot run on ``device``, or None."""
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on device type {device.type!r}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        needed, present = (".".join(map(str, pair)) for pair in (MIN_CAPABILITY, capability))
        return f"it needs compute capability {needed} or later, the GPU has {present}"
    try:
        _driver(), _compiler()
    except OSError as error:
        return f"a library is missing ({error})"
    return None


@cache
def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors the GPU has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def most_shared_bytes(device: torch.device) -> int:
    """How much shared memory a block may have."""
    found = ctypes.c_int()
    _check(_driver().cuDeviceGetAttribute(ctypes.byref(found), MOST_SHARED_BYTES, device.index))
    return found.value


def launch(
    files: tuple[str, ...],
    kernel: str,
    defines: Defines,
    grid: tuple[int, int, int],
    threads: int,
    shared_bytes: int,
    arguments: ctypes.Structure,
    device: torch.device,
) -> None:
    """Queue one kernel on torch's current stream of ``device``.

    files: sources in this folder, joined in order. defines: macros. arguments: the kernel's only parameter.
    Raises CudaError with the compiler's log or the driver's message.
    """
    index = torch.cuda.current_device()
    if not hasattr(_THREAD, "entered"):
        _enter(device.index)
    with nullcontext() if device.index == index else torch.cuda.device(device):
        function = _function(files, kernel, defines, shared_bytes, device.index)
        # Asked for as torch's own compiler does: torch.cuda.current_stream took a tenth of a forward pass's host time.
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        _check(_driver().cuLaunchKernel(function, *grid, threads, 1, 1, shared_bytes, ctypes.c_void_p(stream), parameters, None))


_THREAD = threading.local()


def _enter(device_index: int) -> None:
    """Let this thread use the driver: a thread of the backward pass may come here before any call of torch's has."""
    context = ctypes.c_void_p()
    _check(_driver().cuCtxGetCurrent(ctypes.byref(context)))
    if not context:
        _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), device_index))
        _check(_driver().cuCtxSetCurrent(context))
    _THREAD.entered = True


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@cache
def _compiler() -> ctypes.CDLL:
    """NVRTC as torch ships it, else the system's."""
    found = []
    for package in ("nvidia", "torch"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            found += [
                path
                for path in sorted(Path(folder).rglob("libnvrtc*.so*"))
                if "builtins" not in path.name and ".alt." not in path.name
            ]
    major = (torch.version.cuda or "").split(".")[0]
    # Several may be installed: torch's own CUDA version first, since its machine code is what this driver is known to take.
    found.sort(key=lambda path: not path.name.endswith(f".so.{major}"))
    if not found:
        return ctypes.CDLL(f"libnvrtc.so.{major}")
    # NVRTC looks for its built-in functions by name only: what is loaded already is found.
    for builtins in found[0].parent.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(found[0]))


def _check(code: int) -> None:
    if code:
        message = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(message))
        raise CudaError(f"the CUDA driver answered {code}: {(message.value or b'unknown error').decode()}")


@cache
def _function(files: tuple[str, ...], kernel: str, defines: Defines, shared_bytes: int, device_index: int) -> ctypes.c_void_p:
    function = ctypes.c_void_p()
    _check(_driver().cuModuleGetFunction(ctypes.byref(function), _module(files, defines, device_index), kernel.encode()))
    if shared_bytes > PLAIN_SHARED_BYTES:
        _check(_driver().cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED_SIZE, shared_bytes))
    _check(_driver().cuFuncSetAttribute(function, PREFERRED_SHARED_CARVEOUT, 100))
    return function


@cache
def _module(files: tuple[str, ...], defines: Defines, device_index: int) -> ctypes.c_void_p:
    major, minor = torch.cuda.get_device_capability(device_index)
    torch.cuda.synchronize(device_index)  # makes torch's context current in this thread
    module = ctypes.c_void_p()
    _check(_driver().cuModuleLoadData(ctypes.byref(module), machine_code(files, defines, f"sm_{major}{minor}")))
    return module


def source(files: tuple[str, ...]) -> str:
    """The text of the named files of this folder, joined."""
    return "\n".join((FOLDER / name).read_text() for name in files)


def machine_code(files: tuple[str, ...], defines: Defines, architecture: str) -> bytes:
    """The compiled sources for ``architecture`` (such as "sm_90"), from the cache or freshly compiled into it.

    Raises CudaError with the compiler's log.
    """
    text, version = source(files), (ctypes.c_int(), ctypes.c_int())
    _compiler().nvrtcVersion(ctypes.byref(version[0]), ctypes.byref(version[1]))
    options = [f"--gpu-architecture={architecture}", "--std=c++17", *(f"-D{name}={value}" for name, value in defines)]
    identity = "\n".join([f"{version[0].value}.{version[1].value}", *options, text])
    path = cache_folder() / f"{files[-1].removesuffix('.cu')}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.cubin"
    if path.is_file():
        return path.read_bytes()
    code = _compile(text, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and moved, so that another process never reads half a file.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(code)
    os.replace(file.name, path)
    return code


def _compile(text: str, options: list[str]) -> bytes:
    nvrtc, program, size = _compiler(), ctypes.c_void_p(), ctypes.c_size_t()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"vmrepro.cu", 0, None, None):
        raise CudaError("NVRTC could not take the source")
    try:
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), arguments):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise CudaError(f"NVRTC could not compile with {' '.join(options)}:\n{log.value.decode()}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
