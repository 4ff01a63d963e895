"""Fig. 7: each verdict in each way it can come out, what is not there, and a picture of exactly these numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from vmrepro.paper import reference
from vmrepro.paper.claims import claim
from vmrepro.report import fig7, figures, verify
from vmrepro.specs import video
from vmrepro.specs.schema import SCANS, TIERS, to_dict
from vmrepro.store import Record

ORDERS = {"spatial_first": 90.0, "temporal_first": 80.0}  # mixtures lie at 85
FEW, BASE, MANY = video.FRAMES["mini"]
SMALL, LARGE = video.SIDES["mini"]
FRAMES = {"motion": {FEW: -4.0, BASE: 0.0, MANY: -2.0}, "digit": {FEW: 2.0, BASE: 5.0, MANY: 8.0}}  # above the base
GAIN = {"motion": -2.0, "digit": 1.0}  # of the larger size


def cell(data: str, frames: int, size: int) -> str:
    return f"fig7b_{data}_f{frames}_{size}px"


def larger(data: str) -> list[str]:
    return [cell(data, frames, LARGE) for frames in FRAMES[data]]


def longest(data: str) -> list[str]:
    return [cell(data, MANY, size) for size in (SMALL, LARGE)]


def top1_of(experiment) -> float:
    """Numbers by which every claim on the figure holds."""
    if experiment.data.clip.control:
        return {"shuffled": 49.0, "single": 30.0}[experiment.data.clip.control]
    value = ORDERS.get(experiment.model.scan, 85.0)
    if experiment.start is None:
        return value / 10 + 50  # a tenth of the lead that image weights give
    kind = experiment.data.label
    return value + FRAMES[kind][experiment.data.clip.num_frames] + (experiment.data.img_size == LARGE) * GAIN[kind]


def made(*, changed=None, without=(), tier="mini", seeds=3, spread=0.05) -> list[Record]:
    """Records of all experiments with the numbers above as means over three seeds; ``changed`` adds points to some.

    No two experiments scatter alike, so that level ones differ by zero on average and not in every seed.
    """
    records = []
    for index, experiment in enumerate(video.fig7(tier)):
        if experiment.id in without:
            continue
        for seed in range(seeds):
            end = (top1_of(experiment) if tier == "mini" else 50.0) + (changed or {}).get(experiment.id, 0.0)
            end += spread * (1 + index**2 / 100) * (seed % 3 - 1)
            metrics = [
                {"epoch": i, "top1": value, "test_loss": 1.0, "train_loss": 2.0} for i, value in enumerate((9.0, 99.5, end))
            ]
            spec = {"experiment": to_dict(experiment), "seed": seed}
            records.append(Record(f"{experiment.id}-{seed}", Path("nowhere"), spec, metrics, {"commit": "made", "seed": seed}))
    return records


def judged(**options) -> dict[str, fig7.Ruling]:
    tier = options.get("tier", "mini")
    return {ruling.claim: ruling for ruling in fig7.rulings(fig7.ends(made(**options)), tier)}


def test_a_row_is_the_end_of_a_run_as_its_spec_says():
    record = made()[0]
    named = replace(video.cell("mini", "digit", FEW, LARGE), id="fig7b_motion_f99_99px")  # the name is not asked
    rows = fig7.ends([record, replace(record, spec={"experiment": to_dict(named), "seed": 5})]).to_dict("records")
    shape = ("scan", "data", "frames", "size", "from_scratch", "control")
    assert [rows[0][name] for name in shape] == ["spatial_first", "motion", BASE, SMALL, False, "natural"]
    assert [rows[1][name] for name in ("data", "frames", "size", "part", "seed")] == ["digit", FEW, LARGE, "7b", 5]
    assert rows[0]["top1"] == pytest.approx(record.metrics[-1]["top1"], abs=1e-4)
    assert (rows[0]["best"], rows[0]["epochs"], rows[0]["run"]) == (99.5, 3, record.id)


def test_a_test_over_several_views_counts_where_there_was_one():
    record = made()[0]
    tested = replace(record, provenance={"test": {"top1": 64.125, "top5": 90.0, "views": 6}})
    rows = fig7.ends([record, tested])
    assert list(rows["views"]) == [1, 6]
    assert rows["top1"][1] == 64.125


def test_every_experiment_has_its_part():
    numbers = fig7.ends(made())
    parts = {part: set(rows["experiment"]) for part, rows in numbers.groupby("part")}
    assert parts["control"] == {"fig7a_control_shuffled", "fig7a_control_single"}
    assert {f"fig7a_{scan}" for scan in SCANS} < parts["7a"]
    assert len(parts["7a"]) == 9
    assert set(numbers.loc[numbers["from_scratch"], "experiment"]) == set(fig7.SCRATCH.values())
    cells = fig7.grid(numbers)
    assert cells["experiment"].str.startswith(("fig7a_spatial_first", "fig7b_")).all()
    assert not cells.groupby(["data", "frames", "size"])["experiment"].nunique().gt(1).any()
    assert cells["experiment"].nunique() == 2 * len(video.FRAMES["mini"]) * len(video.SIDES["mini"])


def test_the_paper_tier_names_its_data():
    assert set(fig7.ends(made(tier="paper"))["data"]) == {"ssv2", "k400"}


def test_every_ruling_is_a_claim_on_this_figure_that_an_experiment_names():
    named = {name for experiment in video.fig7("paper") for name in experiment.reproduces if name.startswith("C")}
    assert set(judged()) == named == {f"C{number}" for number in range(61, 69)}
    for name in named - {"C65"}:  # said in the text alone
        assert "Fig. 7" in claim(name).evidence


def test_numbers_by_which_all_claims_hold():
    found = judged()
    assert {name: ruling.verdict for name, ruling in found.items()} == dict.fromkeys(found, "supported")
    assert found["C61"].difference == pytest.approx(5, abs=0.2)
    assert found["C62"].difference == pytest.approx(-5, abs=0.2)
    assert found["C65"].difference == pytest.approx(9, abs=0.2)
    assert found["C66"].difference == pytest.approx(-2, abs=0.2)
    assert found["C67"].comparison.endswith("frames")


@pytest.mark.parametrize(
    ("claim", "changed", "verdict", "decisive"),
    [
        ("C61", {"fig7a_alternating": 8}, "contradicted", "fig7a_alternating"),
        ("C61", {"fig7a_alternating": 5}, "within seed spread", "fig7a_alternating"),
        ("C62", {"fig7a_spatiotemporal_v1": -8}, "contradicted", "fig7a_spatiotemporal_v1"),
        ("C62", {"fig7a_spatial_first": -10}, "within seed spread", "fig7a_spatial_first"),
        ("C63", {"fig7a_spatiotemporal_v2": 8}, "contradicted", ""),
        ("C63", {"fig7a_spatiotemporal_v2": 5}, "within seed spread", ""),
        ("C64", {"fig7a_alternating": 8}, "contradicted", "fig7a_alternating <= fig7a_spatial_first"),
        ("C64", {"fig7a_alternating": -8}, "contradicted", "fig7a_alternating >= fig7a_temporal_first"),
        ("C64", {"fig7a_alternating": 5}, "within seed spread", "fig7a_alternating <= fig7a_spatial_first"),
        ("C65", {"fig7a_scratch_temporal_first": -15}, "contradicted", ""),
        ("C65", {"fig7a_scratch_temporal_first": -9}, "within seed spread", ""),
        ("C66", dict.fromkeys(larger("motion"), 5), "contradicted", "digit"),
        ("C66", dict.fromkeys(larger("motion"), 2), "within seed spread", "motion"),
        ("C67", {cell("digit", MANY, LARGE): -5}, "contradicted", f"digit, {LARGE} px: {MANY} > {BASE} frames"),
        ("C67", {cell("digit", MANY, LARGE): -3}, "within seed spread", f"digit, {LARGE} px: {MANY} > {BASE} frames"),
        ("C68", dict.fromkeys(longest("motion"), 5), "contradicted", f"{MANY} > {BASE} frames"),
        ("C68", dict.fromkeys(longest("motion"), 2), "within seed spread", f"{MANY} > {BASE} frames"),
    ],
)
def test_each_claim_can_fail_or_stay_open(claim, changed, verdict, decisive):
    ruling = judged(changed=changed)[claim]
    assert ruling.verdict == verdict
    assert decisive in ruling.comparison.rpartition("; decisive: ")[2]
    assert (ruling.low < 0 < ruling.high) == (verdict == "within seed spread")


def test_the_grid_of_one_data_set_does_not_judge_the_other():
    found = judged(changed=dict.fromkeys(longest("digit"), -9))
    assert (found["C67"].verdict, found["C68"].verdict) == ("contradicted", "supported")


@pytest.mark.parametrize(
    ("without", "unjudged"),
    [
        (["fig7a_temporal_first"], {"C61", "C62", "C64", "C65"}),
        (["fig7a_alternating"], {"C61", "C62", "C64"}),
        (["fig7a_scratch_spatial_first"], {"C65"}),
        ([cell("digit", frames, size) for frames in (FEW, MANY) for size in (SMALL, LARGE)], {"C67"}),
        (["fig7a_control_shuffled", "fig7a_control_single"], set()),
        ([cell("motion", BASE, LARGE)], set()),  # a hole in the grid leaves the other steps
    ],
)
def test_what_was_not_run_is_not_judged_and_the_rest_is_drawn(without, unjudged):
    numbers = fig7.ends(made(without=without))
    found = {ruling.claim: ruling.verdict for ruling in fig7.rulings(numbers, "mini")}
    assert {name for name, verdict in found.items() if verdict == "not run"} == unjudged
    assert len(figures.drawn(fig7.draw(numbers, "mini"))) > 20


def test_a_hole_in_the_grid_is_bridged_by_the_next_cells():
    steps = dict(fig7._steps(fig7.ends(made(without=[cell("motion", BASE, LARGE)])), "frames"))
    assert f"motion, {LARGE} px: {MANY} > {FEW} frames" in steps
    assert f"motion, {SMALL} px: {MANY} > {BASE} frames" in steps


def test_smoke_and_two_seeds_judge_nothing():
    numbers = fig7.ends(made())
    assert {ruling.verdict for ruling in fig7.rulings(numbers, "smoke")} == {"not testable at this tier"}
    assert {ruling.verdict for ruling in judged(seeds=2).values()} == {"not run"}


def test_finals_are_means_over_seeds_and_controls_have_a_ceiling():
    numbers = fig7.ends(made())
    table = fig7.finals(numbers)
    assert list(table.index) == [experiment.id for experiment in video.fig7("mini")]
    values = numbers.loc[numbers["experiment"] == "fig7a_spatial_first", "top1"]
    assert table.loc["fig7a_spatial_first", "final"] == pytest.approx(sum(values) / 3)
    assert table.loc["fig7a_spatial_first", "sd"] == pytest.approx(values.std())
    assert set(table["best"]) == {99.5}
    assert set(table["seeds"]) == {3}
    assert table["ceiling"].dropna().to_dict() == {"fig7a_control_shuffled": 50.0, "fig7a_control_single": 50.0}
    assert fig7.finals(numbers.assign(data="ssv2"))["ceiling"].isna().all()  # its classes do not come in such pairs
    lead = fig7.controls(numbers)["lead"]
    assert lead["shuffled"] == pytest.approx(41, abs=0.2)
    assert lead["single"] == pytest.approx(60, abs=0.2)


def test_what_is_drawn_is_what_was_recorded():
    numbers = fig7.ends(made())
    lines = figures.drawn(fig7.draw(numbers, "mini"))
    means = numbers.groupby("experiment")["top1"].mean()
    drawn = 0
    for line in lines[lines["panel"] == "(a) scan order"].itertuples():
        scratch = "scratch_" if line.series == "from scratch" else ""
        assert line.x == pytest.approx(means[f"fig7a_{scratch}{SCANS[int(line.y)]}"])
        drawn += 1
    cells = fig7.grid(numbers).groupby(["data", "frames", "size"])["top1"].mean()
    for data in ("motion", "digit"):
        for line in lines[lines["panel"] == f"(b) {fig7.ASKED[data]}"].itertuples():
            assert line.y == pytest.approx(cells[data, line.x, int(line.series.removesuffix(" px"))])
            drawn += 1
    assert drawn == 9 + len(cells)
    shown = lines[lines["panel"] == "negative controls"].set_index("series")["x"]
    names = dict(zip(fig7.CONTROLS.values(), ("spatial_first", "control_shuffled", "control_single"), strict=True))
    assert shown.to_dict() == pytest.approx({series: means[f"fig7a_{name}"] for series, name in names.items()})


def test_the_papers_numbers_stand_alone_and_hollow():
    figure = fig7.draw(fig7.ends(made()), "mini")
    lines = figures.drawn(figure)
    theirs = lines[lines["series"] == "the paper"]
    assert set(theirs["panel"]) == {"in the paper"}
    assert lines[lines["panel"] == "in the paper"].equals(theirs)
    wanted = {row.values["scan_family"] for row in reference.table("fig7a") if row.id in fig7.PAPER_ROWS[:2]}
    assert wanted == set(SCANS[:2])
    assert list(theirs["x"]) == [row.values["top1"] for row in reference.table("fig7a")]
    (marks,) = next(axes for axes in figure.axes if axes.get_title(loc="left") == "in the paper").get_lines()
    assert marks.get_markerfacecolor() == "none"


def test_rows_of_the_paper_are_those_of_the_scans():
    rows = {experiment.model.scan: experiment.reproduces[0] for experiment in video.fig7("paper")[: len(SCANS)]}
    assert tuple(rows[scan] for scan in SCANS) == fig7.PAPER_ROWS
    assert list(fig7.LABELS) == list(SCANS)


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_is_drawn_under_its_name(tier):
    figure = fig7.draw(fig7.ends(made(tier=tier, seeds=2)), tier)
    assert figure._suptitle.get_text() == f"Fig. 7 at the {tier} tier, 2 seeds: {fig7.DATA[tier]}"
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert ("negative controls" in titles) == (tier != "paper")
    sizes = {series for series in figures.drawn(figure)["series"] if series.endswith(" px")}
    assert sizes == {f"{size} px" for size in video.SIDES[tier]}


def test_save_keeps_numbers_origin_and_pictures_together(figure_folder):
    records = made()
    saved = fig7.save(records, "mini")
    assert sorted(path.name for path in (figure_folder / "fig7").iterdir()) == ["mini.csv", "mini.json", "mini.png", "mini.svg"]
    assert [run["id"] for run in saved.origin["runs"]] == [record.id for record in records]
    assert len(saved.numbers) == len(records)
    assert set(saved.origin["specs"]) == {experiment.id for experiment in video.fig7("mini")}


def test_verdicts_are_the_same_from_the_file_even_where_many_are_level(figure_folder):
    level = {experiment.id: 200 / 3 - top1_of(experiment) for experiment in video.fig7("mini")}
    records = made(changed=level, spread=0.0)
    saved = fig7.save(records, "mini")
    assert list(saved.numbers["top1"]) == pytest.approx(list(fig7.ends(records)["top1"]), abs=1e-9)  # nothing is lost
    again = [ruling.as_row() for ruling in fig7.rulings(saved.numbers, "mini")]
    assert [row["comparison"] for row in again] == [row["comparison"] for row in saved.origin["claims"]]
    assert {row["verdict"] for row in again} == {"within seed spread", "supported"}  # C64: level is inside
    lines = [line for line in verify.judgements() if line.source == "figures/fig7/mini.json"]
    assert [line.claim for line in lines] == [f"C{number}" for number in range(61, 69)]
    assert verify._recorded()[1] == []
