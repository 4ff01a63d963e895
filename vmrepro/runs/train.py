"""A spec, a seed and data in; a trained model and its curve out. Restarted after any death, it ends with the same numbers."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
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
from vmrepro.runs.distributed import World
from vmrepro.runs.evaluate import autocast, evaluate
from vmrepro.runs.optimise import learning_rate, make_optimiser
from vmrepro.runs.provenance import peak_memory_bytes
from vmrepro.specs.schema import DistillSpec, Experiment

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

    def __init__(self, model: VideoMamba, distill: DistillSpec | None) -> None:
        super().__init__()
        self.model, self.distill = model, distill

    def forward(self, images: Tensor, targets: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor]:
        """(whole loss, its feature part) as scalars; ``teacher``: unit vectors (batch, tokens, width), or None when silent."""
        tokens = self.model.forward_features(images)
        logits = self.model.forward_head(tokens)
        loss = functional.cross_entropy(logits.to(targets.dtype), targets)
        if teacher is None:
            return loss, torch.zeros_like(loss)
        features = feature_loss(self.model.distill_features(tokens), teacher, self.distill.loss)
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
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> Progress:
    """Train ``experiment`` to its end, from the checkpoint in ``folder`` if there is one.

    Leaves metrics.jsonl and weights.pt in ``folder``. ``teacher``: the frozen model of ``experiment.distill``.
    ``report`` is called with each epoch's row. Raises TrainingDivergedError on a loss or gradient that is no number.
    """
    spec = experiment.train
    torch.manual_seed(seed)
    model = VideoMamba(experiment.model, backend=backend).to(world.device, _dtype(spec.precision))
    optimiser = make_optimiser(model, spec)
    progress = _load(folder / CHECKPOINT, model, optimiser, world.device)
    objective: nn.Module = Objective(model, experiment.distill)
    if world.size > 1:
        # After early stopping the student's extra head gets no gradient, which plain DDP takes for an error.
        objective = DistributedDataParallel(objective, find_unused_parameters=experiment.distill is not None)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    for epoch in range(progress.epoch, spec.epochs):
        started = time.perf_counter()
        # Every epoch starts from its own seed, so one that is repeated after a death repeats exactly.
        torch.manual_seed((seed * 1_000_003 + epoch) * world.size + world.rank)
        guide = teacher if experiment.distill and _teaches(experiment.distill, epoch) else None
        row = _train_epoch(experiment, seed, epoch, data, world, objective, optimiser, guide, folder)
        score = evaluate(model, data, max(spec.batch_size // world.size, 1), world, spec.precision)
        row |= {"test_loss": score.loss, "top1": score.top1}
        if not math.isfinite(score.loss):
            raise TrainingDivergedError(f"the test loss is {score.loss} after epoch {epoch}", {"epoch": epoch})
        seconds = time.perf_counter() - started
        progress.history.append({**row, "seconds": round(seconds, 3)})
        progress.epoch, progress.seconds = epoch + 1, progress.seconds + seconds
        progress.peak_bytes = max(progress.peak_bytes, peak_memory_bytes(world.device))
        if world.leads:
            _save(folder / CHECKPOINT, model, optimiser, progress)
            store.write_metrics(folder, progress.history)
            report(progress.history[-1])
    if world.leads:
        store.write_metrics(folder, progress.history)  # again: a death may have come between the two writes above
        store.write_atomically(folder / WEIGHTS, _bytes(model.state_dict()))
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return progress


def _teaches(distill: DistillSpec, epoch: int) -> bool:
    return distill.stop_epoch is None or epoch < distill.stop_epoch


def _train_epoch(experiment, seed, epoch, data, world, objective, optimiser, teacher, folder) -> dict[str, float]:
    """One pass over the training set; the row of the epoch, averaged over steps and processes."""
    spec, dtype = experiment.train, _dtype(experiment.train.precision)
    steps = data.train_size // spec.batch_size
    mixing = Mixing(experiment.data.augment, experiment.data.num_classes)
    objective.train()
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    started, waited, asked = time.perf_counter(), 0.0, time.perf_counter()
    for index, (images, labels) in enumerate(data.train_batches(epoch, spec.batch_size, world.rank, world.size)):
        waited += time.perf_counter() - asked
        step = epoch * steps + index
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(spec, step, steps)
        images, targets = mixing(images.to(dtype), labels, seed * 1_000_003 + step)
        with autocast(world.device, spec.precision):
            lesson = _lesson(teacher, images) if teacher is not None else None
            loss, features = objective(images, targets, lesson)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(objective.parameters(), spec.clip_grad or math.inf)
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
        raise ValueError(f"{experiment.id}: batch_size {spec.batch_size} exceeds the {data.train_size} training images")
    total, feature = (world.sum(sums) / (steps * world.size)).tolist()
    row = {"epoch": epoch, "lr": optimiser.param_groups[0]["lr"], "train_loss": total}
    row |= {"feature_loss": feature} if teacher is not None else {}
    return row | {"data_wait": round(waited / (time.perf_counter() - started), 3)}


@torch.no_grad()
def _lesson(teacher: VideoMamba, images: Tensor) -> Tensor:
    return teacher.distill_features(teacher.forward_features(images))


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
