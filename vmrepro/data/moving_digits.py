"""Videos of the scanned digits in motion: 12 classes that need time, not appearance; no download.

============================  ===================================================  ===============================
classes                       what happens                                         what tells the two apart
============================  ===================================================  ===============================
right, left                   the digit rides 0.3 to 0.45 along its row            order of two frames
down, up                      the same along its column                            order of two frames
approach, retreat             its side grows or shrinks by 0.25 to 0.4             order of two frames
appear, vanish                it fades in or out within 2 to 5 frames              order of two frames
top_first, bottom_first       it rests; bars at two edges flash, 3 to 5 frames     order of two events
                              each, 0.5 to 2 frames between them
clockwise, anticlockwise      it goes 0.75 to 1 turn of a circle, radius 0.13      order of two or three frames
                              to 0.2
============================  ===================================================  ===============================

The second class of a row is the first one backwards: the same scene, its frames reversed. Without their order the frames
have one distribution in both, so who sees one frame or shuffled frames can expect half of the videos at most. In the test
set each scene occurs both ways, and the two clips of a scene hold the very same frames: there the bound is exact. The
released rules choose frames that lie unevenly in time, which would give the direction away: so a coin that ignores the class
decides for each video whether they count from its start or from its end, and the two test videos of a scene have opposite
sides of it.

Geometry is in units of the canvas, time in frames. A frame shows the digit (side 0.42 to 0.55, never cut off by an edge, 0.4
to 0.6 brighter than the background) on grey (0.05 to 0.2), with a faint, still second digit of another draw (0.05 to 0.12)
and noise in each pixel (uniform, up to NOISE either way). A still shows its digit at a side of 0.42 to 0.7. A pixel is the
mean of the scene over its square, so a larger canvas is the same scene rendered finer. The first half of the scans trains and
the second half tests (see digits.py): no scan of a test video occurs in training.

All is drawn once, from seeds that are constants here; a run's seed decides the order of videos and the frames of clips.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vmrepro.data import clips
from vmrepro.data.digits import LEVELS, TRAIN_IMAGES, rank_share
from vmrepro.specs.schema import AugmentSpec, DataSpec

MOTIONS = ("right", "left", "down", "up", "approach", "retreat", "appear", "vanish")
MOTIONS += ("top_first", "bottom_first", "clockwise", "anticlockwise")
PAIRS = len(MOTIONS) // 2
RIGHT, DOWN, APPROACH, APPEAR, TOP_FIRST, CLOCKWISE = range(PAIRS)  # a pair by its forward class
REST = -1  # no pair: a still image

VIDEO_FRAMES = 16
BALANCED = 2 * PAIRS * 2 * 10  # videos, and a half of them, that show every class with every digit equally often
TRAIN_SEED, TEST_SEED = 2403, 6977
NOISE = 0.05  # half the width of the uniform noise; white is 1
BAR = 0.125  # height of a flashing bar
CHUNK = 200  # scenes rendered at a time: what fits in a cache


@dataclass(frozen=True)
class Scenes:
    """``n`` scenes before they become pixels; tracks are ``(n, frames)``, the rest ``(n, ...)``, all float64."""

    digit: Tensor  # (n, 8, 8), 0 to 1
    x: Tensor  # track: centre of the digit, from the left
    y: Tensor  # track: from the top
    size: Tensor  # track: side of the digit
    light: Tensor  # track: brightness of the digit above the background
    top: Tensor  # track: brightness of the bar at the top
    bottom: Tensor  # track: and at the bottom
    second: Tensor  # (n, 8, 8), the still digit, its brightness included
    second_place: Tensor  # (n, 3): centre x, y and side
    background: Tensor  # (n,)

    def part(self, rows: slice) -> Scenes:
        return Scenes(**{name: value[rows] for name, value in vars(self).items()})


def draw_scenes(pairs: Tensor, values: Tensor, images: Tensor, targets: Tensor, frames: int, chance: torch.Generator) -> Scenes:
    """Scenes in their forward direction.

    ``pairs`` ``(n,)`` are pairs of classes or REST, ``values`` ``(n,)`` the digits to show, ``images`` ``(m, 8, 8)`` and
    ``targets`` ``(m,)`` the scans to take them from.
    """
    count = len(pairs)

    def between(low: float, high: float, only: int | None = None) -> Tensor:
        drawn = low + (high - low) * torch.rand(count, dtype=torch.float64, generator=chance)
        return drawn if only is None else torch.where(pairs == only, drawn, 0.0)

    def scan(allowed: Tensor) -> Tensor:
        """For each row of ``allowed`` ``(n, m)`` a random one of the scans that it allows."""
        place = (between(0, 1) * allowed.sum(1)).long()
        return images[(allowed.cumsum(1) > place[:, None]).int().argmax(1)]

    digit, second = scan(values[:, None] == targets), scan(torch.ones(count, len(targets), dtype=torch.bool))
    side = torch.where(pairs == REST, between(0.42, 0.7), between(0.42, 0.55))
    ride, fall, grow = between(0.3, 0.45, RIGHT), between(0.3, 0.45, DOWN), between(0.25, 0.4, APPROACH)
    radius, phase, turn = between(0.13, 0.2, CLOCKWISE), between(0, 2 * torch.pi), between(1.5, 2, CLOCKWISE) * torch.pi
    reach = (side + grow / 2) / 2 + radius  # from the middle of the way to where the digit would touch an edge
    x_middle = reach + ride / 2 + between(0, 1) * (1 - 2 * reach - ride)
    y_middle = reach + fall / 2 + between(0, 1) * (1 - 2 * reach - fall)
    light, ramp, fade = between(0.4, 0.6), between(2, 5), between(0, 1)
    first, gap, last, begin = between(3, 5), between(0.5, 2), between(3, 5), between(0, 1)
    second_side, second_x, second_y = between(0.42, 0.55), between(0, 1), between(0, 1)

    ticks = torch.arange(frames + 1, dtype=torch.float64)
    time = ticks[:-1] + 0.5  # the middle of each frame
    course = time / frames - 0.5
    angle = phase[:, None] + turn[:, None] * course
    shown = (time - (3 + fade * (VIDEO_FRAMES - 6 - ramp))[:, None]) / ramp[:, None]
    bar = torch.where(pairs == TOP_FIRST, light, 0.0)[:, None]
    first_on = begin * (VIDEO_FRAMES - first - gap - last)
    last_on = first_on + first + gap
    return Scenes(
        digit=digit,
        x=x_middle[:, None] + ride[:, None] * course + radius[:, None] * angle.cos(),
        y=y_middle[:, None] + fall[:, None] * course + radius[:, None] * angle.sin(),  # downwards, so angles grow clockwise
        size=side[:, None] + grow[:, None] * course,
        light=light[:, None] * torch.where(pairs[:, None] == APPEAR, shown.clamp(0, 1), 1.0),
        top=bar * overlap(ticks, torch.stack([first_on, first_on + first], 1))[..., 0],
        bottom=bar * overlap(ticks, torch.stack([last_on, last_on + last], 1))[..., 0],
        second=between(0.05, 0.12)[:, None, None] * second,
        second_place=torch.stack([second_side / 2 + at * (1 - second_side) for at in (second_x, second_y)] + [second_side], 1),
        background=between(0.05, 0.2),
    )


def overlap(edges: Tensor, others: Tensor) -> Tensor:
    """Lengths ``(..., a, b)`` that the intervals between ``a + 1`` ``edges`` share with those between ``b + 1`` ``others``."""
    edges, others = edges[..., None], others[..., None, :]
    return (torch.minimum(edges[..., 1:, :], others[..., 1:]) - torch.maximum(edges[..., :-1, :], others[..., :-1])).clamp(min=0)


def paint(scenes: Scenes, side: int) -> Tensor:
    """The scenes as float64 ``(n, frames, side, side)``, without noise; 0 is black, 1 white."""
    pixels = torch.arange(side + 1, dtype=torch.float64) / side
    cells = torch.arange(9, dtype=torch.float64) / 8 - 0.5

    def placed(image: Tensor, x: Tensor, y: Tensor, size: Tensor) -> Tensor:
        rows, columns = (side * overlap(pixels, at[..., None] + size[..., None] * cells) for at in (y, x))
        return rows @ image[:, None] @ columns.transpose(-1, -2)

    def bar(low: float, high: float) -> Tensor:
        return side * overlap(pixels, torch.tensor([low, high], dtype=torch.float64))  # (side, 1)

    canvas = scenes.light[..., None, None] * placed(scenes.digit, scenes.x, scenes.y, scenes.size)
    canvas += placed(scenes.second, *scenes.second_place.T[..., None])
    canvas += scenes.top[..., None, None] * bar(0, BAR) + scenes.bottom[..., None, None] * bar(1 - BAR, 1)
    return canvas + scenes.background[:, None, None, None]


def render(scenes: Scenes, side: int, chance: torch.Generator) -> Tensor:
    """The scenes as uint8 ``(n, frames, side, side)`` with noise from ``chance``."""
    parts = []
    for start in range(0, len(scenes.digit), CHUNK):
        clean = paint(scenes.part(slice(start, start + CHUNK)), side)
        noise = torch.rand(clean.shape, dtype=torch.float64, generator=chance)
        parts.append((255 * (clean + NOISE * (2 * noise - 1))).round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(parts)


@dataclass(frozen=True)
class Split:
    """Half of the data set: frames uint8 ``(n, frames, side, side)``; the rest ``(n,)``."""

    frames: Tensor
    motion: Tensor  # place in MOTIONS, REST for a still
    digit: Tensor
    from_end: Tensor  # whether the frames of a clip are counted from the end (test; training tosses anew each epoch)

    def to(self, device: torch.device) -> Split:
        """The same, with what fills a batch on ``device``; ``from_end`` stays, since frames are chosen on the CPU."""
        return replace(self, frames=self.frames.to(device), motion=self.motion.to(device), digit=self.digit.to(device))


def make_split(size: int, still: bool, both_ways: bool, side: int, images: Tensor, targets: Tensor, seed: int) -> Split:
    """``size`` videos, or stills, of the scans ``images`` ``(m, 8, 8)``; ``both_ways`` shows each scene twice in a row."""
    number = torch.arange(size)
    motion = torch.full_like(number, REST) if still else number % len(MOTIONS)
    digit = number // len(MOTIONS) % 10
    backwards = motion % 2 == 1  # stills as well, and one frame is its own reverse
    pairs = motion.div(2, rounding_mode="floor")
    times = 2 if both_ways else 1
    chance, noise = (torch.Generator().manual_seed(2 * seed + part) for part in range(2))
    scenes = draw_scenes(pairs[::times], digit[::times], images, targets, 1 if still else VIDEO_FRAMES, chance)
    coin = torch.rand(size // times, generator=chance) < 0.5
    frames = render(scenes, side, noise).repeat_interleave(times, dim=0)
    frames[backwards] = frames[backwards].flip(1)
    return Split(frames, motion, digit, coin.repeat_interleave(times) ^ backwards)


@functools.lru_cache(maxsize=8)
def _halves(videos: int, still: bool, side: int) -> tuple[Split, Split]:
    """The training and the test set, on the CPU; kept, because trainings follow each other on the same videos."""
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    raw, half = load_digits(), TRAIN_IMAGES
    images, targets = torch.from_numpy(raw.images / LEVELS), torch.from_numpy(raw.target.astype(np.int64))
    train = make_split(videos, still, False, side, images[:half], targets[:half], TRAIN_SEED)
    return train, make_split(videos // 2, still, not still, side, images[half:], targets[half:], TEST_SEED)


class MovingDigits:
    """Clips ``(batch, 3, frames, img_size, img_size)``, or stills ``(batch, 3, img_size, img_size)`` without ``spec.clip``.

    Labels are the motion (its place in MOTIONS) or the digit, as ``spec.label`` says. All frames lie on ``device`` as uint8;
    batches are float32 with ImageNet's mean and standard deviation taken out. There are ``spec.videos`` to train on and half
    as many to test. ValueError for a spec that asks for another number of classes, for videos that cannot be balanced, for
    crops, or for an augmentation of pictures: there is none, since places are random already and left and right are classes.
    """

    def __init__(self, spec: DataSpec, seed: int, device: torch.device) -> None:
        from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        self.num_classes = len(MOTIONS) if spec.label == "motion" else 10
        _check(spec, self.num_classes)
        halves = _halves(spec.videos, spec.clip is None, spec.img_size)
        self._train, self._test = (half.to(device) for half in halves)
        self._mean, self._std = (
            torch.tensor(values, device=device).reshape(3, 1, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        self._spec, self._seed, self._device = spec, seed, device

    @property
    def train_size(self) -> int:
        """Videos, or stills, in one pass over the training set."""
        return len(self._train.frames)

    @property
    def test_names(self) -> list[str]:
        """A name for each video of the test set, in the order of ``view_batches``' index."""
        return [f"moving_digits/test/{number:05d}" for number in range(len(self._test.frames))]

    def train_batches(self, epoch: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each global batch of ``batch_size``: inputs and labels ``(batch,)``.

        Order and frames depend on seed and epoch alone; ``rank_share`` says which part of a batch is whose.
        """
        chance = np.random.default_rng([0, self._seed, epoch])
        order = torch.from_numpy(chance.permutation(self.train_size)).to(self._device)
        from_end = torch.from_numpy(chance.random(self.train_size) < 0.5)
        frames = self._choose(from_end, chance, lambda: clips.train_frames(self._spec.clip, VIDEO_FRAMES, chance))
        for start in range(0, self.train_size - batch_size + 1, batch_size):
            mine = rank_share(order[start : start + batch_size], rank, world)
            yield self._batch(self._train, mine, frames[mine])

    def test_batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the test set, a clip of each video; the shares are disjoint and together complete."""
        chance = np.random.default_rng([1, self._seed])
        frames = self._choose(self._test.from_end, chance, lambda: clips.validation_frames(self._spec.clip, VIDEO_FRAMES))
        for mine in torch.arange(rank, len(frames), world, device=self._device).split(batch_size):
            yield self._batch(self._test, mine, frames[mine])

    def view_batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """This process's share of the test videos, ``batch_size`` at a time, with all ``test_clips`` clips of each.

        Index ``(b,)`` of the video, inputs ``(b, clips, 3, frames, img_size, img_size)``, labels ``(b,)``. ValueError for stills.
        """
        clip = self._spec.clip
        if clip is None:
            raise ValueError("view_batches takes clips of a video; this DataSpec has clip=None, which is still images")
        chance = np.random.default_rng([2, self._seed])
        views = [
            self._choose(self._test.from_end, chance, lambda view=view: clips.test_frames(clip, VIDEO_FRAMES, view))
            for view in range(clip.test_clips)
        ]
        frames = torch.cat(views, 1)
        for mine in torch.arange(rank, len(frames), world, device=self._device).split(batch_size):
            inputs, labels = self._batch(self._test, mine, frames[mine])
            split = inputs.unflatten(2, (clip.test_clips, clip.num_frames)).transpose(1, 2).contiguous()
            yield mine, split, labels

    def _choose(self, from_end: Tensor, chance: np.random.Generator, rule: Callable[[], list[int]]) -> Tensor:
        """Which frames make the clip of each video ``(n, frames)``, by ``rule`` and then the control that the spec asks for."""
        clip = self._spec.clip
        if clip is None:
            return torch.zeros(len(from_end), 1, dtype=torch.long, device=self._device)
        chosen = torch.tensor([clips.controlled(clip, rule(), chance) for _ in from_end])
        return torch.where(from_end[:, None], VIDEO_FRAMES - 1 - chosen.flip(1), chosen).to(self._device)

    def _batch(self, split: Split, mine: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        grey = split.frames[mine[:, None], frames][:, None]
        inputs = (grey.float() / 255 - self._mean) / self._std
        labels = split.motion if self._spec.label == "motion" else split.digit
        return inputs[:, :, 0] if self._spec.clip is None else inputs, labels[mine]


def _check(spec: DataSpec, num_classes: int) -> None:
    if spec.num_classes != num_classes:
        raise ValueError(
            f"DataSpec.num_classes must be {num_classes} for moving digits with label={spec.label!r}, got {spec.num_classes}"
        )
    if spec.videos % BALANCED:
        raise ValueError(f"DataSpec.videos must be a multiple of {BALANCED}, so that classes are balanced, got {spec.videos}")
    if spec.clip is not None and spec.clip.test_crops != 1:
        raise ValueError(f"ClipSpec.test_crops must be 1 for moving digits, which fill a square, got {spec.clip.test_crops}")
    for name in ("auto_augment", "color_jitter", "random_erasing", "hflip", "max_shift", "repeats"):
        value, default = getattr(spec.augment, name), getattr(AugmentSpec(), name)
        if value != default:
            raise ValueError(f"AugmentSpec.{name} must be {default!r} for moving digits, which are not augmented, got {value!r}")
