import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import vmrepro
from tests import videos
from vmrepro import cli, paths
from vmrepro.report import figures
from vmrepro.specs import catalog


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vmrepro.cli", *arguments]
    return subprocess.run(command, cwd=paths.root(), capture_output=True, text=True)


def test_list_names_every_experiment_and_its_claims(capsys):
    assert cli.main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for experiment in catalog.experiments("smoke"):
        assert [experiment.id, *experiment.reproduces] in lines
    assert any("C21" in line for line in lines)


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


def test_run_draws_whatever_figure_has_a_module(capsys, monkeypatch):
    """The records of a figure go to its module, those of a single experiment to none."""
    from vmrepro.report import fig6, rebuild
    from vmrepro.runs import runner

    def module(**functions):
        return SimpleNamespace(**functions)

    saved = []
    ruling = fig6.rulings(figures.load("fig6", "mini").numbers, "mini")[0]
    table = pd.DataFrame({"final": [12.5]}, index=pd.Index(["one"], name="experiment"))
    fake = module(
        save=lambda records, tier: saved.append((records, tier)) or module(numbers="numbers"),
        finals=lambda numbers: table,
        rulings=lambda numbers, tier: [ruling],
    )
    monkeypatch.setitem(rebuild.DRAWN_BY, "fig7", fake)
    monkeypatch.setattr(runner, "run_all", lambda experiments, seeds, **options: [experiment.id for experiment in experiments])
    assert cli.main(["run", "fig7", "--tier", "mini"]) == 0
    ((records, tier),) = saved
    assert records == [experiment.id for experiment in catalog.find("fig7", "mini")]
    assert tier == "mini"
    printed = capsys.readouterr().out
    assert "12.5" in printed
    assert ruling.claim in printed
    assert cli.main(["run", "fig7a_alternating"]) == 0
    assert len(saved) == 1


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    model = vmrepro.create_model("videomamba", depth=1, embed_dim=16, img_size=32, num_frames=4, num_classes=400)
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def test_predict_prints_the_likeliest_classes(capsys, tmp_path, checkpoint):
    film = videos.write(tmp_path / "film.mp4", 9)
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--clips", "1", "--crops", "1"]
    assert cli.main(["predict", str(film), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    shares = [float(line.split("%")[0]) for line in lines]
    assert shares == sorted(shares, reverse=True)
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"class {number}\n" for number in range(400)))
    assert cli.main(["predict", str(film), *options, "--labels", str(labels), "--top", "2"]) == 0
    named = capsys.readouterr().out.splitlines()
    assert named == [f"{line.split('%')[0]}%  class {line.split()[-1]}" for line in lines[:2]]


def test_what_cannot_be_predicted_is_said_in_one_line(capsys, tmp_path, checkpoint):
    film = videos.write(tmp_path / "film.mp4", 9)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    for file, options, words in (
        (broken, ["--checkpoint", str(checkpoint)], "broken.mp4"),
        (film, ["--checkpoint", str(tmp_path / "absent.pth")], "no checkpoint"),
        (film, ["--checkpoint", str(film)], "film.mp4"),
        (film, ["--checkpoint", str(checkpoint), "--decoder", "vlc"], "decoder must be"),
        (film, ["--checkpoint", str(checkpoint), "--clips", "0"], "test_clips must be a positive integer"),
        (film, ["--checkpoint", str(checkpoint), "--top", "0"], "--top"),
    ):
        assert cli.main(["predict", str(file), *options, "--device", "cpu"]) == 2, options
        printed = capsys.readouterr()
        assert words in printed.err
        assert printed.out == ""


def test_evaluate_prints_the_score_and_where_each_prediction_lies(capsys, tmp_path, monkeypatch, checkpoint):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    for number in range(3):
        videos.write(tmp_path / f"{number}.mp4", 8 + number)
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text("0.mp4,0\n1.mp4,1\n2.mp4,2\n")
    command = ["evaluate", str(checkpoint), "kinetics400", str(tmp_path), "--device", "cpu", "--crops", "1"]
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    assert "3 videos, 4 views of each" in first
    assert Path(first.split("each prediction: ")[1].strip()).is_file()
    assert cli.main(command) == 0
    assert capsys.readouterr().out == first


def test_data_check_says_whether_a_run_could_use_the_files(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    assert cli.main(["data", "check", "ssv2", str(tmp_path)]) == 1
    assert "train.csv" in capsys.readouterr().out
    assert cli.main(["data", "check", "moving_digits", str(tmp_path)]) == 2
    assert "one of imagenet, kinetics400, ssv2" in capsys.readouterr().err


def test_data_bench_measures_and_keeps_what_it_is_told_to(capsys, tmp_path, monkeypatch):
    from vmrepro.data import decode_bench

    monkeypatch.setenv("VMREPRO_FIGURES", str(tmp_path))
    monkeypatch.setattr(decode_bench, "measure", lambda: [{"decoder": "av", "frames_per_s": 123.0}])
    assert cli.main(["data", "bench"]) == 0
    assert "123" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["data", "bench", "--record"]) == 0
    saved = figures.load("speed", "decoders")
    assert saved.numbers["frames_per_s"].tolist() == [123.0]
    (signed,) = saved.origin["runs"]
    assert signed["versions"]["python"]


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
