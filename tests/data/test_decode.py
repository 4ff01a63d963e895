import importlib
import multiprocessing
import os
import pickle
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests import videos
from vmrepro.data import decode
from vmrepro.data.decode import DecodeError, available_decoders, frame_count, read_frames

PRESENT = [name for name, reason in available_decoders().items() if reason is None]
EACH = pytest.mark.parametrize("decoder", PRESENT)
OTHERS = [name for name in PRESENT if name != "av"]
CODECS = ["libx264", "libx265", "mpeg4", "libvpx-vp9", "libsvtav1"]
QUIET = {"libx265": {"x265-params": "log-level=none"}, "libsvtav1": {"svtav1-params": "keyint=12"}}


def everything(count: int) -> range:
    return range(count)


def clip(folder: Path, codec: str = "libx264", ending: str = "mp4", count: int = 40, **more) -> Path:
    options = QUIET.get(codec, {}) | more.pop("options", {})
    return videos.write(folder / f"{codec}.{ending}", count, codec=codec, options=options, **more)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Forty frames, a keyframe every twelve, H.264 with B-frames in MP4."""
    return clip(tmp_path_factory.mktemp("plain"))


@EACH
def test_any_frames_in_any_order_with_repeats(plain, decoder):
    wanted = [39, 0, 7, 7, 12, 11, 0, 23]
    frames = read_frames(plain, lambda count: wanted, decoder=decoder)
    assert frames.dtype == np.uint8
    assert frames.shape == (8, 48, 64, 3)
    assert videos.numbers(frames) == wanted


@EACH
def test_the_chooser_is_told_how_many_frames_there_are(plain, decoder):
    told = []
    read_frames(plain, lambda count: told.append(count) or [0], decoder=decoder)
    assert told == [40]
    assert frame_count(plain, decoder=decoder) == 40


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "mov", "webm"])
def test_every_codec_in_every_container_gives_the_frames_asked_for(tmp_path, codec, ending):
    """Single frames, sparse ones and all, so that stretches start at every keyframe."""
    taken = {"mov": ("libx264", "libx265", "mpeg4"), "webm": ("libvpx-vp9", "libsvtav1")}
    if codec not in taken.get(ending, CODECS) or (codec, ending) == ("libx265", "avi"):
        pytest.skip("the container does not take this codec")
    path = clip(tmp_path, codec, ending)
    assert videos.numbers(read_frames(path, everything)) == list(range(40))
    for wanted in ([2, 7, 12, 17, 22, 27, 32, 37], [39], [13], [0, 38]):
        assert videos.numbers(read_frames(path, lambda count, wanted=wanted: wanted)) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"x264-params": "open-gop=1:bframes=3:keyint=10:min-keyint=10:scenecut=0"},
        {"x264-params": "bframes=8:b-pyramid=normal:keyint=250"},
        {"x264-params": "intra-refresh=1:keyint=10"},
        {"x264-params": "bframes=0:keyint=5"},
        {"x264-params": "interlaced=1:bframes=3:keyint=12"},
    ],
    ids=["open groups", "deep B-frames", "intra refresh", "no B-frames", "interlaced"],
)
def test_each_frame_by_itself_is_the_one_of_reading_through(tmp_path, options):
    """Leaving out what nothing refers to, and starting at the nearest keyframe, changes no bit."""
    noise = np.random.default_rng(0).integers(-25, 26, (60, 48, 64, 3))
    pictures = np.clip(videos.numbered(60).astype(int) + noise, 0, 255).astype(np.uint8)
    path = videos.write(tmp_path / "clip.mp4", pictures, options=options)
    expected = through(path)
    assert videos.numbers(expected) == list(range(60))
    asked = []
    for index in range(60):
        (frame,) = read_frames(path, lambda count, index=index: asked.append(count) or [index])
        np.testing.assert_array_equal(frame, expected[index])
    assert asked == [60] * 60  # once each, although a refresh has no picture to start from, and takes a second attempt


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_all_decoders_give_the_same_bytes(tmp_path, codec, other):
    path = clip(tmp_path, codec, size=(72, 128))
    ours = read_frames(path, lambda count: [1, 20, 39], short_side=56)
    np.testing.assert_array_equal(ours, read_frames(path, lambda count: [1, 20, 39], short_side=56, decoder=other))


def through(path: Path) -> np.ndarray:
    """All frames as PyAV reads them from first to last."""
    with av.open(str(path)) as container:
        return np.stack([np.rot90(f.to_ndarray(format="rgb24"), round(f.rotation / 90)) for f in container.decode(video=0)])


def read_by(monkeypatch, path: Path, choose) -> tuple[str, np.ndarray]:
    """Which decoder "auto" took, and its frames."""
    with monkeypatch.context() as patch:
        patch.setattr(decode._Track, "frames", lambda track, plan: pytest.fail("PyAV"))
        try:
            return "decord", read_frames(path, choose)
        except pytest.fail.Exception:
            pass
    return "av", read_frames(path, choose)


MANY_TICKS = np.cumsum(np.random.default_rng(1).integers(1, 90, 48)).tolist()
H264, VP9 = "libx264", "libvpx-vp9"
# Codec, container, what is special, and in decord's stead PyAV's reason to read it, if any.
KINDS = {
    "H.264": (H264, "mp4", {}, ""),
    "H.264 in MOV": (H264, "mov", {}, ""),
    "sound": (H264, "mp4", {"sound": True}, ""),
    "full range": (H264, "mp4", {"pixels": "yuvj420p"}, ""),
    "one group": (H264, "mp4", {"keyframe_every": 250}, ""),
    "all keyframes": (H264, "mp4", {"keyframe_every": 1}, ""),
    "deep B-frames": (H264, "mp4", {"options": {"x264-params": "bframes=8:b-pyramid=normal:keyint=30"}}, ""),
    "no B-frames": (H264, "mp4", {"options": {"x264-params": "bframes=0:keyint=5"}}, ""),
    "weighted": (H264, "mp4", {"options": {"x264-params": "weightp=2:bframes=5:slices=4:keyint=20"}}, ""),
    "any times": (H264, "mp4", {"ticks": MANY_TICKS}, ""),
    "turned": (H264, "mp4", {"rotation": 90}, ""),
    "turned MOV": (H264, "mov", {"rotation": 270}, ""),
    "VP9": (VP9, "webm", {}, ""),
    "VP9 with hidden references": (VP9, "webm", {"options": {"auto-alt-ref": "1", "lag-in-frames": "25"}}, ""),
    "VP9 in MP4": (VP9, "mp4", {"keyframe_every": 30}, ""),
    "VP9, any times": (VP9, "webm", {"ticks": MANY_TICKS}, ""),
    "open groups": (H264, "mp4", {"options": {"x264-params": "open-gop=1:bframes=3:keyint=10:min-keyint=10:scenecut=0"}}, "open"),
    "refresh by parts": (H264, "mp4", {"options": {"x264-params": "intra-refresh=1:keyint=10"}}, "full refresh"),
    "fields": (H264, "mp4", {"options": {"x264-params": "interlaced=1:keyint=12"}}, "fields"),
    "ten bits": (H264, "mp4", {"pixels": "yuv420p10le"}, "yuv420p10le"),
    "odd sides": (VP9, "mp4", {"size": (45, 63)}, "odd"),
    "turned Matroska": (VP9, "webm", {"rotation": 90}, "upright"),
    "H.264 in Matroska": (H264, "mkv", {}, "h264"),
    "H.264 in AVI": (H264, "avi", {}, "h264"),
    "HEVC": ("libx265", "mp4", {}, "hevc"),
    "MPEG-4": ("mpeg4", "mp4", {"options": {"bf": "2"}}, "mpeg4"),
    "AV1": ("libsvtav1", "mp4", {}, "av1"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_random_choices_are_those_of_reading_through(tmp_path, monkeypatch, kind):
    """Whichever decoder "auto" takes, and decord wherever it can be trusted."""
    codec, ending, special, reason = KINDS[kind]
    special = dict(special)
    size = special.pop("size", (48, 64))
    chance = np.random.default_rng(0)
    pictures = np.clip(videos.numbered(48, size).astype(int) + chance.integers(-25, 26, (48, *size, 3)), 0, 255).astype(np.uint8)
    path = clip(tmp_path, codec, ending, pictures, **special)
    expected = through(path)
    assert len(expected) == 48
    taken = set()
    for _ in range(100):
        wanted = chance.integers(0, 48, chance.integers(1, 10)).tolist()
        name, frames = read_by(monkeypatch, path, lambda count, wanted=wanted: wanted)
        taken.add(name)
        np.testing.assert_array_equal(frames, expected[wanted])
    if "decord" in PRESENT:
        assert taken == {"av" if reason else "decord"}
    if "decord" in PRESENT and reason:
        with pytest.raises(DecodeError, match=f"decord could mistake its frames: .*{reason}"):
            read_frames(path, everything, decoder="decord")


@EACH
@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_turned_videos_come_upright(tmp_path, ending, rotation, decoder):
    path = clip(tmp_path, "libvpx-vp9" if ending == "mkv" else "libx264", ending, count=6, rotation=rotation)
    if (decoder, ending) == ("decord", "mkv"):
        with pytest.raises(DecodeError, match="does not turn"):
            read_frames(path, everything, decoder=decoder)
    else:
        frames = read_frames(path, everything, decoder=decoder)
        assert frames.shape == (6, 48, 64, 3)
        assert videos.numbers(frames) == list(range(6))


@EACH
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_count_and_time_does_not(tmp_path, ending, decoder):
    ticks = [0, 10, 100, 110, 111, 500, 900, 901, 1500, 2000]
    path = clip(tmp_path, "libvpx-vp9" if ending == "mkv" else "libx264", ending, count=10, ticks=ticks)
    assert videos.numbers(read_frames(path, everything, decoder=decoder)) == list(range(10))


@EACH
def test_sound_does_not_count(tmp_path, decoder):
    path = clip(tmp_path, sound=True)
    assert videos.numbers(read_frames(path, everything, decoder=decoder)) == list(range(40))


def cut_by_edit_list(source: Path, frames: int) -> Path:
    """A copy without re-encoding that starts ``frames`` later, as cutting tools make: the MP4 holds more than it shows."""
    path = source.with_stem("cut")
    with av.open(str(source)) as given, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        shift = int(Fraction(frames, 25) / stream.time_base)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                out.mux(packet)
    return path


@EACH
def test_frames_hidden_by_an_edit_list_do_not_count(plain, decoder):
    path = cut_by_edit_list(plain, 5)
    if decoder == "decord":
        with pytest.raises(DecodeError, match="edit list hides"):
            frame_count(path, decoder=decoder)
    else:
        assert videos.numbers(read_frames(path, everything, decoder=decoder)) == list(range(5, 40))
        assert videos.numbers(read_frames(path, lambda count: [count - 1, 0], decoder=decoder)) == [39, 5]
        assert videos.numbers(read_frames(path, lambda count: [20], decoder=decoder)) == [25]


@pytest.mark.parametrize("decoder", OTHERS)
def test_h264_in_avi_is_refused_by_those_who_mistake_it(tmp_path, decoder):
    with pytest.raises(DecodeError, match="mistake"):
        read_frames(clip(tmp_path, ending="avi"), everything, decoder=decoder)


def with_packets(source: Path, change, times=None) -> Path:
    """A copy whose packets are what ``change`` makes of each, as bytes or None to leave it out, shown at ``times`` of each."""
    path = source.with_stem("changed")
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for i, packet in enumerate(packet for packet in given.demux(stream) if packet.size):
            content = change(i, bytes(packet))
            if content is not None:
                made = av.Packet(content)
                made.pts, made.dts, made.time_base = packet.pts, packet.dts, packet.time_base
                if times is not None:
                    made.pts = made.dts = times(i)
                made.is_keyframe, made.stream = packet.is_keyframe, copy
                out.mux(made)
    return path


def two_tracks(source: Path) -> Path:
    path = source.with_stem("two")
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = given.streams.video[0]
        copies = [out.add_stream_from_template(stream) for _ in range(2)]
        for packet in [packet for packet in given.demux(stream) if packet.size]:
            for copy in copies:
                made = av.Packet(bytes(packet))
                made.pts, made.dts, made.time_base = packet.pts, packet.dts, packet.time_base
                made.is_keyframe, made.stream = packet.is_keyframe, copy
                out.mux(made)
    return path


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("edit list", lambda plain: cut_by_edit_list(plain, 5)),
        ("several video tracks", two_tracks),
        ("those of decoding", lambda plain: with_packets(plain, lambda i, content: content, lambda i: 512 * i)),
        ("damaged", lambda plain: with_packets(plain, lambda i, content: content[:-1] if i == 30 else content)),
        ("full refresh", lambda plain: clip(plain.parent / "a", options={"x264-params": "open-gop=1:keyint=10:scenecut=0"})),
        ("the same", lambda plain: with_packets(clip(plain.parent / "b", VP9, "webm"), lambda i, c: c, lambda i: 40 * (i // 2))),
        ("cut off", lambda plain: with_packets(clip(plain.parent / "c", VP9, "webm"), lambda i, c: c if i else None)),
        ("cut off", lambda plain: videos.truncated(long_clip(plain.parent / "d", "mp4"), 0.6)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.skipif("decord" not in PRESENT, reason="decord is absent")
def test_what_decord_could_mistake_is_refused_by_name_and_read_by_pyav(tmp_path, plain, monkeypatch, reason, change):
    for name in "abcd":
        (tmp_path / name).mkdir()
    source = tmp_path / "clip.mp4"
    source.write_bytes(plain.read_bytes())
    path = change(source)
    with pytest.raises(DecodeError, match=reason):
        frame_count(path, decoder="decord")
    name, frames = read_by(monkeypatch, path, lambda count: [count - 1, 0])
    assert name == "av"
    np.testing.assert_array_equal(frames, read_frames(path, lambda count: [count - 1, 0], decoder="av"))


class OtherReader:
    """In the place of decord's: counts or fails as told."""

    def __init__(self, count: int, error: Exception | None) -> None:
        self.count, self.error = count, error

    def __call__(self, path: str, **settings) -> "OtherReader":
        return self

    def __len__(self) -> int:
        return self.count

    def get_batch(self, indices: list[int]) -> np.ndarray:
        raise self.error


@pytest.mark.skipif("decord" not in PRESENT, reason="decord is absent")
@pytest.mark.parametrize(
    ("reader", "reason"),
    [(OtherReader(40, RuntimeError("torn")), "decord: torn"), (OtherReader(39, None), "decord counts 39 frames in 40 packets")],
)
def test_where_decord_fails_pyav_goes_on_with_the_same_choice(plain, monkeypatch, reader, reason):
    import decord

    monkeypatch.setattr(decord, "VideoReader", reader)
    with pytest.raises(DecodeError, match=reason):
        frame_count(plain, decoder="decord")
    chance = np.random.default_rng(0)
    first = np.random.default_rng(0).integers(0, 40, 5).tolist()
    assert videos.numbers(read_frames(plain, lambda count: chance.integers(0, count, 5))) == first


@pytest.mark.skipif("decord" not in PRESENT, reason="decord is absent")
def test_without_decord_pyav_reads(plain, monkeypatch):
    assert read_by(monkeypatch, plain, lambda count: [7, 3])[0] == "decord"
    monkeypatch.setitem(sys.modules, "decord", None)
    name, frames = read_by(monkeypatch, plain, lambda count: [7, 3])
    assert (name, videos.numbers(frames)) == ("av", [7, 3])


@pytest.mark.skipif("decord" not in PRESENT, reason="decord is absent")
def test_an_error_of_the_file_is_pyavs(tmp_path, plain):
    path = with_packets(plain, lambda i, content: b"\0\0\0\2\x65\0" if i == 0 else content)
    with pytest.raises(DecodeError) as caught:
        read_frames(path, everything)
    with pytest.raises(DecodeError) as pyavs:
        read_frames(path, everything, decoder="av")
    assert caught.value.reason == pyavs.value.reason


def test_packets_without_a_picture_do_not_count(tmp_path):
    """MPEG-4 has packets that say "nothing new"; as encoders of AVI write them, the file promises more than it shows."""
    nothing = bytes.fromhex("000001b6") + bytes([0b01010000, 0b01001111])  # P, no seconds gone, tick 0, not coded
    hollow = (11, 35)  # each just before a keyframe, where no other picture needs it
    path = with_packets(clip(tmp_path, "mpeg4"), lambda i, content: nothing if i in hollow else content)
    told = []
    frames = read_frames(path, lambda count: told.append(count) or range(count))
    assert told == [40, 38]
    assert videos.numbers(frames) == [i for i in range(40) if i not in hollow]


def test_times_that_contradict_the_pictures_are_not_believed(tmp_path):
    """As in a Matroska copied from an AVI: times of decoding in the place of those of presentation."""
    path = with_packets(clip(tmp_path, ending="mkv"), lambda i, content: content, lambda i: 40 * i)
    assert videos.numbers(read_frames(path, everything)) == list(range(40))


def test_two_frames_at_one_time_are_two_frames(tmp_path):
    path = with_packets(clip(tmp_path, "mpeg4", "mkv"), lambda i, content: content, lambda i: 40 * (i // 2))
    assert videos.numbers(read_frames(path, lambda count: [0, 1, 2, 21])) == [0, 1, 2, 21]


def test_avi_counts_pictures_in_the_order_shown(tmp_path):
    """Its packets have no time of presentation; each frame by itself, since one alone cannot come out of order."""
    for codec, options in (("libx264", {}), ("mpeg4", {"bf": "2"})):
        path = clip(tmp_path, codec, "avi", options=options)
        for index in range(40):
            assert videos.numbers(read_frames(path, lambda count, index=index: [index])) == [index]


def test_text_that_is_no_text_in_a_header_does_not_matter(tmp_path):
    path = clip(tmp_path, ending="mkv")
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", b"\xff\x98vf"))
    assert frame_count(path) == 40


def test_packets_before_the_first_keyframe_do_not_count(tmp_path):
    path = with_packets(clip(tmp_path, "mpeg4"), lambda i, content: None if i == 0 else content)
    assert videos.numbers(read_frames(path, everything)) == list(range(12, 40))


def long_clip(folder: Path, ending: str, codec: str = "libx264") -> Path:
    return clip(folder, codec, ending, count=120, container={"movflags": "faststart"} if ending == "mp4" else {})


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx-vp9")])
def test_a_truncated_file_counts_to_where_it_breaks_off(tmp_path, ending, codec):
    """The header of MP4 and AVI still promises 120 frames."""
    path = videos.truncated(long_clip(tmp_path, ending, codec), 0.6)
    count = frame_count(path)
    assert 40 < count < 90
    read = videos.numbers(read_frames(path, everything))
    assert len(read) == count
    assert read[:-3] == list(range(count - 3))  # the last few can lack what was shown between them
    assert read == sorted(read)


@EACH
def test_damage_before_a_wanted_frame_is_an_error_that_says_where(tmp_path, decoder):
    path = videos.garbled(long_clip(tmp_path, "mp4"), 0.5, 0.6)
    with pytest.raises(DecodeError) as caught:
        read_frames(path, everything, decoder=decoder)
    assert caught.value.path == path
    if decoder == "av":
        assert "damaged" in caught.value.reason
        assert " of 120" in caught.value.reason


def test_a_picture_that_was_patched_up_is_an_error(tmp_path):
    path = videos.garbled(long_clip(tmp_path, "mkv"), 0.5, 0.6)
    assert len(read_frames(path, lambda count: range(40))) == 40
    with pytest.raises(DecodeError, match="at or before packet"):
        read_frames(path, everything)


def test_damage_elsewhere_does_not_matter(tmp_path):
    path = videos.garbled(long_clip(tmp_path, "mp4"), 0.5, 0.6)
    for wanted in (list(range(10)), [0, 119]):  # the last one is read from its own keyframe
        assert videos.numbers(read_frames(path, lambda count, wanted=wanted: wanted)) == wanted


def test_random_damage_gives_an_error_or_as_many_frames_as_asked_for(tmp_path):
    outcomes = {"frames": 0, "error": 0}
    for ending, codec in (("mp4", "libx264"), ("mkv", "libx264"), ("mkv", "libvpx-vp9"), ("avi", "mpeg4")):
        whole = clip(tmp_path, codec, ending, container={"movflags": "faststart"} if ending == "mp4" else {})
        for seed in range(12):
            start = 0.05 + 0.07 * seed
            path = videos.garbled(whole, start, start + 0.03, seed)
            told = []
            try:
                frames = read_frames(path, lambda count, told=told: told.append(count) or range(count))
            except DecodeError:
                outcomes["error"] += 1
            else:
                outcomes["frames"] += 1
                assert len(frames) == told[-1]
    assert min(outcomes.values()) > 5, outcomes


@EACH
def test_what_is_no_video_is_a_decode_error(tmp_path, decoder):
    text = tmp_path / "text.mp4"
    text.write_text("no video " * 100)
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    headless = videos.truncated(clip(tmp_path), 0.6)  # its index was at the end
    for path in (text, empty, headless, videos.write_sound(tmp_path / "sound.m4a"), tmp_path):
        with pytest.raises(DecodeError, match=str(path)):
            read_frames(path, everything, decoder=decoder)


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(DecodeError, match="not a regular file"):
        read_frames(tmp_path / "pipe.mp4", everything)


@EACH
def test_a_missing_file_is_a_missing_file(tmp_path, decoder):
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4"):
        read_frames(tmp_path / "nothing.mp4", everything, decoder=decoder)


@EACH
def test_a_colon_in_the_name_is_no_protocol(tmp_path, decoder, monkeypatch, plain):
    (tmp_path / "http:clip.mp4").write_bytes(plain.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert frame_count("http:clip.mp4", decoder=decoder) == 40


@pytest.mark.parametrize("wanted", [[40], [-1], []], ids=str)
def test_indices_outside_the_video_are_refused(plain, wanted):
    with pytest.raises(ValueError, match="from 0 to 39"):
        read_frames(plain, lambda count: wanted)


def test_an_error_of_the_chooser_comes_out_as_it_is(plain):
    with pytest.raises(ZeroDivisionError):
        read_frames(plain, lambda count: [1 // 0])


def test_the_short_side_is_brought_to_size(tmp_path):
    """Torch's bilinear resize of the exact values, rounded."""
    for size, expected in (((48, 66), (20, 27)), ((66, 48), (27, 20)), ((48, 48), (20, 20)), ((16, 34), (20, 42))):
        path = clip(tmp_path, count=3, size=size)
        whole = read_frames(path, everything)
        small = read_frames(path, lambda count: [2, 0, 2], short_side=20)
        exact = torch.from_numpy(whole[[2, 0, 2]]).double().permute(0, 3, 1, 2)
        exact = torch.nn.functional.interpolate(exact, size=expected, mode="bilinear").permute(0, 2, 3, 1)
        assert small.dtype == np.uint8
        assert small.shape == (3, *expected, 3)
        assert np.abs(small - exact.numpy()).max() <= 1  # torch's arithmetic in whole numbers
        assert videos.numbers(small) == [2, 0, 2]


@pytest.mark.parametrize("short_side", [0, -3])
def test_a_short_side_without_pixels_is_refused(plain, short_side):
    with pytest.raises(ValueError, match="positive number of pixels"):
        read_frames(plain, everything, short_side=short_side)


def test_an_unknown_decoder_is_refused(plain):
    with pytest.raises(ValueError, match=r"'auto' or one of av, decord, torchcodec, got 'ffmpeg'"):
        read_frames(plain, everything, decoder="ffmpeg")


@pytest.mark.parametrize(
    ("asked", "missing"), [("auto", "av"), ("av", "av"), ("decord", "decord"), ("decord", "av"), ("torchcodec", "torchcodec")]
)
def test_an_absent_decoder_is_an_error_that_says_what_to_install(plain, monkeypatch, asked, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"{missing}.*pip install .*{missing}"):
        read_frames(plain, everything, decoder=asked)
    assert missing in available_decoders()[missing]


def test_a_decoder_that_does_not_import_is_no_decoder(monkeypatch):
    def broken(name: str):
        raise RuntimeError("no FFmpeg here\nand more lines")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert available_decoders()["torchcodec"].startswith("torchcodec does not import: no FFmpeg here; pip install")


def test_nothing_is_written_to_the_terminal(tmp_path, capfd):
    path = videos.garbled(long_clip(tmp_path, "mp4"), 0.5, 0.6)
    capfd.readouterr()
    with pytest.raises(DecodeError):
        read_frames(path, everything)
    assert capfd.readouterr() == ("", "")


def test_a_decode_error_survives_a_loader_process(tmp_path, plain):
    error = pickle.loads(pickle.dumps(DecodeError("clip.mp4", "torn")))
    assert (error.path, error.reason, str(error)) == ("clip.mp4", "torn", "clip.mp4: torn")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    loader = DataLoader(Clips([text, plain]), num_workers=1)
    with pytest.raises(DecodeError, match=r"text\.mp4: PyAV"):
        next(iter(loader))


class Clips(Dataset):
    """Three frames of each file."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(read_frames(self.paths[index], lambda count: [39, index, index]))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.timeout(60)
def test_forked_loader_processes_read_after_the_parent_did(plain):
    assert len(Clips([plain] * 2)[1]) == 3
    loader = DataLoader(Clips([plain] * 12), batch_size=2, num_workers=2, multiprocessing_context="fork")
    read = [videos.numbers(frames.numpy()) for batch in loader for frames in batch]
    assert read == [[39, i, i] for i in range(12)]


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth_mib(decoder: str, path: str, opens: int, keep: bool, answer) -> None:
    """Put the growth of resident memory over ``opens`` readings into the queue ``answer``, after a warm-up of 200."""
    kept = []
    for i in range(200 + opens):
        frames = read_frames(path, lambda count: [0, 20], decoder=decoder)
        if keep:
            kept.append(frames)
        if i == 199:
            before = resident_mib()
    answer.put(resident_mib() - before)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("decoder", ["auto", *PRESENT])
def test_memory_does_not_grow_with_the_files_opened(plain, decoder):
    """Two thousand readings grow by less than 12 MiB; keeping each one's two small frames alone would be 35 MiB."""
    growth = {}
    context = multiprocessing.get_context("spawn")
    for keep in (False, True):
        answer = context.Queue()
        process = context.Process(target=growth_mib, args=(decoder, str(plain), 2000, keep, answer))
        process.start()
        growth[keep] = answer.get(timeout=300)
        process.join()
    print(f"{decoder}: {growth[False]:.1f} MiB, with every reading kept {growth[True]:.1f} MiB")
    assert growth[False] < 12
    assert growth[True] > 30
