"""Every experiment by id, with the claims it answers, at three tiers.

The paper tier is written down, from the released recipes; mini and smoke follow from it by the pure function ``shrink``, or, for
videos, in :mod:`vmrepro.specs.video`.
"""

from __future__ import annotations

import difflib
from dataclasses import replace

from vmrepro.specs import video
from vmrepro.specs.recipes import augment_of, recipe, train_of
from vmrepro.specs.schema import SIZES, TIERS, AugmentSpec, DataSpec, DistillSpec, Experiment, ModelSpec, Tier

# Seeds of each experiment; a claim takes three to be judged, and the paper names none. Smoke judges nothing.
SEEDS = {"smoke": 2, "mini": 3, "paper": 3}

# The teacher of the released distillation scripts is S for M and for B alike.
TEACHER = "s"
RECIPE_OF_SIZE = {
    "s": "imagenet/videomamba_small/res224",
    "m": "imagenet_distill/videomamba_middle/res224",
    "b": "imagenet_distill/videomamba_base/res224",
}
# Of the training sets as first published; of K400 fewer can be had today.
TRAIN_IMAGES = {"imagenet": 1_281_167, "digits": 898, "kinetics400": 246_245, "ssv2": 168_913}
MINI_EPOCHS = 100


def imagenet(size: str, *, id: str, reproduces: tuple[str, ...], distill: DistillSpec | None = None) -> Experiment:
    """ImageNet-1K at 224 pixels from scratch by the released recipe of ``size`` (section 4.1); 300 epochs.

    M and B were released with distillation only: without ``distill`` this is the same recipe less the teacher.
    """
    values = recipe(RECIPE_OF_SIZE[size])
    return Experiment(
        id=id,
        tier="paper",
        model=ModelSpec(
            **SIZES[size],
            drop_path_rate=values["drop_path"],
            distill_dim=distill.teacher.model.embed_dim if distill else None,
        ),
        data=DataSpec(name="imagenet", img_size=values["img_size"], num_classes=1000, augment=augment_of(values)),
        train=train_of(values, schedule="epoch_lagged"),
        distill=distill,
        reproduces=reproduces,
    )


def fig6(tier: Tier) -> list[Experiment]:
    """Self-distillation (Fig. 6a) and its early stopping (Fig. 6b), sections 3.3 and 4.1.

    The paper does not say when the teacher falls silent in Fig. 6b, nor for which size: here half-way, for M.
    paper: 300 epochs of ImageNet each, about three days on 16 A100 for M (the authors, in the public issue 81);
    mini: eight minutes on one H200 for all runs and seeds; smoke: under a minute on two CPU cores.
    """
    s = imagenet("s", id="fig6_s", reproduces=("C21", "C22", "C23"))
    # A teacher is the S of the same tier and seed: the very run that is drawn as S.
    taught = DistillSpec(teacher=s)
    stopped = replace(taught, stop_epoch=150)
    paper = [
        s,
        imagenet("m", id="fig6_m", reproduces=("C22",)),
        imagenet("b", id="fig6_b", reproduces=("C21", "C24")),
        imagenet("m", id="fig6_m_distill", reproduces=("C23", "C26"), distill=taught),
        imagenet("b", id="fig6_b_distill", reproduces=("C24",), distill=taught),
        imagenet("m", id="fig6_m_distill_stopped", reproduces=("C26",), distill=stopped),
    ]
    return [shrink(experiment, tier) for experiment in paper]


FIGURES = {"fig6": fig6, "fig7": video.fig7}


def shrink(experiment: Experiment, tier: Tier) -> Experiment:
    """The same experiment at ``tier``: what is compared stays, what it costs goes down.

    mini keeps depth, width, stochastic depth, distillation and mixing, and takes the embedded digits at their own
    8 x 8 pixels, in patches of 2 x 2. smoke also divides depth by 16, width by 24 and the state size by 4, and computes
    in float64, so that a notebook prints the same digits on every processor.
    """
    if tier == "paper":
        return experiment
    model, data, train = experiment.model, experiment.data, experiment.train
    smoke = tier == "smoke"
    epochs = 5 if smoke else MINI_EPOCHS
    distill = experiment.distill
    if distill is not None:
        stop = None if distill.stop_epoch is None else round(epochs * distill.stop_epoch / train.epochs)
        distill = replace(distill, teacher=shrink(distill.teacher, tier), stop_epoch=stop)
    augment = AugmentSpec(
        max_shift=1,
        mixup=data.augment.mixup,
        cutmix=data.augment.cutmix,
        mixup_prob=0.25 if smoke else data.augment.mixup_prob,  # so that a few epochs show learning
        switch_prob=data.augment.switch_prob,
        label_smoothing=data.augment.label_smoothing,
    )
    return replace(
        experiment,
        tier=tier,
        model=replace(
            model,
            depth=round(model.depth / 16) if smoke else model.depth,
            embed_dim=model.embed_dim // 24 if smoke else model.embed_dim,
            img_size=8,
            patch_size=2,
            in_chans=1,
            num_classes=10,
            d_state=model.d_state // 4 if smoke else model.d_state,
            drop_path_rate=0.0 if smoke else model.drop_path_rate,
            distill_dim=None if distill is None else distill.teacher.model.embed_dim,
        ),
        data=DataSpec(name="digits", img_size=8, num_classes=10, augment=augment),
        train=replace(
            train,
            epochs=epochs,
            batch_size=64 if smoke else 128,
            lr=1e-2 if smoke else 1e-3,
            warmup_epochs=max(1, round(epochs * train.warmup_epochs / train.epochs)),
            schedule="step",
            precision="fp64" if smoke else "auto",
            cpu_threads=1 if smoke else None,  # on tensors this small, threads wait for each other
        ),
        distill=distill,
    )


def experiments(tier: Tier) -> list[Experiment]:
    """Every experiment there is, at ``tier``."""
    if tier not in TIERS:
        raise ValueError(f"unknown tier {tier!r}: choose from {', '.join(TIERS)}")
    return [experiment for figure in FIGURES.values() for experiment in figure(tier)]


def find(id: str, tier: Tier) -> list[Experiment]:
    """The experiments that ``id`` names: all of a figure ("fig6"), or one ("fig6_m_distill"). ValueError names the nearest."""
    everything = experiments(tier)
    if id in FIGURES:
        return FIGURES[id](tier)
    chosen = [experiment for experiment in everything if experiment.id == id]
    if not chosen:
        known = [*FIGURES, *(experiment.id for experiment in everything)]
        near = difflib.get_close_matches(id, known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"unknown experiment {id!r}: {advice}")
    return chosen


def seeds(tier: Tier, first: int = 0, count: int = 0) -> list[int]:
    """``count`` seeds from ``first`` on; as many as ``tier`` asks for when ``count`` is 0."""
    if first < 0 or count < 0:
        raise ValueError(f"seeds are numbers from 0 on, and so is their count; got first seed {first}, count {count}")
    return list(range(first, first + (count or SEEDS[tier])))


def train_images(experiment: Experiment) -> int:
    """Images or clips in one pass over the training set, for costs."""
    data = experiment.data
    if data.name == "moving_digits":
        return data.videos
    # Each video is decoded once and augmented ``repeats`` times; of images the repeats share one pass.
    return TRAIN_IMAGES[data.name] * (1 if data.clip is None else data.augment.repeats)
