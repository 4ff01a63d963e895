"""Claims that parameters, multiply-adds and masks in closed form can decide, judged without the paper's own counts.

Where the paper compares with attention models their counts are taken from :mod:`vmrepro.paper.attention`, and printed numbers
only where no closed form is at hand (Vim, ConvNeXt, ViViT-L).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable

from vmrepro.paper import attention
from vmrepro.paper.claims import Finding, claim
from vmrepro.paper.own_images import ALIKE, LINEAR
from vmrepro.paper.printed import cell, gap, graded, ours, text
from vmrepro.specs import cost
from vmrepro.specs.rows import spec_of

MARGINAL = 0.2  # "marginal" extra training compute (C25): at most a fifth
# Masks of section 3.4 on 8 frames of 14 rows; int(0.8·14) rows a frame are hidden (released code, masking_generator.py).
FRAMES, ROWS, HIDDEN = 8, 14, 11
SPATIAL = {224: 14**2, 384: 24**2}  # patches of one image, by pixels
FRAMES_L, VIEWS_L = 96, 3  # input of TimeSformer-L in t3_13


def _full(row_id: str) -> int:
    return cost.flops_full(spec_of(row_id))


def _params_m(row_id: str) -> float:
    return cost.parameters(spec_of(row_id)) / 1e6


def _total_g(row_id: str) -> float:
    """Everything counted, in all views of the row, in 1e9."""
    return _full(row_id) * int(cell(row_id, "views_total")) / 1e9


def _slope(points: Iterable[tuple[int, int]]) -> float:
    tokens, macs = zip(*points, strict=True)
    return statistics.linear_regression(list(map(math.log, tokens)), list(map(math.log, macs))).slope


def _own_slope(row_ids: Iterable[str]) -> float:
    return _slope((spec_of(row_id).length, _full(row_id)) for row_id in row_ids)


def _linear() -> Finding:
    rows = {size: [row for row in claim("C06").rows if text(row, "model_size") == size] for size in ("Ti", "M")}
    found = {size: _own_slope(members) for size, members in rows.items()}
    number = max(abs(value - 1) for value in found.values())
    comparison = "slope of everything counted on tokens: " + ", ".join(f"{size} {value:.4f}" for size, value in found.items())
    return Finding(graded([number < LINEAR]), number, "from slope 1", comparison)


def _linear_s() -> Finding:
    larger, smaller = claim("C07").rows
    per_token = [_full(row) / spec_of(row).length for row in (larger, smaller)]
    ratio = per_token[0] / per_token[1]
    paper_g = cost.flops_paper(spec_of(larger)) / 1e9
    comparison = f"multiply-adds per token, {larger} to {smaller}; as the paper counts, {larger} has {paper_g:.1f} GFLOPs"
    return Finding(graded([abs(ratio - 1) < LINEAR]), ratio, "ratio", comparison)


def _attention_is_steeper() -> Finding:
    vit = _slope((SPATIAL[side] + 1, attention.VIT_B.macs(SPATIAL[side])) for side in (224, 384))
    own = _own_slope(("t2_25", "t2_26"))
    comparison = f"slope of DeiT-B 224 to 384 {vit:.3f}, of VideoMamba-M 224 to 448 with everything counted {own:.3f}"
    return Finding(graded([vit > 1 + LINEAR and own < 1 + LINEAR]), vit, "slope", comparison)


def _timesformer_l_g() -> float:
    return VIEWS_L * attention.VIT_B.divided_macs(FRAMES_L, SPATIAL[224]) / 1e9


def _cheaper() -> Finding:
    better = [row for row in ours(claim("C09").rows) if gap(row, "t3_13") > 0]
    cheapest = min(better, key=_total_g)
    comparison = (
        f"{cheapest} {_total_g(cheapest):.0f} GFLOPs in all views with everything counted, t3_13 {_timesformer_l_g():.0f}"
    )
    return Finding(graded([_total_g(cheapest) < _timesformer_l_g()]), _total_g(cheapest), "GFLOPs", comparison)


def _best_row_is_cheaper() -> Finding:
    ratio = _total_g("t3_24") / _timesformer_l_g()
    comparison = f"t3_24 {_total_g('t3_24'):.0f} GFLOPs in all views with everything counted, t3_13 {_timesformer_l_g():.0f}"
    return Finding(graded([ratio < 1]), ratio, "ratio", comparison)


def _whole_model() -> Finding:
    ratio = float(cell("t2_25", "flops_g")) * 1e9 / _full("t2_25")
    seen, whole = cost.flops_paper(spec_of("t2_25")) / 1e9, _full("t2_25") / 1e9
    comparison = f"printed {cell('t2_25', 'flops_g')}; projections, patches, norms and head {seen:.2f}; everything {whole:.2f}"
    return Finding(graded([abs(ratio - 1) < LINEAR]), ratio, "ratio", comparison)


def _sizes() -> Finding:
    counts = {row: _params_m(row) for row in claim("C12").rows}
    off = {row: abs(value - float(cell(row, "params_m"))) for row, value in counts.items()}
    comparison = ", ".join(f"{text(row, 'model_size')} {value:.2f} M" for row, value in counts.items())
    return Finding(graded([value <= 0.5 for value in off.values()]), max(off.values()), "M", comparison)


def _comparable_sizes() -> Finding:
    rivals = (attention.DEIT_TI, attention.DEIT_S, attention.VIT_B)
    own = [_params_m(row) for row in ("t1_01", "t1_02", "t1_03")]
    ratios = [value * 1e6 / rival.parameters(SPATIAL[224], 1000) for value, rival in zip(own, rivals, strict=True)]
    furthest = max(ratios, key=lambda ratio: abs(ratio - 1))
    comparison = "counted parameters, Ti S M to DeiT Ti S B: " + ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return Finding(graded([abs(ratio - 1) <= ALIKE for ratio in ratios]), furthest, "ratio", comparison)


def _like_vim() -> Finding:
    pairs = (("t2_19", "t2_17"), ("t2_22", "t2_18"))
    held, parts = [], []
    for own, vim in pairs:
        size, macs = _params_m(own), cost.flops_paper(spec_of(own)) / 1e9
        held += [round(size) == cell(vim, "params_m"), round(macs, 1) == float(cell(vim, "flops_g"))]
        parts.append(f"{own} {size:.2f} M {macs:.2f} G, {vim} printed {cell(vim, 'params_m')} M {cell(vim, 'flops_g')} G")
    return Finding(graded(held), None, None, "; ".join(parts))


def _divided_adds() -> Finding:
    added = attention.VIT_B.divided_parameters() / 1e6
    comparison = "attention along time, its norm and one more product in each block of ViT-B"
    return Finding(graded([added > 0]), added, "M", comparison)


def _twice_the_scan() -> Finding:
    v1, v2 = (cost.flops_parts(spec_of(row)) for row in claim("C20").rows)
    ratio, whole = v2["scan"] / v1["scan"], sum(v2.values()) / sum(v1.values())
    comparison = f"v2 as four directions over all channels, v1 as two; the whole of Ti then costs {whole:.2f} times as much"
    return Finding(graded([ratio == claim("C20").margin]), ratio, "x", comparison)


def _teacher_share() -> Finding:
    share = _full("t2_22") / (cost.TRAINING_FACTOR * _full("t2_25"))
    comparison = f"forward pass of S over forward and backward of M; marginal read as at most {MARGINAL}"
    return Finding(graded([share <= MARGINAL]), share, "ratio", comparison)


def _fewer_parameters() -> Finding:
    own, deit, convnext = (
        _params_m("t2_25"),
        attention.VIT_B.parameters(SPATIAL[224], 1000) / 1e6,
        float(cell("t2_11", "params_m")),
    )
    comparison = f"M {own:.2f} M, DeiT-B {deit:.2f} M, ConvNeXt-B (iso) printed {convnext:.0f} M"
    return Finding(graded([own < deit, own < convnext]), own - min(deit, convnext), "M", comparison)


def _parameters_at_576() -> Finding:
    found, stated = _params_m("t2_27"), int(claim("C34").rhs)
    return Finding(
        graded([round(found) == stated]), found, "M", f"{found:.2f} M with the position table of 576 pixels; stated {stated}"
    )


def _less_than_vivit() -> Finding:
    pairs = (("t3_24", "t3_14"), ("t4_22", "t4_12"))
    ratios = [_total_g(own) / float(cell(rival, "flops_total_g")) for own, rival in pairs]
    comparison = f"everything counted, in all views, to ViViT-L as printed: K400 {ratios[0]:.3f}, SSV2 {ratios[1]:.3f}"
    return Finding(graded([ratio < 1 for ratio in ratios]), max(ratios), "ratio", comparison)


def _mask_bits() -> Finding:
    clip, frame = math.log2(math.comb(FRAMES * ROWS, FRAMES * HIDDEN)), FRAMES * math.log2(math.comb(ROWS, HIDDEN))
    comparison = (
        f"entropy of {FRAMES * HIDDEN} rows drawn over the clip {clip:.1f} bits, of {HIDDEN} drawn in each frame {frame:.1f}"
    )
    return Finding(graded([clip > frame]), clip - frame, "bits", comparison)


JUDGES: dict[str, Callable[[], Finding]] = {
    "C06": _linear,
    "C07": _linear_s,
    "C08": _attention_is_steeper,
    "C09": _cheaper,
    "C10": _best_row_is_cheaper,
    "C11": _whole_model,
    "C12": _sizes,
    "C13": _comparable_sizes,
    "C16": _like_vim,
    "C18": _divided_adds,
    "C20": _twice_the_scan,
    "C25": _teacher_share,
    "C30": _fewer_parameters,
    "C34": _parameters_at_576,
    "C43": _less_than_vivit,
    "C71": _mask_bits,
}


def finding(claim_id: str) -> Finding | None:
    """What counting says of a claim; None where nothing about it can be counted, ValueError for an unknown claim."""
    judge = JUDGES.get(claim(claim_id).id)
    return None if judge is None else judge()
