import json
import subprocess
import sys
import time

import pytest

from vmrepro import cli, paths
from vmrepro.specs import catalog


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vmrepro.cli", *arguments]
    return subprocess.run(command, cwd=paths.root(), capture_output=True, text=True)


def test_list_names_every_experiment_and_its_claims(capsys):
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for experiment in catalog.experiments("smoke"):
        assert experiment.id in text
    assert "C21" in text


def test_plan_prints_cost_and_runs_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    assert cli.main(["plan", "fig6", "--tier", "paper"]) == 0
    planned = capsys.readouterr().out
    assert "Nothing was run" in planned
    assert "4096" in planned  # the released global batch of S
    assert cli.main(["run", "fig6", "--tier", "paper", "--dry-run"]) == 0
    assert capsys.readouterr().out == planned
    assert not (tmp_path / "runs").exists()


def test_plan_as_json_is_the_specs(capsys):
    assert cli.main(["plan", "fig6_m_distill", "--tier", "mini", "--json"]) == 0
    (spec,) = json.loads(capsys.readouterr().out)
    assert spec["distill"]["teacher"]["id"] == "fig6_s"


def test_an_unknown_id_is_misuse_and_names_the_nearest(capsys):
    assert cli.main(["run", "fig6_m_distil"]) == 2
    assert "did you mean 'fig6_m_distill'" in capsys.readouterr().err


def test_missing_data_is_said_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VMREPRO_DATA", str(tmp_path))
    assert cli.main(["run", "fig6_s", "--tier", "paper", "--device", "cpu", "--seeds", "1"]) == 2
    assert "imagenet/train/<class>" in capsys.readouterr().err


def test_run_records_and_verify_judges_again(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VMREPRO_FIGURES", str(tmp_path / "figures"))
    assert cli.main(["verify"]) == 2  # nothing is recorded yet
    assert cli.main(["run", "fig6_s", "--seeds", "1"]) == 0
    assert "top-1" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_verify_accepts_what_is_committed(capsys):
    assert cli.main(["verify"]) == 0
    assert "fig6_b < fig6_s" in capsys.readouterr().out


def test_doctor_reports(capsys):
    assert cli.main(["doctor"]) in (0, 1)
    assert "torch" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("--help",), ("list",)])
def test_help_and_list_import_nothing_heavy(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "vmrepro.cli", *arguments]
    done = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True)
    assert done.returncode == 0
    for heavy in ("torch", "pandas", "matplotlib", "numpy", "timm"):
        assert f" {heavy}\n" not in done.stderr


def test_help_answers_within_half_a_second():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5
