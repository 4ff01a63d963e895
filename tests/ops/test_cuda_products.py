"""Products that share a kernel with what is beside them: the kernels' own source, emulated on the CPU, against float64."""

import pytest
import torch

from tests.ops.cuda_emulator import emulated, needs_compiler
from tests.ops.oracle import rms_error
from vmrepro.ops.cuda import products

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_compiler]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.mark.parametrize(("length", "channels", "rank"), [(1, 128, 8), (70, 384, 16), (100, 128, 24)])
@pytest.mark.parametrize("multiprocessors", [1, 3])
def test_gradients_of_step_logits(folder, length, channels, rank, multiprocessors):
    rng = torch.Generator().manual_seed(length)
    draw = lambda *shape: torch.randn(*shape, generator=rng).bfloat16()  # noqa: E731
    dlogits, wide = ([draw(2, length, n) for _ in "fb"] for n in (channels, rank + 8))
    weight, out = [draw(channels, rank) / 4 for _ in "fb"], [torch.full_like(t, torch.nan) for t in wide]
    with emulated(folder, multiprocessors) as emulator:
        parts = products.step_gradients(dlogits, [t[..., :rank] for t in wide], weight, [t[..., :rank] for t in out])
    assert emulator.launched == ["step_gradients"]
    assert len(parts) == min(multiprocessors, -(-2 * length // products.STEP_TOKENS))
    for way in range(2):
        d, steps = dlogits[way].double().flatten(0, 1), wide[way][..., :rank].double().flatten(0, 1)
        assert rms_error(out[way][..., :rank].flatten(0, 1), d @ weight[way].double()) < 3e-3
        assert rms_error(parts.sum(0)[way], steps.t() @ d) < 1e-6
        assert out[way][..., rank:].isnan().all()


def unpacked(sizes):
    """Step sizes as the kernels read them: bf16 numbers without a sign, whose place is another digit's."""
    return (sizes.view(torch.int16).int() << 15 & 0x7FFFFFFF).view(torch.float32).double()


@pytest.mark.parametrize(
    ("length", "channels", "rank", "pitch"),
    [(1, 64, 8, 16), (8, 192, 16, 24), (70, 384, 16, 48), (100, 128, 8, 48), (100, 64, 16, 48)],
)
@pytest.mark.parametrize("multiprocessors", [1, 3])
def test_step_sizes(folder, monkeypatch, length, channels, rank, pitch, multiprocessors):
    """From logits of -30 to 30. The results are put where rows past their end can be seen."""
    rng = torch.Generator().manual_seed(length)
    draw = lambda *shape: torch.randn(*shape, generator=rng).bfloat16()  # noqa: E731
    wide, weight = ([draw(*shape) for _ in "fb"] for shape in ((3, length, pitch), (channels, rank)))
    bias = [torch.linspace(-20, 20, channels), torch.linspace(0, -8, channels)]
    for t in wide:
        t[..., rank:] = torch.nan
    room = torch.full((2, 3 * length + 16, channels), torch.nan, dtype=torch.bfloat16)
    places = iter(room[:, : 3 * length].unflatten(1, (3, length)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda t, shape: next(places).view(shape))
    with emulated(folder, multiprocessors) as emulator:
        sizes, ready = products.step_sizes([t[..., :rank] for t in wide], weight, bias)
    assert ready
    assert emulator.launched == ["step_sizes"]
    for way in range(2):
        assert sizes[way].data_ptr() == room[way].data_ptr()
        logits = wide[way][..., :rank].double() @ weight[way].double().t() + bias[way]
        # Half of the last digit, and what rounding to float32 does to a logit and to log(1 + e).
        torch.testing.assert_close(unpacked(sizes[way]), torch.log1p(logits.exp()), rtol=2**-9 + 2e-5, atol=0)
    assert room[:, 3 * length :].isnan().all()


@pytest.mark.parametrize(("logit", "size"), [(torch.nan, torch.nan), (torch.inf, torch.inf), (-torch.inf, 0.0), (3e38, 3e38)])
def test_step_sizes_that_are_no_numbers_or_have_no_next(folder, logit, size):
    bias = torch.full((64,), logit)
    if bias.isnan().all():  # what a GPU makes of a NaN has every bit but the sign
        bias = torch.full((64,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    rows, weight = ([torch.zeros(1, 3, 8, dtype=torch.bfloat16)] * 2, [torch.zeros(64, 8, dtype=torch.bfloat16)] * 2)
    with emulated(folder):
        sizes, _ = products.step_sizes(rows, weight, [bias] * 2)
    torch.testing.assert_close(unpacked(sizes[0]), torch.full((1, 3, 64), size).double(), rtol=2**-9, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("channels", "rank", "dtype", "skipped"),
    [
        (64, 24, torch.bfloat16, 0),
        (64, 8, torch.float32, 0),
        (96, 8, torch.bfloat16, 0),
        (1600, 8, torch.bfloat16, 0),
        (64, 16, torch.bfloat16, 2),
    ],
)
def test_step_sizes_without_a_kernel_are_left_as_logits(folder, channels, rank, dtype, skipped):
    """skipped: columns before the rows, which then start at no multiple of what a lane reads."""
    rng = torch.Generator().manual_seed(rank)
    wide, weight = ([torch.randn(shape, generator=rng).to(dtype) for _ in "fb"] for shape in ((2, 5, 48), (channels, rank)))
    rows = [t[..., skipped : skipped + rank] for t in wide]
    with emulated(folder) as emulator:
        logits, ready = products.step_sizes(rows, weight, [torch.ones(channels)] * 2)
    assert not ready
    assert emulator.launched == []
    for way in range(2):
        assert rms_error(logits[way], rows[way].double() @ weight[way].double().t()) < (1e-6 if dtype == torch.float32 else 3e-3)
