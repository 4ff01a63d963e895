import math

import pytest
import torch

from tests.golden.cases import options, read_json
from vmrepro.models import create_model

STATISTICS = read_json("init_stats.json")["models"]
STATE_DICTS = read_json("state_dicts.json")
SMALL = {"depth": 3, "embed_dim": 64, "img_size": 32, "num_classes": 10}


def grouped(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All values of each kind of parameter, over the blocks together."""
    groups: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parts[0] == "layers":
            parts[1] = "*"
        groups.setdefault(".".join(parts), []).append(parameter.detach().flatten().double())
    return {name: torch.cat(values) for name, values in groups.items()}


@pytest.mark.parametrize("name", ["video_tiny_f8_224_k400", "image_small_224_in1k"])
def test_a_fresh_model_is_distributed_as_the_released_one(name):
    torch.manual_seed(0)
    groups = grouped(create_model("videomamba", **options(STATE_DICTS[name]["args"])))
    want = STATISTICS[name]
    assert list(groups) == list(want)
    for group, values in groups.items():
        expected, count = want[group], len(values)
        assert count == expected["count"], group
        # Two samples of one distribution: means differ by a few std/sqrt(n), deviations by a few std/sqrt(2n).
        spread = 6 * expected["std"] / math.sqrt(count) + 1e-6
        assert values.mean().item() == pytest.approx(expected["mean"], abs=spread), group
        assert values.std(correction=0).item() == pytest.approx(expected["std"], abs=spread), group
        bounded = expected["std"] and (expected["max"] - expected["min"]) / expected["std"] < 3.6  # uniform, or a fixed table
        for edge in ("min", "max") if bounded or not expected["std"] else ():
            tolerance = max(1e-6, 20 * (expected["max"] - expected["min"]) / count)
            assert getattr(values, edge)().item() == pytest.approx(expected[edge], abs=tolerance), f"{group} {edge}"


def test_the_student_head_is_initialised_as_released():
    torch.manual_seed(0)
    groups = grouped(create_model("videomamba", **SMALL, distill_dim=384))
    assert (groups["distill_head.0.weight"] == 1).all()
    assert (groups["distill_head.1.bias"] == 0).all()
    released = STATISTICS["distill_middle_student_224"]["distill_head.1.weight"]
    assert groups["distill_head.1.weight"].std().item() == pytest.approx(released["std"], rel=0.03)


def test_layer_norms_start_at_one_and_zero():
    groups = grouped(create_model("videomamba", **SMALL, norm="layer"))
    assert (groups["layers.*.norm.weight"] == 1).all()
    assert (groups["norm_f.bias"] == 0).all()


def test_released_rule_starts_every_step_at_softplus_of_zero():
    model = create_model("videomamba", **SMALL)
    for block in model.layers:
        assert (block.mixer.dt_proj.bias == 0).all()
        assert (block.mixer.dt_proj_b.bias == 0).all()


@pytest.mark.parametrize("direction", ["dt_proj", "dt_proj_b"])
def test_mamba_rule_spreads_the_first_steps_over_their_range(direction):
    torch.manual_seed(0)
    groups = grouped(create_model("videomamba", **SMALL | {"depth": 10}, initialisation="mamba"))
    steps = torch.nn.functional.softplus(groups[f"layers.*.mixer.{direction}.bias"])
    assert 0.001 <= steps.min() < 0.00105
    assert 0.0965 < steps.max() <= 0.1000001
    logs = steps.log()
    assert logs.mean().item() == pytest.approx((math.log(1e-3) + math.log(0.1)) / 2, abs=0.25)
    weights, bound = groups[f"layers.*.mixer.{direction}.weight"], 4**-0.5  # rank ceil(64 / 16)
    assert 0.98 * bound < weights.abs().max() <= bound
    assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_mamba_rule_changes_nothing_else():
    torch.manual_seed(0)
    groups = grouped(create_model("videomamba", **SMALL, initialisation="mamba"))
    assert groups["layers.*.mixer.in_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert groups["layers.*.mixer.out_proj.weight"].abs().max().item() <= 1 / math.sqrt(128 * 3)
    assert (groups["head.bias"] == 0).all()


def test_a_seed_fixes_every_value():
    def build(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return create_model("videomamba", **SMALL).state_dict()

    first, again, other = build(1), build(1), build(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])
