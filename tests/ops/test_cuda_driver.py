"""What stands between a CUDA source and a launch, as far as it goes without a GPU."""

import pytest
import torch

from vmrepro.ops.cuda import driver

FILES, MACROS = ("intrinsics.cu", "io.cu", "conv.cu"), (("IO", 0), ("WIDTH", 4), ("PACK", 2), ("THREADS", 64), ("TILE", 64))


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """The texts that were compiled, by a compiler that gives back what it was given."""
    texts = []

    class Compiler:
        def nvrtcVersion(self, major, minor):
            return 0

    def compile_text(text, options):
        texts.append(text)
        return " ".join(options).encode()

    monkeypatch.setattr(driver, "_compiler", Compiler)
    monkeypatch.setattr(driver, "_compile", compile_text)
    monkeypatch.setenv("VMREPRO_CACHE", str(tmp_path / "cache"))
    return texts


def test_a_kernel_is_compiled_once_per_source_macros_and_architecture(compiled, monkeypatch, tmp_path):
    code = driver.machine_code(FILES, MACROS, "sm_90")
    assert b"--gpu-architecture=sm_90" in code
    assert b"-DWIDTH=4" in code
    assert driver.machine_code(FILES, MACROS, "sm_90") == code
    assert len(compiled) == 1
    driver.machine_code(FILES, MACROS, "sm_80")
    driver.machine_code(FILES, (*MACROS[:-1], ("TILE", 32)), "sm_90")
    assert len(compiled) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 3
    monkeypatch.setattr(driver, "source", lambda files: "another source")
    driver.machine_code(FILES, MACROS, "sm_90")
    assert compiled[-1] == "another source"


def test_sources_include_nothing():
    texts = {path.name: path.read_text() for path in driver.FOLDER.glob("*.cu")}
    assert {"intrinsics.cu", "scan_forward.cu", "scan_backward.cu"} <= set(texts)
    assert [name for name, text in texts.items() if "#include" in text] == []


def test_a_cpu_is_said_to_be_none():
    assert "not on device type 'cpu'" in driver.unavailable(torch.device("cpu"))
