"""Printed numbers that would turn a verdict around do so."""

import pytest

from vmrepro.paper.own_numbers import finding


@pytest.mark.parametrize(
    ("claim", "cells", "verdict"),
    [
        ("C78", {("t6_05", "breakfast_top1"): 88.3}, "contradicted"),
        ("C79", {("t6_09", "coin_top1"): 94.5}, "supported"),
        ("C82", {("t6_09", "breakfast_top1"): 91.0}, "contradicted"),
        ("C83", {("t6_11", "coin_top1"): 90.0}, "partly supported"),
        ("C85", {("t6_12", "coin_top1"): 88.5}, "supported"),
        ("C86", {("t6_09", "breakfast_top1"): 94.4, ("t6_15", "breakfast_top1"): 98.0}, "supported"),
        ("C88", {("t6_14", "coin_top1"): 88.3}, "partly supported"),
        ("C89", {(f"t6_{row:02}", "coin_top1"): 90.1 for row in range(8, 16)}, "supported"),
        ("C90", {("t7_07_like", "value"): 0.24}, "supported"),
        ("C91", {("t7_07_like", "value"): 0.25, ("t7_07_speak", "value"): 41.0}, "supported"),
        ("C92", {("t8_06_msvd", "r10"): 76.1}, "partly supported"),
        ("C94", {("t8_16_msvd", "r5"): 71.8}, "supported"),
        ("C95", {("t8_06_lsmdc", "r5"): 31.0}, "contradicted"),
        ("C98", {("t8_15_didemo", "r1"): 36.0}, "partly supported"),
    ],
)
def test_a_verdict_follows_the_table(printed_otherwise, claim, cells, verdict):
    assert finding(claim).verdict != verdict
    printed_otherwise(cells)
    assert finding(claim).verdict == verdict


def test_comparable_is_within_five_percent(printed_otherwise):
    for speak, verdict in ((38.76, "supported"), (38.74, "partly supported")):  # 40.79 less 5 % is 38.7505
        printed_otherwise({("t7_07_like", "value"): 0.23, ("t7_07_speak", "value"): speak})
        assert finding("C90").verdict == verdict
