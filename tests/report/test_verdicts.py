import pytest

from vmrepro.paper.claims import claim
from vmrepro.report.verdicts import Contrast, rule

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
