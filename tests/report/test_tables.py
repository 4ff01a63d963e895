import pandas as pd
import pytest

from vmrepro.report import tables
from vmrepro.report.verdicts import Contrast, rule
from vmrepro.specs import catalog, cost, video


def test_plan_prices_every_experiment_with_its_teacher():
    experiments = catalog.fig6("paper")
    plan = tables.plan(experiments, seeds=2).set_index("experiment")
    m, student, stopped = (plan.loc[name, "pmacs"] for name in ("fig6_m", "fig6_m_distill", "fig6_m_distill_stopped"))
    assert m == pytest.approx(2 * cost.train_cost(experiments[1].model, 1_281_167, 300) / 1e15)
    teacher = 2 * 1_281_167 * 300 * cost.flops_full(experiments[0].model) / 1e15
    assert student - stopped == pytest.approx(teacher / 2)
    assert plan.loc["fig6_s", "params_m"] == pytest.approx(25.796584)


def test_plan_names_clip_and_start_where_there_are_any():
    clips = tables.plan(catalog.find("fig7", "mini"), seeds=1).set_index("experiment")
    assert clips.loc["fig7a_spatial_first", ["clip", "start"]].tolist() == [f"8x{video.SIDES['mini'][0]}", "fig7_pretraining"]
    assert clips.loc["fig7a_scratch_spatial_first", "start"] == "-"
    assert set(tables.plan(catalog.find("fig7b_k400_f16_224px", "paper"), seeds=1)["start"]) == {"videomamba_t16_in1k_res224.pth"}
    images = tables.plan(catalog.fig6("mini"), seeds=1)
    assert "teacher" in images
    assert not {"clip", "start"} & {*images}
    assert "teacher" not in clips


def test_verdict_table_shows_gaps_for_what_was_not_run():
    rulings = [rule(Contrast("C21", "fig6_b", "fig6_s"), {}, "paper")]
    text = tables.text(tables.verdicts(rulings, brief=True))
    assert "not run" in text
    assert "nan" not in text.lower()
    assert "statement" in tables.verdicts(rulings)


def test_a_listing_wraps_its_last_column():
    table = pd.DataFrame({"id": ["E1", "E20"], "number": [1.239, None], "what": ["short", "word " * 20]})
    lines = tables.listing(table, width=60).splitlines()
    assert lines[0] == "id   number  what"
    assert lines[1] == "E1   1.24    short"
    assert lines[2].startswith("E20  -       word word")
    assert lines[3].startswith(" " * 13 + "word")
    assert max(map(len, lines)) <= 60
    assert " ".join(lines[2:]).split().count("word") == 20
