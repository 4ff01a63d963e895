"""Every claim of the paper judged again, from its own numbers, from counts and from recorded runs; nothing is run.

A claim gets a line for each basis that can say something: ``paper`` (printed numbers alone), ``counts`` (parameters, costs and
masks in closed form), and the tier of each recorded figure that tests it, ``mini`` or ``paper-tier`` (real data, released
recipes). A smoke record never judges. What only a run can settle and no paper-tier record holds is listed as not run. Verdicts
are those of :class:`vmrepro.paper.claims.Verdict`; figures/verdicts.csv keeps the ones that are committed.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from vmrepro import paths, store
from vmrepro.paper.claims import Claim, Finding, Verdict, claim, claims
from vmrepro.paper.own_numbers import DIFFERS
from vmrepro.paper.own_numbers import finding as printed_finding
from vmrepro.specs.claim_counts import finding as counted_finding

BASES = {"mini": "mini", "paper": "paper-tier"}  # tier of a record to basis of a line; smoke judges nothing
DECIDES = ("paper-tier", "counts", "paper", "mini")  # a full run outweighs a count, a count print, print a run on small data
OPEN = (Verdict.WITHIN_SEED_SPREAD, Verdict.NOT_TESTABLE, Verdict.NOT_RUN, Verdict.NO_NUMBER)  # verdicts that settle nothing
FORMATS = ("text", "csv", "json")
COMPARISON_WIDTH = 96  # characters in the text format


@dataclass(frozen=True)
class Line:
    """What one basis says of one claim.

    ``comparison`` is what was put against what; ``number`` in ``unit`` decides: for a run the mean difference over ``seeds`` and
    its 95 % interval ``low`` to ``high``. ``source`` holds ids of table rows, a place in the paper, or the path of a record.
    """

    claim: str
    basis: str
    verdict: str
    number: float | None
    unit: str | None
    low: float | None
    high: float | None
    seeds: int | None
    comparison: str
    source: str
    statement: str
    note: str | None


def judgements() -> list[Line]:
    """The lines of all claims, in order: paper, counts, then recorded tiers. Needs no torch."""
    return [line for subject in claims() for line in _lines(subject)]


def overall(claim_id: str) -> Line:
    """The line that decides a claim, its ``comparison`` replaced by the verdicts of all bases.

    The first basis of ``DECIDES`` that says supported, partly supported or contradicted decides; where none does, the line that
    says most, by the order of ``OPEN``. ValueError for an unknown claim.
    """
    lines = _lines(claim(claim_id))
    settled = [line for basis in DECIDES for line in lines if line.basis == basis and line.verdict not in OPEN]
    deciding = settled[0] if settled else min(lines, key=lambda line: OPEN.index(line.verdict))
    return replace(deciding, comparison="; ".join(f"{line.basis}: {line.verdict}" for line in lines))


def _lines(subject: Claim) -> list[Line]:
    note = " ".join(filter(None, (subject.note, DIFFERS.get(subject.id))))
    lines = [_line(subject, "paper", printed_finding(subject.id), note)]
    counted = counted_finding(subject.id)
    if counted is not None:
        lines.append(_line(subject, "counts", counted))
    lines += [line for line in _recorded()[0] if line.claim == subject.id]
    if subject.test_scale != "analytic" and not any(line.basis == "paper-tier" for line in lines):
        stated = f" = {subject.margin:g}" if subject.operator == "-" and subject.margin is not None else ""
        asked = f"{subject.lhs} {subject.operator} {subject.rhs}{stated}"
        lines.append(_line(subject, "paper-tier", Finding(Verdict.NOT_RUN, None, subject.unit, asked)))
    return lines


def _line(subject: Claim, basis: str, found: Finding, note: str | None = None, **interval: object) -> Line:
    place = ";".join(subject.rows) or subject.evidence or f"section {subject.section}"
    shown = {"low": None, "high": None, "seeds": None, "source": place, **interval}
    return Line(
        claim=subject.id,
        basis=basis,
        verdict=str(found.verdict),
        number=found.number,
        unit=found.unit,
        comparison=found.comparison,
        statement=subject.statement,
        note=note or None,
        **shown,
    )


def _recorded() -> tuple[list[Line], list[str]]:
    """Lines from every recorded figure, and the verdicts that are not those written beside it."""
    files = sorted(path for tier in BASES for path in paths.figures().glob(f"*/{tier}.*"))
    return _judged(tuple((path, path.stat().st_mtime_ns) for path in files)) if files else ([], [])


@functools.lru_cache(maxsize=1)
def _judged(_files: tuple[tuple[Path, int], ...]) -> tuple[list[Line], list[str]]:
    from vmrepro.report import figures, rebuild  # here, because they bring pandas and matplotlib

    lines, changed = [], []
    for figure_id, module in rebuild.DRAWN_BY.items():
        for tier, basis in BASES.items():
            saved = figures.load(figure_id, tier) if hasattr(module, "rulings") else None
            if saved is None:
                continue
            before = {(ruling["claim"], ruling["comparison"]): ruling["verdict"] for ruling in saved.origin["claims"]}
            for ruling in module.rulings(saved.numbers, tier):
                interval = {"low": ruling.low, "high": ruling.high, "seeds": int(ruling.seeds)}
                subject, source = claim(ruling.claim), f"figures/{figure_id}/{tier}.json"
                found = Finding(Verdict(ruling.verdict), ruling.difference, subject.unit, ruling.comparison)
                lines.append(_line(subject, basis, found, source=source, **interval))
                recorded = before.get((ruling.claim, ruling.comparison), "absent")
                if recorded != ruling.verdict:
                    changed.append(f"{figure_id} {tier} {ruling.claim}: recorded as {recorded!r}, now {str(ruling.verdict)!r}")
    return lines, changed


def committed() -> Path:
    """Where the committed list lies: verdicts.csv in the folder of figures."""
    return paths.figures() / "verdicts.csv"


def changed(lines: Iterable[Line]) -> list[str]:
    """A sentence for each verdict that is not the committed one, or not the one recorded beside its figure.

    A line that is in only one of the two lists counts as changed. FileNotFoundError where there is no committed list.
    """
    if not committed().is_file():
        raise FileNotFoundError(f"no list of verdicts at {committed()} to compare with; `vmrepro verify --write` makes one")
    with committed().open(encoding="utf-8", newline="") as file:
        before = {_key(row): row["verdict"] for row in csv.DictReader(file)}
    now = {_key(asdict(line)): line.verdict for line in lines}
    differ = [
        f"{' '.join(key)}: committed as {before.get(key, 'absent')!r}, now {now.get(key, 'absent')!r}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    return differ + _recorded()[1]


def _key(row: Mapping[str, object]) -> tuple[object, ...]:
    """What tells lines apart: a record may put a claim to the test in several comparisons."""
    recorded = row["basis"] in BASES.values()
    return row["claim"], row["basis"], row["source"], *((row["comparison"],) if recorded else ())


def write(lines: Sequence[Line]) -> Path:
    """Make the lines the committed list; the path written."""
    store.write_atomically(committed(), render(lines, "csv"))
    return committed()


def render(lines: Sequence[Line], form: str) -> str:
    """The lines as aligned ``text`` for reading, or whole as ``csv`` or ``json``; ValueError for another form."""
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; expected one of {', '.join(FORMATS)}")
    if form == "text":
        return _text(lines)
    if form == "json":
        return json.dumps([asdict(line) for line in lines], indent=1, ensure_ascii=False) + "\n"
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in asdict(line).items()})
    return file.getvalue()


def _text(lines: Sequence[Line]) -> str:
    rows = [("claim", "basis", "verdict", "number", "95 % interval", "seeds", "comparison")]
    for line in lines:
        interval = "" if line.low is None else f"{line.low:.2f} to {line.high:.2f}"
        number = "" if line.number is None else f"{line.number:.4g} {line.unit or ''}".rstrip()
        seeds = "" if line.seeds is None else str(line.seeds)
        rows.append((line.claim, line.basis, line.verdict, number, interval, seeds, _cut(line.comparison)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*table, "", *_tally(lines)]) + "\n"


def _cut(comparison: str) -> str:
    return comparison if len(comparison) <= COMPARISON_WIDTH else f"{comparison[: COMPARISON_WIDTH - 3]}..."


def _tally(lines: Sequence[Line]) -> list[str]:
    """A line a basis: how many claims got which verdict."""
    counts: dict[str, dict[str, int]] = {}
    for line in lines:
        verdicts = counts.setdefault(line.basis, {})
        verdicts[line.verdict] = verdicts.get(line.verdict, 0) + 1
    return [f"{basis}: " + ", ".join(f"{count} {verdict}" for verdict, count in found.items()) for basis, found in counts.items()]
