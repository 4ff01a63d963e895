"""A spec, a seed and data in; a trained model and its curve out. Restarted after any death, it ends with the same numbers."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from vmrepro import store
from vmrepro.data.mixing import Mixing
from vmrepro.models import VideoMamba
from vmrepro.models.checkpoints import start_from
from vmrepro.runs.distributed import World
from vmrepro.runs.evaluate import autocast, evaluate
from vmrepro.runs.optimise import learning_rate, make_optimiser, set_rate
from vmrepro.runs.provenance import peak_memory_bytes
from vmrepro.specs.schema import DistillSpec, Experiment

EVALUATION_FACTOR = 4  # test batches are this much larger; without gradients they fit
SECONDS_BETWEEN_CHECKPOINTS = 60.0  # a death loses at most this much work; more often, writing would cost more than training
CHECKPOINT = "checkpoint.pt"
WEIGHTS = "weights.pt"
FAILED_BATCH = "failed_batch.pt"


class TrainingDivergedError(RuntimeError):
    """The loss or a gradient stopped being a number. ``details`` says where; the batch is kept in the run's folder."""

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details


@dataclass
class Progress:
    """Where a training stands after a whole number of epochs."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def data_wait(self) -> float:
        """The share of the epochs' time that the training steps waited for data."""
        seconds = sum(row["seconds"] for row in self.history)
        return sum(row["data_wait"] * row["seconds"] for row in self.history) / seconds if seconds else 0.0


def feature_loss(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """How far the student's features are from the teacher's, both unit vectors (batch, tokens, width), as a scalar.

    "cosine": mean over tokens of 2 - 2 cos, the released loss. "l2": mean over tokens of the Euclidean distance, the
    wording of section 3.3; its square is the other one.
    """
    if kind == "cosine":
        return (2 - 2 * (student * teacher).sum(-1)).mean()
    return torch.linalg.vector_norm(student - teacher, dim=-1).mean()


class Objective(nn.Module):
    """The loss of a batch: cross-entropy against soft targets and, for a student, the distance to its teacher."""

    def __init__(self, model: VideoMamba, distill: DistillSpec | None = None, teacher: VideoMamba | None = None) -> None:
        super().__init__()
        self.model, self.distill = model, distill
        # In a list, so that it is no part of this module: it is neither trained nor put into training mode.
        self._teacher = [] if teacher is None else [teacher]

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(whole loss, its feature part) as scalars, from images and soft targets (batch, classes)."""
        tokens = self.model.forward_features(images)
        logits = self.model.forward_head(tokens)
        loss = functional.cross_entropy(logits.to(targets.dtype), targets)
        if not self._teacher:
            return loss, torch.zeros_like(loss)
        with torch.no_grad():
            lesson = self._teacher[0].distill_features(self._teacher[0].forward_features(images))
        features = feature_loss(self.model.distill_features(tokens), lesson, self.distill.loss)
        return loss + self.distill.weight * features, features


def train(
    experiment: Experiment,
    seed: int,
    data,
    world: World,
    folder: Path,
    *,
    backend: str = "auto",
    teacher: VideoMamba | None = None,
    start: Path | None = None,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> Progress:
    """Train ``experiment`` to its end, from the checkpoint in ``folder`` if there is one.

    Leaves metrics.jsonl and weights.pt in ``folder``, and the last checkpoint if there is one. ``teacher``: the frozen
    model of ``experiment.distill``. ``start``: the file of ``experiment.start``. ``report`` is called with each epoch's row.
    Raises TrainingDivergedError on a loss or gradient that is no number, and ValueError when the batch does not divide
    among the processes or exceeds the data, or the start weights do not fit.
    """
    spec = experiment.train
    if spec.batch_size % (2 * world.size):
        raise ValueError(
            f"{experiment.id}: batch_size {spec.batch_size} is not a multiple of {2 * world.size}: "
            f"each of {world.size} processes takes its share in pairs, which mixup mixes"
        )
    torch.manual_seed(seed)
    with _made_in(_dtype(spec.precision)):
        model = VideoMamba(experiment.model, backend=backend).to(world.device)
    if start is not None:
        start_from(model, start)
    optimiser = make_optimiser(model, spec)
    progress = _load(folder / CHECKPOINT, model, optimiser, world.device)
    objectives = _Objectives(experiment, model, teacher, world)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    saved = time.perf_counter()
    for epoch in range(progress.epoch, spec.epochs):
        started = time.perf_counter()
        # Every epoch starts from its own seed, so one that is repeated after a death repeats exactly.
        torch.manual_seed((seed * 1_000_003 + epoch) * world.size + world.rank)
        model.train()
        row = _train_epoch(experiment, seed, epoch, data, world, objectives, optimiser, folder)
        score = evaluate(model, data, EVALUATION_FACTOR * spec.batch_size // world.size, world, spec.precision)
        row |= {"test_loss": score.loss, "top1": score.top1}
        if not math.isfinite(score.loss):
            raise TrainingDivergedError(f"the test loss is {score.loss} after epoch {epoch}", {"epoch": epoch})
        seconds = time.perf_counter() - started
        progress.history.append({**row, "seconds": round(seconds, 3)})
        progress.epoch, progress.seconds = epoch + 1, progress.seconds + seconds
        progress.peak_bytes = max(progress.peak_bytes, peak_memory_bytes(world.device))
        if world.leads:
            if time.perf_counter() - saved >= SECONDS_BETWEEN_CHECKPOINTS:
                _save(folder / CHECKPOINT, model, optimiser, progress)
                store.write_metrics(folder, progress.history)
                saved = time.perf_counter()
            report(progress.history[-1])
    if world.leads:
        store.write_metrics(folder, progress.history)
        store.write_atomically(folder / WEIGHTS, _bytes(model.state_dict()))
    return progress


class _Objectives:
    """The objective of each epoch, wrapped for where it runs: DDP among several processes, CUDA graphs on a single GPU."""

    def __init__(self, experiment: Experiment, model: VideoMamba, teacher: VideoMamba | None, world: World) -> None:
        self._experiment, self._model, self._teacher, self._world = experiment, model, teacher, world
        self._guided: bool | None = None
        self._current: nn.Module | None = None

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return list(self._model.parameters())

    def at(self, epoch: int, images: Tensor, targets: Tensor) -> nn.Module:
        """The objective of ``epoch``; ``images`` and ``targets`` are like those it will be called with, the model is training."""
        distill = self._experiment.distill
        guided = distill is not None and (distill.stop_epoch is None or epoch < distill.stop_epoch)
        if guided != self._guided:
            self._guided = guided
            self._current = self._wrap(Objective(self._model, distill, self._teacher if guided else None), images, targets)
        return self._current

    def _wrap(self, objective: nn.Module, images: Tensor, targets: Tensor) -> nn.Module:
        # A student whose teacher has fallen silent has a head that gets no gradient.
        idle_head = self._experiment.distill is not None and not self._guided
        if self._world.size > 1:
            return DistributedDataParallel(objective, find_unused_parameters=idle_head)
        if self._world.device.type == "cuda":
            # Small models spend most of an eager step launching kernels; a graph launches them all at once.
            like = images.clone(), targets.clone()
            # The graph runs on a stream of its own, on purpose.
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
            return torch.cuda.make_graphed_callables(objective, like, allow_unused_input=idle_head)
        return objective


def _train_epoch(experiment, seed, epoch, data, world, objectives, optimiser, folder) -> dict[str, float]:
    """One pass over the training set; the row of the epoch, averaged over steps and processes."""
    spec, dtype = experiment.train, _dtype(experiment.train.precision)
    steps = data.train_size // spec.batch_size
    mixing = Mixing(experiment.data.augment, experiment.data.num_classes)
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    started, waited, asked = time.perf_counter(), 0.0, time.perf_counter()
    for index, (images, labels) in enumerate(data.train_batches(epoch, spec.batch_size, world.rank, world.size)):
        waited += time.perf_counter() - asked
        step = epoch * steps + index
        rate = learning_rate(spec, step, steps)
        set_rate(optimiser, rate)
        images, targets = mixing(images.to(dtype), labels, seed * 1_000_003 + step)
        with autocast(world.device, spec.precision):
            loss, features = objectives.at(epoch, images, targets)(images, targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(objectives.parameters(), spec.clip_grad or math.inf)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            kept = folder / f"rank{world.rank}_{FAILED_BATCH}" if world.size > 1 else folder / FAILED_BATCH
            store.write_atomically(kept, _bytes({"images": images, "targets": targets, "epoch": epoch, "step": step}))
            raise TrainingDivergedError(
                f"loss {loss.item()}, gradient norm {norm.item()} at epoch {epoch}, step {step}; the batch is kept in {kept}",
                {"epoch": epoch, "step": step, "loss": str(loss.item()), "gradient_norm": str(norm.item()), "batch": kept.name},
            )
        optimiser.step()
        sums += torch.stack([loss.detach(), features.detach()]).double()
        asked = time.perf_counter()
    if steps == 0:
        raise ValueError(f"{experiment.id}: batch_size {spec.batch_size} exceeds the {data.train_size} training samples")
    total, feature = (world.sum(sums) / (steps * world.size)).tolist()
    row = {"epoch": epoch, "lr": rate, "train_loss": total}
    row |= {"feature_loss": feature} if feature else {}
    return row | {"data_wait": round(waited / (time.perf_counter() - started), 3)}


@contextlib.contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """New parameters are drawn in ``dtype``: drawn in float32 and widened, their last bits would depend on the processor."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _dtype(precision: str) -> torch.dtype:
    return torch.float64 if precision == "fp64" else torch.float32


def _bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "progress": vars(progress)}
    store.write_atomically(path, _bytes(state))


def _load(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device) -> Progress:
    """Restore model and optimiser in place; the progress made so far, or none when there is no checkpoint."""
    if not path.is_file():
        return Progress()
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return Progress(**state["progress"])
