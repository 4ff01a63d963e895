"""Claims C39 to C77 (short videos, masked pretraining, ablations), judged from the printed numbers alone."""

from __future__ import annotations

from decimal import Decimal

from vmrepro.paper.claims import Claim, Finding
from vmrepro.paper.printed import (
    Judge,
    Pairs,
    best,
    cell,
    chain,
    each_above,
    extreme,
    gap,
    graded,
    ids,
    level,
    no_number,
    others,
    ours,
    stated_gap,
    stated_value,
    text,
)

PAR = "0.5"  # points: "on a par" (C45, C46)
LEVEL = "1.0"  # points: "level" with another method at equal input (C60)
# Masked pretraining against supervised training of M, at equal input.
MASKED_K400: Pairs = (("t3_31", "t3_22"), ("t3_32", "t3_23"), ("t3_33", "t3_24"))
MASKED_SSV2: Pairs = (("t4_27", "t4_20"), ("t4_28", "t4_21"), ("t4_29", "t4_22"))
LARGER_MODEL = [(f"t{t}_{row + 3}", f"t{t}_{row}") for t, first in ((3, 16), (4, 14)) for row in range(first, first + 6)]
LARGER_INPUT = [
    chain(*names) for names in (("t3_18", "t3_17", "t3_16"), ("t3_21", "t3_20", "t3_19"), ("t3_24", "t3_23", "t3_22"))
]
RESOLUTION_SSV2: Pairs = (("t4_16", "t4_15"), ("t4_19", "t4_18"), ("t4_22", "t4_21"), ("t4_29", "t4_28"))
FRAMES_SSV2: Pairs = (("t4_15", "t4_14"), ("t4_18", "t4_17"), ("t4_21", "t4_20"), ("t4_28", "t4_27"))
FRAMES_K400: Pairs = (("t3_17", "t3_16"), ("t3_20", "t3_19"), ("t3_23", "t3_22"), ("t3_31", "t3_30"), ("t3_32", "t3_31"))
MIXTURES = ("f7a_03", "f7a_04", "f7a_05", "f7a_06", "f7a_07")
BROADER = {"IN-1K": "IN-21K"}  # ImageNet-1K is a part of ImageNet-21K


def _less_compute(claim: Claim) -> Finding:
    k400, ssv2 = (cell(own, "flops_total_g") / cell(rival, "flops_total_g") for own, rival in _halves(claim))
    comparison = f"FLOPs in all views, to ViViT-L: K400 {k400:.3f}, SSV2 {ssv2:.3f}"
    return Finding(graded([k400 < 1, ssv2 < 1]), float(max(k400, ssv2)), claim.unit, comparison)


def _less_data(claim: Claim) -> Finding:
    pairs = [(text(own, "extra_data"), text(rival, "extra_data")) for own, rival in _halves(claim)]
    held = [own != rival and {own, BROADER.get(own)} & set(rival.split("+")) != set() for own, rival in pairs]
    return Finding(graded(held), None, None, "; ".join(f"{own} against {rival}" for own, rival in pairs))


def _halves(claim: Claim) -> list[tuple[str, str]]:
    return [(claim.rows[0], claim.rows[1]), (claim.rows[2], claim.rows[3])]


def _one_source(claim: Claim) -> Finding:
    sources = {text(row, "extra_data") for row in claim.rows}
    return Finding(graded([sources == {claim.rhs}]), None, None, f"{len(claim.rows)} rows with {', '.join(sorted(sources))}")


def _new_best(table: str) -> Judge:
    """Ahead of all rows and ahead among supervised rows: both for full support, since the text says neither."""

    def judge(claim: Claim) -> Finding:
        gaps = []
        for rows in (ids(table), ids(table, learning="supervised")):
            own, rival = best(ours(rows)), best(others(rows))
            gaps.append((own, rival, gap(own, rival)))
        comparison = "; ".join(
            f"{name} {own} - {rival} = {value:+}" for name, (own, rival, value) in zip(("all", "supervised"), gaps, strict=True)
        )
        return Finding(graded([value > 0 for _, _, value in gaps]), float(gaps[0][2]), claim.unit, comparison)

    return judge


def _larger_mean_gain(claim: Claim) -> Finding:
    ssv2, k400 = (sum((gap(*pair) for pair in pairs), Decimal()) / len(pairs) for pairs in (MASKED_SSV2, MASKED_K400))
    comparison = f"mean gain of masked pretraining: SSV2 {ssv2:+.2f}, K400 {k400:+.2f}"
    return Finding(graded([ssv2 > k400]), float(ssv2 - k400), claim.unit, comparison)


def _between(claim: Claim) -> Finding:
    low, high, values = cell("f7a_02"), cell("f7a_01"), [cell(row) for row in MIXTURES]
    comparison = f"mixtures {min(values)} to {max(values)}, ends {low} (temporal-first) and {high} (spatial-first)"
    return Finding(graded([low <= value <= high for value in values]), None, claim.unit, comparison)


def _more_drop_path(claim: Claim) -> Finding:
    lowest, *_, highest = claim.rows
    steps = [gap(right, left) for left, right in chain(*claim.rows)]
    rates = f"from drop path {cell(lowest, 'drop_path')} to {cell(highest, 'drop_path')}"
    comparison = f"steps {', '.join(f'{step:+}' for step in steps)} {rates}"
    return Finding(graded([step > 0 for step in steps]), float(gap(highest, lowest)), claim.unit, comparison)


JUDGES: dict[str, Judge] = {
    "C39": stated_gap(),
    "C40": stated_gap(),
    "C41": stated_gap(),
    "C42": stated_gap(),
    "C43": _less_compute,
    "C44": _less_data,
    "C45": level([("t3_24", "t3_11")], PAR, also=[("t3_23", "t3_11"), ("t3_22", "t3_10")]),
    "C46": level([("t4_22", "t4_10")], PAR, also=[("t4_21", "t4_10")]),
    "C47": each_above([("t4_22", "t4_11"), ("t4_22", "t4_12"), ("t4_22", "t4_04")], also=[("t4_29", "t4_04")]),
    "C48": each_above([("t3_24", "t3_13"), ("t3_24", "t3_14"), ("t3_24", "t3_06")]),
    "C49": each_above(LARGER_MODEL),
    "C50": each_above([*(pair for pairs in LARGER_INPUT for pair in pairs), *chain("t3_33", "t3_32", "t3_31", "t3_30")]),
    "C51": _one_source,
    "C52": _new_best("table3"),
    "C53": _new_best("table4"),
    "C54": each_above([("t3_31", "t3_28")], also=[("t3_30", "t3_28"), ("t3_33", "t3_28")]),
    "C55": each_above([("t4_28", "t4_25")], also=[("t4_27", "t4_25"), ("t4_29", "t4_25")]),
    "C56": each_above(MASKED_K400),
    "C57": each_above(MASKED_SSV2),
    "C58": _larger_mean_gain,
    "C59": each_above([("t3_30", "t3_29")], sign=-1, also=[("t3_33", "t3_29")]),
    "C60": level([("t4_27", "t4_26"), ("t4_28", "t4_26")], LEVEL, also=[("t4_29", "t4_26")]),
    "C61": extreme("f7a_01"),
    "C62": extreme("f7a_02", sign=-1),
    "C63": each_above([("f7a_01", "f7a_04")]),
    "C64": _between,
    "C65": no_number("no scan order is trained without 2D weights"),
    "C66": no_number(
        "the grid is drawn without numbers; all four resolution pairs of Table 4 gain",
        lambda: min(gap(*pair) for pair in RESOLUTION_SSV2),
    ),
    "C67": each_above(FRAMES_K400),
    "C68": no_number(
        "the grid is drawn without numbers; all four frame pairs of Table 4 gain", lambda: min(gap(*pair) for pair in FRAMES_SSV2)
    ),
    "C69": each_above([(row, other) for row in ("t5a_03", "t5a_04") for other in ("t5a_01", "t5a_02")]),
    "C70": each_above([("t5a_03", "t5a_04")]),
    "C71": no_number("randomness follows from how the masks are drawn"),
    "C72": extreme("t5a_05"),
    "C73": extreme("t5b_01"),
    "C74": each_above(chain("t5b_01", "t5b_02", "t5b_03", "t5b_04")),
    "C75": extreme("t5c_03"),
    "C76": _more_drop_path,
    "C77": stated_value(),
}
