"""Views are averaged as probabilities; every video counts once, however processes and batches cut the list."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.runs.conftest import CLASSES, Clips
from vmrepro import paths
from vmrepro.runs import views
from vmrepro.runs.distributed import World

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


class FirstPixels(nn.Module):
    """Takes the first pixels of a clip for logits; notes how many clips it got at once."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)
        self.passes = []

    def forward(self, clips):
        self.passes.append(len(clips))
        return self.dropout(self.scale * clips[:, 0, 0, 0, :CLASSES])


def by_hand(data: Clips) -> torch.Tensor:
    """(videos, classes): softmax of each view, then the mean."""
    rows = []
    for video in data.test_views:
        shares = [torch.softmax(view[0, 0, 0, :CLASSES].double(), 0) for view in video]
        rows.append(sum(shares) / len(shares))
    return torch.stack(rows)


@pytest.mark.parametrize("at_once", [1, 2, 4, 7, 100])
def test_scores_by_hand(at_once):
    data, model = Clips(videos=7, views=4), FirstPixels().train()
    tested = views.score_views(model, data, 4, at_once, ALONE, "fp32")
    want = by_hand(data)
    torch.testing.assert_close(tested.probabilities, want, atol=1e-7, rtol=0)
    assert max(model.passes) <= at_once
    assert sum(model.passes) == 28
    summary = tested.summary()
    correct = sum(int(row.argmax()) == label for row, label in zip(want, data.test_labels.tolist(), strict=True))
    top5 = sum(label in row.topk(5).indices for row, label in zip(want, data.test_labels.tolist(), strict=True))
    assert 0 < correct < top5 < 7
    assert summary == {
        "top1": 100 * correct / 7,
        "top5": 100 * top5 / 7,
        "seen": 7,
        "correct": correct,
        "correct_top5": top5,
        "views": 4,
    }
    assert not model.training


def test_probabilities_are_averaged_and_not_logits():
    # One view is certain of class 0, three lean towards class 1: the mean of logits says 0, the mean of probabilities 1.
    inputs = torch.zeros(1, 4, 1, 1, 1, CLASSES)
    inputs[0, 0, ..., 0] = 50.0
    inputs[0, 1:, ..., 1] = 5.0
    shares = views.mean_of_views(FirstPixels().eval(), inputs, 2, "fp32")
    assert inputs.mean(1).flatten().argmax() == 0
    assert shares.argmax() == 1
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_classes_are_counted_apart():
    data = Clips(videos=7, views=2)
    tested = views.score_views(FirstPixels(), data, 2, 8, ALONE, "fp32")
    rows = tested.per_class()
    assert [row["class"] for row in rows] == list(range(CLASSES))
    assert sum(row["seen"] for row in rows) == 7
    assert sum(row["correct"] for row in rows) == tested.summary()["correct"]
    for row in rows:
        assert row["seen"] == (data.test_labels == row["class"]).sum()


def test_files_hold_what_was_found(tmp_path):
    data = Clips(videos=3, views=2)
    data.test_names = ["a/clip,1.mp4", 'b/"clip" 1.mp4', "c/clip.1.mp4"]
    tested = views.score_views(FirstPixels(), data, 2, 8, ALONE, "fp32")
    tested.write(tmp_path)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == data.test_names
    assert [int(row["label"]) for row in rows] == data.test_labels.tolist()
    for row, shares in zip(rows, tested.probabilities, strict=True):
        best = shares.argsort(descending=True)[:5].tolist()
        assert [int(row[f"class_{place}"]) for place in range(1, 6)] == best
        assert float(row["probability_1"]) == pytest.approx(shares[best[0]].item(), rel=1e-5)
    kept = json.loads((tmp_path / "test.json").read_text())
    assert kept == {**tested.summary(), "per_class": tested.per_class()}


def test_fewer_classes_than_five():
    tested = views.ViewTest(("a", "b"), torch.tensor([0, 1]), torch.tensor([[0.6, 0.4], [0.7, 0.3]]), 1)
    assert tested.predicted.shape == (2, 2)
    assert (tested.summary()["top1"], tested.summary()["top5"]) == (50.0, 100.0)


class Twice(Clips):
    """A data set that gives its last video again to fill the batch, as samplers do that pad."""

    def view_batches(self, batch_size, rank=0, world=1):
        *others, (index, inputs, labels) = super().view_batches(batch_size, rank, world)
        yield from others
        yield index.repeat(2), inputs.repeat(2, 1, 1, 1, 1, 1), labels.repeat(2)


class Short(Clips):
    """A data set that keeps its last video to itself."""

    def view_batches(self, batch_size, rank=0, world=1):
        yield from list(super().view_batches(batch_size, rank, world))[:-1]


@pytest.mark.parametrize(("kind", "times"), [(Twice, 2), (Short, 0)])
def test_a_video_that_is_not_tested_once_is_an_error(kind, times):
    data = kind(videos=3, views=2)
    with pytest.raises(RuntimeError, match=f"video_2.mp4 {times} times"):
        views.score_views(FirstPixels(), data, 2, 2, ALONE, "fp32")


# Each of two processes tests its share and says what it was given and what came out.
SHARED = """
import json, sys
from tests.runs.conftest import Clips
from tests.runs.test_views import FirstPixels
from vmrepro.runs import distributed, views
world = distributed.join("cpu")
model = FirstPixels()
tested = views.score_views(model, Clips(videos=7, views=2), 2, 2, world, "fp32")
lost = world.gather([f"lost by {world.rank}"])
result = {"summary": tested.summary(), "table": tested.probabilities.tolist(), "clips": sum(model.passes), "lost": lost}
open(f"{sys.argv[1]}/{world.rank}.json", "w").write(json.dumps(result))
"""


def test_two_processes_count_every_video_once(tmp_path):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(paths.root()), "OMP_NUM_THREADS": "1"}
    subprocess.run(launch, env=environment, check=True, capture_output=True, timeout=120)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = views.score_views(FirstPixels(), Clips(videos=7, views=2), 2, 2, ALONE, "fp32")
    assert (first["clips"], second["clips"]) == (8, 6)  # 7 videos of 2 views, shared
    assert first["summary"] == second["summary"] == alone.summary()
    assert first["table"] == second["table"] == alone.probabilities.tolist()
    assert first["lost"] == second["lost"] == [["lost by 0"], ["lost by 1"]]
