"""A whole block, add, norm and two-way mixer, as one torch operator: what keeps its memory small and its products aligned.

Letters as in ``vmrepro.models.blocks``. The norm's weight is packed into in_proj, which takes the plain normalised rows, xhat.
Without gradients the sequences go through in two slices that fill the GPU, so that what lies between input and output projection
exists for one slice only. With gradients xhat, the products of x_proj, the sum before the gate and the saved states are kept;
everything else is computed again in the backward pass.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from vmrepro.ops.cuda import driver, fused, scan
from vmrepro.ops.cuda.layout import IO, STATES, pass_times
from vmrepro.ops.cuda.operators import differentiable, operator
from vmrepro.ops.cuda.products import step_gradients, step_sizes
from vmrepro.ops.cuda.weights import PER_WAY, Weights, small_gradients

SMALLEST_SLICE = 32_768  # tokens; below it, launches would show


def takes(hidden: Tensor, residual: Tensor | None, dtype: torch.dtype, way: tuple) -> bool:
    """Whether the kernels take a block of these operands; ``dtype`` is what the products are computed in."""
    taps, A = way[0], way[5]
    types = dtype in IO and hidden.dtype in IO and A.dtype != torch.float64
    types = types and (residual is None or residual.dtype == torch.float32)
    return types and A.shape[1] in STATES and taps.shape[1] in fused.WIDTHS and hidden.shape[-1] <= fused.MAX_NORM_CHANNELS


def _scan_inputs(
    pair: tuple[Tensor, Tensor], products: list[Tensor], weights: Weights, A: Tensor, ways: list[Tensor]
) -> tuple[list[Tensor], bool]:
    """What both scans read, from u (batch, length, di) and its product with x_proj, and whether its deltas are ready."""
    parts = [product.split((weights.filled, weights.state, weights.state), dim=-1) for product in products]
    deltas, ready = step_sizes([steps for steps, _, _ in parts], weights.dt_proj, [way[4] for way in _each(ways)])
    inputs = []
    for u, delta, way, A_, (_, B, C) in zip(pair, deltas, _each(ways), A, parts, strict=True):
        inputs += [u, delta, A_, B, C, way[6], way[4]]
    return inputs, ready


def _scan(
    xhat: Tensor, weights: Weights, A: Tensor, ways: list[Tensor], save: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """(y, y before the gate, saved states, the products of x_proj) of normalised rows (batch, length, d)."""
    x, z = functional.linear(xhat, weights.in_proj).chunk(2, dim=-1)
    del xhat
    pair = fused.conv_forward(x, *_taps(ways))
    products = [functional.linear(u, x_proj) for u, x_proj in zip(pair, weights.x_proj, strict=True)]
    inputs, ready = _scan_inputs(pair, products, weights, A, ways)
    y, ungated, states, _ = scan.run_forward(inputs, z, True, False, save, False, ready)
    return y, ungated, states, products


def _taps(ways: list[Tensor]) -> list[Tensor]:
    """Weight and bias of the convolution of each direction."""
    return [way[i] for way in _each(ways) for i in (0, 1)]


def _each(ways: list[Tensor]) -> Iterator[list[Tensor]]:
    return (ways[start : start + PER_WAY] for start in range(0, len(ways), PER_WAY))


def _slices(batch: int, length: int, channels: int, device: torch.device) -> tuple[int, ...]:
    """How many sequences go through together without gradients: two slices, which take least time, unless they were tiny."""
    if batch < 2 or batch * length < 2 * SMALLEST_SLICE:
        return (batch,)
    return _two_slices(batch, channels, driver.multiprocessors(device))


@cache
def _two_slices(batch: int, channels: int, multiprocessors: int) -> tuple[int, int]:
    def cost(first: int) -> tuple[float, int]:
        sizes = (first, batch - first)
        return sum(min(pass_times(channels, n, multiprocessors).values()) for n in sizes), max(sizes)

    first = min(range(-(-batch // 3), batch * 2 // 3 + 1), key=cost)
    return first, batch - first


def _infer(
    mixed: Tensor,
    stream: Tensor | None,
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    in_proj: Tensor,
    out_proj: Tensor,
    ways: list[Tensor],
) -> None:
    """Fills mixed, which may be hidden, and the stream, which may be the residual, where that is wanted."""
    weights, A = Weights.pack(norm_weight, in_proj, out_proj, ways, mixed.dtype)
    sizes = _slices(*hidden.shape[:2], out_proj.shape[1], hidden.device)
    columns = [(None,) * len(sizes) if t is None else t.split(sizes) for t in (stream, hidden, residual, mixed)]
    for tensors in zip(*columns, strict=True):
        _mix(*tensors, eps, weights, A, ways)


def _mix(stream, hidden, residual, mixed, eps, weights: Weights, A: Tensor, ways: list[Tensor]) -> None:
    """``_infer`` for a slice; a function of its own, so that what a slice needs ends with it. The rows end inside ``_scan``."""
    y = _scan(fused.norm_into(stream, hidden, residual, eps)[0].to(mixed.dtype), weights, A, ways, False)[0]
    torch.mm(_rows(y), weights.out_proj.t(), out=_rows(mixed))


def _infer_shapes(hidden, residual, norm_weight, eps, in_proj, out_proj, ways, dtype, in_hidden):
    stream = hidden.new_empty(0) if in_hidden else torch.empty_like(hidden, dtype=torch.float32)
    return torch.empty_like(hidden, dtype=dtype), stream


@operator(fake=_infer_shapes)
def block_infer(
    hidden: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    in_proj: Tensor,
    out_proj: Tensor,
    ways: list[Tensor],
    dtype: torch.dtype,
    in_hidden: bool,
) -> tuple[Tensor, Tensor]:
    """(mixed tokens in ``dtype``, the stream in float32, or empty if it is ``in_hidden``), and nothing for a backward pass."""
    mixed, stream = _infer_shapes(hidden, residual, norm_weight, eps, in_proj, out_proj, ways, dtype, in_hidden)
    _infer(mixed, None if in_hidden else stream, hidden, residual, norm_weight, eps, in_proj, out_proj, ways)
    return mixed, stream


def _nothing(*arguments) -> None:
    return None


@operator(fake=_nothing, mutates=("hidden", "residual"))
def block_infer_in_place(
    hidden: Tensor, residual: Tensor, norm_weight: Tensor, eps: float, in_proj: Tensor, out_proj: Tensor, ways: list[Tensor]
) -> None:
    """As ``block_infer``, with the mixed tokens written over hidden and the stream over the residual."""
    _infer(hidden, residual, hidden, residual, norm_weight, eps, in_proj, out_proj, ways)


def _forward_shapes(hidden, residual, keep, norm_weight, eps, in_proj, out_proj, ways, dtype):
    batch, length, width = hidden.shape
    inner, (state, rank) = out_proj.shape[1], (ways[5].shape[1], ways[3].shape[1])
    stream = torch.empty_like(hidden, dtype=torch.float32)
    mixed, xhat = (torch.empty_like(hidden, dtype=dtype) for _ in range(2))
    u = xhat.new_empty((batch, length, inner))
    inputs = [u, u, ways[5], u, u, ways[6], ways[4]] * 2
    ungated, states, _ = scan.room_to_save(inputs, u, True, False)
    weights = Weights(xhat.new_empty(Weights.size(width, inner, state, rank)), width, inner, state, rank)
    products = [u.new_empty((batch, length, len(x_proj))) for x_proj in weights.x_proj]
    A = stream.new_empty((2, inner, state))
    return mixed, stream, xhat, stream.new_empty((batch, length)), *products, ungated, states, weights.packed, A


@operator(fake=_forward_shapes)
def block_forward(
    hidden: Tensor,
    residual: Tensor | None,
    keep: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    in_proj: Tensor,
    out_proj: Tensor,
    ways: list[Tensor],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(mixed tokens in ``dtype``, the stream in float32, and what the backward pass reads).

    That is xhat and its scale, the products of x_proj of each direction, the ungated sum, the states, the packed weights, A.
    """
    stream = torch.empty_like(hidden, dtype=torch.float32)
    xhat, scale = fused.norm_into(stream, hidden, residual, eps, keep=keep)
    xhat = xhat.to(dtype)
    weights, A = Weights.pack(norm_weight, in_proj, out_proj, ways, dtype)
    y, ungated, states, products = _scan(xhat, weights, A, ways, True)
    return functional.linear(y, weights.out_proj), stream, xhat, scale, *products, ungated, states, weights.packed, A


def _backward_shapes(
    dmixed, dstream, xhat, scale, product_f, product_b, ungated, states, packed, A, keep, norm_weight, in_proj, ways, dtype, two
):
    matrices = [torch.empty_like(in_proj), in_proj.new_empty((xhat.shape[2], ungated.shape[2]))]
    of_ways = [torch.empty_like(t) for t in ways]
    dhidden, dresidual = torch.empty_like(xhat, dtype=dtype), scale.new_empty(xhat.shape if two else 0)
    return [dhidden, dresidual, torch.empty_like(norm_weight), *matrices, *of_ways]


@operator(fake=_backward_shapes)
def block_backward(
    dmixed: Tensor,
    dstream: Tensor | None,
    xhat: Tensor,
    scale: Tensor,
    product_f: Tensor,
    product_b: Tensor,
    ungated: Tensor,
    states: Tensor,
    packed: Tensor,
    A: Tensor,
    keep: Tensor | None,
    norm_weight: Tensor,
    in_proj: Tensor,
    ways: list[Tensor],
    hidden_dtype: torch.dtype,
    two: bool,
) -> list[Tensor]:
    """Gradients of hidden, the residual (empty unless there are ``two``), the norm's weight, in_proj, out_proj and the ways.

    Those of parameters come in float32, the matrices' rounded to the type of the products.
    """
    inner, width, state, rank = ungated.shape[2], xhat.shape[2], ways[5].shape[1], ways[3].shape[1]
    weights, products = Weights(packed, width, inner, state, rank), [product_f, product_b]
    gradients = weights.like()
    xz = functional.linear(xhat, weights.in_proj)
    dxz = torch.empty_like(xz)
    (x, z), (dx, dz) = (both.chunk(2, dim=-1) for both in (xz, dxz))
    gated = torch.empty_like(ungated)
    dy, _ = scan.gate_backward(dmixed @ weights.out_proj, z, ungated, dz, gated)
    _outer(dmixed, gated, gradients.out_proj)
    del gated
    # To save memory u lies where z was, and where dx comes, which is written once nothing reads u any more. Further down, the
    # gradients of the deltas lie where the deltas were.
    fused.conv_into(dx, z, x, _taps(ways))
    inputs, ready = _scan_inputs((dx, z), products, weights, A, ways)
    deltas = inputs[1 :: scan.PER_DIRECTION]
    dus = [torch.empty_like(dy) for _ in deltas]
    streams = [dus[0], deltas[0], dus[1], deltas[1]]
    dproducts = [torch.empty_like(product) for product in products]
    sums = [dproduct[..., weights.filled :] for dproduct in dproducts]
    scan_parts = scan.scan_backward_into(streams, sums, dy, None, inputs, states, True, False, ready)
    del dy, sums
    steps, dsteps = ([t[..., : weights.filled] for t in both] for both in (products, dproducts))
    step_parts = step_gradients(deltas, steps, weights.dt_proj, dsteps)[:, :, :rank]
    for u, dproduct, dx_proj in zip(inputs[:: scan.PER_DIRECTION], dproducts, gradients.x_proj, strict=True):
        _outer(dproduct, u, dx_proj)
    del inputs, deltas, streams, u, dproduct, dsteps
    conv_parts = fused.conv_backward_into(dx, dus, x, _taps(ways), dproducts, weights.x_proj)
    del xz, x, z, dus, dproducts
    dxhat = (dxz @ weights.in_proj).to(hidden_dtype)
    _outer(dxz, xhat, gradients.in_proj)
    del dx, dz, dxz
    dhidden, dresidual = fused.norm_gradients(dxhat, dstream, scale, two, normed=xhat.to(hidden_dtype), keep=keep)
    (din_proj, dout_proj, *dx_proj), norm_parts = gradients.unpack(norm_weight, in_proj)
    small, dweight = small_gradients(scan_parts, conv_parts, step_parts, norm_parts, A)
    of_ways = [[*of_way[:2], matrix, *of_way[2:]] for matrix, of_way in zip(dx_proj, small, strict=True)]
    return [dhidden, dresidual, dweight, din_proj, dout_proj, *(t for of_way in of_ways for t in of_way)]


def _rows(t: Tensor) -> Tensor:
    return t.flatten(0, -2)


def _outer(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Fills out (left channels, right channels) with the sum over tokens of left ⊗ right."""
    torch.mm(_rows(left).t(), _rows(right), out=out)


def _setup(ctx, inputs, output):
    hidden, residual, keep, norm_weight, _, in_proj, _, ways, _ = inputs
    ctx.hidden_dtype, ctx.two = hidden.dtype, residual is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:], keep, norm_weight, in_proj, *ways)


def _backward(ctx, dmixed, dstream, *_unused):
    saved, ways = ctx.saved_tensors[: -2 * PER_WAY], list(ctx.saved_tensors[-2 * PER_WAY :])
    dmixed = torch.zeros_like(saved[0]) if dmixed is None else dmixed.contiguous()
    dstream = None if dstream is None else dstream.contiguous()
    dhidden, dresidual, dweight, *gradients = block_backward(dmixed, dstream, *saved, ways, ctx.hidden_dtype, ctx.two)
    return dhidden, dresidual if ctx.two else None, None, dweight, None, *gradients[:2], gradients[2:], None


differentiable(block_forward, _backward, _setup)
