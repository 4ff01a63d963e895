"""A figure, the numbers it shows and where they come from, kept together under figures/<id>/<tier>.*.

The picture is always drawn from the numbers as they lie in the CSV file, and the JSON file holds their digest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from vmrepro import paths, store

# The same numbers give the same bytes.
matplotlib.rcParams["svg.hashsalt"] = "vmrepro"
matplotlib.rcParams["svg.fonttype"] = "none"
os.environ.setdefault("SOURCE_DATE_EPOCH", "0")


@dataclass(frozen=True)
class Saved:
    """What lies beside a saved figure: the numbers drawn, and their origin."""

    numbers: pd.DataFrame
    origin: dict[str, Any]


def base(figure_id: str, tier: str) -> Path:
    """The path of a figure's files, less the suffix."""
    return paths.figures() / figure_id / tier


def save_numbers(figure_id: str, tier: str, numbers: pd.DataFrame, origin: dict[str, Any]) -> Saved:
    """Write the CSV and the JSON of a figure, and return them as they read back."""
    place = base(figure_id, tier)
    place.parent.mkdir(parents=True, exist_ok=True)
    text = numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    store.write_atomically(place.with_suffix(".csv"), text)
    store.write_json(place.with_suffix(".json"), {**origin, "figure": figure_id, "tier": tier, "csv_sha256": _digest(text)})
    return load(figure_id, tier)


def save_runs(
    figure_id: str, tier: str, numbers: pd.DataFrame, claims: list[dict[str, Any]], records: Sequence[store.Record]
) -> Saved:
    """``save_numbers`` for what finished runs gave: the origin is their verdicts, provenance and specs."""
    origin = {
        "claims": claims,
        "runs": [{"id": record.id, **record.provenance} for record in records],
        "specs": {record.spec["experiment"]["id"]: record.spec["experiment"] for record in records},
    }
    return save_numbers(figure_id, tier, numbers, origin)


def load(figure_id: str, tier: str) -> Saved | None:
    """The numbers and origin of a saved figure, None when there is none; ValueError when the CSV is not the one signed for."""
    place = base(figure_id, tier)
    if not place.with_suffix(".csv").is_file():
        return None
    text = place.with_suffix(".csv").read_text()
    origin = json.loads(place.with_suffix(".json").read_text())
    if _digest(text) != origin["csv_sha256"]:
        raise ValueError(
            f"{place.with_suffix('.csv')} is not the file its origin {place.name}.json was written for: it was edited or "
            "half replaced. Restore both from git, or record them anew."
        )
    return Saved(pd.read_csv(io.StringIO(text)), origin)


def save_image(figure_id: str, tier: str, figure: Figure) -> list[Path]:
    """Write the figure as PNG and SVG beside its numbers; the paths written."""
    written = []
    for suffix, options in (".png", {"dpi": 200}), (".svg", {"metadata": {"Date": None}}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], **options)
        path = base(figure_id, tier).with_suffix(suffix)
        store.write_atomically(path, buffer.getvalue())
        written.append(path)
    return written


def drawn(figure: Figure) -> pd.DataFrame:
    """Every labelled line of a figure as it is on the page: panel, series, x and y; read back from the axes."""
    rows = [
        {"panel": axes.get_title(loc="left"), "series": line.get_label(), "x": float(x), "y": float(y)}
        for axes in figure.axes
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["panel", "series", "x", "y"])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
