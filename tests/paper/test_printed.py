from decimal import Decimal

import pytest

from vmrepro.paper import claims, printed
from vmrepro.paper.claims import Verdict


def a_claim(**changes):
    fields = {"lhs": "t2_25", "rhs": "t2_14", "margin": 1.0, "unit": "points", "rows": ("t2_25", "t2_14"), **changes}
    return type("AClaim", (), fields)()


def test_printed_numbers_are_exact():
    assert printed.cell("t2_25") == Decimal("82.8")
    assert printed.gap("t2_25", "t2_11") == Decimal("0.8") != Decimal(82.8 - 82.0)


def test_text_and_empty_cells_are_no_numbers():
    with pytest.raises(ValueError, match="method of t2_25 is 'VideoMamba-M', not a number"):
        printed.cell("t2_25", "method")
    with pytest.raises(ValueError, match="flops_g of t2_16"):
        printed.cell("t2_16", "flops_g")
    assert printed.text("t2_16", "flops_g") == ""


@pytest.mark.parametrize(("row_id", "tokens"), [("t2_25", 197), ("t3_24", 36865), ("t4_16", 5185)])
def test_tokens_are_patches_of_all_frames_and_one(row_id, tokens):
    assert printed.tokens(row_id) == tokens


def test_slope_is_one_for_proportional_cost(printed_otherwise):
    printed_otherwise({(row, "flops_g"): printed.tokens(row) / 10 for row in ("t2_19", "t2_20", "t2_21")})
    assert printed.slope(["t2_19", "t2_20", "t2_21"]) == pytest.approx(1.0)


def test_rows_are_split_into_ours_and_others_with_a_number():
    rows = ["t6_01", "t6_04", "t6_08"]
    assert printed.ours(rows) == ["t6_08"]
    assert printed.others(rows, "coin_top1") == ["t6_04"]
    assert printed.best(rows, "breakfast_top1") == "t6_08"
    assert printed.ids("fig7a", is_chosen=True) == ["f7a_01"]


@pytest.mark.parametrize(
    ("held", "verdict"), [([True, True], "supported"), ([True, False], "partly supported"), ([False], "contradicted")]
)
def test_parts_are_graded(held, verdict):
    assert printed.graded(held) == verdict


@pytest.mark.parametrize(("gaps", "verdict"), [("1 2", "supported"), ("0 2", "partly supported"), ("-1 2", "contradicted")])
def test_a_superlative_allows_no_better_one(gaps, verdict):
    assert printed.superlative(map(Decimal, gaps.split())) == verdict


@pytest.mark.parametrize(("margin", "verdict"), [(1.0, "supported"), (2.0, "contradicted"), (1.1, "contradicted")])
def test_a_stated_gap_is_met_to_the_digit(margin, verdict):
    found = printed.stated_gap()(a_claim(margin=margin))
    assert (found.verdict, found.number) == (verdict, 1.0)


@pytest.mark.parametrize(("rhs", "verdict"), [("82.8", "supported"), ("82.9", "contradicted")])
def test_a_stated_value_is_met_to_the_digit(rhs, verdict):
    assert printed.stated_value()(a_claim(rows=("t2_25",), rhs=rhs)).verdict == verdict


def test_the_least_favourable_gap_is_named():
    found = printed.each_above([("t2_25", "t2_14"), ("t2_25", "t2_11"), ("t2_25", "t2_05")])(a_claim())
    assert (found.verdict, found.number) == (Verdict.PARTLY_SUPPORTED, -0.2)
    assert found.comparison == "2 of 3 hold; least -0.2 (t2_25 82.8, t2_05 83.0)"
    below = printed.each_above([("t2_14", "t2_25"), ("t2_11", "t2_25")], sign=-1)(a_claim())
    assert (below.verdict, below.number) == (Verdict.SUPPORTED, -0.8)


def test_an_extreme_is_against_the_other_rows_of_the_claim(printed_otherwise):
    rows = ("t2_25", "t2_11", "t2_14")
    assert printed.extreme("t2_25")(a_claim(rows=rows)).number == 0.8
    printed_otherwise({("t2_14", "top1"): 82.8})
    assert printed.extreme("t2_25")(a_claim(rows=rows)).verdict == Verdict.PARTLY_SUPPORTED


def test_level_allows_the_margin_and_no_more():
    assert printed.level([("t2_25", "t2_14")], "1.0")(a_claim()).verdict == Verdict.SUPPORTED
    assert printed.level([("t2_25", "t2_14")], "0.9")(a_claim()).verdict == Verdict.CONTRADICTED


def test_what_does_not_decide_is_shown_beside():
    found = printed.level([("t2_25", "t2_14")], "1.0", also=[("t2_26", "t2_15")])(a_claim())
    assert found.comparison.endswith("; beside: t2_26 - t2_15 +0.7")
    assert found.number == 1.0


def test_no_number_says_what_is_missing():
    found = printed.no_number("a figure")(a_claim())
    assert (found.verdict, found.number, found.comparison) == (Verdict.NO_NUMBER, None, "a figure")
    assert printed.chain("a", "b", "c") == [("a", "b"), ("b", "c")]
    assert claims.claim("C01").rows == ()
