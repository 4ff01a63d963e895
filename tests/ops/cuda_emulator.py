"""Stands in for ``vmrepro.ops.cuda.driver`` where there is no GPU: the same sources, compiled by g++ and run block by block."""

import ctypes
import hashlib
import re
import shutil
import subprocess
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from vmrepro.ops.cuda import driver

HEADER = Path(__file__).with_name("emulation.h")
SHARED_BYTES = 227 * 1024  # of a block on Hopper
# Optimised for compile time: the kernels run on a handful of tiny blocks.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-w")


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation is compiled with g++")


@contextmanager
def emulated(folder: Path, multiprocessors: int = 1):
    """The CUDA backend on CPU tensors, as on a GPU of so many multiprocessors; compiled kernels go to ``folder``."""
    emulator = Emulator(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "launch", emulator.launch)
        patch.setattr(driver, "multiprocessors", lambda device: multiprocessors)
        patch.setattr(driver, "most_shared_bytes", lambda device: SHARED_BYTES)
        yield emulator


class Emulator:
    """Compiles into ``folder``; ``launch`` has the signature of the driver's."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.library = cache(self._library)
        self.launched: list[str] = []

    def launch(self, files, kernel, defines, grid, threads, shared_bytes, arguments, device) -> None:
        assert device.type == "cpu", device
        assert shared_bytes <= SHARED_BYTES, (
            f"{kernel} asks for {shared_bytes} bytes of shared memory, a Hopper block has {SHARED_BYTES}"
        )
        self.launched.append(kernel)
        dim = ctypes.c_uint * 3
        status = self.library(files, defines).emulate(
            kernel.encode(), _Dim(dim(*grid)), _Dim(dim(threads, 1, 1)), ctypes.byref(arguments)
        )
        assert status == 0, f"no kernel {kernel!r} in {files}"

    def _library(self, files: tuple[str, ...], defines: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
        text = driver.source(tuple(name for name in files if name != "intrinsics.cu"))
        kernels = re.findall(
            r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(const __grid_constant__ (\w+) p\)', text
        )
        table = "".join(f'{{"{name}", [](const void *p) {{ {name}(*(const {args} *)p); }}}},\n' for name, args in kernels)
        program = f'#include "{HEADER}"\n{text}\nconst Entry entries[] = {{\n{table}{{nullptr, nullptr}}}};\n'
        macros = [f"-D{name}={value}" for name, value in defines]
        stem = self.folder / hashlib.sha256((program + " ".join(macros)).encode()).hexdigest()[:16]
        if stem.with_suffix(".so").is_file():
            return ctypes.CDLL(str(stem.with_suffix(".so")))
        stem.with_suffix(".cpp").write_text(program)
        run = subprocess.run(
            ["g++", *FLAGS, *macros, "-o", stem.with_suffix(".so"), stem.with_suffix(".cpp")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr[:4000]
        return ctypes.CDLL(str(stem.with_suffix(".so")))


class _Dim(ctypes.Structure):
    _fields_ = (("xyz", ctypes.c_uint * 3),)
