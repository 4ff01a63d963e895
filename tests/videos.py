"""Small clips for tests: every frame carries its number in coloured blocks, readable after compression, resizing and crops
of whole clips; and ways to damage a file.

``write("clip.mp4", 30)`` makes one; ``numbers(read)`` says which frames came back, and that they stand upright.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GRID = 4  # blocks a side: the first row's two left ones are marks of orientation, as are the other corners
ON, OFF = (230, 180, 40), (30, 60, 200)
MARKS = {(0, 0): True, (0, 1): True, (0, 3): False, (1, 0): False, (3, 0): False, (3, 3): False}
BITS = [(row, column) for row in range(GRID) for column in range(GRID) if (row, column) not in MARKS]


def numbered(count: int, size: tuple[int, int] = (48, 64), first: int = 0) -> np.ndarray:
    """Frames uint8 (count, height, width, 3) that carry the numbers first, first + 1, ...; size is (height, width)."""
    rows = np.arange(size[0]) * GRID // size[0]
    columns = np.arange(size[1]) * GRID // size[1]
    frames = []
    for number in range(first, first + count):
        on = MARKS | {block: bool(number >> bit & 1) for bit, block in enumerate(BITS)}
        blocks = np.array([[ON if on[row, column] else OFF for column in range(GRID)] for row in range(GRID)], np.uint8)
        frames.append(blocks[rows[:, None], columns])
    return np.stack(frames)


def number(frame: np.ndarray) -> int:
    """The number in one frame (height, width, 3); AssertionError if it lies on its side, is mirrored, or has other colours."""
    height, width, _ = frame.shape
    middle = [int((i + 0.5) / GRID * height) for i in range(GRID)], [int((i + 0.5) / GRID * width) for i in range(GRID)]
    pixels = frame[np.ix_(*middle)].astype(int)
    for colour, (red, green, blue) in ((ON, (1, 1, -1)), (OFF, (-1, -1, 1))):
        assert colour[0] * red > 128 * red, "the two colours lie on either side of the middle"
        assert colour[1] * green > 128 * green
        assert colour[2] * blue > 128 * blue
    on = pixels > 128
    assert (on[..., 0] == on[..., 1]).all(), f"red and green differ: {pixels}"
    assert (on[..., 0] != on[..., 2]).all(), f"red and blue are alike: {pixels}"
    assert {block: bool(on[block][0]) for block in MARKS} == MARKS, f"turned or mirrored: {on[..., 0]}"
    return sum(int(on[block][0]) << bit for bit, block in enumerate(BITS))


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers in frames (T, height, width, 3)."""
    return [number(frame) for frame in frames]


def write(
    path: Path,
    frames: np.ndarray | int,
    *,
    fps: int = 25,
    codec: str = "libx264",
    rotation: int = 0,
    ticks: Sequence[int] | None = None,
    keyframe_every: int = 12,
    size: tuple[int, int] = (48, 64),
    pixels: str = "yuv420p",
    sound: bool = False,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """A video file, its container named by the ending of ``path``, which is returned.

    frames: uint8 (T, height, width, 3) with even sides, as a viewer is to see them, or how many numbered ones of ``size``.
    rotation: clockwise degrees that a player must turn the stored picture; ticks: when each frame is shown, in
    milliseconds, for a variable frame rate; pixels: their format; sound: a silent audio track too; options and container
    go to FFmpeg.
    """
    frames = numbered(frames, size) if isinstance(frames, int) else frames
    stored = np.rot90(frames, rotation // 90, axes=(1, 2))  # rot90 turns anticlockwise
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=fps, options={"g": str(keyframe_every), **(options or {})})
        stream.height, stream.width = stored.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, 1000) if ticks else Fraction(1, fps)
        stream.thread_count = 1
        if rotation:
            stream.set_display_rotation(-rotation)
        if sound:
            audio = out.add_stream("aac", rate=8000)
        for i, picture in enumerate(stored):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))
            frame.pts = ticks[i] if ticks else i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound:
            _add_silence(out, audio)
    return Path(path)


def write_sound(path: Path) -> Path:
    """A file with an audio track only."""
    with av.open(str(path), "w") as out:
        _add_silence(out, out.add_stream("aac", rate=8000))
    return Path(path)


def _add_silence(out: av.container.OutputContainer, stream: av.AudioStream) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
    frame.rate, frame.pts = 8000, 0
    out.mux(stream.encode(frame))
    out.mux(stream.encode())


def truncated(path: Path, keep: float) -> Path:
    """A copy of the file that ends after the share ``keep`` of its bytes, as after a broken download."""
    whole = path.read_bytes()
    return _beside(path, "truncated", whole[: int(len(whole) * keep)])


def garbled(path: Path, start: float, end: float, seed: int = 0) -> Path:
    """A copy with random bytes from the share ``start`` to the share ``end`` of the file."""
    whole = bytearray(path.read_bytes())
    first, last = int(len(whole) * start), int(len(whole) * end)
    whole[first:last] = np.random.default_rng(seed).bytes(last - first)
    return _beside(path, "garbled", bytes(whole))


def _beside(path: Path, what: str, content: bytes) -> Path:
    copy = path.with_name(f"{path.stem}_{what}{path.suffix}")
    copy.write_bytes(content)
    return copy
