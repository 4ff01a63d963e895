"""Which parameters decay, and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from timm.optim import param_groups_weight_decay

from vmrepro.models import VideoMamba
from vmrepro.specs.schema import TrainSpec

# What the released layer decay reaches, having passed over the blocks (``optim_factory.py``).
INPUT = ("patch_embed.", "pos_embed", "cls_token")


def make_optimiser(model: VideoMamba, spec: TrainSpec) -> torch.optim.AdamW:
    """AdamW in groups: vectors, biases and the names in ``no_weight_decay`` do not decay, everything else does.

    So A_log, a matrix, decays in spite of Mamba's intention, as in the released training. Each group carries the factor
    of its learning rate, "lr_scale": ``spec.input_lr_scale`` for the parameters under ``INPUT``, 1 for the others.
    """
    scaled = {id(parameter) for name, parameter in model.named_parameters() if name.startswith(INPUT)}
    groups = []
    for group in param_groups_weight_decay(model, spec.weight_decay, no_weight_decay_list=model.no_weight_decay()):
        for factor, inside in (1.0, False), (spec.input_lr_scale, True):
            members = [parameter for parameter in group["params"] if (id(parameter) in scaled) == inside]
            groups += [{**group, "params": members, "lr_scale": factor}] if members else []
    # Fused, a small model's step costs a GPU a few launches instead of a hundred.
    on_gpu = next(model.parameters()).is_cuda
    optimiser = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=on_gpu)
    set_rate(optimiser, spec.lr)
    return optimiser


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of ``make_optimiser`` its share of a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_scale"]


def learning_rate(spec: TrainSpec, step: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step ``step`` (from 0): linear warm-up to ``lr``, then half a cosine down to ``min_lr``.

    ``schedule="epoch_lagged"`` is what the released image code does: the rate changes once an epoch and lags one
    epoch behind, so that the first two epochs run at ``warmup_lr``.
    """
    if spec.schedule == "epoch_lagged":
        epoch = max(step // steps_per_epoch - 1, 0)
        if epoch < spec.warmup_epochs:
            return spec.warmup_lr + (spec.lr - spec.warmup_lr) * epoch / spec.warmup_epochs
        return _cosine(spec, epoch / spec.epochs)
    warmup = spec.warmup_epochs * steps_per_epoch
    if step < warmup:
        return spec.warmup_lr + (spec.lr - spec.warmup_lr) * step / max(warmup - 1, 1)
    return _cosine(spec, (step - warmup) / (spec.epochs * steps_per_epoch - warmup))


def _cosine(spec: TrainSpec, progress: float) -> float:
    return spec.min_lr + (spec.lr - spec.min_lr) * (1 + math.cos(math.pi * progress)) / 2
