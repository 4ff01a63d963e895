"""What is measured for Fig. 1: models, clip lengths and batches whose speed and memory are compared (no torch here)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vmrepro.specs.schema import SIZES, TIERS, ModelSpec, Tier

Attention = Literal["joint_naive", "joint_fused", "divided"]
CLASSES = 400
# The paper's baseline is DeiT-Ti over all tokens of a clip ("TimeSformer-Ti"); heads are DeiT's.
DEIT_TI = {"depth": 12, "width": 192, "heads": 3}
MOST_CLIPS = 128  # the batch of the paper's Fig. 1, and the largest tried
MOST_FRAMES = 4096  # of a batch: more would only take longer
SLOWEST = {"videomamba_chunked": 16}  # frames: where a subject on a GPU would take minutes


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """A video transformer: joint attention over space and time, which materialises its scores or not, or divided attention."""

    kind: Attention
    num_frames: int
    img_size: int
    depth: int
    width: int
    heads: int
    patch_size: int = 16
    num_classes: int = CLASSES

    @property
    def length(self) -> int:
        """Tokens of a clip, class token included."""
        return 1 + self.num_frames * (self.img_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model at one clip length: what a forward pass, or a training step, takes for ``batch`` clips, or the most that fit.

    subject: the name of the curve. backend: of VideoMamba's operators. batch: None for the largest power of two that fits, up
    to ``MOST_CLIPS`` and ``MOST_FRAMES``. graph: timed as a CUDA graph, without the gaps between launches. seconds: about how
    long it is repeated.
    """

    subject: str
    model: ModelSpec | AttentionSpec
    backend: str | None = None
    batch: int | None = None
    train: bool = False
    graph: bool = False
    precision: Literal["bf16", "fp32"] = "bf16"
    seconds: float = 1.5


BACKENDS = {"smoke": ("chunked",), "mini": ("cuda", "mamba_ssm", "chunked"), "paper": ("cuda", "mamba_ssm", "chunked")}
BATCHES = {"smoke": (1,), "mini": (4, None), "paper": (MOST_CLIPS, None)}
FRAMES = {"smoke": (16, 32, 64, 128), "mini": (8, 16, 32, 64, 128, 256), "paper": (8, 16, 32, 64)}


def fig1(tier: Tier) -> list[Measurement]:
    """Throughput and memory of VideoMamba-Ti and of attention against clip length (Fig. 1, claims C01 to C04).

    mini: 224 pixels on one GPU, at an equal batch of 4 and at the largest that fits, five minutes on one H200. paper: the
    batch of 128 that the paper states, and its clip lengths. smoke: tiny models on a CPU, for the shape of the curves.
    """
    if tier not in TIERS:
        raise ValueError(f"unknown tier {tier!r}: choose from {', '.join(TIERS)}")
    smoke = tier == "smoke"
    timing = {"precision": "fp32", "seconds": 0.4} if smoke else {}
    return [
        Measurement(subject=subject, model=model, backend=backend, batch=batch, **timing)
        for frames in FRAMES[tier]
        for batch in BATCHES[tier]
        for subject, model, backend in _subjects(tier, frames)
        if smoke or subject not in SLOWEST or (batch is not None and frames <= SLOWEST[subject])
    ]


def _subjects(tier: Tier, frames: int) -> Iterator[tuple[str, ModelSpec | AttentionSpec, str | None]]:
    smoke = tier == "smoke"
    side, attention = (64, {"depth": 2, "width": 48, "heads": 3}) if smoke else (224, DEIT_TI)
    mamba = {"depth": 2, "embed_dim": 48, "d_state": 4} if smoke else SIZES["ti"]
    for backend in BACKENDS[tier]:
        model = ModelSpec(**mamba, img_size=side, num_frames=frames, num_classes=CLASSES)
        yield f"videomamba_{backend}", model, backend
    for kind in ("joint_naive", "joint_fused") if smoke else ("joint_naive", "joint_fused", "divided"):
        yield kind, AttentionSpec(kind=kind, num_frames=frames, img_size=side, **attention), None


FIGURES = {"fig1": fig1}
CLAIMS = {"fig1": ("C01", "C02", "C03", "C04")}
