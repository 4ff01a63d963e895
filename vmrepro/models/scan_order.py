"""The orders in which the tokens of a clip are scanned (paper section 3.2, "Spatiotemporal Scan", Figs. 4 and 7a).

Letters: T time steps, g patches of one time step, L = 1 + T·g tokens. Spatial-first runs through the g patches of a time step,
then through the next time step; temporal-first runs through the T time steps of a patch, then through the next patch.

The released code has spatial-first alone and the paper describes the others in one sentence, so this is what is read into it:

* The class token stays in front in every order, as in the released model: first of the forward direction, last of the backward.
* The two orders share all weights, since the paper gives the variants one size; a released file loads into any of the seven.
* ``spatiotemporal_v1``, "half of them": of the four scans that two orders and two directions make, two. Forward runs
  spatial-first and backward runs temporal-first from its end, which costs no more scans than one order does.
* ``spatiotemporal_v2``, "full of them (2x computation)": all four. A direction's convolution runs in the order of its scan. The
  directions are summed as released, the two orders averaged: on a single frame, where both are the same permutation, all seven
  are the image model whose weights they start from.
* Half and half: the first half of the layers takes the first order named, and of an odd number the middle one too.
* Alternating: layers 0, 2, 4, ... are spatial-first, the others temporal-first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from vmrepro.specs.schema import SCANS, ModelSpec

LayerOrder = Literal["spatial", "temporal", "v1", "v2"]
# The scans of a layer: the order, and the direction in which it is run through.
SCANS_OF: dict[LayerOrder, tuple[tuple[str, str], ...]] = {
    "spatial": (("spatial", "forward"), ("spatial", "backward")),
    "temporal": (("temporal", "forward"), ("temporal", "backward")),
    "v1": (("spatial", "forward"), ("temporal", "backward")),
    "v2": (("spatial", "forward"), ("spatial", "backward"), ("temporal", "forward"), ("temporal", "backward")),
}


def temporal_first(time_steps: int, patches: int) -> list[int]:
    """Where each token of the temporal-first sequence lies in the spatial-first one, class token included, (1 + T·g)."""
    return [0, *(1 + step * patches + patch for patch in range(patches) for step in range(time_steps))]


def inverse(order: list[int]) -> list[int]:
    """The permutation that undoes ``order``."""
    return sorted(range(len(order)), key=order.__getitem__)


def layer_orders(scan: str, depth: int) -> list[LayerOrder]:
    """How each of ``depth`` layers runs through the tokens, for one of ``SCANS``; "v1" and "v2" mix the orders in every layer."""
    first = (depth + 1) // 2
    orders = {
        "spatial_first": ["spatial"] * depth,
        "temporal_first": ["temporal"] * depth,
        "spatiotemporal_v1": ["v1"] * depth,
        "spatiotemporal_v2": ["v2"] * depth,
        "half_spatial_half_temporal": ["spatial"] * first + ["temporal"] * (depth - first),
        "half_temporal_half_spatial": ["temporal"] * first + ["spatial"] * (depth - first),
        "alternating": [("spatial", "temporal")[layer % 2] for layer in range(depth)],
    }
    return orders[scan]


def permutations(scan: str, depth: int) -> int:
    """How many tensors of tokens one forward pass of ``depth`` layers permutes."""
    layers = layer_orders(scan, depth)
    if "v1" in layers or "v2" in layers:
        return 2 * depth  # into temporal-first and back, in every mixer
    before, after = ["spatial", *layers], [*layers, "spatial"]
    changes = [old != new for old, new in zip(before, after, strict=True)]
    # Between layers hidden and residual; ahead of the first and behind the last there is one stream.
    return 2 * sum(changes) - changes[0] - changes[-1]


class Permute(torch.autograd.Function):
    """Tokens (batch, L, channels) in another order; the gradient is permuted back, which adds nothing and so is deterministic."""

    @staticmethod
    def forward(tokens: Tensor, order: Tensor, back: Tensor) -> Tensor:
        return tokens.index_select(1, order)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return Permute.apply(gradient, back, order), None, None


class ScanOrder(nn.Module):
    """The order of every layer of a model, and the permutations between them.

    ``layers`` is ``layer_orders``. The two permutations are buffers that no state dict has; spatial-first alone has none.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.layers = layer_orders(spec.scan, spec.depth)
        self.doubled = "v2" in self.layers
        self.in_mixer = self.doubled or "v1" in self.layers
        if self.in_mixer or "temporal" in self.layers:
            rows, columns = spec.grid_hw
            order = temporal_first(spec.time_steps, rows * columns)
            self.register_buffer("temporal", torch.tensor(order), persistent=False)
            self.register_buffer("spatial", torch.tensor(inverse(order)), persistent=False)

    def to_temporal(self, tokens: Tensor) -> Tensor:
        """Spatial-first tokens (batch, L, channels) as temporal-first ones, a copy."""
        return Permute.apply(tokens, self.temporal, self.spatial)

    def to_spatial(self, tokens: Tensor) -> Tensor:
        """Temporal-first tokens (batch, L, channels) as spatial-first ones, a copy."""
        return Permute.apply(tokens, self.spatial, self.temporal)

    def enter(self, layer: int, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What leaves layer - 1, or the embedding, in the order of this layer; copied only where the order changes."""
        before, now = (self._stream(index) for index in (layer - 1, layer))
        if before == now:
            return hidden, residual
        turn = self.to_temporal if now == "temporal" else self.to_spatial
        return turn(hidden), None if residual is None else turn(residual)

    def leave(self, tokens: Tensor) -> Tensor:
        """What leaves the last layer, (batch, L, channels), spatial-first again."""
        return tokens if self._stream(len(self.layers) - 1) == "spatial" else self.to_spatial(tokens)

    def _stream(self, layer: int) -> str:
        """The order that the tokens between layers have when they enter this one; -1 is the embedding."""
        return "temporal" if layer >= 0 and self.layers[layer] == "temporal" else "spatial"

    def extra_repr(self) -> str:
        return " ".join(self.layers)


def walks(spec: ModelSpec) -> list[dict[str, str | int]]:
    """Each scan order's scans over the clip of a video spec, token by token, from the permutations that a model runs (Fig. 4).

    Rows of a tidy table: scan (of ``SCANS``); first_layer, last_layer and layer_step, the range of layers; order; direction;
    step from 0; frame, row and column of the patch visited. The class token is left out.
    """
    rows, columns = spec.grid_hw
    found = []
    for scan in SCANS:
        turns = ScanOrder(replace(spec, scan=scan))
        tokens = torch.arange(spec.length).view(1, -1, 1)
        for kind in dict.fromkeys(turns.layers):
            layers = [index for index, layer in enumerate(turns.layers) if layer == kind]
            span = {
                "first_layer": layers[0],
                "last_layer": layers[-1],
                "layer_step": (layers[1:] or [layers[0] + 1])[0] - layers[0],
            }
            for order, direction in SCANS_OF[kind]:
                sequence = (tokens if order == "spatial" else turns.to_temporal(tokens)).flatten().tolist()[1:]
                for step, token in enumerate(sequence if direction == "forward" else reversed(sequence)):
                    frame, patch = divmod(token - 1, rows * columns)
                    place = {"step": step, "frame": frame, "row": patch // columns, "column": patch % columns}
                    found.append({"scan": scan, **span, "order": order, "direction": direction, **place})
    return found
