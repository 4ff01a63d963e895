"""Imports point down the floors of the package only; whatever runs, this test reads them from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vmrepro"
FLOORS = {
    **dict.fromkeys(("paths", "store", "torchvision_cpu"), 0),
    "paper": 1,
    "specs": 2,
    **dict.fromkeys(("data", "ops"), 3),
    "models": 4,
    "runs": 5,
    "report": 6,
    **dict.fromkeys(("notebooks", "doctor", "bench", "cli", "__main__"), 7),
}
# A reader lists, prices and judges without torch, and rebuilds a report from files: no model, no run.
NEVER_IMPORTS = {
    **{unit: {"torch"} for unit in ("paths", "store", "paper", "specs")},
    "report": {"torch", "vmrepro.data", "vmrepro.ops", "vmrepro.models", "vmrepro.runs"},
}
LAZY = {"create_model": "models"}  # names that the package's __init__ fetches from a floor


def imported(file: Path, package: Path) -> Iterator[str]:
    """Full names of what a file imports, functions included; of `from a import b` it is a.b, which may be a module."""
    here = [package.name, *file.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level + 1], *filter(None, [node.module])] if node.level else [node.module]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def unit(name: str) -> str | None:
    """The first part below the package of an imported name; None for other packages and for the package's own version."""
    parts = name.split(".")
    if parts[0] != "vmrepro" or parts[1:] in ([], ["__version__"]):
        return None
    return LAZY.get(parts[1], parts[1])


def faults(package: Path) -> list[str]:
    """Every import that goes up, or sideways into another folder, and every module without a floor."""
    found = []
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package).with_suffix("").parts
        own, is_file = inside[0], len(inside) == 1
        if own == "__init__":
            continue  # the front door may open every room
        if own not in FLOORS:
            found.append(f"{file.relative_to(package)} has no floor in {Path(__file__).name}")
            continue
        for name in imported(file, package):
            other = unit(name)
            same_folder = is_file and other is not None and (package / f"{other}.py").is_file()
            if other is not None and other != own and other not in FLOORS:
                found.append(f"{file.relative_to(package)} imports {name}, which has no floor")
            elif other is not None and other != own and FLOORS[other] >= FLOORS[own] + same_folder:
                found.append(f"{file.relative_to(package)} (floor {FLOORS[own]}) imports {name} (floor {FLOORS[other]})")
            found += [
                f"{file.relative_to(package)} imports {name}, which {own} never does"
                for banned in NEVER_IMPORTS.get(own, ())
                if name == banned or name.startswith(f"{banned}.")
            ]
    return found


def test_imports_point_down():
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("ops/scan.py", "from vmrepro.models import blocks", "floor 3) imports vmrepro.models.blocks (floor 4)"),
        ("ops/scan.py", "import vmrepro.data.clips", "floor 3) imports vmrepro.data.clips (floor 3)"),
        ("ops/scan.py", "from vmrepro import data", "floor 3) imports vmrepro.data (floor 3)"),
        ("ops/cuda/scan.py", "from ...models import blocks", "floor 3) imports vmrepro.models.blocks (floor 4)"),
        ("ops/scan.py", "def f():\n    from ..runs import train", "floor 3) imports vmrepro.runs.train (floor 5)"),
        ("data/clips.py", "from vmrepro import create_model", "imports vmrepro.create_model (floor 4)"),
        ("paths.py", "import vmrepro.paper", "floor 0) imports vmrepro.paper (floor 1)"),
        ("models/blocks.py", "from vmrepro import extra", "vmrepro.extra, which has no floor"),
        ("extra.py", "import os", "extra.py has no floor"),
        ("specs/schema.py", "import torch.nn", "imports torch.nn, which specs never does"),
        ("report/figures.py", "from vmrepro.models import blocks", "which report never does"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, file, line, words):
    path = tmp_path / "vmrepro" / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    found = faults(tmp_path / "vmrepro")
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (
            "models/blocks.py",
            "import torch\nfrom vmrepro.ops import scan\nfrom . import norms",
        ),
        ("runs/train.py", "import timm\nfrom vmrepro import __version__, paths"),
        ("store.py", "from vmrepro import paths"),
        ("__init__.py", "from vmrepro.models import create_model"),
    ],
)
def test_a_right_import_is_not(tmp_path, file, line):
    path = tmp_path / "vmrepro" / file
    path.parent.mkdir(parents=True)
    (tmp_path / "vmrepro" / "paths.py").write_text("import os")
    path.write_text(line)
    assert faults(tmp_path / "vmrepro") == []
