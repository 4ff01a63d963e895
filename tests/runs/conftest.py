"""A training small enough to run whole in a test."""

from dataclasses import replace

import pytest
import torch

from vmrepro.specs import catalog
from vmrepro.specs.schema import Experiment


def tiny(name: str = "fig6_s", **train) -> Experiment:
    """A smoke experiment cut to three short epochs; a teacher is cut the same way."""
    (experiment,) = catalog.find(name, "smoke")
    return _cut(experiment, train)


def _cut(experiment: Experiment, train: dict) -> Experiment:
    distill = experiment.distill
    if distill is not None:
        stop = None if distill.stop_epoch is None else 1
        distill = replace(distill, teacher=_cut(distill.teacher, train), stop_epoch=stop)
    return replace(
        experiment,
        distill=distill,
        train=replace(experiment.train, **{"epochs": 3, "warmup_epochs": 1, "batch_size": 448, **train}),
    )


@pytest.fixture
def store_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def numbers(record) -> list[dict]:
    """The metrics of a record without what the clock decides."""
    return [{name: value for name, value in row.items() if name not in ("seconds", "data_wait")} for row in record.metrics]


CLASSES = 7


class Clips:
    """Random clips in place of a data set of videos, with the methods of one."""

    num_classes = CLASSES

    def __init__(self, videos: int, views: int, frames: int = 2, side: int = 8) -> None:
        chance = torch.Generator().manual_seed(videos)
        self.train_size = videos
        shape = (videos, views, 3, frames, side, side)
        self.test_views = 2 * torch.randn(shape, generator=chance)
        self.test_labels = torch.randint(CLASSES, (videos,), generator=chance)
        self.test_views[torch.arange(videos), :, 0, 0, 0, self.test_labels] += 1.0  # so that some can be found
        self.test_names = [f"video_{index}.mp4" for index in range(videos)]
        self.lost = {}

    def train_batches(self, epoch, batch_size, rank=0, world=1):
        order = torch.randperm(self.train_size, generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(batch_size)[: self.train_size // batch_size]:
            mine = batch[rank::world]
            yield self.test_views[mine, 0], self.test_labels[mine]

    def test_batches(self, batch_size, rank=0, world=1):
        for mine in torch.arange(rank, self.train_size, world).split(batch_size):
            yield self.test_views[mine, 0], self.test_labels[mine]

    def view_batches(self, batch_size, rank=0, world=1):
        for mine in torch.arange(rank, self.train_size, world).split(batch_size):
            yield mine, self.test_views[mine], self.test_labels[mine]
