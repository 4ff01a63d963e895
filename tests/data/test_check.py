"""A check finds what a run would stumble over, reads each file once, and goes on after a kill."""

import hashlib
import json
import os
import signal

import pytest

from tests import videos
from vmrepro.data import check as module
from vmrepro.data.check import check, render
from vmrepro.specs.schema import ClipSpec

FILES = 4
CLIP = ClipSpec(num_frames=8, test_clips=2)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return videos.write(tmp_path_factory.mktemp("files") / "good.mp4", videos.numbered(12, (32, 40)), codec="mpeg4").read_bytes()


@pytest.fixture
def root(tmp_path, good, monkeypatch):
    """A sound data set of four classes: train 0 to 3.mp4, val 4 to 7, test 8 to 11."""
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setitem(module.CLASSES, "kinetics400", FILES)
    root = tmp_path / "kinetics400"
    root.mkdir()
    for i, split in enumerate(("train", "val", "test")):
        for label in range(FILES):
            (root / f"{FILES * i + label}.mp4").write_bytes(good)
        (root / f"{split}.csv").write_text("".join(f"{FILES * i + label}.mp4,{label}\n" for label in range(FILES)))
    return root


def add(root, split, line):
    with (root / f"{split}.csv").open("a") as file:
        file.write(f"{line}\n")


def checked(root, **options):
    return check("kinetics400", root, **({"clip": CLIP, "workers": 2} | options))


def files_read(root, monkeypatch, **options):
    """The names of the files that a check opens."""
    opened = []
    read = module._read_all
    monkeypatch.setattr(module, "_read_all", lambda files, *rest: (opened.extend(files), read(files, *rest))[1])
    checked(root, **options)
    monkeypatch.setattr(module, "_read_all", read)
    return sorted(int(os.path.basename(path).split(".")[0]) for path in opened)


def test_a_sound_data_set_is_ok(root, capsys):
    report = checked(root)
    assert report.ok
    assert report.problems == []
    for split in ("train", "val", "test"):
        found = report.splits[split]
        assert (found.videos, found.classes, found.bad, found.short) == (FILES, FILES, 0, {})
        assert found.sha256 == hashlib.sha256((root / f"{split}.csv").read_bytes()).hexdigest()
        assert f"{split}.csv: 4 videos, 4 of 4 classes, sha256 {found.sha256}" in render(report)
    assert render(report).endswith("\nok")
    assert "kinetics400: 12 of 12 files read, " in capsys.readouterr().err


def test_every_fault_is_found_and_named(root, good):
    (root / "4.mp4").unlink()
    (root / "9.mp4").write_bytes(good[:300])
    (root / "10.mp4").write_bytes(b"no video")
    videos.write(root / "11.mp4", videos.numbered(5, (32, 40)), codec="mpeg4")
    (root / "3.mp4").rename(root / "30.mp4")
    add(root, "test", "8,0")
    add(root, "test", "0.mp4,0")
    report = checked(root)
    assert report.splits["val"].missing == ["4.mp4"]
    assert sorted(report.splits["test"].undecodable) == ["10.mp4", "9.mp4"]
    assert report.splits["test"].short == {"11.mp4": 5}
    assert report.splits["test"].duplicates == ["8"]
    assert report.shared == {"train, test": [str(root / "0.mp4")]}
    assert report.problems == [
        "train: 1 of 4 videos cannot be used; a training goes on without 1% at most",
        "val: 1 of 4 videos cannot be used; a test needs every one",
        "test: 2 of 6 videos cannot be used; a test needs every one",
        "test: 1 videos are listed more than once",
        "train, test: 1 videos are in both lists",
    ]
    text = render(report)
    assert "  1 missing:\n    4.mp4\n" in text
    assert "  2 undecodable:\n    9.mp4: " in text
    assert "  1 shorter than a clip of 8 frames:\n    11.mp4: 5 frames" in text
    assert "up to 33.3 points off the accuracy; left out, they move it by up to 33.3 either way" in text
    assert text.endswith("\n5 problems")


@pytest.mark.parametrize("right_among_bad", [0, 2])
@pytest.mark.parametrize("right_among_rest", range(5))
def test_the_bound_on_the_accuracy_holds_whatever_the_bad_videos_are(right_among_bad, right_among_rest):
    found = module.SplitReport("", videos=6, classes=1, missing=["a"], undecodable={"b": ""})
    true = 100 * (right_among_bad + right_among_rest) / 6
    assert 0 <= true - 100 * right_among_rest / 6 <= found.points + 1e-9
    assert abs(true - 100 * right_among_rest / 4) <= found.points + 1e-9


def test_val_and_test_may_be_the_same_videos(root):
    (root / "val.csv").write_bytes((root / "test.csv").read_bytes())
    report = checked(root)
    assert report.ok
    assert len(report.shared["val, test"]) == FILES
    assert "  4 in both of val, test:" in render(report)


def test_a_training_list_may_lose_one_in_a_hundred_but_no_class(root):
    (root / "train.csv").write_text("".join(f"{label}.mp4,{label}\n" for label in [0, 1, 2] * 40 + [3]))
    (root / "3.mp4").write_bytes(b"no video")
    assert checked(root).ok
    (root / "train.csv").write_text("0.mp4,0\n1.mp4,1\n")
    assert checked(root).problems == ["train: 2 of 4 classes occur"]


def test_a_list_that_cannot_be_read_is_a_problem_and_the_others_are_still_checked(root):
    (root / "test.csv").unlink()
    add(root, "val", "x.mp4,4")
    report = checked(root)
    assert list(report.splits) == ["train"]
    assert "val.csv, line 5" in report.problems[0]
    assert "test.csv, which is missing" in report.problems[1]
    assert "PROBLEM " in render(report)


def test_without_decoding_files_are_only_looked_for(root, tmp_path):
    (root / "4.mp4").write_bytes(b"no video")
    (root / "5.mp4").unlink()
    report = checked(root, decode=False)
    assert report.splits["val"].missing == ["5.mp4"]
    assert report.splits["val"].undecodable == {}
    assert "no file was opened" in render(report)
    assert not (tmp_path / "runs").exists()


def test_only_what_changed_is_read_again(root, good, monkeypatch):
    assert files_read(root, monkeypatch) == list(range(12))
    assert files_read(root, monkeypatch) == []
    (root / "5.mp4").write_bytes(b"no video")
    os.utime(root / "6.mp4", ns=(1, 1))
    before = (root / "7.mp4").stat()
    (root / "7.mp4").write_bytes(good + b"more")
    os.utime(root / "7.mp4", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files_read(root, monkeypatch) == [5, 6, 7]
    assert list(checked(root).splits["val"].undecodable) == ["5.mp4"]
    assert files_read(root, monkeypatch) == [5], "what could not be read is tried again"
    (root / "5.mp4").write_bytes(good)
    assert files_read(root, monkeypatch) == [5]
    assert checked(root).ok
    assert files_read(root, monkeypatch) == []
    assert files_read(root, monkeypatch, clip=ClipSpec(num_frames=4)) == list(range(12)), "other frames of the same files"


def test_a_killed_check_goes_on_where_it_was(root, tmp_path, monkeypatch):
    checked(root)
    (record,) = (tmp_path / "runs" / "data_check").iterdir()
    lines = record.read_text().splitlines()
    whole = [line for line in lines if line]
    known = {int(os.path.basename(json.loads(line)["path"]).split(".")[0]) for line in whole[:7]}
    record.write_text("\n".join(whole[:7]) + "\n" + whole[7][:40])
    assert files_read(root, monkeypatch) == sorted(set(range(12)) - known)
    assert files_read(root, monkeypatch) == []


def _read_or_die(path, clip):
    if path.endswith("/7.mp4"):
        os.kill(os.getpid(), signal.SIGKILL)
    return module._Finding(12, None)


def test_a_file_that_kills_its_reader_is_named_and_the_others_are_read(root, monkeypatch):
    monkeypatch.setattr(module, "_read", _read_or_die)
    report = checked(root)
    assert report.splits["val"].undecodable == {"7.mp4": "the process that read it died"}
    assert report.splits["train"].undecodable == {}
    assert report.splits["test"].undecodable == {}


def test_imagenet_is_checked_for_its_folders(tmp_path, monkeypatch):
    monkeypatch.setitem(module.CLASSES, "imagenet", 1)
    report = check("imagenet", tmp_path)
    assert not report.ok
    assert f"{tmp_path / 'train'} has 0" in render(report)
    for split in ("train", "val"):
        (tmp_path / split / "n01440764").mkdir(parents=True)
    assert check("imagenet", tmp_path).ok
    assert render(check("imagenet", tmp_path)).endswith("ok")


def test_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one of imagenet, kinetics400, ssv2, got 'digits'"):
        check("digits", tmp_path)


@pytest.mark.parametrize("name", ["kinetics400", "ssv2"])
def test_what_is_tried_by_default_is_what_the_released_tests_take(name):
    from vmrepro.specs import video

    experiment = next(e for e in video.fig7("paper") if e.data.name == name and e.data.clip.num_frames == 16)
    ours, theirs = module.CLIPS[name], experiment.data.clip
    assert (ours.num_frames, ours.sampling, ours.test_clips) == (theirs.num_frames, theirs.sampling, theirs.test_clips)
    assert module.CLASSES[name] == experiment.data.num_classes
