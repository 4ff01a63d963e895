"""How fast each decoder delivers a training clip on one core: ``measure()``.

A clip is what a training step reads: a file is opened, T of its frames are chosen sparsely at random, decoded and brought to a
short side. All decoders read the same clips in turn within one run, so that a machine whose speed drifts slows them alike. The
time is the processor's, of all threads together, so that neighbours on the machine count as little as can be. A decoder that is
absent is left out; one that gives other frames than PyAV, or none, has a note instead of a speed. "auto" is what a user gets: the
choice of a decoder for each file is part of its time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmrepro.data import clips, decode
from vmrepro.specs.schema import ClipSpec

SHORT_SIDE = 224  # pixels, of the released recipes
OWN_CLIPS = {"320x240": (240, 320), "1280x720": (720, 1280)}  # height and width in pixels
FPS, SECONDS, KEYFRAME_EVERY = 25, 10, 250  # as Kinetics; the last is what x264 does unasked
GRAIN = 8  # grey levels up and down; makes the bit rate that of ordinary clips


def measure(
    files: Sequence[str | os.PathLike] | None = None,
    *,
    frames: Sequence[int] = (8, 16),
    short_side: int | None = SHORT_SIDE,
    repeats: int = 15,
    decoders: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """A row per file, number of frames and decoder: clips per second of one core, median and quartiles over ``repeats``.

    files: None makes two H.264 clips of ten seconds, which needs PyAV, and deletes them; decoders: None takes all that are
    present and "auto"; short_side: pixels, None for the size as stored. About a minute without other settings.

    Raises what ``decode.frame_count`` raises for a file that PyAV cannot read; ImportError for a decoder that is absent.
    """
    present = [name for name, reason in decode.available_decoders().items() if reason is None]
    names = [*present, "auto"] if decoders is None else list(decoders)
    rows = []
    with tempfile.TemporaryDirectory() as folder, _one_core():
        for path in _own_clips(Path(folder)) if files is None else map(Path, files):
            for count in frames:
                rows += _compared(path, count, short_side, repeats, names)
    return rows


def _compared(path: Path, count: int, short_side: int | None, repeats: int, names: list[str]) -> list[dict[str, Any]]:
    """The rows of one file and one number of frames."""
    spec = ClipSpec(num_frames=count)

    def read(name: str, seed: int) -> np.ndarray:
        chance = np.random.default_rng(seed)
        return decode.read_frames(path, lambda n: clips.train_frames(spec, n, chance), short_side=short_side, decoder=name)

    expected = read("av", 0)
    notes = {name: _difference(read, name, expected) for name in names}
    fit = [name for name in names if not notes[name]]
    speeds: dict[str, list[float]] = {name: [] for name in fit}
    for repeat in range(repeats):
        for place in range(len(fit)):
            name = fit[(place + repeat) % len(fit)]
            start = time.process_time()
            read(name, repeat)
            speeds[name].append(1 / (time.process_time() - start))
    height, width = decode.read_frames(path, lambda n: [0]).shape[1:3]
    shared = {
        "video": path.name,
        "height": height,
        "width": width,
        "video_frames": decode.frame_count(path),
        "megabytes": round(path.stat().st_size / 1e6, 3),
        "frames": count,
        "short_side": short_side,
        "repeats": repeats,
    }
    rows = []
    for name in names:
        low, middle, high = statistics.quantiles(speeds[name], n=4) if name in fit else (None, None, None)
        version = "" if name == "auto" else getattr(importlib.import_module(name), "__version__", "")
        speed = {"clips_per_second": middle, "lower_quartile": low, "upper_quartile": high}
        rows.append({"decoder": name, "version": version, **shared, **speed, "note": notes[name]})
    return rows


def _difference(read, name: str, expected: np.ndarray) -> str:
    """Why a decoder is not measured on this file; empty if it gives the expected frames."""
    try:
        found = read(name, 0)
    except decode.DecodeError as error:
        return error.reason
    return "" if np.array_equal(found, expected) else "gives other frames than PyAV"


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """This process on one core, as a loader process among many is, with torch on one thread; both are put back."""
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def _own_clips(folder: Path) -> list[Path]:
    return [_made(folder / f"{name}.mp4", *size) for name, size in OWN_CLIPS.items()]


def _made(path: Path, height: int, width: int) -> Path:
    """A clip of a texture that drifts under changing grain, so that there is motion and detail to decode."""
    import av

    rng = np.random.default_rng(0)
    frames = FPS * SECONDS
    texture = torch.from_numpy(rng.random((1, 3, (height + frames) // 8, (width + 2 * frames) // 8), dtype=np.float32))
    texture = torch.nn.functional.interpolate(texture, size=(height + frames, width + 2 * frames), mode="bicubic")[0]
    texture = (texture * 255).clamp(GRAIN, 255 - GRAIN).to(torch.uint8).permute(1, 2, 0).numpy()
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"g": str(KEYFRAME_EVERY)})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(frames):
            grain = rng.integers(-GRAIN, GRAIN, (height, width, 1), dtype=np.int8).view(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(texture[i : i + height, 2 * i : 2 * i + width] + grain)))
        out.mux(stream.encode())
    return path
