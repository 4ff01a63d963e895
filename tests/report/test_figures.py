import pytest

from vmrepro.report import fig6, figures


def test_unchanged_numbers_give_unchanged_bytes(made_records, figure_folder):
    saved = fig6.save(made_records, "mini")
    before = {path.name: path.read_bytes() for path in (figure_folder / "fig6").iterdir()}
    figures.save_image("fig6", "mini", fig6.draw(saved.numbers, "mini"))
    assert {path.name: path.read_bytes() for path in (figure_folder / "fig6").iterdir()} == before


def test_an_edited_number_is_noticed(made_records, figure_folder):
    fig6.save(made_records, "mini")
    path = figure_folder / "fig6" / "mini.csv"
    path.write_text(path.read_text().replace("fig6_s,0,1,", "fig6_s,0,1,9", 1))
    with pytest.raises(ValueError, match=r"is not the file its origin mini\.json was written for"):
        figures.load("fig6", "mini")


def test_a_figure_that_is_not_there_is_none(figure_folder):
    assert figures.load("fig6", "paper") is None
