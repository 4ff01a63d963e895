"""Every recorded figure again, from the numbers beside it: pictures redrawn, claims judged anew; nothing is run."""

from __future__ import annotations

from pathlib import Path

from vmrepro.report import fig6, figures
from vmrepro.report.verdicts import Ruling
from vmrepro.specs.schema import TIERS

DRAWN_BY = {fig6.FIGURE: fig6}


def _recorded():
    for figure_id, module in DRAWN_BY.items():
        for tier in TIERS:
            if (saved := figures.load(figure_id, tier)) is not None:
                yield figure_id, tier, module, saved


def redraw() -> list[Path]:
    """Draw the picture of every recorded figure from its numbers; the paths written."""
    return [
        path
        for figure_id, tier, module, saved in _recorded()
        for path in figures.save_image(figure_id, tier, module.draw(saved.numbers, tier))
    ]


def verify() -> tuple[list[Ruling], list[str]]:
    """The claims judged from every recorded figure's numbers, and a line for each verdict that is not the recorded one."""
    rulings, changed = [], []
    for figure_id, tier, module, saved in _recorded():
        before = {claim["claim"]: claim["verdict"] for claim in saved.origin["claims"]}
        for ruling in module.rulings(saved.numbers, tier):
            rulings.append(ruling)
            if before.get(ruling.claim) != ruling.verdict:
                recorded = before.get(ruling.claim, "absent")
                changed.append(f"{figure_id} {tier} {ruling.claim}: recorded as {recorded!r}, now {str(ruling.verdict)!r}")
    return rulings, changed
