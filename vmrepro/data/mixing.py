"""Mixup, cutmix and label smoothing of a batch (timm's, as the recipes use it), with chance from a seed."""

from __future__ import annotations

import numpy as np
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional

from vmrepro.specs.schema import AugmentSpec


class Mixing:
    """Turns images or clips and labels ``(batch,)`` into mixed ones and soft targets ``(batch, classes)``.

    Of a clip ``(C, T, H, W)`` cutmix replaces the same box in every frame, as the released video code does. A call with the
    same seed draws the same mixing, in every process of a distributed run too.
    """

    def __init__(self, spec: AugmentSpec, num_classes: int) -> None:
        self._smoothing, self._num_classes = spec.label_smoothing, num_classes
        self._mixup = None
        if spec.mixup > 0 or spec.cutmix > 0:
            self._mixup = Mixup(
                mixup_alpha=spec.mixup,
                cutmix_alpha=spec.cutmix,
                prob=spec.mixup_prob,
                switch_prob=spec.switch_prob,
                mode="batch",
                label_smoothing=spec.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        if self._mixup is None:
            one_hot = functional.one_hot(labels, self._num_classes).to(images.dtype)
            return images, one_hot * (1 - self._smoothing) + self._smoothing / self._num_classes
        np.random.seed(seed % 2**32)  # noqa: NPY002 - timm's Mixup reads this very generator
        # timm takes the third and fourth axis for height and width: frames go to the channels meanwhile.
        frames = images.flatten(1, 2) if images.ndim == 5 else images
        mixed, targets = self._mixup(frames, labels)
        return mixed.view_as(images), targets.to(images.dtype)  # timm's are float32, and the loss takes their type
