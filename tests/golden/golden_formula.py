"""Weights and inputs of the golden cases, by formula.

The cases were computed with the released implementation, on a CPU, from weights and inputs that this formula makes, so that
none had to be stored: uniform doubles from numpy's legacy generator, whose stream never changes, seeded by the name of
the tensor; turned into a value in float64 by the rule of the first matching row of ``golden_weight``; rounded to float32.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np

EMBEDDINGS = {"cls_token", "pos_embed", "temporal_pos_embedding", "class_embedding", "positional_embedding"}


def uniform(tag: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Doubles in [0, 1) of this shape, by the tag and the seed."""
    stream = np.random.RandomState((zlib.crc32(tag.encode()) + 7919 * seed) % 2**32)
    return stream.random_sample(math.prod(shape)).reshape(shape)


def centred(u: np.ndarray) -> np.ndarray:
    """From uniform on [0, 1) to mean 0 and variance 1."""
    return math.sqrt(3) * (2 * u - 1)


def golden_input(tag: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An input, float32, with mean 0 and variance 1."""
    return centred(uniform(tag, tuple(shape), seed)).astype(np.float32)


def golden_weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The tensor of this ``state_dict`` name, float32."""
    shape = tuple(shape)
    parent, leaf = ["", *name.split(".")][-2:]
    u = uniform(name, shape, seed)
    n = centred(u)
    if leaf in ("A_log", "A_b_log"):
        value = np.log(np.arange(1.0, shape[-1] + 1)) + 0.2 * n
    elif leaf in ("D", "D_b"):
        value = 1 + 0.2 * n
    elif parent in ("dt_proj", "dt_proj_b"):
        if leaf == "bias":
            step = np.exp(math.log(1e-3) + u * (math.log(1e-1) - math.log(1e-3)))
            value = step + np.log(-np.expm1(-step))
        else:
            value = (2 * u - 1) * shape[1] ** -0.5
    elif leaf in EMBEDDINGS:
        value = 0.3 * n
    elif len(shape) == 1:
        value = 1 + 0.2 * n if leaf.endswith("weight") else 0.1 * n
    else:
        value = n / math.sqrt(math.prod(shape[1:]))
    return value.astype(np.float32)


def golden_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """A whole state, float32, from shapes by name."""
    return {name: golden_weight(name, tuple(shape), seed) for name, shape in shapes.items()}
