import json
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from vmrepro import paths
from vmrepro.report import figures, rebuild
from vmrepro.runs.runner import resolve
from vmrepro.specs import catalog
from vmrepro.specs.schema import to_dict

COMMITTED = paths.root() / "figures"


def test_committed_pictures_are_drawn_from_the_committed_numbers(figure_folder):
    shutil.copytree(COMMITTED, figure_folder)
    drawn = [path for figure in rebuild.DRAWN_BY for path in (figure_folder / figure).glob("*.svg") if path.stem != "smoke"]
    before = {path: path.read_bytes() for path in drawn}
    written = rebuild.redraw()
    assert {figure_folder / "fig4" / "paper.svg", figure_folder / "fig6" / "mini.svg"} <= {*before}
    assert {*before, *(path.with_suffix(".png") for path in before)} <= {*written}
    assert before == {path: path.read_bytes() for path in before}


def strays(spec, recorded: dict, at: str = "") -> list[str]:
    """Where a recorded spec is not ``spec``; what the record does not name, because the field came later, has its default."""
    found = [f"{at}{name} is no field any more" for name in sorted(recorded.keys() - {field.name for field in fields(spec)})]
    for field in fields(spec):
        name, value = f"{at}{field.name}", getattr(spec, field.name)
        if field.name not in recorded:
            found += [f"{name} came later, and is not at its default"] if value != field.default else []
        elif is_dataclass(value) and isinstance(recorded[field.name], dict):
            found += strays(value, recorded[field.name], f"{name}.")
        elif as_json(value) != recorded[field.name]:
            found.append(f"{name} was {recorded[field.name]!r}")
    return found


def as_json(value):
    return to_dict(value) if is_dataclass(value) else json.loads(json.dumps(value))


@pytest.mark.parametrize("figure", catalog.FIGURES)
def test_the_recorded_mini_runs_are_todays_mini_experiments(figure):
    saved, experiments = figures.load(figure, "mini"), catalog.FIGURES[figure]("mini")
    if saved is None and f"figures/{figure}/mini.json" not in (COMMITTED / "verdicts.csv").read_text():
        pytest.skip(f"the mini tier of {figure} was never recorded")
    assert set(saved.origin["specs"]) == {experiment.id for experiment in experiments}
    for experiment in experiments:
        assert strays(resolve(experiment, torch.device("cuda")), saved.origin["specs"][experiment.id]) == []
    runs = [(run["id"].partition("-mini-")[0], run["seed"]) for run in saved.origin["runs"]]
    assert sorted(runs) == sorted((experiment.id, seed) for experiment in experiments for seed in catalog.seeds("mini"))
    for run in saved.origin["runs"]:
        assert run["commit"]
        assert run["device"]["name"]


def test_a_changed_spec_is_not_what_was_recorded():
    taught = next(experiment for experiment in catalog.fig6("mini") if experiment.distill)
    recorded = to_dict(taught)
    assert strays(taught, recorded) == []
    teacher = taught.distill.teacher
    for changed, where in (
        (replace(taught, train=replace(taught.train, lr=0.5)), "train.lr was 0.001"),
        (replace(taught, model=replace(taught.model, img_size=10)), "model.img_size was 8"),
        (replace(taught, distill=None, model=replace(taught.model, distill_dim=None)), "distill was {"),
        (
            replace(taught, distill=replace(taught.distill, teacher=replace(teacher, train=replace(teacher.train, epochs=7)))),
            "distill.teacher.train.epochs was 100",
        ),
    ):
        assert any(found.startswith(where) for found in strays(changed, recorded)), where


def test_a_field_that_came_later_counts_as_its_default():
    experiment = catalog.fig6("mini")[0]
    recorded = to_dict(experiment)
    del recorded["model"]["scan"], recorded["start"], recorded["data"]["clip"]
    assert strays(experiment, recorded) == []
    del recorded["train"]["batch_size"]
    recorded["model"]["colour"] = "red"
    assert strays(experiment, recorded) == [
        "model.colour is no field any more",
        "train.batch_size came later, and is not at its default",
    ]


def test_reports_need_no_torch():
    code = "import sys; from vmrepro.report import rebuild; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=paths.root()).returncode == 0
