"""Every claim loads, and the rule that judges measured differences gives the verdict written down here for each case."""

import math
from dataclasses import fields

import pytest

from vmrepro.paper import claims, reference
from vmrepro.paper.claims import Judgement, Verdict, judge

LETTERS = {"S": Verdict.SUPPORTED, "C": Verdict.CONTRADICTED, "w": Verdict.WITHIN_SEED_SPREAD}
T_975 = {2: 4.302652729911275, 3: 3.182446305284263, 4: 2.776445105197799, 9: 2.262157162740992}  # printed tables, by n - 1


def around(low: float, high: float) -> list[float]:
    """Three differences whose 95 % interval is (low, high)."""
    middle, step = (low + high) / 2, (high - low) / 2 * math.sqrt(3) / T_975[2]
    return [middle - step, middle, middle + step]


def test_all_claims_load_whole():
    every = claims.claims()
    assert [claim.id for claim in every] == [f"C{number:02d}" for number in range(1, 99)]
    for claim in every:
        for text in ("topic", "kind", "section", "statement", "lhs", "operator", "rhs", "test_scale", "support"):
            assert isinstance(getattr(claim, text), str)
            assert getattr(claim, text)
        assert all(reference.rows(row_id) for row_id in claim.rows)
        assert claim.kind in ("explicit", "implied", "alternate_reading")
        assert claim.test_scale in ("analytic", "hardware", "trend", "full")
        assert claim.support in ("full", "partial", "none", "not_tabulated")


def test_every_cell_of_the_file_is_in_a_claim():
    as_column = {"id": "claim_id", "kind": "claim_kind", "section": "source_section", "lhs": "lhs_operand"}
    as_column |= {"rhs": "rhs_operand", "margin": "stated_margin", "unit": "margin_unit", "rows": "evidence_rows"}
    as_column |= {"computed": "computed_value"}
    words = {True: "true", False: "false", None: "not_tabulated"}
    for claim, line in zip(claims.claims(), reference.read_cells("claims"), strict=True):
        for field in fields(claim):
            value, text = getattr(claim, field.name), line.pop(as_column.get(field.name, field.name))
            if field.name in ("margin", "computed_number"):
                assert value == (float(text) if text else None)
            else:
                assert (";".join(value) if field.name == "rows" else value or "") == text
        assert line.pop("paper_consistent") == words[claim.paper_consistent]
        assert not line


def test_the_claims_on_figure_6():
    found = {claim.id: claim.operator for claim in claims.claims("self_distillation") if "Fig. 6" in (claim.evidence or "")}
    assert found == {"C21": "<", "C22": "~=", "C23": ">", "C24": ">", "C26": "<="}
    assert claims.claim("C23").rows == ("t2_25", "t2_22")


def test_unknown_claims_and_topics():
    with pytest.raises(ValueError, match=r"unknown claim 'C99'; the nearest known: .*C9"):
        claims.claim("C99")
    with pytest.raises(ValueError, match=r"unknown topic 'distillation'; the nearest known: .*self_distillation"):
        claims.claims("distillation")


def test_verdicts_are_these():
    assert [str(verdict) for verdict in Verdict] == [
        *["supported", "partly supported", "contradicted", "no number in the paper"],
        *["within seed spread", "not run", "not testable at this tier"],
    ]
    assert Judgement(Verdict.NOT_RUN) == Judgement(Verdict.NOT_RUN, None, None, None, 0)


@pytest.mark.parametrize("n", [3, 4, 5, 10])
def test_the_interval_is_students(n):
    values = [0.5 + (-1) ** i * (i // 2 + 1) for i in range(n)]
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    found = judge("<", values)
    assert found.n == n
    assert found.mean == pytest.approx(mean, rel=1e-12)
    assert found.high - found.mean == pytest.approx(T_975[n - 1] * spread / math.sqrt(n), rel=1e-9)
    assert found.mean - found.low == pytest.approx(found.high - found.mean, rel=1e-9)


# With margin 1, the bounds of an interval lie in four regions: below -1, up to 0, up to 1, above 1. These are all ten pairs.
INTERVALS = [(-3, -2), (-2, -0.5), (-2, 0.5), (-2, 2), (-0.75, -0.25), (-0.5, 0.5), (-0.5, 2), (0.25, 0.75), (0.5, 2), (2, 3)]
VERDICTS = {
    ("<", 1): "SSwwSwwCCC",
    (">", 1): "CCwwCwwSSS",
    ("<=", 1): "SSSwSSwCCC",
    (">=", 1): "CCwwCSSSSS",
    ("~=", 1): "CwwwSSwSwC",
    ("<", 0): "SSwwSwwCCC",
    (">", 0): "CCwwCwwSSS",
    ("<=", 0): "SSwwSwwCCC",
    (">=", 0): "CCwwCwwSSS",
    ("~=", 0): "CCwwCwwCCC",
}


@pytest.mark.parametrize(("relation", "margin", "index"), [(*key, i) for key in VERDICTS for i in range(len(INTERVALS))])
def test_verdict_of_an_interval(relation, margin, index):
    low, high = INTERVALS[index]
    found = judge(relation, around(low, high), margin)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert found.verdict == LETTERS[VERDICTS[relation, margin][index]]


@pytest.mark.parametrize(
    ("difference", "margin", "expected"),  # for <, >, <=, >=, ~=
    [
        (0.0, 0.0, "wwSSS"),
        (0.1, 0.0, "CSCSC"),
        (-0.1, 0.0, "SCSCC"),
        (0.1, 0.1, "CSCSS"),
        (-0.1, 0.1, "SCSCS"),
        (0.1, 0.09, "CSCSC"),
        (0.1, 0.5, "CSCSS"),
    ],
)
def test_seeds_that_agree_exactly(difference, margin, expected):
    found = [judge(relation, [difference] * 3, margin) for relation in ("<", ">", "<=", ">=", "~=")]
    assert {(judgement.mean, judgement.low, judgement.high) for judgement in found} == {(difference, difference, difference)}
    assert [judgement.verdict for judgement in found] == [LETTERS[letter] for letter in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("<", [0.1, 0.2]), "at least 3 paired seeds, got 2"),
        (("<", []), "at least 3 paired seeds, got 0"),
        (("<", [0.1, math.nan, 0.2]), "finite"),
        (("<", [0.1, math.inf, 0.2]), "finite"),
        (("==", [0.1, 0.2, 0.3]), r"cannot judge the relation '=='; expected one of <, >, <=, >=, ~="),
        (("~=", [0.1, 0.2, 0.3], -1.0), "margin must be a finite number of points, zero or more, got -1.0"),
        (("~=", [0.1, 0.2, 0.3], math.nan), "margin"),
        (("~=", [0.1, 0.2, 0.3], math.inf), "margin"),
    ],
)
def test_what_cannot_be_judged_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        judge(*arguments)
