"""What did the released training scripts set? Each script's values by its name, as the parts of an experiment (no torch)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from vmrepro.specs.schema import AugmentSpec, TrainSpec


@functools.cache
def _recipes() -> dict[str, dict[str, Any]]:
    return json.loads(Path(__file__).with_suffix(".json").read_text())["recipes"]


def recipe(name: str) -> dict[str, Any]:
    """The values of one script, such as "imagenet/videomamba_small/res224"; ValueError for one that is not kept here."""
    if name not in _recipes():
        raise ValueError(f"no recipe {name!r}; known are {', '.join(_recipes())}")
    return _recipes()[name]


def augment_of(values: dict[str, Any]) -> AugmentSpec:
    """The augmentation of a recipe."""
    return AugmentSpec(**{name: values[name] for name in AugmentSpec.__dataclass_fields__ if name in values})


def train_of(values: dict[str, Any], **changes) -> TrainSpec:
    """The optimiser and schedule of a recipe, with ``changes``."""
    return TrainSpec(**{name: values[name] for name in TrainSpec.__dataclass_fields__ if name in values} | changes)
