"""The operators of the model as functions of channels-last tensors, (batch, length, channels).

Each takes ``backend``: "auto" for the fastest one present on the tensors' device, or a name from ``BACKENDS``. Backends differ
in speed, never in the function: ``vmrepro.ops.reference`` defines it, and what a backend lacks is composed of what it has or
taken from that definition. ``reverse`` runs from the end of time; no operator needs a flipped copy.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmrepro.ops import reference
from vmrepro.ops.reference import ScanInputs
from vmrepro.ops.registry import (
    BACKENDS,
    BackendUnavailableError,
    available_backends,
    candidates,
    first_that_takes,
    implementation,
    resolve_backend,
)

__all__ = [
    "BACKENDS",
    "BackendUnavailableError",
    "MixerWay",
    "ScanInputs",
    "add_norm_mix",
    "add_rms_norm",
    "available_backends",
    "bidirectional_conv",
    "bidirectional_scan",
    "causal_conv1d",
    "resolve_backend",
    "selective_scan",
]


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
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective state space model's output y (batch, length, channels), in u's type.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t from h = 0, y_t = (<C_t, h_t> + D u_t) SiLU(z_t), with Δ = softplus(delta + delta_bias)
    or, without ``delta_softplus``, Δ = delta + delta_bias (paper section 3.1; the released ``selective_scan_fn``).

    u, delta, A, B, C, D, delta_bias: as in ``ScanInputs``. z: (batch, length, channels), or None for no gate.
    reverse: time runs from the last step to the first; y stays in natural order.
    return_last_state: also return the state (batch, channels, state) after the last step taken, in the type of the computation.
    Raises ValueError when the shapes do not fit together or A is narrower than float32.
    """
    check_scan(ScanInputs(u, delta, A, B, C, D, delta_bias), z)
    options = {"delta_softplus": delta_softplus, "reverse": reverse, "return_last_state": return_last_state}

    def scan(name: str):
        return implementation("selective_scan", name)(u, delta, A, B, C, D, z, delta_bias, **options)

    return first_that_takes(backend, u.device, scan)


def bidirectional_scan(forward: ScanInputs, backward: ScanInputs, z: Tensor | None, *, backend: str = "auto") -> Tensor:
    """(scan(forward) + reversed scan(backward)) SiLU(z), (batch, length, channels) in u's type; softplus is always on.

    The sum is not halved (the released ``bimamba_inner_fn``, "v2") and is gated and rounded once.
    z: (batch, length, channels), or None for no gate. Raises ValueError when the shapes do not fit together.
    """
    check_scan(forward, z)
    check_scan(backward, z)
    if forward.u.shape != backward.u.shape:
        raise ValueError(f"the two directions differ in shape: {tuple(forward.u.shape)} and {tuple(backward.u.shape)}")
    return first_that_takes(backend, forward.u.device, lambda name: _bidirectional_scan(name, forward, backward, z))


def _bidirectional_scan(name: str, forward: ScanInputs, backward: ScanInputs, z: Tensor | None) -> Tensor:
    if (fused := implementation("bidirectional_scan", name)) is not None:
        return fused(forward, backward, z)
    wide = torch.promote_types(forward.u.dtype, torch.float32)
    scan = implementation("selective_scan", name)
    y_f, y_b = (
        scan(i.u.to(wide), i.delta, i.A, i.B, i.C, i.D, None, i.delta_bias, delta_softplus=True, reverse=reverse)
        for i, reverse in ((forward, False), (backward, True))
    )
    y = y_f + y_b
    return (y if z is None else y * F.silu(z.to(wide))).to(forward.u.dtype)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The depthwise convolution of each channel with its own past, (batch, length, channels) in x's type.

    c_t = bias + Σ_j weight_j x_{t-(width-1)+j}, zeros before the start, then SiLU if asked (the released ``causal_conv1d_fn``).
    x: (batch, length, channels). weight: (channels, width). bias: (channels,).
    reverse: the same on the reversed sequence, in natural order: each step sees itself and the future.
    Raises ValueError when the shapes do not fit together or the activation is unknown.
    """
    _check_conv(x, weight, bias, activation)

    def conv(name: str) -> Tensor:
        own = implementation("causal_conv1d", name) or reference.causal_conv1d
        return own(x, weight, bias, activation=activation, reverse=reverse)

    return first_that_takes(backend, x.device, conv)


def bidirectional_conv(
    x: Tensor, weight_f: Tensor, bias_f: Tensor | None, weight_b: Tensor, bias_b: Tensor | None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(u_f, u_b): the causal convolution and the one of reversed time, each with its own weights and SiLU.

    Shapes and errors as in ``causal_conv1d``; both results are (batch, length, channels) in x's type and natural order.
    """
    _check_conv(x, weight_f, bias_f, "silu")
    _check_conv(x, weight_b, bias_b, "silu")

    def convs(name: str) -> tuple[Tensor, Tensor]:
        if (fused := implementation("bidirectional_conv", name)) is not None:
            return fused(x, weight_f, bias_f, weight_b, bias_b)
        conv = implementation("causal_conv1d", name) or reference.causal_conv1d
        return conv(x, weight_f, bias_f, activation="silu"), conv(x, weight_b, bias_b, activation="silu", reverse=True)

    return first_that_takes(backend, x.device, convs)


def add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(RMSNorm(residual + hidden) in hidden's type, residual + hidden in float32 or wider): the released ``fused_add_norm``.

    hidden, residual: (..., channels); without a residual hidden starts it. weight: (channels,).
    Raises ValueError when the shapes do not fit together.
    """
    if weight.shape != hidden.shape[-1:] or (residual is not None and residual.shape != hidden.shape):
        shapes = f"hidden {tuple(hidden.shape)}, residual {_shape(residual)}, weight {_shape(weight)}"
        raise ValueError(f"expected residual (..., channels) as hidden and weight (channels,), got {shapes}")

    def norm(name: str) -> tuple[Tensor, Tensor]:
        return (implementation("add_rms_norm", name) or reference.add_rms_norm)(hidden, residual, weight, eps)

    return first_that_takes(backend, hidden.device, norm)


class MixerWay(NamedTuple):
    """The parameters of one direction of a two-way mixer (``vmrepro.models.blocks`` has the letters)."""

    conv_weight: Tensor  # (di, width)
    conv_bias: Tensor  # (di,)
    x_proj: Tensor  # (R + 2N, di)
    dt_proj: Tensor  # (di, R)
    dt_bias: Tensor  # (di,)
    A_log: Tensor  # (di, N), the logarithm of -A
    D: Tensor  # (di,)


def add_norm_mix(
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    in_proj: Tensor,
    out_proj: Tensor,
    forward: MixerWay,
    backward: MixerWay,
    *,
    keep: Tensor | None = None,
    reuse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor] | None:
    """A whole block at once, (mixed tokens, residual stream in float32), or None where the backend has no kernel for it.

    What it computes is what ``vmrepro.models.blocks.Block`` composes of the operators above, in the type of autocast if that
    is on. hidden, residual: (batch, length, d). norm_weight: (d,). in_proj: (2di, d). out_proj: (d, di). keep: a factor of
    hidden for each sample, (batch,) in float32. reuse: where no gradient is wanted, the results may be written
    over hidden and the residual, which saves that much memory.
    """
    name = candidates(backend, hidden.device)[0]
    if (fused := implementation("add_norm_mix", name)) is None:
        return None
    return fused(hidden, residual, norm_weight, eps, in_proj, out_proj, forward, backward, keep, reuse)


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def check_scan(inputs: ScanInputs, z: Tensor | None) -> None:
    """Raise ValueError unless the inputs of a scan fit together, naming the one that does not and the shape it should have."""
    u, delta, A, B, C, D, delta_bias = inputs
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"expected u (batch, length, channels) and A (channels, state), got {_shape(u)} and {_shape(A)}")
    if not A.dtype.is_floating_point or A.dtype.itemsize < 4:
        raise ValueError(f"A must be float32 or wider, since exp(delta A) is near one, got {A.dtype}: keep it in float32")
    (batch, length, channels), state = u.shape, A.shape[1]
    if 0 in u.shape or state == 0:
        raise ValueError(f"the scan needs at least one sequence, step, channel and state, got u {_shape(u)} and A {_shape(A)}")
    expected = {"delta": u.shape, "A": (channels, state), "D": (channels,), "z": u.shape, "delta_bias": (channels,)}
    given = {"delta": delta, "A": A, "D": D, "z": z, "delta_bias": delta_bias}
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != expected[name]:
            raise ValueError(f"{name} must be {tuple(expected[name])} for u {_shape(u)}, got {_shape(tensor)}")
    for name, tensor in {"B": B, "C": C}.items():
        fits = tensor.shape in ((channels, state), (batch, length, state))
        groups = tensor.shape[2] if tensor.ndim == 4 else 0
        if not fits and not (groups and channels % groups == 0 and tensor.shape == (batch, length, groups, state)):
            allowed = f"{(batch, length, state)}, (batch, length, groups that divide {channels}, {state}) or {(channels, state)}"
            raise ValueError(f"{name} must be {allowed} for u {_shape(u)} and A {_shape(A)}, got {_shape(tensor)}")


def _check_conv(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    channels = x.shape[-1]
    if x.ndim != 3 or weight.ndim != 2 or len(weight) != channels or (bias is not None and bias.shape != (channels,)):
        shapes = f"{_shape(x)}, {_shape(weight)} and {_shape(bias)}"
        raise ValueError(f"expected x (batch, length, channels), weight (channels, width) and bias (channels,), got {shapes}")
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
