"""The models, by name. ``import vmrepro`` also registers them with timm as ``vmrepro_videomamba_{ti,s,m,b}``."""

from __future__ import annotations

import dataclasses
import difflib

from vmrepro.models.checkpoints import load_checkpoint
from vmrepro.models.videomamba import VideoMamba
from vmrepro.specs.schema import SIZES, ModelSpec

__all__ = ["VideoMamba", "create_model", "load_checkpoint", "model_spec"]

GENERIC = "videomamba"


def create_model(name: str, *, backend: str = "auto", **overrides) -> VideoMamba:
    """A freshly initialised VideoMamba: "videomamba_ti", "_s", "_m", "_b", or "videomamba" with depth and embed_dim given.

    overrides: fields of ``ModelSpec``; ``num_frames=8`` gives the video model of eight frames. backend: see
    ``vmrepro.ops``. Raises ValueError for an unknown name, field or backend, and for sizes that do not go together.
    """
    return VideoMamba(model_spec(name, **overrides), backend=backend)


def model_spec(name: str, **overrides) -> ModelSpec:
    """The spec that ``create_model`` builds; same arguments, same errors."""
    sizes = {f"{GENERIC}_{size}": values for size, values in SIZES.items()} | {GENERIC: {}}
    if name not in sizes:
        raise ValueError(f"unknown model {name!r}: {_nearest(name, sizes)}")
    fields = {field.name for field in dataclasses.fields(ModelSpec)}
    for key in overrides:
        if key not in fields:
            raise ValueError(f"unknown option {key!r} of a model: {_nearest(key, fields)}")
    values = sizes[name] | overrides
    if absent := {"depth", "embed_dim"} - set(values):
        raise ValueError(f"{name!r} has no size of its own: give {' and '.join(sorted(absent))}, or take {', '.join(sizes)}")
    return ModelSpec(**values)


def _nearest(word: str, known) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
