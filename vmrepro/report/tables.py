"""Tables as people read them: what would run and what it costs, final numbers, verdicts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd

from vmrepro.report.verdicts import Ruling
from vmrepro.specs import catalog, cost
from vmrepro.specs.schema import Experiment


def text(table: pd.DataFrame, digits: int = 2) -> str:
    """The table as aligned text, floats with ``digits`` decimals, gaps for what is not there."""
    return table.to_string(index=False, float_format=lambda value: f"{value:.{digits}f}", na_rep="-")


def listing(table: pd.DataFrame, width: int = 150) -> str:
    """The table as text aligned to the left, its last column wrapped so that no line is longer than ``width`` characters."""
    cells = [list(table.columns), *([_plain(value) for value in row] for row in table.itertuples(index=False))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.columns) - 1)]
    lines = []
    for row in cells:
        start = "".join(f"{cell:<{size}}  " for cell, size in zip(row, widths, strict=False))
        lines.append(
            textwrap.fill(row[-1], width, initial_indent=start, subsequent_indent=" " * len(start)) if row[-1] else start
        )
    return "\n".join(line.rstrip() for line in lines)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.2f}"
    return "-" if value is None else str(value)


def plan(experiments: Sequence[Experiment], seeds: int) -> pd.DataFrame:
    """What would be trained, one row an experiment: sizes, schedule, and the cost of all its seeds.

    clip: frames x pixels. start: the experiment or file that the first weights come from. params_m: millions of parameters.
    gmacs: 10^9 multiply-adds of one image or clip, everything counted. pmacs: 10^15 of the whole training over all seeds,
    the teacher's forward passes included, the start not. act_gib: activations of one batch, estimated. A column that says
    nothing of any experiment is left out.
    """
    table = pd.DataFrame([_plan_row(experiment, seeds) for experiment in experiments])
    return table.loc[:, (table != "-").any()]


def _plan_row(experiment: Experiment, seeds: int) -> dict[str, object]:
    model, train, distill = experiment.model, experiment.train, experiment.distill
    images = catalog.train_images(experiment)
    macs = cost.train_cost(model, images, train.epochs)
    teacher = "-"
    if distill is not None:
        taught = train.epochs if distill.stop_epoch is None else distill.stop_epoch
        macs += images * taught * cost.flops_full(distill.teacher.model)
        teacher = distill.teacher.id + ("" if distill.stop_epoch is None else f", {taught} epochs")
    clip, start = experiment.data.clip, experiment.start
    first = "-" if start is None else start.checkpoint or start.experiment.id
    element_bytes = {"fp64": 8, "fp32": 4}.get(train.precision, 2)
    return {
        "experiment": experiment.id,
        "data": experiment.data.name,
        "clip": "-" if clip is None else f"{clip.num_frames}x{experiment.data.img_size}",
        "depth": model.depth,
        "width": model.embed_dim,
        "params_m": cost.parameters(model) / 1e6,
        "gmacs": cost.flops_full(model) / 1e9,
        "teacher": teacher,
        "start": first,
        "epochs": train.epochs,
        "batch": train.batch_size,
        "lr": f"{train.lr:g}",
        "seeds": seeds,
        "pmacs": seeds * macs / 1e15,
        "act_gib": cost.activation_bytes(model, train.batch_size, element_bytes) / 2**30,
    }


def verdicts(rulings: Iterable[Ruling], *, brief: bool = False) -> pd.DataFrame:
    """One row a claim: the comparison, the mean difference in points with its 95 % interval, seeds and verdict."""
    rows = []
    for ruling in rulings:
        row = ruling.as_row()
        if brief:
            row.pop("statement")
        rows.append(row)
    return pd.DataFrame(rows).astype({"difference": float, "low": float, "high": float})
