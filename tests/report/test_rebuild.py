import shutil
import subprocess
import sys

import pytest
import torch

from vmrepro import paths
from vmrepro.report import figures, rebuild
from vmrepro.runs.runner import resolve
from vmrepro.specs import catalog
from vmrepro.specs.schema import to_dict

COMMITTED = paths.root() / "figures"


@pytest.fixture
def copied(figure_folder):
    shutil.copytree(COMMITTED, figure_folder)
    return figure_folder / "fig6"


def test_committed_pictures_are_drawn_from_the_committed_numbers(copied):
    before = {path.name: path.read_bytes() for path in copied.glob("mini.svg")}
    written = rebuild.redraw()
    assert copied / "mini.png" in written
    assert before == {path.name: path.read_bytes() for path in copied.glob("mini.svg")}


def test_the_recorded_mini_runs_are_todays_mini_experiments():
    origin = figures.load("fig6", "mini").origin
    for experiment in catalog.fig6("mini"):
        assert origin["specs"][experiment.id] == to_dict(resolve(experiment, torch.device("cuda")))
    assert len(origin["runs"]) == len(catalog.fig6("mini")) * catalog.SEEDS["mini"]
    for run in origin["runs"]:
        assert run["commit"]
        assert run["device"]["name"]


def test_reports_need_no_torch():
    code = "import sys; from vmrepro.report import rebuild; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=paths.root()).returncode == 0
