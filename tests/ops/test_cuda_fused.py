"""The convolution pair and the residual norm: the kernels' own source, emulated on the CPU, against the definition."""

import pytest
import torch

from tests.ops.cuda_emulator import emulated, needs_compiler
from tests.ops.oracle import judge, rms_error
from vmrepro.ops import add_rms_norm, bidirectional_conv, causal_conv1d, cuda
from vmrepro.ops.cuda import fused

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_compiler]
LARGEST = max(fused.CONV_TILES)


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
        (LARGEST, 6, 4, torch.bfloat16),
        (2 * LARGEST + 1, 6, 4, torch.bfloat16),
        (LARGEST + 2, 7, 2, torch.float32),
    ],
)
@pytest.mark.parametrize("enough", [0, 1 << 30])
def test_both_convolutions(emulator, monkeypatch, length, channels, width, dtype, enough):
    monkeypatch.setattr(fused, "CONV_ENOUGH", enough)
    inputs = conv_inputs(length, channels, width, dtype)
    judge(cuda.bidirectional_conv, lambda **x: bidirectional_conv(**x, backend="reference"), inputs, dtype, "cpu")
    assert emulator.launched[-2:] == ["conv_forward", "conv_backward"]


@pytest.mark.parametrize(
    ("channels", "first", "dtype", "pack"), [(6, 8, torch.bfloat16, 2), (6, 7, torch.bfloat16, 1), (7, 6, torch.float32, 1)]
)
def test_results_in_wider_rows(emulator, monkeypatch, channels, first, dtype, pack):
    """The results lie from channel ``first`` on; what lies beside them stays. Pairs of channels only where all are aligned."""
    packs = []
    launch = fused.driver.launch
    spy = lambda files, kernel, macros, *rest: packs.append(dict(macros)["PACK"]) or launch(files, kernel, macros, *rest)  # noqa: E731
    monkeypatch.setattr(fused.driver, "launch", spy)
    x, *taps = conv_inputs(LARGEST + 5, channels, 4, dtype).values()
    dout = [torch.randn(x.shape).to(dtype) for _ in "fb"]
    wide = [torch.full((*x.shape[:2], 14), 3.0, dtype=dtype) for _ in range(3)]
    *us, dx = [t[..., first : first + channels] for t in wide]
    fused.conv_into(*us, x, taps)
    parts = fused.conv_backward_into(dx, dout, x, taps)
    assert packs == [pack, pack]
    plain = fused.conv_backward(*dout, x, *taps)
    assert all(torch.equal(ours, u) for ours, u in zip(us, fused.conv_forward(x, *taps), strict=True))
    assert torch.equal(dx, plain[0])
    assert torch.equal(parts.sum(0), plain[1])
    for t in wide:
        t[..., first : first + channels] = 3
        assert (t == 3).all()


@pytest.mark.parametrize(("length", "channels", "width", "product"), [(1, 128, 4, 48), (70, 256, 4, 40), (133, 128, 2, 56)])
@pytest.mark.parametrize("enough", [0, 1 << 30])
def test_a_product_added_to_the_gradients(emulator, monkeypatch, length, channels, width, product, enough):
    """Against the same with the product added before, in float32: nothing but the results is rounded there."""
    monkeypatch.setattr(fused, "CONV_ENOUGH", enough)
    x, *taps = conv_inputs(length, channels, width, torch.bfloat16).values()
    rng = torch.Generator().manual_seed(length)
    draw = lambda *shape: torch.randn(*shape, generator=rng).bfloat16()  # noqa: E731
    dout, left = ([draw(*x.shape[:2], n) for _ in "fb"] for n in (channels, product))
    right, dx = [draw(product, channels) / 8 for _ in "fb"], torch.full_like(x, torch.nan)
    parts = fused.conv_backward_into(dx, dout, x, taps, left, right)
    total = [(d.double() + a.double() @ b.double()).float() for d, a, b in zip(dout, left, right, strict=True)]
    exact_dx, exact = fused.conv_backward(*total, x.float(), *taps)
    assert rms_error(dx, exact_dx.double()) < 4e-3
    assert rms_error(parts.sum(0), exact.double()) < 3e-3


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("length", "channels", "dtype"), [(2, 6, torch.bfloat16), (40, 6, torch.bfloat16), (35, 7, torch.float32)]
)
def test_one_convolution(emulator, length, channels, dtype, reverse):
    inputs = conv_inputs(length, channels, 4, dtype)
    inputs = {name: inputs[of] for name, of in (("x", "x"), ("weight", "weight_f"), ("bias", "bias_f"))}
    options = {"activation": "silu", "reverse": reverse}
    definition = lambda **x: causal_conv1d(**x, **options, backend="reference")  # noqa: E731
    judge(lambda **x: cuda.causal_conv1d(**x, **options), definition, inputs, dtype, "cpu")
    assert emulator.launched[-2:] == ["conv_forward", "conv_backward"]


@pytest.mark.parametrize(
    ("batch", "length", "channels", "tile"), [(64, 1569, 384, 64), (8, 12545, 384, 64), (16, 1569, 384, 32), (96, 73, 384, 16)]
)
def test_tiles_keep_132_multiprocessors_busy(monkeypatch, batch, length, channels, tile):
    monkeypatch.setattr(fused.driver, "multiprocessors", lambda device: 132)
    assert fused._tile(torch.empty(batch, length, channels, device="meta"), 2) == tile


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
    torch.library.opcheck(fused.causal_conv, (torch.randn(1, 5, 8, requires_grad=True), *taps[:2], True))
    hidden, residual = torch.randn(3, 16, requires_grad=True), torch.randn(3, 16, requires_grad=True)
    torch.library.opcheck(fused.norm_forward, (hidden, residual, torch.randn(16, requires_grad=True), 1e-5))


def test_what_the_kernels_do_not_take_is_refused(emulator):
    with pytest.raises(NotImplementedError, match=r"got torch\.float64"):
        cuda.bidirectional_conv(**conv_inputs(3, 4, 4, torch.float64))
    with pytest.raises(NotImplementedError, match=r"widths in \(2, 3, 4\), got .* 5"):
        cuda.bidirectional_conv(**conv_inputs(3, 4, 5, torch.float32))
    with pytest.raises(NotImplementedError, match="residual in fp32"):
        cuda.add_rms_norm(torch.randn(2, 8).bfloat16(), torch.randn(2, 8).bfloat16(), torch.ones(8), 1e-5)
    with pytest.raises(NotImplementedError, match="activation None"):
        cuda.causal_conv1d(*[conv_inputs(3, 4, 4, torch.float32)[name] for name in ("x", "weight_f", "bias_f")])
