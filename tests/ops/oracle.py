"""Random inputs of the operators, the float64 definition as judge of outputs and gradients, and the backends to be judged."""

import functools

import pytest
import torch
from torch import Tensor

from tests.conftest import BUDGETS
from vmrepro.ops import BACKENDS, ScanInputs, available_backends, bidirectional_scan, selective_scan

# Some gradients are exactly zero, as A's at length 1: below this size an error counts as absolute, in this unit.
SMALLEST = 1e-6
STREAMS = ("u", "delta", "B", "C", "z")  # rounded to the type under test; the parameters stay in float32 or wider


def _run(backend: str, device: str):
    reason = available_backends(device)[backend]
    return pytest.param(
        backend, device, id=f"{backend}-{device}", marks=pytest.mark.skipif(reason is not None, reason=str(reason))
    )


# The backends with a convolution and a norm of their own; those with a scan; and the definition too, where a law is tested.
KERNELS = [_run("numba", "cpu"), _run("cuda", "cuda")]
FAST = [_run("chunked", "cpu"), *KERNELS] + ([_run("chunked", "cuda")] if torch.cuda.is_available() else [])
ALL = [_run("reference", "cpu"), *FAST]
# mamba_ssm, which is somebody else's, has a test of its own.
assert {run.values[0] for run in ALL} == set(BACKENDS) - {"mamba_ssm"}


def scan_inputs(
    length: int,
    dtype: torch.dtype,
    decay: str = "fast",
    *,
    channels: int = 20,
    state: int = 16,
    form: str = "time",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Inputs of a scan by name, as leaves on the CPU; batch 2.

    decay: "near_one" has steps of about 1e-3 and slow rates, so that a state lives for the whole sequence; "fast" forgets in a
    few steps. form: B and C by "time", "grouped" (two groups), or "fixed".
    """
    rng = torch.Generator().manual_seed(1000 * seed + length)
    shapes = {"time": (2, length, state), "grouped": (2, length, 2, state), "fixed": (channels, state)}
    shapes = {name: (2, length, channels) for name in ("u", "delta", "z")} | {"B": shapes[form], "C": shapes[form]}
    shapes |= {"A": (channels, state), "D": (channels,), "delta_bias": (channels,)}
    inputs = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    inputs["delta_bias"] = 0.5 * inputs["delta_bias"] + (-7 if decay == "near_one" else 1)
    inputs["A"] = -torch.exp(0.3 * inputs["A"]) * (0.1 if decay == "near_one" else torch.arange(1, state + 1))
    wide = torch.promote_types(dtype, torch.float32)
    return {name: tensor.to(dtype if name in STREAMS else wide) for name, tensor in inputs.items()}


def widened(inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The same numbers in float64."""
    return {name: None if tensor is None else tensor.double() for name, tensor in inputs.items()}


def may_be_refused(inputs: dict[str, Tensor | None]) -> bool:
    """Whether a backend of the CPU may leave such inputs to another: float32 with B and C over time each of them has to take."""
    given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    fixed = any(name[0] in "BC" and tensor.ndim != 3 for name, tensor in given.items())
    return fixed or any(tensor.dtype != torch.float32 for tensor in given.values())


def outputs_and_gradients(call, inputs: dict[str, Tensor | None], device: str = "cpu") -> dict[str, Tensor]:
    """What ``call(**inputs)`` returns, as "out0", "out1", …, and the gradient of each input, as "d" + its name.

    The gradient arriving at each output is random. Where a backend says that it does not take such inputs, and may, the test
    is skipped.
    """
    leaves = {k: None if v is None else v.detach().to(device).requires_grad_() for k, v in inputs.items()}
    try:
        outputs = call(**leaves)
    except NotImplementedError as reason:
        if device == "cpu" and not may_be_refused(leaves):
            raise
        pytest.skip(str(reason))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    rng = torch.Generator().manual_seed(7)
    upstream = [torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out) for out in outputs]
    names, given = zip(*((name, leaf) for name, leaf in leaves.items() if leaf is not None), strict=True)
    gradients = torch.autograd.grad(outputs, given, upstream)
    for name, leaf, gradient in zip(names, given, gradients, strict=True):
        assert gradient.dtype == leaf.dtype, f"the gradient of {name} is {gradient.dtype}"
    named = {f"out{i}": out for i, out in enumerate(outputs)} | {f"d{n}": g for n, g in zip(names, gradients, strict=True)}
    return {name: tensor.detach().cpu() for name, tensor in named.items()}


def rms_error(ours: Tensor, exact: Tensor) -> float:
    """Relative RMS error; NaN if either holds one."""
    return float((ours.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp(min=SMALLEST))


def assert_as_exact(ours: dict[str, Tensor], plain: dict[str, Tensor], exact: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Each output and gradient errs no more than the budget of the type: ``plain`` is the definition computed in it."""
    factor, floor = BUDGETS[dtype]
    assert ours.keys() == exact.keys()
    for name, want in exact.items():
        error, cost = rms_error(ours[name], want), rms_error(plain[name], want)
        print(f"{name:12} error {error:.2e}, the type itself {cost:.2e}")
        assert error <= factor * cost + floor, f"{name}: relative RMS error {error:.2e}, the definition in {dtype} {cost:.2e}"


def judge(call, definition, inputs: dict[str, Tensor | None], dtype: torch.dtype, device: str) -> None:
    """Compare ``call`` on ``device`` with ``definition`` on the CPU, in float64 and in the inputs' own types."""
    ours = outputs_and_gradients(call, inputs, device)
    plain, exact = (outputs_and_gradients(definition, x) for x in (inputs, widened(inputs)))
    assert_as_exact(ours, plain, exact, dtype)


def scan_with(backend: str, **options):
    """``selective_scan`` of a backend, with softplus."""
    return functools.partial(selective_scan, delta_softplus=True, backend=backend, **options)


def two_way_with(backend: str):
    """``bidirectional_scan`` of a backend, as a function of flat names: u_f, u_b, …, and z."""

    def call(z: Tensor | None, **flat: Tensor | None) -> Tensor:
        ways = (ScanInputs(**{name: flat[f"{name}_{way}"] for name in ScanInputs._fields}) for way in "fb")
        return bidirectional_scan(*ways, z, backend=backend)

    return call
