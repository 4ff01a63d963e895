"""Kinetics-400 and Something-Something V2 from the released lists: which file has which label, and batches of their clips.

A data set is a folder with train.csv, val.csv and test.csv, without header: path, label. val.csv scores the epochs of a
training, test.csv its end. Released code: videomamba/video_sm/datasets/build.py, kinetics_sparse.py and ssv2.py. It puts a
random other video in the place of one that cannot be read, tests included; here a test stops, and a training counts the loss.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vmrepro import paths
from vmrepro.data.clips import controlled, test_frames, train_frames, validation_frames
from vmrepro.data.decode import Choose, DecodeError, read_frames
from vmrepro.data.digits import rank_share
from vmrepro.data.imagenet import WORKERS
from vmrepro.data.video_transforms import TrainTransform, normalised, square_crops
from vmrepro.specs.schema import DataSpec

SPLITS = ("train", "val", "test")
MOST_LOST = 0.01  # of the training videos; a run that loses more stops
VIDEOS_AT_ONCE = 4  # that a worker sends: a whole batch would wait for one worker, and batches ahead would fill the memory


class Video(NamedTuple):
    """One line of a list."""

    name: str  # the path as the list has it
    path: str  # where the file is looked for
    label: int


class _Item(NamedTuple):
    """What a worker is asked for: of which split, in which epoch (0 in tests), which video."""

    split: str
    epoch: int
    index: int


class _Loaded(NamedTuple):
    """What a worker sends: clips ``(items, ...)`` or None if one has none, labels, and what was lost, by name, and why."""

    items: list[_Item]
    clips: Tensor | None
    labels: Tensor
    lost: dict[str, str]


def folder(name: str) -> Path:
    """Where the data set ``name`` is looked for."""
    return paths.data() / name


def read_list(file: Path, num_classes: int, name: str) -> list[Video]:
    """The videos of a list of the data set ``name``, in its order; paths are relative to its folder, or absolute.

    Two columns, parted by a comma if the first line's label is, else by white space; a path may contain either. A path
    whose last part has no dot gets ".mp4" if there is no file without it. FileNotFoundError names the data set and the
    file; ValueError names the line and what was expected of it, or says that the list is empty.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{name} needs {file}, which is missing: a line per video is expected, its path relative to that folder, a comma or "
            f"a space, and its label from 0 to {num_classes - 1}. A training reads train.csv, val.csv and test.csv, a test only "
            f"test.csv. Put it there or name another folder; a training looks in {folder(name)}, and VMREPRO_DATA may name "
            f"another folder that contains {name}/."
        )
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error}): a line per video is expected, its path and its label") from error
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{file} is empty: a line per video is expected, its path and its label")
    delimiter = "," if _is_number(lines[0][1].rpartition(",")[2]) else None
    return [_video(file, number, line, delimiter, num_classes) for number, line in lines]


def read_lists(root: Path, num_classes: int, name: str, splits: Sequence[str] = SPLITS) -> dict[str, list[Video]]:
    """The lists ``splits`` of the data set ``name`` in the folder ``root``, by split.

    ValueError if a video stands twice in val.csv or in test.csv, else as :func:`read_list`.
    """
    lists = {split: read_list(root / f"{split}.csv", num_classes, name) for split in splits}
    for split, videos in lists.items():
        twice = duplicates(videos) if split != "train" else []
        if twice:
            raise ValueError(f"{root / split}.csv lists {len(twice)} videos again, such as {twice[0]}: each must count once")
    return lists


def duplicates(videos: list[Video]) -> list[str]:
    """Names of the videos whose file stands earlier in the list."""
    seen: set[str] = set()
    # set.add gives None, so that each path is tried and then kept.
    return [video.name for video in videos if video.path in seen or seen.add(video.path)]


def _video(file: Path, number: int, line: str, delimiter: str | None, num_classes: int) -> Video:
    columns = [column.strip() for column in line.rsplit(delimiter, 1)]
    kind = "a comma" if delimiter else "a space"
    expected = f"{file}, line {number}: expected a path, {kind} and a label from 0 to {num_classes - 1}, got {line!r}"
    if len(columns) != 2 or not columns[0]:
        raise ValueError(expected)
    name, label = columns
    before = name.rsplit(delimiter, 1)
    if _is_number(label) and len(before) == 2 and _is_number(before[1].strip()):
        raise ValueError(
            f"{expected}. Three columns, as in lists of LVU (path, label, seconds) or of frame folders (folder, frames, label), "
            "are not read here: write path and label only"
        )
    if not label.isascii() or not label.isdigit():
        raise ValueError(expected)
    if int(label) >= num_classes:
        raise ValueError(f"{expected}: the label is too large for {num_classes} classes")
    path = os.path.normpath(file.parent / name)
    if "." not in os.path.basename(path) and not os.path.exists(path):
        path += ".mp4"
    return Video(name, path, int(label))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class _Clips(Dataset):
    """Clips by item, made in a worker from nothing but the item and the seed."""

    def __init__(self, spec: DataSpec, seed: int, lists: dict[str, list[Video]]) -> None:
        self._spec, self._seed, self._lists = spec, seed, lists
        self._transform = TrainTransform(spec.augment, spec.img_size)

    def __getitem__(self, item: _Item) -> tuple[_Item, Tensor | None, int, dict[str, str]]:
        """The item, its clips or None, its label, and the names and reasons of what could not be read on the way."""
        videos, lost = self._lists[item.split], {}
        for video in videos[item.index :] + videos[: item.index] if item.split == "train" else [videos[item.index]]:
            try:
                return item, self._clips(item, video), video.label, lost
            except (DecodeError, OSError) as error:
                lost[video.name] = str(error)
            if len(lost) > MOST_LOST * len(videos):
                break
        return item, None, -1, lost

    def _clips(self, item: _Item, video: Video) -> Tensor:
        """Training: float32 ``(copies, 3, T, S, S)``; val: uint8 ``(3, T, S, S)``; test: uint8 ``(views, 3, T, S, S)``."""
        spec, clip = self._spec, self._spec.clip
        chance = np.random.default_rng([self._seed, SPLITS.index(item.split), item.epoch, item.index])
        if item.split == "train":
            frames = read_frames(video.path, lambda count: controlled(clip, train_frames(clip, count, chance), chance))
            return torch.stack([self._transform(frames, own) for own in chance.spawn(spec.augment.repeats)])
        if item.split == "val":
            frames = self._small(video, lambda count: controlled(clip, validation_frames(clip, count), chance))
            return square_crops(frames)[0]
        clips = range(clip.test_clips)  # one after the other in time, so that the file is read once
        frames = self._small(
            video, lambda count: [i for c in clips for i in controlled(clip, test_frames(clip, count, c), chance)]
        )
        crops = square_crops(frames, clip.test_crops).unflatten(2, (clip.test_clips, clip.num_frames))
        return crops.permute(2, 0, 1, 3, 4, 5).flatten(0, 1)

    def _small(self, video: Video, choose: Choose) -> np.ndarray:
        return read_frames(video.path, choose, short_side=self._spec.img_size)


def _collated(loaded: list) -> _Loaded:
    items, clips, labels, lost = zip(*loaded, strict=True)
    whole = None if any(clip is None for clip in clips) else torch.stack(clips)
    return _Loaded(list(items), whole, torch.tensor(labels), {name: reason for losses in lost for name, reason in losses.items()})


class _Plan(Sampler):
    """Items to send together, set before each pass; so one set of workers serves all passes."""

    def __init__(self) -> None:
        self.parts: list[list[_Item]] = []

    def __iter__(self) -> Iterator[list[_Item]]:
        return iter(self.parts)


class Videos:
    """A data set of video files as batches ``(batch, 3, T, img_size, img_size)`` on one device, decoded by worker processes.

    Chance comes only from ``seed`` and ``epoch``: neither the number of workers nor that of processes changes a clip. Of
    each video ``augment.repeats`` clips are made of the same frames, differently augmented, next to each other in the batch
    (released: --num_sample); sizes count clips, not videos. ``lost`` holds the training videos that this process could not
    read, with the reason: the next readable one of the list takes the place, with a warning once a file; beyond 1 % of the
    list the run stops with RuntimeError. Only the lists ``splits`` are read; batches of another are a KeyError.
    FileNotFoundError and ValueError as :func:`read_lists` raises them.
    """

    def __init__(
        self,
        spec: DataSpec,
        seed: int,
        device: torch.device,
        root: Path | None = None,
        *,
        splits: Sequence[str] = SPLITS,
        workers: int = WORKERS,
    ) -> None:
        self._lists = read_lists(root or folder(spec.name), spec.num_classes, spec.name, splits)
        self.num_classes = spec.num_classes
        self.lost: dict[str, str] = {}
        self._spec, self._seed, self._device = spec, seed, device
        self._plan = _Plan()
        self._loader = DataLoader(
            _Clips(spec, seed, self._lists),
            batch_sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,  # starting them anew would cost more than an epoch of a small set
            collate_fn=_collated,
            pin_memory=device.type == "cuda",
        )

    @property
    def test_names(self) -> list[str]:
        """The videos of the test list, in its order."""
        return [video.name for video in self._lists["test"]]

    @property
    def train_size(self) -> int:
        """Clips in one pass over the training list: its videos, each as often as it is augmented."""
        return len(self._lists["train"]) * self._spec.augment.repeats

    def train_batches(self, epoch: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each global batch of ``batch_size`` clips, with labels ``(batch,)``.

        ValueError if the batch cannot be shared by ``rank_share``, which pairs videos for mixup.
        """
        repeats = self._spec.augment.repeats
        if batch_size % (2 * world * repeats):
            raise ValueError(
                f"batch_size {batch_size} must be a multiple of {2 * world * repeats}: "
                f"{repeats} clips of each video, and pairs of videos for each of {world} processes"
            )
        videos = batch_size // repeats
        order = torch.from_numpy(np.random.default_rng([self._seed, epoch]).permutation(len(self._lists["train"])))
        shares = [rank_share(batch, rank, world).tolist() for batch in order.split(videos) if len(batch) == videos]
        batches = [[_Item("train", epoch, index) for index in share] for share in shares]
        for _, clips, labels in self._loaded(batches):
            yield clips.flatten(0, 1), labels.repeat_interleave(repeats)

    def test_batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of val.csv, one view of each video; the shares are disjoint and together complete.

        RuntimeError if a file cannot be read.
        """
        for _, clips, labels in self._loaded(self._shared("val", batch_size, rank, world)):
            yield normalised(clips), labels

    def view_batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """This process's share of test.csv, ``batch_size`` videos at a time, with all their views.

        Index ``(batch,)`` into :attr:`test_names`, clips ``(batch, views, 3, T, S, S)``, clip after clip and for each its
        crops, and labels ``(batch,)``. RuntimeError if a file cannot be read.
        """
        for items, clips, labels in self._loaded(self._shared("test", batch_size, rank, world), at_once=1):
            yield torch.tensor([item.index for item in items], device=self._device), normalised(clips), labels

    def _shared(self, split: str, batch_size: int, rank: int, world: int) -> list[list[_Item]]:
        items = [_Item(split, 0, index) for index in range(rank, len(self._lists[split]), world)]
        return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]

    def _loaded(self, batches: list[list[_Item]], at_once: int = VIDEOS_AT_ONCE) -> Iterator[tuple[list[_Item], Tensor, Tensor]]:
        """Items, clips and labels of each batch on the device; what could not be read is counted or raised before."""
        parts = [[batch[start : start + at_once] for start in range(0, len(batch), at_once)] for batch in batches]
        plan = self._plan.parts = [part for batch in parts for part in batch]
        loader = iter(self._loader)
        for batch, batch_parts in zip(batches, parts, strict=True):
            clips, labels = [], []
            for _ in batch_parts:
                if self._plan.parts is not plan:
                    raise RuntimeError("another pass over these videos has begun: the workers serve one at a time")
                loaded = next(loader)
                self._count(loaded)
                clips.append(loaded.clips.to(self._device, non_blocking=True))
                labels.append(loaded.labels.to(self._device, non_blocking=True))
            yield batch, torch.cat(clips), torch.cat(labels)

    def _count(self, loaded: _Loaded) -> None:
        """Note what a training lost; RuntimeError if it is too much, or if a test lost anything."""
        split = loaded.items[0].split
        advice = f"`vmrepro data check {self._spec.name}` lists all such files"
        if split != "train":
            for name, reason in loaded.lost.items():
                raise RuntimeError(f"{name} of {split}.csv cannot be read, so there is no score: {reason}. {advice}")
            return
        for name, reason in loaded.lost.items():
            if name in self.lost:
                continue
            self.lost[name] = reason
            warnings.warn(f"training goes on without {name}, the next video takes its place: {reason}", stacklevel=2)
        videos = len(self._lists["train"])
        gone = sum(video.name in self.lost for video in self._lists["train"]) if loaded.lost else 0
        if gone > MOST_LOST * videos:
            listed = "\n".join(f"  {name}: {reason}" for name, reason in self.lost.items())
            raise RuntimeError(
                f"{gone} of {videos} training videos cannot be read, more than {MOST_LOST:.0%}; {advice}. So far:\n{listed}"
            )
