"""The four sizes as timm models. Imported by ``vmrepro`` once timm is there, since timm itself takes seconds to import."""

from __future__ import annotations

from functools import partial

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from vmrepro.models import create_model
from vmrepro.models.videomamba import VideoMamba

# Test-time preprocessing of the released image_sm/main.py: crop ratio, interpolation, statistics.
_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "fixed_input_size": True,
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "apache-2.0",
}
default_cfgs = generate_default_cfgs({f"vmrepro_videomamba_{size}": _CFG for size in ("ti", "s", "m", "b")})


def _build(size: str, pretrained: bool, **kwargs) -> VideoMamba:
    if pretrained:
        raise ValueError(
            "vmrepro downloads no weights: put the released file into the checkpoints folder (VMREPRO_CHECKPOINTS), create the "
            "model with pretrained=False and call vmrepro.models.load_checkpoint(model, file)"
        )
    if kwargs.get("features_only"):
        raise ValueError("VideoMamba has no feature pyramid for features_only: use model.forward_features(x), the final tokens")
    return build_model_with_cfg(partial(create_model, f"videomamba_{size}"), f"vmrepro_videomamba_{size}", False, **kwargs)


@register_model
def vmrepro_videomamba_ti(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-Ti; kwargs are timm's and the fields of ``ModelSpec``. Raises ValueError for ``pretrained=True``."""
    return _build("ti", pretrained, **kwargs)


@register_model
def vmrepro_videomamba_s(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-S; kwargs are timm's and the fields of ``ModelSpec``. Raises ValueError for ``pretrained=True``."""
    return _build("s", pretrained, **kwargs)


@register_model
def vmrepro_videomamba_m(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-M; kwargs are timm's and the fields of ``ModelSpec``. Raises ValueError for ``pretrained=True``."""
    return _build("m", pretrained, **kwargs)


@register_model
def vmrepro_videomamba_b(pretrained: bool = False, **kwargs) -> VideoMamba:
    """VideoMamba-B; kwargs are timm's and the fields of ``ModelSpec``. Raises ValueError for ``pretrained=True``."""
    return _build("b", pretrained, **kwargs)
