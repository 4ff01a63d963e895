"""Claims C01 to C38 (efficiency, architecture, self-distillation, ImageNet), judged from the printed numbers alone.

What follows from depth and width by counting is judged in ``vmrepro.specs.claim_counts``, what needs a run by its record.
"""

from __future__ import annotations

from decimal import Decimal

from vmrepro.paper.claims import Claim, Finding
from vmrepro.paper.printed import (
    Judge,
    cell,
    each_above,
    extreme,
    gap,
    graded,
    no_number,
    others,
    ours,
    over,
    slope,
    stated_gap,
    stated_value,
    text,
    tokens,
)

LINEAR = 0.02  # a slope or a ratio this near 1 is read as linear; the rounding of printed FLOPs alone reaches 0.006
ALIKE = Decimal("0.2")  # "comparable" sizes (C13) and "about the same" compute (C38): within a fifth
SIZES = (("t2_19", "t2_22", "t2_25"), ("t2_20", "t2_23", "t2_26"), ("t2_21", "t2_24", "t2_27"))  # Ti, S, M by resolution
FIGURE = "drawn in a figure without numbers"


def _slopes(claim: Claim) -> Finding:
    found = {size: slope([row for row in claim.rows if text(row, "model_size") == size]) for size in ("Ti", "M")}
    number = max(abs(value - 1) for value in found.values())
    comparison = "slope of log FLOPs on log tokens: " + ", ".join(f"{size} {value:.4f}" for size, value in found.items())
    return Finding(graded([number < LINEAR]), number, "from slope 1", comparison)


def _expected_flops(claim: Claim) -> Finding:
    larger, smaller = claim.rows
    expected = float(cell(smaller, "flops_g")) * tokens(larger) / tokens(smaller)
    ratio = float(cell(larger, "flops_g")) / expected
    comparison = f"printed {cell(larger, 'flops_g')} GFLOPs, {expected:.0f} expected from {smaller} by the ratio of tokens"
    return Finding(graded([abs(ratio - 1) < LINEAR]), ratio, "ratio", comparison)


def _steeper(claim: Claim) -> Finding:
    attention, own = slope(claim.rows[:2]), slope(claim.rows[2:])
    comparison = f"slope of DeiT-B {attention:.3f}, of VideoMamba-M {own:.3f}"
    return Finding(graded([attention > 1 + LINEAR and own < 1 + LINEAR]), attention, "slope", comparison)


def _cheaper_and_better(claim: Claim) -> Finding:
    (rival,) = others(claim.rows)
    better = [row for row in ours(claim.rows) if gap(row, rival) > 0]
    cheapest = min(better, key=lambda row: cell(row, "flops_total_g"))
    cost = [cell(row, "flops_total_g") for row in (cheapest, rival)]
    comparison = f"{cheapest} {cell(cheapest)} at {cost[0]} GFLOPs in all views, {rival} {cell(rival)} at {cost[1]}"
    return Finding(graded([cost[0] < cost[1]]), float(cost[0]), claim.unit, comparison)


def _total_ratio(claim: Claim) -> Finding:
    left, right = claim.rows
    ratio = float(cell(left, "flops_total_g") / cell(right, "flops_total_g"))
    comparison = f"{cell(left, 'flops_total_g')} against {cell(right, 'flops_total_g')} GFLOPs in all views"
    return Finding(graded([ratio < 1]), ratio, "ratio", comparison)


def _comparable(claim: Claim) -> Finding:
    ratios = [cell(row, "params_m") / cell(rival, "params_m") for row, rival in zip(claim.rows[:3], claim.rows[3:], strict=True)]
    furthest = max(ratios, key=lambda ratio: abs(ratio - 1))
    comparison = "printed parameters, Ti S M to DeiT Ti S B: " + ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return Finding(graded([abs(ratio - 1) <= ALIKE for ratio in ratios]), float(furthest), claim.unit, comparison)


def _same_size_and_compute(claim: Claim) -> Finding:
    pairs = [("t2_19", "t2_17"), ("t2_22", "t2_18")]
    differences = {(*pair, column): gap(*pair, column) for pair in pairs for column in ("params_m", "flops_g")}
    comparison = ", ".join(f"{left} - {right} {column} {value}" for (left, right, column), value in differences.items())
    return Finding(
        graded([value == 0 for value in differences.values()]), float(max(differences.values(), key=abs)), claim.unit, comparison
    )


def _hierarchical(claim: Claim) -> Finding:
    gaps = {("t2_25", rival, "top1"): gap("t2_25", rival) for rival in others(claim.rows)}
    return over(gaps, claim, graded([value > 0 for value in gaps.values()]))


def _above_at_equal_compute(claim: Claim) -> Finding:
    left, right = claim.rows
    ratio = cell(left, "flops_g") / cell(right, "flops_g")
    comparison = f"{cell(left)} - {cell(right)} = {gap(left, right):+}; FLOPs ratio {ratio:.2f}"
    return Finding(graded([gap(left, right) > 0 and abs(ratio - 1) <= ALIKE]), float(gap(left, right)), claim.unit, comparison)


def _teacher_share() -> Decimal:
    return cell("t2_22", "flops_g") / (3 * cell("t2_25", "flops_g"))


JUDGES: dict[str, Judge] = {
    "C01": no_number(FIGURE),
    "C02": no_number(FIGURE),
    "C03": no_number(FIGURE),
    "C04": no_number(FIGURE),
    "C05": no_number("no table has a tiny TimeSformer"),
    "C06": _slopes,
    "C07": _expected_flops,
    "C08": _steeper,
    "C09": _cheaper_and_better,
    "C10": _total_ratio,
    "C11": no_number("the paper prints no second count"),
    "C12": no_number("parameters follow from depth and width by counting only"),
    "C13": _comparable,
    "C14": stated_gap(),
    "C15": stated_gap(),
    "C16": _same_size_and_compute,
    "C17": no_number("no ablation separates the two changes"),
    "C18": each_above([("t3_13", "t3_28")], "params_m"),
    "C19": no_number(
        "pairs differ in pretraining and input; the direction agrees (t3_28 above t3_13, t4_25 above t4_11)",
        lambda: min(gap("t3_28", "t3_13"), gap("t4_25", "t4_11")),
    ),
    "C20": no_number("no cost is printed for a scan order"),
    "C21": no_number(FIGURE),
    "C22": no_number(FIGURE),
    "C23": each_above([("t2_25", "t2_22")]),
    "C24": no_number(FIGURE),
    "C25": no_number("no training time is printed; FLOPs of S over three times those of M", _teacher_share),
    "C26": no_number(FIGURE),
    "C27": no_number("a statement about another work"),
    "C28": stated_gap(),
    "C29": stated_gap(),
    "C30": each_above([("t2_25", "t2_11"), ("t2_25", "t2_14")], "params_m", sign=-1),
    "C31": extreme("t2_25"),
    "C32": _hierarchical,
    "C33": stated_value(),
    "C34": stated_value("params_m"),
    "C35": each_above([(high, low) for i in range(3) for high, low in ((SIZES[1][i], SIZES[0][i]), (SIZES[2][i], SIZES[1][i]))]),
    "C36": each_above([pair for ti, s, m in SIZES for pair in ((s, ti), (m, s))]),
    "C37": each_above([("t2_19", "t2_12"), ("t2_22", "t2_13")]),
    "C38": _above_at_equal_compute,
}
