"""The experiments of Fig. 7 against the released recipes and the paper's rows; numbers are looked up, not typed."""

from dataclasses import replace

import pytest

from vmrepro.paper import reference
from vmrepro.paper.claims import claims
from vmrepro.specs import catalog, video
from vmrepro.specs.recipes import recipe
from vmrepro.specs.schema import SCANS, SIZES, TIERS

BELOW_PAPER = ("smoke", "mini")


def members(tier):
    return {experiment.id: experiment for experiment in video.fig7(tier)}


@pytest.mark.parametrize("tier", TIERS)
def test_each_row_of_fig_7a_is_the_experiment_of_its_scan(tier):
    by_row = {name: one for one in video.fig7(tier) for name in one.reproduces if name.startswith("f7a_")}
    rows = [reference.rows(name)[0] for name in by_row]
    assert rows == list(reference.table("fig7a"))
    assert len(by_row) == len(rows) == len(SCANS)
    words = {"sf": "spatial", "tf": "temporal", "st": "spatiotemporal", "v1": "v1", "v2": "v2", "half": "half"}
    for row in rows:
        scan = by_row[row.id].model.scan
        if row.values["scan_type"].startswith("alternative"):
            assert scan == "alternating"
        else:
            told = [words[word] for word in row.values["scan_type"].split("_") if word in words]
            assert told == [word for word in scan.split("_") if word != "first"]


@pytest.mark.parametrize("tier", TIERS)
def test_every_claim_on_fig_7_that_a_run_can_settle_has_an_experiment(tier):
    asked = {f"C{number}" for number in range(61, 69)}
    assert asked <= {claim.id for claim in claims()}
    assert asked == {name for one in video.fig7(tier) for name in one.reproduces if name.startswith("C")}


@pytest.mark.parametrize("tier", TIERS)
def test_only_what_is_ablated_differs_within_fig_7a(tier):
    base, *others = (one for one in video.fig7(tier) if one.id.startswith("fig7a_"))
    assert base.model.scan == SCANS[0]
    for one in others:
        same = replace(one, id=base.id, reproduces=base.reproduces, start=base.start, model=replace(one.model, scan=SCANS[0]))
        assert replace(same, data=replace(one.data, clip=replace(one.data.clip, control=None))) == base
        changed = [one.model.scan != SCANS[0], one.data.clip.control is not None]
        assert sum(changed) == 1 or one.start is None


@pytest.mark.parametrize("tier", TIERS)
def test_the_grid_is_frames_by_resolution_on_two_data_sets(tier):
    base = members(tier)["fig7a_spatial_first"]
    cells = [one for one in video.fig7(tier) if one.id.startswith("fig7b_")] + [base]
    seen = {(one.data.name, one.data.label, one.data.clip.num_frames, one.data.img_size) for one in cells}
    frames, sides = video.FRAMES[tier], video.SIDES[tier]
    assert len(cells) == len(seen) == 2 * len(frames) * len(sides)
    assert {(one.model.num_frames, one.model.img_size) for one in cells} == {(f, s) for f in frames for s in sides}
    assert all(one.start is not None for one in cells)
    assert len({one.id for one in video.fig7(tier)}) == len(video.fig7(tier))


def test_the_rows_of_other_tables_print_what_the_experiment_trains():
    by_row = {name: one for one in video.fig7("paper") for name in one.reproduces if name.startswith("t")}
    assert len(by_row) == len(video.ROWS)
    for name, one in by_row.items():
        printed = reference.rows(name)[0].values
        data = {"K400": "kinetics400", "SSV2": "ssv2"}[printed["dataset"]]
        assert (data, printed["input_frames"], printed["input_size"]) == (one.data.name, one.model.num_frames, one.data.img_size)
        assert (printed["is_ours"], printed["model_size"], printed["learning"]) == (True, "Ti", "supervised")
        assert printed["views_temporal"] == one.data.clip.test_clips
        assert printed["views_spatial"] == one.data.clip.test_crops


def test_the_paper_tier_is_the_released_recipes():
    for one in members("paper").values():
        data = "ssv2" if one.data.name == "ssv2" else "k400"
        frames = min(one.model.num_frames, 16) if data == "ssv2" else one.model.num_frames
        values = recipe(f"{data}/videomamba_tiny/f{frames}x224")
        for part in (one.train, one.data.augment):
            kept = {name: getattr(part, name) for name in values if hasattr(part, name)}
            assert kept == {name: values[name] for name in kept}
            assert len(kept) > 5
        assert one.data.clip.views == values["test_clips"] * values["test_crops"]
        assert one.model.drop_path_rate == values["drop_path"]
        assert {name: getattr(one.model, name) for name in SIZES["ti"]} == SIZES["ti"]
        assert one.train.input_lr_scale == pytest.approx(0.75 ** (one.model.depth + 1), rel=1e-4)
        assert one.start is None or one.start.checkpoint == video.PRETRAINED
    assert members("paper")["fig7a_spatial_first"].data.augment.hflip == 0.0
    assert members("paper")["fig7b_k400_f8_224px"].data.augment.hflip == 0.5


@pytest.mark.parametrize("tier", BELOW_PAPER)
def test_below_the_paper_tier_all_start_from_one_image_model(tier):
    starts = {one.start for one in video.fig7(tier)} - {None}
    (start,) = starts
    assert start.experiment.model.num_frames is None
    assert start.experiment.data.clip is None
    assert start.experiment.start is None
    mini = tier == "mini"
    assert (start.experiment.model.depth == SIZES["ti"]["depth"]) is mini
    assert (start.experiment.model.embed_dim == SIZES["ti"]["embed_dim"]) is mini


def test_controls_are_no_results_of_the_paper():
    assert not any("control" in id for id in members("paper"))
    for tier in BELOW_PAPER:
        assert {one.data.clip.control for one in members(tier).values()} == {None, "shuffled", "single"}
        assert all(one.reproduces == () for id, one in members(tier).items() if "control" in id)


def test_the_catalogue_knows_and_prices_them():
    assert [one.id for one in catalog.find("fig7a_alternating", "mini")] == ["fig7a_alternating"]
    ssv2, k400 = (members("paper")[id] for id in ("fig7a_spatial_first", "fig7b_k400_f8_224px"))
    assert catalog.train_images(ssv2) == 2 * catalog.TRAIN_IMAGES["ssv2"]
    assert catalog.train_images(k400) == 2 * catalog.TRAIN_IMAGES["kinetics400"]
    small = members("smoke")["fig7a_spatial_first"]
    assert catalog.train_images(small) == small.data.videos


def test_an_unknown_tier_and_recipe_are_named():
    with pytest.raises(ValueError, match="unknown tier 'huge'"):
        video.fig7("huge")
    with pytest.raises(ValueError, match="no recipe 'k400/none'; known are imagenet/"):
        recipe("k400/none")
