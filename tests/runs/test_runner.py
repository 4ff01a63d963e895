import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.runs.conftest import numbers, tiny
from vmrepro import paths, store
from vmrepro.runs import runner
from vmrepro.runs.runner import RunFailedError, resolve, run
from vmrepro.runs.train import TrainingDivergedError


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
    import torch

    student = tiny("fig6_m_distill", precision="auto")
    assert resolve(student, torch.device("cpu")).train.precision == "fp32"
    on_gpu = resolve(student, torch.device("cuda"))
    assert (on_gpu.train.precision, on_gpu.distill.teacher.train.precision) == ("bf16", "bf16")


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


# Runs in a process of its own: every epoch is checkpointed, draws chance, and is slow enough to be killed in.
VICTIM = """
import sys, time
from dataclasses import replace
from tests.runs.conftest import tiny
from vmrepro.runs import train
from vmrepro.runs.runner import run

train.SECONDS_BETWEEN_CHECKPOINTS = 0.0
epoch_of = train._train_epoch
def slowly(*arguments):
    time.sleep(float(sys.argv[1]))
    return epoch_of(*arguments)
train._train_epoch = slowly
student = tiny("fig6_m_distill_stopped", epochs=5, precision=sys.argv[2])
run(replace(student, model=replace(student.model, drop_path_rate=0.3)), 0)
"""


def start(folder, pause: float, precision: str, output=subprocess.DEVNULL) -> subprocess.Popen:
    environment = {**os.environ, "VMREPRO_RUNS": str(folder), "PYTHONPATH": str(paths.root())}
    return subprocess.Popen([sys.executable, "-c", VICTIM, str(pause), precision], env=environment, stdout=output)


def kill_after(epochs: int, folder, log, precision: str) -> None:
    """Start the run, and kill it without warning once it has reported so many epochs, in the middle of the next one."""
    with open(log, "w") as output:
        process = start(folder, 0.3, precision, output)
    while log.read_text().count(": epoch ") < epochs:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_a_killed_run_ends_with_the_same_numbers(tmp_path, monkeypatch, precision):
    # In the teacher, in it again, in the student while it is taught, and after its teacher has stopped.
    for epochs in (2, 4, 1, 2):
        kill_after(epochs, tmp_path / "killed", tmp_path / "log", precision)
    assert start(tmp_path / "killed", 0.0, precision).wait() == 0
    assert start(tmp_path / "calm", 0.0, precision).wait() == 0
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "killed"))
    disturbed = store.records()
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "calm"))
    calm = store.records()
    assert len(calm) == 2
    assert [record.id for record in disturbed] == [record.id for record in calm]
    assert [numbers(record) for record in disturbed] == [numbers(record) for record in calm]


@pytest.mark.slow
def test_two_processes_that_ask_for_one_run_do_it_once(tmp_path):
    together = [start(tmp_path, 0.2, "fp64", subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate()[0].decode() for process in together]
    trained = [line for output in outputs for line in output.splitlines() if "trained" in line]
    assert sorted(line.split("-smoke")[0] for line in trained) == ["fig6_m_distill_stopped", "fig6_s"]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="torch's choice of vector instructions is tried on x86")
def test_float64_numbers_do_not_depend_on_the_processors_instructions(tmp_path, monkeypatch):
    losses = []
    for instructions in ("default", "avx2"):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", instructions)
        assert start(tmp_path / instructions, 0.0, "fp64").wait() == 0
        monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / instructions))
        losses.append([row["test_loss"] for record in store.records() for row in record.metrics])
    assert len(losses[0]) == 10
    assert losses[0] == pytest.approx(losses[1], rel=1e-11)
