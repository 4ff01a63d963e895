"""The closed forms against published sizes and the printed columns they reproduce."""

import pytest

from vmrepro.paper.attention import DEIT_S, DEIT_TI, PATCH_VALUES, VIT_B, VIT_L
from vmrepro.paper.printed import cell


@pytest.mark.parametrize(("model", "parameters"), [(DEIT_TI, 5_717_416), (DEIT_S, 22_050_664), (VIT_B, 86_567_656)])
def test_parameters_are_those_of_the_released_models(model, parameters):
    assert model.parameters(14**2, 1000) == parameters  # counted by timm


def test_parameters_are_those_that_timm_builds():
    import timm
    import torch

    with torch.device("meta"):
        built = timm.create_model("vit_large_patch16_224", num_classes=7)
    assert VIT_L.parameters(14**2, 7) == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize(
    ("row_id", "model", "patches"),
    [("t2_12", DEIT_TI, 196), ("t2_13", DEIT_S, 196), ("t2_14", VIT_B, 196), ("t2_15", VIT_B, 576)],
)
def test_costs_of_images_as_printed(row_id, model, patches):
    assert round(model.macs(patches) / 1e9, 1) == float(cell(row_id, "flops_g"))


def test_costs_of_videos_as_printed():
    assert VIT_B.macs(8 * 196, 2 * PATCH_VALUES) / 1e9 == pytest.approx(180, abs=0.5)  # VideoMAE-B, t3_28
    assert VIT_B.divided_macs(96, 196) / 1e9 == pytest.approx(float(cell("t3_13", "flops_g")), rel=0.002)
    assert VIT_B.divided_macs(16, 784) / 1e9 == pytest.approx(float(cell("t4_11", "flops_g")), rel=0.001)
    assert VIT_L.macs(16 * 400, 2 * PATCH_VALUES) / 1e9 == pytest.approx(float(cell("t3_14", "flops_g")), rel=0.01)


def test_divided_attention_adds_what_timesformer_prints():
    total = VIT_B.parameters(196, 400) + VIT_B.divided_parameters() + 96 * 768  # with the table of frames
    assert total // 10**6 == cell("t3_13", "params_m")


def test_attention_weights_grow_with_the_square_of_the_tokens():
    assert DEIT_TI.attention_map_bytes(1, 5, 2) == 3 * 2 * 2 * 5 * 2
    assert DEIT_TI.attention_map_bytes(64 * 196, 128, 2) == 3 * 12545**2 * 256
