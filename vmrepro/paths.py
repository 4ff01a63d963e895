"""Every folder that is read or written: under the repository root, or where an environment variable says."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The checkout this package runs from, or the working folder when it is installed without one."""
    checkout = PACKAGE.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ[variable]).expanduser().resolve() if os.environ.get(variable) else root() / default


def runs() -> Path:
    """Records of runs and executed notebooks (``VMREPRO_RUNS``)."""
    return _folder("VMREPRO_RUNS", "runs")


def figures() -> Path:
    """Figures with the numbers drawn and their origin (``VMREPRO_FIGURES``)."""
    return _folder("VMREPRO_FIGURES", "figures")


def notebooks() -> Path:
    """The source notebooks."""
    return root() / "notebooks"


def data() -> Path:
    """Data sets, one folder each (``VMREPRO_DATA``)."""
    return _folder("VMREPRO_DATA", "data")


def checkpoints() -> Path:
    """Released checkpoint files (``VMREPRO_CHECKPOINTS``)."""
    return _folder("VMREPRO_CHECKPOINTS", "checkpoints")
