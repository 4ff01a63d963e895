"""A vector of 16 float32 lanes for functions that numba compiles, and how these are compiled.

LLVM left to itself vectorises the loop over channels of the scan at half the speed, and only for wide blocks. Written on this
type, the loops are vector code wherever they run: one AVX-512 register, two of AVX2 or four of NEON.
"""

import functools
import hashlib
import inspect
import operator
from collections.abc import Callable
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from vmrepro.ops.numba_cpu import LANES

ZERO, ONE = np.float32(0), np.float32(1)
LOG2_E = np.float32(1.4426950408889634)
# 2^r = 1 + r p(r) for |r| <= 1/2, relative error 9.1e-8; exactly one at r = 0, near which slow decay lives.
EXP2 = (0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.001326472731307149)

# Types of the kernels' arguments by name; every other one is (batch, time, channels or states), channels contiguous.
_SEQUENCE = types.float32[:, :, :]
_TYPES = dict.fromkeys(("W", "scratch"), types.float32[:, ::1]) | {"kept": types.float32[:, :, :, :]}
_TYPES |= dict.fromkeys(("first", "stop"), types.intp) | dict.fromkeys(("softplus", "silu", "reverse", "add"), types.boolean)

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
# Lets a product and a sum become one instruction, and nothing else: NaN, infinity and the order of sums stay as written.
_FUSE = ("contract",)


class _VectorType(types.Type):
    """Numba's type of 16 float32 lanes."""


_VECTOR = _VectorType(name="Vector16")


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _FLOATS)


def _all(number: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [float(np.float32(number))] * LANES)


def _spread(builder, number):
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _address(context, builder, array_type, array, index):
    array = context.make_array(array_type)(context, builder, array)
    indices = cgutils.unpack_tuple(builder, index, array_type.ndim)
    return builder.bitcast(cgutils.get_item_pointer(context, builder, array_type, array, indices), _FLOATS.as_pointer())


def _index(array):
    return types.UniTuple(types.intp, array.ndim)


@intrinsic
def load(typing, array, index):
    """The 16 numbers of a float32 array that start at an index, a tuple; its last axis must be contiguous."""

    def generate(context, builder, signature, arguments):
        return builder.load(_address(context, builder, signature.args[0], *arguments), align=4)

    return _VECTOR(array, _index(array)), generate


@intrinsic
def store(typing, array, index, vector):
    """Write a vector where ``load`` would read it."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _address(context, builder, signature.args[0], *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.none(array, _index(array), _VECTOR), generate


@intrinsic
def prefetch(typing, array, index):
    """Ask for the memory that ``load`` or ``store`` will touch."""

    def generate(context, builder, signature, arguments):
        address = builder.bitcast(_address(context, builder, signature.args[0], *arguments), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep, data = 0, 3, 1
        builder.call(ask, [address, *(ir.Constant(number, value) for value in (read, keep, data))])
        return context.get_dummy_value()

    return types.none(array, _index(array)), generate


@intrinsic
def splat(typing, number):
    """A float32 number in every lane."""

    def generate(context, builder, signature, arguments):
        return _spread(builder, *arguments)

    return _VECTOR(types.float32), generate


def _define_operator(symbol: Callable, instruction: str) -> None:
    """Let an operator of Python join two vectors, or a vector and a float32 number."""

    @intrinsic
    def apply(typing, a, b):
        def generate(context, builder, signature, arguments):
            pairs = zip(arguments, signature.args, strict=True)
            vectors = [x if kind == _VECTOR else _spread(builder, x) for x, kind in pairs]
            return getattr(builder, instruction)(*vectors, flags=_FUSE)

        return _VECTOR(a, b), generate

    @overload(symbol)
    def operate(a, b):
        if _VECTOR in (a, b) and {a, b} <= {_VECTOR, types.float32}:
            return lambda a, b: apply(a, b)
        return None


for _symbol, _instruction in (("add", "fadd"), ("sub", "fsub"), ("mul", "fmul"), ("truediv", "fdiv")):
    _define_operator(getattr(operator, _symbol), _instruction)


@intrinsic
def exp2(typing, x):
    """2^x: zero from -127 down, infinity from 128 up, NaN for NaN."""

    def generate(context, builder, signature, arguments):
        (x,) = arguments
        x = builder.select(builder.fcmp_ordered("<", x, _all(-127)), _all(-127), x)
        x = builder.select(builder.fcmp_ordered(">", x, _all(128)), _all(128), x)
        # A number plus 1.5·2^23 is rounded to an integer, which the low bits of the sum then hold.
        shifted = builder.fadd(x, _all(12582912))
        r = builder.fsub(x, builder.fsub(shifted, _all(12582912)))
        p = _all(EXP2[-1])
        for coefficient in (*EXP2[-2::-1], 1.0):
            p = builder.fadd(builder.fmul(p, r, flags=_FUSE), _all(coefficient), flags=_FUSE)
        exponent = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(p, _INTS), exponent), _FLOATS)

    return _VECTOR(_VECTOR), generate


@intrinsic
def choose(typing, x, a, b):
    """Lanes of a where x >= 0, of b elsewhere."""

    def generate(context, builder, signature, arguments):
        x, a, b = arguments
        return builder.select(builder.fcmp_ordered(">=", x, _all(0)), a, b)

    return _VECTOR(_VECTOR, _VECTOR, _VECTOR), generate


@intrinsic
def row_sums(typing, rows):
    """A vector of the sums of the rows of a (16, 16) array."""

    def generate(context, builder, signature, arguments):
        number = context.get_constant
        vectors = []
        for i in range(LANES):
            place = context.make_tuple(builder, _index(rows), [number(types.intp, i), number(types.intp, 0)])
            vectors.append(builder.load(_address(context, builder, rows, arguments[0], place), align=4))
        half = LANES // 2
        while half:
            # Two vectors are folded in half and laid side by side in one, until one holds a lane of each.
            low = [lane if lane % (2 * half) < half else LANES + lane - half for lane in range(LANES)]
            masks = [ir.Constant(_INTS, [lane + shift for lane in low]) for shift in (0, half)]
            pairs = zip(vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :], strict=True)
            vectors = [builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in masks)) for a, b in pairs]
            half //= 2
        return vectors[0]

    return _VECTOR(rows), generate


@functools.cache
def compiled(kernel: Callable) -> Callable:
    """The machine code of a kernel, made at the first call and kept on disk where that is possible.

    Its name on disk tells the version of all kernel files: numba itself watches only the file in which a kernel stands.
    """
    sources = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("numba_*.py")))
    kernel.__qualname__ = f"{kernel.__name__}_{hashlib.sha256(sources).hexdigest()[:12]}"
    signature = types.void(*(_TYPES.get(name, _SEQUENCE) for name in inspect.signature(kernel).parameters))
    try:
        return njit(signature, nogil=True, error_model="numpy", cache=True)(kernel)
    except RuntimeError as error:
        if "cannot cache" not in str(error):  # neither this folder nor the user's cache can be written
            raise
        return njit(signature, nogil=True, error_model="numpy")(kernel)


@njit
def sigmoid(x):
    """(sigmoid(x), exp(-|x|))."""
    e = exp2(choose(x, ZERO - x, x) * LOG2_E)
    return choose(x, splat(ONE), e) / (e + ONE), e


@njit
def time_of(i, length, reverse):
    """The place in time of step i of a walk that may begin at the end."""
    return length - 1 - i if reverse else i
