"""The lock fits pyproject.toml, and a Python that will not do is refused in one clear line."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LINES = [line for line in (ROOT / "environment" / "lock.txt").read_text().splitlines() if not line.startswith("#")]
PINS = {line.partition("==")[0]: line.partition("==")[2].partition(" ")[0] for line in LINES}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][name] for name in ("lab", "test", "dev", "triton")]
    return [Requirement(text) for text in sum(extras, project["dependencies"])]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_the_lock_pins_a_version_that_each_requirement_takes(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_every_line_of_the_lock_is_one_exact_version():
    assert [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*(\.post[0-9]+)?( ; .+)?", line)] == []
    assert len(PINS) == len(LINES)


@pytest.mark.parametrize(
    ("pretence", "words"),
    [
        ("sys.version_info = (3, 9, 18)", "(3.9.18 is too old)"),
        ("sys.modules['ensurepip'] = None", "(has no venv module; on Debian and Ubuntu install python3-venv)"),
        ("sys.exit(127)", "(not found)"),
    ],
)
def test_a_python_that_will_not_do_is_refused_in_one_line(tmp_path, pretence, words):
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; {pretence}; exec(sys.argv[1])" "$2"\n')
    python.chmod(0o755)
    command = [ROOT / "environment" / "install.sh", tmp_path / "venv"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"needs Python 3.11 or newer; tried {python} {words}" in done.stderr
    assert not (tmp_path / "venv").exists()
