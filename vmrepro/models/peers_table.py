"""Which library builds which model that the paper compares with: data for :mod:`vmrepro.models.peers`, row by row.

Sizes are those of the published models; where the source is not the library's own constructor, a comment names it. Looked for
in timm 1.0.31, torchvision 0.28.0 and transformers 5.23.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Match = Literal["exact", "nearest", "none"]


@dataclass(frozen=True)
class Architecture:
    """One network: the library, its constructor's name there, and the options that make it this one."""

    library: Literal["timm", "torchvision", "transformers"]
    constructor: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """A row that a library builds: the key of its network, how close that is to the row, and what a reader must know.

    ``fits``: frames and size at which the printed cost comes out, where the printed input cannot have it; ``taken``: frames and
    size that are counted where the row prints no input.
    """

    architecture: str
    match: Match = "exact"
    note: str = ""
    fits: tuple[int, int] | None = None
    taken: tuple[int, int] | None = None


def _iso_convnext(width: int) -> Architecture:
    # ConvNeXt, section 3.3: one stage of 18 blocks on patches of 16, no layer scale (released code, convnext_isotropic.py).
    options = {"num_stages": 1, "depths": [18], "hidden_sizes": [width], "patch_size": 16, "layer_scale_init_value": 0.0}
    return Architecture("transformers", "ConvNextForImageClassification", options)


def _videomae(**options: int) -> Architecture:
    return Architecture("transformers", "VideoMAEForVideoClassification", options)


_VIT_L = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
# Swin-B of Video Swin, as torchvision's swin3d_b has it, less the window.
_SWIN_B = {"patch_size": [2, 4, 4], "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "convnext_t": Architecture("timm", "convnext_tiny"),
        "convnext_s": Architecture("timm", "convnext_small"),
        "convnext_b": Architecture("timm", "convnext_base"),
        "convnext_iso_s": _iso_convnext(384),
        "convnext_iso_b": _iso_convnext(768),
        "swin_t": Architecture("timm", "swin_tiny_patch4_window7_224"),
        "swin_s": Architecture("timm", "swin_small_patch4_window7_224"),
        "swin_b": Architecture("timm", "swin_base_patch4_window7_224"),
        "deit_ti": Architecture("timm", "deit_tiny_patch16_224"),
        "deit_s": Architecture("timm", "deit_small_patch16_224"),
        "deit_b": Architecture("timm", "deit_base_patch16_224"),
        "video_swin_t": Architecture("torchvision", "swin3d_t"),
        "video_swin_b": Architecture("torchvision", "swin3d_b"),
        # The SSV2 model of Video Swin has a window of 16 x 7 x 7 patches, twice as long as that of Kinetics.
        "video_swin_b_long": Architecture("torchvision", "SwinTransformer3d", _SWIN_B | {"window_size": [16, 7, 7]}),
        # Blocks before which queries are pooled: SlowFast's configs MVIT_B_32x3_CONV and MVITv2_B_32x3.
        "mvit_v1_b": Architecture("torchvision", "MViT", {"version": 1, "depth": 16, "pooled": (1, 3, 14)}),
        "mvit_v2_s": Architecture("torchvision", "MViT", {"version": 2, "depth": 16, "pooled": (1, 3, 14)}),
        "mvit_v2_b": Architecture("torchvision", "MViT", {"version": 2, "depth": 24, "pooled": (2, 5, 21)}),
        "s3d": Architecture("torchvision", "s3d"),
        "timesformer": Architecture("transformers", "TimesformerForVideoClassification"),
        "vivit_l": Architecture("transformers", "VivitForVideoClassification", _VIT_L),
        "videomae_s": _videomae(hidden_size=384, num_attention_heads=6, intermediate_size=1536),
        "videomae_b": _videomae(),
        "umt_b": _videomae(tubelet_size=1),
        "clip_b32": Architecture("transformers", "CLIPVisionModel"),
    }
)

_ISO = "The library's stem ends in a LayerNorm that the released isotropic model lacks: two numbers a channel, no product."
_ROUNDED = "1.254 G is printed as 1.3: rounding alone is 3.6 %."
_SWIN_COST = "E02: the printed 88 G are those of Swin-T at this input."
_MVIT_COST = "E03: the printed 70 G come out at 16 frames, and Table 4 prints 170 for 32."
_VIVIT_COST = "E05: 311 M and 3992 G are those of 32 frames of 320 pixels; the 16x2 of the model's name is its patch."
_TIMESFORMER_COST = "E06: the printed 1703 G come out at 448 pixels."
_LONG_WINDOW = "Built with the window of the SSV2 model, 16x7x7; torchvision's own constructors have 8x7x7."
_MVIT_CLASS = "torchvision has this class, but no constructor for {}; the blocks are those of the released configuration."
_ST_MAE = "Built as VideoMAE-B: the same blocks and patches, but no class token, and fixed instead of learned positions."
_UMT = "Built as VideoMAE-B with patches of one frame instead of two, which makes the same 1568 tokens of 8 frames."
_TAKEN = "The row prints no {}: {} taken, with a Kinetics-400 head."
_CLIP4CLIP = "The row prints ViT only: counted is the image tower of CLIP ViT-B/32 on one frame, which CLIP4Clip starts from."

BUILT: Mapping[str, Built] = MappingProxyType(
    {
        "t2_01": Built("convnext_t"),
        "t2_02": Built("convnext_s"),
        "t2_03": Built("convnext_b"),
        "t2_04": Built("swin_t"),
        "t2_05": Built("swin_s"),
        "t2_06": Built("swin_b"),
        "t2_10": Built("convnext_iso_s", note=_ISO),
        "t2_11": Built("convnext_iso_b", note=_ISO),
        "t2_12": Built("deit_ti", note=_ROUNDED),
        "t2_13": Built("deit_s"),
        "t2_14": Built("deit_b"),
        "t2_15": Built("deit_b"),
        "t3_04": Built("video_swin_t"),
        "t3_05": Built("video_swin_b", note=_SWIN_COST),
        "t3_06": Built("video_swin_b"),
        "t3_07": Built("mvit_v1_b", note=f"{_MVIT_CLASS.format('32 frames')} {_MVIT_COST}", fits=(16, 224)),
        "t3_08": Built("mvit_v2_s"),
        "t3_13": Built("timesformer"),
        "t3_14": Built("vivit_l", note=_VIVIT_COST, fits=(32, 320)),
        "t3_25": Built("video_swin_b", note="BEVT fine-tunes Video Swin-B; its pretraining head is not part of it."),
        "t3_26": Built("videomae_b", "nearest", _ST_MAE),
        "t3_27": Built("videomae_s"),
        "t3_28": Built("videomae_b"),
        "t3_29": Built("umt_b", "nearest", _UMT),
        "t4_04": Built("video_swin_b_long", note=f"{_LONG_WINDOW} {_SWIN_COST}"),
        "t4_05": Built("mvit_v1_b"),
        "t4_06": Built("mvit_v1_b", note=_MVIT_CLASS.format("32 frames")),
        "t4_07": Built("mvit_v2_s"),
        "t4_08": Built("mvit_v2_b", note=_MVIT_CLASS.format("size B")),
        "t4_11": Built("timesformer", note=_TIMESFORMER_COST, fits=(16, 448)),
        "t4_12": Built("vivit_l", note=_VIVIT_COST, fits=(32, 320)),
        "t4_23": Built("video_swin_b_long", note=f"BEVT fine-tunes Video Swin-B. {_LONG_WINDOW}"),
        "t4_24": Built("videomae_s"),
        "t4_25": Built("videomae_b"),
        "t4_26": Built("umt_b", "nearest", _UMT),
        "t6_04": Built("timesformer", "nearest", _TAKEN.format("input", "8 frames of 224 pixels are"), taken=(8, 224)),
        "t6_05": Built("video_swin_b", "nearest", _TAKEN.format("input", "32 frames of 224 pixels are"), taken=(32, 224)),
        "t6_06": Built("videomae_b", "nearest", _TAKEN.format("size", "224 pixels are"), taken=(32, 224)),
        "t6_07": Built("videomae_b", "nearest", _TAKEN.format("size", "224 pixels are"), taken=(32, 224)),
        "t8_07": Built("s3d", "nearest", _TAKEN.format("input", "32 frames of 224 pixels are"), taken=(32, 224)),
        "t8_13": Built("clip_b32", "nearest", _CLIP4CLIP, taken=(1, 224)),
    }
)

_NOWHERE = "no well-kept library builds {}: neither timm 1.0.31 nor torchvision 0.28.0 nor transformers 5.23.0 has it"
_MMACTION = "mmaction2 1.2.0 (2023) does, but needs mmcv older than 2.2, which has to be compiled"
_PYTORCHVIDEO = "pytorchvideo 0.1.5 does, but its transforms no longer import beside torchvision 0.28.0"
_FAMILY = "the row names a family of backbones, {}, without a size"


def _nowhere(model: str, *outdated: str) -> str:
    return "; ".join((_NOWHERE.format(model), *outdated))


ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "t2_07": _nowhere("VMamba"),
        "t2_08": _nowhere("VMamba"),
        "t2_09": _nowhere("VMamba"),
        "t2_16": _nowhere("S4ND"),
        "t2_17": _nowhere("Vim"),
        "t2_18": _nowhere("Vim"),
        "t3_01": _nowhere("SlowFast", _PYTORCHVIDEO, _MMACTION),
        "t3_02": _nowhere("X3D", _PYTORCHVIDEO, _MMACTION),
        "t3_03": _nowhere("X3D", _PYTORCHVIDEO, _MMACTION),
        "t3_09": _nowhere("UniFormer", _MMACTION),
        "t3_10": _nowhere("UniFormer", _MMACTION),
        "t3_11": _nowhere("UniFormer", _MMACTION),
        "t3_12": _nowhere("STAM"),
        "t3_15": _nowhere("Motionformer"),
        "t4_01": _nowhere("SlowFast", _PYTORCHVIDEO, _MMACTION),
        "t4_02": _nowhere("CT-Net"),
        "t4_03": _nowhere("TDN"),
        "t4_09": _nowhere("UniFormer", _MMACTION),
        "t4_10": _nowhere("UniFormer", _MMACTION),
        "t4_13": _nowhere("Motionformer"),
        "t6_01": _FAMILY.format("3D-ResNet"),
        "t6_02": _nowhere("I3D", _PYTORCHVIDEO, _MMACTION),
        "t6_03": _nowhere("I3D", _PYTORCHVIDEO, _MMACTION),
        **dict.fromkeys(("t8_01", "t8_08", "t8_09"), _FAMILY.format("Swin")),
        **dict.fromkeys(("t8_02", "t8_03", "t8_04", "t8_05", "t8_10", "t8_11", "t8_12", "t8_14"), _FAMILY.format("ViT")),
    }
)
