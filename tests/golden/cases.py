"""The recorded numbers of the released implementation, the models they belong to, and how closely to compare."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden.golden_formula import golden_input, golden_state
from vmrepro.models import VideoMamba, create_model

FOLDER = Path(__file__).parent

# The reference's own float32 is within 8e-6 of its float64; a scan in another order needs a little more.
OPERATOR_F32 = {"atol": 1e-5, "rtol": 1e-5}
OPERATOR_F64 = {"atol": 1e-11, "rtol": 0.0}
MODEL_F32 = {"atol": 3e-5, "rtol": 0.0}
MODEL_F64 = {"atol": 1e-10, "rtol": 0.0}
STORED_F32 = 1e-6  # of a tensor's largest element: gradients are stored as float32, whatever computed them


def read_json(name: str):
    """The content of a JSON file of this folder."""
    return json.loads((FOLDER / name).read_text())


def cases(*kinds: str) -> list[dict]:
    """The recorded cases of these kinds."""
    return [case for case in read_json("cases.json") if case["kind"] in kinds]


def case_id(case: dict) -> str:
    """What a case is called in a test's name."""
    return f"{case['id']}-{case.get('seed', 0)}"


@functools.cache
def arrays(file: str) -> dict[str, np.ndarray]:
    """Every array of an archive of this folder."""
    with np.load(FOLDER / file) as archive:
        return dict(archive)


def recorded(case: dict) -> dict[str, Tensor | list[str]]:
    """The arrays of a case, by name without the case's prefix; names of parameters come as a list."""
    prefix = case["key_prefix"]
    own = {key.removeprefix(prefix): value for key, value in arrays(case["file"]).items() if key.startswith(prefix)}
    return {key: value.tolist() if value.dtype.kind == "U" else torch.from_numpy(value) for key, value in own.items()}


def options(args: dict) -> dict:
    """The fields of ``ModelSpec`` for the released constructor's arguments; ``fused_add_norm`` selects nothing here."""
    args = {key: value for key, value in args.items() if key != "fused_add_norm"}
    teacher_dim, role = args.pop("teacher_embed_dim", None), args.pop("model_type", None)
    return {
        "norm": "rms" if args.pop("rms_norm", True) else "layer",
        "bidirectional": args.pop("bimamba", True),
        "distill_dim": teacher_dim if role == "student" else None,
        **args.pop("ssm_cfg", {}),
        **args,
    }


def fill(module: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The module in eval mode with golden weights of this seed, rounded to float32 and widened to ``dtype``."""
    state = golden_state({name: tensor.shape for name, tensor in module.state_dict().items()}, seed)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return module.eval().to(dtype)


def golden_model(args: dict, seed: int, dtype: torch.dtype = torch.float32) -> VideoMamba:
    """The model that the released constructor builds from ``args``, with golden weights."""
    return fill(create_model("videomamba", **options(args)), seed, dtype)


def tensor(tag: str, shape, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A golden input, rounded to float32 and widened to ``dtype``."""
    return torch.from_numpy(golden_input(tag, tuple(shape), seed)).to(dtype)


def assert_gradient(got: Tensor | None, want: Tensor, name: str, fraction: float) -> None:
    """Every element within a fraction of the largest recorded one; what is recorded as zero must be zero."""
    assert got is not None, f"no gradient reached {name}"
    error, scale = (got.double() - want.double()).abs().max().item(), want.abs().max().item()
    assert error <= fraction * scale, f"{name}: error {error:.2e} against {scale:.2e}"
