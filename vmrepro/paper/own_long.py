"""Claims C78 to C98 (long videos, retrieval), judged from the printed numbers alone."""

from __future__ import annotations

from decimal import Decimal

from vmrepro.paper.claims import Claim, Finding
from vmrepro.paper.printed import (
    Judge,
    Pairs,
    best,
    cell,
    each_above,
    gap,
    graded,
    ids,
    others,
    ours,
    over,
    stated_gap,
    superlative,
    text,
)

BREAKFAST, COIN = "breakfast_top1", "coin_top1"
LARGER_MODEL: Pairs = (("t6_10", "t6_08"), ("t6_12", "t6_10"), ("t6_11", "t6_09"), ("t6_13", "t6_11"))
MORE_FRAMES: Pairs = (("t6_09", "t6_08"), ("t6_11", "t6_10"), ("t6_13", "t6_12"), ("t6_15", "t6_14"))
MASKED: Pairs = (("t6_14", "t6_12"), ("t6_15", "t6_13"))
FEATURE_BASED = ("t6_04", "t6_05")
COMPARABLE = Decimal("0.05")  # "comparable" on LVU (C90): behind by at most this share of the other's score
DATASETS = ("msrvtt", "didemo", "activitynet", "lsmdc", "msvd")
LONG_OR_COMPLEX = ("activitynet", "didemo", "lsmdc")
RECALLS = ("r1", "r5", "r10")


def _weakest_leads(claim: Claim) -> Finding:
    """Even the lowest own row is above every other method (Breakfast)."""
    lowest = min(ours(claim.rows), key=lambda row: cell(row, BREAKFAST))
    gaps = {(lowest, other, BREAKFAST): gap(lowest, other, BREAKFAST) for other in others(claim.rows, BREAKFAST)}
    return over(gaps, claim, superlative(gaps.values()))


def _small_models_lead(claim: Claim) -> Finding:
    """The best of Ti and S is above every other method (COIN)."""
    small = best([row for row in ours(claim.rows) if text(row, "model_size") in ("Ti", "S")], COIN)
    gaps = {(small, other, COIN): gap(small, other, COIN) for other in others(ids("table6"), COIN)}
    return over(gaps, claim, superlative(gaps.values()))


def _end_to_end_leads(claim: Claim) -> Finding:
    gaps = {
        (own, rival, column): gap(own, rival, column)
        for own in ours(claim.rows)
        for rival in FEATURE_BASED
        for column in (BREAKFAST, COIN)
    }
    return over(gaps, claim, graded([value > 0 for value in gaps.values()]))


def _tasks(rivals: list[str]) -> dict[str, tuple[Decimal, Decimal]]:
    """By LVU task: what t7_07 gains over the best of the rivals, positive when better, and that best."""
    found = {}
    for own in ids("table7_long", row_id="t7_07"):
        task, sign = text(own, "task"), 1 if text(own, "better_direction") == "up" else -1
        score = max((cell(f"{rival}_{task}", "value") for rival in rivals), key=lambda value, sign=sign: sign * value)
        found[task] = sign * (cell(own, "value") - score), score
    return found


def _over_tasks(claim: Claim, held: list[bool], gains: dict[str, Decimal]) -> Finding:
    better = sum(gain > 0 for gain in gains.values())
    comparison = f"better in {better} of {len(gains)}: " + ", ".join(f"{task} {gain:+}" for task, gain in gains.items())
    return Finding(graded(held), float(better), "tasks", comparison)


def _better_or_comparable(claim: Claim) -> Finding:
    found = _tasks([row for row in claim.rows if row != "t7_07"])
    held = [gain >= -COMPARABLE * score for gain, score in found.values()]
    return _over_tasks(claim, held, {task: gain for task, (gain, _) in found.items()})


def _above_on_every_task(claim: Claim) -> Finding:
    gains = {task: gain for task, (gain, _) in _tasks(["t7_06"]).items()}
    return _over_tasks(claim, [gain > 0 for gain in gains.values()], gains)


def _recall_gains(claim: Claim) -> dict[tuple[str, str], Decimal]:
    own, rival = claim.rows
    return {(name, recall): gap(f"{own}_{name}", f"{rival}_{name}", recall) for name in DATASETS for recall in RECALLS}


def _every_recall(claim: Claim) -> Finding:
    gains = _recall_gains(claim)
    below = ", ".join(f"{name} {recall} {value:+}" for (name, recall), value in gains.items() if value <= 0)
    better = sum(value > 0 for value in gains.values())
    comparison = f"{better} of {len(gains)} better; not better: {below or 'none'}"
    return Finding(graded([value > 0 for value in gains.values()]), float(better), "metrics", comparison)


def _longest_gain_most(claim: Claim) -> Finding:
    gains = _recall_gains(claim)
    mean = {name: sum(gains[name, recall] for recall in RECALLS) / len(RECALLS) for name in DATASETS}
    lead = min(mean[name] for name in LONG_OR_COMPLEX) - max(mean[name] for name in DATASETS if name not in LONG_OR_COMPLEX)
    comparison = "mean gain over R@1, 5, 10: " + ", ".join(f"{name} {value:+.2f}" for name, value in mean.items())
    return Finding(superlative([lead]), float(lead), claim.unit, comparison)


def _more_pairs_help(claim: Claim) -> Finding:
    by_size = [[cell(f"{row}_{name}", "r1") for name in DATASETS] for row in ("t8_06", "t8_15", "t8_16")]
    held = [low < middle < high for low, middle, high in zip(*by_size, strict=True)]
    gain = (sum(by_size[2]) - sum(by_size[0])) / len(DATASETS)
    rival = sum(gap(f"t8_12_{name}", f"t8_05_{name}", "r1") for name in DATASETS) / len(DATASETS)
    comparison = f"R@1 rises at both steps on {sum(held)} of {len(held)}; mean gain {gain:+}, of UMT {rival:+}"
    return Finding(graded(held), float(gain), claim.unit, comparison)


JUDGES: dict[str, Judge] = {
    "C78": stated_gap(BREAKFAST),
    "C79": stated_gap(COIN, also=[("t6_08", "t6_05")]),
    "C80": stated_gap(BREAKFAST),
    "C81": stated_gap(COIN, also=[("t6_08", "t6_07")]),
    "C82": _weakest_leads,
    "C83": _small_models_lead,
    "C84": each_above(LARGER_MODEL, BREAKFAST),
    "C85": each_above(LARGER_MODEL, COIN),
    "C86": each_above(MORE_FRAMES, BREAKFAST),
    "C87": each_above(MORE_FRAMES, COIN),
    "C88": each_above(MASKED, BREAKFAST, COIN),
    "C89": _end_to_end_leads,
    "C90": _better_or_comparable,
    "C91": _above_on_every_task,
    "C92": _every_recall,
    "C93": _every_recall,
    "C94": _every_recall,
    "C95": _longest_gain_most,
    "C96": _longest_gain_most,
    "C97": _longest_gain_most,
    "C98": _more_pairs_help,
}
