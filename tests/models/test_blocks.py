import pytest
import torch
from torch import nn

from tests.golden.cases import (
    OPERATOR_F32,
    OPERATOR_F64,
    STORED_F32,
    assert_gradient,
    case_id,
    cases,
    fill,
    options,
    recorded,
    tensor,
)
from vmrepro.models.blocks import BiMambaMixer, Block, DropPath, LayerNorm, RMSNorm

PRECISIONS = [("f32", torch.float32, OPERATOR_F32, 1e-4), ("f64", torch.float64, OPERATOR_F64, STORED_F32)]


def shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in module.state_dict().items()}


def mixer_of(case: dict) -> BiMambaMixer:
    chosen = options(case["args"])
    return BiMambaMixer(**{key: value for key, value in chosen.items() if key not in ("norm", "distill_dim")})


@pytest.mark.parametrize(("name", "dtype", "close", "fraction"), PRECISIONS, ids=["f32", "f64"])
@pytest.mark.parametrize("case", cases("mixer"), ids=case_id)
def test_mixer_and_its_gradients_are_the_released_ones(case, name, dtype, close, fraction):
    mixer = fill(mixer_of(case), case["seed"], dtype)
    assert list(shapes(mixer).items()) == list(case["state_dict_shapes"].items())
    x = tensor(case["input_tag"], case["input_shape"], case["seed"], dtype).requires_grad_()
    out = mixer(x)
    want = recorded(case)
    torch.testing.assert_close(out, want[f"out.{name}"].to(dtype), **close)
    (out * tensor(case["grad_tag"] + "out", out.shape, case["seed"], dtype)).sum().backward()
    for parameter_name, parameter in [("input", x), *mixer.named_parameters()]:
        assert_gradient(parameter.grad, want[f"grad[{parameter_name}].{name}"], parameter_name, fraction)


@pytest.mark.parametrize("case", cases("block"), ids=case_id)
def test_block_is_the_released_one(case):
    block = fill(Block(case["dim"], norm="layer" if "layernorm" in case["id"] else "rms"), case["seed"])
    assert list(shapes(block).items()) == list(case["state_dict_shapes"].items())
    hidden, residual = (tensor(tag, case["input_shape"], case["seed"]) for tag in case["input_tags"])
    want = recorded(case)
    for step, given in (("first", None), ("next", residual)):
        got = block(hidden, given)
        torch.testing.assert_close(got[0], want[f"{step}_hidden.f32"], **OPERATOR_F32)
        torch.testing.assert_close(got[1], want[f"{step}_residual.f32"], **OPERATOR_F32)


def test_backward_direction_is_the_forward_one_of_the_flipped_sequence():
    mixer = fill(BiMambaMixer(16), seed=3, dtype=torch.float64)
    state = mixer.state_dict()
    swapped = {name: state[swap_direction(name)] for name in state}
    other = BiMambaMixer(16).double()
    other.load_state_dict(swapped)
    x = tensor("flip", (2, 11, 16), 0, torch.float64)
    torch.testing.assert_close(other(x.flip(1)).flip(1), mixer(x), atol=1e-12, rtol=0)


def swap_direction(name: str) -> str:
    pairs = [("A_log", "A_b_log"), ("D", "D_b"), *((f"{part}.", f"{part}_b.") for part in ("conv1d", "x_proj", "dt_proj"))]
    for pair in pairs:
        for old, new in (pair, pair[::-1]):
            if name == old or (old.endswith(".") and name.startswith(old)):
                return name.replace(old, new)
    return name


@pytest.mark.parametrize("norm", [RMSNorm(8), LayerNorm(8)], ids=["rms", "layer"])
@pytest.mark.parametrize(("dtype", "stream"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=str)
def test_norm_keeps_the_stream_wide_and_returns_the_type_of_hidden(norm, dtype, stream):
    hidden = tensor("norm", (2, 3, 8), 0).to(dtype)
    first, residual = norm(hidden)
    second, total = norm(hidden, residual)
    assert (first.dtype, residual.dtype, second.dtype, total.dtype) == (dtype, stream, dtype, stream)
    torch.testing.assert_close(total, 2 * hidden.to(stream))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    ones = torch.ones(4000, 2, 3)
    dropped = DropPath(0.25)(ones)
    per_sample = dropped.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert set(per_sample[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    assert DropPath(0.25).eval()(ones) is ones
    assert DropPath(0.0)(ones) is ones


def test_drop_path_falls_on_what_enters_a_block_not_on_its_residual():
    torch.manual_seed(0)
    block = Block(8, drop_path=0.999)
    hidden, residual = torch.ones(3, 2, 8), torch.full((3, 2, 8), 5.0)
    assert (block(hidden, residual)[1] == residual).all()


def test_mixer_reads_views_of_the_projection(monkeypatch):
    seen = {}

    def spy(forward, backward, z, *, backend):
        seen.update(z=z, B=forward.B, A=forward.A, bias=forward.delta_bias)
        return forward.u + backward.u

    monkeypatch.setattr("vmrepro.models.blocks.bidirectional_scan", spy)
    mixer = BiMambaMixer(16)
    with torch.autocast("cpu", torch.bfloat16):
        out = mixer(torch.randn(2, 5, 16))
    assert seen["z"].stride() == (5 * 64, 64, 1)
    assert seen["B"].stride() == (5 * 33, 33, 1)
    assert {seen["A"].dtype, seen["bias"].dtype} == {torch.float32}
    assert {seen["z"].dtype, out.dtype} == {torch.bfloat16}
