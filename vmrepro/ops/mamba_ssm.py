"""The public CUDA kernels of mamba-ssm and causal-conv1d, where they are installed: a cross-check, and the peer to be measured.

They take (batch, channels, length) and run forward in time, so what goes in is transposed, and flipped for the backward
direction, as the released model does around them. Each direction is gated and rounded by itself.
"""

from types import ModuleType

import torch
from torch import Tensor

from vmrepro.ops.reference import ScanInputs

TYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (2, 3, 4)


def available(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``, or None."""
    device = torch.device(device)
    if device.type != "cuda":
        return f"its kernels run on NVIDIA GPUs, not on device type {device.type!r}"
    try:
        _scans(), _convolutions(), _norms()
    except ImportError as error:
        return f"it needs mamba-ssm with its selective_scan_cuda, and causal-conv1d ({error}): pip install 'vmrepro[mamba]'"
    return None


def _scans() -> ModuleType:
    import selective_scan_cuda  # noqa: F401  newer releases may leave it out and fail only when called
    from mamba_ssm.ops import selective_scan_interface

    return selective_scan_interface


def _convolutions() -> ModuleType:
    import causal_conv1d

    return causal_conv1d


def _norms() -> ModuleType:
    from mamba_ssm.ops.triton import layer_norm

    return layer_norm


def _turned(t: Tensor | None, reverse: bool) -> Tensor | None:
    """(batch, channels, length) of (batch, length, channels), from the end of time if asked; contiguous."""
    if t is None:
        return None
    return (t.flip(1) if reverse else t).transpose(1, 2).contiguous()


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
    if u.dtype not in TYPES or A.dtype != torch.float32 or B.ndim != 3 or C.ndim != 3:
        raise NotImplementedError(
            "mamba-ssm is used for bf16, fp16 and fp32 with A in fp32 and B, C (batch, length, state), got "
            f"{u.dtype}, {A.dtype}, B {tuple(B.shape)} and C {tuple(C.shape)}: use 'chunked'"
        )
    streams = [_turned(t if t is None else t.to(u.dtype), reverse) for t in (u, delta, B, C, z)]
    D, delta_bias = (t if t is None else t.float() for t in (D, delta_bias))
    options = {"delta_bias": delta_bias, "delta_softplus": delta_softplus, "return_last_state": return_last_state}
    result = _scans().selective_scan_fn(*streams[:2], A, *streams[2:4], D, streams[4], **options)
    y, *last = result if return_last_state else (result,)
    y = y.transpose(1, 2)
    y = y.flip(1) if reverse else y
    return (y, *last) if return_last_state else y


def bidirectional_scan(forward: ScanInputs, backward: ScanInputs, z: Tensor | None) -> Tensor:
    """The scans of ``vmrepro.ops.bidirectional_scan``, one after the other."""
    ways = ((forward, False), (backward, True))
    y_f, y_b = (selective_scan(*i[:6], z, i.delta_bias, delta_softplus=True, reverse=reverse) for i, reverse in ways)
    return y_f + y_b


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation=None, reverse: bool = False) -> Tensor:
    """The convolution of ``vmrepro.ops.causal_conv1d``; raises NotImplementedError for what the kernel does not take."""
    if x.dtype not in TYPES or weight.shape[1] not in WIDTHS:
        raise NotImplementedError(
            f"causal-conv1d takes bf16, fp16 and fp32 and widths in {WIDTHS}, got {x.dtype} and {weight.shape[1]}: use 'chunked'"
        )
    bias = None if bias is None else bias.to(x.dtype)
    y = _convolutions().causal_conv1d_fn(_turned(x, reverse), weight.to(x.dtype), bias, activation=activation).transpose(1, 2)
    return y.flip(1) if reverse else y


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The pair of ``vmrepro.ops.add_rms_norm``; raises NotImplementedError for float64."""
    if hidden.dtype not in TYPES:
        raise NotImplementedError(f"mamba-ssm's norm takes bf16, fp16 and fp32, got {hidden.dtype}: use 'chunked'")
    return _norms().rms_norm_fn(hidden, weight, None, residual=residual, eps=eps, prenorm=True, residual_in_fp32=True)
