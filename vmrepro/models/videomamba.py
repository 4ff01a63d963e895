"""VideoMamba for images and videos (paper section 3.2): patches, positions, blocks, classifier, from top to bottom.

Letters: B batch, T frames, H and W pixels, k tubelet length in frames, S = T/k time steps (1 for an image), g patches of
one frame, d width. A sequence is the class token, then frame 0 row by row, frame 1, ...: L = 1 + S·g tokens. That is the
natural order; ``models/scan_order.py`` has the others in which blocks may run through it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmrepro.models.blocks import Block, DropPath, hooked, make_norm, widen
from vmrepro.models.initialise import initialise, initialise_linear
from vmrepro.models.scan_order import ScanOrder
from vmrepro.ops import BACKENDS
from vmrepro.specs.schema import ModelSpec


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Stochastic depth of what enters block 0, 1, ..., depth - 1, and then the final norm.

    The output of block j is dropped with probability rate·j/(depth - 1). It joins the residual stream in block j + 1, which
    is where the rate sits; what leaves the last block has the full rate (released ``inter_dpr`` and ``self.drop_path``).
    """
    of_outputs = [rate * j / (depth - 1) for j in range(depth - 1)]
    return [0.0, *of_outputs, rate]


class PatchEmbed(nn.Module):
    """Non-overlapping patches (or tubelets) as tokens; with ``stride`` below ``patch_size`` they overlap in space."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        side, stride = spec.patch_size, spec.stride or spec.patch_size
        tubelet = spec.kernel_size
        self.side, self.tubelet, self.overlaps = side, tubelet, stride != side
        if spec.num_frames is None:
            self.proj = nn.Conv2d(spec.in_chans, spec.embed_dim, side, stride)
        else:
            self.proj = nn.Conv3d(spec.in_chans, spec.embed_dim, (tubelet, side, side), (tubelet, stride, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, S, g, d) from images (B, C, H, W) or videos (B, C, T, H, W)."""
        if self.overlaps:
            patches = self.proj(x)
            return (patches.unsqueeze(2) if patches.ndim == 4 else patches).flatten(3).permute(0, 2, 3, 1)
        # Where no two patches share a pixel the convolution is one product, several times faster than cuDNN's convolution.
        weight = self.proj.weight.flatten(1)
        x = x if x.ndim == 5 else x.unsqueeze(2)
        side, tubelet = self.side, self.tubelet
        (B, C, T, H, W), g = x.shape, (x.shape[3] // side) * (x.shape[4] // side)
        x = x[..., : H // side * side, : W // side * side]
        pixels = x.reshape(B, C, T // tubelet, tubelet, H // side, side, W // side, side).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return F.linear(pixels.reshape(B, T // tubelet, g, weight.shape[1]), weight, self.proj.bias)


class VideoMamba(nn.Module):
    """The classifier of Table 1, for images (``spec.num_frames`` is None) or videos; a student when ``spec.distill_dim`` is set.

    Parameter names, shapes and order are those of the released checkpoints. ``backend`` chooses the operators'
    implementation (``vmrepro.ops``) and never changes the function. Raises ValueError for an unknown backend.
    """

    def __init__(self, spec: ModelSpec, *, backend: str = "auto") -> None:
        super().__init__()
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"unknown backend {backend!r}: the known ones are auto, {', '.join(BACKENDS)}")
        self.spec = spec
        d = spec.embed_dim
        height, width = spec.grid_hw
        self.num_features = self.head_hidden_size = d  # timm's names
        self.cls_token = nn.Parameter(torch.empty(1, 1, d))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + height * width, d))
        if spec.num_frames is not None:
            self.temporal_pos_embedding = nn.Parameter(torch.empty(1, spec.time_steps, d))
        self.patch_embed = PatchEmbed(spec)
        self.pos_drop = nn.Dropout(spec.drop_rate)
        self.head_drop = nn.Dropout(spec.fc_drop_rate)
        self.head = nn.Linear(d, spec.num_classes) if spec.num_classes else nn.Identity()
        *rates, last_rate = drop_path_rates(spec.drop_path_rate, spec.depth)
        mixer = {"d_state": spec.d_state, "d_conv": spec.d_conv, "expand": spec.expand, "dt_rank": spec.step_rank}
        mixer |= {"bidirectional": spec.bidirectional, "backend": backend}
        self.layers = nn.ModuleList(Block(d, norm=spec.norm, drop_path=rate, **mixer) for rate in rates)
        self.scan_order = ScanOrder(spec)
        self.drop_path = DropPath(last_rate)
        self.norm_f = make_norm(spec.norm, d, backend=backend)
        if spec.distill_dim is not None:
            self.distill_head = nn.ModuleList([make_norm(spec.norm, d, backend=backend), nn.Linear(d, spec.distill_dim)])
        initialise(self, depth=spec.depth, rule=spec.initialisation)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens with positions (B, L, d) that enter block 0, from images (B, C, H, W) or videos (B, C, T, H, W).

        The class token takes entry 0 of the spatial table and nothing temporal (released ``forward_features``). Raises
        ValueError for an input of another shape than the model was built for.
        """
        self._check_input(x)
        patches = self.patch_embed(x) + self.pos_embed[:, None, 1:]
        if self.spec.num_frames is not None:
            patches = patches + self.temporal_pos_embedding[:, :, None]
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return self.pos_drop(torch.cat([class_token, patches.flatten(1, 2)], dim=1))

    def forward_features(self, x: Tensor) -> Tensor:
        """Final-normed tokens (B, L, d), class token first, from floating-point images (B, C, H, W) or videos (B, C, T, H, W).

        They come in natural order, whatever order ``spec.scan`` gives them on the way; a block sees them in its own.
        """
        hidden, residual = self.embed(x), None
        # A hook may keep what it sees; else nobody needs a block's inputs but a backward pass.
        reuse = not (torch.is_grad_enabled() or hooked(self))
        in_mixer = (self.scan_order,) if self.scan_order.in_mixer else ()
        for layer, block in enumerate(self.layers):
            hidden, residual = self.scan_order.enter(layer, hidden, residual)
            hidden, residual = block(hidden, residual, *in_mixer, reuse=reuse)
        return self.scan_order.leave(self.norm_f(self.drop_path(hidden), residual)[0])

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes) from final-normed tokens (B, L, d); with ``pre_logits`` the class token (B, d) they come from."""
        features = self.head_drop(tokens[:, 0])
        return features if pre_logits else self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) from images (B, C, H, W) or videos (B, C, T, H, W)."""
        return self.forward_head(self.forward_features(x))

    def distill_features(self, tokens: Tensor) -> Tensor:
        """Unit vectors (B, L, width), in at least float32, of final-normed tokens (B, L, d), the class token included.

        A student maps them to its teacher's width first; a model without ``spec.distill_dim`` is a teacher and gives its own
        (paper section 3.3; released ``image_sm/models/videomamba_distill.py``).
        """
        if self.spec.distill_dim is not None:
            norm, project = self.distill_head
            tokens = project(norm(tokens)[0])
        return F.normalize(widen(tokens), dim=-1)

    def no_weight_decay(self) -> set[str]:
        """Names of the tables that are not decayed, as released; A_log and A_b_log, being two-dimensional, are."""
        return {"cls_token", "pos_embed"} | ({"temporal_pos_embedding"} if self.spec.num_frames is not None else set())

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes

    def get_classifier(self) -> nn.Module:
        """The classifier: a linear layer, or the identity of a model without classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a freshly initialised one; 0 classes leave the class token. Features stay as they are."""
        if global_pool not in (None, "token"):
            raise ValueError(f"VideoMamba classifies the class token; global_pool must be None or 'token', got {global_pool!r}")
        self.spec = replace(self.spec, num_classes=num_classes)
        like = self.pos_embed
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            initialise_linear(self.head)

    def _check_input(self, x: Tensor) -> None:
        spec = self.spec
        frames = () if spec.num_frames is None else (spec.num_frames,)
        expected, got = (spec.in_chans, *frames, *spec.image_hw), tuple(x.shape[1:])
        if not x.is_floating_point():
            raise ValueError(f"expected a floating-point input, got {x.dtype}: scale pixels to [0, 1] and normalise them first")
        if got == expected:
            return
        if len(got) != len(expected) or got[0] != expected[0]:
            axes = "(batch, channels, height, width)" if not frames else "(batch, channels, frames, height, width)"
            advice = f"axes are {axes}"
        else:
            tables = ["resize_spatial"] if got[-2:] != expected[-2:] else []
            tables += ["resize_temporal"] if got[1:-2] != frames else []
            sizes = f"img_size={got[-2:]}" + (f", num_frames={got[1]}" if frames else "")
            advice = (
                f"its position tables have one size. Build a model with {sizes} and load the weights with "
                f"load_checkpoint(model, state, resize=True), which calls {' and '.join(tables)} (vmrepro.models.checkpoints)"
            )
        shape = f"(batch, {', '.join(map(str, expected))})"
        raise ValueError(f"this model takes inputs of shape {shape}, got {tuple(x.shape)}: {advice}")
