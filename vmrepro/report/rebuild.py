"""Every recorded figure again, from the numbers beside it: pictures redrawn; nothing is run."""

from __future__ import annotations

from pathlib import Path

from vmrepro.report import fig1, fig4, fig6, fig7, figures
from vmrepro.specs.schema import TIERS

DRAWN_BY = {module.FIGURE: module for module in (fig1, fig4, fig6, fig7)}


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
