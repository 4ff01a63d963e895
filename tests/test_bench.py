"""The table of speeds: what counts as better, and that nothing wrong is timed."""

import csv
import re

import pytest
import torch

from vmrepro import bench, paths
from vmrepro.ops import chunked


def test_rates_and_costs_are_compared_their_own_way():
    rate = bench.Goal("clips", "clips/s", 100, rate=True).line(120.0, {"slow": 40.0, "fast": 60.0, "gone": "not installed"})
    assert (rate["met"], rate["peer"], rate["peers"], rate["times_better"]) == (True, "fast", 60.0, 2.0)
    assert rate["all_peers"] == "slow: 40; fast: 60; gone: not installed"
    cost = bench.Goal("scan", "ms", 0.9).line(1.0, {"slow": 4.0, "fast": 3.0})
    assert (cost["met"], cost["peer"], cost["times_better"]) == (False, "fast", 3.0)


def test_without_a_peer_there_is_no_ratio():
    line = bench.Goal("scan", "ms", 1.0).line(0.5, {"mamba-ssm": "absent"})
    assert (line["met"], line["peer"], line["times_better"]) == (True, None, None)


def test_a_wrong_backend_ends_the_command(monkeypatch):
    monkeypatch.setattr(bench, "SCAN", (1, 9, 6, 4))
    monkeypatch.setattr(chunked, "_add_over_channels", lambda *args: None)
    with pytest.raises(RuntimeError, match="'chunked' is not timed"):
        bench.main([])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU measures for minutes")
def test_without_a_gpu_only_the_cpu_is_measured_and_kept(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "SCAN", (1, 9, 6, 4))
    monkeypatch.setenv("VMREPRO_FIGURES", str(tmp_path))
    bench.main(["--threads", "1", "--record"])
    printed = capsys.readouterr().out
    assert "no NVIDIA GPU here" in printed
    assert "scan forward, CPU, 1 threads" in printed
    (kept,) = tmp_path.glob("speed/*.csv")
    assert kept.read_text().count("\n") == 2


def test_the_readme_shows_the_recorded_table():
    rows = list(csv.DictReader((paths.root() / "figures" / "speed" / "mini.csv").read_text().splitlines()))
    shown = [
        line for line in (paths.root() / "README.md").read_text().splitlines() if line.startswith(("| scan ", "| VideoMamba-Ti "))
    ]
    assert len(shown) == len(rows)
    for line, row in zip(shown, rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == row["work"]
        assert cells[1] == f"{float(row['ours']):.4g} {row['unit']}"
        assert cells[2] == f"{row['peer']} {float(row['peers']):.4g}"
        assert float(cells[3]) == round(float(row["times_better"]), 2)
        assert ("not reached" in cells[4]) == (row["met"] == "False")


def test_the_readme_shows_the_recorded_decoders():
    rows = list(csv.DictReader((paths.root() / "figures" / "speed" / "decoders.csv").read_text().splitlines()))
    speeds = {(row["video"], row["frames"], row["decoder"]): f"{float(row['clips_per_second']):.3g}" for row in rows}
    shown = [line for line in (paths.root() / "README.md").read_text().splitlines() if re.match(r"\| \d+x\d+, \d+ frames ", line)]
    assert 4 * len(shown) == len(speeds) > 0
    for line in shown:
        clip, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        video, frames = re.fullmatch(r"(\d+x\d+), (\d+) frames", clip).groups()
        assert cells == [speeds[f"{video}.mp4", frames, decoder] for decoder in ("auto", "decord", "av", "torchcodec")]
