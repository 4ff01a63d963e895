import pandas as pd

from vmrepro.report.site_grid import GAP, common, flatten, grid


def column(shown, name: str) -> list[str]:
    at = [found.name for found in shown.columns].index(name)
    return [row.cells[at] for row in shown.rows]


def test_floats_of_a_column_share_their_decimals_and_gaps_are_dashes():
    frame = pd.DataFrame({"a": [1.0, 2.25, None], "b": [1 / 3, 2.0, 3.0], "c": [1, 2, 3], "d": ["82.80", "", "4"]})
    shown = grid(frame)
    assert column(shown, "a") == ["1.00", "2.25", GAP]
    assert column(shown, "b") == ["0.333", "2.000", "3.000"]
    assert column(shown, "c") == ["1", "2", "3"]
    assert column(shown, "d") == ["82.80", GAP, "4"]  # as printed
    assert {found.kind for found in shown.columns} == {"number"}


def test_kinds_of_columns():
    frame = pd.DataFrame({"name": ["x", "12"], "verdict": ["supported", None], "empty": [None, None], "flag": [True, False]})
    assert [found.kind for found in grid(frame).columns] == ["text", "verdict", "text", "text"]
    assert column(grid(frame), "flag") == ["yes", "no"]


def test_lines_have_their_ids_and_own_ones_are_marked():
    shown = grid(pd.DataFrame({"a": [1, 2]}), ["t1_01", "t1_02"], ["t1_02"])
    assert [(row.id, row.own) for row in shown.rows] == [("t1_01", False), ("t1_02", True)]


def test_runs_are_told_apart_by_what_differs_only():
    device = {"name": "H200", "tf32": False}
    runs = [
        {"commit": "c0ffee", "device": device, "seed": 0, "id": "a", "peak_memory_bytes": 3 * 2**30, "note": None},
        {"commit": "c0ffee", "device": device, "seed": 1, "id": "b", "peak_memory_bytes": 2**29, "note": None, "extra": 7},
    ]
    facts, shown = common(runs)
    assert facts == {"commit": "c0ffee", "device name": "H200", "device tf32": "no", "note": GAP}
    assert [found.name for found in shown.columns] == ["id", "seed", "peak memory GiB", "extra"]
    assert [row.cells for row in shown.rows] == [("a", "0", "3.0", GAP), ("b", "1", "0.5", "7")]
    assert [row.id for row in shown.rows] == ["a", "b"]


def test_one_run_shows_its_id():
    facts, shown = common([{"id": "a", "seed": 0}])
    assert facts == {"seed": "0"}
    assert shown.rows[0].cells == ("a",)


def test_nested_names_are_joined():
    assert flatten({"a": {"b_c": 1, "d": {"e": 2}}}) == {"a b c": 1, "a d e": 2}
