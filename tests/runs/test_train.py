import math

import pytest
import torch
from torch import nn

from tests.golden.golden_formula import golden_input
from tests.runs.conftest import tiny
from vmrepro import data
from vmrepro.models import VideoMamba
from vmrepro.runs import train as training
from vmrepro.runs.distributed import World
from vmrepro.runs.train import FAILED_BATCH, WEIGHTS, Objective, TrainingDivergedError, feature_loss, train

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


def unit_vectors(tag: str) -> torch.Tensor:
    return nn.functional.normalize(torch.from_numpy(golden_input(tag, (2, 5, 7), 0)).double(), dim=-1)


def test_feature_losses_follow_from_the_angle():
    student, teacher = unit_vectors("student"), unit_vectors("teacher")
    angle = torch.acos((student * teacher).sum(-1))
    assert feature_loss(student, teacher, "cosine").item() == pytest.approx((2 - 2 * torch.cos(angle)).mean().item())
    # The distance between unit vectors is a chord of that angle.
    assert feature_loss(student, teacher, "l2").item() == pytest.approx((2 * torch.sin(angle / 2)).mean().item())
    assert feature_loss(teacher, teacher, "l2").item() == pytest.approx(0, abs=1e-7)


def test_objective_adds_the_weighted_feature_loss_and_leaves_the_teacher_alone():
    experiment = tiny("fig6_m_distill")
    teacher = VideoMamba(experiment.distill.teacher.model).double().eval().requires_grad_(False)
    student = VideoMamba(experiment.model).double()
    images = torch.from_numpy(golden_input("images", (4, 1, 8, 8), 0)).double()
    targets = nn.functional.one_hot(torch.arange(4), 10).double()
    objective = Objective(student, experiment.distill, teacher).train()
    loss, features = objective(images, targets)
    plain, nothing = Objective(student)(images, targets)
    assert features.item() > 0
    assert nothing.item() == 0
    assert loss.item() == pytest.approx(plain.item() + experiment.distill.weight * features.item())
    assert not teacher.training
    loss.backward()
    assert student.distill_head[1].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_training_learns_and_leaves_weights(tmp_path):
    experiment = tiny(epochs=8, batch_size=64)
    progress = train(experiment, 0, data.build(experiment.data, 0, CPU), ALONE, tmp_path)
    first, last = progress.history[0], progress.history[-1]
    assert last["train_loss"] < first["train_loss"] - 0.1
    weights = torch.load(tmp_path / WEIGHTS, weights_only=True)
    assert set(weights) == set(VideoMamba(experiment.model).state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", WEIGHTS]


def test_early_stopping_silences_the_teacher_from_its_epoch_on(tmp_path):
    stopped = tiny("fig6_m_distill_stopped")
    teacher = VideoMamba(stopped.distill.teacher.model).double().eval().requires_grad_(False)
    progress = train(stopped, 0, data.build(stopped.data, 0, CPU), ALONE, tmp_path, teacher=teacher)
    assert ["feature_loss" in row for row in progress.history] == [True, False, False]


@pytest.mark.parametrize("schedule", ["step", "epoch_lagged"])
def test_the_rate_in_the_optimiser_is_the_scheduled_one(tmp_path, schedule):
    experiment = tiny(schedule=schedule)
    progress = train(experiment, 0, data.build(experiment.data, 0, CPU), ALONE, tmp_path)
    expected = [training.learning_rate(experiment.train, 2 * epoch + 1, 2) for epoch in range(3)]
    assert [row["lr"] for row in progress.history] == expected


class StoppedError(Exception):
    pass


def test_a_training_that_goes_on_leaves_the_start_weights_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    experiment = tiny()
    dataset = data.build(experiment.data, 0, CPU)
    torch.manual_seed(7)
    torch.save(VideoMamba(experiment.model).state_dict(), tmp_path / "start.pth")

    def stop(row):
        if row["epoch"] == 1:
            raise StoppedError

    results = {}
    for name in ("calm", "stopped", "fresh"):
        folder = tmp_path / name
        folder.mkdir()
        options = {} if name == "fresh" else {"start": tmp_path / "start.pth"}
        if name == "stopped":
            with pytest.raises(StoppedError):
                train(experiment, 0, dataset, ALONE, folder, **options, report=stop)
        results[name] = [row["test_loss"] for row in train(experiment, 0, dataset, ALONE, folder, **options).history]
    assert results["calm"] == results["stopped"] != results["fresh"]


def test_the_rate_of_the_input_is_scaled_in_training(tmp_path):
    """At a scale of zero the input stays as it was made; everything else learns."""
    experiment = tiny(input_lr_scale=0.0, weight_decay=0.3)
    train(experiment, 0, data.build(experiment.data, 0, CPU), ALONE, tmp_path)
    torch.manual_seed(0)
    with training._made_in(torch.float64):
        before = VideoMamba(experiment.model).state_dict()
    after = torch.load(tmp_path / WEIGHTS, weights_only=True)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token"}


def test_the_wait_for_data_is_a_mean_over_time():
    rows = [{"data_wait": 0.5, "seconds": 3.0}, {"data_wait": 0.1, "seconds": 1.0}]
    assert training.Progress(epoch=2, history=rows).data_wait == pytest.approx((1.5 + 0.1) / 4)
    assert training.Progress().data_wait == 0.0


class Poisoned:
    """The digits, with one image that is no number in the second step."""

    def __init__(self, inner):
        self._inner, self.train_size = inner, inner.train_size
        self.test_batches = inner.test_batches

    def train_batches(self, epoch, batch_size, rank=0, world=1):
        for index, (images, labels) in enumerate(self._inner.train_batches(epoch, batch_size, rank, world)):
            if index == 1:
                images[0] = math.nan
            yield images, labels


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_batch(tmp_path):
    experiment = tiny()
    dataset = Poisoned(data.build(experiment.data, 0, CPU))
    with pytest.raises(TrainingDivergedError, match=r"epoch 0, step 1; the batch is kept in") as caught:
        train(experiment, 0, dataset, ALONE, tmp_path)
    kept = torch.load(tmp_path / FAILED_BATCH, weights_only=True)
    assert kept["step"] == caught.value.details["step"] == 1
    assert torch.isnan(kept["images"]).any()
    assert not (tmp_path / WEIGHTS).exists()


def test_a_batch_that_does_not_divide_into_pairs_is_refused(tmp_path):
    experiment = tiny(batch_size=30)
    with pytest.raises(ValueError, match="batch_size 30 is not a multiple of 4"):
        train(experiment, 0, data.build(experiment.data, 0, CPU), World(0, 2, CPU), tmp_path)


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    experiment = tiny(batch_size=1024)
    with pytest.raises(ValueError, match="batch_size 1024 exceeds the 898 training samples"):
        train(experiment, 0, data.build(experiment.data, 0, CPU), ALONE, tmp_path)
