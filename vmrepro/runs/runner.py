"""Runs an experiment once and keeps its record: reuse what exists, train the teacher first, claim, train, sign."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from vmrepro import data, store
from vmrepro.models import VideoMamba, load_checkpoint
from vmrepro.runs import distributed, provenance
from vmrepro.runs.train import FAILED_BATCH, WEIGHTS, TrainingDivergedError, train
from vmrepro.specs.schema import Experiment, to_dict


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


def run(
    experiment: Experiment, seed: int, *, device: str = "auto", backend: str = "auto", every_epoch: bool = True
) -> store.Record:
    """The record of ``experiment`` under ``seed``: the one in the store if there is one, otherwise made now.

    A teacher is run first. Prints what it did, and how it goes while it trains if ``every_epoch``. Under torchrun every
    process calls this and all return the same record. Raises FileNotFoundError for missing data, RuntimeError for an
    absent device or backend, TrainingDivergedError when this run diverges and RunFailedError when it did so before.
    """
    # Smoke runs on the CPU unless told otherwise, so that its numbers are the same everywhere.
    world = distributed.join("cpu" if device == "auto" and experiment.tier == "smoke" else device)
    say = print if world.leads else (lambda line: None)
    experiment = resolve(experiment, world.device)
    if backend == "auto" and experiment.train.precision == "fp64":
        backend = "chunked"  # the GPU's kernels compute in float32
    identifier = identify(experiment, seed)
    if (record := store.read(identifier)) is not None:
        say(f"{identifier}: reused, {record.metrics[-1]['top1']:.2f}% top-1 after {len(record.metrics)} epochs")
        return record
    teacher = None
    if experiment.distill is not None:
        taught = run(experiment.distill.teacher, seed, device=device, backend=backend, every_epoch=every_epoch)
        teacher = _load_teacher(experiment.distill.teacher, taught.folder, world.device, backend)
    dataset = data.build(experiment.data, seed, world.device)
    with store.claim(identifier) if world.leads else contextlib.nullcontext(store.folder(identifier)) as folder:
        world.barrier()
        # Another process may have finished it while this one waited for the folder.
        if store.read(identifier) is None:
            _refuse_failed(folder)
            show = _progress(identifier, experiment.train.epochs) if every_epoch else (lambda row: None)
            _make(experiment, seed, dataset, world, folder, backend, teacher, show)
        world.barrier()
    return store.read(identifier)


def run_all(
    experiments: Sequence[Experiment],
    seeds: Sequence[int],
    *,
    device: str = "auto",
    backend: str = "auto",
    jobs: int | None = None,
    every_epoch: bool = True,
) -> list[store.Record]:
    """The records of every experiment under every seed, seed by seed, as ``run`` makes them.

    ``jobs`` processes share the seeds (by default one a core, at most one a seed, and one only under torchrun or for
    ImageNet, which fill a machine by themselves). Even on one GPU that pays: small models leave it waiting.
    """
    if jobs is None:
        alone = "WORLD_SIZE" in os.environ or any(experiment.data.name == "imagenet" for experiment in experiments)
        jobs = 1 if alone else min(len(seeds), os.cpu_count() or 1)
    if jobs == 1:
        return [record for seed in seeds for record in _run_seed(experiments, seed, device, backend, every_epoch)]
    # A forked process could not use a GPU that its parent has touched, nor torch's threads.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(_run_seed, experiments, seed, device, backend, every_epoch) for seed in seeds]
        return [record for future in pending for record in future.result()]


def leads() -> bool:
    """True in the one process that reports: the only one, or the first under torchrun."""
    return int(os.environ.get("RANK", "0")) == 0


def _run_seed(experiments, seed: int, device: str, backend: str, every_epoch: bool) -> list[store.Record]:
    options = {"device": device, "backend": backend, "every_epoch": every_epoch}
    return [run(experiment, seed, **options) for experiment in experiments]


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make(experiment, seed, dataset, world, folder: Path, backend: str, teacher, show) -> None:
    if world.leads:
        store.write_json(folder / "spec.json", {"experiment": to_dict(experiment), "seed": seed})
    try:
        with _threads(experiment.train.cpu_threads):
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
        print(f"{folder.name}: trained {progress.epoch} epochs in {progress.seconds:.1f} s, {score:.2f}% top-1")


def _progress(name: str, epochs: int) -> Callable[[dict[str, float]], None]:
    """One line an epoch; on a terminal the line is written over, so that only the last one stays."""

    def show(row: dict[str, float]) -> None:
        line = f"{name}: epoch {row['epoch'] + 1}/{epochs} loss {row['train_loss']:.4f} top-1 {row['top1']:.2f}%"
        if sys.stdout.isatty():
            print(f"\r{line}\033[K", end="\n" if row["epoch"] + 1 == epochs else "", flush=True)
        else:
            print(line, flush=True)

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
        advice = f"look at {FAILED_BATCH} there, or remove {folder} to try again"
        raise RunFailedError(f"{folder.name} diverged before ({message}); {advice}")
