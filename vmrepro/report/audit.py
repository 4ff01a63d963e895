"""Every printed row of a table with what we make of it: counts, recorded results, suspected errors, claims.

Headings that end in "(paper)" hold what the paper prints, "(ours)" what code of this package computed or ran. What other
methods' libraries count is recorded once, in figures/peers.csv, so that a report needs neither them nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pandas as pd

from vmrepro.paper import claims as paper_claims
from vmrepro.paper import errata_checks, reference
from vmrepro.report import figures, rebuild, verify
from vmrepro.specs import catalog, cost, rows
from vmrepro.specs.schema import Experiment, Tier

# Columns of the transcription that are shown, with their headings less "(paper)".
SCORES = {
    **{"top1": "top-1", "top5": "top-5", "breakfast_top1": "Breakfast", "coin_top1": "COIN", "value": "score"},
    **{f"content_{task}_acc_up": task for task in ("relation", "speak", "scene")},
    **{f"metadata_{task}_acc_up": task for task in ("director", "genre", "writer", "year")},
    **{f"user_{task}_mse_down": task for task in ("like", "view")},
    **{"r1": "R@1", "r5": "R@5", "r10": "R@10"},
}
PRINTED = {
    **{"depth": "depth", "dim": "width", "mask_type_printed": "mask", "alignment_printed": "aligned"},
    **{"mask_ratio": "mask ratio", "drop_path": "drop path", "backbone": "backbone", "visual_backbone": "backbone"},
    **{"pretraining_dataset": "pretraining", "pretrain_pairs_printed": "pairs", "extra_data": "extra data", "metric": "metric"},
    **{"params_m": "params", "flops_g": "GFLOPs", "views_total": "views", "flops_total_g": "GFLOPs x views"},
    **SCORES,
}
TOTALS = ("views_total", "flops_total_g")  # products of printed factors, not printed themselves
COMPUTED = {
    "params (ours)": "parameters in millions: of VideoMamba by closed form, of another method as its library builds it",
    "params match": "ours against the paper's: exact (equal when rounded as printed), within 3 % or differs; empty without both",
    "GFLOPs (ours)": "10^9 multiply-adds of one image or view: of VideoMamba counted as the paper does (erratum E22), of another "
    "method all products and convolutions",
    "GFLOPs match": "as params match",
    "GFLOPs full (ours)": "10^9 multiply-adds of one image or view of VideoMamba, scan and convolution included",
    "GFLOPs x views (ours)": "GFLOPs (ours) times the printed number of views",
    "counted by": "where the (ours) counts come from: closed form, or a library with its version (nearest: not quite the "
    "printed network); not built: no library has it, or the row does not say which network it is, see the notes",
    "result (ours)": "accuracy in percent that a recorded run at the paper tier reached, with its spread over seeds, or: not run",
    "command": "what would run the row at the paper tier; empty where there is no experiment for it",
    "errata": "suspected errors that touch the row, by id",
    "claims": "claims of the paper that rest on the row, by id",
}
# Experiments of the catalogue whose paper tier is the training behind a printed row.
TRAININGS = {"t2_22": "fig6_s", "t2_25": "fig6_m_distill"}
CLOSE = 0.03  # a relative difference that counts as close
UNBUILT, NOT_RECORDED = "not built", "not recorded"
PEER_COLUMNS = ("row", "library", "version", "builder", "match", "frames", "size", "params", "macs", "note")
PEERS = ("", "peers")  # figures/peers.csv and peers.json


def describe(table: str) -> dict[str, str]:
    """The meaning, with its unit, of every heading of ``frame(table)``; ValueError for a table that does not exist."""
    printed = {f"{PRINTED[name]} (paper)": reference.columns(table)[name].meaning for name in shown(table)}
    return {"row": "our key of the row", "method": "method and input, as the row is known", **printed, **COMPUTED}


def shown(table: str) -> list[str]:
    """The columns that were printed or are products of printed factors: no guess of ours."""
    kinds = reference.columns(table)
    return [name for name in PRINTED if name in kinds and (kinds[name].origin == "printed" or name in TOTALS)]


def frame(table: str) -> pd.DataFrame:
    """One line per printed row, with the columns of ``describe(table)``; gaps where nothing is printed or computed.

    ``table``: a name of ``reference.tables()``; ValueError for another.
    """
    printed_rows, peers = reference.table(table), recorded_peers()
    texts = {cells.get("cell_id", cells["row_id"]): cells for cells in reference.read_cells(table)}
    lines = []
    for row in printed_rows:
        printed = {f"{PRINTED[name]} (paper)": row.values[name] for name in shown(table)}
        lines.append(
            {
                **{"row": row.id, "method": row.place.partition(", ")[2], **printed},
                **_counted(row, texts[row.id], peers),
                "result (ours)": result(row.id, "paper") if is_own(row) else None,
                "command": _command(row.id),
                "errata": " ".join(entry.id for entry in reference.errata(row.id)),
                "claims": " ".join(claim.id for claim in paper_claims.claims() if _touches(claim.rows, row)),
            }
        )
    return pd.DataFrame(lines, columns=list(describe(table)))


def is_own(row: reference.Row) -> bool:
    """Whether a row is the paper's own model; ablations hold nothing else."""
    return bool(row.values.get("is_ours", True))


def _touches(row_ids: Iterable[str], row: reference.Row) -> bool:
    return not {row.id, row.values["row_id"]}.isdisjoint(row_ids)


def _counted(row: reference.Row, text: Mapping[str, str], peers: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The counts of one row, compared with what is printed. ``text``: its cells as printed, which say to how many digits."""
    spec, peer = rows.spec_of(row.id), peers.get(row.values["row_id"])
    params = macs = full = None
    by = ""
    if spec is not None:
        params, macs, full, by = cost.parameters(spec), cost.flops_paper(spec), cost.flops_full(spec), "closed form"
    elif peer is not None and pd.notna(peer["params"]):
        params, macs = int(peer["params"]), int(peer["macs"])
        by = f"{peer['library']} {peer['version']}" + ("" if peer["match"] == "exact" else f", {peer['match']}")
    elif peer is not None:
        by = UNBUILT
    elif "params_m" in text:
        by = NOT_RECORDED
    views = row.values.get("views_total")
    return {
        "params (ours)": None if params is None else params / 1e6,
        "params match": matches(text.get("params_m", ""), params, 10**6),
        "GFLOPs (ours)": None if macs is None else macs / 1e9,
        "GFLOPs match": matches(text.get("flops_g", ""), macs, 10**9),
        "GFLOPs full (ours)": None if full is None else full / 1e9,
        "GFLOPs x views (ours)": None if macs is None or views is None else macs * views / 1e9,
        "counted by": by,
    }


def matches(printed: str, counted: int | None, unit: int) -> str:
    """How a count compares with a printed text in ``unit``: exact, within 3 % or differs; empty where one is missing."""
    if not printed or counted is None:
        return ""
    wanted, value = Decimal(printed), Decimal(counted) / unit
    if value.quantize(wanted, ROUND_HALF_UP) == wanted:
        return "exact"
    return "within 3 %" if abs(value / wanted - 1) <= Decimal(str(CLOSE)) else "differs"


def experiments(table: str, tier: Tier) -> list[Experiment]:
    """The experiments of the catalogue, at ``tier``, that train a row of a table."""
    wanted = {name for row in reference.table(table) if (name := _trained_as(row.id)) is not None}
    return [experiment for experiment in catalog.experiments(tier) if experiment.id in wanted]


def _trained_as(row_id: str) -> str | None:
    """The experiment that trains a row, by the table above or because it says so itself."""
    saying = (experiment.id for experiment in catalog.experiments("paper") if row_id in experiment.reproduces)
    return TRAININGS.get(row_id) or next(saying, None)


def _command(row_id: str) -> str:
    experiment = _trained_as(row_id)
    return "" if experiment is None else f"vmrepro run {experiment} --tier paper"


def final(row_id: str, tier: Tier) -> dict[str, Any] | None:
    """What recorded runs of a row reached at ``tier``: final top-1 in percent, its sd, seeds and the data; None when not run."""
    experiment = _trained_as(row_id)
    for figure_id, members in catalog.FIGURES.items():
        trained = [member for member in members(tier) if member.id == experiment]
        if trained and (saved := figures.load(figure_id, tier)) is not None:
            return {**rebuild.DRAWN_BY[figure_id].finals(saved.numbers).loc[experiment], "data": trained[0].data.name}
    return None


def result(row_id: str, tier: Tier) -> str:
    """``final`` in words, "not run" where there is none."""
    reached = final(row_id, tier)
    if reached is None:
        return "not run"
    return f"{reached['final']:.2f} ± {reached['sd']:.2f} on {reached['data']}, {reached['seeds']:.0f} seeds"


def results(table: str) -> pd.DataFrame:
    """One line per own row: what is printed in percent, what recorded runs reached by tier, and the command for the paper tier.

    The mini tier is another data set: it stands here to be seen, and is not comparable with the printed number.
    """
    printed = [name for name in shown(table) if name in SCORES]
    lines = [
        {
            **{"row": row.id, "method": row.place.partition(", ")[2]},
            **{f"{PRINTED[name]} (paper)": row.values[name] for name in printed},
            **{f"{tier} tier (ours)": result(row.id, tier) for tier in ("paper", "mini")},
            "command": _command(row.id) or "no experiment yet",
        }
        for row in reference.table(table)
        if is_own(row)
    ]
    return pd.DataFrame(lines)


def recorded_peers() -> dict[str, dict[str, Any]]:
    """What is recorded of other methods, by row id: the cells of ``PEER_COLUMNS``; empty where nothing is recorded."""
    saved = figures.load(*PEERS)
    return {} if saved is None else {line["row"]: line for line in saved.numbers.to_dict("records")}


def peer_lines(counted: Iterable[tuple[Any, Any]]) -> pd.DataFrame:
    """Counts of other methods as lines of ``PEER_COLUMNS``; multiply-adds are of one view.

    ``counted``: pairs of a method and its count or None, as ``counts`` of :mod:`vmrepro.models.peers` gives them.
    """
    lines = [
        {
            **{"row": peer.row_id, "version": getattr(count, "version", None)},
            **{name: getattr(peer, name) for name in ("library", "builder", "match", "frames", "size", "note")},
            **{name: getattr(count, name, None) for name in ("params", "macs")},
        }
        for peer, count in counted
    ]
    whole = dict.fromkeys(("frames", "size", "params", "macs"), "Int64")
    return pd.DataFrame(lines, columns=list(PEER_COLUMNS)).astype(whole)


def record_peers(counted: Iterable[tuple[Any, Any]], origin: Mapping[str, Any]) -> pd.DataFrame:
    """Write figures/peers.csv from pairs as ``peer_lines`` takes them, its origin beside it, and return the lines.

    ``origin``: commit and the like. Raises ValueError where a library is not installed: the record is to be whole.
    """
    lines = peer_lines(counted)
    absent = sorted(set(lines[lines["params"].isna()]["library"].dropna()))
    if absent:
        raise ValueError(f"not recorded: {', '.join(absent)} is not installed, so some rows have no count; install it and repeat")
    versions = lines.dropna(subset=["library"]).groupby("library")["version"].first().to_dict()
    return figures.save_numbers(*PEERS, lines, {**origin, "libraries": versions}).numbers


def changed_peers(counted: Iterable[tuple[Any, Any]]) -> list[str]:
    """A sentence for each count that is not the recorded one, with the library's versions; empty when all are equal.

    ``counted`` as ``peer_lines`` takes it; a method whose library is not installed is passed over.
    """
    recorded, said = recorded_peers(), []
    for line in peer_lines(counted).to_dict("records"):
        before = recorded.get(line["row"], {})
        if line["library"] is not None and pd.isna(line["params"]):
            continue
        for name in ("params", "macs"):
            now, then = (None if pd.isna(value) else int(value) for value in (line[name], before.get(name)))
            if now != then:
                versions = f"{line['library']} {before.get('version')} then, {line['version']} now"
                said.append(f"{line['row']}: {name} was {then}, now {now} ({versions})")
    return said


def errata(table: str) -> pd.DataFrame:
    """The suspected errors that touch a table: id, kind, confidence, rows, whether a recomputation holds, what with numbers.

    ``holds`` is empty where nothing can be recomputed.
    """
    lines = []
    for entry in reference.errata():
        touched = [row.id for row in reference.table(table) if _touches(entry.where, row)]
        if touched:
            again = errata_checks.check(entry.id)
            said = {"id": entry.id, "kind": entry.kind, "confidence": entry.confidence, "rows": _span(touched)}
            what = entry.what if again is None else f"{entry.what}; recomputed: {again.computed}"
            lines.append({**said, "holds": "" if again is None else "yes" if again.holds else "no", "what": what})
    return pd.DataFrame(lines, columns=["id", "kind", "confidence", "rows", "holds", "what"])


def _span(row_ids: list[str]) -> str:
    return " ".join(row_ids) if len(row_ids) <= 3 else f"{row_ids[0]} ... {row_ids[-1]} ({len(row_ids)})"


def claims(table: str) -> pd.DataFrame:
    """The claims that rest on a table: id, verdict by basis, the number that decides on the first basis, the statement."""
    ids = {row.id for row in reference.table(table)} | {row.values["row_id"] for row in reference.table(table)}
    wanted = {claim.id for claim in paper_claims.claims() if not ids.isdisjoint(claim.rows)}
    judged: dict[str, dict[str, str]] = {}
    for line in verify.judgements():
        if line.claim in wanted:
            said = judged.setdefault(line.claim, {"claim": line.claim, "statement": line.statement})
            said[line.basis] = line.verdict
            if line.number is not None:
                said.setdefault("number", f"{line.number:.4g} {line.unit or ''}".strip())
    columns = ["claim", "paper", "counts", "mini", "paper-tier", "number", "statement"]
    return pd.DataFrame(list(judged.values()), columns=columns).dropna(axis="columns", how="all").fillna("-")


def peer_notes(table: str) -> pd.DataFrame:
    """What is said of other methods in a table, why one is not built above all: methods, note."""
    peers, methods = recorded_peers(), {}
    for row in reference.table(table):
        note = peers.get(row.values["row_id"], {}).get("note")
        if isinstance(note, str):
            methods.setdefault(note, {})[row.values["method"]] = None
    return pd.DataFrame(
        [{"methods": ", ".join(names), "note": note} for note, names in methods.items()], columns=["methods", "note"]
    )


def notes(table: str) -> tuple[str, ...]:
    """Sentences for the foot of a table: what is assumed of own rows, suspected errors, and what is said of other methods."""
    assumed = [f"{key} {value}" for key, value in rows.ASSUMED.get(table, {}).items() if value is not None]
    said = [f"Not printed, assumed for the counts of own rows: {', '.join(assumed)}."] if assumed else []
    said += [f"{line.id} ({line.kind}; {line.rows}): {line.what}." for line in errata(table).itertuples()]
    return (*said, *(f"{line.methods}: {line.note}" for line in peer_notes(table).itertuples()))
