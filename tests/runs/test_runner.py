import functools
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.runs.conftest import CLASSES, Clips, numbers, tiny
from vmrepro import paths, store
from vmrepro.models import VideoMamba
from vmrepro.models.checkpoints import read_state, resize_spatial
from vmrepro.runs import runner
from vmrepro.runs import train as training
from vmrepro.runs.runner import RunFailedError, resolve, run
from vmrepro.runs.train import CHECKPOINT, WEIGHTS, TrainingDivergedError
from vmrepro.specs.schema import AugmentSpec, ClipSpec, DataSpec, Experiment, StartSpec


def test_a_run_leaves_a_whole_record_and_is_reused(store_folder, capsys):
    record = run(tiny(), 0)
    assert [row["epoch"] for row in record.metrics] == [0, 1, 2]
    assert record.spec["seed"] == record.provenance["seed"] == 0
    for key in ("commit", "versions", "device", "backend", "wall_seconds", "peak_memory_bytes", "code"):
        assert key in record.provenance
    capsys.readouterr()
    again = run(tiny(), 0)
    assert again == record
    assert "reused" in capsys.readouterr().out


def test_seeds_and_specs_make_other_runs(store_folder):
    assert numbers(run(tiny(), 0)) != numbers(run(tiny(), 1))
    assert run(tiny(lr=1e-3), 0).id != run(tiny(), 0).id
    assert len(store.records()) == 3


def test_a_student_runs_its_teacher_first_and_shares_it(store_folder):
    student = run(tiny("fig6_m_distill"), 0)
    teacher = run(tiny("fig6_s"), 0)
    assert len(store.records()) == 2
    assert student.spec["experiment"]["distill"]["teacher"] == teacher.spec["experiment"]
    assert all(row["feature_loss"] > 0 for row in student.metrics)


def test_early_stopping_follows_the_undisturbed_run_up_to_its_epoch(store_folder):
    whole, stopped = numbers(run(tiny("fig6_m_distill"), 0)), numbers(run(tiny("fig6_m_distill_stopped"), 0))
    assert whole[0] == stopped[0]
    assert whole[1]["train_loss"] != stopped[1]["train_loss"]


def test_precision_is_resolved_for_the_device_in_student_and_teacher():
    student = tiny("fig6_m_distill", precision="auto")
    assert resolve(student, torch.device("cpu")).train.precision == "fp32"
    on_gpu = resolve(student, torch.device("cuda"))
    assert (on_gpu.train.precision, on_gpu.distill.teacher.train.precision) == ("bf16", "bf16")


def from_stills(**start) -> Experiment:
    """A tiny training that starts from another one, of images half as large."""
    (first,) = [tiny("fig6_s")]
    first = replace(first, id="first", model=replace(first.model, img_size=4), data=replace(first.data, img_size=4))
    return replace(tiny(), start=StartSpec(**start or {"experiment": first}))


def test_an_experiment_that_gives_the_start_weights_runs_first(store_folder):
    experiment = from_stills()
    record = run(experiment, 3)
    first = run(experiment.start.experiment, 3)
    assert len(store.records()) == 2
    assert record.provenance["start"] == {"run": first.id}
    assert "start" not in first.provenance
    assert numbers(record) != numbers(run(tiny(), 3))
    resolved = resolve(replace(experiment, train=replace(experiment.train, precision="auto")), torch.device("cuda"))
    assert resolved.start.experiment.train.precision == "fp64"  # as it says itself
    auto = replace(experiment.start.experiment, train=replace(experiment.train, precision="auto"))
    resolved = resolve(replace(experiment, start=StartSpec(experiment=auto)), torch.device("cuda"))
    assert resolved.start.experiment.train.precision == "bf16"


def test_training_begins_at_the_start_weights(store_folder):
    """With a rate of zero nothing is learnt: what is left are the start weights, resized."""
    still = {"lr": 0.0, "min_lr": 0.0, "warmup_lr": 0.0}
    experiment = from_stills()
    experiment = replace(experiment, train=replace(experiment.train, **still))
    record = run(experiment, 0)
    first = read_state(run(experiment.start.experiment, 0).folder / WEIGHTS)
    after = read_state(record.folder / WEIGHTS)
    assert torch.equal(after["layers.0.mixer.in_proj.weight"], first["layers.0.mixer.in_proj.weight"])
    assert torch.equal(after["head.weight"], first["head.weight"])
    torch.testing.assert_close(after["pos_embed"], resize_spatial(first["pos_embed"], (4, 4)))


def test_a_released_file_gives_the_start_weights(store_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_CHECKPOINTS", str(tmp_path))
    experiment = from_stills(checkpoint="small.pth")
    with pytest.raises(FileNotFoundError, match=f"'small.pth' is not in {tmp_path}.*model zoo.*VMREPRO_CHECKPOINTS"):
        run(experiment, 0)
    assert not store_folder.exists()
    state = VideoMamba(experiment.model).double().state_dict()
    torch.save({"model": state}, tmp_path / "small.pth")
    record = run(experiment, 0)
    digest = hashlib.sha256((tmp_path / "small.pth").read_bytes()).hexdigest()
    assert record.provenance["start"] == {"file": "small.pth", "sha256": digest}


def test_a_student_tells_its_teacher(store_folder):
    student = run(tiny("fig6_m_distill"), 0)
    assert student.provenance["teacher"] == {"run": run(tiny("fig6_s"), 0).id}


def on_clips(monkeypatch, dataset: Clips, views: int, **train) -> Experiment:
    """A tiny training on the clips of ``dataset``, which takes the place of the one that its spec names."""
    monkeypatch.setattr(runner.data, "build", lambda spec, seed, device: dataset)
    experiment = tiny(batch_size=4, epochs=2, precision="fp32", **train)
    clip = ClipSpec(num_frames=2, test_clips=views)
    shape = {"img_size": 8, "num_classes": CLASSES}
    return replace(
        experiment,
        id="on_clips",
        model=replace(experiment.model, **shape, in_chans=3, num_frames=2),
        data=DataSpec(name="moving_digits", **shape, clip=clip, augment=AugmentSpec(mixup=0.8, cutmix=1.0)),
    )


def test_a_training_of_clips_ends_with_the_test_of_all_views(store_folder, monkeypatch, capsys):
    dataset = Clips(videos=9, views=3)
    record = run(on_clips(monkeypatch, dataset, 3), 0)
    tested = record.provenance["test"]
    assert (tested["seen"], tested["views"]) == (9, 3)
    assert tested["top1"] == pytest.approx(100 * tested["correct"] / 9)
    kept = json.loads((record.folder / "test.json").read_text())
    assert {name: kept[name] for name in tested} == tested
    assert len(kept["per_class"]) == CLASSES
    assert len((record.folder / "predictions.csv").read_text().splitlines()) == 10
    printed = capsys.readouterr().out
    assert f"{tested['top1']:.2f}% over 3 views" in printed
    assert "waiting for data)" in printed
    assert 0 <= record.provenance["data_wait"] <= 1
    assert not (record.folder / CHECKPOINT).exists()


def test_a_death_in_the_test_costs_no_training(store_folder, monkeypatch, capsys):
    experiment = on_clips(monkeypatch, Clips(videos=9, views=3), 3)
    monkeypatch.setattr(training, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "score_views", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(experiment, 0)
    assert capsys.readouterr().out.count(": epoch ") == 2
    record = run(experiment, 0)
    assert ": epoch " not in capsys.readouterr().out
    assert (len(record.metrics), record.provenance["test"]["views"]) == (2, 3)
    assert not (record.folder / CHECKPOINT).exists()


def test_one_view_is_what_every_epoch_sees_and_is_not_tested_again(store_folder, monkeypatch):
    record = run(on_clips(monkeypatch, Clips(videos=9, views=1), 1), 0)
    assert "test" not in record.provenance
    assert not (record.folder / "test.json").exists()


def test_lost_samples_are_named(store_folder, monkeypatch):
    dataset = Clips(videos=9, views=1)
    dataset.lost = {"b.mp4": "no video in it", "a.mp4": "ends early"}
    assert run(on_clips(monkeypatch, dataset, 1), 0).provenance["lost_samples"] == ["a.mp4", "b.mp4"]
    dataset.lost = {}
    assert "lost_samples" not in run(on_clips(monkeypatch, dataset, 1), 1).provenance


def test_missing_data_is_said_before_anything_is_written(store_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_DATA", str(tmp_path / "nowhere"))
    experiment = tiny()
    lost = replace(
        experiment,
        model=replace(experiment.model, num_classes=1000, in_chans=3),
        data=replace(experiment.data, name="imagenet", num_classes=1000),
    )
    with pytest.raises(FileNotFoundError, match="imagenet/train/<class>"):
        run(lost, 0)
    assert not store_folder.exists()


def test_a_diverged_run_is_marked_and_refused_until_it_is_removed(store_folder):
    experiment = tiny(lr=1e30, warmup_epochs=0)
    with pytest.raises(TrainingDivergedError):
        run(experiment, 0)
    (folder,) = store_folder.iterdir()
    assert "message" in json.loads((folder / "failure.json").read_text())
    assert store.records() == []
    with pytest.raises(RunFailedError, match="diverged before"):
        run(experiment, 0)


def test_processes_share_the_seeds_and_give_the_same_records(store_folder, tmp_path, monkeypatch):
    apart = runner.run_all([tiny()], [0, 1], jobs=2, every_epoch=False)
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "alone"))
    alone = runner.run_all([tiny()], [0, 1], jobs=1, every_epoch=False)
    assert [numbers(record) for record in apart] == [numbers(record) for record in alone]


def victim(folder: Path, pause: float, precision: str, log: Path) -> None:
    """Every epoch is checkpointed, draws chance, and is slow enough to be killed in."""
    os.environ["VMREPRO_RUNS"] = str(folder)
    with open(log, "w") as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
    training.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    epoch_of = training._train_epoch

    def slowly(*arguments):
        time.sleep(pause)
        return epoch_of(*arguments)

    training._train_epoch = slowly
    student = tiny("fig6_m_distill_stopped", epochs=5, precision=precision)
    run(replace(student, model=replace(student.model, drop_path_rate=0.3)), 0)


# Each in a process of its own, forked from one that has the imports behind it.
APART = multiprocessing.get_context("forkserver")
APART.set_forkserver_preload([__name__])


def start(folder: Path, pause: float, precision: str, log: Path) -> multiprocessing.Process:
    log.write_text("")
    process = APART.Process(target=victim, args=(folder, pause, precision, log))
    process.start()
    return process


def kill_after(epochs: int, folder: Path, log: Path, precision: str) -> None:
    """Start the run, and kill it without warning once it has reported so many epochs, in the middle of the next one."""
    process = start(folder, 0.3, precision, log)
    while log.read_text().count(": epoch ") < epochs:
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.02)
    time.sleep(0.1)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def finished(folder: Path, precision: str) -> list[store.Record]:
    """The records of the run, which goes on where it was if it was begun in ``folder``."""
    process = start(folder, 0.0, precision, folder.with_suffix(".log"))
    process.join()
    assert process.exitcode == 0
    return records_in(folder)


def records_in(folder: Path) -> list[store.Record]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMREPRO_RUNS", str(folder))
        return store.records()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A function of the precision: the records of the run that nothing disturbs."""
    return functools.cache(lambda precision: finished(tmp_path_factory.mktemp("calm") / "runs", precision))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_a_killed_run_ends_with_the_same_numbers(tmp_path, calm, precision):
    # In the teacher, in it again, in the student while it is taught, and after its teacher has stopped.
    for epochs in (2, 4, 1, 2):
        kill_after(epochs, tmp_path / "killed", tmp_path / "log", precision)
    disturbed = finished(tmp_path / "killed", precision)
    assert len(calm(precision)) == 2
    assert [record.id for record in disturbed] == [record.id for record in calm(precision)]
    assert [numbers(record) for record in disturbed] == [numbers(record) for record in calm(precision)]


@pytest.mark.slow
def test_two_processes_that_ask_for_one_run_do_it_once(tmp_path):
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    for process in [start(tmp_path / "runs", 0.2, "fp64", log) for log in logs]:
        process.join()
        assert process.exitcode == 0
    trained = [line for log in logs for line in log.read_text().splitlines() if "trained" in line]
    assert sorted(line.split("-smoke")[0] for line in trained) == ["fig6_m_distill_stopped", "fig6_s"]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="torch's choice of vector instructions is tried on x86")
def test_float64_numbers_do_not_depend_on_the_processors_instructions(tmp_path, calm):
    """Torch chooses the widest at its import, so the choice of none takes a process that is not forked."""
    code = "import sys; from pathlib import Path; from tests.runs.test_runner import victim; "
    code += "victim(Path(sys.argv[1]), 0.0, 'fp64', Path(sys.argv[2]))"
    environment = {**os.environ, "PYTHONPATH": str(paths.root()), "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-c", code, str(tmp_path / "runs"), str(tmp_path / "log")]
    assert subprocess.run(command, env=environment).returncode == 0
    losses = [
        [row["test_loss"] for record in records for row in record.metrics]
        for records in (calm("fp64"), records_in(tmp_path / "runs"))
    ]
    assert len(losses[0]) == 10
    assert losses[0] == pytest.approx(losses[1], rel=1e-11)
