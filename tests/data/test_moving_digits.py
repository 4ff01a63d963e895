import functools
import hashlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from vmrepro.data import clips, moving_digits
from vmrepro.data.moving_digits import (
    MOTIONS,
    NOISE,
    REST,
    TEST_SEED,
    TRAIN_SEED,
    VIDEO_FRAMES,
    MovingDigits,
    draw_scenes,
    make_split,
    paint,
)
from vmrepro.specs.schema import AugmentSpec, ClipSpec, DataSpec

CPU = torch.device("cpu")
TRAIN_VIDEOS, TEST_VIDEOS = 2400, 1200  # of a spec that does not say
WORLDS = pytest.mark.parametrize("world", [1, 2, 4])
WHOLE = ClipSpec(num_frames=VIDEO_FRAMES, sampling="segments")  # every frame once: the video itself
MEAN, STD = (torch.tensor(values)[:, None, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def spec(clip: ClipSpec | None, label: str = "motion", side: int = 16, **changes) -> DataSpec:
    label = "digit" if clip is None else label
    fields = {"num_classes": 12 if label == "motion" else 10, "img_size": side, **changes}
    return DataSpec(name="moving_digits", clip=clip, label=label, **fields)


@pytest.fixture(scope="module")
def made():
    """Data sets by spec and seed, each made once."""
    cache = {}

    def make(wanted: DataSpec, seed: int = 0) -> MovingDigits:
        if (wanted, seed) not in cache:
            cache[wanted, seed] = MovingDigits(wanted, seed, CPU)
        return cache[wanted, seed]

    return make


def scans(half: slice) -> tuple[torch.Tensor, torch.Tensor]:
    raw = load_digits()
    return torch.from_numpy(raw.images[half] / 16), torch.from_numpy(raw.target[half]).long()


def grey(inputs: torch.Tensor) -> torch.Tensor:
    """The uint8 frames ``(b, T, S, S)`` behind normalised clips, which must have three equal channels."""
    levels = (inputs * STD + MEAN) * 255
    assert (levels - levels.round()).abs().max() < 1e-3
    assert torch.equal(levels[:, 0].round(), levels[:, 1].round())
    assert torch.equal(levels[:, 0].round(), levels[:, 2].round())
    return levels[:, 0].round().to(torch.uint8)


def keys(inputs: torch.Tensor) -> list[bytes]:
    return [item.contiguous().numpy().tobytes() for item in inputs]


def whole_test(data: MovingDigits) -> tuple[torch.Tensor, torch.Tensor]:
    ((inputs, labels),) = data.test_batches(10_000)
    return inputs, labels


# --- what the videos are


def test_the_bits_are_those_of_the_record():
    """On any processor: a run elsewhere saw the same videos. If these change, recorded accuracies are of another data set."""
    digests = {}
    for name, still, size, both_ways, half, seed in (
        ("train", False, 240, False, slice(898), TRAIN_SEED),
        ("test", False, 240, True, slice(898, None), TEST_SEED),
        ("stills", True, 240, False, slice(898), TRAIN_SEED),
    ):
        for side in (16, 24):
            frames = make_split(size, still, both_ways, side, *scans(half), seed).frames
            digests[name, side] = hashlib.sha256(frames.numpy().tobytes()).hexdigest()[:12]
    assert digests == {
        ("train", 16): "72370172ca78",
        ("train", 24): "0fa50cdffc37",
        ("test", 16): "6075208626f8",
        ("test", 24): "8e7dd36e38fd",
        ("stills", 16): "bb2ba3bc615a",
        ("stills", 24): "92171a785132",
    }


def test_the_second_class_of_a_pair_is_the_first_one_backwards(made):
    split = made(spec(WHOLE))._test
    assert split.frames.shape == (TEST_VIDEOS, VIDEO_FRAMES, 16, 16)
    assert split.frames.dtype == torch.uint8
    assert torch.equal(split.frames[0::2], split.frames[1::2].flip(1))
    assert torch.equal(split.motion[0::2] + 1, split.motion[1::2])
    assert not torch.equal(split.frames[0::2], split.frames[1::2])


def test_training_videos_are_of_different_scenes_and_backwards_by_class():
    """With the seed of the training set, its forward scenes are those of a set that shows no scene backwards."""
    images, targets = scans(slice(898))
    split = make_split(48, False, False, 16, images, targets, TRAIN_SEED)
    chance, noise = (torch.Generator().manual_seed(2 * TRAIN_SEED + part) for part in range(2))
    scenes = draw_scenes(split.motion // 2, split.digit, images, targets, VIDEO_FRAMES, chance)
    forward = paint(scenes, 16)
    forward += NOISE * (2 * torch.rand(forward.shape, dtype=torch.float64, generator=noise) - 1)
    forward = (255 * forward).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(split.frames[0::2], forward[0::2])
    assert torch.equal(split.frames[1::2], forward[1::2].flip(1))
    assert len(set(keys(forward))) == 48


def quantities(frames: torch.Tensor) -> torch.Tensor:
    """Of each frame ``(n, T, 6)``: mass, moments along x and y, spread, brightness of the highest and lowest row."""
    light = frames.double()
    side = light.shape[-1]
    place = (torch.arange(side) + 0.5) / side - 0.5
    along_x, along_y = light.mean(-2), light.mean(-1)
    return torch.stack(
        [
            along_x.mean(-1),
            (along_x * place).mean(-1) * 10,
            (along_y * place).mean(-1) * 10,
            ((along_x + along_y) * place**2).mean(-1) * 10,
            along_y[..., 0],
            along_y[..., -1],
        ],
        -1,
    )


def test_each_class_does_what_it_is_called(made):
    """Measured on the pixels of the training videos; y points down."""
    split = made(spec(WHOLE))._train
    seen = quantities(split.frames)
    mass, x, y, _, top, bottom = (seen - seen.mean(1, keepdim=True)).unbind(-1)
    time = torch.arange(VIDEO_FRAMES) - (VIDEO_FRAMES - 1) / 2
    later_top, later_bottom = (((bar - bar.amin(1, keepdim=True)) ** 2 * time).sum(1) for bar in (top, bottom))
    shows = {
        "right": (x * time).sum(1),
        "down": (y * time).sum(1),
        "approach": (mass * time).sum(1),
        "appear": (mass * time).sum(1),
        "top_first": later_bottom - later_top,
        "clockwise": (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).sum(1),
    }
    for number, name in enumerate(MOTIONS):
        sign = (shows[MOTIONS[number - number % 2]] > 0) == (number % 2 == 0)
        assert sign[split.motion == number].double().mean() > 0.97, name


@pytest.mark.parametrize("split", ["train", "test"])
def test_classes_and_digits_are_balanced(made, split):
    half = getattr(made(spec(WHOLE)), f"_{split}")
    counts = Counter(zip(half.motion.tolist(), half.digit.tolist(), strict=True))
    assert counts == {(motion, digit): len(half.frames) // 120 for motion in range(12) for digit in range(10)}
    stills = getattr(made(spec(None)), f"_{split}")
    shares = torch.bincount(stills.digit, minlength=10) / len(stills.digit)
    assert (shares - 0.1).abs().max() <= 0.001


def test_the_digit_shown_is_the_one_of_the_label_and_the_second_any():
    """Scans with one bright pixel, whose place is the digit."""
    targets, values = torch.arange(10).repeat(3), torch.arange(600) % 10
    images = torch.nn.functional.one_hot(targets, 64).reshape(-1, 8, 8).double()
    scenes = draw_scenes(torch.full((600,), REST), values, images, targets, 1, torch.Generator().manual_seed(0))
    assert torch.equal(scenes.digit.flatten(1).argmax(1), values)
    second = scenes.second.flatten(1).argmax(1)
    assert second.unique().tolist() == list(range(10))
    assert 0.05 < (second == values).double().mean() < 0.15


def test_no_scan_of_a_test_video_is_seen_in_training(monkeypatch):
    """Black out either half of the file: the videos of the other half stay what they are, bit by bit."""
    raw = load_digits()
    monkeypatch.setattr(moving_digits, "_halves", functools.lru_cache(moving_digits._halves.__wrapped__))
    whole = MovingDigits(spec(WHOLE), 0, CPU)
    for dark, same, other in ((slice(898, None), "_train", "_test"), (slice(898), "_test", "_train")):
        images = raw.images.copy()
        images[dark] = 0
        file = SimpleNamespace(images=images, target=raw.target)
        monkeypatch.setattr("sklearn.datasets.load_digits", lambda file=file: file)
        moving_digits._halves.cache_clear()
        halved = MovingDigits(spec(WHOLE), 0, CPU)
        assert torch.equal(getattr(halved, same).frames, getattr(whole, same).frames)
        assert not (getattr(halved, other).frames == getattr(whole, other).frames).all(1).all(1).all(1).any()


def test_a_set_that_cannot_be_balanced_is_refused():
    with pytest.raises(ValueError, match="multiple of 240, so that classes are balanced, got 250"):
        MovingDigits(spec(WHOLE, videos=250), 0, CPU)


@pytest.fixture(scope="module")
def scenes():
    pairs = torch.arange(600) % 6
    return draw_scenes(pairs, torch.arange(600) % 10, *scans(slice(898)), VIDEO_FRAMES, torch.Generator().manual_seed(1))


def test_the_digit_stays_in_the_picture(scenes):
    for centre in (scenes.x, scenes.y):
        assert (centre - scenes.size / 2).min() > 0
        assert (centre + scenes.size / 2).max() < 1
        assert (centre - scenes.size / 2).min() < 0.01  # and it gets to the edge


def test_a_larger_canvas_is_the_same_scene_rendered_finer(scenes):
    small, large = (paint(scenes.part(slice(60)), side) for side in (16, 48))
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(large, 3), small, atol=1e-12, rtol=0)
    assert small.std((-1, -2)).min() > 0.01


def test_paint_against_a_look_at_many_points(scenes):
    """One scene of each pair: what lies at 32 x 32 points of each pixel, averaged."""
    side, fine = 16, 32
    at = (torch.arange(side * fine, dtype=torch.float64) + 0.5) / (side * fine)

    def lit(image, x, y, size):
        row, column = (((at - centre) / size + 0.5) * 8 for centre in (y, x))
        inside = ((row >= 0) & (row < 8))[:, None] & ((column >= 0) & (column < 8))
        return torch.where(inside, image[row.long().clamp(0, 7)][:, column.long().clamp(0, 7)], 0.0)

    painted = paint(scenes.part(slice(6)), side)
    for n in range(6):
        for t in (0, 5, 9, 15):
            points = scenes.background[n] + scenes.light[n, t] * lit(
                scenes.digit[n], scenes.x[n, t], scenes.y[n, t], scenes.size[n, t]
            )
            points += lit(scenes.second[n], *scenes.second_place[n])
            points[at < 0.125] += scenes.top[n, t]
            points[at > 0.875] += scenes.bottom[n, t]
            want = torch.nn.functional.avg_pool2d(points[None], fine)[0]
            torch.testing.assert_close(painted[n, t], want, atol=0.02, rtol=0)


def test_lights_are_as_documented(scenes):
    for values, low, high in (
        (scenes.background, 0.05, 0.2),
        (scenes.light.amax(1), 0.4, 0.6),
        (scenes.second.amax((1, 2)), 0.05, 0.12),  # a scan's brightest point is 1
    ):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
    shown = scenes.light / scenes.light.amax(1, keepdim=True)
    fades = torch.arange(600) % 6 == 3
    assert (shown[~fades] == 1).all()
    assert (shown[fades][:, :2] == 0).all()
    assert (shown[fades][:, -3:] == 1).all()


# --- batches


@pytest.mark.parametrize("label", ["motion", "digit"])
def test_clips_are_normalised_videos_with_their_labels(made, label):
    data = made(spec(WHOLE, label))
    inputs, labels = whole_test(data)
    assert inputs.shape == (TEST_VIDEOS, 3, VIDEO_FRAMES, 16, 16)
    assert (inputs.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(grey(inputs), data._test.frames)
    assert torch.equal(labels, getattr(data._test, label))
    own = dict(zip(keys(data._train.frames), getattr(data._train, label).tolist(), strict=True))
    for batch, targets in data.train_batches(3, 400):
        assert [own[key] for key in keys(grey(batch))] == targets.tolist()
    assert data.num_classes == (12 if label == "motion" else 10)
    assert data.train_size == TRAIN_VIDEOS


def test_stills(made):
    data = made(spec(None, side=24, videos=480))
    assert data.train_size == 480
    assert len(data.test_names) == 240
    ((inputs, labels),) = data.train_batches(0, 480)
    assert inputs.shape == (480, 3, 24, 24)
    assert torch.bincount(labels).tolist() == torch.bincount(data._train.digit).tolist()
    assert len(set(keys(inputs))) == 480
    with pytest.raises(ValueError, match="clip=None"):
        next(data.view_batches(8))


def test_the_set_is_fixed_and_the_seed_orders_it(made):
    first, again, other = made(spec(WHOLE)), MovingDigits(spec(WHOLE), 0, CPU), made(spec(WHOLE), 1)

    def order(data, epoch):
        torch.manual_seed(order.calls)
        np.random.seed(order.calls)  # noqa: NPY002 - chance from outside, which must not matter
        order.calls += 1
        return [key for inputs, _ in data.train_batches(epoch, 100) for key in keys(inputs)]

    order.calls = 0
    assert order(first, 0) == order(again, 0)
    orders = [order(data, epoch) for data in (first, other) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert len(set(map(frozenset, orders))) == 1
    assert torch.equal(whole_test(first)[0], whole_test(other)[0])


@WORLDS
def test_an_epoch_shows_each_video_once_over_all_ranks(made, world):
    data = made(spec(WHOLE))
    together = Counter(
        key for rank in range(world) for inputs, _ in data.train_batches(2, 96, rank, world) for key in keys(grey(inputs))
    )
    assert together == Counter(keys(data._train.frames))


@WORLDS
def test_ranks_share_a_batch_its_pairs_and_its_frames(made, world):
    data = made(spec(ClipSpec(num_frames=4)))
    for number, (whole, labels) in enumerate(data.train_batches(1, 240)):
        together, partners = Counter(), {}
        for rank in range(world):
            inputs, own = list(data.train_batches(1, 240, rank, world))[number]
            assert len(inputs) == 240 // world
            together.update(zip(keys(inputs), own.tolist(), strict=True))
            partners |= zip(keys(inputs), keys(inputs.flip(0)), strict=True)
        assert together == Counter(zip(keys(whole), labels.tolist(), strict=True))
        assert partners == dict(zip(keys(whole), keys(whole.flip(0)), strict=True))


@WORLDS
def test_shares_of_the_test_set_are_disjoint_and_complete(made, world):
    data = made(spec(ClipSpec(num_frames=4, test_clips=2, control="shuffled")))
    shares = [Counter(key for inputs, _ in data.test_batches(70, rank, world) for key in keys(inputs)) for rank in range(world)]
    assert sum(shares, Counter()) == Counter(keys(whole_test(data)[0]))
    index = torch.cat([number for rank in range(world) for number, _, _ in data.view_batches(70, rank, world)])
    assert sorted(index.tolist()) == list(range(TEST_VIDEOS))


# --- the choice of frames

CHOICES = pytest.mark.parametrize(
    "clip",
    [
        ClipSpec(num_frames=8, test_clips=3),
        ClipSpec(num_frames=4, test_clips=2, sampling="segments"),
        ClipSpec(num_frames=4, stride=3, test_clips=2, sampling="dense"),
    ],
    ids=lambda clip: clip.sampling,
)


@CHOICES
def test_views_are_the_frames_of_the_rule_counted_from_either_end(made, clip):
    data = made(spec(clip))
    videos, ends = data._test.frames, data._test.from_end
    ((index, inputs, labels),) = data.view_batches(TEST_VIDEOS)
    assert inputs.shape == (TEST_VIDEOS, clip.test_clips, 3, clip.num_frames, 16, 16)
    assert torch.equal(index, torch.arange(TEST_VIDEOS))
    assert torch.equal(labels, data._test.motion)
    one_view = grey(whole_test(data)[0])
    for view in range(clip.test_clips + 1):
        last = view == clip.test_clips
        rule = clips.validation_frames(clip, VIDEO_FRAMES) if last else clips.test_frames(clip, VIDEO_FRAMES, view)
        got = one_view if last else grey(inputs[:, view])
        mirrored = [VIDEO_FRAMES - 1 - number for number in reversed(rule)]
        assert torch.equal(got[~ends], videos[~ends][:, rule])
        assert torch.equal(got[ends], videos[ends][:, mirrored])


@CHOICES
def test_the_two_test_clips_of_a_scene_hold_the_same_frames_in_opposite_order(made, clip):
    data = made(spec(clip))
    ((_, views, _),) = data.view_batches(TEST_VIDEOS)
    for inputs in (whole_test(data)[0], *views.unbind(1)):
        assert torch.equal(inputs[0::2], inputs[1::2].flip(2))


def test_the_end_that_frames_are_counted_from_tells_nothing_of_the_class(made):
    data = made(spec(ClipSpec(num_frames=8)))
    ends, motion = data._test.from_end, data._test.motion
    assert torch.equal(ends[0::2], ~ends[1::2])
    assert (ends[motion % 2 == 0].double().mean() - 0.5).abs() < 0.07  # 600 tosses: 3.4 standard deviations


def test_training_clips_of_both_directions_come_from_the_same_parts_of_their_scenes(made):
    """Five segments of three frames leave the last frame of a video out: which end that is must not tell the class."""
    data = made(spec(ClipSpec(num_frames=5, sampling="segments")))
    place = {key: t for frames in data._train.frames for t, key in enumerate(keys(frames))}
    seen = torch.zeros(2, VIDEO_FRAMES)
    for inputs, labels in data.train_batches(0, 240):
        for frames, label in zip(grey(inputs), labels.tolist(), strict=True):
            for key in keys(frames):  # time of the scene, which runs backwards in the second class
                seen[label % 2, VIDEO_FRAMES - 1 - place[key] if label % 2 else place[key]] += 1
    assert (seen > 0).all()
    assert ((seen[0] - seen[1]).abs() < 4 * seen.sum(0).sqrt()).all()


def test_training_clips_are_in_order_and_drawn_anew_each_epoch(made):
    data = made(spec(ClipSpec(num_frames=8)))
    place = {key: (video, t) for video, frames in enumerate(data._train.frames) for t, key in enumerate(keys(frames))}
    chosen = [{}, {}]
    for epoch in range(2):
        for inputs, _ in data.train_batches(epoch, 240):
            for frames in grey(inputs):
                videos, times = zip(*(place[key] for key in keys(frames)), strict=True)
                assert len(set(videos)) == 1
                assert list(times) == sorted(times)
                chosen[epoch][videos[0]] = times
    assert set(chosen[0]) == set(chosen[1]) == set(range(TRAIN_VIDEOS))
    assert sum(chosen[0][video] != chosen[1][video] for video in chosen[0]) > 0.9 * TRAIN_VIDEOS


# --- the controls, and that they can fail


def test_single_repeats_one_frame_and_both_ways_the_same(made):
    data = made(spec(ClipSpec(num_frames=8, test_clips=2, control="single")))
    ((_, views, _),) = data.view_batches(TEST_VIDEOS)
    for inputs in (whole_test(data)[0], *views.unbind(1)):
        assert (inputs == inputs[:, :, :1]).all()
        assert torch.equal(inputs[0::2], inputs[1::2])
    inputs, _ = next(data.train_batches(0, 240))
    assert (inputs == inputs[:, :, :1]).all()
    assert len(set(keys(inputs))) == 240


def test_shuffled_keeps_the_frames_and_loses_their_order(made):
    shuffled = made(spec(ClipSpec(num_frames=VIDEO_FRAMES, sampling="segments", control="shuffled", test_clips=2)))
    clip, _ = whole_test(shuffled)
    ((_, views, _),) = shuffled.view_batches(TEST_VIDEOS)
    (train, _) = next(shuffled.train_batches(0, TRAIN_VIDEOS))
    for inputs, videos in ((clip, shuffled._test), (views[:, 0], shuffled._test), (train, shuffled._train)):
        by_content = {frozenset(Counter(keys(video)).items()): video for video in videos.frames}
        orders = Counter()
        for got in grey(inputs):
            frames = keys(by_content[frozenset(Counter(keys(got)).items())])  # KeyError: other frames than some video's
            orders[tuple(frames.index(key) for key in keys(got))] += 1
        assert max(orders.values()) == 1
        assert tuple(range(VIDEO_FRAMES)) not in orders


def test_the_seed_shuffles(made):
    clip = ClipSpec(num_frames=8, control="shuffled")
    first, other = (whole_test(made(spec(clip), seed))[0] for seed in (0, 1))
    assert torch.equal(first, whole_test(MovingDigits(spec(clip), 0, CPU))[0])
    assert (first != other).flatten(1).any(1).double().mean() > 0.95


def orderless(clip: torch.Tensor) -> torch.Tensor:
    """Hand-made features: each of the quantities, sorted. Whoever has lost the order of the frames has all of these."""
    return quantities(grey(clip)).sort(dim=1).values.flatten(1)


def ordered(clip: torch.Tensor) -> torch.Tensor:
    """Those and the order: courses, slopes, which bar is the later one, and the sense of turning."""
    seen = quantities(grey(clip))
    course = seen - seen.mean(1, keepdim=True)
    x, y = course[..., 1], course[..., 2]
    turning = (x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]).sum(1, keepdim=True)
    time = torch.linspace(-1, 1, seen.shape[1], dtype=torch.float64)[:, None]
    bars = (seen[..., 4:] - seen[..., 4:].amin(1, keepdim=True)) ** 2
    return torch.cat([orderless(clip), course.flatten(1), (course * time).sum(1), (bars * time).sum(1), turning], 1)


def scores(data: MovingDigits, features) -> tuple[float, float]:
    """Percent right among 12, and percent right among the two of the true pair, of a forest on the test set."""
    ((train, train_labels),) = data.train_batches(0, TRAIN_VIDEOS)
    test, labels = whole_test(data)
    forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0).fit(features(train).numpy(), train_labels.numpy())
    sure, labels = forest.predict_proba(features(test).numpy()), labels.numpy()
    rows = np.arange(len(labels))
    forward = sure[rows, labels - labels % 2] > sure[rows, labels - labels % 2 + 1]
    return 100 * np.mean(sure.argmax(1) == labels), 100 * np.mean(forward == (labels % 2 == 0))


@pytest.mark.parametrize("control", [None, "shuffled", "single", "orderless"])
def test_a_classifier_needs_the_order_of_frames(made, control):
    """A forest on hand-made features solves the task and sees which pair it is without order; the rest is a coin toss."""
    blind = control == "orderless"
    data = made(spec(ClipSpec(num_frames=8, control=None if blind else control)))
    top1, given_pair = scores(data, orderless if blind else ordered)
    print(f"{control}: {top1:.1f} % of 12 classes, {given_pair:.1f} % given the pair")
    if control is None:
        assert top1 > 90
        assert given_pair > 95
    elif control == "shuffled":  # 1200 tosses spread by 1.44 points
        assert 35 < top1 < 55
        assert abs(given_pair - 50) < 5
    else:  # the two clips of a scene look the same
        assert (12 if control == "single" else 35) < top1 <= 50
        assert given_pair == 50


def test_a_still_shows_its_digit(made):
    """Read by the nearest training scan, slid over the picture at half its side. 10 % is chance, 57 % came out."""
    split = made(spec(None))._test
    scanned, digits = scans(slice(898))
    scanned = scanned - scanned.mean((1, 2), keepdim=True)
    kernels = (scanned / scanned.square().sum((1, 2), keepdim=True).sqrt())[:, None]
    match = torch.nn.functional.conv2d(split.frames.double(), kernels).amax((2, 3))
    assert (digits[match.argmax(1)] == split.digit).double().mean() > 0.45


# --- what is refused


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        (spec(WHOLE, num_classes=10), "num_classes must be 12 .*'motion', got 10"),
        (spec(WHOLE, "digit", num_classes=12), "num_classes must be 10 .*'digit', got 12"),
        (spec(None, num_classes=12), "num_classes must be 10"),
        (spec(ClipSpec(num_frames=8, test_crops=3)), "test_crops must be 1 .*got 3"),
        (spec(WHOLE, augment=AugmentSpec(hflip=0.5)), "hflip must be 0.0 .*got 0.5"),
        (spec(WHOLE, augment=AugmentSpec(max_shift=1)), "max_shift must be 0 .*got 1"),
        (spec(WHOLE, augment=AugmentSpec(repeats=2)), "repeats must be 1 .*got 2"),
        (spec(None, augment=AugmentSpec(auto_augment="rand-m9")), "auto_augment must be None .*got 'rand-m9'"),
    ],
)
def test_what_it_cannot_do_is_refused(wanted, match):
    with pytest.raises(ValueError, match=match):
        MovingDigits(wanted, 0, CPU)


def test_mixing_a_batch_is_not_an_augmentation_of_pictures(made):
    augment = AugmentSpec(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    assert made(spec(WHOLE, augment=augment)).num_classes == 12


def test_names_are_many_and_different(made):
    names = made(spec(WHOLE)).test_names
    assert len(set(names)) == TEST_VIDEOS
    assert names[12] == "moving_digits/test/00012"
