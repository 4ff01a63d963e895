"""Released and own weights into a model: every name accounted for on both sides, every change of shape asked for by name.

A state is a mapping from parameter name to tensor. Names are the released ones, so nothing is renamed.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmrepro.models.blocks import widen
from vmrepro.specs.schema import ModelSpec

SPATIAL, TEMPORAL, PATCHES = "pos_embed", "temporal_pos_embedding", "patch_embed.proj.weight"
OF_THE_TASK = ("head", "distill_head")  # parts that depend on what was asked of a model


class LoadReport(NamedTuple):
    """What ``load_checkpoint`` did, by parameter name."""

    loaded: tuple[str, ...]  # now hold the file's values, resized or not
    resized: tuple[str, ...]  # of these, the tables that were interpolated
    kept: tuple[str, ...]  # of the model, left as they were because ``skip`` names them
    unused: tuple[str, ...]  # of the file, left out because ``skip`` names them


def load_checkpoint(
    model: nn.Module,
    source: str | Path | Mapping,
    *,
    skip: Iterable[str] = (),
    resize: bool = False,
    grid_from: tuple[int, int] | None = None,
) -> LoadReport:
    """Copy a checkpoint into a VideoMamba, strictly, and say what was done.

    source: a file, or a mapping, in any released wrapping (see ``read_state``).
    skip: names, or leading parts of them, that are not loaded: the model keeps its own values and the file's are left
        unused. ``("head",)`` gives a fresh classifier, ``("distill_head",)`` turns a student into a plain model.
    resize: interpolate position tables of another grid or frame count to the model's (``resize_spatial``,
        ``resize_temporal``).
    grid_from: patches per column and row of the file's spatial table, when they do not form a square.
    Raises ValueError, and changes nothing, if a name or shape is left that does not fit, or ``skip`` names nothing.
    """
    state, spec = read_state(source), model.spec
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    for name in skip:
        if not any(_is_under(key, (name,)) for key in (*own, *state)):
            raise ValueError(f"skip names {name!r}, which is neither in the file nor in the model")
    kept = tuple(key for key in own if _is_under(key, skip))
    unused = tuple(key for key in state if _is_under(key, skip))
    state = {key: tensor for key, tensor in state.items() if key not in unused}
    resized = []
    if resize:
        told = grid_from is not None and tuple(grid_from) != spec.grid_hw and SPATIAL in state
        if told or _needs_resize(state, own, SPATIAL):
            state[SPATIAL] = resize_spatial(state[SPATIAL], spec.grid_hw, grid_from=grid_from)
            resized.append(SPATIAL)
        if _needs_resize(state, own, TEMPORAL):
            state[TEMPORAL] = resize_temporal(state[TEMPORAL], spec.time_steps)
            resized.append(TEMPORAL)
    _require_fit(state, {key: shape for key, shape in own.items() if key not in kept})
    model.load_state_dict(state, strict=not kept)
    return LoadReport(tuple(state), tuple(resized), kept, unused)


def read_state(source: str | Path | Mapping) -> dict[str, Tensor]:
    """The state, on the CPU, of a file or mapping: bare as released for videos, or under "model" (images) or "module".

    Files are read with ``weights_only=True``: no code in them runs. Raises ValueError if there is no state inside, and
    FileNotFoundError as ``torch.load`` does.
    """
    where = "the mapping"
    if isinstance(source, str | Path):
        where = str(source)
        try:
            source = torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{where} is not a file of tensors alone, and nothing else is unpickled here because that could run code. "
                f'If you trust it, save its state anew with torch.save({{"model": state}}, path). ({error})'
            ) from error
    for wrapper in ("model", "module"):
        if isinstance(source, Mapping) and isinstance(source.get(wrapper), Mapping):
            source = source[wrapper]
            break
    if not isinstance(source, Mapping) or not source or not all(isinstance(value, Tensor) for value in source.values()):
        found = f"keys {', '.join(map(str, list(source)[:8]))}" if isinstance(source, Mapping) else type(source).__name__
        raise ValueError(f'{where} holds no state: expected tensors by name, bare or under "model" or "module", got {found}')
    return dict(source)


def spec_of_state(state: Mapping[str, Tensor]) -> ModelSpec:
    """The sizes of the VideoMamba that a released or own state belongs to, told from names and shapes.

    What leaves no trace in shapes is as released: square frames, patches that do not overlap, spatial-first scan, no dropout
    but the default stochastic depth. Raises ValueError where shapes cannot tell, as for a rectangular grid of patches, and for
    what is no classifier, as a masked-pretraining encoder.
    """
    first = "layers.0.mixer."
    needed = (SPATIAL, PATCHES, f"{first}A_log", f"{first}conv1d.weight", f"{first}dt_proj.weight", "norm_f.weight")
    if absent := [name for name in needed if name not in state]:
        encoder = (
            " It is a masked-pretraining encoder: give it a classifier by a fine-tuning first." if "norm.weight" in state else ""
        )
        raise ValueError(f"the state of a VideoMamba has {', '.join(absent)}, this one has not.{encoder}")
    patches, matrix, rank = state[PATCHES].shape, state[f"{first}A_log"].shape, state[f"{first}dt_proj.weight"].shape[1]
    d, side = patches[0], math.isqrt(state[SPATIAL].shape[1] - 1)
    if side * side != state[SPATIAL].shape[1] - 1:
        raise ValueError(
            f"{state[SPATIAL].shape[1] - 1} patches of a frame form no square, and their grid cannot be told from that: "
            "build the model with vmrepro.create_model and its img_size, and load_checkpoint"
        )
    tubelet = patches[2] if len(patches) == 5 else 1
    return ModelSpec(
        depth=len({name.split(".")[1] for name in state if name.startswith("layers.")}),
        embed_dim=d,
        img_size=side * patches[-1],
        patch_size=patches[-1],
        in_chans=patches[1],
        num_classes=len(state["head.weight"]) if "head.weight" in state else 0,
        num_frames=state[TEMPORAL].shape[1] * tubelet if TEMPORAL in state else None,
        kernel_size=tubelet,
        d_state=matrix[1],
        d_conv=state[f"{first}conv1d.weight"].shape[-1],
        expand=matrix[0] // d,
        dt_rank=None if rank == math.ceil(d / 16) else rank,
        norm="layer" if "norm_f.bias" in state else "rms",
        bidirectional=f"{first}A_b_log" in state,
        distill_dim=len(state["distill_head.1.weight"]) if "distill_head.1.weight" in state else None,
    )


def resize_spatial(table: Tensor, grid_to: tuple[int, int], *, grid_from: tuple[int, int] | None = None) -> Tensor:
    """A spatial table (1, 1 + rows·columns, d) for another grid: bicubic, corners not aligned, class token as it was.

    grid_to, grid_from: (rows, columns) in patches; without ``grid_from`` the table must be square. Computed in at least
    float32, returned in the table's type. Source: the released ``--finetune`` loaders. Raises ValueError if the table does
    not have the entries that ``grid_from`` says.
    """
    entries = table.shape[1] - 1
    side = math.isqrt(entries)
    rows, columns = grid_from or (side, side)
    if rows * columns != entries:
        told = f"grid_from={grid_from}" if grid_from else "a square grid, assumed without grid_from,"
        raise ValueError(f"a table of {entries} patches and a class token does not fit {told}: pass grid_from=(rows, columns)")
    class_token, patches = table[:, :1], table[:, 1:]
    grid = widen(patches).reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=tuple(grid_to), mode="bicubic", align_corners=False)
    return torch.cat([class_token, grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def resize_temporal(table: Tensor, steps_to: int) -> Tensor:
    """A temporal table (1, steps, d) for another number of time steps (frames / tubelet length): linear, corners not aligned.

    Computed in at least float32, returned in the table's type. Source: the released video ``--finetune`` loader.
    """
    return F.interpolate(widen(table).transpose(1, 2), size=steps_to, mode="linear").transpose(1, 2).to(table.dtype)


def inflate_2d_to_3d(weight: Tensor, kernel_size: int, mode: Literal["centre", "average"] = "centre") -> Tensor:
    """A patch kernel (d, C, p, p) as a tubelet kernel (d, C, kernel_size, p, p).

    "centre" puts it at time kernel_size // 2 and zeros elsewhere (what the released constructors use); "average" repeats
    it, divided by kernel_size. Raises ValueError for another mode or rank.
    """
    if weight.ndim != 4:
        raise ValueError(f"expected an image patch kernel of 4 dimensions (d, channels, p, p), got {tuple(weight.shape)}")
    if mode == "average":
        return weight.unsqueeze(2).repeat(1, 1, kernel_size, 1, 1) / kernel_size
    if mode != "centre":
        raise ValueError(f"mode must be 'centre' or 'average', got {mode!r}")
    tubelet = weight.new_zeros(*weight.shape[:2], kernel_size, *weight.shape[2:])
    tubelet[:, :, kernel_size // 2] = weight
    return tubelet


def image_to_video(
    state: Mapping[str, Tensor], spec: ModelSpec, *, mode: Literal["centre", "average"] = "centre"
) -> dict[str, Tensor]:
    """The state of an image model with its patch kernel inflated for the video model ``spec``; everything else as it is.

    An image has no temporal table and another head, so the released start of a video model is
    ``load_checkpoint(model, image_to_video(read_state(file), spec), skip=("head", "temporal_pos_embedding"))``.
    Raises ValueError if ``spec`` is not of a video model or the state not of an image model.
    """
    if spec.num_frames is None:
        raise ValueError("image_to_video needs the spec of a video model: num_frames is None")
    if PATCHES not in state:
        raise ValueError(f"the state has no {PATCHES!r}: unwrap the file with read_state first")
    return {**state, PATCHES: inflate_2d_to_3d(state[PATCHES], spec.kernel_size, mode)}


def start_from(model: nn.Module, source: str | Path | Mapping) -> LoadReport:
    """Give a VideoMamba the weights that its training begins from, and say what was done.

    source: as for ``load_checkpoint``. Image weights start a video model with their patch kernel inflated and the temporal
    table as it is, which is zero in a fresh model; its classifier starts fresh. Position tables of other sizes are resized. A
    classifier of another number of classes, and a head for another teacher or for none, start fresh too. Raises ValueError, and
    changes nothing, if anything else differs. Source: paper section 4.2; the released video loaders.
    """
    state, own = read_state(source), model.state_dict()
    inflated = model.spec.num_frames is not None and PATCHES in state and state[PATCHES].ndim == 4
    if inflated:
        state = image_to_video(state, model.spec)
    skip = [part for part in OF_THE_TASK if inflated or _shapes_under(state, part) != _shapes_under(own, part)]
    skip = [part for part in skip if _shapes_under(state, part) or _shapes_under(own, part)]
    if TEMPORAL in own and TEMPORAL not in state:
        skip.append(TEMPORAL)
    return load_checkpoint(model, state, skip=skip, resize=True)


def _shapes_under(state: Mapping[str, Tensor], part: str) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state.items() if _is_under(key, (part,))}


def _is_under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix.rstrip(".") + ".") for prefix in prefixes)


def _needs_resize(state: Mapping[str, Tensor], own: Mapping[str, torch.Size], key: str) -> bool:
    """Whether a table differs in its number of entries alone, so that interpolation can make it fit."""
    if key not in state or key not in own or state[key].ndim != 3:
        return False
    there, here = state[key].shape, own[key]
    return there[1] != here[1] and (there[0], there[2]) == (here[0], here[2])


def _require_fit(state: Mapping[str, Tensor], own: Mapping[str, torch.Size]) -> None:
    """Raise ValueError unless names and shapes agree, with advice for each known reason."""
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    differing = [key for key in own if key in state and state[key].shape != own[key]]
    if not (missing or unexpected or differing):
        return
    shapes = [f"{key} {tuple(state[key].shape)} in the file, {tuple(own[key])} in the model" for key in differing]
    lines = ["the checkpoint does not fit the model; nothing was loaded."]
    found = {"missing in the file": missing, "unexpected in the file": unexpected, "of another shape": shapes}
    for title, entries in found.items():
        if entries:
            more = f", and {len(entries) - 8} more" if len(entries) > 8 else ""
            lines.append(f"  {title}: {', '.join(entries[:8])}{more}")
    wrong = {*missing, *unexpected, *differing}
    image_kernel = PATCHES in differing and state[PATCHES].ndim == 4 and len(own[PATCHES]) == 5
    advice = {
        "another size or frame count: pass resize=True": {SPATIAL, TEMPORAL} & set(differing),
        "weights of an image model: convert them with image_to_video first": image_kernel,
        "no temporal table in an image's weights: skip 'temporal_pos_embedding'": TEMPORAL in missing,
        "another classifier: skip 'head' for a fresh one": {"head.weight", "head.bias"} & wrong,
        "weights of a distillation student: skip 'distill_head'": any(_is_under(key, ("distill_head",)) for key in unexpected),
        "a masked-pretraining encoder: skip 'norm', 'clip_decoder', 'norm_f' and 'head'": "norm.weight" in unexpected,
    }
    lines += [f"  {line}" for line, applies in advice.items() if applies]
    raise ValueError("\n".join(lines))
