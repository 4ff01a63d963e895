"""The tables as Markdown, CSV and LaTeX for people who paste them: figures/<table>/<table>.md, .csv and .tex."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vmrepro import paths, store
from vmrepro.paper import reference
from vmrepro.report import audit

# What a table in a text has no room for; the CSV file holds it.
LEFT_OUT = ("row", "command", "claims", "result (ours)")
TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "×": r"$\times$", **{mark: f"\\{mark}" for mark in "&%$#_{}"}}


def as_text(table: str) -> pd.DataFrame:
    """The lines of ``audit.frame`` as text: printed cells as printed, ours to two decimals, empty columns left out."""
    full = audit.frame(table)
    texts = pd.DataFrame(reference.read_cells(table))
    for name in audit.shown(table):
        full[f"{audit.PRINTED[name]} (paper)"] = texts[name].tolist()
    kept = full.drop(columns=list(LEFT_OUT)).apply(lambda column: column.map(_cell))
    return kept.loc[:, (kept != "").any()]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.2f}"
    return "" if value is None else str(value)


def markdown(table: str) -> str:
    """The table in Markdown: title, lines, what the headings mean, and the notes of ``audit.notes``."""
    lines = as_text(table)
    meanings = audit.describe(table)
    rows = [list(lines.columns), ["---:" if _is_number(lines[name]) else "---" for name in lines], *lines.values.tolist()]
    body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    legend = "\n".join(f"- {name}: {meanings[name]}" for name in lines)
    notes = "\n".join(f"- {note}" for note in audit.notes(table))
    return f"# {title(table)}\n\n{body}\n\n## Columns\n\n{legend}\n" + (f"\n## Notes\n\n{notes}\n" if notes else "")


def title(table: str) -> str:
    """The name of a table in the paper, such as "Table 3"."""
    return reference.table(table)[0].place.partition(",")[0]


def csv(table: str) -> str:
    """The lines of ``audit.frame`` as they are, floats with six significant digits."""
    return audit.frame(table).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def latex(table: str) -> str:
    """The table as a LaTeX ``tabular`` with the rules of the booktabs package."""
    lines = as_text(table)
    kinds = "".join("r" if _is_number(lines[name]) else "l" for name in lines)
    rows = [" & ".join(map(_escaped, row)) + r" \\" for row in [list(lines.columns), *lines.values.tolist()]]
    head = f"% {title(table)} of arXiv 2403.06977 and our counts; needs \\usepackage{{booktabs}}"
    return "\n".join(
        [
            head,
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _is_number(cells: Sequence[str]) -> bool:
    return all(cell.replace(".", "", 1).lstrip("-").isdigit() for cell in cells if cell)


def _escaped(cell: str) -> str:
    return "".join(TEX.get(mark, mark) for mark in cell)


def write(table: str) -> list[Path]:
    """Write the three files of a table and return their paths; ValueError for a table that does not exist."""
    contents = {"md": markdown(table), "csv": csv(table), "tex": latex(table)}
    folder = paths.figures() / table
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{table}.{suffix}" for suffix in contents]
    for path, content in zip(written, contents.values(), strict=True):
        store.write_atomically(path, content)
    return written


def write_all() -> list[Path]:
    """Write the files of every table; their paths."""
    return [path for table in reference.tables() for path in write(table)]
