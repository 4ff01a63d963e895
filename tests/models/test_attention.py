"""The attention models: one function however attention is computed, of the size that the paper's baseline has."""

import sys

import pytest
import torch

from vmrepro.models import attention
from vmrepro.specs.efficiency import DEIT_TI, AttentionSpec

SMALL = {"num_frames": 2, "img_size": 32, "depth": 2, "width": 24, "heads": 3, "num_classes": 5}


def build(kind, **changes):
    torch.manual_seed(0)
    return attention.build(AttentionSpec(kind=kind, **SMALL | changes)).eval()


def test_fused_and_materialised_attention_are_one_function():
    x = torch.randn(2, 3, 2, 32, 32)
    naive, fused = build("joint_naive"), build("joint_fused")
    assert [block.attn.fused_attn for block in naive.blocks + fused.blocks] == [False] * 2 + [True] * 2
    torch.testing.assert_close(naive(x), fused(x), rtol=1e-5, atol=1e-6)


def test_joint_attention_spans_all_frames():
    x = torch.randn(1, 3, 2, 32, 32)
    changed = x.clone()
    changed[:, :, 1] += 1
    model = build("joint_naive")
    tokens = []
    model.norm.register_forward_hook(lambda module, given, result: tokens.append(given[0]))
    model(x), model(changed)
    assert not torch.allclose(tokens[0], tokens[1])


def test_the_baseline_has_the_size_of_deit_ti():
    with torch.device("meta"):
        model = attention.build(AttentionSpec(kind="joint_naive", num_frames=1, img_size=224, num_classes=1000, **DEIT_TI))
    assert sum(p.numel() for p in model.parameters()) == 5_717_416  # timm's deit_tiny_patch16_224


def test_divided_attention_takes_the_same_clips():
    assert build("divided")(torch.randn(2, 3, 2, 32, 32)).shape == (2, 5)


def test_divided_attention_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"built by transformers .*pip install 'vmrepro\[peers\]'"):
        build("divided")
