"""Figure 4: the ways in which the scans of each order run through a clip.

Drawn from the permutations that the models run (``vmrepro.models.scan_order.walks``) and exact: nothing is trained or measured,
and the picture is the same at every tier.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Patch, Polygon

from vmrepro.paper import reference
from vmrepro.report import figures
from vmrepro.specs import cost
from vmrepro.specs.rows import spec_of
from vmrepro.specs.schema import SCANS, ModelSpec, Tier, to_dict

FIGURE = "fig4"
# What is drawn as a path: scan, order or None for all, title.
PANELS = (
    ("spatial_first", None, "(a) Spatial-First"),
    ("temporal_first", None, "(b) Temporal-First"),
    ("spatiotemporal_v1", None, "(c) Spatiotemporal v1"),
    ("spatiotemporal_v2", "spatial", "(d) Spatiotemporal v2, scans 1 and 2"),
    ("spatiotemporal_v2", "temporal", "(d) Spatiotemporal v2, scans 3 and 4"),
)
COLOURS = {"spatial": "#0173b2", "temporal": "#de8f05"}  # of the colour-blind palette
ACROSS, SLANT, DEPTH = 0.85, 1 / 3, 2.75  # a column's step to the right and up, a frame's step to the right
SHIFT = {"forward": 0.075, "backward": -0.075}  # so that the two directions of one path lie side by side
LINES = {"forward": "-", "backward": (0, (2.2, 1.2))}
KEY = ["frame", "row", "column"]


def names() -> dict[str, str]:
    """The paper's name of each scan order, as Fig. 7a prints it."""
    return {spec_of(row.id).scan: row.values["scan_type_printed"] for row in reference.table("fig7a")}


def costs(permutations: Mapping[str, int]) -> pd.DataFrame:
    """What each order costs VideoMamba-Ti on 8 frames of 224 pixels, a line a row of Fig. 7a.

    permutations: tensors of tokens that a forward pass permutes, by scan. gmacs_paper counts as the paper prints, gmacs_full
    everything, both in 10^9 multiply-adds, of which a permutation has none.
    """
    lines = []
    for row in reference.table("fig7a"):
        spec, parts = spec_of(row.id), cost.flops_parts(spec_of(row.id))
        lines.append(
            {
                "order": row.values["scan_type_printed"],
                "row": row.id,
                "scans a layer": cost.scans(spec),
                "permuted tensors": permutations[spec.scan],
                "gmacs_scan": parts["scan"] / 1e9,
                "gmacs_paper": cost.flops_paper(spec) / 1e9,
                "gmacs_full": cost.flops_full(spec) / 1e9,
            }
        )
    return pd.DataFrame(lines)


def neighbours(numbers: pd.DataFrame) -> pd.DataFrame:
    """How many steps lie between neighbours in space and in time under each order, by the paper's name of it.

    The mean over pairs and over the scans of all layers, and the mean over pairs of the least among the scans ("nearest").
    numbers: rows as ``draw`` takes them.
    """
    printed, lines = names(), []
    for scan, part in numbers.groupby("scan", sort=False):
        scans = [scan_ for _, scan_ in part.groupby(["first_layer", "order", "direction"])]
        weights = [len(_layers(one)) for one in scans]
        gaps = [_gaps(one.set_index(KEY)["step"]) for one in scans]
        line: dict[str, str | float] = {"order": printed[str(scan)]}
        for axis in ("space", "time"):
            apart = pd.concat([gap[axis] for gap in gaps], axis=1)
            line[axis] = float((apart.mean() * weights).sum() / sum(weights))
            line[f"{axis}, nearest"] = float(apart.min(axis=1).mean())
        lines.append(line)
    return pd.DataFrame(lines)


def _gaps(steps: pd.Series) -> dict[str, pd.Series]:
    """Steps between each patch and the next one of its row and column (space) and of its place in time."""
    cube = steps.sort_index()
    grids = {axis: (cube - cube.groupby([name for name in KEY if name != axis]).shift(1)).abs().dropna() for axis in KEY}
    return {"space": pd.concat([grids["row"], grids["column"]], keys=["row", "column"]), "time": grids["frame"]}


def _layers(part: pd.DataFrame) -> range:
    first, last, step = (int(part[name].iloc[0]) for name in ("first_layer", "last_layer", "layer_step"))
    return range(first, last + 1, step)


def draw(numbers: pd.DataFrame, tier: Tier) -> Figure:
    """The paths through a clip of the two orders and of what mixes them in a layer, and the order that each layer takes.

    numbers: one row a visited patch, as ``walks`` gives them: scan, first_layer, last_layer, layer_step, order, direction, step,
    frame, row, column. The tier changes nothing.
    """
    figure = Figure(figsize=(9.0, 6.8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.65, 1])
    *axes, key = above.subplots(2, 3).flat
    colours = matplotlib.colormaps["viridis"]
    for panel, (scan, order, title) in zip(axes, PANELS, strict=True):
        part = numbers[numbers["scan"] == scan]
        _paths(panel, part if order is None else part[part["order"] == order], colours)
        panel.set_title(title, loc="left", fontsize=9, fontweight="bold")
    _key(key, int(numbers["step"].max()) + 1, colours)
    _layer_strip(below.subplots(), numbers)
    return figure


def _key(axes: Axes, steps: int, colours: Colormap) -> None:
    axes.axis("off")
    handles = [
        Line2D([], [], color="0.2", linestyle="-", label="forward"),
        Line2D([], [], color="0.2", linestyle=LINES["backward"], label="backward"),
        Line2D([], [], color="0.2", linewidth=0.7, alpha=0.6, label="jump to a patch that is no neighbour"),
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, 0.95), frameon=False, fontsize=8)
    room = axes.inset_axes((0.03, 0.36, 0.9, 0.06))
    axes.figure.colorbar(ScalarMappable(Normalize(1, steps), colours), cax=room, orientation="horizontal")
    room.set_xlabel("place in the scan (class token not shown)", fontsize=8)
    room.tick_params(labelsize=7)


def _at(frame: float, row: float, column: float) -> tuple[float, float]:
    """Where a patch lies on the page: frames stand one behind the other, seen from the side."""
    return frame * DEPTH + column * ACROSS, column * SLANT - row


def _paths(axes: Axes, part: pd.DataFrame, colours: Colormap) -> None:
    frames, rows, columns = (int(part[name].max()) + 1 for name in KEY)
    for frame in range(frames):
        corners = [(-0.5, -0.5), (-0.5, columns - 0.5), (rows - 0.5, columns - 0.5), (rows - 0.5, -0.5)]
        outline = [_at(frame, row, column) for row, column in corners]
        axes.add_patch(Polygon(outline, facecolor="0.96", edgecolor="0.7", linewidth=0.8, zorder=0))
        x, y = _at(frame, rows - 0.5, -0.5)
        axes.text(x + 0.1, y - 0.25, f"frame {frame + 1}", fontsize=6.5, color="0.35", va="top")
    dots = part.drop_duplicates(KEY)
    x, y = _at(dots["frame"], dots["row"], dots["column"])
    axes.scatter(x, y, s=7, color="0.55", zorder=1)
    last = int(part["step"].max())
    for (_, direction), path in part.groupby(["order", "direction"]):
        for step, here, there in _steps(path):
            near = sum(abs(a - b) for a, b in zip(here, there, strict=True)) == 1
            ends = [(x, y + SHIFT[str(direction)]) for x, y in (_at(*here), _at(*there))]
            arrow = FancyArrowPatch(
                *ends,
                arrowstyle="-|>,head_length=2.4,head_width=1.3" if near else "-",
                linestyle=LINES[str(direction)],
                linewidth=1.3 if near else 0.7,
                alpha=1.0 if near else 0.6,
                color=colours(step / last),
                shrinkA=0,
                shrinkB=1.5 if near else 0,
                zorder=3 if near else 2,
            )
            axes.add_patch(arrow)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.axis("off")


def _steps(path: pd.DataFrame) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(step, patch left, patch entered) along one scan."""
    places = [tuple(map(int, place)) for place in path.sort_values("step")[KEY].to_numpy()]
    return ((step, *pair) for step, pair in enumerate(itertools.pairwise(places)))


def _layer_strip(axes: Axes, numbers: pd.DataFrame) -> None:
    """A line an order and a box a layer: forward above, backward below, in the colours of their orders."""
    printed = names()
    heights = {"forward": 0.0, "backward": 0.4}
    for line, scan in enumerate(SCANS):
        part = numbers[numbers["scan"] == scan]
        for (_, direction), scans in part.groupby(["first_layer", "direction"]):
            orders = sorted(scans["order"].unique())
            for place, order in enumerate(orders):
                high, top = 0.4 / len(orders), line + heights[str(direction)]
                boxes = [(layer, top + place * high) for layer in _layers(scans)]
                for x, y in boxes:
                    corners = [(x, y), (x + 0.88, y), (x + 0.88, y + high), (x, y + high)]
                    axes.add_patch(Polygon(corners, facecolor=COLOURS[order], edgecolor="white", linewidth=0.6))
    depth = int(numbers["last_layer"].max()) + 1
    axes.set(xlim=(0, depth), ylim=(len(SCANS) - 0.1, -0.2), xlabel="layer")
    axes.set_xticks([layer + 0.44 for layer in range(depth)], [str(layer) for layer in range(depth)], fontsize=7)
    axes.set_yticks([line + 0.4 for line in range(len(SCANS))], [printed[scan] for scan in SCANS], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("(e) scans of every layer: upper half forward, lower half backward", loc="left", fontsize=9, fontweight="bold")
    handles = [Patch(color=colour, label=f"{order}-first") for order, colour in COLOURS.items()]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=8)


def save(numbers: pd.DataFrame, spec: ModelSpec, tier: Tier) -> figures.Saved:
    """Write the numbers, origin and pictures of the figure; spec: the model whose scans they are."""
    saved = figures.save_numbers(FIGURE, tier, numbers, {"claims": [], "specs": {FIGURE: to_dict(spec)}})
    figures.save_image(FIGURE, tier, draw(saved.numbers, tier))
    return saved
