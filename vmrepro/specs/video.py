"""Trainings on videos: the ablations of Fig. 7, at three tiers.

The paper tier is the released fine-tuning of VideoMamba-Ti from its ImageNet weights (section 4.2), on SSV2 and K400. mini and
smoke take moving digits, whose motion stands for SSV2 (what happens in time) and whose digit for K400 (what is seen), and
pretrain on stills of them. What is compared stays; what it costs goes down.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vmrepro.specs.recipes import augment_of, recipe, train_of
from vmrepro.specs.schema import (
    SCANS,
    SIZES,
    TIERS,
    AugmentSpec,
    ClipSpec,
    DataSpec,
    Experiment,
    ModelSpec,
    StartSpec,
    Tier,
    TrainSpec,
)

BASE_FRAMES = 8  # of Fig. 7a
# Fig. 7b is a picture without numbers: its grid is ours. The first side, in pixels, is that of Fig. 7a.
FRAMES = {"smoke": (4, 8), "mini": (4, 8, 16), "paper": (8, 16, 32, 64)}
SIDES = {"smoke": (16, 24), "mini": (12, 16), "paper": (224, 288)}
DATA = {"smoke": ("motion", "digit"), "mini": ("motion", "digit"), "paper": ("ssv2", "k400")}
PRETRAINED = "videomamba_t16_in1k_res224.pth"  # the released file that the recipes start from
CLASSES = {"ssv2": 174, "k400": 400, "motion": 12, "digit": 10}
SCAN_CLAIMS = ("C61", "C62", "C63", "C64")
# Table rows that print the result of a cell. That of SSV2 at 288 pixels (t4_16) was tuned from its 224-pixel model instead.
ROWS = {("ssv2", 8, 224): ("t4_14",), ("ssv2", 16, 224): ("t4_15",), ("k400", 16, 224): ("t3_16",), ("k400", 32, 224): ("t3_17",)}
GRID_CLAIMS = {"ssv2": ("C66", "C68"), "k400": ("C66", "C67"), "motion": ("C66", "C68"), "digit": ("C66", "C67")}


def fig7(tier: Tier) -> list[Experiment]:
    """Scan orders (Fig. 7a), and frames by resolution on two data sets (Fig. 7b), sections 3.2 and 4.2; Ti throughout.

    Beside the seven orders, two of them from scratch, which claim C65 needs, and below the paper tier two negative controls.
    paper: 35 epochs of SSV2, 70 of K400, each cell from the ImageNet weights by the recipe of its frames (of SSV2 with 32 and 64
    frames none is released: that of 16). mini: under ten minutes on one H200 for all runs and seeds; smoke: a minute on two
    CPU cores.
    """
    if tier not in TIERS:
        raise ValueError(f"unknown tier {tier!r}: choose from {', '.join(TIERS)}")
    temporal, spatial = DATA[tier]
    side = SIDES[tier][0]
    base = cell(tier, temporal, BASE_FRAMES, side)
    rows = dict(zip(SCANS, (f"f7a_{number:02}" for number in range(1, 8)), strict=True))
    found = [
        replace(base, id=f"fig7a_{scan}", model=replace(base.model, scan=scan), reproduces=(row, *SCAN_CLAIMS, "C65"))
        for scan, row in rows.items()
    ]
    found[0] = replace(
        found[0], reproduces=(*found[0].reproduces, *ROWS.get((temporal, BASE_FRAMES, side), ()), *GRID_CLAIMS[temporal])
    )
    found += [
        replace(one, id=one.id.replace("7a_", "7a_scratch_"), start=None, reproduces=("C65",))
        for one in found
        if one.model.scan in ("spatial_first", "temporal_first")
    ]
    if tier != "paper":
        found += [
            replace(base, id=f"fig7a_control_{control}", data=replace(base.data, clip=replace(base.data.clip, control=control)))
            for control in ("shuffled", "single")
        ]
    return found + [
        replace(cell(tier, data, frames, pixels), reproduces=(*ROWS.get((data, frames, pixels), ()), *GRID_CLAIMS[data]))
        for data in (temporal, spatial)
        for pixels in SIDES[tier]
        for frames in FRAMES[tier]
        if (data, frames, pixels) != (temporal, BASE_FRAMES, side)
    ]


def cell(tier: Tier, data: str, frames: int, side: int) -> Experiment:
    """One training of the grid: spatial-first, from image weights, on clips of ``frames`` frames of ``side`` pixels."""
    id = f"fig7b_{data}_f{frames}_{side}px"
    if tier != "paper":
        return _small(tier, id, data, frames, side)
    released = min(frames, 16) if data == "ssv2" else frames
    values = recipe(f"{data}/videomamba_tiny/f{released}x224")
    clip = ClipSpec(
        num_frames=frames,
        sampling="segments" if data == "ssv2" else "sparse",
        test_clips=values["test_clips"],
        test_crops=values["test_crops"],
    )
    shape: dict[str, Any] = {"img_size": side, "num_classes": CLASSES[data]}
    name = "ssv2" if data == "ssv2" else "kinetics400"
    return Experiment(
        id=id,
        tier=tier,
        model=ModelSpec(**SIZES["ti"], **shape, num_frames=frames, drop_path_rate=values["drop_path"]),
        data=DataSpec(name=name, **shape, clip=clip, augment=augment_of(values)),
        train=train_of(values),
        start=StartSpec(checkpoint=PRETRAINED),
    )


def _small(tier: Tier, id: str, data: str, frames: int, side: int) -> Experiment:
    clip = ClipSpec(num_frames=frames)
    return Experiment(
        id=id,
        tier=tier,
        model=replace(_model(tier, data, side), num_frames=frames),
        data=_digits(tier, data, side, clip=clip, label=data),
        train=_schedule(tier),
        start=StartSpec(experiment=_pretraining(tier)),
    )


def _pretraining(tier: Tier) -> Experiment:
    """An image model of the digits, standing still somewhere on the canvas: what ImageNet is to the paper's models."""
    side = SIDES[tier][0]
    data = _digits(tier, "digit", side, label="digit")
    train = _schedule(tier)
    if tier == "mini":
        data, train = replace(data, videos=4800), replace(train, epochs=40, batch_size=48, lr=1e-3, warmup_epochs=4)
    return Experiment(id="fig7_pretraining", tier=tier, model=_model(tier, "digit", side), data=data, train=train)


def _model(tier: Tier, data: str, side: int) -> ModelSpec:
    sizes = {"depth": 2, "embed_dim": 8, "d_state": 4, "drop_path_rate": 0.0} if tier == "smoke" else SIZES["ti"]
    return ModelSpec(**sizes, img_size=side, patch_size=8 if tier == "smoke" else 4, num_classes=CLASSES[data])


def _digits(tier: Tier, data: str, side: int, **options: Any) -> DataSpec:
    """The digits, of the recipe's augmentation with label smoothing alone: what else it does would take longer trainings."""
    augment = AugmentSpec(label_smoothing=recipe("ssv2/videomamba_tiny/f8x224")["label_smoothing"])
    videos = {"videos": 240} if tier == "smoke" else {}
    return DataSpec(name="moving_digits", img_size=side, num_classes=CLASSES[data], augment=augment, **videos, **options)


def _schedule(tier: Tier) -> TrainSpec:
    smoke = tier == "smoke"
    return TrainSpec(
        epochs=4 if smoke else 12,
        batch_size=24 if smoke else 96,
        lr=2e-2 if smoke else 2e-3,
        warmup_epochs=1 if smoke else 2,
        weight_decay=recipe("ssv2/videomamba_tiny/f8x224")["weight_decay"],
        precision="fp64" if smoke else "auto",
        cpu_threads=1 if smoke else None,  # on tensors this small, threads wait for each other
    )
