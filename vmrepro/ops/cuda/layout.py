"""What the scan's kernels are given: parameters as C structures, field by field as in scan_*.cu, and compile-time sizes."""

import ctypes
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

PER_DIRECTION = 7
IO = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
STATES = (8, 16, 32, 64)
MERGE = 2  # chunks between two saved states: more saves memory, and costs time to replay
# What a two-way forward pass takes with 1, 2, ... blocks on a multiprocessor, by channels of a block (ms, 1569 steps, H200).
BLOCK_TIMES = {128: (0.295, 0.545), 64: (0.199, 0.302, 0.440, 0.597)}
SPREAD_LANES = 24  # LANES of scan_spread.cu, both of whose directions are then three warps a scheduler
SPREAD_BACKWARD_LANES = 48  # and of scan_spread_backward.cu, whose blocks have one direction
SOURCES, PICKS = 96, 256  # bytes of where a block of the backward pass finds its operands and results, and of what it sums with

Pointer, Stride, Int = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int


def _fields(kind: type, names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names.split())


class Direction(ctypes.Structure):
    _fields_ = _fields(Pointer, "u delta B C A D bias") + _fields(
        Stride, "u_batch u_time delta_batch delta_time B_batch B_time C_batch C_time"
    )


class ForwardArgs(ctypes.Structure):
    _fields_ = (
        ("direction", Direction * 2),
        *_fields(Pointer, "z"),
        *_fields(Stride, "z_batch z_time"),
        *_fields(Pointer, "out ungated states initial last"),
        *_fields(Int, "batch length channels reverse split"),
    )


class Gradients(ctypes.Structure):
    _fields_ = _fields(Pointer, "u delta")


class BackwardArgs(ctypes.Structure):
    _fields_ = (
        ("direction", Direction * 2),
        ("gradient", Gradients * 2),
        *_fields(Pointer, "dy states carry projections parameters earlier"),
        *_fields(Int, "batch length channels directions reverse split"),
    )


class GateArgs(ctypes.Structure):
    _fields_ = (
        *_fields(Pointer, "dout z ungated"),
        *_fields(Stride, "z_batch z_time"),
        *_fields(Pointer, "dungated dz"),
        *_fields(Stride, "dz_batch dz_time"),
        *_fields(Pointer, "out"),
        *_fields(Stride, "count"),
        *_fields(Int, "length channels"),
    )


class SummaryArgs(ctypes.Structure):
    _fields_ = (
        ("direction", Direction * 2),
        *_fields(Pointer, "dy state time"),
        *_fields(Int, "batch length channels directions reverse finer piece"),
    )


class ChainArgs(ctypes.Structure):
    _fields_ = (
        ("A", Pointer * 2),
        *_fields(Pointer, "start time state entering"),
        *_fields(Int, "batch channels splits finer descending"),
    )


class JoinArgs(ctypes.Structure):
    _fields_ = (*_fields(Pointer, "parts"), ("target", Pointer * 2), *_fields(Stride, "rows pitch"), *_fields(Int, "count"))


@dataclass(frozen=True)
class Config:
    """Compile-time sizes for operands of ``dtype`` and ``state`` states; ``ready``: delta holds packed step sizes; ``vector``:
    all rows of u, delta and z are made of aligned 16-byte pieces; ``words``: those of B and C of aligned words; ``widest``:
    channels of a block at most."""

    dtype: torch.dtype
    state: int
    softplus: bool = True
    ready: bool = False
    vector: bool = True
    words: bool = True
    widest: int = 128

    @property
    def matrix_units(self) -> bool:
        """Whether sums over channels run on the tensor cores, with states saved in bf16."""
        return self.state == 16 and self.dtype == torch.bfloat16

    @property
    def saved_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.matrix_units else torch.float32

    @property
    def lanes(self) -> int:
        """Channels of a block."""
        return 64 if self.state > 32 else self.widest

    @property
    def chunk(self) -> int:
        """Steps whose states the backward pass holds at a time."""
        return 8 if self.state <= 16 else 4

    @property
    def segment(self) -> int:
        """Steps between two saved states."""
        return self.chunk * MERGE

    @property
    def forward_blocks(self) -> int:
        """Blocks of the forward kernel, of one direction, on a multiprocessor; more would starve its loop of registers."""
        return 512 // self.lanes if self.matrix_units else 2

    @property
    def backward_blocks(self) -> int:
        """The same for the backward kernel."""
        return 3 if self.matrix_units else 1

    def shared(self, tiles: int) -> int:
        """Bytes of two buffers, each of ``tiles`` tiles (segment, lanes), and B and C in float32; and of B and C as they come."""
        item, projections = self.dtype.itemsize, 2 * self.state
        return self.segment * (2 * (tiles * self.lanes * item + projections * 4) + projections * item)

    @property
    def spread_shared(self) -> int:
        """Bytes of both directions' SpreadShared in scan_spread.cu."""
        span, table = 2 * self.segment, 4 * (3 * 4 * (self.segment + 4) + self.segment)
        tile, rows = span * SPREAD_LANES * 2, span * self.state * 2
        return 2 * (4 * (4 * tile + 2 * rows) + 2 * 2 * tile + SPREAD_LANES // 4 * 2 * table)

    @property
    def spread_backward_shared(self) -> int:
        """Bytes of SpreadShared in scan_spread_backward.cu."""
        lanes, segment = SPREAD_BACKWARD_LANES, self.segment
        tile, terms, rows = segment * (lanes + 8) * 2, segment * lanes * self.state * 2, 2 * (segment * self.state + 40)
        table = 4 * (4 * 24 + 2 * (2 * (8 * 4 + 4) + 8 * 4))
        return 6 * (3 * tile + 2 * rows) + 6 * (terms + tile) + lanes // 4 * table + 8 + 256

    @property
    def backward_shared(self) -> int:
        """Bytes of BackwardShared in scan_backward.cu."""
        slot, more = (self.state * 2, PICKS) if self.matrix_units else ((self.state + 1) * 4, self.lanes * self.chunk * 4)
        steps = 0 if self.ready else self.lanes * self.segment * 4
        return self.shared(3) + SOURCES + more + steps + self.lanes * (self.chunk + 1) * slot

    @property
    def earlier_states(self) -> int:
        """Numbers that a block of the backward pass keeps in global memory: the states before the last chunk of a segment."""
        return (MERGE - 1) * self.chunk * self.lanes * self.state


_config = cache(Config)


def pass_times(channels: int, sequences: int, multiprocessors: int) -> dict[int, float]:
    """What a two-way forward pass takes with blocks of so many channels, by channels of a block, in relative units.

    The multiprocessor with most blocks sets the time; ``BLOCK_TIMES`` says what it takes for them.
    """
    times = {}
    for lanes, together in BLOCK_TIMES.items():
        blocks = -(-(-(-channels // lanes) * sequences) // multiprocessors)
        rounds, rest = divmod(blocks, len(together))
        times[lanes] = rounds * together[-1] + (together[rest - 1] if rest else 0.0)
    return times


def balanced(config: Config, channels: int, sequences: int, multiprocessors: int) -> Config:
    """The same with as many channels a block as ``pass_times`` finds fastest."""
    times = pass_times(channels, sequences, multiprocessors)
    return replace(config, widest=min(times, key=times.get))


def resident(config: Config, ways: int, blocks: int, multiprocessors: int) -> int:
    """Blocks of the forward kernel that share a multiprocessor: one less than could, with more registers each, if so few do."""
    most = config.forward_blocks // ways
    return max(1, most - 1 if blocks <= (most - 1) * multiprocessors else most)


@cache
def defines(config: Config, **more: int) -> tuple[tuple[str, int], ...]:
    """The macros of scan_common.cu and those in ``more``."""
    return (
        ("IO", IO[config.dtype]),
        ("STATE", config.state),
        ("LANES", config.lanes),
        ("CHUNK", config.chunk),
        ("MERGE", MERGE),
        ("SOFTPLUS", int(config.softplus)),
        ("STEPS_READY", int(config.ready)),
        ("VECTOR", int(config.vector)),
        ("WORDS", int(config.words)),
        *more.items(),
    )


def configure(inputs: list[Tensor], z: Tensor | None, softplus: bool, ready: bool = False) -> Config:
    """The sizes for these operands, with wide accesses where all of them allow it."""
    u, A = inputs[:3:2]
    rows = [t for i, t in enumerate(inputs) if i % PER_DIRECTION < 2] + ([] if z is None else [z])
    projections = [t for i, t in enumerate(inputs) if i % PER_DIRECTION in (3, 4)]
    vector = aligned(rows, 16) and u.shape[2] * u.itemsize % 16 == 0
    return _config(u.dtype, A.shape[1], softplus, ready, vector, aligned(projections, 4))


def aligned(tensors: list[Tensor], size: int) -> bool:
    """Whether every row of every tensor (batch, length, n) starts at a multiple of ``size`` bytes."""
    return all(t.data_ptr() % size == 0 and all(step * t.itemsize % size == 0 for step in t.stride()[:2]) for t in tensors)


def directions(inputs: list[Tensor]) -> ctypes.Array:
    """The operands of one or two directions."""
    both = (Direction * 2)()
    for way, start in enumerate(range(0, len(inputs), PER_DIRECTION)):
        u, delta, A, B, C, D, bias = inputs[start : start + PER_DIRECTION]
        strides = (s for t in (u, delta, B, C) for s in t.stride()[:2])
        both[way] = Direction(*(t.data_ptr() for t in (u, delta, B, C, A, D, bias)), *strides)
    return both
