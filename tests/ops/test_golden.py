"""The scan and the convolution against what the released implementation computed, outputs, last states and gradients."""

import pytest
import torch

from tests.golden.cases import OPERATOR_F32, OPERATOR_F64, STORED_F32, assert_gradient, case_id, read_json, recorded
from tests.ops.oracle import ALL, may_be_refused
from vmrepro.ops import causal_conv1d, selective_scan

pytestmark = pytest.mark.usefixtures("poisoned_memory")
PRECISIONS = [
    pytest.param("f32", torch.float32, OPERATOR_F32, 1e-4, id="f32"),
    # Where an array was recorded in float64 too; its gradients were compared in float64 and hold to more than they need.
    pytest.param("f64", torch.float64, OPERATOR_F64, STORED_F32, id="f64"),
]
CASES = read_json("ops_cases.json")
SCANS, CONVOLUTIONS = ([case for case in CASES if case["kind"] == kind] for kind in ("selective_scan", "causal_conv1d"))
TIME_LAST = ("u", "delta", "B", "C", "z", "x", "out", "dout")


def channels_last(name: str, array: torch.Tensor) -> torch.Tensor:
    """What runs over time, (batch, …, length), as (batch, length, …)."""
    return array.movedim(-1, 1) if name in TIME_LAST and array.ndim > 2 else array


def compare(call, case, names, suffix, dtype, tolerance, fraction, device):
    """``call(leaves)`` gives the recorded outputs by name; then every gradient."""
    arrays = recorded(case)
    leaves = {n: channels_last(n, arrays[n]).to(device, dtype).requires_grad_() if n in arrays else None for n in names}
    try:
        outputs = call(leaves)
    except NotImplementedError as reason:
        if device == "cpu" and not may_be_refused(leaves):
            raise
        pytest.skip(str(reason))
    for name, got in outputs.items():
        want = channels_last(name, arrays[f"{name}.{suffix}"])
        torch.testing.assert_close(got.detach().cpu(), want, **tolerance)
    given = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(outputs["out"], given.values(), channels_last("dout", arrays["dout"]).to(device, dtype))
    for name, got in zip(given, gradients, strict=True):
        assert_gradient(got.cpu(), channels_last(name, arrays[f"grad[{name}].{suffix}"]), name, fraction)


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize(("suffix", "dtype", "tolerance", "fraction"), PRECISIONS)
@pytest.mark.parametrize("case", SCANS, ids=case_id)
def test_selective_scan(case, suffix, dtype, tolerance, fraction, backend, device):
    def call(leaves):
        y, last = selective_scan(**leaves, delta_softplus=case["delta_softplus"], return_last_state=True, backend=backend)
        return {"out": y, "last_state": last}

    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    assert {name for name, shape in case["shapes"].items() if shape} == names & recorded(case).keys()
    compare(call, case, names, suffix, dtype, tolerance, fraction, device)


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize(("suffix", "dtype", "tolerance", "fraction"), PRECISIONS)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=case_id)
def test_causal_conv1d(case, suffix, dtype, tolerance, fraction, backend, device):
    def call(leaves):
        return {"out": causal_conv1d(**leaves, activation=case["activation"], backend=backend)}

    compare(call, case, ("x", "weight", "bias"), suffix, dtype, tolerance, fraction, device)
