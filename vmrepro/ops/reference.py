"""The definition of every operator: as the paper writes it, plain PyTorch, any float type, differentiable by autograd.

Arrays are channels-last, (batch, length, channels). Letters, with the paper's symbols (section 3.1, equations 1 to 5):

    u       the sequence that enters the scan, x(t)
    delta   step size, Δ, before bias and softplus
    A       state matrix, diagonal: one negative number per channel and state
    B, C    input and output projections of the state, chosen by the input
    D       skip from input to output
    h       hidden state, h(t)
    y       the sequence that leaves, y(t)
    z       gate

Where equation 4 discretises B exactly, this takes Δ·B, as the released code does (``csrc/selective_scan`` of its ``mamba``).
Types narrower than float32 are widened to it; results return to the type of the input.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ScanInputs(NamedTuple):
    """What one direction of the selective scan reads.

    ``B`` and ``C`` are (batch, length, state), (batch, length, groups, state), in which consecutive channels share a group,
    or fixed over time as (channels, state).
    """

    u: Tensor  # (batch, length, channels)
    delta: Tensor  # (batch, length, channels), before bias and softplus
    A: Tensor  # (channels, state), negative, float32 or wider
    B: Tensor
    C: Tensor
    D: Tensor | None = None  # (channels,)
    delta_bias: Tensor | None = None  # (channels,)


def available(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``; never, so None."""
    return None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The recurrence, one step of time after the other; see ``vmrepro.ops.selective_scan``."""
    wide = torch.promote_types(u.dtype, A.dtype)
    step = step_size(delta.to(wide), delta_bias, delta_softplus)
    channels, length = u.shape[-1], u.shape[1]
    h = A.new_zeros(u.shape[0], *A.shape, dtype=wide)
    rows = {}
    for t in reversed(range(length)) if reverse else range(length):
        delta_t, u_t = step[:, t, :, None], u[:, t, :, None].to(wide)
        B_t, C_t = (_at(V.to(wide), t, channels) for V in (B, C))
        h = torch.exp(delta_t * A) * h + delta_t * B_t * u_t
        rows[t] = (C_t * h).sum(-1)
    y = skip_and_gate(torch.stack([rows[t] for t in range(length)], dim=1), u, D, z)
    return (y, h) if return_last_state else y


def step_size(delta: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    """Step sizes (batch, length, channels) from their logits: plus bias (channels,), then softplus, the identity above 20."""
    delta = delta if bias is None else delta + bias.to(delta.dtype)
    return F.softplus(delta, threshold=20) if softplus else delta


def skip_and_gate(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """(y + D·u)·SiLU(z), computed in y's type and returned in u's; (batch, length, channels), D (channels,)."""
    y = y if D is None else torch.addcmul(y, D.to(y.dtype), u.to(y.dtype))
    y = y if z is None else y * F.silu(z.to(y.dtype))
    return y.to(u.dtype)


def _at(V: Tensor, t: int, channels: int) -> Tensor:
    """B or C at time t, in a shape that broadcasts against (batch, channels, state)."""
    if V.ndim == 2:
        return V
    if V.ndim == 3:
        return V[:, t, None]
    return V[:, t].repeat_interleave(channels // V.shape[2], dim=1)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Literal["silu"] | None = None, reverse: bool = False
) -> Tensor:
    """bias + Σ_j weight_j · x_{t-(width-1)+j}, with t counted from the end if reverse; see ``vmrepro.ops.causal_conv1d``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    width, length = weight.shape[1], x.shape[1]
    before = (0, width - 1) if reverse else (width - 1, 0)
    padded = F.pad(x.to(wide), (0, 0, *before))
    out = torch.zeros((), dtype=wide, device=x.device) if bias is None else bias.to(wide)
    for j in range(width):
        start = width - 1 - j if reverse else j
        out = torch.addcmul(out, padded[:, start : start + length], weight[:, j].to(wide))
    return (F.silu(out) if activation == "silu" else out).to(x.dtype)


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(RMSNorm(residual + hidden), residual + hidden); see ``vmrepro.ops.add_rms_norm``."""
    stream = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    stream = stream if residual is None else residual + stream
    normed = stream * torch.rsqrt(stream.square().mean(-1, keepdim=True) + eps) * weight
    return normed.to(hidden.dtype), stream
