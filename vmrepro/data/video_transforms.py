"""What happens to the pixels of a clip: decoded frames in, what a model takes out; chance only from a generator passed in.

Frames are uint8 ``(T, H, W, 3)``, a clip is float32 ``(3, T, size, size)``, normalised with the mean and deviation of ImageNet.
The steps and their order are the released ones (videomamba/video_sm/datasets, transforms); timm and torchvision do the work.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import RandomResizedCrop

from vmrepro.specs.schema import AugmentSpec

CROP_AREA = (0.08, 1.0)  # of the frame
CROP_ASPECT = (3 / 4, 4 / 3)  # width over height, drawn evenly in its logarithm
TRANSLATION = 0.45  # of the side of the crop; only policies that move by pixels read it, the others take it of the frame


def normalised(levels: Tensor) -> Tensor:
    """Grey levels 0 to 255, ``(..., 3, T, H, W)`` of any type, as float32 with ImageNet's mean and deviation taken out."""
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN, device=levels.device).view(3, 1, 1, 1)
    deviation = torch.tensor(IMAGENET_DEFAULT_STD, device=levels.device).view(3, 1, 1, 1)
    return (levels.float() / 255 - mean) / deviation


def crop_starts(longer: int, size: int, crops: int) -> list[int]:
    """Where square crops of ``size`` begin along a side of ``longer`` pixels: one in the centre, or three from end to end."""
    return [int(place * (longer - size) / 2) for place in ((1,) if crops == 1 else (0, 1, 2))]


def square_crops(frames: np.ndarray, crops: int = 1) -> Tensor:
    """The crops of a test, uint8 ``(crops, 3, T, size, size)``; size is the shorter side, that of ``read_frames(short_side=)``.

    crops along the longer side: 1 is the centre, 3 both ends as well.
    """
    height, width = frames.shape[1:3]
    longer, size = max(height, width), min(height, width)
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)
    return torch.stack([clip.narrow(2 if height > width else 3, start, size) for start in crop_starts(longer, size, crops)])


def views_of(frames: np.ndarray, crops: int = 1) -> Tensor:
    """The crops of :func:`square_crops` as a model takes them, float32 ``(crops, 3, T, size, size)``."""
    return normalised(square_crops(frames, crops))


class TrainTransform:
    """Makes one training clip of decoded frames, differently with every generator.

    One set of RandAugment operations for the whole clip (``spec.auto_augment``, a timm string "rand-..."; bicubic), one
    random resized crop (bilinear, no antialiasing), one flip, and one erased box whose noise differs from frame to frame.
    ValueError for settings that videos do not have.
    """

    def __init__(self, spec: AugmentSpec, size: int) -> None:
        if spec.color_jitter or spec.max_shift:
            raise ValueError("AugmentSpec.color_jitter and max_shift are for images: a recipe of videos leaves them out")
        if spec.auto_augment is not None and not spec.auto_augment.startswith("rand-"):
            raise ValueError(f"AugmentSpec.auto_augment must be a 'rand-...' policy for videos, got {spec.auto_augment!r}")
        self._size, self._hflip = size, spec.hflip
        options = {"translate_const": int(TRANSLATION * size), "interpolation": Image.Resampling.BICUBIC}
        self._augment = rand_augment_transform(spec.auto_augment, options) if spec.auto_augment else None
        self._erase = RandomErasing(spec.random_erasing, mode="pixel", device="cpu")

    def __call__(self, frames: np.ndarray, chance: np.random.Generator) -> Tensor:
        # Drawn whether they are used or not, so that one step's setting does not change the chance of another.
        for_augment, for_crop, for_box = (int(seed) for seed in chance.integers(2**32, size=3))
        flip = chance.random() < self._hflip
        if self._augment is not None:
            frames = self._augmented(frames, for_augment)
        clip = torch.from_numpy(frames).permute(3, 0, 1, 2)
        with _libraries_seeded(for_crop):
            top, left, height, width = RandomResizedCrop.get_params(clip, list(CROP_AREA), list(CROP_ASPECT))
        clip = clip[:, :, top : top + height, left : left + width].float()
        clip = functional.interpolate(clip, size=(self._size, self._size), mode="bilinear", align_corners=False)
        clip = normalised(clip)  # released before the crop; equal, for a bilinear weight sums to one, and less work
        clip = (clip.flip(-1) if flip else clip).contiguous()
        with _libraries_seeded(for_box):
            self._erase(clip.flatten(0, 1))  # frames as channels: timm draws one box for all, and the noise of each
        return clip

    def _augmented(self, frames: np.ndarray, seed: int) -> np.ndarray:
        augmented = []
        for frame in frames:
            with _libraries_seeded(seed):  # anew for each frame, so that all of them draw the same operations
                augmented.append(np.asarray(self._augment(Image.fromarray(frame))))
        return np.stack(augmented)


@contextlib.contextmanager
def _libraries_seeded(seed: int) -> Iterator[None]:
    """Inside, what timm and torchvision draw from the global generators follows from ``seed``; outside, nothing changes."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm reads this very generator
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed the GPU too
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
