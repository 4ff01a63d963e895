"""The parameters of a block in the form that its kernels and products take, and their gradients, each by one kernel.

The kernels are in weights.cu and sums.cu. ``ways``: for each direction conv weight (di, width) and bias, x_proj (R + 2N, di),
dt_proj (di, R) and bias, A_log (di, N), D (di), all in float32.
"""

import ctypes

import torch
from torch import Tensor

from vmrepro.ops.cuda import driver
from vmrepro.ops.cuda.layout import IO, Int, Pointer, Stride

PER_WAY = 7
ALIGNMENT = 8  # rows of a product's operands, in elements: half as fast where they are no multiple of 16 bytes
MATRICES = 6
THREADS = 256
SUM_WARPS, MOST_SUMS = 16, 11  # as in sums.cu


class Matrix(ctypes.Structure):
    _fields_ = (
        ("plain", Pointer),
        ("first", Stride),
        *((name, Int) for name in ("rows", "columns", "row_gap", "column_gap")),
    )


class WeightsArgs(ctypes.Structure):
    _fields_ = (
        ("matrix", Matrix * MATRICES),
        ("packed", Pointer),
        ("A_log", Pointer * 2),
        ("A", Pointer),
        ("rank", Int),
        ("rates", Int),
    )


class Sum(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("parts", "factor", "out")),
        ("pitch", Stride),
        *((name, Int) for name in ("count", "rows", "columns")),
    )


class SumArgs(ctypes.Structure):
    _fields_ = (("sum", Sum * MOST_SUMS),)


class Weights:
    """The matrices of a block, or their gradients, in one piece of memory; the step's rank is filled up to ``ALIGNMENT``.

    in_proj (2di, d), out_proj (d, di); for each direction x_proj (rank + 2N, di) and dt_proj (di, rank), zeros in what was added.
    """

    def __init__(self, packed: Tensor, width: int, inner: int, state: int, rank: int) -> None:
        self.packed, self.sizes, self.state, self.rank = packed, (width, inner, state, rank), state, rank
        self.filled = -(-rank // ALIGNMENT) * ALIGNMENT
        rows = [(2 * inner, width), (width, inner), *((self.filled + 2 * state, inner), (inner, self.filled)) * 2]
        parts = packed.split([height * breadth for height, breadth in rows])
        self.matrices = [part.view(shape) for part, shape in zip(parts, rows, strict=True)]
        self.in_proj, self.out_proj = self.matrices[:2]
        self.x_proj, self.dt_proj = self.matrices[2::2], self.matrices[3::2]

    @staticmethod
    def size(width: int, inner: int, state: int, rank: int) -> int:
        filled = -(-rank // ALIGNMENT) * ALIGNMENT
        return 3 * inner * width + 4 * inner * (filled + state)

    @classmethod
    def pack(cls, in_proj: Tensor, out_proj: Tensor, ways: list[Tensor], dtype: torch.dtype) -> tuple["Weights", Tensor]:
        """(the matrices in the type of the products, A of both directions (2, di, N)), from the parameters."""
        (width, inner), (state, rank) = out_proj.shape, (ways[5].shape[1], ways[3].shape[1])
        weights = cls(in_proj.new_empty(cls.size(width, inner, state, rank), dtype=dtype), width, inner, state, rank)
        A = in_proj.new_empty((2, inner, state))
        weights._launch("pack_weights", [in_proj, out_proj, *matrices_of(ways)], ways[5::PER_WAY], A)
        return weights, A

    def like(self) -> "Weights":
        """Room for as much, for the gradients."""
        return Weights(torch.empty_like(self.packed), *self.sizes)

    def unpack(self) -> list[Tensor]:
        """The matrices in float32, without what was filled up: in_proj, out_proj, then x_proj and dt_proj of each direction."""
        gaps = [self._gaps(i) for i in range(MATRICES)]
        shapes = [(len(m) - rows, m.shape[1] - columns) for m, (rows, columns) in zip(self.matrices, gaps, strict=True)]
        plain = [self.packed.new_empty(shape, dtype=torch.float32) for shape in shapes]
        self._launch("unpack_weights", plain, [], None)
        return plain

    def _gaps(self, index: int) -> tuple[int, int]:
        added = self.filled - self.rank
        return (0, 0) if index < 2 else ((0, added) if index % 2 else (added, 0))

    def _launch(self, kernel: str, plain: list[Tensor], A_log: list[Tensor], A: Tensor | None) -> None:
        firsts = [m.storage_offset() - self.packed.storage_offset() for m in self.matrices]
        matrices = (Matrix * MATRICES)(
            *(
                Matrix(t.data_ptr(), first, *m.shape, *self._gaps(i))
                for i, (t, first, m) in enumerate(zip(plain, firsts, self.matrices, strict=True))
            )
        )
        logs, rates = (Pointer * 2)(*(t.data_ptr() for t in A_log)), 0 if A is None else A[0].numel()
        pointer = None if A is None else A.data_ptr()
        args = WeightsArgs(matrices, self.packed.data_ptr(), logs, pointer, self.rank, rates)
        blocks = -(-max(rates, *(m.numel() for m in self.matrices)) // THREADS)
        files, macros = ("intrinsics.cu", "io.cu", "weights.cu"), (("IO", IO[self.packed.dtype]),)
        driver.launch(files, kernel, macros, (blocks, MATRICES + len(A_log), 1), THREADS, 0, args, self.packed.device)


def matrices_of(ways: list[Tensor]) -> list[Tensor]:
    """x_proj and dt_proj of each direction."""
    return [ways[start + i] for start in range(0, len(ways), PER_WAY) for i in (2, 3)]


def small_gradients(scan_parts: Tensor, conv_parts: Tensor, norm_parts: Tensor, A: Tensor) -> tuple[list[list[Tensor]], Tensor]:
    """(for each direction the gradients of conv weight and bias, step bias, A_log and D; that of the norm's weight), summed.

    scan_parts: (parts, 2, N + 2, di) with those of A, D and the step bias. conv_parts: (parts, 2, width + 1, di), the bias last.
    norm_parts: (parts, d). A: (2, di, N). The gradient of log(-A) is A times that of A.
    """
    sums, of_ways, state, width = [], [], A.shape[2], conv_parts.shape[2] - 1

    def add(parts: Tensor, factor: Tensor | None = None) -> Tensor:
        count, rows, columns = parts.shape
        out = parts.new_empty((columns, rows))
        pitch = parts.stride(0)
        sums.append(
            Sum(parts.data_ptr(), None if factor is None else factor.data_ptr(), out.data_ptr(), pitch, count, rows, columns)
        )
        return out

    for way in range(2):
        conv, scan = conv_parts[:, way], scan_parts[:, way]
        dA_log = add(scan[:, :state], A[way])
        dD, dbias = (add(scan[:, i : i + 1]).flatten() for i in (state, state + 1))
        of_ways.append([add(conv[:, :width]), add(conv[:, width:]).flatten(), dbias, dA_log, dD])
    dnorm = add(norm_parts.unsqueeze(1)).flatten()
    grid = (-(-max(s.columns for s in sums) // 32), sum(s.rows for s in sums), 1)
    args = SumArgs((Sum * MOST_SUMS)(*sums))
    driver.launch(
        ("intrinsics.cu", "io.cu", "sums.cu"), "sum_parts", (("IO", 2),), grid, 32 * SUM_WARPS, 4 * 32 * SUM_WARPS, args, A.device
    )
    return of_ways, dnorm
