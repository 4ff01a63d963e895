"""A whole block, add, norm and two-way mixer, as one torch operator: what keeps its memory small and its products aligned.

Letters as in ``vmrepro.models.blocks``. Without gradients the sequences go through in two slices that fill the GPU, so that what
lies between input and output projection exists for one slice only. With gradients the residual stream, the sum before the gate
and the saved states are kept; everything else is computed again in the backward pass.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from vmrepro.ops.cuda import driver, fused, scan
from vmrepro.ops.cuda.layout import IO, STATES, pass_times
from vmrepro.ops.cuda.operators import differentiable, operator
from vmrepro.ops.cuda.weights import PER_WAY, Weights, small_gradients

SMALLEST_SLICE = 32_768  # tokens; below it, launches would show


def takes(hidden: Tensor, residual: Tensor | None, dtype: torch.dtype, way: tuple) -> bool:
    """Whether the kernels take a block of these operands; ``dtype`` is what the products are computed in."""
    taps, A = way[0], way[5]
    types = dtype in IO and hidden.dtype in IO and A.dtype != torch.float64
    types = types and (residual is None or residual.dtype == torch.float32)
    return types and A.shape[1] in STATES and taps.shape[1] in fused.WIDTHS and hidden.shape[-1] <= fused.MAX_NORM_CHANNELS


def _scan_inputs(
    normed: Tensor, weights: Weights, A: Tensor, ways: list[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """(what both scans read, x, z, the products of x_proj) of sequences (batch, length, d)."""
    x, z = functional.linear(normed, weights.in_proj).chunk(2, dim=-1)
    pair = fused.conv_forward(x, *(way[i] for way in _each(ways) for i in (0, 1)))
    inputs, products = [], []
    for u, way, A_, x_proj, dt_proj in zip(pair, _each(ways), A, weights.x_proj, weights.dt_proj, strict=True):
        product = functional.linear(u, x_proj)
        step, B, C = product.split((weights.filled, weights.state, weights.state), dim=-1)
        inputs += [u, functional.linear(step, dt_proj), A_, B, C, way[6], way[4]]
        products.append(product)
    return inputs, x, z, products


def _each(ways: list[Tensor]) -> Iterator[list[Tensor]]:
    return (ways[start : start + PER_WAY] for start in range(0, len(ways), PER_WAY))


def _slices(batch: int, length: int, channels: int, device: torch.device) -> tuple[int, ...]:
    """How many sequences go through together without gradients: two slices, which take least time, unless they were tiny."""
    if batch < 2 or batch * length < 2 * SMALLEST_SLICE:
        return (batch,)

    def cost(first: int) -> tuple[float, int]:
        sizes, multiprocessors = (first, batch - first), driver.multiprocessors(device)
        return sum(min(pass_times(channels, n, multiprocessors).values()) for n in sizes), max(sizes)

    first = min(range(-(-batch // 3), batch * 2 // 3 + 1), key=cost)
    return (first, batch - first)


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
    weights, A = Weights.pack(in_proj, out_proj, ways, mixed.dtype)
    sizes = _slices(*hidden.shape[:2], out_proj.shape[1], hidden.device)
    columns = [(None,) * len(sizes) if t is None else t.split(sizes) for t in (stream, hidden, residual, mixed)]
    for tensors in zip(*columns, strict=True):
        _mix(*tensors, norm_weight, eps, weights, A, ways)


def _mix(stream, hidden, residual, mixed, norm_weight, eps, weights: Weights, A: Tensor, ways: list[Tensor]) -> None:
    """``_infer`` for a slice; a function of its own, so that what a slice needs ends with it."""
    normed = fused.norm_into(stream, hidden, residual, norm_weight, eps)[0].to(mixed.dtype)
    inputs, _, z, _ = _scan_inputs(normed, weights, A, ways)
    del normed
    y = scan.scan_forward(inputs, z, True, False, False, False)[0]
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
    u = hidden.new_empty((batch, length, inner), dtype=dtype)
    inputs = [u, u, ways[5], u, u, ways[6], ways[4]] * 2
    ungated, states, _ = scan.room_to_save(inputs, u, True, False)
    packed = hidden.new_empty(Weights.size(width, inner, state, rank), dtype=dtype)
    A = stream.new_empty((2, inner, state))
    return torch.empty_like(hidden, dtype=dtype), stream, stream.new_empty((batch, length)), ungated, states, packed, A


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(mixed tokens in ``dtype``, the stream in float32, and for the backward pass scale, ungated sum, states, weights, A)."""
    stream = torch.empty_like(hidden, dtype=torch.float32)
    normed, scale = fused.norm_into(stream, hidden, residual, norm_weight, eps, keep)
    weights, A = Weights.pack(in_proj, out_proj, ways, dtype)
    inputs, _, z, _ = _scan_inputs(normed.to(dtype), weights, A, ways)
    y, ungated, states, _ = scan.scan_forward(inputs, z, True, False, True, False)
    return functional.linear(y, weights.out_proj), stream, scale, ungated, states, weights.packed, A


def _backward_shapes(dmixed, dstream, stream, scale, ungated, states, packed, A, keep, norm_weight, ways, hidden_dtype, two):
    inner, width = ungated.shape[2], stream.shape[2]
    matrices = [stream.new_empty((2 * inner, width)), stream.new_empty((width, inner))]
    of_ways = [torch.empty_like(t) for t in ways]
    dhidden = torch.empty_like(stream, dtype=hidden_dtype)
    return [dhidden, stream.new_empty(stream.shape if two else 0), torch.empty_like(norm_weight), *matrices, *of_ways]


@operator(fake=_backward_shapes)
def block_backward(
    dmixed: Tensor,
    dstream: Tensor | None,
    stream: Tensor,
    scale: Tensor,
    ungated: Tensor,
    states: Tensor,
    packed: Tensor,
    A: Tensor,
    keep: Tensor | None,
    norm_weight: Tensor,
    ways: list[Tensor],
    hidden_dtype: torch.dtype,
    two: bool,
) -> list[Tensor]:
    """Gradients of hidden, the residual (empty unless there are ``two``), the norm's weight, in_proj, out_proj and the ways.

    Those of parameters come in float32, the matrices' rounded to the type of the products.
    """
    inner, width, state, rank = ungated.shape[2], stream.shape[2], ways[5].shape[1], ways[3].shape[1]
    weights = Weights(packed, width, inner, state, rank)
    gradients = weights.like()
    inputs, x, z, products = _scan_inputs(fused.norm_again(stream, scale, norm_weight, packed.dtype), weights, A, ways)
    gated = torch.empty_like(ungated)
    # The gradient of z takes the place of z, and further down those of the deltas take theirs: nothing reads them afterwards.
    dy, dz = scan.gate_backward(dmixed @ weights.out_proj, z, ungated, z, gated)
    _outer(dmixed, gated, gradients.out_proj)
    del gated
    deltas = inputs[1 :: scan.PER_DIRECTION]
    dus = [torch.empty_like(dy) for _ in deltas]
    streams = [dus[0], deltas[0], dus[1], deltas[1]]
    dproducts = [torch.empty_like(product) for product in products]
    sums = [dproduct[..., weights.filled :] for dproduct in dproducts]
    scan_parts = scan.scan_backward_into(streams, sums, dy, None, inputs, states, True, False)
    del dy, sums
    for i, (du, ddelta, product, dproduct) in enumerate(zip(dus, deltas, products, dproducts, strict=True)):
        torch.mm(_rows(ddelta), weights.dt_proj[i], out=_rows(dproduct)[:, : weights.filled])
        _outer(dproduct, inputs[i * scan.PER_DIRECTION], gradients.x_proj[i])
        _outer(ddelta, product[..., : weights.filled], gradients.dt_proj[i])
        _rows(du).addmm_(_rows(dproduct), weights.x_proj[i])
    del inputs, deltas, streams, ddelta, product, products, dproduct, dproducts
    dx, conv_parts = fused.conv_backward_parts(dus, x, [way[i] for way in _each(ways) for i in (0, 1)])
    del x, dus
    dnormed = (_rows(dx) @ weights.in_proj[:inner]).addmm_(_rows(dz), weights.in_proj[inner:]).view(stream.shape)
    normed = fused.norm_again(stream, scale, norm_weight, packed.dtype)
    _outer(dx, normed, gradients.in_proj[:inner])
    _outer(dz, normed, gradients.in_proj[inner:])
    dnormed = dnormed.to(hidden_dtype)
    dhidden, dresidual, norm_parts = fused.norm_backward_parts(dnormed, dstream, stream, scale, norm_weight, two, keep)
    din_proj, dout_proj, *matrices = gradients.unpack()
    small, dweight = small_gradients(scan_parts, conv_parts, norm_parts, A)
    of_ways = [[*of_way[:2], *matrices[2 * i : 2 * i + 2], *of_way[2:]] for i, of_way in enumerate(small)]
    return [dhidden, dresidual, dweight, din_proj, dout_proj, *(t for of_way in of_ways for t in of_way)]


def _rows(t: Tensor) -> Tensor:
    return t.flatten(0, -2)


def _outer(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Fills out (left channels, right channels) with the sum over tokens of left ⊗ right."""
    torch.mm(_rows(left).t(), _rows(right), out=out)


def _setup(ctx, inputs, output):
    hidden, residual, keep, norm_weight, _, _, _, ways, _ = inputs
    ctx.hidden_dtype, ctx.two = hidden.dtype, residual is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], keep, norm_weight, *ways)


def _backward(ctx, dmixed, dstream, *_unused):
    stream, scale, ungated, states, packed, A, keep, norm_weight, *ways = ctx.saved_tensors
    dmixed = stream.new_zeros(stream.shape, dtype=packed.dtype) if dmixed is None else dmixed.contiguous()
    dstream = None if dstream is None else dstream.contiguous()
    saved = (stream, scale, ungated, states, packed, A, keep, norm_weight, ways, ctx.hidden_dtype, ctx.two)
    dhidden, dresidual, dweight, *gradients = block_backward(dmixed, dstream, *saved)
    return dhidden, dresidual if ctx.two else None, None, dweight, None, *gradients[:2], gradients[2:], None


differentiable(block_forward, _backward, _setup)
