"""The scan of ``vmrepro.ops.numba_cpu``, forward and backward: a job is one block of 16 channels of one sequence.

A job writes only what is its own, so that neither the number of threads nor their order changes a bit. Letters and formulas
as in ``vmrepro.ops.chunked``; all arrays are float32, (batch, time, channels or states) but for

    W        (N + 2, channels): A transposed, then a row D, then the bias of Δ; dW has one per sequence
    kept     (jobs, chunks, N, 16), the states before each chunk of ``STEPS`` steps, in the order in which time is walked
    dB, dC   (jobs, time, N up to a multiple of 16): of one block of channels, to be summed over blocks
    last     (batch, N, channels), the states after the last step; dlast likewise
    scratch  (rows, 16), one per thread
"""

import numpy as np
from numba import njit

from vmrepro.ops.numba_cpu import LANES
from vmrepro.ops.numba_vectors import (
    LOG2_E,
    ONE,
    ZERO,
    choose,
    exp2,
    load,
    prefetch,
    row_sums,
    sigmoid,
    splat,
    store,
    time_of,
)

# Steps of a chunk: its states and decays, 2 KiB a step at 16 states, stay in the first cache.
STEPS = 16
TWO, LN_2 = np.float32(2), np.float32(0.6931471805599453)
# atanh(s) = s q(s²) for 0 <= s <= 1/3, relative error 4e-9; q begins with 1.
ATANH_1, ATANH_2, ATANH_3, ATANH_4 = (np.float32(c) for c in (0.33333157, 0.20012455, 0.13980301, 0.14089168))


@njit
def _step_size(logit, softplus):
    """(Δ, its derivative by the logit); softplus(x) = max(x, 0) + log(1 + e) with log(1 + e) = 2 atanh(e / (2 + e))."""
    if not softplus:
        return logit, splat(ONE)
    slope, e = sigmoid(logit)
    s = e / (e + TWO)
    w = s * s
    q = (((w * ATANH_4 + ATANH_3) * w + ATANH_2) * w + ATANH_1) * w + ONE
    return choose(logit, logit, splat(ZERO)) + (s + s) * q, slope


@njit
def _load_rates(W, c, rates):
    """Write A to base 2, (N, 16), into rates."""
    for n in range(len(rates)):
        store(rates, (n, 0), load(W, (n, c)) * LOG2_E)


def forward_rows(states: int) -> int:
    """Rows of scratch that ``scan_forward`` needs."""
    return 2 * states + 2 * STEPS


def scan_forward(u, delta, B, C, W, z, y, kept, last, scratch, first, stop, softplus, reverse, add):
    """Write y, kept and last of the jobs from first to stop.

    add: y holds the other direction, to which this one is added before the gate. z: empty for no gate. kept: empty to keep none.
    """
    length, states, blocks = u.shape[1], W.shape[0] - 2, u.shape[2] // LANES
    rates, h, steps, ys = (
        scratch[:states],
        scratch[states : 2 * states],
        scratch[2 * states : 2 * states + STEPS],
        scratch[2 * states + STEPS :],
    )
    for job in range(first, stop):
        b, c = job // blocks, job % blocks * LANES
        _load_rates(W, c, rates)
        D, bias = load(W, (states, c)), load(W, (states + 1, c))
        for n in range(states):
            store(h, (n, 0), splat(ZERO))
        for start in range(0, length, STEPS):
            count = min(STEPS, length - start)
            if kept.shape[0] > 0:
                for n in range(states):
                    store(kept, (job, start // STEPS, n, 0), load(h, (n, 0)))
            # Step sizes and gates in loops of their own: there many steps are in flight, while a state waits for the one before.
            for i in range(count):
                t = time_of(start + i, length, reverse)
                store(steps, (i, 0), _step_size(load(delta, (b, t, c)) + bias, softplus)[0])
            for i in range(count):
                t = time_of(start + i, length, reverse)
                d, u_t = load(steps, (i, 0)), load(u, (b, t, c))
                v, y_t = d * u_t, D * u_t
                for n in range(states):
                    h_n = exp2(d * load(rates, (n, 0))) * load(h, (n, 0)) + v * B[b, t, n]
                    store(h, (n, 0), h_n)
                    y_t = y_t + h_n * C[b, t, n]
                store(ys, (i, 0), y_t)
            for i in range(count):
                t = time_of(start + i, length, reverse)
                y_t = load(ys, (i, 0))
                if add:
                    y_t = y_t + load(y, (b, t, c))
                if z.shape[0] > 0:
                    z_t = load(z, (b, t, c))
                    y_t = y_t * (z_t * sigmoid(z_t)[0])
                store(y, (b, t, c), y_t)
        for n in range(states):
            store(last, (b, n, c), load(h, (n, 0)))


def backward_rows(states: int) -> int:
    """Rows of scratch that ``scan_backward`` needs."""
    return 3 * states + 4 * STEPS + 2 * LANES + STEPS * states + (STEPS + 1) * states


@njit
def _replay(u, delta, B, C, D, bias, b, c, start, count, length, reverse, softplus, rates, steps, slopes, ys, decays, h):
    """Write Δ and its slope, the decays, the states h and the ungated y of a chunk; h begins with the state before it."""
    states = len(rates)
    for i in range(count):
        t = time_of(start + i, length, reverse)
        d, slope = _step_size(load(delta, (b, t, c)) + bias, softplus)
        store(steps, (i, 0), d)
        store(slopes, (i, 0), slope)
    for i in range(count):
        t = time_of(start + i, length, reverse)
        d, u_t = load(steps, (i, 0)), load(u, (b, t, c))
        v, y_t = d * u_t, D * u_t
        for n in range(states):
            a = exp2(d * load(rates, (n, 0)))
            h_n = a * load(h, (i * states + n, 0)) + v * B[b, t, n]
            store(decays, (i * states + n, 0), a)
            store(h, ((i + 1) * states + n, 0), h_n)
            y_t = y_t + h_n * C[b, t, n]
        store(ys, (i, 0), y_t)


@njit
def _open_gate(z, dy, dz, b, c, start, count, length, reverse, add, ys, dys):
    """Write the gradient of the ungated y into dys, and dz, to which the other direction may have written."""
    for i in range(count):
        t = time_of(start + i, length, reverse)
        dy_t = load(dy, (b, t, c))
        if z.shape[0] > 0:
            z_t = load(z, (b, t, c))
            open_ = sigmoid(z_t)[0]
            dz_t = dy_t * load(ys, (i, 0)) * open_ * (z_t * (ONE - open_) + ONE)
            store(dz, (b, t, c), load(dz, (b, t, c)) + dz_t if add else dz_t)
            dy_t = dy_t * (z_t * open_)
        store(dys, (i, 0), dy_t)


def scan_backward(
    u, delta, B, C, W, z, dy, kept, dlast, du, ddelta, dB, dC, dW, dz, scratch, first, stop, softplus, reverse, add
):
    """Write the gradients of the jobs from first to stop, given dy and dlast; add: dz holds the other direction's."""
    length, states, blocks = u.shape[1], W.shape[0] - 2, u.shape[2] // LANES
    rates, carry, dA = scratch[:states], scratch[states : 2 * states], scratch[2 * states : 3 * states]
    row = 3 * states
    steps, slopes = scratch[row : row + STEPS], scratch[row + STEPS : row + 2 * STEPS]
    row += 2 * STEPS
    ys, dys = scratch[row : row + STEPS], scratch[row + STEPS : row + 2 * STEPS]
    row += 2 * STEPS
    rows_B, rows_C = scratch[row : row + LANES], scratch[row + LANES : row + 2 * LANES]
    row += 2 * LANES
    decays, h = scratch[row : row + STEPS * states], scratch[row + STEPS * states :]
    for n in range(LANES):  # rows past the last state stay zero
        store(rows_B, (n, 0), splat(ZERO))
        store(rows_C, (n, 0), splat(ZERO))
    for job in range(first, stop):
        b, c = job // blocks, job % blocks * LANES
        _load_rates(W, c, rates)
        D, bias = load(W, (states, c)), load(W, (states + 1, c))
        dD, dbias = splat(ZERO), splat(ZERO)
        for n in range(states):
            store(carry, (n, 0), load(dlast, (b, n, c)))
            store(dA, (n, 0), splat(ZERO))
        for start in range((length - 1) // STEPS * STEPS, -1, -STEPS):
            count = min(STEPS, length - start)
            for n in range(states):
                store(h, (n, 0), load(kept, (job, start // STEPS, n, 0)))
            # The rows of the chunk before lie far apart, which the processor does not foresee.
            for i in range(STEPS if start else 0):
                t = time_of(start - STEPS + i, length, reverse)
                for sequence in (u, delta, z, dy, du, ddelta, dz):
                    prefetch(sequence, (b, t, c))
            for n in range(states if start else 0):
                prefetch(kept, (job, start // STEPS - 1, n, 0))
            _replay(u, delta, B, C, D, bias, b, c, start, count, length, reverse, softplus, rates, steps, slopes, ys, decays, h)
            _open_gate(z, dy, dz, b, c, start, count, length, reverse, add, ys, dys)
            for i in range(count - 1, -1, -1):
                t = time_of(start + i, length, reverse)
                u_t, d, w = load(u, (b, t, c)), load(steps, (i, 0)), load(dys, (i, 0))
                v = d * u_t
                dv, dd = splat(ZERO), splat(ZERO)
                for base in range(0, states, LANES):
                    for n in range(base, min(base + LANES, states)):
                        g = load(carry, (n, 0)) + w * C[b, t, n]
                        store(rows_C, (n - base, 0), w * load(h, ((i + 1) * states + n, 0)))
                        store(rows_B, (n - base, 0), v * g)
                        dv = dv + g * B[b, t, n]
                        g = g * load(decays, (i * states + n, 0))
                        store(carry, (n, 0), g)
                        p = g * load(h, (i * states + n, 0))
                        dd = dd + p * load(rates, (n, 0))
                        store(dA, (n, 0), load(dA, (n, 0)) + p * d)
                    store(dB, (job, t, base), row_sums(rows_B))
                    store(dC, (job, t, base), row_sums(rows_C))
                dlogit = (dd * LN_2 + dv * u_t) * load(slopes, (i, 0))
                store(ddelta, (b, t, c), dlogit)
                store(du, (b, t, c), dv * d + D * w)
                dD = dD + w * u_t
                dbias = dbias + dlogit
        for n in range(states):
            store(dW, (b, n, c), load(dA, (n, 0)))
        store(dW, (b, states, c), dD)
        store(dW, (b, states + 1, c), dbias)
