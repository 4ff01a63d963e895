"""Records with curves made from a formula: nothing is trained to test a report."""

import math
import shutil
from pathlib import Path

import pytest

from vmrepro import paths
from vmrepro.report import site
from vmrepro.specs import catalog
from vmrepro.specs.schema import to_dict
from vmrepro.store import Record

EPOCHS = 10


def made_record(index: int, experiment, seed: int) -> Record:
    top1 = [100 * (1 - math.exp(-(epoch + 1) / (2 + 0.2 * index))) - 0.1 * seed for epoch in range(EPOCHS)]
    metrics = [{"epoch": i, "top1": value, "test_loss": 1.0, "train_loss": 2.0} for i, value in enumerate(top1)]
    spec = {"experiment": to_dict(experiment), "seed": seed}
    return Record(f"{experiment.id}-{seed}", Path("nowhere"), spec, metrics, {"commit": "made", "seed": seed})


@pytest.fixture
def made_records() -> list[Record]:
    return [made_record(i, e, seed) for i, e in enumerate(catalog.fig6("mini")) for seed in range(3)]


@pytest.fixture
def figure_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


@pytest.fixture(scope="session")
def build_site():
    """A function that copies what is committed under figures/ to a folder, notebooks beside it, and builds the site into it."""

    def build(folder: Path) -> Path:
        committed = paths.root() / "figures"
        shutil.copytree(committed, folder, ignore=shutil.ignore_patterns("smoke.*", "*.html"))
        shutil.copytree(paths.notebooks(), folder.parent / "notebooks", ignore=shutil.ignore_patterns(".*"))
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("VMREPRO_FIGURES", str(folder))
            site.build()
        return folder

    return build


@pytest.fixture(scope="session")
def site_folder(build_site, tmp_path_factory) -> Path:
    return build_site(tmp_path_factory.mktemp("site") / "figures")
