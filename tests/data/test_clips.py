from fractions import Fraction

import numpy as np
import pytest

from vmrepro.data import clips
from vmrepro.specs.schema import ClipSpec

LENGTHS = range(1, 201)
T_S = [(T, S) for T in (1, 3, 8, 16, 64) for S in (1, 2, 3, 4, 10)]
SAMPLINGS = pytest.mark.parametrize("sampling", ["sparse", "segments", "dense"])


def spec(sampling: str = "sparse", T: int = 8, S: int = 1, **more) -> ClipSpec:
    return ClipSpec(num_frames=T, sampling=sampling, test_clips=S, **more)


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_a_clip(indices: list[int], T: int, n: int) -> None:
    assert len(indices) == T
    assert all(type(i) is int for i in indices)
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < n


@SAMPLINGS
def test_every_clip_has_all_its_frames_in_the_video_and_in_order(sampling):
    for T, S in T_S:
        rule = spec(sampling, T, S, stride=3)
        for n in LENGTHS:
            assert_a_clip(clips.train_frames(rule, n, chance(n)), T, n)
            assert_a_clip(clips.validation_frames(rule, n), T, n)
            for c in range(S):
                assert_a_clip(clips.test_frames(rule, n, c), T, n)


@SAMPLINGS
def test_test_clips_come_one_after_the_other(sampling):
    for T, S in T_S:
        for n in LENGTHS:
            views = np.array([clips.test_frames(spec(sampling, T, S), n, c) for c in range(S)])
            assert (np.diff(views, axis=0) >= 0).all()


def test_sparse_is_the_formula_in_fractions():
    """Python rounds a Fraction half to even."""
    for T, S in T_S:
        for n in LENGTHS:
            s = Fraction(n - 1, T)
            assert clips.validation_frames(spec(T=T), n) == [round(s * i) + int(s / 2) for i in range(T)]
            for c in range(S):
                expected = [round(s * i) + int((c + 1) * s / (S + 1)) for i in range(T)]
                assert clips.test_frames(spec(T=T, S=S), n, c) == expected


def test_segments_is_the_formula_in_fractions():
    for T, S in T_S:
        for n in LENGTHS:
            t = Fraction(n, T)
            assert clips.validation_frames(spec("segments", T), n) == [int(t / 2 + t * i) for i in range(T)]
            for c in range(S):
                assert clips.test_frames(spec("segments", T, S), n, c) == [int(t * i + c * t / S) for i in range(T)]


@pytest.mark.parametrize("T", [8, 16, 32, 64])
def test_floating_point_gives_the_same_where_the_recipes_use_it(T):
    for n in LENGTHS:
        s, t = (n - 1) / T, n / T
        assert clips.validation_frames(spec(T=T), n) == [int(np.round(s * i)) + int(s / 2) for i in range(T)]
        assert clips.validation_frames(spec("segments", T), n) == [int(t / 2 + t * i) for i in range(T)]
        for c in range(4):
            expected = [int(np.round(s * i)) + int((c + 1) * s / 5) for i in range(T)]
            assert clips.test_frames(spec(T=T, S=4), n, c) == expected


def test_two_segment_clips_are_every_second_of_starts_and_middles():
    """The released way to the same indices: all of them sorted, then every second one from c on."""
    for T in (1, 3, 8, 16):
        for n in LENGTHS:
            t = n / T
            both = sorted([int(t * i) for i in range(T)] + [int(t / 2 + t * i) for i in range(T)])
            for c in range(2):
                assert clips.test_frames(spec("segments", T, 2), n, c) == both[c::2]
            assert clips.test_frames(spec("segments", T, 1), n, 0) == both[::2]


def test_worked_examples():
    # n = 21, T = 8: s = 2.5, interval ends 0 2.5 5 7.5 10 12.5 15 17.5 20, halves to even; s / 2 = 1.25
    assert clips.validation_frames(spec(), 21) == [1, 3, 6, 9, 11, 13, 16, 19]
    # four clips: 2.5 / 5 = 0.5 steps of one half, cut to 0, 1, 1, 2
    starts = [0, 2, 5, 8, 10, 12, 15, 18]
    assert [clips.test_frames(spec(S=4), 21, c)[0] for c in range(4)] == [0, 1, 1, 2]
    assert clips.test_frames(spec(S=4), 21, 3) == [start + 2 for start in starts]
    # n = 20, T = 8: stretches of 2.5
    assert clips.validation_frames(spec("segments"), 20) == [1, 3, 6, 8, 11, 13, 16, 18]
    assert clips.test_frames(spec("segments", S=2), 20, 0) == [0, 2, 5, 7, 10, 12, 15, 17]
    # n = 100, T = 8, every 4th: 32 frames, 68 to spare
    assert clips.validation_frames(spec("dense"), 100) == list(range(34, 66, 4))
    assert [clips.test_frames(spec("dense", S=3), 100, c)[0] for c in range(3)] == [0, 34, 68]
    assert clips.test_frames(spec("dense", S=1), 100, 0) == list(range(34, 66, 4))


def test_short_videos():
    for sampling in ("sparse", "segments", "dense"):
        for frames in (clips.validation_frames, lambda rule, n: clips.train_frames(rule, n, chance())):
            assert frames(spec(sampling), 1) == [0] * 8
    assert clips.train_frames(spec("segments"), 7, chance()) == [0] * 8
    assert clips.validation_frames(spec("segments"), 4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert clips.validation_frames(spec("dense"), 10) == [0, 4, 8, 9, 9, 9, 9, 9]
    assert clips.test_frames(spec("dense", S=3), 10, 2) == [0, 4, 8, 9, 9, 9, 9, 9]


def drawn(rule: ClipSpec, n: int, times: int = 600) -> np.ndarray:
    """Training clips (times, T)."""
    generator = chance(1)
    return np.array([clips.train_frames(rule, n, generator) for _ in range(times)])


def test_a_sparse_draw_reaches_all_of_its_interval_and_no_more():
    seen = [sorted(set(column)) for column in drawn(spec(T=4), 41).T.tolist()]
    assert seen == [list(range(start, start + 11)) for start in (0, 10, 20, 30)]


def test_a_segments_draw_reaches_all_of_its_stretch_and_no_more():
    seen = [sorted(set(column)) for column in drawn(spec("segments", 4), 43).T.tolist()]
    assert seen == [list(range(start, start + 10)) for start in (0, 10, 20, 30)]


def test_a_dense_draw_is_a_window_anywhere():
    windows = drawn(spec("dense", 4, stride=3), 30)
    assert set(windows[:, 0]) == set(range(19))
    assert (np.diff(windows) == 3).all()


@SAMPLINGS
def test_draws_are_even(sampling):
    """Each of the k values of an interval comes 1 / k of the time: the counts lie within five standard deviations."""
    first = drawn(spec(sampling, 4, stride=8), 41, 4000)[:, 0]
    counts = np.bincount(first)
    expected = len(first) / len(counts)
    assert len(counts) == {"sparse": 11, "segments": 10, "dense": 10}[sampling]
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@SAMPLINGS
def test_a_draw_depends_on_its_generator_alone(sampling):
    rule = spec(sampling, stride=2)
    assert clips.train_frames(rule, 200, chance(5)) == clips.train_frames(rule, 200, chance(5))
    assert clips.train_frames(rule, 200, chance(5)) != clips.train_frames(rule, 200, chance(6))


def test_the_shuffled_control_keeps_the_frames_and_loses_their_order():
    indices = list(range(0, 80, 10))
    shuffles = [clips.controlled(spec(control="shuffled"), indices, chance(seed)) for seed in range(20)]
    assert all(sorted(shuffle) == indices for shuffle in shuffles)
    assert len({tuple(shuffle) for shuffle in shuffles}) == 20
    assert shuffles[3] == clips.controlled(spec(control="shuffled"), indices, chance(3))
    assert indices == list(range(0, 80, 10))


def test_the_single_control_repeats_the_middle_frame():
    assert clips.controlled(spec(control="single"), [3, 5, 8, 9], chance()) == [8] * 4


def test_without_a_control_the_frames_stay_and_no_chance_is_used():
    generator = chance(2)
    assert clips.controlled(spec(), [3, 5], generator) == [3, 5]
    assert generator.random() == chance(2).random()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one frame, got 0"):
        clips.validation_frames(spec(), 0)
    for clip in (-1, 2):
        with pytest.raises(ValueError, match="between 0 and 1"):
            clips.test_frames(spec(S=2), 10, clip)
