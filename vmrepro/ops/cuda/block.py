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

# Tensors of a direction: conv weight (di, width) and bias, x_proj (R + 2N, di), dt_proj (di, R) and bias, A (di, N), D (di).
PER_WAY = 7
ALIGNMENT = 8  # rows of a product's operands, in elements: half as fast where they are no multiple of 16 bytes
SMALLEST_SLICE = 32_768  # tokens; below it, launches would show


def takes(hidden: Tensor, residual: Tensor | None, dtype: torch.dtype, way: tuple) -> bool:
    """Whether the kernels take a block of these operands; ``dtype`` is what the products are computed in."""
    taps, A = way[0], way[5]
    types = dtype in IO and hidden.dtype in IO and A.dtype != torch.float64
    types = types and (residual is None or residual.dtype == torch.float32)
    return types and A.shape[1] in STATES and taps.shape[1] in fused.WIDTHS and hidden.shape[-1] <= fused.MAX_NORM_CHANNELS


class Weights:
    """The matrices of a block in the type of the products, in one piece of memory; the step's rank is filled up to ``ALIGNMENT``.

    in_proj (2di, d), out_proj (d, di); for each direction x_proj (rank + 2N, di) and dt_proj (di, rank), zeros in what was added.
    """

    def __init__(self, packed: Tensor, width: int, inner: int, state: int, rank: int) -> None:
        self.packed, self.state, self.rank = packed, state, rank
        self.filled = -(-rank // ALIGNMENT) * ALIGNMENT
        rows = [(2 * inner, width), (width, inner), *((self.filled + 2 * state, inner), (inner, self.filled)) * 2]
        parts = packed.split([height * breadth for height, breadth in rows])
        views = [part.view(shape) for part, shape in zip(parts, rows, strict=True)]
        self.in_proj, self.out_proj = views[:2]
        self.x_proj, self.dt_proj = views[2::2], views[3::2]

    @staticmethod
    def size(width: int, inner: int, state: int, rank: int) -> int:
        filled = -(-rank // ALIGNMENT) * ALIGNMENT
        return 3 * inner * width + 4 * inner * (filled + state)

    @classmethod
    def pack(cls, in_proj: Tensor, out_proj: Tensor, ways: list[Tensor], dtype: torch.dtype) -> "Weights":
        """From the parameters; a few small copies, in one launch where torch can."""
        (width, inner), (state, rank) = out_proj.shape, (ways[5].shape[1], ways[3].shape[1])
        packed = in_proj.new_zeros(cls.size(width, inner, state, rank), dtype=dtype)
        weights = cls(packed, width, inner, state, rank)
        x_projs, dt_projs = ways[2::PER_WAY], ways[3::PER_WAY]
        targets = [weights.in_proj, weights.out_proj]
        targets += [part for x in weights.x_proj for part in (x[:rank], x[weights.filled :])]
        targets += [dt[:, :rank] for dt in weights.dt_proj]
        sources = [in_proj, out_proj, *(part for x in x_projs for part in (x[:rank], x[rank:])), *dt_projs]
        torch._foreach_copy_(targets, sources)
        return weights


def _scan_inputs(normed: Tensor, weights: Weights, ways: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor, list[Tensor]]:
    """(what both scans read, x, z, the products of x_proj) of sequences (batch, length, d)."""
    x, z = functional.linear(normed, weights.in_proj).chunk(2, dim=-1)
    pair = fused.conv_forward(x, *(way[i] for way in _each(ways) for i in (0, 1)))
    inputs, products = [], []
    for u, way, x_proj, dt_proj in zip(pair, _each(ways), weights.x_proj, weights.dt_proj, strict=True):
        product = functional.linear(u, x_proj)
        step, B, C = product.split((weights.filled, weights.state, weights.state), dim=-1)
        inputs += [u, functional.linear(step, dt_proj), way[5], B, C, way[6], way[4]]
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
    weights = Weights.pack(in_proj, out_proj, ways, mixed.dtype)
    sizes = _slices(*hidden.shape[:2], out_proj.shape[1], hidden.device)
    columns = [(None,) * len(sizes) if t is None else t.split(sizes) for t in (stream, hidden, residual, mixed)]
    for tensors in zip(*columns, strict=True):
        _mix(*tensors, norm_weight, eps, weights, ways)


def _mix(stream, hidden, residual, mixed, norm_weight, eps, weights: Weights, ways: list[Tensor]) -> None:
    """``_infer`` for a slice; a function of its own, so that what a slice needs ends with it."""
    normed = fused.norm_into(stream, hidden, residual, norm_weight, eps)[0].to(mixed.dtype)
    inputs, _, z, _ = _scan_inputs(normed, weights, ways)
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
    return torch.empty_like(hidden, dtype=dtype), stream, stream.new_empty((batch, length)), ungated, states, packed


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(mixed tokens in ``dtype``, the stream in float32, and for the backward pass scale, ungated sum, states, weights)."""
    stream = torch.empty_like(hidden, dtype=torch.float32)
    normed, scale = fused.norm_into(stream, hidden, residual, norm_weight, eps, keep)
    weights = Weights.pack(in_proj, out_proj, ways, dtype)
    inputs, _, z, _ = _scan_inputs(normed.to(dtype), weights, ways)
    y, ungated, states, _ = scan.scan_forward(inputs, z, True, False, True, False)
    return functional.linear(y, weights.out_proj), stream, scale, ungated, states, weights.packed


def _backward_shapes(dmixed, dstream, stream, scale, ungated, states, packed, keep, norm_weight, ways, hidden_dtype, two):
    inner, width = ungated.shape[2], stream.shape[2]
    matrices = [packed.new_empty((2 * inner, width)), packed.new_empty((width, inner))]
    # Gradients of products come in the products' type, the others in float32.
    of_ways = [torch.empty_like(t, dtype=packed.dtype if i % PER_WAY in (2, 3) else torch.float32) for i, t in enumerate(ways)]
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
    keep: Tensor | None,
    norm_weight: Tensor,
    ways: list[Tensor],
    hidden_dtype: torch.dtype,
    two: bool,
) -> list[Tensor]:
    """Gradients of hidden, the residual (empty unless there are ``two``), the norm's weight, in_proj, out_proj and the ways."""
    inner, width, state, rank = ungated.shape[2], stream.shape[2], ways[5].shape[1], ways[3].shape[1]
    weights = Weights(packed, width, inner, state, rank)
    inputs, x, z, products = _scan_inputs(fused.norm_again(stream, scale, norm_weight, packed.dtype), weights, ways)
    gated = torch.empty_like(ungated)
    # The gradient of z takes the place of z, and further down those of the deltas take theirs: nothing reads them afterwards.
    dy, dz = scan.gate_backward(dmixed @ weights.out_proj, z, ungated, z, gated)
    dout_proj = _outer(dmixed, gated)
    del gated
    deltas = inputs[1 :: scan.PER_DIRECTION]
    dus = [torch.empty_like(dy) for _ in deltas]
    streams = [dus[0], deltas[0], dus[1], deltas[1]]
    projections, parameters = scan.scan_backward_into(streams, dy, None, inputs, states, True, False)
    del dy
    of_ways = []
    for i, (way, du, ddelta, product) in enumerate(zip(_each(ways), dus, deltas, products, strict=True)):
        dproduct = torch.empty_like(product)
        torch.mm(_rows(ddelta), weights.dt_proj[i], out=_rows(dproduct)[:, : weights.filled])
        dproduct[..., weights.filled :] = projections[i].flatten(-2)
        dx_proj, ddt_proj = _outer(dproduct, inputs[i * scan.PER_DIRECTION]), _outer(ddelta, product[..., : weights.filled])
        _rows(du).addmm_(_rows(dproduct), weights.x_proj[i])
        dx_proj = torch.cat([dx_proj[:rank], dx_proj[weights.filled :]])
        dA, dD, dbias = parameters[i].split((state, 1, 1))
        of_conv = [torch.empty_like(way[0]), torch.empty_like(way[1])]  # filled below
        of_ways.append([*of_conv, dx_proj, ddt_proj[:, :rank].contiguous(), dbias[0].clone(), dA.t().contiguous(), dD[0].clone()])
    del inputs, deltas, streams, ddelta, product, products, projections
    dx, taps = fused.conv_backward(*dus, x, *(way[i] for way in _each(ways) for i in (0, 1)))
    for of_way, part in zip(of_ways, taps, strict=True):
        of_way[0].copy_(part[:-1].t())
        of_way[1].copy_(part[-1])
    del x, dus
    dnormed = (_rows(dx) @ weights.in_proj[:inner]).addmm_(_rows(dz), weights.in_proj[inner:]).view(stream.shape)
    normed = fused.norm_again(stream, scale, norm_weight, packed.dtype)
    din_proj = torch.cat([_outer(dx, normed), _outer(dz, normed)])
    dhidden, dresidual, dweight = fused.norm_backward(dnormed.to(hidden_dtype), dstream, stream, scale, norm_weight, two, keep)
    return [dhidden, dresidual, dweight, din_proj, dout_proj, *(t for of_way in of_ways for t in of_way)]


def _rows(t: Tensor) -> Tensor:
    return t.flatten(0, -2)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """The sum over tokens of left ⊗ right, (left channels, right channels)."""
    return _rows(left).t() @ _rows(right)


def _setup(ctx, inputs, output):
    hidden, residual, keep, norm_weight, _, _, _, ways, _ = inputs
    ctx.hidden_dtype, ctx.two = hidden.dtype, residual is not None
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:], keep, norm_weight, *ways)


def _backward(ctx, dmixed, dstream, *_unused):
    stream, scale, ungated, states, packed, keep, norm_weight, *ways = ctx.saved_tensors
    dmixed = stream.new_zeros(stream.shape, dtype=packed.dtype) if dmixed is None else dmixed.contiguous()
    dstream = None if dstream is None else dstream.contiguous()
    saved = (stream, scale, ungated, states, packed, keep, norm_weight, ways, ctx.hidden_dtype, ctx.two)
    dhidden, dresidual, dweight, *gradients = block_backward(dmixed, dstream, *saved)
    return dhidden, dresidual if ctx.two else None, None, dweight, None, *gradients[:2], gradients[2:], None


differentiable(block_forward, _backward, _setup)
