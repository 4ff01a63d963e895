"""The tables with some cells changed, as if the paper had printed something else."""

from dataclasses import replace

import pytest

from vmrepro.paper import reference


@pytest.fixture
def printed_otherwise(monkeypatch):
    """A function that replaces cells, given by row id and column, for the rest of a test."""

    def change(cells: dict[tuple[str, str], object]) -> None:
        rows = dict(reference._by_id())
        for (row_id, column), value in cells.items():
            assert column in rows[row_id].values
            rows[row_id] = replace(rows[row_id], values={**rows[row_id].values, column: value})
        monkeypatch.setattr(reference, "_by_id", lambda: rows)
        monkeypatch.setattr(reference, "table", lambda name: tuple(row for row in rows.values() if row.table == name))

    return change
