"""The scanned digits that ship with scikit-learn: 1,797 real grey images of 8 x 8 pixels, ten classes, no download.

Split: the file lists its images writer after writer, so the first half trains and the second half tests, which keeps
most test writers unseen. A random split would put the same hands on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vmrepro.specs.schema import DataSpec

TRAIN_IMAGES = 898
LEVELS = 16.0  # grey levels of the scan


class Digits:
    """The digits as batches of tensors ``(batch, 1, img_size, img_size)``, kept whole on one device.

    Chance comes only from ``seed`` and ``epoch``: which images form a batch and how each is shifted do not depend on
    how many processes share the work.
    """

    num_classes = 10

    def __init__(self, spec: DataSpec, seed: int, device: torch.device) -> None:
        from sklearn.datasets import load_digits  # here, because it takes a second to import

        raw = load_digits()
        images = torch.from_numpy(raw.images / LEVELS).unsqueeze(1)
        mean, std = images[:TRAIN_IMAGES].mean(), images[:TRAIN_IMAGES].std()
        images = ((images - mean) / std).float()  # in float64 up to here, so that the rounding is the same everywhere
        if spec.img_size != images.shape[-1]:
            images = torch.nn.functional.interpolate(images, size=spec.img_size, mode="bilinear", antialias=True)
        labels = torch.from_numpy(raw.target.astype(np.int64))
        self._background = float((0 - mean) / std)
        self._train = images[:TRAIN_IMAGES].to(device), labels[:TRAIN_IMAGES].to(device)
        self._test = images[TRAIN_IMAGES:].to(device), labels[TRAIN_IMAGES:].to(device)
        self._spec, self._seed = spec, seed

    @property
    def train_size(self) -> int:
        """Images in one pass over the training set."""
        return TRAIN_IMAGES

    def train_batches(self, epoch: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each global batch of ``batch_size`` images, by ``rank_share``, and labels ``(batch,)``."""
        chance = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(TRAIN_IMAGES, generator=chance)
        shift = self._spec.augment.max_shift
        shifts = torch.randint(-shift, shift + 1, (TRAIN_IMAGES, 2), generator=chance)
        images, labels = self._train
        for start in range(0, TRAIN_IMAGES - batch_size + 1, batch_size):
            mine = rank_share(order[start : start + batch_size], rank, world)
            picked = mine.to(images.device)
            yield _shifted(images[picked], shifts[mine].to(images.device), self._background), labels[picked]

    def test_batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the test set; the shares of all ranks are disjoint and together complete."""
        images, labels = self._test
        images, labels = images[rank::world], labels[rank::world]
        yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)


def rank_share(batch: Tensor, rank: int, world: int) -> Tensor:
    """The part of ``batch`` ``(n, ...)`` that is rank's: a stretch of it and the mirror image of that stretch.

    Mixing a batch with its own reverse (mixup) then pairs the same samples whatever the number of processes.
    """
    half = len(batch) // (2 * world)
    return torch.cat([batch[rank * half : (rank + 1) * half], batch[len(batch) - (rank + 1) * half : len(batch) - rank * half]])


def _shifted(images: Tensor, shifts: Tensor, fill: float) -> Tensor:
    """Each image moved by its own whole number of pixels (rows, columns); what comes in at the edge is ``fill``."""
    if not shifts.any():
        return images
    batch, _, height, width = images.shape
    reach = int(shifts.abs().max())
    padded = torch.nn.functional.pad(images, (reach,) * 4, value=fill)
    rows = torch.arange(height, device=images.device) + reach - shifts[:, :1]
    columns = torch.arange(width, device=images.device) + reach - shifts[:, 1:]
    index = torch.arange(batch, device=images.device)[:, None, None]
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
