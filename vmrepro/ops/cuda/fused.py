"""The convolution pair and the residual norm as torch operators with a backward pass; the kernels are in conv.cu and norm.cu."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from vmrepro.ops.cuda import driver
from vmrepro.ops.cuda.layout import IO, Int, Pointer, Stride
from vmrepro.ops.cuda.operators import differentiable, operator

WIDTHS = (2, 3, 4)
CONV_THREADS = 64
CONV_TILES = (64, 32, 16)  # steps of a thread: each tile reads a few neighbouring steps again
CONV_AHEAD = {"conv_forward": 8, "conv_backward": 4}  # steps read together; 8 and the next 8 would not fit into registers
PRODUCT_STEPS = 16  # STEPS of conv.cu
CONV_ENOUGH = 16  # blocks that keep a multiprocessor busy
NORM_WARPS = 8
NORM_PIECE = 128  # channels of a warp per register quad
MAX_NORM_CHANNELS = 2048
NORM_BACKWARD_BLOCKS = 528  # four for each multiprocessor of an H100 or H200


class ConvArgs(ctypes.Structure):
    _fields_ = (
        ("x", Pointer),
        *((name, Stride) for name in ("x_batch", "x_time", "out_batch", "out_time")),
        *((name, Pointer * 2) for name in ("weight", "bias", "out", "dout")),
        ("dx", Pointer),
        ("parameters", Pointer),
        *((name, Pointer * 2) for name in ("left", "right")),
        *((name, Int) for name in ("length", "channels", "tiles")),
    )


class NormArgs(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("hidden", "residual", "weight", "keep")),
        ("sample_rows", Stride),
        *((name, Pointer) for name in ("normed", "stream", "scale")),
        *((name, Pointer) for name in ("dnormed", "dstream", "dhidden", "dresidual", "dweight")),
        ("rows", Stride),
        ("eps", ctypes.c_float),
        ("channels", Int),
    )


def _tile(x: Tensor, pack: int) -> int:
    """Steps of a thread: as many as still leave ``CONV_ENOUGH`` blocks for each multiprocessor."""
    batch, length, channels = x.shape
    columns, wanted = batch * -(-channels // (CONV_THREADS * pack)), CONV_ENOUGH * driver.multiprocessors(x.device)
    return next((tile for tile in CONV_TILES if columns * -(-length // tile) >= wanted), CONV_TILES[-1])


def _pack(x: Tensor, results: list[Tensor]) -> int:
    """Channels of a thread: two where all rows of x and of the results are made of aligned pairs."""
    even = x.shape[2] % 2 == 0 and all(stride % 2 == 0 for t in (x, *results) for stride in t.stride()[:2])
    return 2 if even and all(t.data_ptr() % (2 * t.itemsize) == 0 for t in (x, *results)) else 1


def _conv(
    kernel: str,
    x: Tensor,
    ways: tuple[int, ...],
    taps: list[Tensor],
    dx: Tensor | None = None,
    product: int = 0,
    **pairs: list[Tensor],
) -> Tensor:
    """Launch a kernel of conv.cu for the directions in ``ways``, 0 forward and 1 backward, and return parts of dtaps.

    taps: weight and bias of each of them. pairs: out of each, alike in strides, to be filled; or, with a dx to be filled, dout,
    and for a product over so many numbers left and right.
    """
    batch, length, channels = x.shape
    results = pairs["out"] if dx is None else [dx]
    pack, width, threads, shared = _pack(x, results), taps[0].shape[1], CONV_THREADS, 0
    tile = _tile(x, pack)
    if dx is not None:
        tile -= width - 1  # the gradients of a tile reach so far past it: whole groups of steps with them
    tiles = -(-length // tile)
    if product:
        threads *= 2
        depth, warps = -(-product // 16) * 16, threads // 32
        shared = 2 * 2 * (depth * (CONV_THREADS * pack + 8) + warps * PRODUCT_STEPS * (32 * pack + 8))
    parts = taps[0].new_empty(0 if dx is None else (batch * tiles, len(ways), width + 1, channels))
    strides = (*x.stride()[:2], *results[0].stride()[:2])
    args = ConvArgs(x.data_ptr(), *strides, parameters=parts.data_ptr(), length=length, channels=channels, tiles=tiles)
    args.dx = None if dx is None else dx.data_ptr()
    for name, tensors in (pairs | {"weight": taps[::2], "bias": taps[1::2]}).items():
        for way, tensor in zip(ways, tensors, strict=True):
            getattr(args, name)[way] = tensor.data_ptr()
    sizes = {"IO": IO[x.dtype], "WIDTH": width, "PACK": pack, "COLUMN": CONV_THREADS, "THREADS": threads, "TILE": tile}
    sizes |= {"AHEAD": CONV_AHEAD[kernel], "WAYS": sum(1 << way for way in ways), "PRODUCT": product, "SHARED_BYTES": shared}
    grid = (-(-channels // (CONV_THREADS * pack)), -(-tiles * CONV_THREADS // threads), batch)
    driver.launch(("intrinsics.cu", "io.cu", "conv.cu"), kernel, tuple(sizes.items()), grid, threads, shared, args, x.device)
    return parts


def _conv_forward_shapes(x, weight_f, bias_f, weight_b, bias_b):
    return x.new_empty(x.shape), x.new_empty(x.shape)


@operator(fake=_conv_forward_shapes)
def conv_forward(x: Tensor, weight_f: Tensor, bias_f: Tensor, weight_b: Tensor, bias_b: Tensor) -> tuple[Tensor, Tensor]:
    """(u_f, u_b), (batch, length, channels) in x's type."""
    out = x.new_empty(x.shape), x.new_empty(x.shape)
    conv_into(*out, x, [weight_f, bias_f, weight_b, bias_b])
    return out


def conv_into(u_f: Tensor, u_b: Tensor, x: Tensor, taps: list[Tensor]) -> None:
    """Fills u_f and u_b as ``conv_forward`` gives them; they may be parts of wider rows, equally wide for both."""
    _conv("conv_forward", x, (0, 1), taps, out=[u_f, u_b])


def _conv_backward_shapes(dout_f, dout_b, x, weight_f, bias_f, weight_b, bias_b):
    return x.new_empty(x.shape), weight_f.new_empty((2, weight_f.shape[1] + 1, x.shape[2]))


@operator(fake=_conv_backward_shapes)
def conv_backward(
    dout_f: Tensor, dout_b: Tensor, x: Tensor, weight_f: Tensor, bias_f: Tensor, weight_b: Tensor, bias_b: Tensor
) -> tuple[Tensor, Tensor]:
    """(dx, (2, width + 1, channels) with the gradients of the taps and, last, of the bias of each direction)."""
    dx = x.new_empty(x.shape)
    parts = conv_backward_into(dx, [dout_f, dout_b], x, [weight_f, bias_f, weight_b, bias_b])
    return dx, parts.sum(0)


def conv_backward_into(
    dx: Tensor, dout: list[Tensor], x: Tensor, taps: list[Tensor], left: Sequence[Tensor] = (), right: Sequence[Tensor] = ()
) -> Tensor:
    """Fills dx, maybe a part of wider rows; returns parts (parts, 2, width + 1, channels) of what ``conv_backward`` adds up.

    left (batch, length, n) and right (n, channels) of each direction: their product is part of the gradient beside dout, to which
    it may be added on the way.
    """
    if not left:
        return _conv("conv_backward", x, (0, 1), taps, dx, dout=dout)
    product, channels = right[0].shape
    if x.dtype == torch.bfloat16 and product % 8 == 0 and channels % (2 * CONV_THREADS) == 0 and _pack(x, [dx]) == 2:
        return _conv("conv_backward", x, (0, 1), taps, dx, product, dout=dout, left=left, right=right)
    for total, a, b in zip(dout, left, right, strict=True):
        total.flatten(0, 1).addmm_(a.flatten(0, 1), b)
    return _conv("conv_backward", x, (0, 1), taps, dx, dout=dout)


def _conv_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _conv_backward(ctx, dout_f, dout_b):
    dx, parameters = conv_backward(dout_f.contiguous(), dout_b.contiguous(), *ctx.saved_tensors)
    (dw_f, db_f), (dw_b, db_b) = ((way[:-1].t(), way[-1]) for way in parameters.unbind(0))
    return dx, dw_f, db_f, dw_b, db_b


differentiable(conv_forward, _conv_backward, _conv_setup)


def _causal_conv_shapes(x, weight, bias, reverse):
    return x.new_empty(x.shape)


@operator(fake=_causal_conv_shapes)
def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """One of the pair that ``conv_forward`` gives: u_f or, with ``reverse``, u_b."""
    out = x.new_empty(x.shape)
    _conv("conv_forward", x, (int(reverse),), [weight, bias], out=[out])
    return out


def _causal_conv_backward_shapes(dout, x, weight, bias, reverse):
    return x.new_empty(x.shape), weight.new_empty((weight.shape[1] + 1, x.shape[2]))


@operator(fake=_causal_conv_backward_shapes)
def causal_conv_backward(dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """(dx, (width + 1, channels) with the gradients of the taps and, last, of the bias)."""
    dx = x.new_empty(x.shape)
    parts = _conv("conv_backward", x, (int(reverse),), [weight, bias], dx, dout=[dout])
    return dx, parts.sum(0)[0]


def _causal_conv_setup(ctx, inputs, output):
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _causal_conv_backward(ctx, dout):
    dx, parameters = causal_conv_backward(dout.contiguous(), *ctx.saved_tensors, ctx.reverse)
    return dx, parameters[:-1].t(), parameters[-1], None


differentiable(causal_conv, _causal_conv_backward, _causal_conv_setup)


def _norm(kernel: str, like: Tensor, *, eps: float = 0.0, blocks: int = 0, **pointers: Tensor | None) -> None:
    """Launch a kernel of norm.cu on rows of like's type and shape; a warp takes a row, or with ``blocks`` every so many rows.

    Without a weight among the pointers the norm has none.
    """
    channels, keep = like.shape[-1], pointers.get("keep")
    rows = like.numel() // channels
    addresses = {name: tensor.data_ptr() for name, tensor in pointers.items() if tensor is not None}
    quads = channels % 4 == 0 and all(address % 16 == 0 for name, address in addresses.items() if name != "keep")
    args = NormArgs(rows=rows, eps=eps, channels=channels, sample_rows=1 if keep is None else rows // len(keep), **addresses)
    sizes = {
        "IO": IO[like.dtype],
        "PIECES": -(-channels // NORM_PIECE),
        "QUADS": int(quads),
        "WEIGHTED": int("weight" in addresses),
    }
    shared = NORM_WARPS * channels * 4 if blocks else 0
    grid = (blocks or -(-rows // NORM_WARPS), 1, 1)
    driver.launch(
        ("intrinsics.cu", "io.cu", "norm.cu"), kernel, tuple(sizes.items()), grid, 32 * NORM_WARPS, shared, args, like.device
    )


def _norm_forward_shapes(hidden, residual, weight, eps):
    stream = torch.empty_like(hidden, dtype=torch.float32)
    return torch.empty_like(hidden), stream, stream.new_empty(hidden.shape[:-1])


@operator(fake=_norm_forward_shapes)
def norm_forward(hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(normed in hidden's type, the stream in float32, the scale of each row in float32)."""
    stream = torch.empty_like(hidden, dtype=torch.float32)
    normed, scale = norm_into(stream, hidden, residual, eps, weight)
    return normed, stream, scale


def norm_into(
    stream: Tensor | None,
    hidden: Tensor,
    residual: Tensor | None,
    eps: float,
    weight: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Fills the stream, which may be the residual itself or not be wanted, and returns (normed, scale) as ``norm_forward`` does.

    weight: None for ones. keep: a factor of hidden for each sample, (samples,) in float32, or None for ones.
    """
    normed, scale = torch.empty_like(hidden), hidden.new_empty(hidden.shape[:-1], dtype=torch.float32)
    pointers = {"hidden": hidden, "residual": residual, "weight": weight, "keep": keep}
    _norm("norm_forward", hidden, eps=eps, **pointers, normed=normed, stream=stream, scale=scale)
    return normed, scale


def _norm_backward_shapes(dnormed, dstream, stream, scale, weight, two):
    return torch.empty_like(dnormed), stream.new_empty(stream.shape if two else 0), torch.empty_like(weight)


@operator(fake=_norm_backward_shapes)
def norm_backward(
    dnormed: Tensor, dstream: Tensor | None, stream: Tensor, scale: Tensor, weight: Tensor, two: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dhidden in dnormed's type, the same in float32 for the residual if there are ``two`` inputs, else empty, dweight)."""
    blocks = min(NORM_BACKWARD_BLOCKS, -(-scale.numel() // NORM_WARPS))
    parts = weight.new_empty((blocks, len(weight)))
    given = {"stream": stream, "weight": weight, "dweight": parts}
    return *norm_gradients(dnormed, dstream, scale, two, blocks=blocks, **given), parts.sum(0)


def norm_gradients(
    dnormed: Tensor, dstream: Tensor | None, scale: Tensor, two: bool, *, blocks: int = 0, **pointers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The first two results of ``norm_backward``.

    pointers: more of NormArgs. For a norm with a weight: the stream, the weight, and a dweight of so many ``blocks`` parts to be
    filled. For one without: normed, in dnormed's type. For either: keep, as in ``norm_into``.
    """
    dhidden, dresidual = torch.empty_like(dnormed), scale.new_empty(dnormed.shape if two else 0)
    pointers |= {"scale": scale, "dnormed": dnormed, "dstream": dstream, "dhidden": dhidden}
    _norm("norm_backward", dnormed, blocks=blocks, dresidual=dresidual if two else None, **pointers)
    return dhidden, dresidual


def _norm_setup(ctx, inputs, output):
    _, residual, weight, _ = inputs
    ctx.two, ctx.dtype = residual is not None, inputs[0].dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, *output[1:])


def _norm_backward(ctx, dnormed, dstream, _dscale):
    weight, stream, scale = ctx.saved_tensors
    dnormed = torch.zeros_like(stream, dtype=ctx.dtype) if dnormed is None else dnormed.contiguous()
    dstream = None if dstream is None else dstream.contiguous()
    dhidden, dresidual, dweight = norm_backward(dnormed, dstream, stream, scale, weight, ctx.two)
    return dhidden, dresidual if ctx.two else None, dweight, None


differentiable(norm_forward, _norm_backward, _norm_setup)
