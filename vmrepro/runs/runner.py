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
from typing import Any, NamedTuple

import torch

from vmrepro import data, paths, store
from vmrepro.models import VideoMamba, load_checkpoint
from vmrepro.runs import distributed, provenance
from vmrepro.runs.train import CHECKPOINT, EVALUATION_FACTOR, FAILED_BATCH, WEIGHTS, Progress, TrainingDivergedError, train
from vmrepro.runs.views import ViewTest, score_views
from vmrepro.specs.schema import Experiment, to_dict

EMBEDDED = ("digits", "moving_digits")  # data that need no files, and no processes to read them


class RunFailedError(RuntimeError):
    """This run diverged before and would do so again."""


def resolve(experiment: Experiment, device: torch.device) -> Experiment:
    """The experiment with nothing left to the machine: precision "auto" becomes bf16 on a GPU and fp32 on a CPU."""
    if experiment.distill is not None:
        teacher = resolve(experiment.distill.teacher, device)
        experiment = replace(experiment, distill=replace(experiment.distill, teacher=teacher))
    if experiment.start is not None and experiment.start.experiment is not None:
        first = resolve(experiment.start.experiment, device)
        experiment = replace(experiment, start=replace(experiment.start, experiment=first))
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

    A teacher is run first, and so is an experiment whose weights this one starts from. Prints what it did, and how it goes
    while it trains if ``every_epoch``. Under torchrun every process calls this and all return the same record. Raises
    FileNotFoundError for missing data or a missing released file, RuntimeError for an absent device or backend,
    TrainingDivergedError when this run diverges and RunFailedError when it did so before.
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
    before = _run_before(experiment, seed, world.device, {"device": device, "backend": backend, "every_epoch": every_epoch})
    dataset = data.build(experiment.data, seed, world.device)
    with store.claim(identifier) if world.leads else contextlib.nullcontext(store.folder(identifier)) as folder:
        world.barrier()
        # Another process may have finished it while this one waited for the folder.
        if store.read(identifier) is None:
            _refuse_failed(folder)
            show = _progress(identifier, experiment.train.epochs) if every_epoch else (lambda row: None)
            _make(experiment, seed, dataset, world, folder, backend, before, show)
        world.barrier()
    return store.read(identifier)


class _Before(NamedTuple):
    """What a training builds on, and what its record says of that."""

    teacher: VideoMamba | None
    start: Path | None
    origin: dict[str, Any]


def _run_before(experiment: Experiment, seed: int, device: torch.device, options: dict[str, Any]) -> _Before:
    """Run the teacher and the experiment that gives the start weights, where there are any, or find the released file."""
    teacher, start, origin = None, None, {}
    if experiment.distill is not None:
        taught = run(experiment.distill.teacher, seed, **options)
        teacher = load_run(experiment.distill.teacher, taught.folder, device, options["backend"])
        origin["teacher"] = {"run": taught.id}
    if experiment.start is not None and experiment.start.experiment is not None:
        first = run(experiment.start.experiment, seed, **options)
        start, origin["start"] = first.folder / WEIGHTS, {"run": first.id}
    elif experiment.start is not None:
        start = _released(experiment.start.checkpoint)
        origin["start"] = {"file": start.name, "sha256": provenance.sha256(start)}
    return _Before(teacher, start, origin)


def _released(name: str) -> Path:
    file = paths.checkpoints() / name
    if not file.is_file():
        raise FileNotFoundError(
            f"the released file {name!r} is not in {file.parent}: take it from the authors' model zoo (OpenGVLab/VideoMamba on "
            "Hugging Face) and put it there, or point VMREPRO_CHECKPOINTS at the folder that has it"
        )
    return file


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

    ``jobs`` processes share the seeds (by default one a core, at most one a seed, and one only under torchrun or for data
    from files, which fill a machine by themselves). Even on one GPU that pays: small models leave it waiting.
    """
    if jobs is None:
        alone = "WORLD_SIZE" in os.environ or any(experiment.data.name not in EMBEDDED for experiment in experiments)
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


def _make(experiment, seed, dataset, world, folder: Path, backend: str, before: _Before, show) -> None:
    if world.leads:
        store.write_json(folder / "spec.json", {"experiment": to_dict(experiment), "seed": seed})
    try:
        with _threads(experiment.train.cpu_threads):
            options = {"backend": backend, "teacher": before.teacher, "start": before.start}
            progress = train(experiment, seed, dataset, world, folder, **options, report=show)
            tested = _test(experiment, dataset, world, folder, backend)
    except TrainingDivergedError as error:
        if world.leads:
            store.write_json(folder / "failure.json", {"message": str(error), **error.details})
        raise
    lost = world.gather(sorted(getattr(dataset, "lost", ())))
    if world.leads:
        signed = provenance.collect(world.device, backend, world.size) | before.origin
        signed |= {"seed": seed, "wall_seconds": round(progress.seconds, 2), "peak_memory_bytes": progress.peak_bytes}
        signed |= {"data_wait": round(progress.data_wait, 3)}
        signed |= {"lost_samples": sorted({name for names in lost for name in names})} if any(lost) else {}
        signed |= {"test": tested.summary()} if tested else {}
        store.write_json(folder / "provenance.json", signed)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        print(f"{folder.name}: {_told(progress, tested)}")


def _test(experiment: Experiment, dataset, world, folder: Path, backend: str) -> ViewTest | None:
    """The test of several views with the final weights, where the spec asks for one; leaves its files in ``folder``."""
    clip = experiment.data.clip
    if clip is None or clip.views == 1:
        return None
    world.barrier()  # the weights are written by another process
    model = load_run(experiment, folder, world.device, backend)
    at_once = EVALUATION_FACTOR * experiment.train.batch_size // world.size
    tested = score_views(model, dataset, clip.views, at_once, world, experiment.train.precision)
    if world.leads:
        tested.write(folder)
    return tested


def _told(progress: Progress, tested: ViewTest | None) -> str:
    line = f"trained {progress.epoch} epochs in {progress.seconds:.1f} s ({progress.data_wait:.0%} waiting for data)"
    line += f", {progress.history[-1]['top1']:.2f}% top-1"
    return line if tested is None else f"{line}, {tested.top1:.2f}% over {tested.views} views"


def _progress(name: str, epochs: int) -> Callable[[dict[str, float]], None]:
    """One line an epoch; on a terminal the line is written over, so that only the last one stays."""

    def show(row: dict[str, float]) -> None:
        line = f"{name}: epoch {row['epoch'] + 1}/{epochs} loss {row['train_loss']:.4f} top-1 {row['top1']:.2f}%"
        if sys.stdout.isatty():
            print(f"\r{line}\033[K", end="\n" if row["epoch"] + 1 == epochs else "", flush=True)
        else:
            print(line, flush=True)

    return show


def load_run(experiment: Experiment, folder: Path, device: torch.device, backend: str) -> VideoMamba:
    """The trained model of a resolved experiment from the folder of its run, frozen and in eval mode."""
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
