"""How many of the test images a model gets right."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from vmrepro.runs.distributed import World


class Score(NamedTuple):
    """Counts over the whole test set; divided once, at the end."""

    correct: int
    seen: int
    loss_sum: float

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return 100.0 * self.correct / self.seen

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.loss_sum / self.seen


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bf16 autocast for precision "bf16", nothing otherwise."""
    # Without the cache of cast weights, because a CUDA graph would keep casts of weights that have changed since.
    options = {"dtype": torch.bfloat16, "cache_enabled": False}
    return torch.autocast(device.type, **options) if precision == "bf16" else contextlib.nullcontext()


@torch.no_grad()
def evaluate(model: nn.Module, data, batch_size: int, world: World, precision: str) -> Score:
    """The score of ``model`` on the test set of ``data``; each image is seen by one process. Leaves the model in eval mode."""
    model.eval()
    dtype = next(model.parameters()).dtype
    counts = torch.zeros(3, dtype=torch.float64, device=world.device)
    for images, labels in data.test_batches(batch_size, world.rank, world.size):
        with autocast(world.device, precision):
            logits = model(images.to(dtype))
        losses = functional.cross_entropy(logits.double(), labels, reduction="sum")
        counts += torch.stack([(logits.argmax(-1) == labels).sum().double(), counts.new_tensor(len(labels)), losses])
    correct, seen, loss = world.sum(counts).tolist()
    return Score(int(correct), int(seen), loss)
