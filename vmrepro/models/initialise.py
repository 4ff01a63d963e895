"""The value of every parameter at the start of training, group by group.

Two rules. "released" is what the released constructors leave after their three passes (mixer, sweep over the model,
rescaled output projections): the sweep overwrites Mamba's step-size initialisation, so every step starts at softplus(0).
"mamba" differs in the step-size projections only, which keep what Mamba intends.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from vmrepro.models.blocks import BiMambaMixer, LayerNorm, RMSNorm

STD = 0.02  # of the truncated normals (released segm_init_weights)
STEP_RANGE = (1e-3, 0.1)  # first step sizes under "mamba" (released mamba_simple.py, dt_min and dt_max)
STEP_FLOOR = 1e-4


@torch.no_grad()
def initialise(model: nn.Module, *, depth: int, rule: Literal["released", "mamba"] = "released") -> None:
    """Set every parameter of a VideoMamba from torch's global generator.

    depth: number of blocks, which scales the output projections. Sources: released ``video_sm/models/videomamba.py``
    (``segm_init_weights``, ``_init_weights``) and ``mamba_simple.py``.
    """
    for name, parameter in model.named_parameters(recurse=False):
        if name == "pos_embed":
            nn.init.trunc_normal_(parameter, std=STD)
        else:  # class token and temporal table: no released code ever fills them
            nn.init.zeros_(parameter)
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, BiMambaMixer):
            module.reset_state_matrices()
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.reset_parameters()  # patches and depthwise: the library's default, in every released pass
        elif isinstance(module, RMSNorm | LayerNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            initialise_linear(module)
            if name == "out_proj":  # the branch that feeds the residual stream, once per block (GPT-2's scaling)
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5)).div_(math.sqrt(depth))
            elif name in ("dt_proj", "dt_proj_b") and rule == "mamba":
                _initialise_step(module)


def initialise_linear(linear: nn.Linear) -> None:
    """Weight from a normal truncated at ±2 with deviation 0.02, bias zero: the rule of every projection and head."""
    nn.init.trunc_normal_(linear.weight, std=STD)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _initialise_step(projection: nn.Linear) -> None:
    """Steps log-uniform in [0.001, 0.1] at zero input (Mamba's rule, which the released sweep overwrites)."""
    bound = projection.in_features**-0.5
    nn.init.uniform_(projection.weight, -bound, bound)
    low, high = map(math.log, STEP_RANGE)
    step = torch.empty_like(projection.bias).uniform_(low, high).exp().clamp(min=STEP_FLOOR)
    projection.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
