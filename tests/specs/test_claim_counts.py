"""Counts judge what can be counted, and turn with the model they count."""

import json
from dataclasses import replace

import pytest

from vmrepro import paths
from vmrepro.paper import claims, reference
from vmrepro.specs import claim_counts, cost, rows
from vmrepro.specs.schema import ModelSpec

READ_OFF = {"C44", "C51", "C77"}  # analytic, but labels and printed numbers decide
VERDICTS = {
    **dict.fromkeys(("C06", "C07", "C08", "C09", "C12", "C16", "C18", "C20", "C25", "C30", "C43", "C71"), "supported"),
    **{"C10": "contradicted", "C11": "contradicted", "C13": "partly supported", "C34": "contradicted"},
}


def test_analytic_claims_are_counted_or_read_off():
    analytic = {claim.id for claim in claims.claims() if claim.test_scale == "analytic"}
    assert analytic - READ_OFF | {"C25"} == set(claim_counts.JUDGES)
    assert claim_counts.finding("C44") is None
    assert {claim: str(claim_counts.finding(claim).verdict) for claim in claim_counts.JUDGES} == VERDICTS
    with pytest.raises(ValueError, match="unknown claim 'C99'"):
        claim_counts.finding("C99")


@pytest.mark.parametrize(
    ("claim", "number"),
    [
        ("C07", 1.0),
        ("C08", 1.0704),  # log(55.484 / 17.563) / log(577 / 197)
        ("C12", 98 - 97.59844),
        ("C13", 7_148_008 / 5_717_416),
        ("C18", 35.453952),
        ("C20", 2.0),
        ("C30", 74.217448 - 86.567656),
        ("C34", 74.851048),
        ("C71", 12.4427),
    ],
)
def test_numbers_by_hand(claim, number):
    assert claim_counts.finding(claim).number == pytest.approx(number, abs=5e-5)


def test_the_scan_of_v2_is_counted_on_the_models_that_run():
    found, claim = claim_counts.finding("C20"), claims.claim("C20")
    assert [rows.spec_of(row).scan for row in claim.rows] == ["spatiotemporal_v1", "spatiotemporal_v2"]
    v1, v2 = (cost.flops_full(rows.spec_of(row)) for row in claim.rows)
    assert f"the whole of Ti then costs {v2 / v1:.2f} times as much" in found.comparison
    assert 1.3 < v2 / v1 < 1.5


def test_the_count_of_the_whole_model_is_the_one_that_plans_use():
    whole = cost.flops_full(rows.spec_of("t2_25"))
    assert claim_counts.finding("C11").number == pytest.approx(12.7e9 / whole)
    assert claim_counts.finding("C10").number == pytest.approx(12 * cost.flops_full(rows.spec_of("t3_24")) / 7130.2e9, rel=1e-4)


@pytest.mark.parametrize(
    ("claim", "change", "verdict"),
    [
        ("C12", {"d_state": 64}, "contradicted"),
        ("C13", {"depth": 96}, "contradicted"),
        ("C16", {"expand": 3}, "contradicted"),
        ("C30", {"expand": 4}, "contradicted"),
        ("C34", {"img_size": 224}, "supported"),
        ("C43", {"depth": 96}, "partly supported"),
    ],
)
def test_a_verdict_follows_the_model(monkeypatch, claim, change, verdict):
    real = rows.spec_of
    monkeypatch.setattr(claim_counts, "spec_of", lambda row_id: replace(real(row_id), **change))
    assert str(claim_counts.finding(claim).verdict) == verdict


def quadratic(spec: ModelSpec) -> int:
    return spec.length**2


@pytest.mark.parametrize(("claim", "verdict"), [("C06", "contradicted"), ("C07", "contradicted"), ("C08", "contradicted")])
def test_a_model_that_is_not_linear_would_be_seen(monkeypatch, claim, verdict):
    monkeypatch.setattr(cost, "flops_full", quadratic)
    assert str(claim_counts.finding(claim).verdict) == verdict


def test_what_would_turn_the_rest(monkeypatch):
    monkeypatch.setattr(claim_counts, "MARGINAL", 0.1)
    assert str(claim_counts.finding("C25").verdict) == "contradicted"
    monkeypatch.setattr(claim_counts, "VIEWS_L", 30)
    assert str(claim_counts.finding("C10").verdict) == "supported"
    monkeypatch.setattr(claim_counts, "VIEWS_L", 0.1)
    assert str(claim_counts.finding("C09").verdict) == "contradicted"


def test_public_numbers_are_those_of_the_recipes_and_of_the_count():
    recipes = json.loads((paths.PACKAGE / "specs" / "recipes.json").read_text())["recipes"]
    scripts = {"t2_19": "imagenet/videomamba_tiny/res224", "t2_22": "imagenet/videomamba_small/res224"}
    scripts["t2_25"] = "imagenet_distill/videomamba_middle/res224"
    for erratum in ("E28", "E29", "E30"):
        for (row_id, setting), value in reference.public(erratum).items():
            assert recipes[scripts[row_id]][setting] == value
    for (row_id, _), value in reference.public("E55").items():
        assert cost.parameters(rows.spec_of(row_id)) == value
