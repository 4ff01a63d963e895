"""Files or seeds in, batches out: ``build`` makes the data set that a spec names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from vmrepro.data.digits import Digits
    from vmrepro.data.imagenet import ImageNet
    from vmrepro.data.moving_digits import MovingDigits
    from vmrepro.data.video import Videos
    from vmrepro.specs.schema import DataSpec

__all__ = ["build"]


def build(spec: DataSpec, seed: int, device: torch.device) -> Digits | ImageNet | MovingDigits | Videos:
    """The data set of ``spec``; its order and augmentation follow from ``seed``. FileNotFoundError names a missing root."""
    if spec.name == "digits":
        from vmrepro.data.digits import Digits

        return Digits(spec, seed, device)
    if spec.name == "moving_digits":
        from vmrepro.data.moving_digits import MovingDigits

        return MovingDigits(spec, seed, device)
    if spec.clip is not None:
        from vmrepro.data.video import Videos

        return Videos(spec, seed, device)
    from vmrepro.data.imagenet import ImageNet

    return ImageNet(spec, seed, device)
