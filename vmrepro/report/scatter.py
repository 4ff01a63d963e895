"""Accuracy against cost and parameters in Tables 2 to 4: what is printed hollow, what we counted filled."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vmrepro.paper import reference
from vmrepro.report import audit, figures

TABLES = ("table2", "table3", "table4")
KIND = "scatter"  # figures/table3/scatter.csv, .json, .png, .svg
OWN = "VideoMamba"
FAMILIES = ("CNN", "Trans", "CNN+Trans", "CNN+SSM", "SSM", OWN)
# The colour-blind palette in an order that keeps its two closest pairs apart.
COLOURS = dict(zip(FAMILIES, (sns.color_palette("colorblind")[i] for i in (2, 0, 4, 1, 9, 3)), strict=True))
PANELS = {"cost": "(a) cost", "params": "(b) parameters"}
# Where a label may stand, in points from its mark: the nearer first.
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.9, 0.6), (0.9, -0.6), (-0.9, 0.6), (-0.9, -0.6))
PLACES = [(x * reach, y * reach) for reach in (5, 8, 12, 17, 23, 30, 40) for x, y in DIRECTIONS]


def points(table: str) -> pd.DataFrame:
    """One line per printed row: where it stands in both panels, as printed and as we counted it.

    row, name, input (frames × pixels), family, size (own rows), masked. cost, cost_ours: 10^9 multiply-adds of all views (of one
    image in Table 2), ours with everything counted. params, params_ours: millions. top1, top1_ours: percent, ours only where the
    paper tier was run.
    """
    if table not in TABLES:
        raise reference.unknown("table with costs", table, TABLES)
    counted = audit.frame(table).set_index("row")
    lines = []
    for row in reference.table(table):
        cells, ours = row.values, counted.loc[row.id]
        views = cells.get("views_total", 1)
        full = ours["GFLOPs full (ours)"] if cells["is_ours"] else ours["GFLOPs (ours)"]
        reached = audit.final(row.id, "paper") if cells["is_ours"] else None
        lines.append(
            {
                **{"row": row.id, "name": cells["model_size"] or cells["method"], "input": _input(cells)},
                **{"family": OWN if cells["is_ours"] else cells["arch_family"]},
                **{"size": cells["model_size"], "masked": bool(cells.get("masked_pretraining"))},
                **{"cost": cells.get("flops_total_g", cells["flops_g"]), "cost_ours": full * views},
                **{"params": cells["params_m"], "params_ours": ours["params (ours)"]},
                **{"top1": cells["top1"], "top1_ours": None if reached is None else reached["final"]},
            }
        )
    return pd.DataFrame(lines)


def _input(cells: Mapping[str, Any]) -> str:
    frames = "" if cells["dataset"] == "ImageNet-1K" else f"{cells['input_frames']}×"
    return f"{frames}{cells['input_size']}"


def draw(numbers: pd.DataFrame, table: str) -> Figure:
    """Two panels over the accuracy axis: cost and parameters, both logarithmic; ``numbers`` as ``points`` gives them."""
    with sns.axes_style("ticks"), sns.plotting_context("paper"):
        figure = Figure(figsize=(12.0, 6.2))
        axes = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
        figure.subplots_adjust(left=0.05, right=0.99, bottom=0.085, top=0.84, wspace=0.03)
        views = "one image" if table == "table2" else "all test views"
        for panel, name, unit in zip(axes, PANELS, (f"10⁹ multiply-adds, {views}", "parameters, millions"), strict=True):
            _draw_panel(panel, numbers, name)
            panel.set_title(PANELS[name], loc="left", fontweight="bold")
            panel.set_xlabel(unit)
            sns.despine(ax=panel)
        axes[0].set_ylabel(f"{reference.table(table)[0].values['dataset']} top-1 (%)")
        figure.draw_without_rendering()
        for panel, name in zip(axes, PANELS, strict=True):
            _place_labels(panel, numbers, name)
        _legend(figure, numbers, table)
    return figure


def _draw_panel(axes: Axes, numbers: pd.DataFrame, name: str) -> None:
    axes.set_xscale("log")
    for line in numbers.itertuples():
        colour, mark = COLOURS[line.family], "s" if line.masked else "o"
        printed, counted = getattr(line, name), getattr(line, f"{name}_ours")
        reached = line.top1 if pd.isna(line.top1_ours) else line.top1_ours
        axes.plot([printed, counted], [line.top1, reached], "-", color=colour, linewidth=0.7, alpha=0.6, label="_joined")
        axes.plot(printed, line.top1, mark, color=colour, markersize=6, fillstyle="none", label=f"{line.row} paper")
        axes.plot(counted, reached, mark, color=colour, markersize=3.2, label=f"{line.row} ours")
    if name == "cost":
        for _, sizes in numbers[numbers["family"] == OWN].groupby(["size", "masked"]):
            path = sizes.sort_values("top1")
            axes.plot(path["cost_ours"], path["top1"], ":", color=COLOURS[OWN], linewidth=0.8, label="_sizes")
    axes.margins(0.06 if name == "cost" else 0.1, 0.07)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.92", linewidth=0.6)


def _place_labels(axes: Axes, numbers: pd.DataFrame, name: str) -> None:
    """Write each row's label at the first place around its mark that is free of marks, lines, labels and the frame's edge."""
    pixel, repeated = axes.figure.dpi / 72, numbers["name"].duplicated(keep=False)
    frame = axes.get_window_extent().extents
    marks, labels = np.concatenate([_covered(axes, line, pixel) for line in axes.get_lines()]), np.empty((0, 4))
    for line in numbers.sort_values("top1", ascending=False).itertuples():
        at = (getattr(line, name), line.top1)
        # The input decides what a model costs, and hardly its size: there it is named only to tell two marks apart.
        words = f"{line.name} {line.input}" if name == "cost" or repeated[line.Index] else line.name
        if pd.isna(at[0]):
            continue
        style = {"fontsize": 6.5, "color": COLOURS[line.family]}
        size = axes.annotate(words, at, **style)  # to be measured, then moved
        extent = size.get_window_extent()
        boxes = [_box(axes.transData.transform(at), place, pixel, extent.width, extent.height) for place in PLACES]
        best = int(np.argmin([_clashes(box, marks, labels, frame) for box in boxes]))
        size.remove()
        dx, dy = PLACES[best]
        side = "left" if dx > 0 else "right" if dx < 0 else "center"
        height = "bottom" if dy > 0 else "top" if dy < 0 else "center"
        leader = {"arrowstyle": "-", "linewidth": 0.4, "color": style["color"], "shrinkA": 0, "shrinkB": 3}
        far = {"arrowprops": leader} if max(abs(dx), abs(dy)) > 6 else {}
        axes.annotate(words, at, (dx, dy), textcoords="offset points", ha=side, va=height, **style, **far)
        labels = np.vstack([labels, boxes[best]])


def _covered(axes: Axes, line: Line2D, pixel: float) -> np.ndarray:
    """What a line or a mark covers: small boxes along it, each left, bottom, right, top in pixels."""
    corners = axes.transData.transform(line.get_xydata())
    corners = corners[np.isfinite(corners).all(axis=1)]
    half = max(0.65 * line.get_markersize() if len(corners) == 1 else 0, 1) * pixel  # a mark with some air around it
    steps = [start + (end - start) * part for start, end in itertools.pairwise(corners) for part in np.linspace(0, 1, 25)]
    middle = np.array([*corners, *steps]).reshape(-1, 2)
    return np.hstack([middle - half, middle + half])


def _box(at: np.ndarray, place: tuple[float, float], pixel: float, width: float, height: float) -> np.ndarray:
    """Left, bottom, right, top in pixels of a text of this size that stands ``place`` points from a mark."""
    x, y = at + np.array(place) * pixel
    left = x - (width if place[0] < 0 else width / 2 if place[0] == 0 else 0)
    low = y - (height if place[1] < 0 else height / 2 if place[1] == 0 else 0)
    return np.array([left, low, left + width, low + height])


def _clashes(box: np.ndarray, marks: np.ndarray, labels: np.ndarray, frame: np.ndarray) -> int:
    """How much a box hides: marks and pieces of lines count once, words, which nobody could read then, many times."""
    outside = (box[:2] < frame[:2]).any() or (box[2:] > frame[2:]).any()
    return _overlaps(box, marks) + 50 * _overlaps(box, labels) + 1000 * int(outside)


def _overlaps(box: np.ndarray, others: np.ndarray) -> int:
    left, low, right, top = others.T
    return int(((left < box[2]) & (box[0] < right) & (low < box[3]) & (box[1] < top)).sum())


def _legend(figure: Figure, numbers: pd.DataFrame, table: str) -> None:
    present = [family for family in FAMILIES if family in set(numbers["family"])]
    handles = [Line2D([], [], color=COLOURS[family], marker="o", linestyle="", markersize=6, label=family) for family in present]
    grey = {"color": "0.3", "linestyle": "", "markersize": 6}
    handles += [
        Line2D([], [], marker="o", fillstyle="none", label="as printed", **grey),
        Line2D([], [], marker="o", label="counted here (VideoMamba in full)", **{**grey, "markersize": 3.2}),
    ]
    handles.append(Line2D([], [], color=COLOURS[OWN], linestyle=":", linewidth=0.8, label="one size, growing input"))
    if numbers["masked"].any():
        handles.append(Line2D([], [], marker="s", fillstyle="none", label="masked pretraining", **grey))
    figure.legend(
        handles=handles, loc="upper left", ncols=len(handles), frameon=False, fontsize=7.5, bbox_to_anchor=(0.04, 0.945)
    )
    run = int(numbers["top1_ours"].notna().sum())
    accuracy = (
        "every accuracy is as printed, none was run here" if run == 0 else f"{run} accuracies run here, the others as printed"
    )
    head = f"Table {table[5:]}: accuracy against cost; {accuracy}"
    figure.suptitle(head, x=0.045, y=0.985, ha="left", fontsize=9)


def save(table: str) -> figures.Saved:
    """Write the numbers, their origin and the pictures of a table's figure: figures/<table>/scatter.*."""
    peers = figures.load(*audit.PEERS)
    origin = {
        "rows": [row.id for row in reference.table(table)],
        "counts": "VideoMamba: the closed forms of specs/cost.py; other methods: figures/peers.csv",
        "peers": None if peers is None else peers.origin,
    }
    saved = figures.save_numbers(table, KIND, points(table), origin)
    figures.save_image(table, KIND, draw(saved.numbers, table))
    return saved


def redraw() -> list[Path]:
    """Draw the picture of every recorded figure of a table from its numbers; the paths written."""
    recorded = [(table, saved) for table in TABLES if (saved := figures.load(table, KIND)) is not None]
    return [path for table, saved in recorded for path in figures.save_image(table, KIND, draw(saved.numbers, table))]
