"""What the static site shows, gathered once from the paper's data, the verdicts and the files under figures/; no markup here.

The paper's results are its tables and figures 1, 4, 6 and 7; figures 2, 3 and 5 are drawings without numbers.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vmrepro import paths
from vmrepro.paper import claims, errata_checks, reference
from vmrepro.report import audit, export, figures, rebuild, verify
from vmrepro.report.site_grid import Grid, common, facts, grid
from vmrepro.specs import catalog, efficiency
from vmrepro.specs.schema import Tier


@dataclass(frozen=True)
class Result:
    """A figure or table of the paper, with a page of its own; ``id`` is also its folder under figures/."""

    id: str
    short: str
    title: str


RESULTS = (
    Result("fig1", "Fig. 1", "Throughput and memory against TimeSformer-Ti"),
    Result("fig4", "Fig. 4", "Scan orders"),
    Result("fig6", "Fig. 6", "Self-distillation and early stopping"),
    Result("fig7", "Fig. 7", "Scan order, input frames and resolution"),
    Result("table1", "Table 1", "Model sizes"),
    Result("table2", "Table 2", "ImageNet-1K"),
    Result("table3", "Table 3", "Kinetics-400"),
    Result("table4", "Table 4", "Something-Something V2"),
    Result("table5", "Table 5", "Masked pretraining, ablations"),
    Result("table6", "Table 6", "Breakfast and COIN"),
    Result("table7", "Table 7", "LVU"),
    Result("table8", "Table 8", "Zero-shot text-to-video retrieval"),
)
SHORT = {result.id: result.short for result in RESULTS}
SPEED = "speed"  # the folder of recorded benchmarks under figures/
# By the name of its files: what a benchmark measures, and the command that records it.
SPEEDS = {
    "mini": ("The operator and the model on a GPU", "python -m vmrepro.bench --record"),
    "cpu": ("The operator on a CPU", "python -m vmrepro.bench --record"),
    "decoders": ("Video decoders on one core of a CPU", "vmrepro data bench --record"),
}
HEADS = {"reach": "wanted", "met": "reached", "peer": "best peer", "peers": "of the best peer"}  # for columns of terse names
JUDGING_TIERS: tuple[Tier, ...] = ("mini", "paper")
MENTION = re.compile(r"(Fig|Table)(?:s|ures?)?\.? (\d[a-d]?(?:(?:, ?| and | to | ?/ ?|-)\d[a-d]?)*)")


def result_of(table: str) -> str:
    """The id of the result that a table of ``reference.tables()`` is printed in: table7 of table7_long, fig7 of fig7a."""
    return re.match(r"(fig|table)\d+", table)[0]


def mentioned(text: str | None) -> set[str]:
    """Ids of the results that a phrase such as "Fig. 6a, Tables 2-4" names; ranges are filled."""
    found = set()
    for kind, numbers in MENTION.findall(text or ""):
        for part in re.split(r",|/|and", numbers):
            ends = [int(digit) for digit in re.findall(r"\d", part)]
            found |= {f"{kind.lower()}{number}" for number in range(ends[0], ends[-1] + 1)}
    return found


@dataclass(frozen=True)
class Recording:
    """Recorded numbers, figures/<figure>/<name>.csv, and where they come from: facts that all runs share, the rest run by run.

    ``command`` makes them anew, None where none does. ``ending`` is what they come to, one line an experiment, and
    ``ending_means`` says what its columns hold; None where the numbers are kept but not drawn.
    """

    figure: str
    name: str
    tier: str
    command: str | None
    data: str | None
    seeds: tuple[int, ...]
    facts: Mapping[str, str]
    runs: Grid
    ending: Grid | None
    ending_means: str | None

    @property
    def is_tier(self) -> bool:
        """Whether these are the figure's numbers at a tier; others were tried once and are kept."""
        return self.name == self.tier

    @property
    def anchor(self) -> str:
        return f"{self.figure}-{self.name}"

    @property
    def label(self) -> str:
        """As in "Fig. 6, mini tier"."""
        return f"{SHORT[result_of(self.figure)]}, {self.name}{' tier' if self.is_tier else ''}"


@dataclass(frozen=True)
class Claim:
    """A claim with what every basis says of it; no verdict is made of several."""

    claim: claims.Claim
    lines: tuple[verify.Line, ...]
    results: frozenset[str]  # ids of the results it speaks of


@dataclass(frozen=True)
class Erratum:
    """An entry of the ledger and its recomputation; ``check`` is None where it cannot be computed."""

    erratum: reference.Erratum
    check: errata_checks.Check | None
    results: frozenset[str]


@dataclass(frozen=True)
class Picture:
    """A drawing under figures/: its path less the suffix, and the suffixes of the files that lie there."""

    stem: str
    suffixes: tuple[str, ...]


@dataclass(frozen=True)
class Speed:
    """A recorded benchmark, figures/speed/<name>.csv: its lines, the command that makes them anew, facts of its origin."""

    name: str
    title: str
    command: str
    lines: Grid
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Content:
    """All that is shown; ``frames`` are those of ``audit.frame``, ``counts`` the origin of the counts of other methods."""

    claims: tuple[Claim, ...]
    errata: tuple[Erratum, ...]
    frames: Mapping[str, pd.DataFrame]
    recordings: tuple[Recording, ...]
    counts: Mapping[str, str]
    speeds: tuple[Speed, ...]
    files: tuple[str, ...]


def gather() -> Content:
    """Read everything once; ValueError where a recorded file is not what its origin signed for."""
    lines: dict[str, list[verify.Line]] = {}
    for line in verify.judgements():
        lines.setdefault(line.claim, []).append(line)
    peers = figures.load(*audit.PEERS)
    tested = {
        (name, figure) for figure, members in catalog.FIGURES.items() for one in members("paper") for name in one.reproduces
    }
    return Content(
        claims=tuple(
            Claim(
                entry,
                tuple(lines.get(entry.id, ())),
                _results(entry.rows, entry.evidence) | {figure for name, figure in tested if name == entry.id},
            )
            for entry in claims.claims()
        ),
        errata=tuple(_erratum(entry) for entry in reference.errata()),
        frames={name: audit.frame(name) for name in reference.tables()},
        recordings=tuple(_recordings()),
        counts={} if peers is None else facts(peers.origin),
        speeds=tuple(_speeds()),
        files=tuple(file.relative_to(paths.figures()).as_posix() for file in _files()),
    )


def _files() -> list[Path]:
    """The files in the folders of figures and tables, in order."""
    return sorted(file for kind in ("fig", "table") for file in paths.figures().glob(f"{kind}[0-9]*/[!.]*") if file.is_file())


def _erratum(entry: reference.Erratum) -> Erratum:
    return Erratum(entry, errata_checks.check(entry.id), _results(entry.where, entry.place))


def _results(row_ids: Iterable[str], place: str | None) -> frozenset[str]:
    tables = {row.table for name in row_ids for row in reference.rows(name)}
    return frozenset({result_of(table) for table in tables} | mentioned(place))


def _recordings() -> Iterator[Recording]:
    """Every set of recorded numbers under figures/ whose origin names its runs, by figure; smoke runs last."""
    for file in sorted(_files(), key=lambda file: (file.parent, file.stem == "smoke", file)):
        figure, name = file.parent.name, file.stem
        saved = figures.load(figure, name) if file.suffix == ".json" else None
        if saved is None or "runs" not in saved.origin:
            continue
        runs, tier = saved.origin["runs"], saved.origin["tier"]
        module = rebuild.DRAWN_BY.get(figure) if name == tier else None
        shared, rest = common(runs)
        yield Recording(
            figure=figure,
            name=name,
            tier=tier,
            command=_command(figure, tier) if name == tier else None,
            data=module and module.DATA[tier],
            seeds=tuple(sorted({run["seed"] for run in runs if "seed" in run})),
            facts=shared,
            runs=rest,
            ending=module and grid(module.finals(saved.numbers).reset_index()),
            ending_means=module and inspect.getdoc(module.finals).partition("\n\n")[0],
        )


def _speeds() -> Iterator[Speed]:
    """Every recorded benchmark, its numbers with four digits as the benchmark prints them."""
    for name, (title, command) in SPEEDS.items():
        if (saved := figures.load(SPEED, name)) is None:
            continue
        lines = saved.numbers.dropna(axis="columns", how="all")
        lines = lines.rename(columns=lambda column: HEADS.get(column, column.replace("_", " ")))
        shared, _ = common(saved.origin["runs"])
        yield Speed(name, title, command, grid(lines.map(_four_digits)), shared)


def _four_digits(value: object) -> object:
    if not isinstance(value, float) or math.isnan(value):
        return value
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def notebook(result_id: str) -> str | None:
    """The path, from the folder of figures, of the notebook that computes a result; None where none lies beside that folder."""
    found = next((paths.figures().parent / paths.notebooks().name).glob(f"{result_id}_*.ipynb"), None)
    return found and f"../{found.parent.name}/{found.name}"


def _command(figure: str, tier: Tier) -> str | None:
    return f"vmrepro run {figure} --tier {tier}" if figure in (*catalog.FIGURES, *efficiency.FIGURES) else None


def table(content: Content, name: str) -> Grid:
    """A table as shown: cells as printed and as exported, and behind them what was run and which claims rest on the row."""
    full = content.frames[name]
    own = [row.id for row in reference.table(name) if audit.is_own(row)]
    behind = full[["result (ours)", "claims"]].replace("", None).dropna(axis="columns", how="all")
    return grid(pd.concat([export.as_text(name), behind], axis=1), full["row"].tolist(), own)


def pictures(content: Content, result_id: str) -> list[Picture]:
    """The drawings in the folders of a result."""
    files = [file for file in content.files if result_of(file) == result_id]
    stems = [file.removesuffix(".svg") for file in files if file.endswith(".svg")]
    return [Picture(stem, tuple(s for s in ("svg", "png", "csv", "json") if f"{stem}.{s}" in files)) for stem in stems]


def counted(content: Content, names: Iterable[str]) -> str | None:
    """How many rows of some tables have counts of ours beside the printed ones; None where there are none."""
    counts = pd.concat([content.frames[name]["params (ours)"] for name in names] or [pd.Series(dtype=float)])
    return f"counts for {counts.notna().sum()} of {len(counts)} rows" if counts.notna().any() else None


@dataclass(frozen=True)
class Agreement:
    """How many printed numbers of a quantity our counts meet exactly, within 3 per cent, or not."""

    quantity: str
    total: int
    exact: int
    close: int
    differs: int


def agreements(content: Content) -> list[Agreement]:
    """The counts against what is printed, for the paper's own rows and for other methods; none where nothing is counted."""
    every = pd.concat(content.frames.values())
    own = every["row"].map(lambda row_id: audit.is_own(reference.row(row_id)))
    found = []
    for whose, part in (("VideoMamba", every[own]), ("other methods", every[~own])):
        for column, words in (("params match", "Parameters"), ("GFLOPs match", "Multiply-adds")):
            matches = part[column][part[column] != ""]
            numbers = [int((matches == word).sum()) for word in ("exact", "within 3 %", "differs")]
            found.append(Agreement(f"{words} of {whose}", len(matches), *numbers))
    return [agreement for agreement in found if agreement.total]


def missing_figures(content: Content) -> pd.DataFrame:
    """One line per figure that takes runs and tier that can judge: whether it is recorded, and the command that would run it."""
    recorded = {(recording.figure, recording.name) for recording in content.recordings}
    lines = [
        {
            "figure": result.short,
            "tier": tier,
            "state": "recorded" if (result.id, tier) in recorded else "not run",
            "command": command,
        }
        for result in RESULTS
        for tier in JUDGING_TIERS
        if (command := _command(result.id, tier)) is not None
    ]
    return pd.DataFrame(lines)


def missing_rows() -> dict[str, pd.DataFrame]:
    """By table, the paper's own rows that print a score which no recorded run at the paper tier reproduces."""
    tables = {name: audit.results(name) for name in reference.tables() if name != "table7_long"}  # Table 7 once more
    missing = {name: lines[lines["paper tier (ours)"] == "not run"] for name, lines in tables.items()}
    return {name: lines for name, lines in missing.items() if len(lines) and any("(paper)" in column for column in lines)}
