"""Parameters and multiply-adds of the attention models that the paper compares with, in closed form.

    d    width of a token
    P    patch tokens of one view; T frames (or tubelets) of S patches each, P = T·S
    n    blocks

A block is that of ViT (Dosovitskiy et al. 2020): four d×d products for attention and eight for an MLP four times as wide, both
with bias, and two LayerNorms. Divided attention (TimeSformer, Bertasius et al. 2021) puts an attention along time before the one
in space, with its own norm and one more d×d product. Only products are counted, as in the paper's FLOPs columns.
"""

from __future__ import annotations

from dataclasses import dataclass

PATCH_VALUES = 3 * 16 * 16  # numbers in one patch of 16 pixels


@dataclass(frozen=True)
class Transformer:
    """A plain vision transformer with 16-pixel patches."""

    depth: int
    width: int
    heads: int

    def parameters(self, patches: int, classes: int) -> int:
        """Trained numbers with a position table of ``patches`` entries, a class token and a linear head."""
        n, d = self.depth, self.width
        return n * (12 * d * d + 13 * d) + PATCH_VALUES * d + d + (patches + 1) * d + d + 2 * d + d * classes + classes

    def divided_parameters(self) -> int:
        """Trained numbers that divided attention adds, less the table of frames."""
        return self.depth * (5 * self.width**2 + 7 * self.width)

    def macs(self, patches: int, patch_values: int = PATCH_VALUES) -> int:
        """Multiply-adds of one view with joint attention over all patches and the class token."""
        n, d, L = self.depth, self.width, patches + 1
        return n * (12 * d * d * L + 2 * d * L * L) + patches * patch_values * d

    def divided_macs(self, frames: int, patches_per_frame: int) -> int:
        """Multiply-adds of one view with divided attention; a patch meets the frames at its place, then its own frame."""
        n, d, P = self.depth, self.width, frames * patches_per_frame
        return n * P * (17 * d * d + 2 * d * (frames + patches_per_frame + 1)) + P * PATCH_VALUES * d

    def attention_map_bytes(self, patches: int, batch: int, element_bytes: int) -> int:
        """Memory of the attention weights of one block, all heads, when they are written out."""
        return self.heads * (patches + 1) ** 2 * batch * element_bytes


# Touvron et al. 2021 and Dosovitskiy et al. 2020.
DEIT_TI = Transformer(12, 192, 3)
DEIT_S = Transformer(12, 384, 6)
VIT_B = Transformer(12, 768, 12)  # DeiT-B, and the backbone of TimeSformer
VIT_L = Transformer(24, 1024, 16)  # the backbone of ViViT-L
