"""Printed numbers that would turn a verdict around do so."""

import pytest

from vmrepro.paper.own_numbers import finding


@pytest.mark.parametrize(
    ("claim", "cells", "verdict"),
    [
        ("C43", {("t4_12", "flops_total_g"): 3000.0}, "partly supported"),
        ("C44", {("t3_24", "extra_data"): "IN-21K"}, "partly supported"),
        ("C45", {("t3_11", "top1"): 83.9}, "contradicted"),
        ("C47", {("t4_04", "top1"): 68.3}, "supported"),
        ("C49", {("t4_22", "top1"): 68.1}, "partly supported"),
        ("C50", {("t3_33", "top1"): 83.9}, "partly supported"),
        ("C51", {("t4_19", "extra_data"): "K400"}, "contradicted"),
        ("C52", {("t3_33", "top1"): 85.8}, "supported"),
        ("C53", {("t4_22", "top1"): 70.6}, "supported"),
        ("C57", {("t4_28", "top1"): 68.3}, "partly supported"),
        ("C58", {("t4_29", "top1"): 67.0}, "contradicted"),
        ("C59", {("t3_30", "top1"): 85.8}, "contradicted"),
        ("C60", {("t4_28", "top1"): 72.0}, "partly supported"),
        ("C61", {("f7a_07", "top1"): 65.0}, "supported"),
        ("C62", {("f7a_03", "top1"): 62.0}, "contradicted"),
        ("C64", {("f7a_05", "top1"): 62.0}, "partly supported"),
        ("C67", {("t3_20", "top1"): 80.8}, "partly supported"),
        ("C69", {("t5a_04", "top1"): 67.0}, "partly supported"),
        ("C72", {("t5a_03", "top1"): 68.6}, "contradicted"),
        ("C74", {("t5b_03", "top1"): 68.4}, "partly supported"),
        ("C75", {("t5c_02", "top1"): 68.5}, "partly supported"),
        ("C76", {("t5d_02", "top1"): 68.4}, "partly supported"),
        ("C77", {("t5b_01", "top1"): 68.4}, "partly supported"),
    ],
)
def test_a_verdict_follows_the_table(printed_otherwise, claim, cells, verdict):
    assert finding(claim).verdict != verdict
    printed_otherwise(cells)
    assert finding(claim).verdict == verdict
