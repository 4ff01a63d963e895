"""Claims of the paper against final numbers of recorded runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from vmrepro.paper.claims import FEWEST_SEEDS, Claim, Judgement, Verdict, claim, judge
from vmrepro.specs.schema import Tier

# "About level" in a claim without a number is read as within one point.
LEVEL_MARGIN = 1.0


@dataclass(frozen=True)
class Contrast:
    """How a claim is put to the test: the final value of experiment ``left`` against that of ``right``, seed by seed."""

    claim: str
    left: str
    right: str


@dataclass(frozen=True)
class Ruling:
    """One claim with what was measured, in points, and the verdict."""

    claim: str
    statement: str
    comparison: str
    tier: str
    difference: float | None
    low: float | None
    high: float | None
    seeds: int
    verdict: str

    def as_row(self) -> dict[str, object]:
        return asdict(self)


def rule(contrast: Contrast, finals: Mapping[str, Mapping[int, float]], tier: Tier) -> Ruling:
    """The ruling on one claim; ``finals`` maps experiment to seed to final value in percent.

    Seeds that both sides ran are paired. A smoke run is too small to say anything of a claim, whatever it gives; fewer
    than three pairs count as not run.
    """
    subject = claim(contrast.claim)
    left, right = finals.get(contrast.left, {}), finals.get(contrast.right, {})
    differences = [left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())]
    if len(differences) < FEWEST_SEEDS:
        judged = Judgement(Verdict.NOT_RUN, n=len(differences))
    else:
        judged = judge(subject.operator, differences, _margin(subject))
    return Ruling(
        claim=subject.id,
        statement=subject.statement,
        comparison=f"{contrast.left} {subject.operator} {contrast.right}",
        tier=tier,
        difference=judged.mean,
        low=judged.low,
        high=judged.high,
        seeds=judged.n,
        verdict=Verdict.NOT_TESTABLE if tier == "smoke" else judged.verdict,
    )


def _margin(subject: Claim) -> float:
    return LEVEL_MARGIN if subject.operator == "~=" else 0.0
