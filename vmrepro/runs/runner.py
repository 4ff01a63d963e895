"""Runs an experiment once and keeps its record: reuse what exists, train the teacher first, claim, train, sign."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from vmrepro import data, store
from vmrepro.models import VideoMamba, load_checkpoint
from vmrepro.runs import distributed, provenance
from vmrepro.runs.train import FAILED_BATCH, WEIGHTS, TrainingDivergedError, train
from vmrepro.specs.schema import Experiment, to_dict

Log = Callable[[str], None]


class RunFailedError(RuntimeError):
    """This run diverged before and would do so again."""


def resolve(experiment: Experiment, device: torch.device) -> Experiment:
    """The experiment with nothing left to the machine: precision "auto" becomes bf16 on a GPU and fp32 on a CPU."""
    if experiment.distill is not None:
        teacher = resolve(experiment.distill.teacher, device)
        experiment = replace(experiment, distill=replace(experiment.distill, teacher=teacher))
    if experiment.train.precision != "auto":
        return experiment
    precision = "bf16" if device.type == "cuda" else "fp32"
    return replace(experiment, train=replace(experiment.train, precision=precision))


def identify(experiment: Experiment, seed: int) -> str:
    """The run id of a resolved experiment and a seed under the code at hand."""
    return store.run_id(f"{experiment.id}-{experiment.tier}", to_dict(experiment), seed)


def run(experiment: Experiment, seed: int, *, device: str = "auto", backend: str = "auto", log: Log = print) -> store.Record:
    """The record of ``experiment`` under ``seed``: the one in the store if there is one, otherwise made now.

    A teacher is run first. Under torchrun every process calls this and all return the same record. Raises
    FileNotFoundError for missing data, RuntimeError for an absent device or backend, TrainingDivergedError when this
    run diverges and RunFailedError when it did so before.
    """
    world = distributed.join(device)
    say = log if world.leads else (lambda line: None)
    experiment = resolve(experiment, world.device)
    identifier = identify(experiment, seed)
    if (record := store.read(identifier)) is not None:
        say(f"{identifier}: reused, {record.metrics[-1]['top1']:.2f}% top-1 after {len(record.metrics)} epochs")
        return record
    teacher = None
    if experiment.distill is not None:
        taught = run(experiment.distill.teacher, seed, device=device, backend=backend, log=log)
        teacher = _load_teacher(experiment.distill.teacher, taught.folder, world.device, backend)
    dataset = data.build(experiment.data, seed, world.device)
    with store.claim(identifier) if world.leads else contextlib.nullcontext(store.folder(identifier)) as folder:
        world.barrier()
        # Another process may have finished it while this one waited for the folder.
        if (record := store.read(identifier)) is None:
            _refuse_failed(folder)
            _make(experiment, seed, dataset, world, folder, backend, teacher, say)
        world.barrier()
    return store.read(identifier)


def _make(experiment, seed, dataset, world, folder: Path, backend: str, teacher, say: Log) -> None:
    if world.leads:
        store.write_json(folder / "spec.json", {"experiment": to_dict(experiment), "seed": seed})
    show = _progress(folder.name, experiment.train.epochs, say)
    try:
        progress = train(experiment, seed, dataset, world, folder, backend=backend, teacher=teacher, report=show)
    except TrainingDivergedError as error:
        if world.leads:
            store.write_json(folder / "failure.json", {"message": str(error), **error.details})
        raise
    if world.leads:
        signed = provenance.collect(world.device, backend, world.size)
        signed |= {"seed": seed, "wall_seconds": round(progress.seconds, 2), "peak_memory_bytes": progress.peak_bytes}
        store.write_json(folder / "provenance.json", signed)
        score = progress.history[-1]["top1"]
        say(f"{folder.name}: trained {progress.epoch} epochs in {progress.seconds:.1f} s, {score:.2f}% top-1")


def _progress(name: str, epochs: int, say: Log) -> Callable[[dict[str, float]], None]:
    """One line an epoch; on a terminal the line is written over, so that only the last one stays."""
    in_place = say is print and sys.stdout.isatty()

    def show(row: dict[str, float]) -> None:
        line = f"{name}: epoch {row['epoch'] + 1}/{epochs} loss {row['train_loss']:.4f} top-1 {row['top1']:.2f}%"
        if in_place:
            print(f"\r{line}\033[K", end="\n" if row["epoch"] + 1 == epochs else "", flush=True)
        else:
            say(line)

    return show


def _load_teacher(experiment: Experiment, folder: Path, device: torch.device, backend: str) -> VideoMamba:
    dtype = torch.float64 if experiment.train.precision == "fp64" else torch.float32
    model = VideoMamba(experiment.model, backend=backend).to(device, dtype)
    load_checkpoint(model, folder / WEIGHTS)
    return model.eval().requires_grad_(False)


def _refuse_failed(folder: Path) -> None:
    failure = folder / "failure.json"
    if failure.is_file():
        message = json.loads(failure.read_text())["message"]
        raise RunFailedError(f"{folder.name} diverged before ({message}); look at {FAILED_BATCH}, or remove {folder} to try again")
