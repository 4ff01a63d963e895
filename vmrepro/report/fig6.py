"""Figure 6: self-distillation (a) and its early stopping (b); curves, final accuracies, verdicts and the drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vmrepro.report import figures
from vmrepro.report.verdicts import Contrast, Ruling, rule
from vmrepro.specs import catalog
from vmrepro.specs.schema import Tier
from vmrepro.store import Record

FIGURE = "fig6"
CONTRASTS = (
    Contrast("C21", "fig6_b", "fig6_s"),
    Contrast("C22", "fig6_m", "fig6_s"),
    Contrast("C23", "fig6_m_distill", "fig6_s"),
    Contrast("C24", "fig6_b_distill", "fig6_b"),
    Contrast("C26", "fig6_m_distill_stopped", "fig6_m_distill"),
)
LABELS = {
    "fig6_s": "S",
    "fig6_m": "M",
    "fig6_b": "B",
    "fig6_m_distill": "M, distilled",
    "fig6_b_distill": "B, distilled",
    "fig6_m_distill_stopped": "M, distilled, teacher stopped early",
}
PANELS = {
    "(a) self-distillation": ("fig6_s", "fig6_m", "fig6_b", "fig6_m_distill", "fig6_b_distill"),
    "(b) early stopping": ("fig6_m", "fig6_m_distill", "fig6_m_distill_stopped"),
}
# One colour a size, after the colour-blind palette, and black where two of a size coincide; dashes for "from scratch".
STOPPED_COLOUR = "black"
COLOURS = {"S": "#949494", "M": "#0173b2", "B": "#d55e00"}
DASHES = {"fig6_m_distill": "-", "fig6_b_distill": "-", "fig6_m_distill_stopped": ":"}
DATA = {
    "smoke": "scanned digits, tiny models: shows that it runs, says nothing of the paper",
    "mini": "scanned digits at 8 x 8 pixels, full-size models: can show an ordering, not the paper's numbers",
    "paper": "ImageNet-1K, the released recipes",
}


def curves(records: Sequence[Record]) -> pd.DataFrame:
    """One row an epoch: experiment, seed, epoch (from 1), top1 (%), test_loss, train_loss, feature_loss, run id."""
    rows = [
        {
            "experiment": record.spec["experiment"]["id"],
            "seed": record.spec["seed"],
            "epoch": row["epoch"] + 1,
            **{name: row.get(name) for name in ("top1", "test_loss", "train_loss", "feature_loss")},
            "run": record.id,
        }
        for record in records
        for row in record.metrics
    ]
    return pd.DataFrame(rows)


def finals(numbers: pd.DataFrame) -> pd.DataFrame:
    """Final and best top-1 (%) of each experiment over seeds: mean, standard deviation of the final one, seeds."""
    last = numbers[numbers["epoch"] == numbers["epoch"].max()].groupby("experiment")["top1"]
    best = numbers.groupby(["experiment", "seed"])["top1"].max().groupby("experiment").mean()
    table = pd.DataFrame({"final": last.mean(), "sd": last.std(), "best": best, "seeds": last.count()})
    return table.reindex([name for name in LABELS if name in table.index])


def rulings(numbers: pd.DataFrame, tier: Tier) -> list[Ruling]:
    """The claims on this figure, judged by the last epoch of each seed."""
    last = numbers[numbers["epoch"] == numbers["epoch"].max()]
    values = {name: dict(zip(part["seed"], part["top1"], strict=True)) for name, part in last.groupby("experiment")}
    return [rule(contrast, values, tier) for contrast in CONTRASTS]


def draw(numbers: pd.DataFrame, tier: Tier) -> Figure:
    """Test accuracy against epoch: a line is the mean over seeds, its band their range."""
    import seaborn as sns  # here, because judging the claims must not wait for it

    with sns.axes_style("ticks"), sns.plotting_context("paper"):
        figure = Figure(figsize=(9.0, 4.1), layout="constrained")
        for axes, (title, members) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
            _draw_panel(axes, numbers, members)
            axes.set_title(title, loc="left", fontweight="bold")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            sns.despine(ax=axes)
        stop = next(e.distill.stop_epoch for e in catalog.fig6(tier) if e.id == "fig6_m_distill_stopped")
        line = figure.axes[1].axvline(stop, color="0.6", linewidth=0.8, label="_stop")
        for axes, more in zip(figure.axes, ({}, {"teacher stops": line}), strict=True):
            _draw_legend(axes, more)
        figure.axes[0].set_ylabel("test top-1 (%)")
        figure.axes[0].set_ylim(*_reading_range(numbers))
        seeds = numbers["seed"].nunique()
        figure.suptitle(f"Fig. 6 at the {tier} tier, {seeds} seeds: {DATA[tier]}", fontsize=8, color="0.3")
    return figure


def _draw_panel(axes: Axes, numbers: pd.DataFrame, members: Sequence[str]) -> None:
    for name in members:
        by_epoch = numbers[numbers["experiment"] == name].groupby("epoch")["top1"]
        mean, low, high = by_epoch.mean(), by_epoch.min(), by_epoch.max()
        colour = STOPPED_COLOUR if name.endswith("_stopped") else COLOURS[LABELS[name][0]]
        axes.plot(mean.index, mean, DASHES.get(name, "--"), color=colour, linewidth=1.4, label=LABELS[name])
        axes.fill_between(mean.index, low, high, color=colour, alpha=0.12, linewidth=0)


def _draw_legend(axes: Axes, more: Mapping[str, Artist]) -> None:
    """The legend, with ``more`` lines by name, below the panel: curves of some tier pass through every corner of it."""
    lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)) | more
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": (len(lines) + 1) // 2, "borderaxespad": 0}
    axes.legend(lines.values(), lines.keys(), frameon=False, fontsize=8, **place)


def _reading_range(numbers: pd.DataFrame) -> tuple[float, float]:
    """Limits of the accuracy axis: the first third of the epochs may leave it, so that the ends can be told apart."""
    late = numbers[numbers["epoch"] > numbers["epoch"].max() / 3]["top1"]
    margin = 0.05 * (late.max() - late.min()) + 0.1
    return late.min() - margin, late.max() + margin


def save(records: Sequence[Record], tier: Tier) -> figures.Saved:
    """Write the numbers, origin and pictures of the figure from finished runs."""
    numbers = curves(records)
    claims = [ruling.as_row() for ruling in rulings(numbers, tier)]
    saved = figures.save_runs(FIGURE, tier, numbers, claims, records)
    figures.save_image(FIGURE, tier, draw(saved.numbers, tier))
    return saved
