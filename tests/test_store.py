import os
import signal
import subprocess
import sys
import time

import pytest

from vmrepro import paths, store


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def start():
    """Starts Python code as another process, which is gone when the test is."""
    started = []

    def start(code: str, *arguments: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(paths.PACKAGE.parent)}
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        started.append(subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(identifier: str, **provenance) -> None:
    """A finished run as the runner leaves it."""
    place = store.folder(identifier)
    place.mkdir(parents=True)
    store.write_json(place / "spec.json", {"seed": 3})
    store.write_metrics(place, [{"epoch": 0, "top1": 10.0}, {"epoch": 1, "top1": 20.5}])
    store.write_json(place / "provenance.json", provenance)


# What is written

WRITE_FOREVER = """
import pathlib, sys
from vmrepro import store
while True:
    for letter in "ab":
        store.write_atomically(pathlib.Path(sys.argv[1]), letter * 1_000_000)
        print(letter, flush=True)
"""


def test_a_reader_never_sees_half_a_file(tmp_path, start):
    file = tmp_path / "file"
    writer = start(WRITE_FOREVER, str(file))
    writer.stdout.readline()
    seen = set()
    end = time.monotonic() + 1
    while time.monotonic() < end or len(seen) < 2:
        text = file.read_text()
        assert len(text) == 1_000_000
        seen |= set(text)
        assert len(set(text)) == 1
        assert time.monotonic() < end + 20, "the writer wrote one version only"


DIE_WHILE_WRITING = """
import os, pathlib, signal, sys
from vmrepro import store
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
store.write_atomically(pathlib.Path(sys.argv[1]), "never whole")
"""


def test_a_writer_that_dies_leaves_what_was_there(tmp_path, start):
    file = tmp_path / "file"
    store.write_atomically(file, "before")
    writer = start(DIE_WHILE_WRITING, str(file))
    assert writer.wait(30) == -signal.SIGKILL
    assert file.read_text() == "before"
    leftovers = [path for path in tmp_path.iterdir() if path != file]
    assert len(leftovers) == 1  # it did die half-way
    # Numbers of processes come round again: the next writer may have the dead one's.
    leftovers[0].rename(tmp_path / f".file.{os.getpid()}.part")
    store.write_atomically(file, b"after")
    assert file.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [file]


def test_numbers_that_json_cannot_hold_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(tmp_path / "file.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_metrics(tmp_path, [{"loss": float("inf")}])
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_same_text_whatever_the_order(tmp_path):
    store.write_json(tmp_path / "one.json", {"a": 1, "b": 2})
    store.write_json(tmp_path / "other.json", {"b": 2, "a": 1})
    assert (tmp_path / "one.json").read_text() == (tmp_path / "other.json").read_text()


# The id of a run

CODE = {
    "specs/schema.py": "LIMIT = 3\n",
    "specs/catalog.py": "SEEDS = 3\n",
    "data/images.py": '"""Images."""\n\n\ndef double(x):\n    """Twice."""\n    return 2 * x\n\n\nclass A:\n    """A."""\n',
    "ops/cuda/scan.cu": "int scan;\n",
    "models/mamba.py": "DEPTH = 24\n",
    "runs/train.py": "def train():\n    pass\n",
    "report/figures.py": "WIDTH = 4\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in place of ours; a test may edit it."""
    for name, text in CODE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    store.code_digest.cache_clear()
    yield tmp_path
    store.code_digest.cache_clear()


def edited_id(package, file: str, text: str) -> tuple[str, str]:
    """The id of one and the same run before and after ``file`` holds ``text``."""
    before = store.run_id("run", {"lr": 0.1}, 0)
    (package / file).write_text(text)
    store.code_digest.cache_clear()
    return before, store.run_id("run", {"lr": 0.1}, 0)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/images.py", "# Why.\n" + CODE["data/images.py"] + "# The end.\n"),
        ("data/images.py", CODE["data/images.py"].replace('"""Images."""\n', "")),
        ("data/images.py", CODE["data/images.py"].replace("Twice", "Two times")),
        ("data/images.py", CODE["data/images.py"].replace('"""A."""', "pass")),
        ("data/images.py", CODE["data/images.py"].replace("2 * x", "(\n        2\n        * x  # twice\n    )")),
        ("specs/schema.py", "LIMIT=3"),
        ("specs/catalog.py", "SEEDS = 4\n"),
        ("report/figures.py", "WIDTH = 5\n"),
        ("data/notes.txt", "not code"),
    ],
)
def test_an_id_outlives_edits_that_change_no_result(package, file, text):
    before, after = edited_id(package, file, text)
    assert before == after


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("specs/schema.py", "LIMIT = 4\n"),
        ("data/images.py", CODE["data/images.py"].replace("2 * x", "3 * x")),
        ("data/images.py", CODE["data/images.py"].replace("return 2", '"""Not a docstring."""\n    return 2')),
        ("ops/cuda/scan.cu", "long scan;\n"),
        ("models/mamba.py", "DEPTH = 32\n"),
        ("models/deep/new.py", ""),
        ("runs/train.py", "def train():\n    return 1\n"),
    ],
)
def test_an_id_changes_with_the_code(package, file, text):
    (package / file).parent.mkdir(exist_ok=True)
    before, after = edited_id(package, file, text)
    assert before != after


def test_an_id_changes_with_the_place_of_the_code(package):
    before = store.code_digest()
    (package / "models/mamba.py").rename(package / "models/renamed.py")
    store.code_digest.cache_clear()
    assert store.code_digest() != before


def test_an_id_changes_with_name_spec_and_seed_but_not_with_the_order_of_a_spec():
    asked = [("run", {"lr": 0.1, "wd": 0}, 0), ("other", {"lr": 0.1, "wd": 0}, 0)]
    asked += [("run", {"lr": 0.2, "wd": 0}, 0), ("run", {"lr": 0.1, "wd": 0}, 1)]
    ids = [store.run_id(*one) for one in asked]
    assert len(set(ids)) == len(ids)
    # The hash itself depends on spec and seed; else a copied folder name would mislead.
    assert len({one.rsplit("-", 1)[1] for one in ids}) == 3
    assert store.run_id("run", {"wd": 0, "lr": 0.1}, 0) == ids[0]
    assert ids[0].startswith("run-seed0-")


def test_all_code_that_matters_is_there():
    missing = [part for part in store.CODE_THAT_MATTERS if not (paths.PACKAGE / part).exists()]
    assert missing == []  # the digest would pass over it without a word


# Who makes a run

HOLD = """
import sys
from vmrepro import store
with store.claim("run") as place:
    print("held", flush=True)
    sys.stdin.readline()
    (place / "finished").touch()
"""
ASK = """
from vmrepro import store
print("asking", flush=True)
with store.claim("run") as place:
    print((place / "finished").exists())
"""


@pytest.fixture
def two(runs, start):
    """A process that holds a run, and one that waits for the same."""
    first = start(HOLD)
    assert first.stdout.readline() == "held\n"
    second = start(ASK)
    assert second.stdout.readline() == "asking\n"
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.5)
    return first, second


def test_the_second_process_waits_until_the_first_has_left(two):
    first, second = two
    first.communicate("go\n", timeout=30)
    assert second.communicate(timeout=30)[0] == "True\n"
    assert second.returncode == 0


def test_a_killed_process_frees_its_claim(two):
    first, second = two
    first.kill()
    assert second.communicate(timeout=30)[0] == "False\n"
    assert second.returncode == 0


def test_another_run_is_not_waited_for(runs, start):
    first = start(HOLD)
    assert first.stdout.readline() == "held\n"
    second = start(ASK.replace('"run"', '"other"'))
    assert second.communicate(timeout=30)[0] == "asking\nFalse\n"


def test_an_error_frees_a_claim(runs):
    with pytest.raises(RuntimeError), store.claim("run"):
        raise RuntimeError
    with store.claim("run") as place:
        assert place == runs / "run"


# What is read


def test_a_finished_run_is_read_back(runs):
    finish("run", commit="abc")
    record = store.read("run")
    assert (record.id, record.folder) == ("run", runs / "run")
    assert record.spec == {"seed": 3}
    assert [row["top1"] for row in record.metrics] == [10.0, 20.5]
    assert record.provenance == {"commit": "abc"}


def test_an_unfinished_run_is_no_record(runs):
    assert store.read("run") is None
    finish("run")
    (runs / "run" / "provenance.json").unlink()
    assert store.read("run") is None


@pytest.mark.parametrize("file", ["spec.json", "metrics.jsonl", "provenance.json"])
@pytest.mark.parametrize("damage", ["cut", "binary"])
def test_a_damaged_record_is_named(runs, file, damage):
    finish("run", commit="abc")
    path = runs / "run" / file
    path.write_bytes(path.read_bytes()[:-4] if damage == "cut" else b"\xff\x00\xfe")
    with pytest.raises(ValueError, match=rf"{runs / 'run'} is damaged .*remove that folder"):
        store.read("run")


@pytest.mark.parametrize("file", ["spec.json", "metrics.jsonl"])
def test_a_record_with_a_missing_file_is_damaged(runs, file):
    finish("run")
    (runs / "run" / file).unlink()
    with pytest.raises(ValueError, match=rf"is damaged .*{file}"):
        store.read("run")


def test_records_are_the_finished_runs_by_id(runs):
    assert store.records() == []
    finish("b")
    finish("a")
    with store.claim("unfinished"):
        pass
    (runs / "notebooks").mkdir()
    (runs / "notebooks" / "figure.ipynb").touch()
    (runs / "stray.txt").touch()
    assert [record.id for record in store.records()] == ["a", "b"]
