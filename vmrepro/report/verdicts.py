"""Claims of the paper against final numbers of recorded runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from vmrepro.paper.claims import COVERAGE, FEWEST_SEEDS, Claim, Judgement, Verdict, claim, judge
from vmrepro.specs.schema import Tier

# "About level" in a claim without a number is read as within one point.
LEVEL_MARGIN = 1.0
# What a claim asks of each of several differences, where its operator is not itself a relation.
EACH = {"between": ">=", "not always >": ">"}
OPPOSITE = {Verdict.SUPPORTED: Verdict.CONTRADICTED, Verdict.CONTRADICTED: Verdict.SUPPORTED}


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


def paired(finals: Mapping[str, Mapping[int, float]], left: str, right: str) -> list[float]:
    """``left`` minus ``right`` in points for each seed that both ran; ``finals`` maps experiment to seed to final percent."""
    ours, theirs = finals.get(left, {}), finals.get(right, {})
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def rule(contrast: Contrast, finals: Mapping[str, Mapping[int, float]], tier: Tier) -> Ruling:
    """The ruling on one claim; ``finals`` maps experiment to seed to final value in percent.

    Seeds that both sides ran are paired. A smoke run is too small to say anything of a claim, whatever it gives; fewer
    than three pairs count as not run.
    """
    subject = claim(contrast.claim)
    differences = paired(finals, contrast.left, contrast.right)
    if len(differences) < FEWEST_SEEDS:
        judged = Judgement(Verdict.NOT_RUN, n=len(differences))
    else:
        judged = judge(subject.operator, differences, _margin(subject))
    return _ruling(subject, f"{contrast.left} {subject.operator} {contrast.right}", tier, judged)


def rule_each(claim_id: str, comparison: str, differences: Mapping[str, Sequence[float]], tier: Tier) -> Ruling:
    """The ruling on a claim that asks the same of several differences, or, by "not always", that one of them fails it.

    ``differences``: by name, left minus right in points, one value a seed. Each is judged on its own. That all hold takes the
    plain 95 % interval of each: no best rival is picked, so nothing has to be made up for. That one fails takes an interval
    widened so that it covers all of them at once (Bonferroni), since among many one fails by chance. The comparison names the
    difference that decides, and the ruling shows it with the interval that decided; where none does, the one nearest to
    failing, with the wide interval. As in ``rule`` smoke judges nothing; no difference, or one with fewer than three seeds,
    counts as not run.
    """
    subject = claim(claim_id)
    fewest = min(map(len, differences.values()), default=0)
    if fewest < FEWEST_SEEDS:
        return _ruling(subject, comparison, tier, Judgement(Verdict.NOT_RUN, n=fewest))
    relation = EACH.get(subject.operator, subject.operator)
    coverage = 1 - (1 - COVERAGE) / len(differences)
    plain = {name: judge(relation, values) for name, values in differences.items()}
    wide = {name: judge(relation, values, coverage=coverage) for name, values in differences.items()}
    failed = [name for name, judged in wide.items() if judged.verdict == Verdict.CONTRADICTED]
    holds = all(judged.verdict == Verdict.SUPPORTED for judged in plain.values())
    # Rounded, so that equal numbers stay equal whatever file they have been through.
    name = min(failed or plain, key=lambda name: round(-plain[name].high if relation.startswith("<") else plain[name].low, 6))
    verdict = Verdict.CONTRADICTED if failed else Verdict.SUPPORTED if holds else Verdict.WITHIN_SEED_SPREAD
    shown, reach = (plain[name], "") if holds else (wide[name], f" (95 % for all {len(differences)} at once)")
    if subject.operator.startswith("not always"):
        verdict = OPPOSITE.get(verdict, verdict)
    decisive = f"; decisive: {name}{reach}" if len(differences) > 1 else ""
    return _ruling(subject, comparison + decisive, tier, Judgement(verdict, shown.mean, shown.low, shown.high, shown.n))


def _ruling(subject: Claim, comparison: str, tier: Tier, judged: Judgement) -> Ruling:
    return Ruling(
        claim=subject.id,
        statement=subject.statement,
        comparison=comparison,
        tier=tier,
        difference=judged.mean,
        low=judged.low,
        high=judged.high,
        seeds=judged.n,
        verdict=Verdict.NOT_TESTABLE if tier == "smoke" else judged.verdict,
    )


def _margin(subject: Claim) -> float:
    return LEVEL_MARGIN if subject.operator == "~=" else 0.0
