"""The attention models that VideoMamba is measured against, made of the blocks of timm and of transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmrepro.models.videomamba import PatchEmbed
from vmrepro.specs.efficiency import AttentionSpec
from vmrepro.specs.schema import ModelSpec


class JointAttention(nn.Module):
    """A DeiT whose attention spans all tokens of a clip: the paper's "TimeSformer-Ti" (Fig. 1), with timm's blocks.

    "joint_naive" materialises the scores, as the paper's baseline did; "joint_fused" calls scaled_dot_product_attention.
    """

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        width, side = spec.width, spec.img_size
        sizes = {"img_size": side, "patch_size": spec.patch_size, "num_frames": spec.num_frames}
        self.patch_embed = PatchEmbed(ModelSpec(depth=1, embed_dim=width, **sizes))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, spec.length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, spec.heads, qkv_bias=True) for _ in range(spec.depth))
        for block in self.blocks:
            block.attn.fused_attn = spec.kind == "joint_fused"
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) from videos (B, C, T, H, W)."""
        tokens = self.patch_embed(x).flatten(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, 0]))


class DividedAttention(nn.Module):
    """TimeSformer: attention over time and then over space in each block, by the library transformers."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        from transformers import TimesformerConfig, TimesformerForVideoClassification

        sizes = {"hidden_size": spec.width, "num_hidden_layers": spec.depth, "num_attention_heads": spec.heads}
        sizes |= {"image_size": spec.img_size, "patch_size": spec.patch_size, "num_frames": spec.num_frames}
        config = TimesformerConfig(**sizes, intermediate_size=4 * spec.width, num_labels=spec.num_classes)
        self.model = TimesformerForVideoClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) from videos (B, C, T, H, W)."""
        return self.model(x.transpose(1, 2)).logits


def build(spec: AttentionSpec) -> nn.Module:
    """The model of a spec, freshly initialised; ImportError, saying what to install, where transformers is absent."""
    if spec.kind != "divided":
        return JointAttention(spec)
    try:
        return DividedAttention(spec)
    except ImportError as error:
        raise ImportError(f"divided attention is built by transformers ({error}): pip install 'vmrepro[peers]'") from error
