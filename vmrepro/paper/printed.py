"""Exact arithmetic on printed cells, and the few shapes that most claims about them have.

Printed numbers are decimals and so are their differences here: 82.8 - 82.0 is 0.8, which floats miss. A judge is a function from
a claim to a finding; it reads every operand by row id.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from vmrepro.paper import reference
from vmrepro.paper.claims import Claim, Finding, Verdict

Judge = Callable[[Claim], Finding]
Pairs = Sequence[tuple[str, str]]
Gaps = Mapping[tuple[str, str, str], Decimal]  # left row, right row, column
PATCH = 16  # pixels, section 3.2


def cell(row_id: str, column: str = "top1") -> Decimal:
    """A printed number, exactly as printed; ValueError where the cell is empty or holds text."""
    content = reference.value(row_id, column).value
    if isinstance(content, bool | str):
        raise ValueError(f"{column} of {row_id} is {content!r}, not a number")
    return Decimal(str(content))


def text(row_id: str, column: str) -> str:
    """A printed cell as text, "" where it is empty."""
    content = reference.row(row_id).values[column]
    return "" if content is None else str(content)


def gap(left: str, right: str, column: str = "top1") -> Decimal:
    """The cell of ``left`` less that of ``right``."""
    return cell(left, column) - cell(right, column)


def ours(row_ids: Iterable[str]) -> list[str]:
    """Those of the rows that are the paper's own model, in order."""
    return [row_id for row_id in row_ids if reference.row(row_id).values["is_ours"]]


def others(row_ids: Iterable[str], column: str = "top1") -> list[str]:
    """Those of the rows that are other methods and have a number in ``column``, in order."""
    rows = [reference.row(row_id) for row_id in row_ids]
    return [row.id for row in rows if not row.values["is_ours"] and row.values[column] is not None]


def ids(table: str, **wanted: object) -> list[str]:
    """Row ids of a table, those only whose cells equal ``wanted``."""
    rows = reference.table(table)
    return [row.id for row in rows if all(row.values[column] == value for column, value in wanted.items())]


def best(row_ids: Iterable[str], column: str = "top1") -> str:
    """The row with the highest number."""
    return max(row_ids, key=lambda row_id: cell(row_id, column))


def tokens(row_id: str) -> int:
    """Tokens of one view with the class token: frames times patches, plus one (section 3.2)."""
    cells = reference.row(row_id).values
    return cells["input_frames"] * (cells["input_size"] // PATCH) ** 2 + 1


def slope(row_ids: Iterable[str]) -> float:
    """Least-squares slope of log FLOPs on log tokens over the rows; 1 is linear growth."""
    points = [(math.log(tokens(row_id)), math.log(cell(row_id, "flops_g"))) for row_id in row_ids]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def graded(held: Sequence[bool]) -> Verdict:
    """The verdict on a statement of several parts: supported when all hold, contradicted when none does."""
    return Verdict.SUPPORTED if all(held) else Verdict.PARTLY_SUPPORTED if any(held) else Verdict.CONTRADICTED


def superlative(gaps: Iterable[Decimal]) -> Verdict:
    """The verdict on "the best of all" from its gaps to the others: contradicted by a negative one, partial with a tie."""
    worst = min(gaps)
    return Verdict.CONTRADICTED if worst < 0 else Verdict.PARTLY_SUPPORTED if worst == 0 else Verdict.SUPPORTED


def over(gaps: Gaps, claim: Claim, verdict: Verdict, sign: int = 1) -> Finding:
    """A finding over gaps; comparison and number are those of the gap least favourable to the claim."""
    held = sum(sign * value > 0 for value in gaps.values())
    (left, right, column), worst = min(gaps.items(), key=lambda item: sign * item[1])
    sides = f"{left} {cell(left, column)}, {right} {cell(right, column)}"
    return Finding(verdict, float(worst), claim.unit, f"{held} of {len(gaps)} hold; least {worst:+} ({sides})")


def no_number(comparison: str, number: Callable[[], Decimal] | None = None) -> Judge:
    """A judge for what the paper prints no deciding number for; ``number`` may give one that bears on it, in the claim's unit."""

    def judge(claim: Claim) -> Finding:
        return Finding(Verdict.NO_NUMBER, None if number is None else float(number()), claim.unit, comparison)

    return judge


def beside(finding: Finding, pairs: Pairs, column: str = "top1") -> Finding:
    """The finding with gaps added to its comparison that do not decide, but that a reader should see."""
    gaps = ", ".join(f"{left} - {right} {gap(left, right, column):+}" for left, right in pairs)
    return replace(finding, comparison=f"{finding.comparison}; beside: {gaps}") if gaps else finding


def stated_gap(column: str = "top1", *, also: Pairs = ()) -> Judge:
    """Left less right is the stated margin, to the last printed digit; operands and margin are those of the claim."""

    def judge(claim: Claim) -> Finding:
        found, stated = gap(claim.lhs, claim.rhs, column), Decimal(str(claim.margin))
        comparison = f"{cell(claim.lhs, column)} - {cell(claim.rhs, column)} = {found:+}, stated {stated:+}"
        return beside(Finding(graded([found == stated]), float(found), claim.unit, comparison), also, column)

    return judge


def stated_value(column: str = "top1") -> Judge:
    """Every row of the claim prints the value on its right-hand side."""

    def judge(claim: Claim) -> Finding:
        found, stated = [cell(row_id, column) for row_id in claim.rows], Decimal(claim.rhs)
        comparison = f"printed {', '.join(map(str, found))}; stated {stated}"
        return Finding(graded([value == stated for value in found]), float(found[0]), claim.unit, comparison)

    return judge


def each_above(pairs: Pairs, *columns: str, sign: int = 1, also: Pairs = ()) -> Judge:
    """The left row of every pair is above the right one (below, with ``sign`` -1), in each column; top-1 by default."""

    def judge(claim: Claim) -> Finding:
        gaps = {(*pair, column): gap(*pair, column) for column in columns or ("top1",) for pair in pairs}
        return beside(over(gaps, claim, graded([sign * value > 0 for value in gaps.values()]), sign), also)

    return judge


def extreme(leader: str, *, sign: int = 1) -> Judge:
    """``leader`` is above every other row of the claim (below, with ``sign`` -1) in top-1, see :func:`superlative`."""

    def judge(claim: Claim) -> Finding:
        gaps = {(leader, other, "top1"): gap(leader, other) for other in claim.rows if other != leader}
        return over(gaps, claim, superlative(sign * value for value in gaps.values()), sign)

    return judge


def level(pairs: Pairs, margin: str, *, also: Pairs = ()) -> Judge:
    """Every pair is within ``margin`` points of top-1; the number is the gap furthest from zero."""

    def judge(claim: Claim) -> Finding:
        found = {pair: gap(*pair) for pair in pairs}
        (left, right), worst = max(found.items(), key=lambda item: abs(item[1]))
        comparison = f"{left} {cell(left)} - {right} {cell(right)} = {worst:+}; level read as within {margin}"
        verdict = graded([abs(value) <= Decimal(margin) for value in found.values()])
        return beside(Finding(verdict, float(worst), claim.unit, comparison), also)

    return judge


def chain(*row_ids: str) -> list[tuple[str, str]]:
    """Neighbouring pairs of rows that are given from the highest to the lowest."""
    return list(itertools.pairwise(row_ids))
