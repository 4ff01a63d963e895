"""Every check holds on what is printed, and no longer does once the number thought to be right is printed instead."""

from decimal import Decimal

import pytest

from vmrepro.paper import errata_checks, reference
from vmrepro.paper.errata_checks import CHECKS, check, possible
from vmrepro.paper.printed import ids

OWN = [row for table in ("table2", "table3", "table4") for row in ids(table, is_ours=True)]
BREAKFAST = {(f"t6_{row:02}", "breakfast_top1"): 94.6 for row in range(8, 16)}  # 336 of 355
LVU = {"relation": 61.90, "speak": 40.30, "scene": 70.93, "genre": 65.22, "year": 48.25}  # 26/42, 81/201, 61/86, 422/647, 69/143
# What the paper would print if the suspicion were wrong.
RIGHT = {
    "E01": {("t3_21", "flops_g"): 795.0},
    "E02": {("t3_05", "flops_g"): 282.0},
    "E03": {("t3_07", "flops_g"): 170.0},
    "E04": {("t3_15", "flops_g"): 1185.0},
    "E05": {("t3_14", "input_frames"): 32, ("t3_14", "input_size"): 320},
    "E06": {("t4_11", "input_size"): 448},
    "E08": {("t3_29", "views_total"): 12},
    "E09": {(row, "views_total"): 6 for row in ("t4_20", "t4_21", "t4_22")},
    "E10": {("t2_27", "params_m"): 74},
    "E11": {("t2_14", "top1"): 80.8},
    "E12": {("t2_04", "method_printed"): "Swin-T"},
    "E13": {("t2_27", "flops_g"): 83.3},
    "E14": {("t4_03", "top5"): 89.6},
    "E15": {("t8_10_msrvtt", "ref"): 40},
    "E16": {("f7a_07", "defined_in_section_3_2"): True},
    "E17": {("t6_03", "neck_type"): "Graph Conv."},
    "E18": {("t6_09", "coin_top1"): 94.5},
    "E20": {("t4_18", "top1"): 67.7},
    "E21": {("t4_27", "pretrain_epochs"): 200},
    "E22": {(row, "flops_g"): 1.3 * reference.row(row).values["flops_g"] for row in OWN},
    "E23": {**BREAKFAST, **{(f"t7_07_{task}", "value"): score for task, score in LVU.items()}},
    "E40": {("t5c_03", "mask_ratio"): 0.5},
    "E49": {("t2_25", "top1"): 82.6},
    "E55": {("t4_17", "params_m"): 25},
}
# Where the text is at fault: the constant of the check that stands for it.
RIGHT_IN_TEXT = {
    "E19": ("FRAMES", 1),
    "E24": ("SPEED_BATCH", 64),
    "E28": ("BATCH", 4096),
    "E29": ("DECAY", Decimal("0.1")),
    "E30": ("WARMUP", 20),
}


@pytest.mark.parametrize("erratum", CHECKS)
def test_a_check_holds_today(erratum):
    found = check(erratum)
    assert found.holds, found.computed
    assert any(letter.isdigit() for letter in found.computed) or erratum in ("E12", "E17")


@pytest.mark.parametrize("erratum", RIGHT)
def test_a_check_fails_once_the_right_number_is_printed(erratum, printed_otherwise):
    printed_otherwise(RIGHT[erratum])
    assert not check(erratum).holds


@pytest.mark.parametrize("erratum", RIGHT_IN_TEXT)
def test_a_check_fails_once_the_text_says_what_is_right(erratum, monkeypatch):
    monkeypatch.setattr(errata_checks, *RIGHT_IN_TEXT[erratum])
    assert not check(erratum).holds


def test_without_layer_decay_the_input_would_train(monkeypatch):
    monkeypatch.setattr(reference, "public", lambda erratum: {("", "layer_decay"): 1.0})
    assert not check("E36").holds


def test_every_check_has_been_seen_to_fail():
    assert {*RIGHT, *RIGHT_IN_TEXT, "E36"} == set(CHECKS)


def test_an_erratum_is_computed_or_says_why_not():
    for entry in reference.errata():
        assert (check(entry.id) is None) == (entry.uncomputed is not None) == (entry.id not in CHECKS)


def test_an_unknown_erratum_is_refused():
    with pytest.raises(ValueError, match="unknown erratum 'E99'; the nearest known: E"):
        check("E99")


def test_public_numbers_name_their_source():
    for line in reference.read_cells("public"):
        assert line["erratum"] in CHECKS
        assert line["source"]
        assert line["row_id"] == "" or reference.row(line["row_id"])


PUBLIC = [(line["erratum"], (line["row_id"], line["column"])) for line in reference.read_cells("public")]


@pytest.mark.parametrize(("erratum", "key"), PUBLIC, ids=str)
def test_a_check_depends_on_every_public_number_it_is_given(erratum, key, monkeypatch):
    before, facts = check(erratum), reference.public(erratum)
    monkeypatch.setattr(reference, "public", lambda name: {**facts, key: 13.0})
    assert check(erratum) != before


@pytest.mark.parametrize(
    ("score", "items", "fits"),
    [
        ("50.0", 2, True),
        ("33.3", 3, True),
        ("66.6", 3, True),
        ("66.7", 3, True),
        ("66.5", 3, False),
        ("62.50", 42, False),
        ("100.0", 7, True),
    ],
)
def test_a_score_is_a_share_of_the_items_rounded_or_cut(score, items, fits):
    assert possible(Decimal(score), items) == fits


def test_possible_scores_by_brute_force():
    tenths = {(2 * 1000 * right + 42) // 84 for right in range(43)} | {1000 * right // 42 for right in range(43)}
    assert {score for score in range(1001) if possible(Decimal(f"{score / 10:.1f}"), 42)} == tenths
