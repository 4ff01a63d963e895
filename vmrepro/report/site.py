"""The static site under figures/: every figure, table, verdict, suspected error and run, each a link away from its origin.

The pages hold their style and script themselves and link to the files beside them, so they work from a folder, without a
server and without a network. Their bytes depend on nothing but the records and the paper's data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from vmrepro import __version__, paths, store
from vmrepro.paper import reference
from vmrepro.paper.claims import Verdict
from vmrepro.report import audit, export, rebuild, scatter, site_data, verify
from vmrepro.report.site_grid import GAP, grid

TEMPLATES = paths.PACKAGE / "report" / "templates"
# The class that gives a verdict its sign and colour, in the order in which verdicts are listed.
TONES = {
    Verdict.SUPPORTED: "good",
    Verdict.PARTLY_SUPPORTED: "part",
    Verdict.WITHIN_SEED_SPREAD: "open",
    Verdict.CONTRADICTED: "bad",
    Verdict.NO_NUMBER: "none",
    Verdict.NOT_TESTABLE: "none",
    Verdict.NOT_RUN: "none",
}
# What a verdict rests on, the bases of ``verify.Line``; all but the first are work of ours.
BASES = {
    "paper": "the paper's own numbers",
    "counts": "our counts",
    "mini": "runs at the mini tier",
    "paper-tier": "runs at the paper tier",
}
OURS = tuple(BASES)[1:]
TOKEN = re.compile(site_data.MENTION.pattern + r"|[\w./-]*\w")


@dataclass(frozen=True)
class Page:
    """One file of the site; ``short`` is its name in the navigation."""

    file: str
    short: str
    title: str
    template: str
    context: dict[str, Any] = field(default_factory=dict)


def report() -> list[Path]:
    """Draw every recorded picture again, write every table and every page from what is recorded; the paths written."""
    return [*rebuild.redraw(), *scatter.redraw(), *export.write_all(), *build()]


def build() -> list[Path]:
    """Write every page into ``paths.figures()`` and return their paths, the index first.

    Raises ValueError where recorded numbers are not those that their origin signed for.
    """
    content = site_data.gather()
    pages = list(_pages(content))
    environment = _environment(content, pages)
    paths.figures().mkdir(parents=True, exist_ok=True)
    for page in pages:
        text = environment.get_template(page.template).render(page=page, content=content, **page.context)
        store.write_atomically(paths.figures() / page.file, text)
    return [paths.figures() / page.file for page in pages]


def _pages(content: site_data.Content) -> Iterator[Page]:
    yield Page("index.html", "Overview", "VideoMamba, recomputed", "index.html", _overview(content))
    yield Page("claims.html", "Claims", "Claims of the paper and what became of them", "claims.html", _by_topic(content))
    yield Page("errata.html", "Errata", "Suspected errors and differences", "errata.html", _by_kind(content))
    yield Page("runs.html", "Runs", "Where the numbers come from", "runs.html")
    yield Page("speed.html", "Speed", "Speed beside the peers", "speed.html", _speed())
    yield Page("not_run.html", "Not run", "What was not run", "not_run.html", _not_run(content))
    for result in site_data.RESULTS:
        title = f"{result.short}: {result.title}"
        yield Page(f"{result.id}.html", result.short.split()[-1], title, "result.html", _result(content, result))


def _overview(content: site_data.Content) -> dict[str, Any]:
    rows = [row for name in reference.tables() for row in reference.table(name)]
    return {
        "tally": _tally(content),
        "results": [_result(content, result) for result in site_data.RESULTS],
        "rows": len({row.values["row_id"] for row in rows}),
        "own_rows": len({row.values["row_id"] for row in rows if audit.is_own(row)}),
        "agreements": site_data.agreements(content),
    }


def _by_topic(content: site_data.Content) -> dict[str, Any]:
    topics = dict.fromkeys(claim.claim.topic for claim in content.claims)
    return {
        "topics": {topic: [claim for claim in content.claims if claim.claim.topic == topic] for topic in topics},
        "tally": _tally(content),
    }


def _tally(content: site_data.Content) -> dict[str, dict[str, list[str]]]:
    """Ids of claims by basis and verdict."""
    return {basis: found for basis in BASES if (found := _by_verdict(content.claims, basis))}


def _by_verdict(members: Iterable[site_data.Claim], *bases: str) -> dict[str, list[str]]:
    """Ids of claims by what one of the bases says of them, in the order of ``TONES``; without verdicts that none has."""
    found = {word: [] for word in TONES}
    for claim in members:
        for word in {line.verdict for line in claim.lines if line.basis in bases}:
            found[word].append(claim.claim.id)
    return {word: ids for word, ids in found.items() if ids}


def _by_kind(content: site_data.Content) -> dict[str, Any]:
    kinds = dict.fromkeys(entry.erratum.kind for entry in content.errata)
    return {"kinds": {kind: [entry for entry in content.errata if entry.erratum.kind == kind] for kind in kinds}}


def _not_run(content: site_data.Content) -> dict[str, Any]:
    return {
        "figures": grid(site_data.missing_figures(content)),
        "tables": {
            _caption(name): grid(lines.drop(columns="row"), lines["row"].tolist())
            for name, lines in site_data.missing_rows().items()
        },
        "unrun": [claim for claim in content.claims if all(_not_ours(line) for line in claim.lines)],
    }


def _speed() -> dict[str, Any]:
    notes = f"{site_data.SPEED}/README.md"
    return {"folder": site_data.SPEED, "notes": notes if (paths.figures() / notes).is_file() else None}


def _not_ours(line: verify.Line) -> bool:
    return line.basis == "paper" or line.verdict == Verdict.NOT_RUN


def _result(content: site_data.Content, result: site_data.Result) -> dict[str, Any]:
    """What the page of one figure or table shows."""
    names = [name for name in reference.tables() if site_data.result_of(name) == result.id]
    claims = [claim for claim in content.claims if result.id in claim.results]
    recordings = [recording for recording in content.recordings if site_data.result_of(recording.figure) == result.id]
    return {
        "result": result,
        "notebook": site_data.notebook(result.id),
        "tables": {name: site_data.table(content, name) for name in names},
        "captions": {name: _caption(name) for name in names},
        "meanings": {name: audit.describe(name) for name in names},
        "notes": {name: [note for note in audit.notes(name) if not re.match(r"E\d+ ", note)] for name in names},
        "counted": site_data.counted(content, names),
        "recordings": {f"{recording.figure}/{recording.name}": recording for recording in recordings},
        "pictures": site_data.pictures(content, result.id),
        "files": [file for file in content.files if site_data.result_of(file) == result.id],
        "claims": claims,
        "by_paper": _by_verdict(claims, "paper"),
        "by_us": {word: ids for word, ids in _by_verdict(claims, *OURS).items() if word != Verdict.NOT_RUN},
        "errata": [entry for entry in content.errata if result.id in entry.results],
    }


def _caption(table: str) -> str:
    """The name of a table in the paper, and what sets it apart where a printed table lies in two files."""
    return export.title(table) + (", one line per task" if table == "table7_long" else "")


def _environment(content: site_data.Content, pages: list[Page]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    targets = _targets(content)
    results = {result.id for result in site_data.RESULTS}
    groups = {
        "vmrepro": [page for page in pages if page.template != "result.html"],
        "Figures": [page for page in pages if page.file.startswith("fig")],
        "Tables": [page for page in pages if page.file.startswith("table")],
    }
    environment.filters |= {
        "linked": lambda text: _linked(str(text), targets, results),
        "target": targets.__getitem__,
        "tone": lambda verdict: TONES[verdict],
        "slug": lambda word: re.sub(r"\W+", "-", word),
        "basis": lambda basis: BASES[basis],
        "measured": _measured,
    }
    environment.globals |= {
        "navigation": tuple(groups.items()),
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        "filter_script": Markup((TEMPLATES / "filter.js").read_text(encoding="utf-8")),
        "version": __version__,
        "GAP": GAP,
        "BASES": BASES,
        "TONES": TONES,
    }
    return environment


def _targets(content: site_data.Content) -> dict[str, str]:
    """Where every id that a text may name is shown."""
    targets = {claim.claim.id: f"claims.html#{claim.claim.id}" for claim in content.claims}
    targets |= {entry.erratum.id: f"errata.html#{entry.erratum.id}" for entry in content.errata}
    for name in reference.tables():
        page = f"{site_data.result_of(name)}.html"
        for row in reference.table(name):
            targets.setdefault(str(row.values["row_id"]), f"{page}#{row.id}")
            targets[row.id] = f"{page}#{row.id}"
    for recording in content.recordings:
        targets[f"figures/{recording.figure}/{recording.name}.json"] = f"runs.html#{recording.anchor}"
        targets |= {run.id: f"runs.html#{run.id}" for run in recording.runs.rows if run.id}
    return targets


def _linked(text: str, targets: dict[str, str], results: set[str]) -> Markup:
    """The text as markup, with every id and every "Fig. 6a" or "Tables 3 and 4" in it made a link."""
    parts, end = [], 0
    for match in TOKEN.finditer(text):
        parts.append(escape(text[end : match.start()]))
        parts.append(_mention(match, results) if match[1] else _anchor(match[0], targets.get(match[0])))
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def _anchor(text: str, target: str | None) -> Markup:
    return escape(text) if target is None else Markup('<a href="{}">{}</a>').format(target, text)


def _mention(match: re.Match[str], results: set[str]) -> Markup:
    kind, pieces = match[1].lower(), re.split(r"(\d[a-d]?)", match[0])
    if len(pieces) == 3:  # one number: the link holds the whole of "Fig. 6a"
        return _anchor(match[0], f"{kind}{pieces[1][0]}.html" if f"{kind}{pieces[1][0]}" in results else None)
    pages = [f"{kind}{piece[0]}" if piece[:1].isdigit() else "" for piece in pieces]
    return Markup("").join(
        _anchor(piece, f"{page}.html" if page in results else None) for piece, page in zip(pieces, pages, strict=True)
    )


def _measured(line: verify.Line) -> str:
    """The decisive number of a judgement with its unit, interval and seeds."""
    text = f"{line.number:.4g} {line.unit or ''}".strip()
    if line.low is not None and line.high is not None:
        text += f" (95 % interval {line.low:.3g} to {line.high:.3g})"
    return text + (f", {line.seeds} seeds" if line.seeds else "")
