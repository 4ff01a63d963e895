"""The depthwise convolution of ``vmrepro.ops.numba_cpu``: a job is one block of 16 channels of one sequence.

W: (width + 1, channels), the taps transposed and then the bias; dW has one per sequence.
"""

from numba import njit

from vmrepro.ops.numba_cpu import LANES
from vmrepro.ops.numba_vectors import ONE, ZERO, load, sigmoid, splat, store, time_of


@njit
def _convolved(x, W, b, c, i, length, reverse):
    """The convolution before its activation at step i, in the order in which time is walked."""
    width = W.shape[0] - 1
    y_t = load(W, (width, c))
    for j in range(max(0, width - 1 - i), width):
        y_t = y_t + load(W, (j, c)) * load(x, (b, time_of(i - (width - 1) + j, length, reverse), c))
    return y_t


def conv_forward(x, W, y, first, stop, silu, reverse):
    """Write y; W (width + 1, channels) is the taps transposed, then the bias."""
    length, blocks = x.shape[1], x.shape[2] // LANES
    for job in range(first, stop):
        b, c = job // blocks, job % blocks * LANES
        for i in range(length):
            y_t = _convolved(x, W, b, c, i, length, reverse)
            store(y, (b, time_of(i, length, reverse), c), y_t * sigmoid(y_t)[0] if silu else y_t)


def conv_backward(x, W, dy, dx, dW, scratch, first, stop, silu, reverse):
    """Write dx and dW (batch, width + 1, channels); scratch (length + width + 1, 16)."""
    length, width, blocks = x.shape[1], W.shape[0] - 1, x.shape[2] // LANES
    sums = scratch[length:]
    for job in range(first, stop):
        b, c = job // blocks, job % blocks * LANES
        for j in range(width + 1):
            store(sums, (j, 0), splat(ZERO))
        for i in range(length):
            g = load(dy, (b, time_of(i, length, reverse), c))
            if silu:
                y_t = _convolved(x, W, b, c, i, length, reverse)
                open_ = sigmoid(y_t)[0]
                g = g * open_ * (y_t * (ONE - open_) + ONE)
            store(scratch, (i, 0), g)
            store(sums, (width, 0), load(sums, (width, 0)) + g)
            for j in range(max(0, width - 1 - i), width):
                x_t = load(x, (b, time_of(i - (width - 1) + j, length, reverse), c))
                store(sums, (j, 0), load(sums, (j, 0)) + g * x_t)
        for i in range(length):
            dx_t = splat(ZERO)
            for j in range(max(0, width + i - length), width):
                dx_t = dx_t + load(W, (j, c)) * load(scratch, (i + (width - 1) - j, 0))
            store(dx, (b, time_of(i, length, reverse), c), dx_t)
        for j in range(width + 1):
            store(dW, (b, j, c), load(sums, (j, 0)))
