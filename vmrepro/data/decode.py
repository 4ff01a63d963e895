"""Frames of a video file by their index, upright, as arrays: one interface over PyAV, decord and torchcodec.

On an ordinary file all three give the same bytes. "auto" is PyAV, for two reasons. It is the only one with which every file of
the tests gives the frames asked for: decord 0.6.0 gives others, in silence, where groups of pictures are open (x265 makes them
so by default), where a file has no times of presentation (AVI), hides frames by an edit list, or is a turned Matroska, and it
reads no AV1. And it is the fastest, because it can leave out pictures that nothing refers to (``decode_bench`` measures).
The other two are used when asked for by name, to compare; they refuse what they are known to mistake as far as that can be
seen, and open groups cannot.

Everything runs in one thread of the process that calls, and nothing outlives a call, so forked loader processes are safe.
"""

from __future__ import annotations

import bisect
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
AUTO = "av"
# Codecs in which a picture marked as no reference is referred to by none at all. HEVC marks it per temporal layer only.
WITH_SPARE_PICTURES = ("h264", "mpeg4")
NO_DUPLICATES = 1e-9  # share of frames that decord may replace by a neighbour; 0 would mean any
AVI = re.compile(rb"RIFF....AVI ", re.DOTALL)
TURNED_MATROSKA = re.compile(rb"\x1a\x45\xdf\xa3.*\x76\x70.{1,40}?\x76\x75[\x84\x88]", re.DOTALL)  # a projection with a roll
HEADER_BYTES = 1 << 16


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
    frames = READERS[_picked(decoder)](_file(path), plan)
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
    return {name: _absence(name) for name in READERS}


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


def _picked(decoder: str) -> str:
    if decoder != "auto" and decoder not in READERS:
        raise ValueError(f"decoder must be 'auto' or one of {', '.join(READERS)}, got {decoder!r}")
    name = AUTO if decoder == "auto" else decoder
    reason = _absence(name)
    if reason is not None:
        raise ImportError(reason)
    return name


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
        self._choose = choose

    def __call__(self, count: int) -> list[int]:
        """The distinct indices wanted of ``count`` frames, sorted."""
        self._indices = [operator.index(i) for i in self._choose(count)]
        outside = [i for i in self._indices if not 0 <= i < count]
        if outside or not self._indices:
            found = f"got {outside[0]}" if outside else "got none"
            raise ValueError(f"choose must give frame indices from 0 to {count - 1}, {found}")
        self._distinct = sorted(set(self._indices))
        return self._distinct

    def laid_out(self, frames: np.ndarray) -> np.ndarray:
        """The distinct frames in the order and with the repeats asked for."""
        return frames if self._indices == self._distinct else frames[np.searchsorted(self._distinct, self._indices)]


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


def _with_av(path: Path, plan: _Plan) -> np.ndarray:
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DecodeError(path, "it has no video track")
            if stream.codec_context is None:
                raise DecodeError(path, "PyAV knows no decoder for its video track")
            stream.thread_type = "NONE"
            guessed = container.format.name == "avi" and stream.codec_context.has_b_frames
            track = _Track(path, stream.codec_context, list(container.demux(stream)))
            if guessed:  # AVI has no times of presentation; those that FFmpeg fills in are wrong where the order differs
                return _stacked(path, track.by_order(plan))
            return _stacked(path, track.by_time(plan) or track.by_order(plan))
    except av.error.FFmpegError as error:
        raise DecodeError(path, f"PyAV: {error.strerror}") from error


class _Track:
    """The packets of one video track, held in memory still compressed, and PyAV's decoder for them."""

    def __init__(self, path: Path, context: Any, packets: list) -> None:
        first = next((i for i, packet in enumerate(packets) if packet.is_keyframe), len(packets))
        packets = [packet for packet in packets[first:] if packet.size]
        while packets and packets[-1].is_corrupt:  # where the file breaks off
            packets.pop()
        if not packets:
            raise DecodeError(path, "its video track holds no picture to start from")
        self._path, self._context, self._packets = path, context, packets
        self._keyframes = [i for i, packet in enumerate(packets) if packet.is_keyframe]

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
            raise DecodeError(
                self._path, f"damaged: decoding stopped at packet {place} of {len(self._packets)} ({error.strerror})"
            ) from error
        finally:
            context.flush_buffers()


def _upright(frame: Any) -> np.ndarray:
    """A PyAV frame as it is to be seen, uint8 (height, width, 3); its rotation is in degrees anticlockwise, as numpy's."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _with_decord(path: Path, plan: _Plan) -> np.ndarray:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    if TURNED_MATROSKA.match(_header(path)):
        raise DecodeError(path, "decord does not turn a Matroska file upright; use PyAV (decoder='av')")
    reader = _decords(path, lambda: decord.VideoReader(str(path), num_threads=1, fault_tol=NO_DUPLICATES))
    times = _decords(path, lambda: reader.get_frame_timestamp(range(len(reader)))[:, 0])
    if times[0] < 0 or (np.diff(times) <= 0).any():
        raise DecodeError(
            path, "decord would mistake its frames, which have no times or are partly hidden; use PyAV (decoder='av')"
        )
    indices = plan(len(reader))
    return _decords(path, lambda: reader.get_batch(indices).asnumpy())


def _header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def _decords(path: Path, call: Callable[[], Any]) -> Any:
    """The result of a call to decord, its errors without their clock times and source lines."""
    import decord

    try:
        return call()
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DecodeError(path, "decord: " + re.sub(r"\[[\d:]+\] \S+:\d+: ", "", first)) from error


def _with_torchcodec(path: Path, plan: _Plan) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    if AVI.match(_header(path)):
        raise DecodeError(path, "torchcodec would mistake the frames of an AVI file; use PyAV (decoder='av')")
    try:
        reader = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    except (RuntimeError, ValueError) as error:
        raise DecodeError(path, f"torchcodec: {str(error).strip().splitlines()[0]}") from error
    indices = plan(len(reader))
    try:
        return reader.get_frames_at(indices).data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        raise DecodeError(path, f"torchcodec: {str(error).strip().splitlines()[0]}") from error


READERS: dict[str, Callable[[Path, _Plan], np.ndarray]] = {
    "av": _with_av,
    "decord": _with_decord,
    "torchcodec": _with_torchcodec,
}
