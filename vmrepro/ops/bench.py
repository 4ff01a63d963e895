"""How long one direction of the selective scan takes with each backend: ``python -m vmrepro.ops.bench``.

Each backend is first compared with the definition in float64, output and every gradient; one that is wrong is not timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vmrepro.ops import available_backends, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
# Relative RMS error that float32 may cost; about ten times what it costs the definition.
TOLERANCE = 1e-5
WARM_UP = 3  # calls that are not counted


class Timing(NamedTuple):
    """Median seconds of one backend."""

    backend: str
    forward: float
    forward_backward: float


def make_inputs(batch: int, length: int, channels: int, state: int, device: str) -> dict[str, Tensor]:
    """Random float32 inputs by name, as ``selective_scan`` takes them, plus the output's gradient "dy"."""
    rng = torch.Generator().manual_seed(0)
    shapes = {name: (batch, length, channels) for name in ("u", "delta", "z", "dy")}
    shapes |= {name: (batch, length, state) for name in ("B", "C")}
    shapes |= {"A": (channels, state), "D": (channels,), "delta_bias": (channels,)}
    inputs = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    inputs["A"] = -inputs["A"].exp()
    inputs["delta_bias"] -= 3  # steps of about 0.05
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def run(backend: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output "y" and the gradient of every input by name."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in NAMES}
    y = selective_scan(**leaves, delta_softplus=True, backend=backend)
    return {"y": y.detach()} | dict(zip(NAMES, torch.autograd.grad(y, leaves.values(), inputs["dy"]), strict=True))


def check(backend: str, inputs: dict[str, Tensor]) -> float:
    """The largest relative RMS error of the backend against the float64 definition, on the first sample of the batch.

    Raises RuntimeError, naming the output or gradient, where it is above ``TOLERANCE``.
    """
    sample = {name: tensor[:1] if tensor.ndim == 3 else tensor for name, tensor in inputs.items()}
    exact = run("reference", {name: tensor.double() for name, tensor in sample.items()})
    ours = run(backend, sample)
    errors = {name: float((ours[name] - exact[name]).norm() / exact[name].norm().clamp(min=1e-6)) for name in exact}
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= TOLERANCE}
    if wrong:
        raise RuntimeError(f"backend {backend!r} is not timed: relative RMS errors {wrong}, allowed {TOLERANCE:.0e}")
    return max(errors.values())


def measure(backend: str, inputs: dict[str, Tensor], repeats: int) -> Timing:
    """Median times of a backend that agrees with the definition; RuntimeError for one that does not."""
    check(backend, inputs)
    arguments = {name: inputs[name] for name in NAMES}
    forward = _median(lambda: selective_scan(**arguments, delta_softplus=True, backend=backend), inputs["u"].device, repeats)
    return Timing(backend, forward, _median(lambda: run(backend, inputs), inputs["u"].device, repeats))


def _median(call: Callable, device: torch.device, repeats: int) -> float:
    seconds = []
    for _ in range(WARM_UP + repeats):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: list[str] | None = None) -> None:
    """Print one line per backend of the device, the definition first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--shape", type=int, nargs=4, default=(1, 1569, 384, 16), metavar=("BATCH", "LENGTH", "CHANNELS", "STATE")
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(f"{options.device}, shape {tuple(options.shape)}, float32, {options.threads} threads, torch {torch.__version__}")
    inputs = make_inputs(*options.shape, options.device)
    backends = [name for name, reason in available_backends(options.device).items() if reason is None]
    timings = [measure(name, inputs, options.repeats) for name in backends]
    print(f"{'backend':10}  {'forward':>10}  {'times faster':>12}  {'and backward':>12}  {'times faster':>12}")
    for t in timings:
        ratios = timings[0].forward / t.forward, timings[0].forward_backward / t.forward_backward
        times = f"{t.forward * 1e3:7.2f} ms  {ratios[0]:12.1f}  {t.forward_backward * 1e3:9.2f} ms  {ratios[1]:12.1f}"
        print(f"{t.backend:10}  {times}")


if __name__ == "__main__":
    main()
