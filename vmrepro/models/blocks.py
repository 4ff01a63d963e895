"""The parts of one VideoMamba block: normalisation, the two-way mixer, and the residual step that joins them.

Tensors are channels-last. Letters, with the paper's symbols (section 3.1, equations 1 to 5):

    d    width of the model
    di   inner width, expand·d
    N    state size
    R    rank of the step-size projection
    A    state matrix, negative, (di, N); stored as log(-A)
    B, C input and output projections of the state, chosen by the input, (batch, length, N)
    D    skip from the input of the scan to its output, (di,)
    Δ    step size, (batch, length, di)
    u    sequence that enters the scan, (batch, length, di)
    z    gate, (batch, length, di)

Parameter names, and the order in which they are registered, are those of the released checkpoints; ``_b`` marks the
backward direction.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmrepro.models.scan_order import ScanOrder
from vmrepro.ops import (
    MixerWay,
    ScanInputs,
    add_norm_mix,
    add_rms_norm,
    bidirectional_conv,
    bidirectional_scan,
    causal_conv1d,
    selective_scan,
)

EPS = 1e-5  # of both norms (released constructor, norm_epsilon)


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if that would narrow it (float64 stays float64)."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class RMSNorm(nn.Module):
    """Adds to the residual stream and normalises it by its root mean square; has a weight (d,) and no bias."""

    def __init__(self, width: int, *, backend: str = "auto") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.backend = backend

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(normed, in hidden's type; hidden + residual, in at least float32), both (..., d) as the inputs are."""
        return add_rms_norm(hidden, residual, self.weight, EPS, backend=self.backend)


class LayerNorm(nn.LayerNorm):
    """As ``RMSNorm`` with the mean removed and a bias: what the released ``rms_norm=False`` selects."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(normed, in hidden's type; hidden + residual, in at least float32), both (..., d) as the inputs are."""
        residual = widen(hidden) if residual is None else residual + hidden
        weight, bias = self.weight.to(residual.dtype), self.bias.to(residual.dtype)
        return F.layer_norm(residual, self.normalized_shape, weight, bias, self.eps).to(hidden.dtype), residual


def make_norm(kind: Literal["rms", "layer"], width: int, *, backend: str = "auto") -> RMSNorm | LayerNorm:
    """The norm that ``ModelSpec.norm`` names."""
    return RMSNorm(width, backend=backend) if kind == "rms" else LayerNorm(width)


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches the calls of the module or of a part of it."""
    return any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in module.modules())


def scale_samples(hidden: Tensor, factors: Tensor | None) -> Tensor:
    """hidden (batch, ...) times a factor for each sample, (batch,), or as it is without factors."""
    return hidden if factors is None else hidden * factors.to(hidden.dtype).view(-1, *(1,) * (hidden.ndim - 1))


class DropPath(nn.Module):
    """Zeroes whole samples with probability ``rate`` while training and scales the others by 1/(1 - rate), as timm's does."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, hidden: Tensor) -> Tensor:
        """A tensor like hidden, (batch, ...)."""
        return scale_samples(hidden, self.draw(hidden))

    def draw(self, hidden: Tensor) -> Tensor | None:
        """A factor for each sample of hidden, (batch,), in at least float32: 0 or 1/(1 - rate); None where nothing is dropped."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        return widen(hidden.new_empty(len(hidden)).bernoulli_(keep)).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class BiMambaMixer(nn.Module):
    """The bidirectional Mamba mixer (paper section 3.2, Fig. 2; released ``mamba_simple.py``, ``bimamba`` v2).

    One input and one output projection serve both directions; convolution, step size, B, C, A and D exist per direction.
    The backward direction sees the sequence from its end, and the two gated outputs are added, not averaged.
    ``bidirectional=False`` is plain Mamba, without any ``_b`` parameter. ``dt_rank=None`` is ceil(d_model / 16).
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        bidirectional: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        inner = expand * d_model
        rank = dt_rank or math.ceil(d_model / 16)
        self.split = (rank, d_state, d_state)
        self.bidirectional = bidirectional
        self.backend = backend
        # torch registers parameters before submodules, whatever the order here: A and D lead in the checkpoint.
        for end in ("", "_b") if bidirectional else ("",):
            setattr(self, f"A{end}_log", nn.Parameter(torch.empty(inner, d_state)))
            setattr(self, f"D{end}", nn.Parameter(torch.empty(inner)))
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=bias)
        for end in ("", "_b") if bidirectional else ("",):
            setattr(self, f"conv1d{end}", nn.Conv1d(inner, inner, d_conv, groups=inner, bias=conv_bias))
            setattr(self, f"x_proj{end}", nn.Linear(inner, sum(self.split), bias=False))
            setattr(self, f"dt_proj{end}", nn.Linear(rank, inner))
        self.out_proj = nn.Linear(inner, d_model, bias=bias)
        self.reset_state_matrices()

    @torch.no_grad()
    def reset_state_matrices(self) -> None:
        """Set A to -(1, ..., N) in every channel and D to 1, in each direction (released ``mamba_simple.py``)."""
        for end in ("", "_b") if self.bidirectional else ("",):
            A_log = getattr(self, f"A{end}_log")
            A_log.copy_(torch.arange(1, A_log.shape[1] + 1, device=A_log.device, dtype=A_log.dtype).log())
            getattr(self, f"D{end}").fill_(1.0)

    def forward(self, hidden: Tensor, orders: ScanOrder | None = None) -> Tensor:
        """Mixed tokens (batch, length, d) from hidden (batch, length, d), in the type of the output projection.

        orders: scans the tokens of a clip in both of its orders, as it says; without it, in the order in which they come.
        """
        xz = self.in_proj(hidden)
        if orders is None:
            y = self._both_ways(xz) if self.bidirectional else self._one_way(xz, "")
        elif orders.doubled:
            y = torch.lerp(self._both_ways(xz), orders.to_spatial(self._both_ways(orders.to_temporal(xz))), 0.5)
        else:
            y = self._one_way(xz, "") + orders.to_spatial(self._one_way(orders.to_temporal(xz), "_b"))
        return self.out_proj(y)

    def _both_ways(self, xz: Tensor) -> Tensor:
        """The gated sum of both directions, (batch, length, di), from the input projection (batch, length, 2di)."""
        # Both halves stay views: the operators take strides, and run backwards without a flip.
        x, z = xz.chunk(2, dim=-1)
        taps = (t for conv in (self.conv1d, self.conv1d_b) for t in (conv.weight.squeeze(1), conv.bias))
        u_f, u_b = bidirectional_conv(x, *taps, backend=self.backend)
        return bidirectional_scan(self._scan_inputs(u_f, ""), self._scan_inputs(u_b, "_b"), z, backend=self.backend)

    def _one_way(self, xz: Tensor, end: str) -> Tensor:
        """The gated output of one direction, (batch, length, di), in natural order, from the input projection."""
        x, z = xz.chunk(2, dim=-1)
        conv: nn.Conv1d = getattr(self, f"conv1d{end}")
        how = {"reverse": end == "_b", "backend": self.backend}
        u = causal_conv1d(x, conv.weight.squeeze(1), conv.bias, activation="silu", **how)
        u, delta, A, B, C, D, delta_bias = self._scan_inputs(u, end)
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True, **how)

    def way(self, end: str) -> MixerWay:
        """The parameters of the forward direction (``end`` "") or the backward one ("_b")."""
        conv, x_proj, dt_proj = (getattr(self, f"{name}{end}") for name in ("conv1d", "x_proj", "dt_proj"))
        matrices = (x_proj.weight, dt_proj.weight, dt_proj.bias, getattr(self, f"A{end}_log"), getattr(self, f"D{end}"))
        return MixerWay(conv.weight.squeeze(1), conv.bias, *matrices)

    def _scan_inputs(self, u: Tensor, end: str) -> ScanInputs:
        """What one direction's scan reads, from u (batch, length, di)."""
        dt_proj: nn.Linear = getattr(self, f"dt_proj{end}")
        step, B, C = getattr(self, f"x_proj{end}")(u).split(self.split, dim=-1)
        # The bias waits for the scan, which adds it in float32: under autocast the product itself is in bf16.
        delta = F.linear(step, dt_proj.weight)
        A = -torch.exp(widen(getattr(self, f"A{end}_log")))
        return ScanInputs(u, delta, A, B, C, widen(getattr(self, f"D{end}")), widen(dt_proj.bias))


class Block(nn.Module):
    """Add, norm, mix (released ``Block``, fused or not: the same function).

    The residual stream runs beside the hidden tokens, in at least float32, and receives them in the next block. Options
    of the mixer are passed through.
    """

    def __init__(
        self, d_model: int, *, norm: Literal["rms", "layer"] = "rms", drop_path: float = 0.0, backend: str = "auto", **mixer
    ) -> None:
        super().__init__()
        self.mixer = BiMambaMixer(d_model, backend=backend, **mixer)
        self.norm = make_norm(norm, d_model, backend=backend)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None, orders: ScanOrder | None = None, *, reuse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(mixer output, new residual), each (batch, length, d); without a residual, as in block 0, hidden starts it.

        orders: for a mixer that takes both orders of a clip. reuse: where no gradient is wanted, the results may be written over
        hidden and residual.
        """
        keep = self.drop_path.draw(hidden)
        if orders is None and (whole := self._at_once(hidden, residual, keep, reuse)) is not None:
            return whole
        normed, residual = self.norm(scale_samples(hidden, keep), residual)
        return self.mixer(normed) if orders is None else self.mixer(normed, orders), residual

    def _at_once(self, hidden: Tensor, residual: Tensor | None, keep: Tensor | None, reuse: bool) -> tuple[Tensor, Tensor] | None:
        """The same by one operator, or None where there is none for this block on this device.

        Parts that are watched, or that somebody has put other modules in place of, are called one by one.
        """
        mixer = self.mixer
        if not (mixer.bidirectional and type(self.norm) is RMSNorm and type(mixer) is BiMambaMixer) or hooked(self.norm):
            return None
        usual = all(type(part) in (nn.Linear, nn.Conv1d) for part in mixer.children())
        biased = mixer.in_proj.bias is not None or mixer.out_proj.bias is not None or mixer.conv1d.bias is None
        if biased or not usual or hooked(mixer):
            return None
        parameters = (self.norm.weight, EPS, mixer.in_proj.weight, mixer.out_proj.weight, mixer.way(""), mixer.way("_b"))
        options = {"keep": keep, "reuse": reuse, "backend": mixer.backend}
        return add_norm_mix(hidden, residual, *parameters, **options)
