"""The figure of Tables 2 to 4: every row stands where its numbers say, every label can be read."""

import itertools

import matplotlib.text
import pytest

from vmrepro import paths
from vmrepro.paper import reference
from vmrepro.report import audit, figures, scatter
from vmrepro.specs import cost, rows


@pytest.fixture(scope="module", params=scatter.TABLES)
def drawn(request):
    numbers = scatter.points(request.param)
    return request.param, numbers, scatter.draw(numbers, request.param)


def test_points_are_the_printed_and_the_counted():
    points = scatter.points("table3").set_index("row")
    own, spec = points.loc["t3_24"], rows.spec_of("t3_24")
    assert (own["cost"], own["params"], own["top1"], own["name"], own["input"]) == (28416, 74, 83.3, "M", "64×384")
    assert own["cost_ours"] == pytest.approx(12 * cost.flops_full(spec) / 1e9)
    assert own["params_ours"] == pytest.approx(cost.parameters(spec) / 1e6)
    other = points.loc["t3_14"]
    assert (other["cost"], other["family"]) == (47904, "Trans")
    assert other["cost_ours"] == pytest.approx(12 * audit.recorded_peers()["t3_14"]["macs"] / 1e9)
    assert points["top1_ours"].isna().all()


def test_every_row_is_drawn_where_its_numbers_say(drawn):
    table, numbers, figure = drawn
    marks = figures.drawn(figure)
    for panel, name in (("(a) cost", "cost"), ("(b) parameters", "params")):
        seen = marks[marks["panel"] == panel].set_index("series")
        assert len(seen) == 2 * len(reference.table(table))
        for line in numbers.itertuples():
            for kind, x in (("paper", getattr(line, name)), ("ours", getattr(line, f"{name}_ours"))):
                mark = seen.loc[f"{line.row} {kind}"]
                assert mark["y"] == line.top1
                assert mark["x"] == pytest.approx(x, nan_ok=True)


def test_no_label_covers_another(drawn):
    _, numbers, figure = drawn
    figure.draw_without_rendering()  # moves the labels to where they are anchored
    for axes in figure.axes:
        labels = [text for text in axes.texts if text.get_text()]
        assert len(labels) >= len(numbers) - 1  # one row of Table 2 has no cost
        boxes = [matplotlib.text.Text.get_window_extent(text) for text in labels]
        clashes = [(a, b) for a, b in itertools.combinations(range(len(boxes)), 2) if boxes[a].overlaps(boxes[b])]
        assert clashes == []
        frame = axes.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_committed_pictures_are_drawn_from_the_committed_numbers(drawn, tmp_path, monkeypatch):
    table = drawn[0]
    committed = paths.root() / "figures" / table / "scatter.svg"
    saved = figures.load(table, scatter.KIND)
    assert saved.origin["rows"] == [row.id for row in reference.table(table)]
    monkeypatch.setenv("VMREPRO_FIGURES", str(tmp_path))
    (tmp_path / table).mkdir()
    figures.save_image(table, scatter.KIND, scatter.draw(saved.numbers, table))
    assert (tmp_path / table / "scatter.svg").read_bytes() == committed.read_bytes()


def test_committed_numbers_are_todays(drawn):
    table, numbers, _ = drawn
    saved = figures.load(table, scatter.KIND).numbers.set_index("row")
    for name in ("cost", "cost_ours", "params", "params_ours", "top1"):
        assert saved[name].tolist() == pytest.approx(numbers.set_index("row")[name].tolist(), rel=1e-5, nan_ok=True)


def test_an_accuracy_of_ours_moves_the_filled_mark():
    numbers = scatter.points("table2")
    numbers.loc[numbers["row"] == "t2_22", "top1_ours"] = 79.0
    figure = scatter.draw(numbers, "table2")
    marks = figures.drawn(figure).set_index(["panel", "series"])["y"]
    assert (marks[("(a) cost", "t2_22 paper")], marks[("(a) cost", "t2_22 ours")]) == (81.2, 79.0)
    assert "1 accuracies run here" in figure.get_suptitle()


def test_a_table_without_costs_is_refused():
    with pytest.raises(ValueError, match="table with costs"):
        scatter.points("table7")
