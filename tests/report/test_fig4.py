"""Fig. 4: the paths drawn are those that the models take, and the tables beside them come out by hand."""

import itertools
import subprocess
import sys
from dataclasses import replace

import matplotlib

matplotlib.use("agg")

import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyArrowPatch, Polygon

from vmrepro import paths
from vmrepro.models import scan_order
from vmrepro.report import fig4, figures
from vmrepro.specs import cost
from vmrepro.specs.rows import spec_of
from vmrepro.specs.schema import SCANS

SMALL = replace(spec_of("f7a_01"), num_frames=3, img_size=48)


@pytest.fixture(scope="module")
def numbers() -> pd.DataFrame:
    return pd.DataFrame(scan_order.walks(SMALL))


@pytest.fixture(scope="module")
def drawn(numbers):
    return fig4.draw(numbers, "paper")


def arrows(axes) -> list[FancyArrowPatch]:
    return [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]


def titled(figure, start: str):
    (found,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(start)]
    return found


def test_every_step_of_every_panel_is_an_arrow(drawn):
    panels = [axes for axes in drawn.axes if arrows(axes)]
    assert [axes.get_title(loc="left") for axes in panels] == [title for *_, title in fig4.PANELS]
    assert [len(arrows(axes)) for axes in panels] == [2 * 26] * 5
    for axes in panels:
        assert sorted({str(arrow.get_linestyle()) for arrow in arrows(axes)}) == sorted({"-", str(fig4.LINES["backward"])})


@pytest.mark.parametrize(
    ("title", "forward", "backward"),
    [
        ("(a)", [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)], [(2, 2, 2), (2, 2, 1), (2, 2, 0), (2, 1, 2)]),
        ("(b)", [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 0, 1)], [(2, 2, 2), (1, 2, 2), (0, 2, 2), (2, 2, 1)]),
        ("(c)", [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)], [(2, 2, 2), (1, 2, 2), (0, 2, 2), (2, 2, 1)]),
    ],
)
def test_arrows_lead_where_the_scan_goes(drawn, title, forward, backward):
    for style, path, shift in (("-", forward, "forward"), (str(fig4.LINES["backward"]), backward, "backward")):
        drawn_path = [arrow._posA_posB for arrow in arrows(titled(drawn, title)) if str(arrow.get_linestyle()) == style][:3]
        places = [(x, y + fig4.SHIFT[shift]) for x, y in (fig4._at(*place) for place in path)]
        assert [tuple(map(tuple, ends)) for ends in drawn_path] == list(itertools.pairwise(places))


def test_boxes_are_the_scans_of_layers(drawn):
    axes = titled(drawn, "(e)")
    names = {to_rgb(colour): order for order, colour in fig4.COLOURS.items()}
    found = {}
    for box in (patch for patch in axes.patches if isinstance(patch, Polygon)):
        (x, y), order = box.get_xy()[0], names[tuple(box.get_facecolor()[:3])]
        found.setdefault((SCANS[int(y)], int(x)), []).append(("forward" if y % 1 < 0.39 else "backward", order))
    assert len(found) == 7 * 24
    for scan in SCANS:
        for layer, kind in enumerate(scan_order.layer_orders(scan, 24)):
            wanted = [(direction, order) for order, direction in scan_order.SCANS_OF[kind]]
            assert sorted(found[scan, layer]) == sorted(wanted)


def test_costs_are_those_of_the_rows():
    moved = {scan: index for index, scan in enumerate(SCANS)}
    costs = fig4.costs(moved).set_index("row")
    assert costs["permuted tensors"].tolist() == list(range(7))
    assert costs["scans a layer"].tolist() == [2, 2, 2, 4, 2, 2, 2]
    assert costs["gmacs_full"].tolist() == [cost.flops_full(spec_of(row)) / 1e9 for row in costs.index]
    assert costs["gmacs_paper"].nunique() == 1
    assert costs.loc["f7a_04", "gmacs_scan"] == 2 * costs.loc["f7a_03", "gmacs_scan"]
    assert costs.loc["f7a_07", "order"] == "Alternative SF&TF"


def test_distances_of_neighbours_by_hand():
    # 8 frames of 14 x 14: along a row 1, down a column 14, from frame to frame 196; temporal-first 8, 112 and 1.
    far = fig4.neighbours(pd.DataFrame(scan_order.walks(spec_of("f7a_01")))).set_index("order")
    assert far.loc["SF-Bidirectional"].tolist() == [7.5, 7.5, 196, 196]
    assert far.loc["TF-Bidirectional"].tolist() == [60, 60, 1, 1]
    assert far.loc["ST-Bidirectional v2"].tolist() == [33.75, 7.5, 98.5, 1]


def test_distances_weigh_each_layer_once():
    three = fig4.neighbours(pd.DataFrame(scan_order.walks(replace(SMALL, depth=3)))).set_index("order")
    assert three.loc["Half-SF + Half-TF", "time"] == pytest.approx((9 + 9 + 1) / 3)
    assert three.loc["Half-TF + Half-SF", "time"] == pytest.approx((9 + 1 + 1) / 3)


def test_the_same_numbers_are_saved_read_and_drawn(numbers, figure_folder):
    saved = fig4.save(numbers, SMALL, "paper")
    pd.testing.assert_frame_equal(saved.numbers, numbers)
    first = (figure_folder / "fig4" / "paper.svg").read_bytes()
    figures.save_image("fig4", "paper", fig4.draw(figures.load("fig4", "paper").numbers, "smoke"))
    assert (figure_folder / "fig4" / "paper.svg").read_bytes() == first
    assert saved.origin["specs"]["fig4"]["num_frames"] == 3


def test_the_report_needs_no_torch():
    code = "import sys; from vmrepro.report import fig4; assert 'torch' not in sys.modules; print(fig4.names())"
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.root(), capture_output=True, text=True)
    assert "'alternating': 'Alternative SF&TF'" in done.stdout, done.stderr
