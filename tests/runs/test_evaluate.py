import math

import pytest
import torch
from torch import nn

from vmrepro.data.digits import Digits
from vmrepro.runs.distributed import World
from vmrepro.runs.evaluate import autocast, evaluate
from vmrepro.specs.schema import DataSpec

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)


class OneOfTwo(World):
    """A process of two, that does not ask the other: its own counts are its result."""

    def sum(self, values):
        return values


class Echo(nn.Module):
    """Takes its input for logits; notes what it was given."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def forward(self, images):
        self.seen.append((images.dtype, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return self.dropout(images * self.scale)


class Given:
    """Logits and labels in place of a test set."""

    def __init__(self, logits: list[list[float]], labels: list[int]) -> None:
        self.logits, self.labels = torch.tensor(logits), torch.tensor(labels)

    def test_batches(self, batch_size, rank, world):
        yield from zip(self.logits[rank::world].split(batch_size), self.labels[rank::world].split(batch_size), strict=True)


# Each image's loss is ln(1 + e^-2 + e^-1) where it is right, two more where it is wrong.
RIGHT = math.log(1 + math.exp(-2) + math.exp(-1))
DATA = Given([[2.0, 0.0, 1.0], [2.0, 0.0, 1.0], [1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], [0, 1, 1, 2, 0])


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_counts_by_hand(batch_size):
    score = evaluate(Echo(), DATA, batch_size, ALONE, "fp32")
    assert (score.correct, score.seen) == (3, 5)
    assert score.top1 == 60.0
    assert score.loss_sum == pytest.approx(5 * RIGHT + 2 * 2, rel=1e-6)
    assert score.loss == pytest.approx(RIGHT + 4 / 5, rel=1e-6)


def test_counts_of_two_processes_add_up():
    parts = [evaluate(Echo(), DATA, 2, OneOfTwo(rank, 2, CPU), "fp32") for rank in range(2)]
    whole = evaluate(Echo(), DATA, 2, ALONE, "fp32")
    assert [part.seen for part in parts] == [3, 2]
    assert sum(part.correct for part in parts) == whole.correct
    assert sum(part.loss_sum for part in parts) == pytest.approx(whole.loss_sum)


def test_counts_are_summed_over_the_world():
    class Doubling(World):
        def sum(self, values):
            assert values.dtype == torch.float64
            return values * 2

    score = evaluate(Echo(), DATA, 2, Doubling(0, 1, CPU), "fp32")
    assert (score.correct, score.seen) == (6, 10)


def test_a_score_is_taken_in_evaluation_mode_and_without_gradients():
    model = Echo().train()
    first, second = (evaluate(model, DATA, 2, ALONE, "fp32") for _ in range(2))
    assert first == second  # dropout is off
    assert not model.training
    assert {grad for _, _, grad in model.seen} == {False}


@pytest.mark.parametrize(
    ("precision", "dtype", "cast"),
    [("fp32", torch.float32, False), ("fp64", torch.float64, False), ("bf16", torch.float32, True)],
)
def test_images_come_in_the_type_of_the_weights(precision, dtype, cast):
    model = Echo(dtype)
    assert evaluate(model, DATA, 2, ALONE, precision).correct == 3
    assert set(model.seen) == {(dtype, cast, False)}


def test_bf16_computes_products_in_bf16():
    with autocast(CPU, "bf16"):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_every_test_image_of_a_real_set_is_seen():
    digits = Digits(DataSpec(name="digits", img_size=8, num_classes=10), 0, CPU)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    score = evaluate(model, digits, 100, ALONE, "fp32")
    images, labels = next(digits.test_batches(899))
    with torch.no_grad():
        assert score.correct == (model(images).argmax(1) == labels).sum()
        assert score.loss == pytest.approx(nn.functional.cross_entropy(model(images), labels).item(), rel=1e-5)
    assert score.seen == 899
