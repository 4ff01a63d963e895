"""Each check finds its fault, and none can stop the others."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from vmrepro import doctor, ops, paths

ROOT = Path(__file__).resolve().parents[1]
Usage = namedtuple("Usage", "total used free")


def test_every_check_answers_here():
    results = doctor.checks()
    assert [check.name for check in results] == list(doctor.LOOKS)
    assert {check.status for check in results} <= {"ok", "warn", "fail"}
    for check in results:
        assert check.found
        assert bool(check.advice) == (check.status != "ok"), check
        assert "could not be checked" not in check.found, check


def test_a_check_that_breaks_is_a_warning(monkeypatch):
    def broken():
        raise RuntimeError("no such bus")

    monkeypatch.setattr(doctor, "LOOKS", {"bus": broken, "python": doctor._python})
    bus, python = doctor.checks()
    assert (bus.status, bus.found) == ("warn", "could not be checked: RuntimeError: no such bus")
    assert python.status == "ok"


def test_the_text_shows_status_advice_and_counts():
    text = doctor.render([doctor.Check("a", "ok", "fine", ""), doctor.Check("longer", "fail", "broken", "mend it")])
    assert text.splitlines() == ["ok    a       fine", "fail  longer  broken", "              -> mend it", "1 ok, 0 warn, 1 fail"]


def test_an_old_python_fails(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert doctor._python()[0] == "fail"


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (9, 1), False),
        ("sm_100", (10, 3), True),
        ("compute_80", (9, 0), True),
        ("compute_90", (8, 0), False),
        ("gfx90a", (9, 0), False),
    ],
)
def test_which_builds_run_on_which_gpu(arch, capability, runs):
    assert doctor.runs_on(arch, capability) is runs


def pretend_gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Test GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])


def test_a_gpu_that_torch_is_not_built_for_fails(monkeypatch):
    pretend_gpu(monkeypatch, (9, 0))
    assert doctor._gpu()[0] == "ok"
    pretend_gpu(monkeypatch, (7, 5))
    status, found, _ = doctor._gpu()
    assert status == "fail"
    assert "capability 7.5; torch is built for sm_80, sm_90 only" in found


@pytest.mark.parametrize(
    ("build", "driver", "status", "words"),
    [
        (None, None, "ok", "none"),
        (None, "H100, 570.1", "warn", "CPU build"),
        ("13.0", "Failed to initialize NVML", "warn", "Failed to initialize NVML"),
        ("13.0", None, "ok", "none"),
    ],
)
def test_a_gpu_that_torch_does_not_reach_is_named(monkeypatch, build, driver, status, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(doctor, "_said", lambda *command: driver)
    found = doctor._gpu()
    assert found[0] == status
    assert words in found[1]


def test_other_versions_than_the_lock_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    assert doctor._packages()[0] == "warn"
    shutil.copytree(ROOT / "environment", tmp_path / "environment")
    lock = tmp_path / "environment" / "lock.txt"
    lock.write_text(lock.read_text().replace("\ntimm==", "\ntimm==99."))
    monkeypatch.setattr(doctor, "KEY_PACKAGES", ("timm", "numpy"))
    status, found, advice = doctor._packages()
    assert status == "warn"
    assert found.startswith("timm ")
    assert "numpy" not in found
    assert "lock.txt" in advice


def test_the_lock_pins_every_key_package():
    pinned = {line.partition("==")[0] for line in (ROOT / "environment" / "lock.txt").read_text().splitlines()}
    assert set(doctor.KEY_PACKAGES) <= pinned


def test_missing_operators_are_named_and_none_at_all_fails(monkeypatch):
    status, found, _ = doctor._backends()
    assert status == "ok"
    assert "reference" in found
    monkeypatch.setattr(ops, "available_backends", lambda device=None: dict.fromkeys(ops.BACKENDS, "no compiler"))
    assert doctor._backends()[:2] == ("fail", "no operator backend runs: " + "; ".join(["no compiler"] * len(ops.BACKENDS)))


def test_a_decoder_that_does_not_import_is_named(monkeypatch, tmp_path):
    (tmp_path / "sick.py").write_text("raise OSError('libavutil.so.58 is missing')")
    (tmp_path / "dead.py").write_text("import os\nos.abort()")
    for name in ("av", "decord"):
        (tmp_path / f"{name}.py").write_text("__version__ = '1.2'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "DECODERS", ("sick", "dead", "absent_one"))
    status, found, advice = doctor._decoders()
    assert status == "warn"
    assert advice.endswith("pip install -c environment/lock.txt decord av")
    assert found == (
        "sick does not import (OSError: libavutil.so.58 is missing), dead does not import (exit -6), absent_one absent"
    )
    monkeypatch.setattr(doctor, "DECODERS", ("decord", "sick"))
    assert doctor._decoders()[0] == "warn"  # without PyAV no file is read
    monkeypatch.setattr(doctor, "DECODERS", ("sick", "av"))
    status, found, _ = doctor._decoders()
    assert (status, found.split("; ")[-1]) == ("ok", "auto takes av")
    monkeypatch.setattr(doctor, "DECODERS", ("decord", "av"))
    expected = "decord 1.2, av 1.2; auto takes decord, and av where decord could mistake a file"
    assert doctor._decoders() == ("ok", expected, "")


def test_little_shared_memory_and_disk_are_warnings(monkeypatch, tmp_path):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(64 << 20, 0, 1 << 30))
    assert doctor._shared_memory(tmp_path)[:2] == ("warn", "0.06 GiB")
    assert doctor._shared_memory(tmp_path / "absent")[0] == "ok"
    assert doctor._runs_folder()[0] == "warn"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(8 << 30, 0, 50 << 30))
    assert doctor._shared_memory(tmp_path)[0] == "ok"
    assert doctor._runs_folder()[0] == "ok"


def test_a_runs_folder_that_cannot_be_written_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert doctor._runs_folder()[0] == "fail"


def test_absent_data_name_the_layout(monkeypatch, tmp_path):
    monkeypatch.setenv("VMREPRO_DATA", str(tmp_path))
    monkeypatch.setenv("VMREPRO_CHECKPOINTS", str(tmp_path / "weights"))
    status, _, advice = doctor._imagenet()
    assert status == "warn"
    assert "/train/<class>/" in advice
    monkeypatch.setattr(doctor, "IMAGENET_CLASSES", 1)
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split / "n01440764").mkdir(parents=True)
    assert doctor._imagenet()[0] == "ok"
    assert doctor._checkpoints()[0] == "warn"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "videomamba_t16.pth").write_bytes(b"")
    assert doctor._checkpoints()[:2] == ("ok", f"1 files in {tmp_path / 'weights'}")


@pytest.mark.skipif(shutil.which("git") is None, reason="makes a repository")
def test_the_commit_and_uncommitted_changes_are_seen(monkeypatch, tmp_path):
    monkeypatch.delenv("VMREPRO_COMMIT", raising=False)
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    assert doctor._commit()[0] == "warn"
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    status, found, _ = doctor._commit()
    assert (status, len(found)) == ("ok", 12)
    (tmp_path / "vmrepro").mkdir()
    (tmp_path / "vmrepro" / "new.py").write_text("x")
    assert doctor._commit()[1] == f"{found} with uncommitted changes"


def test_the_stock_papermill_is_told_from_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._papermill()[1] == "no papermill on PATH"
    (tmp_path / "papermill").write_text("#!/usr/bin/python\nfrom papermill.__main__ import papermill\n")
    (tmp_path / "papermill").chmod(0o755)
    assert doctor._papermill()[0] == "warn"
    monkeypatch.undo()
    subprocess.run([ROOT / "environment" / "papermill.sh", sys.executable, tmp_path], check=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._papermill()[:2] == ("ok", f"the project's, {tmp_path / 'papermill'}")


def test_a_kernel_of_another_environment_is_a_warning(monkeypatch, tmp_path):
    assert doctor._kernel()[0] == "ok"
    spec, other = tmp_path / "kernels" / "python3", tmp_path / "bin" / "python"
    spec.mkdir(parents=True)
    other.parent.mkdir()
    other.symlink_to(sys.executable)
    for program, status in ((str(other), "warn"), (sys.executable, "ok"), ("python", "ok")):
        (spec / "kernel.json").write_text(json.dumps({"argv": [program], "display_name": "x", "language": "python"}))
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
        assert doctor._kernel()[0] == status, program
