"""The selective scan of one or two directions as torch operators with a backward pass; the kernels are in scan_*.cu.

Letters as in ``vmrepro.ops.reference``. An operator takes the inputs of its directions as one list, seven tensors each: u, delta,
A, B, C, D, delta_bias. The first direction runs forward in time unless ``reverse``, the second backward.
"""

import ctypes
import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vmrepro.ops.cuda import driver
from vmrepro.ops.cuda.layout import (
    IO,
    PER_DIRECTION,
    SPREAD_BACKWARD_LANES,
    SPREAD_LANES,
    BackwardArgs,
    ChainArgs,
    Config,
    ForwardArgs,
    GateArgs,
    Gradients,
    JoinArgs,
    SummaryArgs,
    aligned,
    balanced,
    configure,
    defines,
    directions,
    resident,
)
from vmrepro.ops.cuda.operators import differentiable, operator

THREADS = 256  # of the elementwise kernels
SCAN = ("softplus.cu", "scan_common.cu")
SPREAD = (*SCAN, "spread_common.cu")
BEFORE = {"scan_backward.cu": (*SCAN, "channel_sums.cu"), "scan_spread.cu": SPREAD, "scan_spread_backward.cu": SPREAD}
BEFORE |= {"gate.cu": (), "join.cu": ()}  # else SCAN
# A shorter split would spend more on joining than it gains.
MIN_SPLIT_SEGMENTS = 4
MOST_PIECES = 3  # of a part: with more they are hardly more even
# Blocks of one direction that keep a multiprocessor busy.
FORWARD_ENOUGH, BACKWARD_ENOUGH = 2, 4
# Part of the GPU that a kernel which spreads a channel over lanes must fill to beat time cut in parts; where it fills all, it
# takes 0.78 of their time forward and 0.71 backward.
SPREAD_FILL = 0.8
SPREAD_STEPS = 384  # from which on the backward one is faster where time is whole, too
SPREAD_THREADS = 8  # of a channel and direction


def _launch(
    file: str, kernel: str, macros, grid: tuple[int, int, int], threads: int, shared: int, args, device: torch.device
) -> None:
    files = ("intrinsics.cu", "io.cu", *BEFORE.get(file, SCAN), file)
    driver.launch(files, kernel, macros, grid, threads, shared, args, device)


def _pointer(tensor: Tensor | None) -> int | None:
    return tensor.data_ptr() if tensor is not None and tensor.numel() else None


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


class Parts(NamedTuple):
    """Time cut in ``count`` parts of ``segments`` segments; what enters them is found by pieces, ``finer`` of a part."""

    count: int
    segments: int
    finer: int


def _parts(config: Config, u: Tensor, blocks: int, per_multiprocessor: int, enough: int) -> Parts:
    """How to cut time for so many ``blocks`` of one direction.

    A part costs nearly as much again to find what enters it, so time stays whole if the blocks fill half of the GPU, of which
    ``enough`` on a multiprocessor keep it busy. Pieces are such that the busiest multiprocessor has little more than the others.
    """
    segments, multiprocessors = _ceil(u.shape[1], config.segment), driver.multiprocessors(u.device)
    slots = multiprocessors * per_multiprocessor
    whole = 2 * blocks >= multiprocessors * enough
    wanted = 1 if whole else max(1, min(slots // blocks, segments // MIN_SPLIT_SEGMENTS))
    split = _ceil(segments, wanted)
    summaries = blocks * (_ceil(segments, split) - 1)
    choices = range(1, 1 + max(1, min(MOST_PIECES, split // MIN_SPLIT_SEGMENTS)))
    finer = min(choices, key=lambda n: _ceil(summaries * n, multiprocessors) / n)
    split = _ceil(split, finer) * finer
    return Parts(_ceil(segments, split), split, finer)


def _entering(
    inputs: list[Tensor], config: Config, reverse: bool, parts: Parts, start: Tensor | None, dy: Tensor | None = None
) -> Tensor | None:
    """What enters each part of time: (directions, parts, batch, channels, state), the state or, with ``dy``, its gradient.

    start: what enters the first part visited, of one direction, or None for zeros. With one part this is all there is.
    """
    if parts.count == 1:
        return start
    u, ways = inputs[0], len(inputs) // PER_DIRECTION
    (batch, length, channels), state = u.shape, config.state
    time = u.new_empty((ways, parts.count * parts.finer, batch, channels), dtype=torch.float32)
    added = time.new_empty((*time.shape, state))
    entering = time.new_empty((ways, parts.count, batch, channels, state))
    pointers, piece = (_pointer(dy), added.data_ptr(), time.data_ptr()), parts.segments // parts.finer
    args = SummaryArgs(directions(inputs), *pointers, batch, length, channels, ways, reverse, parts.finer, piece)
    kernel = "scan_summary" if dy is None else "scan_summary_gradient"
    grid = (_ceil(channels, config.lanes), batch, ways * (parts.count - 1) * parts.finer)
    _launch("scan_split.cu", kernel, defines(config), grid, config.lanes, config.shared(2), args, u.device)
    backward_in_time = (reverse, True)
    descending = sum(1 << way for way in range(ways) if backward_in_time[way] == (dy is None))
    rates = (ctypes.c_void_p * 2)(*(inputs[2 + way * PER_DIRECTION].data_ptr() for way in range(ways)))
    pointers = (_pointer(start), time.data_ptr(), added.data_ptr(), entering.data_ptr())
    args = ChainArgs(rates, *pointers, batch, channels, parts.count, parts.finer, descending)
    grid = (_ceil(channels * state, THREADS), batch, ways)
    _launch("scan_split.cu", "scan_chain", defines(config), grid, THREADS, 0, args, u.device)
    return entering


def room_to_save(inputs: list[Tensor], z: Tensor | None, save: bool, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the sum before the gate, the states entering each segment, and the last state; empty where not wanted."""
    u, A = inputs[:3:2]
    (batch, length, channels), config = u.shape, Config(u.dtype, A.shape[1])
    ungated = u.new_empty((batch, length, channels) if save and z is not None else 0)
    shape = (len(inputs) // PER_DIRECTION, batch, _ceil(length, config.segment), channels, config.state)
    states = u.new_empty(shape if save else 0, dtype=config.saved_dtype)
    return ungated, states, A.new_empty((batch, channels, config.state) if last else 0)


def _scan_forward_shapes(inputs, z, softplus, reverse, save, last):
    return inputs[0].new_empty(inputs[0].shape), *room_to_save(inputs, z, save, last)


@operator(fake=_scan_forward_shapes)
def scan_forward(
    inputs: list[Tensor], z: Tensor | None, softplus: bool, reverse: bool, save: bool, last: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, y before the gate, saved states, last state); the latter three are empty unless ``save`` or ``last`` asks for them."""
    return run_forward(inputs, z, softplus, reverse, save, last)


def run_forward(
    inputs: list[Tensor], z: Tensor | None, softplus: bool, reverse: bool, save: bool, last: bool, ready: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``scan_forward`` for another operator; ``ready``: delta is what ``products.step_sizes`` makes."""
    u, ways = inputs[0], len(inputs) // PER_DIRECTION
    batch, length, channels = u.shape
    out = u.new_empty(u.shape)
    ungated, states, last_state = room_to_save(inputs, z, save, last)
    config = configure(inputs, z, softplus, ready)
    blocks = _ceil(channels, config.lanes)
    parts = _parts(config, u, blocks * batch * ways, config.forward_blocks, FORWARD_ENOUGH)
    if parts.count > 1 and not last and _spreads(inputs, config, SPREAD_LANES, 2, config.spread_shared):
        _run_spread(inputs, z, config, out, ungated, states)
        return out, ungated, states, last_state
    initial = _entering(inputs, config, reverse, parts, None)
    if parts.count == 1 and ways == 2:
        config = balanced(config, channels, batch, driver.multiprocessors(u.device))
        blocks = _ceil(channels, config.lanes)
    gate = (None, 0, 0) if z is None else (z.data_ptr(), *z.stride()[:2])
    pointers = (out.data_ptr(), *map(_pointer, (ungated, states, initial, last_state)))
    args = ForwardArgs(directions(inputs), *gate, *pointers, batch, length, channels, reverse, parts.segments)
    shared = ways * config.shared(4)
    grid = (blocks, batch, parts.count)
    together = resident(config, ways, math.prod(grid), driver.multiprocessors(u.device))
    choices = {"DIRECTIONS": ways, "GATE": int(z is not None), "KEEP": int(save), "SHARED_BYTES": shared}
    macros = defines(config, FORWARD_BLOCKS=together, **choices)
    _launch("scan_forward.cu", "scan_forward", macros, grid, ways * config.lanes, shared, args, u.device)
    return out, ungated, states, last_state


def _spreads(inputs: list[Tensor], config: Config, lanes: int, together: int, shared: int) -> bool:
    """Whether a kernel that spreads a channel over lanes takes these operands, and they fill the GPU.

    Its blocks have so many channels (``lanes``) of ``together`` directions, and ``shared`` bytes of shared memory, which some
    GPUs lack.
    """
    u, ways = inputs[0], len(inputs) // PER_DIRECTION
    projections = [t for i, t in enumerate(inputs) if i % PER_DIRECTION in (3, 4)]
    blocks, multiprocessors = ways // together * u.shape[0] * _ceil(u.shape[2], lanes), driver.multiprocessors(u.device)
    fills = blocks >= SPREAD_FILL * multiprocessors * _ceil(blocks, multiprocessors)
    takes = ways >= together and config.matrix_units and config.vector and aligned(projections, 16)
    return fills and takes and shared <= driver.most_shared_bytes(u.device)


def _run_spread(inputs: list[Tensor], z: Tensor | None, config: Config, out: Tensor, ungated: Tensor, states: Tensor) -> None:
    """Fills out and, where they are not empty, ungated and states."""
    batch, length, channels = out.shape
    gate = (None, 0, 0) if z is None else (z.data_ptr(), *z.stride()[:2])
    pointers = (*map(_pointer, (out, ungated, states)), None, None)
    args = ForwardArgs(directions(inputs), *gate, *pointers, batch, length, channels, False, 0)
    choices = {"GATE": int(z is not None), "KEEP": int(states.numel() > 0), "SHARED_BYTES": config.spread_shared}
    macros = defines(replace(config, widest=SPREAD_LANES), **choices)
    grid, threads = (_ceil(channels, SPREAD_LANES), batch, 1), 2 * SPREAD_THREADS * SPREAD_LANES
    _launch("scan_spread.cu", "scan_spread", macros, grid, threads, config.spread_shared, args, out.device)


def gate_backward(
    dout: Tensor, z: Tensor, ungated: Tensor, dz: Tensor | None = None, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(gradient before the gate, dz); fills dz, a part of wider rows, and out, the gated product, where they are given."""
    dy, dz = torch.empty_like(dout), torch.empty_like(dout) if dz is None else dz
    pointers = (dout.data_ptr(), z.data_ptr(), ungated.data_ptr(), *z.stride()[:2], dy.data_ptr(), dz.data_ptr())
    args = GateArgs(*pointers, *dz.stride()[:2], _pointer(out), dout.numel(), *dout.shape[1:])
    vector = aligned([dout, z, dz], 16) and dout.shape[2] * dout.itemsize % 16 == 0
    macros = (("IO", IO[dout.dtype]), ("VECTOR", int(vector)))
    pieces = dout.numel() // (16 // dout.itemsize if vector else 1)
    _launch("gate.cu", "gate_backward", macros, (_ceil(pieces, THREADS), 1, 1), THREADS, 0, args, dout.device)
    return dy, dz


def _scan_backward_shapes(dout, dlast, inputs, z, ungated, states, softplus, reverse):
    u, state, ways = inputs[0], inputs[2].shape[1], len(inputs) // PER_DIRECTION
    batch, length, channels = u.shape
    projections = u.new_empty((ways, batch, length, 2, state))
    parameters = u.new_empty((ways, state + 2, channels), dtype=torch.float32)
    gate = [] if z is None else [u.new_empty(u.shape)]
    return [*(u.new_empty(u.shape) for _ in range(2 * ways)), projections, parameters, *gate]


@operator(fake=_scan_backward_shapes)
def scan_backward(
    dout: Tensor,
    dlast: Tensor | None,
    inputs: list[Tensor],
    z: Tensor | None,
    ungated: Tensor,
    states: Tensor,
    softplus: bool,
    reverse: bool,
) -> list[Tensor]:
    """du and ddelta of each direction, then (directions, batch, length, 2, state) with dB and dC in u's type, then
    (directions, state + 2, channels) with dA, dD and the gradient of the step bias, then dz if there is a gate."""
    u, ways = inputs[0], len(inputs) // PER_DIRECTION
    dy, *dz = [dout] if z is None else gate_backward(dout, z, ungated)
    streams = [u.new_empty(u.shape) for _ in range(2 * ways)]
    projections = u.new_empty((ways, *u.shape[:2], 2, inputs[2].shape[1]))
    rows = [way.flatten(-2) for way in projections]
    parts = scan_backward_into(streams, rows, dy, dlast, inputs, states, softplus, reverse)
    return [*streams, projections, parts.sum(0), *dz]


def scan_backward_into(
    streams: list[Tensor],
    projections: list[Tensor],
    dy: Tensor,
    dlast: Tensor | None,
    inputs: list[Tensor],
    states: Tensor,
    softplus: bool,
    reverse: bool,
    ready: bool = False,
) -> Tensor:
    """Fills du and ddelta of each direction, and dB and dC side by side; returns parts of the parameters' gradients.

    projections: for each direction (batch, length, 2 * state), maybe a part of wider rows. dy: the gradient before the gate. A
    ddelta may be the delta itself: a block reads its steps before it writes them. ``ready`` as in ``run_forward``. The parts,
    (parts, directions, state + 2, channels), are still to be added.
    """
    u, state, ways = inputs[0], inputs[2].shape[1], len(inputs) // PER_DIRECTION
    batch, length, channels = u.shape
    config = configure(inputs, None, softplus, ready)
    parts = _parts(config, u, _ceil(channels, config.lanes) * batch * ways, config.backward_blocks, BACKWARD_ENOUGH)
    kernel, shared, threads, kept = "scan_backward", config.backward_shared, config.lanes, config.earlier_states
    long = parts.count > 1 or length >= SPREAD_STEPS
    if long and dlast is None and _spreads(inputs, config, SPREAD_BACKWARD_LANES, 1, config.spread_backward_shared):
        kernel, shared, parts = "scan_spread_backward", config.spread_backward_shared, Parts(1, _ceil(length, config.segment), 1)
        config = replace(config, widest=SPREAD_BACKWARD_LANES)
        threads, kept = SPREAD_THREADS * config.lanes, 0
    blocks, carry = _ceil(channels, config.lanes), _entering(inputs, config, reverse, parts, dlast, dy)
    sums = u.new_empty((blocks, ways, batch, length, 2, state), dtype=torch.float32)
    parameters = sums.new_empty((parts.count * batch, ways, state + 2, channels))
    gradients = (Gradients * 2)(*(Gradients(*(t.data_ptr() for t in streams[2 * i : 2 * i + 2])) for i in range(ways)))
    grid = (blocks, batch, ways * parts.count)
    earlier = states.new_empty((math.prod(grid), kept))
    pointers = (dy.data_ptr(), states.data_ptr(), *map(_pointer, (carry, sums, parameters, earlier)))
    args = BackwardArgs(directions(inputs), gradients, *pointers, batch, length, channels, ways, reverse, parts.segments)
    macros = defines(config, BACKWARD_BLOCKS=config.backward_blocks, SHARED_BYTES=shared)
    _launch(f"{kernel}.cu", kernel, macros, grid, threads, shared, args, u.device)
    targets, rows = (ctypes.c_void_p * 2)(*(t.data_ptr() for t in projections)), batch * length
    args = JoinArgs(sums.data_ptr(), targets, rows, projections[0].stride(1), blocks)
    grid = (_ceil(rows * 2 * state // 4, THREADS), ways, 1)
    _launch("join.cu", "join_projections", (("IO", IO[u.dtype]), ("STATE", state)), grid, THREADS, 0, args, u.device)
    return parameters


def _setup(ctx, inputs, output):
    tensors, z, ctx.softplus, ctx.reverse, save, ctx.last = inputs
    if save:
        ctx.gated = z is not None
        ctx.save_for_backward(*tensors, *(() if z is None else (z,)), *output[1:3])


def _backward(ctx, dout, _dungated, _dstates, dlast):
    *inputs, ungated, states = ctx.saved_tensors
    z = inputs.pop() if ctx.gated else None
    state, ways = inputs[2].shape[1], len(inputs) // PER_DIRECTION
    dlast = dlast.contiguous() if ctx.last else None
    parts = scan_backward(dout.contiguous(), dlast, inputs, z, ungated, states, ctx.softplus, ctx.reverse)
    projections, parameters = parts[2 * ways : 2 * ways + 2]
    gradients = []
    for way in range(ways):
        dB, dC = projections[way].unbind(2)
        dA, dD, dbias = parameters[way].split((state, 1, 1))
        gradients += [*parts[2 * way : 2 * way + 2], dA.t(), dB, dC, dD[0], dbias[0]]
    return gradients, parts[-1] if z is not None else None, None, None, None, None


differentiable(scan_forward, _backward, _setup)
