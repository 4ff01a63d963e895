"""The transcription is complete, typed and untouched, and every way to ask wrongly is answered."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from vmrepro.paper import reference

# Of what was checked by hand, cell by cell. A change here is meant: check the cell, then write the new digest down.
DIGESTS = json.loads((Path(__file__).parent / "digests.json").read_text())
EVERY_ROW = [row for name in reference.tables() for row in reference.table(name)]


def changed(folder: Path) -> list[str]:
    """The files whose bytes are not those that were checked."""
    return [name for name, digest in DIGESTS.items() if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest]


def raw(name: str) -> list[dict[str, str]]:
    with (reference.FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_are_as_transcribed():
    assert set(DIGESTS) == {file.name for file in reference.FOLDER.glob("*.csv")}
    assert changed(reference.FOLDER) == []


def test_one_changed_cell_is_noticed(tmp_path):
    folder = shutil.copytree(reference.FOLDER, tmp_path / "paper")
    file = folder / "table2.csv"
    file.write_text(file.read_text().replace("82.8", "82.9"))
    assert changed(folder) == ["table2.csv"]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *[("table1", 4), ("table2", 27), ("table3", 33), ("table4", 29), ("fig7a", 7), ("table5a", 5), ("table5b", 4)],
        *[("table5c", 4), ("table5d", 4), ("table6", 15), ("table7", 7), ("table7_long", 63), ("table8", 80)],
    ],
)
def test_every_cell_comes_back_typed(name, count):
    rows, lines = reference.table(name), raw(name)
    assert len(rows) == len(lines) == count
    for row, line in zip(rows, lines, strict=True):
        assert list(row.values) == list(line)
        for column, text in line.items():
            value, kind = row.values[column], reference.columns(name)[column].type
            if text == "":
                assert value is None
            else:
                assert type(value).__name__ == kind
                same = {"str": str, "bool": lambda v: str(v).lower(), "int": str, "float": repr}[kind](value)
                assert same == text or (kind == "float" and Decimal(same) == Decimal(text))


def test_no_number_is_read_as_text():
    def is_text(cell: str) -> bool:
        return cell not in ("true", "false") and not cell.replace(".", "", 1).isdecimal()

    for name in reference.tables():
        for column in reference.columns(name).values():
            filled = [cells[column.name] for cells in raw(name) if cells[column.name]]
            assert (column.type == "str") == all(is_text(cell) for cell in filled), (name, column.name)


def test_every_column_has_one_note():
    notes = json.loads((reference.FOLDER / "columns.json").read_text())
    described = [(name, column) for column, variants in notes.items() for note in variants for name in note["tables"]]
    assert sorted(described) == sorted((name, column) for name in reference.tables() for column in raw(name)[0])
    for name in reference.tables():
        for column in reference.columns(name).values():
            assert column.origin in ("printed", "inferred", "derived")
            assert column.meaning


def test_ids_and_places_are_unique():
    assert len({row.id for row in EVERY_ROW}) == len(EVERY_ROW) == 282
    assert len({row.place for row in EVERY_ROW}) == len(EVERY_ROW)


@pytest.mark.parametrize(
    ("row_id", "place"),
    [
        ("t1_04", "Table 1, VideoMamba-B"),
        ("t2_25", "Table 2, VideoMamba-M 224"),
        ("t3_05", "Table 3, Swin-B 32x224"),
        ("t3_06", "Table 3, Swin-B 32x224, IN-21K"),
        ("t3_22", "Table 3, VideoMamba-M 16x224"),
        ("t3_31", "Table 3, VideoMamba-M 16x224, CLIP-400M"),
        ("t5a_03", "Table 5a, Clip-Row masking"),
        ("t6_04", "Table 6, Distant Supervision on TimeSformer, IN-21K+HTM"),
        ("t6_15", "Table 6, VideoMamba on VideoMamba-M 64 frames, K400, masked pretraining"),
        ("t7_07_like", "Table 7, VideoMamba, like"),
        ("t8_16_msvd", "Table 8, VideoMamba 25M, MSVD"),
    ],
)
def test_a_row_knows_its_place(row_id, place):
    assert reference.row(row_id).place == place


def test_a_value_carries_its_place_and_origin():
    assert reference.value("t3_22", "top1") == reference.Value(81.9, "t3_22", "top1", "Table 3, VideoMamba-M 16x224", "printed")
    assert reference.value("t3_22", "views_total").origin == "derived"
    assert reference.value("t2_25", "self_distillation").value is True
    assert reference.value("f7a_01", "input_frames").origin == "inferred"


def test_rows_cannot_be_changed():
    with pytest.raises(TypeError):
        reference.row("t2_25").values["top1"] = 90.0


def test_a_spread_row_is_found_by_its_parts():
    assert [row.values["dataset"] for row in reference.rows("t8_06")] == ["MSRVTT", "DiDeMo", "ActivityNet", "LSMDC", "MSVD"]
    assert [row.table for row in reference.rows("t7_07")] == ["table7"]
    with pytest.raises(ValueError, match=r"'t8_06' is spread over 5; name one of t8_06_msrvtt, .*t8_06_msvd"):
        reference.row("t8_06")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: reference.row("t2_52"), r"unknown row 't2_52'; the nearest known: .*t2_25"),
        (lambda: reference.rows("t8_61"), r"unknown row 't8_61'; the nearest known: .*t8_(01|16)"),
        (lambda: reference.table("tabel2"), r"unknown table 'tabel2'; the nearest known: .*table2"),
        (lambda: reference.columns("claims"), r"unknown table 'claims'"),
        (lambda: reference.value("t2_25", "top5"), r"table2 has no column 'top5'; it has row_id, .*flops_g, top1, is_ours"),
        (lambda: reference.value("t2_16", "flops_g"), r"flops_g of t2_16 \(Table 2, S4ND-ViT-B 224\) is not printed"),
        (lambda: reference.errata("t9_01"), r"unknown row 't9_01'"),
    ],
)
def test_wrong_questions_are_answered(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("24,192", "24,19x2", r"table1.csv, row t1_01, column dim: .*'19x2'"),
        (",true,true\nt1_02", ",true,yes\nt1_02", r"row t1_01, column kept_in_paper: expected true or false, got 'yes'"),
        ("24,192", "24,192,1", r"table1.csv: row 1 does not have as many cells"),
        ("24,192", "192", r"table1.csv: row 1 does not have as many cells"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, monkeypatch, old, new, message):
    text = (reference.FOLDER / "table1.csv").read_text()
    assert old in text
    (tmp_path / "table1.csv").write_text(text.replace(old, new))
    shutil.copy(reference.FOLDER / "columns.json", tmp_path)
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=message):
        reference.table.__wrapped__("table1")


def test_errata_and_marks_in_the_tables_agree():
    """The tables were marked when the ledger ended with E24; E22, on all own rows, was not marked."""
    marked = {(entry, row.id) for row in EVERY_ROW for entry in reference.split(row.values.get("suspect_ids") or "")}
    first = [entry for entry in reference.errata() if entry.id <= "E24"]
    assert {(entry.id, row_id) for entry in first for row_id in entry.where if entry.id != "E22"} == marked
    own = {row.id for name in ("table2", "table3", "table4") for row in reference.table(name) if row.values["is_ours"]}
    assert {row_id for entry in first if entry.id == "E22" for row_id in entry.where} == own


def test_the_ledger_is_complete():
    ledger = reference.errata()
    assert [entry.id for entry in ledger] == [f"E{number:02d}" for number in range(1, 56)]
    assert len({entry.what for entry in ledger}) == len(ledger)
    assert {entry.kind for entry in ledger} == set(reference.KINDS)
    for entry in ledger:
        assert all(reference.rows(row_id) for row_id in entry.where)
        assert entry.place
        assert entry.what
        assert entry.evidence
        assert entry.basis
        assert set(entry.basis) <= {"paper", "public", "memory"}
        assert entry.confidence in ("high", "medium", "low")


@pytest.mark.parametrize(
    ("row_id", "entries"),
    [
        ("t3_21", ["E01", "E22"]),
        ("t2_27", ["E10", "E13", "E22", "E33"]),
        ("t8_06", ["E20", "E47"]),
        ("t8_06_msrvtt", ["E20", "E47"]),
        ("t8_06_didemo", ["E47"]),
        ("t8_05_didemo", []),
        ("t7_07_relation", ["E23", "E48"]),
        ("t4_17", ["E22", "E55"]),
        ("t1_01", []),
    ],
)
def test_errata_of_a_row(row_id, entries):
    assert [entry.id for entry in reference.errata(row_id)] == entries


def test_public_numbers_of_an_erratum():
    assert reference.public("E20")["t8_16_msvd", "r1"] == 42.0
    with pytest.raises(ValueError, match="unknown erratum with public numbers 'E03'; the nearest known: "):
        reference.public("E03")


def test_derived_columns_follow_from_printed_ones():
    videos = [row.values for name in ("table3", "table4") for row in reference.table(name)]
    for cells in videos:
        assert cells["views_total"] == cells["views_spatial"] * cells["views_temporal"]
        assert cells["flops_total_g"] == cells["flops_g"] * cells["views_total"]
    for part in reference.table("table7_long"):
        cells = part.values
        suffix = "acc_up" if cells["better_direction"] == "up" else "mse_down"
        assert cells["value"] == reference.row(cells["row_id"]).values[f"{cells['category']}_{cells['task']}_{suffix}"]


def test_import_is_light():
    code = (
        "import sys, vmrepro.paper.reference as r, vmrepro.paper.claims as c; r.row('t2_25'); c.claims();"
        "print(sorted({'torch', 'pandas', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    root = reference.FOLDER.parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
