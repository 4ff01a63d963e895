"""The specs behind the printed rows, against counts of released models and the transcription itself."""

from dataclasses import replace

import pytest

from vmrepro.paper import reference
from vmrepro.specs import cost
from vmrepro.specs.rows import ASSUMED, CLASSES, SCAN_TYPES, spec_of
from vmrepro.specs.schema import SCANS

# Exact counts of the released models, one a line of the public list: (parameters on Breakfast, on COIN).
TABLE6 = {
    "t6_08": (6_963_082, 6_995_892),
    "t6_09": (6_969_226, 7_002_036),
    "t6_10": (25_427_722, 25_493_172),
    "t6_11": (25_440_010, 25_505_460),
    "t6_12": (73_664_650, 73_762_740),
    "t6_15": (73_683_082, 73_781_172),
}
OWN = [row.id for name in reference.tables() for row in reference.table(name) if row.values.get("is_ours", True)]


def test_every_own_row_has_a_spec_and_no_other():
    with_spec = [row.id for name in reference.tables() for row in reference.table(name) if spec_of(row.id) is not None]
    assert with_spec == OWN
    assert len(OWN) == 4 + 34 + 7 + 17 + 8 + 1 + 9 + 15


@pytest.mark.parametrize("row_id", OWN)
def test_the_spec_is_what_the_row_prints(row_id):
    cells, spec = reference.row(row_id).values, spec_of(row_id)
    images = row_id.startswith(("t1", "t2"))
    assert (spec.num_frames is None) == images
    for column, ours in {
        "depth": spec.depth,
        "dim": spec.embed_dim,
        "input_size": spec.img_size,
        "input_frames": 1 if images else spec.num_frames,
    }.items():
        if column in cells:
            assert cells[column] == ours
    width = {"Ti": 192, "S": 384, "M": 576, "B": 768}
    if size := cells.get("model_size"):
        assert spec.embed_dim == width[size]


@pytest.mark.parametrize("row_id", TABLE6)
def test_table6_has_the_released_counts(row_id):
    breakfast = spec_of(row_id)
    coin = replace(breakfast, num_classes=CLASSES["COIN"])
    assert (cost.parameters(breakfast), cost.parameters(coin)) == TABLE6[row_id]


def test_a_task_of_lvu_has_its_own_classes():
    tasks = {row.values["task"]: spec_of(row.id).num_classes for row in reference.table("table7_long") if row.values["is_ours"]}
    assert tasks == {name: CLASSES[name] for name in tasks}
    assert len(tasks) == 9
    assert spec_of("t7_07") == spec_of("t7_07_relation")


def test_each_row_of_fig_7a_has_its_scan_order():
    assert tuple(spec_of(row.id).scan for row in reference.table("fig7a")) == SCANS
    assert set(SCAN_TYPES) == {row.values["scan_type"] for row in reference.table("fig7a")}
    same = {replace(spec_of(row.id), scan=SCANS[0]) for row in reference.table("fig7a")}
    assert same == {spec_of("f7a_01")}
    assert {spec_of(row_id).scan for row_id in OWN if not row_id.startswith("f7a")} == {SCANS[0]}


def test_what_retrieval_does_not_print():
    assert spec_of("t8_06") == spec_of("t8_16_msvd")
    assert (spec_of("t8_06").embed_dim, spec_of("t8_06").num_frames, spec_of("t8_06").num_classes) == (576, 8, 0)


def test_nothing_printed_is_assumed():
    for name, assumed in ASSUMED.items():
        columns = reference.columns(name)
        # Table 8 prints data sets that are retrieved from, not classes to tell apart.
        printed = {column for column in assumed if column in columns and columns[column].origin == "printed"}
        assert printed <= ({"dataset"} if name == "table8" else set())


def test_an_unknown_row_is_refused():
    with pytest.raises(ValueError, match="the nearest known"):
        spec_of("t3_99")
