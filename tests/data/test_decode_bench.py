import os

import pytest
import torch

from tests import videos
from vmrepro.data import decode, decode_bench
from vmrepro.data.decode_bench import measure

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None  # before any test
PRESENT = [*(name for name, reason in decode.available_decoders().items() if reason is None), "auto"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return videos.write(tmp_path_factory.mktemp("bench") / "clip.mp4", 40)


def test_a_row_for_every_file_number_of_frames_and_decoder(file):
    second = videos.write(file.with_name("other.mkv"), 30, codec="libvpx-vp9")
    rows = measure([file, second], frames=(2, 5), short_side=24, repeats=3)
    asked = [(name, frames, decoder) for name in ("clip.mp4", "other.mkv") for frames in (2, 5) for decoder in PRESENT]
    assert [(row["video"], row["frames"], row["decoder"]) for row in rows] == asked
    assert all(0 < row["lower_quartile"] <= row["clips_per_second"] <= row["upper_quartile"] for row in rows)
    assert all((row["height"], row["width"], row["short_side"], row["note"]) == (48, 64, 24, "") for row in rows)
    assert {row["version"] for row in rows if row["decoder"] == "auto"} == {""}
    assert [row["video_frames"] for row in rows] == [40] * 2 * len(PRESENT) + [30] * 2 * len(PRESENT)


def test_the_speed_is_of_the_decoder_that_the_row_names(file, monkeypatch):
    """A copy of PyAV's reader that does the work ten times is about ten times as slow, and reads as many clips."""
    reader = decode.READERS["av"]
    calls = {"av": 0, "slow": 0}

    def repeated(name: str, times: int):
        def read(path, plan):
            calls[name] += 1
            for _ in range(times - 1):
                reader(path, decode._Plan(lambda count: [5, 15, 25, 35]))
            return reader(path, plan)

        return read

    for name, times in (("av", 1), ("slow", 10)):
        monkeypatch.setitem(decode.READERS, name, repeated(name, times))
    monkeypatch.setattr(decode, "_absence", lambda name: None)
    monkeypatch.setattr(decode_bench.importlib, "import_module", lambda name: decode)
    monkeypatch.setattr(decode, "_check_present", lambda name: None)
    av, slow = measure([file], frames=(4,), repeats=9, decoders=["av", "slow"])
    assert 4 < av["clips_per_second"] / slow["clips_per_second"] < 25
    assert calls["slow"] == 10  # one to compare, nine to measure


def test_a_decoder_that_gives_other_frames_has_a_note_and_no_speed(file, monkeypatch):
    monkeypatch.setitem(decode.READERS, "decord", lambda path, plan: 255 - decode.READERS["av"](path, plan))
    rows = {row["decoder"]: row for row in measure([file], frames=(4,), repeats=2, decoders=["av", "decord"])}
    assert rows["av"]["note"] == ""
    assert rows["decord"]["note"] == "gives other frames than PyAV"
    assert rows["decord"]["clips_per_second"] is None


def test_a_decoder_that_refuses_the_file_says_why(file, monkeypatch):
    def refuse(path, plan):
        raise decode.DecodeError(path, "not this one")

    monkeypatch.setitem(decode.READERS, "decord", refuse)
    rows = measure([file], frames=(4,), repeats=2, decoders=["decord"])
    assert [row["note"] for row in rows] == ["not this one"]


def test_cores_and_threads_are_put_back(file):
    threads = torch.get_num_threads()
    seen = []
    with decode_bench._one_core():
        seen.append((torch.get_num_threads(), CORES and len(os.sched_getaffinity(0))))
    with pytest.raises(FileNotFoundError):
        measure([file.with_name("nothing.mp4")])
    assert seen == [(1, CORES and 1)]
    assert torch.get_num_threads() == threads
    assert CORES is None or os.sched_getaffinity(0) == CORES


def test_without_files_it_makes_its_own(monkeypatch):
    monkeypatch.setattr(decode_bench, "OWN_CLIPS", {"small": (48, 64)})
    (row,) = measure(frames=(8,), repeats=2, decoders=["av"])
    assert (row["video"], row["height"], row["width"]) == ("small.mp4", 48, 64)
    assert row["video_frames"] == decode_bench.FPS * decode_bench.SECONDS
    assert row["clips_per_second"] > 0
