"""The definition itself: against other people's operators, by finite differences, and at its corners."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.oracle import rms_error, scan_inputs
from vmrepro.ops import reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_two_steps_by_hand():
    """One channel, one state: h = 2·3·1, then exp(-0.5)·6 + 1·5·4."""
    row = lambda *values: torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)  # noqa: E731
    y, h = reference.selective_scan(
        row(1, 4), row(2, 1), row(-0.5)[0], row(3, 5), row(7, 11), row(100)[0, 0], return_last_state=True
    )
    decay = torch.tensor(-0.5, dtype=torch.float64).exp()
    assert h.item() == pytest.approx(6 * decay.item() + 20, rel=1e-15)
    assert y.flatten().tolist() == pytest.approx([7 * 6 + 100, 11 * h.item() + 400], rel=1e-15)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["time", "grouped", "fixed"])
def test_scan_gradients_by_finite_differences(form, reverse):
    inputs = scan_inputs(4, torch.float64, channels=4, state=2, form=form)

    def call(*values):
        named = dict(zip(inputs, values, strict=True))
        return reference.selective_scan(**named, delta_softplus=True, reverse=reverse, return_last_state=True)

    assert torch.autograd.gradcheck(call, [tensor.requires_grad_() for tensor in inputs.values()])


def test_softplus_is_the_identity_above_20():
    logits = torch.tensor([20.5, 19.5], dtype=torch.float64)
    step = reference.step_size(logits, None, softplus=True)
    assert step[0] == 20.5
    assert step[1] - 19.5 == pytest.approx(torch.log1p(torch.exp(-logits[1])).item(), rel=1e-6)
    assert torch.equal(reference.step_size(logits - 1, torch.ones(2), softplus=True), step)


@pytest.mark.parametrize("reverse", [False, True])
def test_convolution_is_that_of_torch(reverse):
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((2, 9, 5), (5, 4), (5,)))
    padding, taps = ((0, 3), weight.flip(1)) if reverse else ((3, 0), weight)
    want = F.conv1d(F.pad(x.mT, padding), taps[:, None], bias, groups=5).mT
    assert rms_error(reference.causal_conv1d(x, weight, bias, reverse=reverse), want) < 1e-15
    assert rms_error(reference.causal_conv1d(x, weight, bias, reverse=reverse, activation="silu"), F.silu(want)) < 1e-15


def test_norm_is_that_of_torch():
    rng = torch.Generator().manual_seed(0)
    hidden, residual, weight = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((2, 3, 7), (2, 3, 7), (7,)))
    normed, stream = reference.add_rms_norm(hidden, residual, weight, 0.1)
    assert torch.equal(stream, hidden + residual)
    assert rms_error(normed, F.rms_norm(hidden + residual, (7,), weight, 0.1)) < 1e-15
    normed, stream = reference.add_rms_norm(hidden, None, weight, 0.1)
    assert torch.equal(stream, hidden)
    assert rms_error(normed, F.rms_norm(hidden, (7,), weight, 0.1)) < 1e-15
