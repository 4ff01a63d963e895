"""Printed numbers that would turn a verdict around do so."""

import pytest

from vmrepro.paper.own_numbers import finding


@pytest.mark.parametrize(
    ("claim", "cells", "verdict"),
    [
        ("C06", {("t3_18", "flops_g"): 402.0}, "contradicted"),
        ("C07", {("t3_21", "flops_g"): 795.0}, "supported"),
        ("C08", {("t2_15", "flops_g"): 51.5}, "contradicted"),
        ("C09", {(f"t3_{row}", "flops_total_g"): 9000.0 for row in range(18, 25)}, "contradicted"),
        ("C10", {("t3_24", "flops_total_g"): 7000.0}, "supported"),
        ("C13", {("t2_14", "params_m"): 120}, "partly supported"),
        ("C16", {("t2_17", "params_m"): 6}, "partly supported"),
        ("C18", {("t3_13", "params_m"): 87}, "contradicted"),
        ("C23", {("t2_25", "top1"): 81.2}, "contradicted"),
        ("C29", {("t2_14", "top1"): 80.8}, "supported"),
        ("C30", {("t2_11", "params_m"): 70}, "partly supported"),
        ("C31", {("t2_16", "top1"): 82.8}, "partly supported"),
        ("C32", {("t2_25", "top1"): 84.0}, "supported"),
        ("C33", {("t2_27", "top1"): 83.9}, "contradicted"),
        ("C34", {("t2_27", "params_m"): 74}, "supported"),
        ("C35", {("t2_24", "top1"): 83.2}, "partly supported"),
        ("C36", {("t2_26", "top1"): 83.2}, "partly supported"),
        ("C37", {("t2_12", "top1"): 77.0}, "partly supported"),
        ("C38", {("t2_10", "flops_g"): 8.7}, "contradicted"),
    ],
)
def test_a_verdict_follows_the_table(printed_otherwise, claim, cells, verdict):
    assert finding(claim).verdict != verdict
    printed_otherwise(cells)
    assert finding(claim).verdict == verdict
