"""ImageNet-1K from a folder tree, with the augmentation of the paper's recipe (section 4.1: DeiT); timm does the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset

from vmrepro import paths
from vmrepro.specs.schema import DataSpec

WORKERS = min(8, os.cpu_count() or 1)  # loader processes per training process; torch seeds what timm draws from in each


def folder() -> Path:
    """Where ImageNet is looked for."""
    return paths.data() / "imagenet"


def check_folder(root: Path, num_classes: int) -> None:
    """Raise FileNotFoundError, naming the expected layout, unless ``root`` holds both splits with every class."""
    for split in ("train", "val"):
        classes = [entry for entry in (root / split).iterdir() if entry.is_dir()] if (root / split).is_dir() else []
        if len(classes) != num_classes:
            raise FileNotFoundError(
                f"ImageNet is expected as {root}/train/<class>/<image>.JPEG and {root}/val/<class>/<image>.JPEG with "
                f"{num_classes} class folders each; {root / split} has {len(classes)}. "
                "Put the data there, or point VMREPRO_DATA at the folder that contains imagenet/."
            )


class ImageNet:
    """ImageNet as batches ``(batch, 3, img_size, img_size)`` on one device, decoded by worker processes."""

    def __init__(self, spec: DataSpec, seed: int, device: torch.device, root: Path | None = None) -> None:
        import timm.data
        from torchvision import datasets, transforms

        root = root or folder()
        check_folder(root, spec.num_classes)
        bicubic = transforms.InterpolationMode.BICUBIC
        train = timm.data.create_transform(
            spec.img_size,
            is_training=True,
            hflip=spec.augment.hflip,
            color_jitter=spec.augment.color_jitter,
            auto_augment=spec.augment.auto_augment,
            interpolation="bicubic",
            re_prob=spec.augment.random_erasing,
            re_mode="pixel",
            re_count=1,
        )
        test = transforms.Compose(
            [
                transforms.Resize(int(spec.img_size / spec.crop_ratio), interpolation=bicubic),
                transforms.CenterCrop(spec.img_size),
                transforms.ToTensor(),
                transforms.Normalize(timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD),
            ]
        )
        self._train = datasets.ImageFolder(root / "train", train)
        self._test = datasets.ImageFolder(root / "val", test)
        self.num_classes = spec.num_classes
        self._spec, self._seed, self._device = spec, seed, device

    @property
    def train_size(self) -> int:
        """Images in one pass over the training set."""
        return len(self._train)

    def train_batches(self, epoch: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each global batch of ``batch_size`` images, normalised, with labels ``(batch,)``."""
        sampler = self._sampler(rank, world)
        sampler.set_epoch(self._seed * 1_000_003 + epoch)
        chance = torch.Generator().manual_seed((self._seed * 1_000_003 + epoch) * world + rank)
        yield from self._batches(self._train, batch_size // world, sampler=sampler, generator=chance, drop_last=True)

    def test_batches(self, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the validation set; the shares of all ranks are disjoint and together complete."""
        yield from self._batches(Subset(self._test, range(rank, len(self._test), world)), batch_size)

    def _sampler(self, rank: int, world: int) -> Sampler:
        if self._spec.augment.repeats > 1:
            from timm.data.distributed_sampler import RepeatAugSampler

            return RepeatAugSampler(self._train, num_replicas=world, rank=rank, num_repeats=self._spec.augment.repeats)
        return torch.utils.data.DistributedSampler(self._train, num_replicas=world, rank=rank, drop_last=True)

    def _batches(self, dataset, batch_size: int, **options) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            dataset,
            batch_size,
            num_workers=WORKERS,
            pin_memory=self._device.type == "cuda",
            **options,
        )
        for images, labels in loader:
            yield images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)
