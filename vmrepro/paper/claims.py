"""What the paper claims, one record per claim, and the rule by which measured differences judge a relation.

The statements are worded by us.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from vmrepro.paper import reference

RELATIONS = ("<", ">", "<=", ">=", "~=")
COVERAGE = 0.95  # of the two-sided t interval
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Claim:
    """One checkable claim: ``lhs operator rhs``, by ``margin`` in ``unit`` where the paper states one.

    ``kind`` is explicit, implied or alternate_reading; ``rows`` are the ids of the table rows that decide it;
    ``test_scale`` is what a test takes: analytic, hardware, trend (small trainings) or full (the real data sets).
    ``support`` says how far the paper's own numbers bear the statement out (full, partial, none, not_tabulated), from
    ``computed`` and, where one number decides, ``computed_number``: a first computation, that of the transcription, kept as a
    second opinion on :mod:`vmrepro.paper.own_numbers`, which computes and judges them all again.
    """

    id: str
    topic: str
    kind: str
    section: str
    evidence: str | None
    statement: str
    lhs: str
    operator: str
    rhs: str
    margin: float | None
    unit: str | None
    rows: tuple[str, ...]
    test_scale: str
    note: str | None
    support: str
    computed: str | None
    computed_number: float | None

    @property
    def paper_consistent(self) -> bool | None:
        """Whether the paper's own numbers bear the whole statement out; None where it prints none that decide."""
        return None if self.support == "not_tabulated" else self.support == "full"


@functools.cache
def _all() -> dict[str, Claim]:
    return {line["claim_id"]: _claim(line) for line in reference.read_cells("claims")}


def _claim(line: dict[str, str]) -> Claim:
    return Claim(
        id=line["claim_id"],
        topic=line["topic"],
        kind=line["claim_kind"],
        section=line["source_section"],
        evidence=line["evidence"] or None,
        statement=line["statement"],
        lhs=line["lhs_operand"],
        operator=line["operator"],
        rhs=line["rhs_operand"],
        margin=reference.parse(line["stated_margin"], "float"),
        unit=line["margin_unit"] or None,
        rows=reference.split(line["evidence_rows"]),
        test_scale=line["test_scale"],
        note=line["note"] or None,
        support=line["support"],
        computed=line["computed_value"] or None,
        computed_number=reference.parse(line["computed_number"], "float"),
    )


def claims(topic: str | None = None) -> tuple[Claim, ...]:
    """The claims in order, all of them or those of one topic; ValueError for an unknown topic."""
    known = [entry.topic for entry in _all().values()]
    if topic is not None and topic not in known:
        raise reference.unknown("topic", topic, known)
    return tuple(entry for entry in _all().values() if topic in (None, entry.topic))


def claim(claim_id: str) -> Claim:
    """The claim of an id, C01 to C98; ValueError for an unknown one."""
    if claim_id not in _all():
        raise reference.unknown("claim", claim_id, _all())
    return _all()[claim_id]


class Verdict(StrEnum):
    """What one basis says of a claim: the paper's own numbers, a count in closed form, or recorded runs of a tier.

    PARTLY_SUPPORTED: borne out for some of what the statement covers. NO_NUMBER: the paper prints nothing that decides (a figure
    without numbers, a missing ablation). WITHIN_SEED_SPREAD, NOT_RUN and NOT_TESTABLE are said of runs only.
    """

    SUPPORTED = "supported"
    PARTLY_SUPPORTED = "partly supported"
    CONTRADICTED = "contradicted"
    NO_NUMBER = "no number in the paper"
    WITHIN_SEED_SPREAD = "within seed spread"
    NOT_RUN = "not run"
    NOT_TESTABLE = "not testable at this tier"


@dataclass(frozen=True)
class Finding:
    """A verdict without seeds: ``number`` in ``unit`` decides it, ``comparison`` says what was put against what."""

    verdict: Verdict
    number: float | None
    unit: str | None
    comparison: str
    note: str | None = None


@dataclass(frozen=True)
class Judgement:
    """A verdict, the mean difference and its 95 % interval in points, the number of seeds; None where nothing was measured."""

    verdict: Verdict
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


def judge(relation: str, differences: Sequence[float], margin: float = 0.0, coverage: float = COVERAGE) -> Judgement:
    """The verdict on ``left relation right`` from the 95 % t interval of the mean difference.

    ``differences``: left minus right in points, one per seed, both sides trained with that seed. ``margin``: points that
    "<=", ">=" and "~=" grant; "<" and ">" do not read it. A bound that lies on the margin counts as inside it.
    ``coverage``: of the interval, where it is not to be 95 %.

        <    supported: the interval lies below 0; contradicted: above 0
        <=   contradicted: the interval lies above 0, even inside the margin; supported: it does not pass +margin
        ~=   supported: the interval lies within ±margin; contradicted: wholly outside

    ">" and ">=" mirror "<" and "<="; all else is within seed spread. Raises ValueError for another relation, fewer than three
    differences, a value that is not finite, or a negative margin. The interval is Student's (1908), as in any textbook.
    """
    values = [float(difference) for difference in differences]
    if relation not in RELATIONS:
        raise ValueError(f"cannot judge the relation {relation!r}; expected one of {', '.join(RELATIONS)}")
    if len(values) < FEWEST_SEEDS:
        raise ValueError(f"an interval needs at least {FEWEST_SEEDS} paired seeds, got {len(values)}; run more seeds")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"differences must be finite numbers, got {values}; look for a diverged run")
    if not 0.0 <= margin < math.inf:
        raise ValueError(f"margin must be a finite number of points, zero or more, got {margin!r}")
    mean, low, high = _t_interval(values, coverage)
    supported, contradicted = _decide(relation, low, high, margin)
    verdict = Verdict.CONTRADICTED if contradicted else Verdict.SUPPORTED if supported else Verdict.WITHIN_SEED_SPREAD
    return Judgement(verdict, mean, low, high, len(values))


def _t_interval(values: list[float], coverage: float) -> tuple[float, float, float]:
    from scipy.special import stdtrit  # here, because listing experiments must not wait for scipy

    # The statistics module adds exactly, so equal differences have spread 0 and not a rounding error.
    mean = statistics.mean(values)
    half = float(stdtrit(len(values) - 1, (1 + coverage) / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _decide(relation: str, low: float, high: float, margin: float) -> tuple[bool, bool]:
    """Whether the interval supports and whether it contradicts; ">" and ">=" are turned around first."""
    if relation == "~=":
        return -margin <= low and high <= margin, low > margin or high < -margin
    if relation.startswith(">"):
        low, high = -high, -low
    return high <= margin if relation.endswith("=") else high < 0, low > 0
