"""The tables for pasting: what is committed is what the package writes today, and it says what was printed."""

import io

import pandas as pd
import pytest

from vmrepro import paths
from vmrepro.paper import reference
from vmrepro.report import audit, export


@pytest.mark.parametrize("table", reference.tables())
def test_committed_files_are_todays(table):
    folder = paths.root() / "figures" / table
    assert (folder / f"{table}.md").read_text() == export.markdown(table)
    assert (folder / f"{table}.tex").read_text() == export.latex(table)
    assert (folder / f"{table}.csv").read_text() == export.csv(table)


def test_files_are_written_where_figures_go(figure_folder):
    written = export.write("table5c")
    assert [path.relative_to(figure_folder).as_posix() for path in written] == [
        f"table5c/table5c.{s}" for s in ("md", "csv", "tex")
    ]
    lines = pd.read_csv(io.StringIO(written[1].read_text()))
    assert list(lines["row"]) == ["t5c_01", "t5c_02", "t5c_03", "t5c_04"]
    assert lines["mask ratio (paper)"].tolist() == [0.5, 0.65, 0.8, 0.9]


@pytest.mark.parametrize("table", reference.tables())
def test_printed_digits_stay(table):
    texts = export.as_text(table)
    for name, cells in ((name, [line[name] for line in reference.read_cells(table)]) for name in audit.shown(table)):
        heading = f"{audit.PRINTED[name]} (paper)"
        assert texts[heading].tolist() == cells if any(cells) else heading not in texts


def test_markdown_has_as_many_cells_in_every_line():
    body = [line for line in export.markdown("table3").splitlines() if line.startswith("|")]
    assert len(body) == 2 + 33
    assert {line.count("|") for line in body} == {body[0].count("|")}
    assert "| 28.0 |" in export.markdown("table2")


def test_latex_is_escaped_and_whole():
    lines = export.latex("table2").splitlines()
    assert lines[1].startswith(r"\begin{tabular}{l")
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 1 + 27
    columns = len(lines[1].partition("}{")[2].rstrip("}"))
    assert {line.count(" & ") + 1 for line in rows} == {columns}
    assert r"within 3 \%" in export.latex("table2")


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="the nearest known"):
        export.write("table9")
