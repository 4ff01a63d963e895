"""Frames of a video file by their index, upright, as arrays: one interface over decord, PyAV and torchcodec.

"auto" is decord for every file that it surely reads right, and PyAV for the others and where decord is absent or fails. A list of
the packets, made without decoding, tells (``_Track.doubt``). decord 0.6.0 gives, in silence, other frames than those asked for
where groups of pictures are open or begin without a full refresh, where times of presentation are missing or an edit list hides
frames, and in turned Matroska; and other pixels than PyAV with more than eight bits, fields or odd sides. In every trial with
whole files that pass both gave the same bytes. Damage inside one picture leaves no trace in the packets: decord then patches
the picture up where PyAV raises, so a check of files should name PyAV.

Everything runs in one thread of the process that calls, and nothing outlives a call, so forked loader processes are safe.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import importlib
import operator
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

Choose = Callable[[int], Sequence[int]]

INSTALL = {
    "av": "pip install -c environment/lock.txt av",
    "decord": "pip install -c environment/lock.txt decord",
    "torchcodec": "pip install torchcodec, in the release made for this PyTorch; it also needs FFmpeg's shared libraries",
}
# What decord is trusted with; the rest of the conditions is in _Track.doubt.
# H.264 in Matroska is not, since packets lost to damage there leave no trace, and decord patches pictures up in silence.
TRUSTED = {"mp4": ("h264", "vp9"), "matroska": ("vp9",)}  # codecs by container
PIXELS = ("yuv420p", "yuvj420p")
WITHOUT_FIELDS = (0, 1)  # FFmpeg's AVFieldOrder: not known, progressive
H264_SLICES, H264_REFRESH = set(range(1, 6)), 5  # types of network units; ITU-T H.264, table 7-1
# Codecs in which a picture marked as no reference is referred to by none at all. HEVC marks it per temporal layer only.
WITH_SPARE_PICTURES = ("h264", "mpeg4")
NO_DUPLICATES = 1e-9  # share of frames that decord may replace by a neighbour; 0 would mean any
AVI = re.compile(rb"RIFF....AVI ", re.DOTALL)
TURNED_MATROSKA = re.compile(rb"\x1a\x45\xdf\xa3.*\x76\x70.{1,40}?\x76\x75[\x84\x88]", re.DOTALL)  # a projection with a roll


class DecodeError(RuntimeError):
    """A file that cannot be decoded, in whole or as far as was asked: ``path`` and ``reason``."""

    def __init__(self, path: str | os.PathLike, reason: str = "") -> None:
        # One argument is enough, because a loader process sends the finished message alone.
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else str(self.path)


def read_frames(path: str | os.PathLike, choose: Choose, *, short_side: int | None = None, decoder: str = "auto") -> np.ndarray:
    """The chosen frames of a video, uint8 (T, height, width, 3), RGB, in the order chosen.

    choose: gets the number of frames n and gives T indices in [0, n), in any order, repeats allowed. n counts pictures in the
    order shown, whatever the time between them and whatever number the container claims; a file cut short counts to the cut.
    Where a file turns out to hold fewer than its packets promised, ``choose`` is called again with the true number.
    short_side: pixels; the shorter side is brought to it and the longer one in proportion, rounded down, after decoding:
    bilinear without anti-aliasing, so that no result depends on the decoder (the released loaders' test resize).
    Turned by the nearest quarter that the file's rotation asks for.

    Raises FileNotFoundError; DecodeError if the file cannot be decoded, or is damaged where the wanted frames need it, as far as
    the codec notices (few have checksums, so some damage is only wrong pixels); ValueError for indices outside the video, and
    for a decoder that is unknown; ImportError for one that is absent.
    """
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be a positive number of pixels, got {short_side}")
    plan = _Plan(choose)
    _check_present(decoder)
    frames = READERS[decoder](_file(path), plan)
    if short_side is not None:
        frames = _resized(frames, short_side)
    return plan.laid_out(frames)


def frame_count(path: str | os.PathLike, *, decoder: str = "auto") -> int:
    """How many frames ``choose`` of ``read_frames`` is offered first; raises as that does. Decodes one picture."""
    counts: list[int] = []

    def first(count: int) -> list[int]:
        counts.append(count)
        return [0]

    read_frames(path, first, decoder=decoder)
    return counts[-1]


def available_decoders() -> dict[str, str | None]:
    """By name, None if a decoder can be used, else why not and how to get it."""
    return {name: _absence(name) for name in INSTALL}


def _absence(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return f"{name} is not installed: {INSTALL[name]}"
        return f"{name} does not import: {error}"
    except Exception as error:  # torchcodec without FFmpeg's libraries raises RuntimeError, a broken build OSError
        return f"{name} does not import: {str(error).strip().splitlines()[0]}; {INSTALL[name]}"
    return None


def _check_present(decoder: str) -> None:
    if decoder not in READERS:
        raise ValueError(f"decoder must be 'auto' or one of {', '.join(INSTALL)}, got {decoder!r}")
    for name in {"auto": ["av"], "decord": ["decord", "av"]}.get(decoder, [decoder]):
        reason = _absence(name)
        if reason is not None:
            raise ImportError(reason)


def _file(path: str | os.PathLike) -> Path:
    """``path`` made absolute (FFmpeg takes what stands before a colon for a protocol), if it is a file with content."""
    file = Path(os.path.abspath(path))
    if not file.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if not file.is_file():
        raise DecodeError(path, "a video file was expected, this is a folder" if file.is_dir() else "it is not a regular file")
    if file.stat().st_size == 0:
        raise DecodeError(path, "the file is empty")
    return file


class _Plan:
    """What the caller wants of a video whose length is known only once it is open."""

    def __init__(self, choose: Choose) -> None:
        self._choose, self._count = choose, 0

    def __call__(self, count: int) -> list[int]:
        """The distinct indices wanted of ``count`` frames, sorted."""
        if count == self._count:  # asked before, by a decoder that failed then: a second choice could be another
            return self._distinct
        self._indices = [operator.index(i) for i in self._choose(count)]
        outside = [i for i in self._indices if not 0 <= i < count]
        if outside or not self._indices:
            found = f"got {outside[0]}" if outside else "got none"
            raise ValueError(f"choose must give frame indices from 0 to {count - 1}, {found}")
        self._distinct, self._count = sorted(set(self._indices)), count
        return self._distinct

    def laid_out(self, frames: np.ndarray) -> np.ndarray:
        """The distinct frames in the order and with the repeats asked for."""
        return frames if self._indices == self._distinct else frames[np.searchsorted(self._distinct, self._indices)]


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 16)


def _resized(frames: np.ndarray, short_side: int) -> np.ndarray:
    short, long = sorted(frames.shape[1:3])
    other = long * short_side // short
    size = (short_side, other) if frames.shape[1] == short else (other, short_side)
    channels_first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(channels_first, size=size, mode="bilinear", align_corners=False)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def _stacked(path: Path, frames: list[np.ndarray]) -> np.ndarray:
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise DecodeError(path, f"its picture size changes on the way: {sorted(shapes)}")
    return np.stack(frames)


def _with_auto(path: Path, plan: _Plan) -> np.ndarray:
    with _track(path) as track:
        if _absence("decord") is None:
            with contextlib.suppress(DecodeError):  # PyAV's error is the one that counts
                return _by_decord(path, plan, track)
        return track.frames(plan)


def _with_av(path: Path, plan: _Plan) -> np.ndarray:
    with _track(path) as track:
        return track.frames(plan)


def _with_decord(path: Path, plan: _Plan) -> np.ndarray:
    with _track(path) as track:
        return _by_decord(path, plan, track)


@contextlib.contextmanager
def _track(path: Path) -> Iterator[_Track]:
    """The video track of a file, to be used while this is open."""
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DecodeError(path, "it has no video track")
            if stream.codec_context is None:
                raise DecodeError(path, "PyAV knows no decoder for its video track")
            stream.thread_type = "NONE"
            yield _Track(path, stream, list(container.demux(stream)))
    except av.error.FFmpegError as error:
        raise DecodeError(path, f"PyAV: {error.strerror}") from error


class _Track:
    """The packets of one video track, held in memory still compressed, and PyAV's decoder for them."""

    def __init__(self, path: Path, stream: Any, packets: list) -> None:
        self._all = [packet for packet in packets if packet.size]
        first = next((i for i, packet in enumerate(self._all) if packet.is_keyframe), len(self._all))
        packets = self._all[first:]
        while packets and packets[-1].is_corrupt:  # where the file breaks off
            packets.pop()
        if not packets:
            raise DecodeError(path, "its video track holds no picture to start from")
        self._path, self._stream, self._context, self._packets = path, stream, stream.codec_context, packets
        self._keyframes = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        self.count = len(packets)

    def frames(self, plan: _Plan) -> np.ndarray:
        """The wanted frames as PyAV decodes them."""
        # AVI has no times of presentation; those that FFmpeg fills in are wrong where the order differs.
        guessed = self._stream.container.format.name == "avi" and self._context.has_b_frames
        return _stacked(self._path, (None if guessed else self.by_time(plan)) or self.by_order(plan))

    def doubt(self) -> str:
        """Why decord may give other frames than PyAV; empty if it gives the same."""
        container, context, packets = self._stream.container, self._context, self._all
        if len(container.streams.video) > 1:
            return "it has several video tracks"
        trusted = [codec for name in container.format.name.split(",") for codec in TRUSTED.get(name, ())]
        if context.name not in trusted or context.pix_fmt not in PIXELS:
            return f"it holds {context.name} with {context.pix_fmt} pixels in {container.format.long_name}"
        if context.width % 2 or context.height % 2:
            return f"a side is odd, {context.height} x {context.width}"
        if int(context.field_order) not in WITHOUT_FIELDS:
            return "its pictures consist of fields"
        if TURNED_MATROSKA.match(_header(self._path)):
            return "decord does not turn a Matroska file upright"
        if any(packet.is_discard for packet in packets):
            return "an edit list hides some"
        if packets != self._packets or any(packet.is_corrupt for packet in packets):
            return "it is cut off at an end, or damaged"
        times = [packet.pts for packet in packets]
        if None in times or len(set(times)) < len(times) or min(times) < 0:
            return "some have no time of presentation, the same, or a negative one"
        if context.has_b_frames and times == sorted(times):
            return "its times seem to be those of decoding"
        for packet in packets if context.name == "h264" else ():
            units = _h264_units(packet, context.extradata)
            if not units:
                return "it is damaged"
            if packet.is_keyframe and units & H264_SLICES != {H264_REFRESH}:
                return "a group of pictures is open, or begins without a full refresh"
        return ""

    def by_time(self, plan: _Plan) -> list[np.ndarray] | None:
        """The wanted frames found by their presentation times, from the nearest keyframe each; None if the times do not do."""
        packets = self._packets
        shown = [i for i, packet in enumerate(packets) if not packet.is_discard]  # an edit list hides the others
        times = [packets[i].pts for i in shown]
        if not times or None in times or len(set(times)) < len(times):
            return None
        order = sorted(shown, key=lambda i: packets[i].pts)
        indices = plan(len(order))
        wanted = {packets[order[index]].pts for index in indices}
        found: dict[int, np.ndarray] = {}
        for first, last in self._stretches([order[index] for index in indices]):
            latest = None
            for frame in self._pictures(first, last, wanted):
                if frame.pts is None or (latest is not None and frame.pts <= latest):
                    return None  # pictures come in the order shown, so the times are wrong
                latest = frame.pts
                if frame.pts in wanted:
                    found[frame.pts] = _upright(frame)
        return [found[time] for time in sorted(wanted)] if len(found) == len(wanted) else None

    def by_order(self, plan: _Plan) -> list[np.ndarray]:
        """The wanted frames by their place among all, which takes two passes over the whole file."""
        last = len(self._packets) - 1
        count = sum(1 for _ in self._pictures(0, last))
        if not count:
            raise DecodeError(self._path, f"none of its {last + 1} packets decodes to a picture")
        indices = plan(count)
        wanted = set(indices)
        frames = enumerate(islice(self._pictures(0, last), indices[-1] + 1))
        return [_upright(frame) for i, frame in frames if i in wanted]

    def _stretches(self, targets: list[int]) -> list[tuple[int, int]]:
        """First and last packet of the stretches that must be decoded to see the packets ``targets``, in decoding order."""
        stretches: list[tuple[int, int]] = []
        for target in sorted(targets):
            start = bisect.bisect_right(self._keyframes, target) - 1
            # A picture shown before its keyframe can refer to pictures before that one as well (open group of pictures).
            if start > 0 and self._packets[target].pts < self._packets[self._keyframes[start]].pts:
                start -= 1
            first = self._keyframes[start]
            if stretches and first <= stretches[-1][1] + 1:
                stretches[-1] = stretches[-1][0], target
            else:
                stretches.append((first, target))
        return stretches

    def _pictures(self, first: int, last: int, wanted: Collection[int] | None = None) -> Iterator[Any]:
        """Decoded pictures of a stretch of packets; given the times that are wanted, perhaps without some of the others."""
        import av

        context = self._context
        spare = wanted is not None and context.name in WITH_SPARE_PICTURES
        context.skip_frame = "DEFAULT"
        try:
            for place in range(first, last + 2):
                packet = self._packets[place] if place <= last else None  # None: hand out what is held back for its order
                if spare and packet is not None:
                    context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                for frame in context.decode(packet):
                    if frame.is_corrupt:
                        raise DecodeError(self._path, f"damaged at or before packet {place} of {len(self._packets)}")
                    yield frame
        except av.error.FFmpegError as error:
            where = f"packet {place} of {len(self._packets)}"
            raise DecodeError(self._path, f"damaged: decoding stopped at {where} ({error.strerror})") from error
        finally:
            context.flush_buffers()


def _upright(frame: Any) -> np.ndarray:
    """A PyAV frame as it is to be seen, uint8 (height, width, 3); its rotation is in degrees anticlockwise, as numpy's."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _h264_units(packet: Any, extradata: bytes | None) -> set[int]:
    """Types of a packet's network units; none if their lengths do not add up to its own (ISO/IEC 14496-15)."""
    if not extradata or extradata[0] != 1:  # the header that says how wide a length is
        return set()
    content, width, place, types = memoryview(packet), (extradata[4] & 3) + 1, 0, set()
    while place + width < len(content):
        types.add(content[place + width] & 31)
        place += width + int.from_bytes(content[place : place + width])
    return types if place == len(content) else set()


def _by_decord(path: Path, plan: _Plan, track: _Track) -> np.ndarray:
    doubt = track.doubt()
    if doubt:
        raise DecodeError(path, f"decord could mistake its frames: {doubt}; use PyAV (decoder='av') or 'auto'")
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    with _errors_of("decord", path):
        reader = decord.VideoReader(str(path), num_threads=1, fault_tol=NO_DUPLICATES)
    if len(reader) != track.count:
        raise DecodeError(path, f"decord counts {len(reader)} frames in {track.count} packets")
    indices = plan(track.count)
    with _errors_of("decord", path):
        return reader.get_batch(indices).asnumpy()


@contextlib.contextmanager
def _errors_of(decoder: str, path: Path) -> Iterator[None]:
    """What a decoder raises as DecodeError, without the clock times and source lines of decord."""
    try:
        yield
    except Exception as error:  # decord's own derive from nothing narrower
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DecodeError(path, f"{decoder}: " + re.sub(r"\[[\d:]+\] \S+:\d+: ", "", first)) from error


def _with_torchcodec(path: Path, plan: _Plan) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    if AVI.match(_header(path)):
        raise DecodeError(path, "torchcodec would mistake the frames of an AVI file; use PyAV (decoder='av')")
    with _errors_of("torchcodec", path):
        reader = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    indices = plan(len(reader))
    with _errors_of("torchcodec", path):
        return reader.get_frames_at(indices).data.numpy()


READERS: dict[str, Callable[[Path, _Plan], np.ndarray]] = {
    "auto": _with_auto,
    "av": _with_av,
    "decord": _with_decord,
    "torchcodec": _with_torchcodec,
}
