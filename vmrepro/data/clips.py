"""Which frames of a video make a clip: pure functions from a number of frames to indices, by the rules of the released loaders.

Letters: n frames in the video, T = ``spec.num_frames`` in the clip, i a frame of the clip from 0 to T - 1, S =
``spec.test_clips``, c one of these clips from 0 to S - 1, r = ``spec.stride``. All arithmetic is exact; the released floating
point agrees with it where T is a power of two, which every recipe's is. Rounding is half to even, as numpy's.

``sampling`` names the loader (``video_sm/datasets`` of the release): "sparse" is that of Kinetics, Breakfast, COIN and LVU
(``kinetics_sparse.py``); "segments" that of SSv2 from video files (``ssv2.py``, SSVideoClsDataset, not its twin for extracted
frames); "dense" windows of neighbouring frames (``kinetics.py``). Every function gives T indices in [0, n), none before its
predecessor.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vmrepro.specs.schema import ClipSpec


def train_frames(spec: ClipSpec, frames: int, chance: np.random.Generator) -> list[int]:
    """The frames of a training clip of a video of ``frames`` frames, drawn from ``chance``.

    sparse: one frame uniformly from each of T intervals that share their ends. segments: one from each of T stretches of
    floor(n / T) frames, the rest at the end never drawn; T times the first frame if n < T, as released. dense: a window of T r
    frames at random.
    """
    T = _checked(spec, frames)
    steps = np.arange(T)
    if spec.sampling == "sparse":
        ends = np.array([_rounded((frames - 1) * i, T) for i in range(T + 1)])
        return chance.integers(ends[:-1], ends[1:], endpoint=True).tolist()
    if spec.sampling == "segments":
        length = frames // T
        return (steps * length + chance.integers(0, max(length, 1), T)).tolist()
    return _window(spec, frames, int(chance.integers(0, _slack(spec, frames), endpoint=True)))


def validation_frames(spec: ClipSpec, frames: int) -> list[int]:
    """The frames of the one clip that judges a training as it goes: the middle of each interval, or of the video for dense.

    The released dense loader misses the middle and can start before the video; here it is the middle.
    """
    T = _checked(spec, frames)
    if spec.sampling == "sparse":
        return [_rounded((frames - 1) * i, T) + (frames - 1) // (2 * T) for i in range(T)]
    if spec.sampling == "segments":
        return [(2 * i + 1) * frames // (2 * T) for i in range(T)]
    return _window(spec, frames, _slack(spec, frames) // 2)


def test_frames(spec: ClipSpec, frames: int, clip: int) -> list[int]:
    """The frames of test clip c = ``clip``; ValueError unless 0 <= c < S.

    sparse: (c + 1) / (S + 1) into each interval. segments: c / S into each; the release is written for S up to 2 and gives just
    that there, starts and middles. dense: windows spread evenly from the first to the last; with S = 1, where the released code
    divides by zero, the middle one.
    """
    T, S = _checked(spec, frames), spec.test_clips
    if not 0 <= clip < S:
        raise ValueError(f"clip must lie between 0 and {S - 1}, ClipSpec.test_clips is {S}; got {clip}")
    if spec.sampling == "sparse":
        shift = (clip + 1) * (frames - 1) // (T * (S + 1))
        return [_rounded((frames - 1) * i, T) + shift for i in range(T)]
    if spec.sampling == "segments":
        return [(i * S + clip) * frames // (T * S) for i in range(T)]
    return validation_frames(spec, frames) if S == 1 else _window(spec, frames, clip * _slack(spec, frames) // (S - 1))


def controlled(spec: ClipSpec, indices: Sequence[int], chance: np.random.Generator) -> list[int]:
    """``indices`` under ``spec.control``: in random order ("shuffled"), the middle one repeated ("single"), or as they are."""
    if spec.control == "shuffled":
        return chance.permutation(np.asarray(indices)).tolist()
    if spec.control == "single":
        return [int(indices[len(indices) // 2])] * len(indices)
    return list(indices)


def _checked(spec: ClipSpec, frames: int) -> int:
    """T; ValueError for a video without frames."""
    if frames < 1:
        raise ValueError(f"a video needs at least one frame, got {frames}")
    return spec.num_frames


def _rounded(numerator: int, denominator: int) -> int:
    """The quotient of two whole numbers, rounded to the nearest, halves to the even one."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def _slack(spec: ClipSpec, frames: int) -> int:
    """How far a dense window can start into the video; 0 if it does not fit."""
    return max(0, frames - spec.num_frames * spec.stride)


def _window(spec: ClipSpec, frames: int, start: int) -> list[int]:
    """Every r-th frame from ``start``; where the video ends first, its last frame is repeated."""
    return [min(start + i * spec.stride, frames - 1) for i in range(spec.num_frames)]
