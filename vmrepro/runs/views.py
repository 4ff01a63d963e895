"""The test of the video tables: several views of every video, one answer each (paper section 4.2)."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmrepro import store
from vmrepro.runs.distributed import World
from vmrepro.runs.evaluate import autocast

TOP = 5


@dataclass(frozen=True)
class ViewTest:
    """What a model said of every test video, by its place in the test list.

    names: (videos,). labels: (videos,), int64. probabilities: (videos, classes), float64, the mean over views. On the CPU.
    """

    names: tuple[str, ...]
    labels: Tensor
    probabilities: Tensor
    views: int

    @property
    def predicted(self) -> Tensor:
        """The five likeliest classes of each video, or all if there are fewer, first the likeliest: (videos, 5)."""
        return self.probabilities.topk(min(TOP, self.probabilities.shape[1])).indices

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return self.summary()["top1"]

    def summary(self) -> dict[str, Any]:
        """top1 and top5 in percent, the counts they come from, and the number of views."""
        hits = self.predicted == self.labels[:, None]
        seen, correct, correct_top5 = len(self.labels), int(hits[:, 0].sum()), int(hits.any(1).sum())
        counts = {"seen": seen, "correct": correct, "correct_top5": correct_top5, "views": self.views}
        return {"top1": 100.0 * correct / seen, "top5": 100.0 * correct_top5 / seen, **counts}

    def per_class(self) -> list[dict[str, int]]:
        """For each class: how many test videos are of it (seen), and how many of those are found (correct)."""
        classes = self.probabilities.shape[1]
        right = self.labels[self.predicted[:, 0] == self.labels]
        seen, correct = (torch.bincount(labels, minlength=classes).tolist() for labels in (self.labels, right))
        return [{"class": index, "seen": seen[index], "correct": correct[index]} for index in range(classes)]

    def write(self, folder: Path) -> None:
        """Leave test.json (the summary and the classes) and predictions.csv (the likeliest classes of each video)."""
        store.write_json(folder / "test.json", {**self.summary(), "per_class": self.per_class()})
        predicted = self.predicted
        shares = self.probabilities.gather(1, predicted).tolist()
        columns = [f"{kind}_{place}" for place in range(1, predicted.shape[1] + 1) for kind in ("class", "probability")]
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["video", "label", *columns])
        for name, label, classes, row in zip(self.names, self.labels.tolist(), predicted.tolist(), shares, strict=True):
            rows.writerow(
                [name, label, *(cell for pair in zip(classes, map("{:.6g}".format, row), strict=True) for cell in pair)]
            )
        store.write_atomically(folder / "predictions.csv", text.getvalue())


@torch.no_grad()
def mean_of_views(model: nn.Module, inputs: Tensor, at_once: int, precision: str) -> Tensor:
    """The mean over views of each view's softmax, (videos, classes) in float64, of inputs (videos, views, C, T, H, W).

    The model gets at most ``at_once`` views in one pass. Source: the released ``merge``.
    """
    videos, views = inputs.shape[:2]
    dtype = next(model.parameters()).dtype
    with autocast(inputs.device, precision):
        logits = torch.cat([model(part.to(dtype)) for part in inputs.flatten(0, 1).split(at_once)])
    return logits.double().softmax(-1).view(videos, views, -1).mean(1)


def score_views(model: nn.Module, data, views: int, at_once: int, world: World, precision: str) -> ViewTest:
    """What ``model`` says of the test videos of ``data``; the same on every process. Leaves the model in eval mode.

    views: clips times crops that the spec of ``data`` asks for. at_once: views in one pass of the model. Raises RuntimeError
    unless the processes together have seen every video of the list exactly once.
    """
    model.eval()
    names = tuple(data.test_names)
    table = torch.zeros(len(names), data.num_classes, dtype=torch.float64, device=world.device)
    labels, times = (torch.zeros(len(names), dtype=torch.int64, device=world.device) for _ in range(2))
    for index, inputs, truth in data.view_batches(max(1, at_once // views), world.rank, world.size):
        index = index.to(world.device)
        table[index] = mean_of_views(model, inputs, at_once, precision)
        labels[index] = truth
        times.index_add_(0, index, torch.ones_like(index))
    times = world.sum(times)
    if (times != 1).any():
        wrong = ", ".join(f"{names[i]} {int(times[i])} times" for i in (times != 1).nonzero().flatten()[:5].tolist())
        raise RuntimeError(f"every test video is tested once, but these were not: {wrong}")
    return ViewTest(names, world.sum(labels).cpu(), world.sum(table).cpu(), views)
