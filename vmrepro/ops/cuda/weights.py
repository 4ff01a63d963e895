"""The parameters of a block in the form that its kernels and products take, and their gradients, each by one kernel.

The kernels are in weights.cu and sums.cu. The weight of the norm before it, (d,), is packed into in_proj. ``ways``: for each
direction conv weight (di, width) and bias, x_proj (R + 2N, di), dt_proj (di, R) and bias, A_log (di, N), D (di). All in float32.
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
PART_ROWS = 8  # ROWS of weights.cu
SUM_WARPS, MOST_SUMS = 16, 13  # as in sums.cu


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
        *((name, Pointer) for name in ("A", "norm_weight", "in_proj", "parts")),
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

    in_proj (2di, d) times the norm's weight, out_proj (d, di); for each direction x_proj (rank + 2N, di) and dt_proj (di, rank),
    zeros in what was added.
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
    def pack(
        cls, norm_weight: Tensor, in_proj: Tensor, out_proj: Tensor, ways: list[Tensor], dtype: torch.dtype
    ) -> tuple["Weights", Tensor]:
        """(the matrices in the type of the products, A of both directions (2, di, N)), from the parameters."""
        (width, inner), (state, rank) = out_proj.shape, (ways[5].shape[1], ways[3].shape[1])
        weights = cls(in_proj.new_empty(cls.size(width, inner, state, rank), dtype=dtype), width, inner, state, rank)
        A = in_proj.new_empty((2, inner, state))
        logs = (Pointer * 2)(*(t.data_ptr() for t in ways[5::PER_WAY]))
        fields = {"A_log": logs, "A": A.data_ptr(), "rates": A[0].numel(), "norm_weight": norm_weight.data_ptr()}
        weights._launch("pack_weights", [in_proj, out_proj, *matrices_of(ways)], MATRICES + 2, **fields)
        return weights, A

    def like(self) -> "Weights":
        """Room for as much, for the gradients."""
        return Weights(torch.empty_like(self.packed), *self.sizes)

    def unpack(self, norm_weight: Tensor, in_proj: Tensor) -> tuple[list[Tensor], Tensor]:
        """The parameters' gradients in float32 from those of what ``pack`` made of them, which these are but for dt_proj.

        (in_proj, out_proj, then x_proj of each direction; parts (parts, d) of the norm's weight, still to be added.)
        """
        plain = [None] * MATRICES
        for i in (0, 1, 2, 4):
            (rows, columns), (row_gap, column_gap) = self.matrices[i].shape, self._gaps(i)
            plain[i] = self.packed.new_empty((rows - row_gap, columns - column_gap), dtype=torch.float32)
        parts = norm_weight.new_empty((-(-len(in_proj) // PART_ROWS), len(norm_weight)))
        factors = {"norm_weight": norm_weight.data_ptr(), "in_proj": in_proj.data_ptr()}
        self._launch("unpack_weights", plain, MATRICES, **factors, parts=parts.data_ptr())
        return [t for t in plain if t is not None], parts

    def _gaps(self, index: int) -> tuple[int, int]:
        added = self.filled - self.rank
        return (0, 0) if index < 2 else ((0, added) if index % 2 else (added, 0))

    def _launch(self, kernel: str, plain: list[Tensor | None], rows: int, **fields) -> None:
        """Launch a kernel of weights.cu with ``rows`` rows of blocks and ``fields`` of its arguments; None is passed over."""
        firsts = [m.storage_offset() - self.packed.storage_offset() for m in self.matrices]
        matrices = (Matrix * MATRICES)(
            *(
                Matrix() if t is None else Matrix(t.data_ptr(), first, *m.shape, *self._gaps(i))
                for i, (t, first, m) in enumerate(zip(plain, firsts, self.matrices, strict=True))
            )
        )
        args = WeightsArgs(matrix=matrices, packed=self.packed.data_ptr(), rank=self.rank, **fields)
        blocks = -(-max(args.rates, *(m.numel() for m in self.matrices)) // THREADS)
        files, macros = ("intrinsics.cu", "io.cu", "weights.cu"), (("IO", IO[self.packed.dtype]),)
        driver.launch(files, kernel, macros, (blocks, rows, 1), THREADS, 0, args, self.packed.device)


def matrices_of(ways: list[Tensor]) -> list[Tensor]:
    """x_proj and dt_proj of each direction."""
    return [ways[start + i] for start in range(0, len(ways), PER_WAY) for i in (2, 3)]


def small_gradients(
    scan_parts: Tensor, conv_parts: Tensor, step_parts: Tensor, norm_parts: Tensor, A: Tensor
) -> tuple[list[list[Tensor]], Tensor]:
    """(for each direction the gradients of conv weight and bias, dt_proj and bias, A_log, D; that of the norm's weight), summed.

    scan_parts: (parts, 2, N + 2, di) with those of A, D and the step bias. conv_parts: (parts, 2, width + 1, di), the bias last.
    step_parts: (parts, 2, R, di). norm_parts: (parts, d). A: (2, di, N). The gradient of log(-A) is A times that of A.
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
        of_ways.append([add(conv[:, :width]), add(conv[:, width:]).flatten(), add(step_parts[:, way]), dbias, dA_log, dD])
    dnorm = add(norm_parts.unsqueeze(1)).flatten()
    grid = (-(-max(s.columns for s in sums) // 32), sum(s.rows for s in sums), 1)
    args = SumArgs((Sum * MOST_SUMS)(*sums))
    driver.launch(
        ("intrinsics.cu", "io.cu", "sums.cu"), "sum_parts", (("IO", 2),), grid, 32 * SUM_WARPS, 4 * 32 * SUM_WARPS, args, A.device
    )
    return of_ways, dnorm
