"""The operators of ``vmrepro.ops`` as CUDA kernels, compiled at their first use; letters as in ``vmrepro.ops.reference``.

What was measured stands in ``vmrepro/ops/NOTES.md``. These are not differentiable twice.
"""

import torch
from torch import Tensor

from vmrepro.ops.cuda import block, driver, fused, scan
from vmrepro.ops.cuda.layout import IO, STATES


def available(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``, or None."""
    return driver.unavailable(torch.device(device))


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
    """The scan of ``vmrepro.ops.selective_scan``; raises NotImplementedError for what the kernels do not take."""
    y, last = _scan([(u, delta, A, B, C, D, delta_bias)], z, delta_softplus, reverse, return_last_state)
    return (y, last) if return_last_state else y


def bidirectional_scan(forward: tuple, backward: tuple, z: Tensor | None) -> Tensor:
    """The scans of ``vmrepro.ops.bidirectional_scan`` in one kernel; raises NotImplementedError for what it does not take.

    forward, backward: ``ScanInputs``.
    """
    return _scan([tuple(forward), tuple(backward)], z, True, False, False)[0]


def _scan(directions: list[tuple], z: Tensor | None, softplus: bool, reverse: bool, last: bool) -> tuple[Tensor, Tensor]:
    u, A = directions[0][0], directions[0][2]
    streams = [t for d in directions for t in (d[0], d[1], d[3], d[4])] + ([] if z is None else [z])
    wide = streams[0].dtype
    for t in streams[1:]:
        wide = torch.promote_types(wide, t.dtype)
    if wide not in IO or A.dtype != torch.float32:
        raise NotImplementedError(
            f"the CUDA kernels take bf16, fp16 and fp32 with A in fp32, got {wide} and {A.dtype}: use 'chunked'"
        )
    if A.shape[1] not in STATES or any(t.ndim != 3 for t in streams):
        raise NotImplementedError(
            f"the CUDA kernels take {STATES} states and B, C (batch, length, state), got {A.shape[1]} states, "
            f"B {tuple(directions[0][3].shape)} and C {tuple(directions[0][4].shape)}: use 'chunked'"
        )
    inputs = []
    for u_, delta, A_, B, C, D, bias in directions:
        skip, bias = (_parameter(t, A, A.shape[:1]) for t in (D, bias))
        inputs += [_rows(u_, wide), _rows(delta, wide), A_.contiguous(), _rows(B, wide), _rows(C, wide), skip, bias]
    gate = None if z is None else _rows(z, wide)
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *(() if gate is None else (gate,))))
    y, _, _, state = scan.scan_forward(inputs, gate, softplus, reverse, save, last)
    return y.to(u.dtype), state


def _rows(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t in ``dtype`` with its last axis contiguous, copied only if it must be."""
    t = t.to(dtype)
    return t if t.stride(-1) == 1 else t.contiguous()


def bidirectional_conv(
    x: Tensor, weight_f: Tensor, bias_f: Tensor | None, weight_b: Tensor, bias_b: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The pair of ``vmrepro.ops.bidirectional_conv``; raises NotImplementedError for what the kernels do not take."""
    _check_conv(x, weight_f, weight_b)
    return fused.conv_forward(_rows(x, x.dtype), *_taps(x, weight_f, bias_f), *_taps(x, weight_b, bias_b))


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """The convolution of ``vmrepro.ops.causal_conv1d``; raises NotImplementedError for what the kernels do not take."""
    if activation is None:
        raise NotImplementedError("the CUDA kernels apply SiLU after the convolution, got activation None: use 'chunked'")
    _check_conv(x, weight)
    return fused.causal_conv(_rows(x, x.dtype), *_taps(x, weight, bias), reverse)


def _check_conv(x: Tensor, *weights: Tensor) -> None:
    widths = {weight.shape[1] for weight in weights}
    if x.dtype not in IO or len(widths) > 1 or not widths <= {*fused.WIDTHS}:
        got = " and ".join(str(weight.shape[1]) for weight in weights)
        raise NotImplementedError(
            f"the CUDA kernels take bf16, fp16 and fp32 and equal widths in {fused.WIDTHS}, "
            f"got {x.dtype} and {got}: use 'chunked'"
        )


def _taps(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return weight.float().contiguous(), _parameter(bias, x, x.shape[-1:])


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The pair of ``vmrepro.ops.add_rms_norm``; raises NotImplementedError for what the kernels do not take."""
    narrow = residual is not None and residual.dtype != torch.float32
    if hidden.dtype not in IO or narrow or hidden.shape[-1] > fused.MAX_NORM_CHANNELS:
        types = f"{hidden.dtype}, {None if residual is None else residual.dtype} and {hidden.shape[-1]}"
        raise NotImplementedError(
            "the CUDA kernels take hidden in bf16, fp16 or fp32 with a residual in fp32 and at most "
            f"{fused.MAX_NORM_CHANNELS} channels, got {types}: use 'chunked'"
        )
    residual = None if residual is None else residual.contiguous()
    normed, stream, _ = fused.norm_forward(hidden.contiguous(), residual, weight.float().contiguous(), eps)
    return normed, stream


def add_norm_mix(
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    in_proj: Tensor,
    out_proj: Tensor,
    forward: tuple,
    backward: tuple,
    keep: Tensor | None,
    reuse: bool,
) -> tuple[Tensor, Tensor] | None:
    """The pair of ``vmrepro.ops.add_norm_mix``, or None for what the kernels do not take together."""
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
    if not block.takes(hidden, residual, dtype, forward):
        return None
    norm_weight, in_proj, out_proj, *ways = (
        t.float().contiguous() for t in (norm_weight, in_proj, out_proj, *forward, *backward)
    )
    hidden, residual = hidden.contiguous(), None if residual is None else residual.contiguous()
    parameters = (norm_weight, eps, in_proj, out_proj, ways)
    leaves = (hidden, residual, norm_weight, in_proj, out_proj, *ways)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves):
        return block.block_forward(hidden, residual, keep, *parameters, dtype)[:2]
    if keep is not None:
        hidden = hidden * keep.to(hidden.dtype).view(-1, 1, 1)
    if reuse and residual is not None and hidden.dtype == dtype:
        block.block_infer_in_place(hidden, residual, *parameters)
        return hidden, residual
    # The first stream is hidden itself where that is in float32.
    in_hidden = reuse and residual is None and hidden.dtype == torch.float32
    mixed, stream = block.block_infer(hidden, residual, *parameters, dtype, in_hidden)
    return mixed, hidden if in_hidden else stream


def _parameter(value: Tensor | None, like: Tensor, shape: torch.Size) -> Tensor:
    return like.new_zeros(shape, dtype=torch.float32) if value is None else value.float().contiguous()
