"""A training small enough to run whole in a test."""

from dataclasses import replace

import pytest

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
