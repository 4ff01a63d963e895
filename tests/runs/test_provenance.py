import datetime
import json
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from vmrepro import ops, paths, store
from vmrepro.runs import provenance

CPU = torch.device("cpu")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout with one commit, in place of ours."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "vmrepro").mkdir()
    (tmp_path / "vmrepro" / "code.py").write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "--no-verify", "-m", "a"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.delenv("VMREPRO_COMMIT", raising=False)
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path


def test_what_a_reader_may_ask_for_is_json(monkeypatch):
    monkeypatch.setenv("VMREPRO_COMMIT", "abc")
    collected = provenance.collect(CPU, "auto", 3)
    keys = {"commit", "modified", "code", "versions", "image", "device", "backend", "processes", "finished"}
    assert set(collected) == keys
    assert json.loads(json.dumps(collected, allow_nan=False)) == collected
    assert collected["code"] == store.code_digest()
    assert collected["backend"] == ops.resolve_backend("auto", CPU) != "auto"
    assert collected["processes"] == 3
    assert collected["device"]["type"] == "cpu"
    assert collected["device"]["threads"] == torch.get_num_threads()
    finished = datetime.datetime.fromisoformat(collected["finished"])
    assert abs((datetime.datetime.now(datetime.UTC) - finished).total_seconds()) < 60


def test_the_variable_names_the_commit_where_there_is_no_history(monkeypatch):
    monkeypatch.setenv("VMREPRO_COMMIT", "abc")
    assert provenance.commit() == {"commit": "abc", "modified": None}


def test_the_commit_is_the_checkouts(repository):
    head = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    clean = {"commit": head.stdout.strip(), "modified": False}
    assert provenance.commit() == clean
    (repository / "notes.txt").touch()
    assert provenance.commit() == clean  # no part of the package
    (repository / "vmrepro" / "new.py").touch()
    assert provenance.commit() == clean | {"modified": True}
    (repository / "vmrepro" / "new.py").unlink()
    (repository / "vmrepro" / "code.py").write_text("x = 2\n")
    assert provenance.commit() == clean | {"modified": True}


def test_without_history_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.delenv("VMREPRO_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    assert provenance.commit() == {"commit": None, "modified": None}
    monkeypatch.setenv("PATH", "")  # and without git
    assert provenance.commit() == {"commit": None, "modified": None}


def test_versions_are_those_installed(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "surely-not-installed"))
    versions = provenance.versions()
    assert versions.pop("python")
    assert versions == {"torch": torch.__version__, "surely-not-installed": None}


def test_the_manifest_of_a_container_image_is_part(tmp_path, monkeypatch):
    monkeypatch.delenv("VMREPRO_MANIFEST", raising=False)
    assert provenance.collect(CPU, "auto", 1)["image"] is None
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"base": "ubuntu:24.04", "packages": {"torch": "2.13.0"}}')
    monkeypatch.setenv("VMREPRO_MANIFEST", str(manifest))
    assert provenance.collect(CPU, "auto", 1)["image"] == {"base": "ubuntu:24.04", "packages": {"torch": "2.13.0"}}


def test_peak_memory_is_this_process_in_bytes():
    before = provenance.peak_memory_bytes(CPU)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    assert resident * 0.9 <= before < resident * 100
    assert provenance.peak_memory_bytes(CPU) >= before
