"""The operators of ``vmrepro.ops`` as loops for the CPU, which numba compiles at their first call; float32 only.

The scan walks time with 16 channels at once, their states in the first cache, and takes softplus, skip and gate along. Its
backward pass keeps the state before every 16 steps, N/16 sequences (batch, length, channels), and computes the others again.
Sums over blocks of channels have a fixed order, so that results do not depend on the number of threads, which is torch's.
The threads are of a pool of this module: numba's simplest one ends the process when two Python threads use it at once.

Needs numba and no compiler. Compiled kernels are kept on disk, beside the package or in the user's cache folder.
"""

import functools
import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LANES = 16
# Updates of 16 states (jobs·length·N) that are worth a thread: some 0.1 ms, where waking one costs some 0.03 ms.
WORK_PER_THREAD = 1 << 15


@functools.cache
def _missing() -> str | None:
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba does not import ({error}): pip install numba, or the extra 'cpu' of this package"
    return None


def _module(name: str) -> ModuleType:
    """A module of kernels, which imports numba and so waits for the first call."""
    return importlib.import_module(f"vmrepro.ops.numba_{name}")


def available(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``, or None."""
    if torch.device(device).type != "cpu":
        return "its kernels are for the CPU"
    return _missing()


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The scan of ``vmrepro.ops.selective_scan``; raises NotImplementedError for what the kernels do not take."""
    y, last = _scan([(u, delta, A, B, C, D, delta_bias)], z, delta_softplus, (reverse,))
    return (y, last) if return_last_state else y


def bidirectional_scan(forward: tuple, backward: tuple, z: Tensor | None) -> Tensor:
    """The two scans of ``vmrepro.ops.bidirectional_scan``; raises NotImplementedError for what the kernels do not take.

    forward, backward: ``ScanInputs``.
    """
    return _scan([tuple(forward), tuple(backward)], z, True, (False, True))[0]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    reverse: bool = False,
) -> Tensor:
    """The convolution of ``vmrepro.ops.causal_conv1d``; raises NotImplementedError for what the kernels do not take."""
    _check({"x": x, "weight": weight, "bias": bias})
    return _Conv.apply(_whole_blocks(x), _parameters(weight, bias), activation == "silu", reverse)[..., : x.shape[-1]]


def _scan(directions: list[tuple], z: Tensor | None, softplus: bool, reverse: tuple[bool, ...]) -> tuple[Tensor, Tensor]:
    """(y, the last state of the last direction)."""
    channels, inputs = directions[0][0].shape[-1], []
    for u, delta, A, B, C, D, bias in directions:
        _check({"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": bias, "z": z})
        if B.ndim != 3 or C.ndim != 3:
            shapes = f"{tuple(B.shape)} and {tuple(C.shape)}"
            raise NotImplementedError(f"the numba kernels take B and C as (batch, length, state), got {shapes}: use 'chunked'")
        inputs += [_whole_blocks(u), _whole_blocks(delta), B, C, _parameters(A, D, bias)]
    gate = None if z is None else _whole_blocks(z)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (gate, *inputs))
    y, last = _Scan.apply(softplus, reverse, save, gate, *inputs)
    return y[..., :channels], last[..., :channels].mT


def _check(inputs: dict[str, Tensor | None]) -> None:
    other = {name: str(t.dtype) for name, t in inputs.items() if t is not None and t.dtype != torch.float32}
    if other:
        raise NotImplementedError(f"the numba kernels take float32 only, got {other}: use 'chunked'")


def _whole_blocks(x: Tensor) -> Tensor:
    """x with zero channels up to a whole block, and channels contiguous; x itself where that is so."""
    missing = -x.shape[-1] % LANES
    x = F.pad(x, (0, missing)) if missing else x
    return x if x.stride(-1) == 1 else x.contiguous()


def _parameters(matrix: Tensor, *vectors: Tensor | None) -> Tensor:
    """A matrix (channels, n) transposed, then a row of each vector (channels,), zeros for None, in whole blocks."""
    rows = [matrix.new_zeros(1, len(matrix)) if vector is None else vector.unsqueeze(0) for vector in vectors]
    return _whole_blocks(torch.cat([matrix.mT, *rows])).contiguous()


class _Scan(torch.autograd.Function):
    """Directions of the scan, added and gated; each direction is u, delta, B, C, W of ``numba_kernels``."""

    @staticmethod
    def forward(ctx, softplus: bool, reverse: tuple[bool, ...], save: bool, z: Tensor | None, *inputs: Tensor):
        kernels = _module("kernels")
        u, W = inputs[0], inputs[4]
        batch, length, channels = u.shape
        states = len(W) - 2
        jobs = _jobs(u)
        y, last = u.new_empty(u.shape), u.new_empty(batch, states, channels)
        kept = [u.new_empty(jobs if save else 0, -(-length // kernels.STEPS), states, LANES) for _ in reverse]
        closed = u.new_empty(0, 0, 0)
        calls = []
        for i, backwards in enumerate(reverse):
            gate = z if z is not None and i == len(reverse) - 1 else closed
            calls.append(((*inputs[5 * i : 5 * i + 5], gate, y, kept[i], last), (softplus, backwards, i > 0)))
        _run(kernels.scan_forward, calls, kernels.forward_rows(states), jobs, length * states)
        ctx.save_for_backward(*inputs, *kept, *([] if z is None else [z]))
        ctx.options = softplus, reverse, z is not None
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor, dlast: Tensor):
        kernels = _module("kernels")
        softplus, reverse, gated = ctx.options
        *saved, z = ctx.saved_tensors if gated else (*ctx.saved_tensors, None)
        inputs, kept = saved[: 5 * len(reverse)], saved[5 * len(reverse) :]
        batch, length, _ = inputs[0].shape
        states = len(inputs[4]) - 2
        jobs = _jobs(inputs[0])
        dy, dlast = (_whole_blocks(x) for x in (dy, dlast))
        z = dy.new_empty(0, 0, 0) if z is None else z
        dz, calls, grads = torch.empty_like(z), [], []
        for i, backwards in enumerate(reverse):
            u, delta, B, C, W = inputs[5 * i : 5 * i + 5]
            rows = dy.new_empty(2, jobs, length, -(-states // LANES) * LANES)
            grads.append((dy.new_empty(u.shape), dy.new_empty(u.shape), *rows, dy.new_empty(batch, *W.shape)))
            end = dlast if i == len(reverse) - 1 else torch.zeros_like(dlast)
            calls.append(((u, delta, B, C, W, z, dy, kept[i], end, *grads[i], dz), (softplus, backwards, i > 0)))
        _run(kernels.scan_backward, calls, kernels.backward_rows(states), jobs, length * states)
        out = [dz if gated else None]
        for du, ddelta, dB, dC, dW in grads:
            dB, dC = (x.unflatten(0, (batch, -1)).sum(1)[..., :states] for x in (dB, dC))
            out += [du, ddelta, dB, dC, dW.sum(0)]
        return None, None, None, *out


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, W: Tensor, silu: bool, reverse: bool) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.flags = silu, reverse
        y = x.new_empty(x.shape)
        _run(_module("conv").conv_forward, [((x, W, y), ctx.flags)], 0, _jobs(x), x.shape[1] * len(W))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, W = ctx.saved_tensors
        dx, dW = x.new_empty(x.shape), x.new_empty(len(x), *W.shape)
        calls = [((x, W, _whole_blocks(dy), dx, dW), ctx.flags)]
        _run(_module("conv").conv_backward, calls, x.shape[1] + len(W), _jobs(x), x.shape[1] * len(W))
        return dx, dW.sum(0), None, None


def _jobs(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] // LANES


def _run(kernel: Callable, calls: list[tuple[tuple[Tensor, ...], tuple[bool, ...]]], rows: int, jobs: int, work: int) -> None:
    """Make every call, one after the other, on the jobs of each thread."""
    machine_code = _module("vectors").compiled(kernel)
    threads = max(1, min(torch.get_num_threads(), jobs, jobs * work // WORK_PER_THREAD))
    arrays = [tuple(x.detach().numpy() for x in tensors) for tensors, _ in calls]

    def part(thread: int, *scratch) -> None:
        first, stop = (jobs * end // threads for end in (thread, thread + 1))
        for tensors, (_, flags) in zip(arrays, calls, strict=True):
            machine_code(*tensors, *scratch, first, stop, *flags)

    scratch = [[torch.empty(rows, LANES).numpy()] if rows else [] for _ in range(threads)]
    others = [_pool(os.getpid()).submit(part, thread, *scratch[thread]) for thread in range(1, threads)]
    part(0, *scratch[0])
    for other in others:
        other.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="vmrepro-numba")
