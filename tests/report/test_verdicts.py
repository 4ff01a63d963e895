import math

import pytest

from vmrepro.paper.claims import claim
from vmrepro.report.verdicts import Contrast, paired, rule, rule_each

BELOW = Contrast("C21", "fig6_b", "fig6_s")  # b < s
LEVEL = Contrast("C22", "fig6_m", "fig6_s")  # m about level with s


def finals(left: list[float], right: list[float], contrast: Contrast = BELOW) -> dict:
    return {contrast.left: dict(enumerate(left)), contrast.right: dict(enumerate(right))}


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        ([80.0, 80.1, 79.9], [82.0, 82.1, 82.0], "supported"),
        ([82.0, 82.1, 82.0], [80.0, 80.1, 79.9], "contradicted"),
        ([80.0, 84.0, 82.0], [82.0, 82.1, 82.0], "within seed spread"),
    ],
)
def test_a_claim_of_order_is_judged_by_the_paired_differences(left, right, verdict):
    ruling = rule(BELOW, finals(left, right), "mini")
    assert ruling.verdict == verdict
    assert ruling.difference == pytest.approx(sum(left) / 3 - sum(right) / 3)
    assert ruling.low < ruling.difference < ruling.high
    assert ruling.statement == claim("C21").statement


def test_level_means_within_one_point():
    assert rule(LEVEL, finals([80.5, 80.6, 80.5], [80.0, 80.0, 80.0], LEVEL), "mini").verdict == "supported"
    assert rule(LEVEL, finals([83.5, 83.6, 83.5], [80.0, 80.0, 80.0], LEVEL), "mini").verdict == "contradicted"


def test_smoke_judges_nothing_however_clear():
    assert rule(BELOW, finals([10.0, 10.1, 10.2], [90.0, 90.1, 90.2]), "smoke").verdict == "not testable at this tier"


def test_two_seeds_or_none_are_not_a_run():
    assert rule(BELOW, finals([80.0, 80.1], [82.0, 82.1]), "mini").verdict == "not run"
    empty = rule(BELOW, {}, "paper")
    assert (empty.verdict, empty.difference, empty.seeds) == ("not run", None, 0)


def test_only_seeds_that_both_sides_ran_are_compared():
    values = {"fig6_b": {0: 80.0, 1: 80.1, 2: 79.9, 3: 0.0}, "fig6_s": {0: 82.0, 1: 82.1, 2: 82.0, 7: 0.0}}
    ruling = rule(BELOW, values, "mini")
    assert (ruling.seeds, ruling.verdict) == (3, "supported")


def around(mean: float, half: float) -> list[float]:
    """Three differences whose 95 % interval is mean ± half."""
    step = half * math.sqrt(3) / 4.302652729911275
    return [mean - step, mean, mean + step]


def ruled(claim_id: str, *differences: list[float], tier="mini"):
    return rule_each(claim_id, "asked", {f"d{i}": values for i, values in enumerate(differences)}, tier)


CLEAR, OPEN, AGAINST, JUST_AGAINST = around(3, 1), around(0.5, 1), around(-3, 0.1), around(-1, 0.9)


@pytest.mark.parametrize(
    ("differences", "verdict", "decisive"),
    [
        ((CLEAR, CLEAR), "supported", "d0"),
        ((CLEAR, around(2, 1.9), CLEAR), "supported", "d1"),  # no widening where all must hold
        ((CLEAR, OPEN, CLEAR), "within seed spread", "d1"),
        ((CLEAR, AGAINST, OPEN), "contradicted", "d1"),
        ((CLEAR, JUST_AGAINST, CLEAR), "within seed spread", "d1"),  # one of three by chance
        ((around(-1, 9), AGAINST), "contradicted", "d1"),  # not the one that is lowest by its spread alone
        ((JUST_AGAINST,), "contradicted", "asked"),
        (([0.0, 0.0, 0.0], CLEAR), "within seed spread", "d0"),
    ],
)
def test_all_differences_must_hold_and_one_that_fails_must_do_so_among_many(differences, verdict, decisive):
    ruling = ruled("C61", *differences)  # each above zero
    assert ruling.verdict == verdict
    assert decisive in ruling.comparison
    assert ruling.low <= ruling.difference <= ruling.high
    assert (ruling.low <= 0 <= ruling.high) == (verdict == "within seed spread")
    mirrored = ruled("C62", *([-value for value in values] for values in differences))  # each below zero
    assert (mirrored.verdict, mirrored.comparison) == (verdict, ruling.comparison)
    assert (mirrored.low, mirrored.high) == (-ruling.high, -ruling.low)
    opposite = {"supported": "contradicted", "contradicted": "supported"}
    assert ruled("C66", *differences).verdict == opposite.get(verdict, verdict)  # not always above zero


def test_the_interval_shown_is_the_one_that_decided():
    three = ruled("C61", CLEAR, OPEN, CLEAR)
    assert three.high - three.low > 3  # ± 1 by itself, widened for three
    assert three.comparison == "asked; decisive: d1 (95 % for all 3 at once)"
    plain = ruled("C61", CLEAR, CLEAR)
    assert (plain.low, plain.high) == (pytest.approx(2), pytest.approx(4))
    assert plain.comparison == "asked; decisive: d0"


def test_between_counts_exact_equality_as_inside_and_a_tie_in_the_noise_as_open():
    assert ruled("C64", [0.0, 0.0, 0.0], CLEAR).verdict == "supported"
    assert ruled("C64", around(0, 0.1), CLEAR).verdict == "within seed spread"
    assert ruled("C64", AGAINST, CLEAR).verdict == "contradicted"


def test_several_differences_follow_the_rules_of_one():
    assert ruled("C61", CLEAR, CLEAR, tier="smoke").verdict == "not testable at this tier"
    assert (ruled("C61").verdict, ruled("C61").seeds, ruled("C61").difference) == ("not run", 0, None)
    short = ruled("C61", CLEAR, CLEAR[:2])
    assert (short.verdict, short.seeds, short.comparison) == ("not run", 2, "asked")


def test_pairs_are_of_seeds_that_both_ran():
    assert paired({"a": {0: 3.0, 1: 5.0, 4: 9.0}, "b": {1: 1.0, 0: 1.0}}, "a", "b") == [2.0, 4.0]
    assert paired({}, "a", "b") == []
