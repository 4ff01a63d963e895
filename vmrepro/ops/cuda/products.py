"""Products of a block that plain ones are too slow for; where operands do not fit, plain products."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vmrepro.ops.cuda import driver
from vmrepro.ops.cuda.layout import IO, Pointer, Stride, aligned

THREADS = 256
STEP_TOKENS, STEP_BLOCKS = 32, 2  # TOKENS of step_gradients.cu; blocks on a multiprocessor
STEP_MATRIX = 384 * 16  # numbers of a matrix of step sizes that the registers hold
SIZE_TOKENS, SIZE_PIECE, SIZE_WARPS = 16, 64, 24  # TOKENS and PIECE of step_sizes.cu; warps on a multiprocessor


class StepArgs(ctypes.Structure):
    _fields_ = (
        *((name, Pointer * 2) for name in ("dlogits", "steps", "weight", "dsteps")),
        ("dweight", Pointer),
        *((name, Stride) for name in ("tokens", "steps_pitch", "dsteps_pitch")),
    )


class StepSizeArgs(ctypes.Structure):
    _fields_ = (
        *((name, Pointer * 2) for name in ("rows", "weight", "bias", "sizes")),
        *((name, Stride) for name in ("tokens", "pitch")),
    )


def step_sizes(rows: Sequence[Tensor], weight: Sequence[Tensor], bias: Sequence[Tensor]) -> tuple[list[Tensor], bool]:
    """The scans' delta (batch, length, channels) in both directions, and whether it is ready.

    Ready, it is softplus(rows @ weight^T + bias) as pack_step of softplus.cu packs it; else it is rows @ weight^T, without bias.
    rows: (batch, length, rank), parts of wider rows. weight: (channels, rank). bias: (channels,), in float32.
    """
    (batch, length, _), (channels, rank) = rows[0].shape, weight[0].shape
    bf16 = all(t.dtype == torch.bfloat16 for t in (*rows, *weight))
    whole = rank in (8, 16) and channels % SIZE_PIECE == 0 and channels <= SIZE_PIECE * SIZE_WARPS
    # A lane reads a quarter of a row at a time.
    if not (bf16 and whole and aligned([*rows, *(t.unsqueeze(0) for t in weight)], rank // 4 * 2)):
        return [functional.linear(row, matrix) for row, matrix in zip(rows, weight, strict=True)], False
    sizes = [row.new_empty((batch, length, channels)) for row in rows]
    tokens, fit = batch * length, SIZE_PIECE * SIZE_WARPS // channels
    blocks = min(-(-tokens // SIZE_TOKENS), fit * driver.multiprocessors(weight[0].device) // 2)
    pairs = ((Pointer * 2)(*(t.data_ptr() for t in pair)) for pair in (rows, weight, bias, sizes))
    args = StepSizeArgs(*pairs, tokens, rows[0].stride(1))
    macros = (("IO", IO[sizes[0].dtype]), ("CHANNELS", channels), ("RANK", rank), ("BLOCKS", fit))
    threads = channels // SIZE_PIECE * 32
    files = ("intrinsics.cu", "io.cu", "softplus.cu", "step_sizes.cu")
    driver.launch(files, "step_sizes", macros, (max(blocks, 1), 2, 1), threads, 0, args, sizes[0].device)
    return sizes, True


def step_gradients(
    dlogits: Sequence[Tensor], steps: Sequence[Tensor], weight: Sequence[Tensor], dsteps: Sequence[Tensor]
) -> Tensor:
    """Of logits = steps @ weight^T in both directions: fills dsteps, and returns parts of the gradients of both weights.

    dlogits: (batch, length, channels). steps and dsteps: (batch, length, rank), parts of wider rows. weight: (channels, rank).
    The parts, (parts, 2, rank, channels) in float32, are still to be added.
    """
    (batch, length, channels), (_, rank) = dlogits[0].shape, weight[0].shape
    fits = dlogits[0].dtype == torch.bfloat16 and channels % 128 == 0 and rank % 8 == 0 and channels * rank <= STEP_MATRIX
    if not (fits and aligned([*steps, *dsteps], 16)):
        for i in range(2):
            torch.mm(_rows(dlogits[i]), weight[i], out=_rows(dsteps[i]))
        return torch.stack([_rows(a).t() @ _rows(b) for a, b in zip(steps, dlogits, strict=True)]).float().unsqueeze(0)
    tokens = batch * length
    blocks = min(-(-tokens // STEP_TOKENS), STEP_BLOCKS * driver.multiprocessors(weight[0].device) // 2)
    parts = weight[0].new_empty((max(blocks, 1), 2, rank, channels), dtype=torch.float32)
    pairs = ((Pointer * 2)(*(t.data_ptr() for t in pair)) for pair in (dlogits, steps, weight, dsteps))
    args = StepArgs(*pairs, parts.data_ptr(), tokens, steps[0].stride(1), dsteps[0].stride(1))
    tiles = 2 * (STEP_TOKENS * (channels + 8) + STEP_TOKENS * (rank + 8)) * 2
    shared = tiles + 4 * 4 * STEP_TOKENS * rank
    macros = (("IO", IO[dlogits[0].dtype]), ("CHANNELS", channels), ("RANK", rank), ("SHARED_BYTES", shared))
    files = ("intrinsics.cu", "io.cu", "step_gradients.cu")
    driver.launch(files, "step_gradients", macros, (len(parts), 2, 1), THREADS, shared, args, parts.device)
    return parts


def _rows(t: Tensor) -> Tensor:
    return t.flatten(0, -2)
