"""The convolution pair and the residual norm: the kernels' own source, emulated on the CPU, against the definition."""

import pytest
import torch

from tests.ops.cuda_emulator import emulated, needs_compiler
from tests.ops.oracle import judge
from vmrepro.ops import add_rms_norm, bidirectional_conv, cuda
from vmrepro.ops.cuda import fused

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_compiler]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    with emulated(tmp_path_factory.mktemp("kernels")) as emulator:
        yield emulator


def conv_inputs(length, channels, width, dtype, bias=True):
    """x is the first half of a wider buffer."""
    rng = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, 2 * channels, generator=rng).to(dtype)[..., :channels]
    inputs = {"x": x}
    for way in "fb":
        inputs[f"weight_{way}"] = torch.randn(channels, width, generator=rng)
        inputs[f"bias_{way}"] = torch.randn(channels, generator=rng) if bias else None
    return inputs


@pytest.mark.parametrize(
    ("length", "channels", "width", "dtype"),
    [
        (1, 6, 4, torch.bfloat16),
        (3, 6, 4, torch.bfloat16),
        (fused.CONV_TILE, 6, 4, torch.bfloat16),
        (2 * fused.CONV_TILE + 1, 6, 4, torch.bfloat16),
        (fused.CONV_TILE + 2, 7, 2, torch.float32),
    ],
)
def test_both_convolutions(emulator, length, channels, width, dtype):
    inputs = conv_inputs(length, channels, width, dtype)
    judge(cuda.bidirectional_conv, lambda **x: bidirectional_conv(**x, backend="reference"), inputs, dtype, "cpu")
    assert emulator.launched[-2:] == ["conv_forward", "conv_backward"]


def test_convolutions_without_bias(emulator):
    inputs = conv_inputs(5, 6, 4, torch.bfloat16, bias=False)
    judge(cuda.bidirectional_conv, lambda **x: bidirectional_conv(**x, backend="reference"), inputs, torch.bfloat16, "cpu")


@pytest.mark.parametrize(
    ("rows", "channels", "dtype", "with_residual"),
    [(3, 192, torch.bfloat16, True), (9, 192, torch.bfloat16, False), (9, 37, torch.float32, True)],
)
def test_norm(emulator, rows, channels, dtype, with_residual):
    rng = torch.Generator().manual_seed(rows)
    inputs = {"hidden": torch.randn(2, rows, channels, generator=rng).to(dtype), "weight": torch.randn(channels, generator=rng)}
    inputs["residual"] = torch.randn(2, rows, channels, generator=rng) if with_residual else None
    judge(
        lambda **x: cuda.add_rms_norm(**x, eps=1e-5),
        lambda **x: add_rms_norm(**x, eps=1e-5, backend="reference"),
        inputs,
        dtype,
        "cpu",
    )


def test_norm_of_which_one_output_is_unread(emulator):
    hidden, weight = torch.randn(4, 192, requires_grad=True), torch.ones(192)
    for output in (0, 1):
        ours, plain = (norm(hidden, None, weight, 1e-5)[output] for norm in (cuda.add_rms_norm, add_rms_norm))
        gradients = [torch.autograd.grad(out, hidden, torch.arange(768.0).view(4, 192))[0] for out in (ours, plain)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-3)


def test_registration_as_operators(emulator):
    taps = [torch.randn(8, 4, requires_grad=True), torch.randn(8), torch.randn(8, 4), torch.randn(8)]
    torch.library.opcheck(fused.conv_forward, (torch.randn(1, 5, 8, requires_grad=True), *taps))
    hidden, residual = torch.randn(3, 16, requires_grad=True), torch.randn(3, 16, requires_grad=True)
    torch.library.opcheck(fused.norm_forward, (hidden, residual, torch.randn(16, requires_grad=True), 1e-5))


def test_what_the_kernels_do_not_take_is_refused(emulator):
    with pytest.raises(NotImplementedError, match=r"got torch\.float64"):
        cuda.bidirectional_conv(**conv_inputs(3, 4, 4, torch.float64))
    with pytest.raises(NotImplementedError, match=r"widths in \(2, 3, 4\), got .* 5"):
        cuda.bidirectional_conv(**conv_inputs(3, 4, 5, torch.float32))
    with pytest.raises(NotImplementedError, match="residual in fp32"):
        cuda.add_rms_norm(torch.randn(2, 8).bfloat16(), torch.randn(2, 8).bfloat16(), torch.ones(8), 1e-5)
