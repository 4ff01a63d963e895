"""The vocabulary of an experiment: frozen values that say what is built, trained and measured (no torch here).

Field names of :class:`ModelSpec` are the released constructor's where it has one. Nonsense is refused when a value
is made, so a spec that exists can be run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

Tier = Literal["smoke", "mini", "paper"]
TIERS: tuple[Tier, ...] = ("smoke", "mini", "paper")

# Table 1 of the paper: depth (blocks) and width (channels) of each size.
SIZES: dict[str, dict[str, int]] = {
    "ti": {"depth": 24, "embed_dim": 192},
    "s": {"depth": 24, "embed_dim": 384},
    "m": {"depth": 32, "embed_dim": 576},
    "b": {"depth": 24, "embed_dim": 768},
}


# Fig. 7a, row by row: the orders in which the tokens of a clip are scanned; ``models/scan_order.py`` says what each means here.
SCANS = (
    "spatial_first",
    "temporal_first",
    "spatiotemporal_v1",
    "spatiotemporal_v2",
    "half_spatial_half_temporal",
    "half_temporal_half_spatial",
    "alternating",
)


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _choice(owner: str, field: str, value: object, allowed: tuple) -> None:
    _require(value in allowed, f"{owner}.{field} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Sizes and switches of one VideoMamba (paper section 3.2, Table 1).

    ``num_frames=None`` is the image model, which has no temporal table. Derived sizes are properties.
    """

    depth: int
    embed_dim: int
    img_size: int | tuple[int, int] = 224  # pixels; (height, width) when not square
    patch_size: int = 16  # pixels
    stride: int | None = None  # pixels between patches; None: patch_size (no overlap)
    in_chans: int = 3
    num_classes: int = 1000  # 0: no classifier, the model gives the class token
    num_frames: int | None = None
    kernel_size: int = 1  # tubelet length in frames; 1 for an image
    scan: str = "spatial_first"  # one of SCANS
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None  # None: ceil(embed_dim / 16)
    drop_path_rate: float = 0.1
    drop_rate: float = 0.0  # dropout after the position tables
    fc_drop_rate: float = 0.0  # dropout before the classifier
    norm: Literal["rms", "layer"] = "rms"
    bidirectional: bool = True
    distill_dim: int | None = None  # width of the teacher that a student's extra head imitates
    initialisation: Literal["released", "mamba"] = "released"

    def __post_init__(self) -> None:
        positive = ("depth", "embed_dim", "patch_size", "in_chans", "kernel_size", "d_state", "d_conv", "expand")
        for name in positive:
            value = getattr(self, name)
            _require(isinstance(value, int) and value > 0, f"ModelSpec.{name} must be a positive integer, got {value!r}")
        classes = self.num_classes
        _require(
            isinstance(classes, int) and classes >= 0, f"ModelSpec.num_classes must be 0 or a positive integer, got {classes!r}"
        )
        for name in ("stride", "num_frames", "dt_rank", "distill_dim"):
            value = getattr(self, name)
            _require(
                value is None or (isinstance(value, int) and value > 0),
                f"ModelSpec.{name} must be None or a positive integer, got {value!r}",
            )
        for name in ("drop_path_rate", "drop_rate", "fc_drop_rate"):
            _require(0.0 <= getattr(self, name) < 1.0, f"ModelSpec.{name} must lie in [0, 1), got {getattr(self, name)!r}")
        _choice("ModelSpec", "norm", self.norm, ("rms", "layer"))
        _choice("ModelSpec", "initialisation", self.initialisation, ("released", "mamba"))
        _choice("ModelSpec", "scan", self.scan, SCANS)
        _require(
            self.scan == SCANS[0] or (self.num_frames is not None and self.bidirectional),
            f"ModelSpec.scan {self.scan!r} mixes the space and time of a clip, both ways: it needs num_frames and bidirectional",
        )
        # A list from JSON, a pair from timm: a square has one spelling, hence one digest.
        size = tuple(self.img_size) if isinstance(self.img_size, list | tuple) else (self.img_size, self.img_size)
        _require(
            len(size) == 2 and all(isinstance(side, int) for side in size),
            f"ModelSpec.img_size must be an integer or (height, width), in pixels, got {self.img_size!r}",
        )
        object.__setattr__(self, "img_size", size[0] if size[0] == size[1] else size)
        height, width = self.image_hw
        _require(
            min(height, width) >= self.patch_size,
            f"ModelSpec.img_size {self.img_size!r} is smaller than one patch of {self.patch_size} pixels",
        )
        _require(
            self.num_frames is not None or self.kernel_size == 1,
            f"ModelSpec.kernel_size {self.kernel_size} is a tubelet of several frames, and an image model (num_frames=None) "
            "takes one: give num_frames, or kernel_size=1",
        )
        _require(
            self.num_frames is None or self.num_frames % self.kernel_size == 0,
            f"ModelSpec.num_frames {self.num_frames} is not a multiple of the tubelet length kernel_size={self.kernel_size}",
        )

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Patches per column and per row."""
        step = self.stride or self.patch_size
        return tuple((side - self.patch_size) // step + 1 for side in self.image_hw)

    @property
    def time_steps(self) -> int:
        """Tubelets along time (1 for an image)."""
        return 1 if self.num_frames is None else self.num_frames // self.kernel_size

    @property
    def length(self) -> int:
        """Tokens in the sequence, class token included."""
        height, width = self.grid_hw
        return 1 + self.time_steps * height * width

    @property
    def inner_dim(self) -> int:
        return self.expand * self.embed_dim

    @property
    def step_rank(self) -> int:
        """Rank of the step-size projection."""
        return self.dt_rank or math.ceil(self.embed_dim / 16)


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """What happens to a training image, and to a batch of them (paper section 4.1: the DeiT recipe)."""

    auto_augment: str | None = None  # a timm policy string
    color_jitter: float | None = None  # timm ignores it while auto_augment is set
    random_erasing: float = 0.0  # probability
    hflip: float = 0.0  # probability
    max_shift: int = 0  # pixels; random translation, for the small embedded images
    repeats: int = 1  # times each image is seen per pass, differently augmented
    mixup: float = 0.0  # Beta parameter; 0 is off
    cutmix: float = 0.0
    mixup_prob: float = 1.0  # chance that a batch is mixed at all
    switch_prob: float = 0.5  # chance of cutmix when both are on
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("random_erasing", "hflip", "mixup_prob", "switch_prob", "label_smoothing"):
            value = getattr(self, name)
            _require(0.0 <= value <= 1.0, f"AugmentSpec.{name} must lie in [0, 1], got {value!r}")
        for name in ("mixup", "cutmix", "max_shift"):
            value = getattr(self, name)
            _require(value >= 0, f"AugmentSpec.{name} must be zero or more, got {value!r}")
        _require(self.repeats >= 1, f"AugmentSpec.repeats must be one or more, got {self.repeats!r}")


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Which frames of a video make a clip, and which views of it a test takes (paper section 4.2; released loaders).

    ``control`` makes a negative control: the frames of a clip in random order, or its middle frame alone, repeated.
    """

    num_frames: int
    sampling: Literal["sparse", "segments", "dense"] = "sparse"  # as released for K400; for SSV2; dense windows
    stride: int = 4  # frames from one of a dense clip to the next
    test_clips: int = 1  # at different times
    test_crops: int = 1  # along the longer side: 1 is the centre, 3 both ends as well
    control: Literal[None, "shuffled", "single"] = None

    def __post_init__(self) -> None:
        _choice("ClipSpec", "sampling", self.sampling, ("sparse", "segments", "dense"))
        _choice("ClipSpec", "control", self.control, (None, "shuffled", "single"))
        for name in ("num_frames", "stride", "test_clips"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value > 0, f"ClipSpec.{name} must be a positive integer, got {value!r}")
        _choice("ClipSpec", "test_crops", self.test_crops, (1, 3))

    @property
    def views(self) -> int:
        """Clips times crops that a test averages over."""
        return self.test_clips * self.test_crops


IMAGES = ("digits", "imagenet")
VIDEOS = ("moving_digits", "kinetics400", "ssv2")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set and everything about it that decides the score.

    ``clip`` belongs to videos. Moving digits without one are still images of the same canvas, to pretrain on.
    """

    name: Literal["digits", "imagenet", "moving_digits", "kinetics400", "ssv2"]
    img_size: int
    num_classes: int
    augment: AugmentSpec = AugmentSpec()
    crop_ratio: float = 0.875  # test, images: resize to img_size / crop_ratio, then crop the centre
    clip: ClipSpec | None = None
    label: Literal["motion", "digit"] = "motion"  # moving digits: what is asked, how it moves or which digit it is
    videos: int = 2400  # moving digits: to train on (stills too); half as many test

    def __post_init__(self) -> None:
        _choice("DataSpec", "name", self.name, IMAGES + VIDEOS)
        _choice("DataSpec", "label", self.label, ("motion", "digit"))
        _require(self.videos > 1, f"DataSpec.videos must be 2 or more, got {self.videos!r}")
        fits = self.clip is None if self.name in IMAGES else self.clip is not None or self.name == "moving_digits"
        _require(
            fits, f"DataSpec.clip is for videos, {', '.join(VIDEOS)}, and they need one; got {self.name!r} and {self.clip!r}"
        )
        _require(
            self.name != "moving_digits" or self.clip is not None or self.label == "digit",
            "DataSpec.label must be 'digit' for moving digits without a clip: a still image has no motion",
        )


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Optimiser and schedule. ``lr`` is the peak rate actually used, after any batch scaling."""

    epochs: int
    batch_size: int  # images per optimiser step over all processes
    lr: float
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup_epochs: int = 5
    schedule: Literal["step", "epoch_lagged"] = "step"  # epoch_lagged: one epoch behind, as the released image code runs
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    input_lr_scale: float = 1.0  # of patch kernel, spatial positions and class token: all that released layer decay reaches
    clip_grad: float | None = None
    precision: Literal["auto", "fp64", "fp32", "bf16"] = "auto"  # auto: bf16 autocast on a GPU, fp32 on a CPU
    cpu_threads: int | None = None  # None: torch's own choice

    def __post_init__(self) -> None:
        _choice("TrainSpec", "schedule", self.schedule, ("step", "epoch_lagged"))
        _choice("TrainSpec", "precision", self.precision, ("auto", "fp64", "fp32", "bf16"))
        _require(self.epochs > 0 and self.batch_size > 0, "TrainSpec.epochs and batch_size must be positive")
        for name in ("lr", "min_lr", "warmup_lr", "weight_decay", "input_lr_scale"):
            value = getattr(self, name)
            _require(0.0 <= value < math.inf, f"TrainSpec.{name} must be a finite number, zero or more, got {value!r}")
        _require(
            0 <= self.warmup_epochs <= self.epochs,
            f"TrainSpec.warmup_epochs must lie between 0 and epochs = {self.epochs}, got {self.warmup_epochs}",
        )
        if isinstance(self.betas, list):
            object.__setattr__(self, "betas", tuple(self.betas))


@dataclass(frozen=True, kw_only=True)
class DistillSpec:
    """Self-distillation (paper section 3.3): a smaller trained model guides the final features of a larger one."""

    teacher: Experiment  # trained first, then frozen
    loss: Literal["cosine", "l2"] = "cosine"  # cosine: released code, per token 2 - 2 cos; l2: the paper's wording
    weight: float = 1.0
    stop_epoch: int | None = None  # early stopping (Fig. 6b): from this epoch on the teacher is silent

    def __post_init__(self) -> None:
        _choice("DistillSpec", "loss", self.loss, ("cosine", "l2"))


@dataclass(frozen=True, kw_only=True)
class StartSpec:
    """Weights that a training begins from: those of an experiment that is run first, or a released file by its name."""

    experiment: Experiment | None = None
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        _require(
            (self.experiment is None) != (self.checkpoint is None),
            "StartSpec takes an experiment or a checkpoint file, one of the two",
        )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training that can be run, reported and judged. ``reproduces`` names rows and claims of the paper by id."""

    id: str
    tier: Tier
    model: ModelSpec
    data: DataSpec
    train: TrainSpec
    distill: DistillSpec | None = None
    start: StartSpec | None = None  # None: from scratch
    reproduces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _choice("Experiment", "tier", self.tier, TIERS)
        frames = None if self.data.clip is None else self.data.clip.num_frames
        _require(
            self.model.num_frames == frames, f"{self.id}: the model takes {self.model.num_frames} frames, the data gives {frames}"
        )
        _require(
            self.model.num_classes == self.data.num_classes,
            f"{self.id}: the model has {self.model.num_classes} classes, the data {self.data.num_classes}",
        )
        if self.distill is not None:
            stop = self.distill.stop_epoch
            _require(
                stop is None or 0 < stop < self.train.epochs,
                f"{self.id}: DistillSpec.stop_epoch must lie inside the {self.train.epochs} epochs, got {stop}",
            )
            want = self.distill.teacher.model.embed_dim
            _require(
                self.model.distill_dim == want,
                f"{self.id}: ModelSpec.distill_dim is {self.model.distill_dim}, the teacher's width is {want}",
            )


def to_dict(spec: Any) -> dict[str, Any]:
    """The spec with every default written out, as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(spec)))


def digest(value: Any) -> str:
    """Twelve hexadecimal digits that depend on the content of a JSON value and on nothing else."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
