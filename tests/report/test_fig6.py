import pytest

from vmrepro.paper.claims import claim
from vmrepro.report import fig6, figures
from vmrepro.specs import catalog


def test_curves_are_one_row_an_epoch(made_records):
    numbers = fig6.curves(made_records)
    assert len(numbers) == sum(len(record.metrics) for record in made_records)
    first = numbers.iloc[0]
    assert (first["experiment"], first["seed"], first["epoch"], first["run"]) == ("fig6_s", 0, 1, "fig6_s-0")
    assert first["top1"] == made_records[0].metrics[0]["top1"]


def test_finals_are_means_over_seeds_of_the_last_epoch(made_records):
    finals = fig6.finals(fig6.curves(made_records))
    assert list(finals.index) == [experiment.id for experiment in catalog.fig6("mini")]
    assert finals.loc["fig6_s", "final"] == pytest.approx(made_records[0].metrics[-1]["top1"] - 0.1)
    assert finals.loc["fig6_s", "sd"] == pytest.approx(0.1)
    assert set(finals["seeds"]) == {3}


def test_what_is_drawn_is_what_was_recorded(made_records):
    numbers = fig6.curves(made_records)
    lines = figures.drawn(fig6.draw(numbers, "mini"))
    assert set(lines["series"]) == set(fig6.LABELS.values())
    means = numbers.groupby(["experiment", "epoch"])["top1"].mean()
    labels = {label: name for name, label in fig6.LABELS.items()}
    for line in lines.itertuples():
        assert line.y == pytest.approx(means[labels[line.series], line.x])
    assert len(lines) == 8 * numbers["epoch"].max()


def test_a_legend_covers_nothing(made_records):
    figure = fig6.draw(fig6.curves(made_records), "mini")
    figure.draw_without_rendering()
    legends = [axes.get_legend() for axes in figure.axes]
    drawn = [part for axes in figure.axes for part in (axes, axes.xaxis.label, axes.title, *axes.texts)]
    boxes = [part.get_window_extent() for part in (*drawn, *legends)]
    for legend in legends:
        box = legend.get_window_extent()
        assert sum(box.overlaps(other) for other in boxes) == 1  # itself
        assert all(figure.bbox.contains(*corner) for corner in box.corners())
    assert [text.get_text() for text in legends[1].get_texts()][-1] == "teacher stops"


def test_every_contrast_is_a_claim_on_this_figure_between_experiments_there_are():
    ids = {experiment.id: set(experiment.reproduces) for experiment in catalog.fig6("paper")}
    for contrast in fig6.CONTRASTS:
        assert "Fig. 6" in claim(contrast.claim).evidence
        assert contrast.claim in ids[contrast.left]
        assert contrast.claim in ids[contrast.right]


def test_rulings_follow_the_numbers(made_records):
    numbers = fig6.curves(made_records)
    before = {ruling.claim: ruling.verdict for ruling in fig6.rulings(numbers, "mini")}
    assert before["C21"] == "supported"  # by the made curves, B ends below S
    numbers.loc[numbers["experiment"] == "fig6_b", "top1"] += 5
    after = {ruling.claim: ruling.verdict for ruling in fig6.rulings(numbers, "mini")}
    assert after["C21"] == "contradicted"


def test_save_keeps_numbers_origin_and_pictures_together(made_records, figure_folder):
    saved = fig6.save(made_records, "mini")
    assert sorted(path.name for path in (figure_folder / "fig6").iterdir()) == ["mini.csv", "mini.json", "mini.png", "mini.svg"]
    assert [run["id"] for run in saved.origin["runs"]] == [record.id for record in made_records]
    assert {row["claim"] for row in saved.origin["claims"]} == {contrast.claim for contrast in fig6.CONTRASTS}
