"""Frames as tables of a page: every cell as text, numbers of a column with the same decimals."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

GAP = "–"
NUMERAL = re.compile(r"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Column:
    """Header of a column; ``kind`` is number, verdict or text."""

    name: str
    kind: str


@dataclass(frozen=True)
class GridRow:
    """One line: its cells as text, the id it is linked by, and whether it is marked as the paper's own model."""

    cells: tuple[str, ...]
    id: str | None = None
    own: bool = False


@dataclass(frozen=True)
class Grid:
    """A table as shown."""

    columns: tuple[Column, ...]
    rows: tuple[GridRow, ...]


def grid(frame: pd.DataFrame, ids: Sequence[str | None] | None = None, own: Collection[str] = ()) -> Grid:
    """The frame as shown, its lines named by ``ids`` and those in ``own`` marked.

    Floats of a column share their decimals (at most 3), numbers given as text stay as they are, and what is missing is a dash.
    A column called verdict holds verdicts.
    """
    columns, texts = [], []
    for name in frame.columns:
        cells = _cells([None if _missing(value) else value for value in frame[name]])
        filled = [cell for cell in cells if cell != GAP]
        number = bool(filled) and all(NUMERAL.fullmatch(cell) for cell in filled)
        columns.append(Column(str(name), "number" if number else "verdict" if name == "verdict" else "text"))
        texts.append(cells)
    names = [None] * len(frame) if ids is None else ids
    lines = zip(names, zip(*texts, strict=True), strict=True)
    return Grid(tuple(columns), tuple(GridRow(cells, name, name in own) for name, cells in lines))


def common(runs: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], Grid]:
    """What all runs share, by name, and a grid of the rest, one line a run; nested names are joined by a space."""
    flat = [flatten(run) for run in runs]
    names = list(dict.fromkeys(name for run in flat for name in run))
    shared = [name for name in names if name != "id" and all(run.get(name) == flat[0].get(name) for run in flat)]
    told = sorted(set(names) - set(shared), key=lambda name: (name != "id", name != "seed", names.index(name)))
    rest = pd.DataFrame([{name: run.get(name) for name in told} for run in flat], dtype=object)
    return facts({name: flat[0].get(name) for name in shared}), grid(rest, [run.get("id") for run in flat])


def facts(origin: Mapping[str, Any]) -> dict[str, str]:
    """The leaves of an origin as shown, by their joined names."""
    flat = flatten(origin)
    return dict(zip(flat, _cells([None if _missing(value) else value for value in flat.values()]), strict=True))


def flatten(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their joined names; bytes become GiB."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{above} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        elif name.endswith(" bytes") and value is not None:
            flat[name.removesuffix("bytes") + "GiB"] = round(value / 2**30, 2)
        else:
            flat[name] = value
    return flat


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value))


def _cells(values: Sequence[Any]) -> list[str]:
    floats = [value for value in values if isinstance(value, float)]
    decimals = next((d for d in (0, 1, 2) if all(math.isclose(round(v, d), v, abs_tol=1e-9) for v in floats)), 3)
    return [GAP if value is None else _cell(value, decimals) for value in values]


def _cell(value: object, decimals: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)
