"""What the paper prints (arXiv 2403.06977 v1): its tables and Fig. 7a row by row, typed, and the suspected errors in them.

The CSV files are a transcription with the paper's own errors left in; ``columns.json`` says of each column what it means and
whether it was printed, inferred or derived. Only the standard library is imported, since every command passes through here.
"""

from __future__ import annotations

import csv
import difflib
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from vmrepro import paths

FOLDER = paths.PACKAGE / "paper"
Scalar = str | int | float | bool | None
Origin = Literal["printed", "inferred", "derived"]

# In the paper's order: where the table stands, and what tells its rows apart.
PLACES: dict[str, tuple[str, str]] = {
    "table1": ("Table 1", "{method}"),
    "table2": ("Table 2", "{method} {input_size}"),
    "table3": ("Table 3", "{method} {input_frames}x{input_size}{more_data}"),
    "table4": ("Table 4", "{method} {input_frames}x{input_size}{more_data}"),
    "fig7a": ("Fig. 7a", "{scan_type_printed}"),
    "table5a": ("Table 5a", "{mask_type_printed} masking"),
    "table5b": ("Table 5b", "alignment {alignment_printed}"),
    "table5c": ("Table 5c", "mask ratio {mask_ratio}"),
    "table5d": ("Table 5d", "drop path {drop_path}"),
    "table6": ("Table 6", "{method} on {backbone}{frames}, {pretraining_dataset}{masked}"),
    "table7": ("Table 7", "{method}"),
    "table7_long": ("Table 7", "{method}, {task}"),
    "table8": ("Table 8", "{method} {pretrain_pairs_printed}, {dataset}"),
}


@dataclass(frozen=True)
class Column:
    """Meaning, Python type and origin of a column: printed in the paper, inferred from it, or derived from printed cells."""

    name: str
    type: str
    origin: Origin
    meaning: str


@dataclass(frozen=True)
class Row:
    """One printed row, or one part of it where a file spreads a row; an empty cell is ``None``."""

    id: str
    table: str
    place: str
    values: Mapping[str, Scalar] = field(hash=False)


@dataclass(frozen=True)
class Value:
    """One filled cell, with its place in the paper and its origin."""

    value: str | int | float | bool
    row_id: str
    column: str
    place: str
    origin: Origin


# What an entry of the errata is: wrong in the paper; wrong and of no consequence; text and released code differ; a table and the
# model list of a work differ; the text is silent and the code says; the release is at fault; it does not fit, nobody knows why.
KINDS = (
    *("paper error", "harmless misprint", "paper against code", "public list differs", "unstated", "release defect"),
    "unexplained",
)


@dataclass(frozen=True)
class Erratum:
    """One suspected error or disagreement; ``where`` holds the ids of the rows it touches and is empty for text and figures.

    ``kind`` is one of ``KINDS``. ``what`` says what is wrong, ``evidence`` why. ``basis`` is any of paper (arithmetic inside it),
    public (lists or code of the works concerned) and memory (of the cited work, not checked); ``confidence`` is high, medium or
    low. ``uncomputed`` is the reason why no function recomputes it, None where :mod:`vmrepro.paper.errata_checks` does.
    """

    id: str
    where: tuple[str, ...]
    place: str
    kind: str
    what: str
    evidence: str
    basis: tuple[str, ...]
    confidence: str
    uncomputed: str | None


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not among ``known``; it lists the three nearest."""
    near = difflib.get_close_matches(str(name), sorted(set(known)), n=3, cutoff=0.0)
    return ValueError(f"unknown {kind} {name!r}; the nearest known: {', '.join(near)}")


def read_cells(name: str) -> list[dict[str, str]]:
    """The rows of ``<name>.csv`` as text, keyed by column; ValueError where a row is shorter or longer than the header."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    for number, line in enumerate(lines, start=1):
        if None in line or None in line.values():  # how the csv module marks surplus and missing cells
            raise ValueError(f"{name}.csv: row {number} does not have as many cells as the header")
    return lines


def split(text: str) -> tuple[str, ...]:
    """The parts of a list in one cell, which semicolons separate."""
    return tuple(filter(None, text.split(";")))


def parse(text: str, kind: str) -> Scalar:
    """A cell as ``kind`` (str, int, float or bool, spelt true and false), None when empty; ValueError when it does not fit."""
    if text == "":
        return None
    if kind == "bool" and text not in ("true", "false"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text == "true" if kind == "bool" else {"str": str, "int": int, "float": float}[kind](text)


def tables() -> tuple[str, ...]:
    """Names of the tables, in the paper's order."""
    return tuple(PLACES)


@functools.cache
def columns(name: str) -> Mapping[str, Column]:
    """The columns of a table by name; ValueError for a table that does not exist."""
    if name not in PLACES:
        raise unknown("table", name, PLACES)
    notes = json.loads((FOLDER / "columns.json").read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            column: Column(column, note["type"], note["origin"], note["meaning"])
            for column, variants in notes.items()
            for note in variants
            if name in note["tables"]
        }
    )


@functools.cache
def table(name: str) -> tuple[Row, ...]:
    """The rows of a table in printed order, typed as ``columns.json`` says.

    Raises ValueError for a table that does not exist, and for a cell that does not fit its column.
    """
    kinds = columns(name)
    rows = []
    for cells in read_cells(name):
        row_id = cells.get("cell_id", cells["row_id"])
        values = {}
        for column, text in cells.items():
            try:
                values[column] = parse(text, kinds[column].type)
            except ValueError as error:
                raise ValueError(f"{name}.csv, row {row_id}, column {column}: {error}") from error
        rows.append(Row(row_id, name, _place(name, values), MappingProxyType(values)))
    return tuple(rows)


def _place(name: str, values: Mapping[str, Scalar]) -> str:
    title, label = PLACES[name]
    optional = {
        "more_data": "" if values.get("extra_data") in (None, "no_extra", "IN-1K") else f", {values['extra_data']}",
        "frames": f" {values['input_frames']} frames" if values.get("input_frames") else "",
        "masked": ", masked pretraining" if values.get("masked_pretraining") else "",
    }
    return f"{title}, {label.format(**optional, **values)}"


@functools.cache
def _by_id() -> dict[str, Row]:
    return {row.id: row for name in PLACES for row in table(name)}


def rows(row_id: str) -> tuple[Row, ...]:
    """All rows of an id: the row itself, or every part of a printed row that a file spreads (Table 8: one per data set).

    Raises ValueError, naming the nearest ids, where there is none.
    """
    known = _by_id()
    if row_id in known:
        return (known[row_id],)
    parts = tuple(row for row in known.values() if row.values["row_id"] == row_id)
    if not parts:
        raise unknown("row", row_id, [*known, *(str(row.values["row_id"]) for row in known.values())])
    return parts


def row(row_id: str) -> Row:
    """The row of an id; ValueError where there is none, or where a file spreads it over several (see :func:`rows`)."""
    found = rows(row_id)
    if len(found) > 1:
        raise ValueError(f"row {row_id!r} is spread over {len(found)}; name one of {', '.join(part.id for part in found)}")
    return found[0]


def value(row_id: str, column: str) -> Value:
    """One cell with its place in the paper, such as "Table 3, VideoMamba-M 16x224".

    Raises ValueError for an unknown row or column, and for an empty cell.
    """
    found = row(row_id)
    if column not in found.values:
        raise ValueError(f"{found.table} has no column {column!r}; it has {', '.join(found.values)}")
    content = found.values[column]
    if content is None:
        raise ValueError(f"{column} of {row_id} ({found.place}) is not printed in the paper, or does not apply there")
    return Value(content, row_id, column, found.place, columns(found.table)[column].origin)


@functools.cache
def _ledger() -> tuple[Erratum, ...]:
    return tuple(
        Erratum(
            **{name: line[name] for name in ("id", "place", "kind", "what", "evidence", "confidence")},
            where=split(line["where"]),
            basis=split(line["basis"]),
            uncomputed=line["uncomputed"] or None,
        )
        for line in read_cells("errata")
    )


def errata(row_id: str | None = None) -> tuple[Erratum, ...]:
    """The ledger, all of it or what touches a row (or a part of it); ValueError for an unknown row."""
    if row_id is None:
        return _ledger()
    names = {name for found in rows(row_id) for name in (found.id, found.values["row_id"])}
    return tuple(entry for entry in _ledger() if names.intersection(entry.where))


@functools.cache
def public(erratum_id: str) -> Mapping[tuple[str, str], float]:
    """What public lists and released code say where an erratum rests on it, by row id ("" for none) and column.

    ``public.csv`` names the source of each number. ValueError for an erratum without such numbers.
    """
    lines = read_cells("public")
    found = {(line["row_id"], line["column"]): float(line["value"]) for line in lines if line["erratum"] == erratum_id}
    if not found:
        raise unknown("erratum with public numbers", erratum_id, [line["erratum"] for line in lines])
    return MappingProxyType(found)
