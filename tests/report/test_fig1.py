"""Fig. 1: verdicts from measured rows, growth, and a picture of exactly these numbers."""

import matplotlib

matplotlib.use("agg")

import pandas as pd
import pytest

from vmrepro.paper.claims import Verdict
from vmrepro.report import fig1, figures
from vmrepro.specs.schema import TIERS


def measured(speed, memory, *, frames=(8, 16, 64), spread=0.01):
    """Rows as ``curves`` makes them: speed and memory by subject, as functions of frames."""
    rows = []
    for largest in (False, True):
        for at in frames:
            for subject in speed:
                clips = speed[subject](at)
                row = {
                    "subject": subject,
                    "frames": at,
                    "tokens": 196 * at + 1,
                    "batch": 128 if largest else 4,
                    "largest": largest,
                }
                row |= {"status": "ok", "clips_per_s": clips, "low": clips * (1 - spread), "high": clips * (1 + spread)}
                rows.append(row | {"mib_per_clip": memory[subject](at), "run": "r", "stamp": "a machine"})
    return pd.DataFrame(rows)


SPEED = {"videomamba_cuda": lambda t: 8000 / t, "joint_naive": lambda t: 64000 / t**2}
MEMORY = {"videomamba_cuda": lambda t: t, "joint_naive": lambda t: t**2}


def verdicts(numbers, tier="mini"):
    return {
        (r.claim, r.comparison.split(" against ")[1].split(",")[0]): (r.difference, r.verdict)
        for r in fig1.rulings(numbers, tier)
    }


def test_ratios_decide_at_64_frames_or_everywhere():
    found = verdicts(measured(SPEED, MEMORY))
    assert found["C01", "joint_naive"] == (pytest.approx(8.0), Verdict.SUPPORTED)
    assert found["C02", "joint_naive"] == (pytest.approx(64.0), Verdict.SUPPORTED)
    # At eight frames both are level: the quartiles overlap.
    assert found["C03", "joint_naive"] == (pytest.approx(1.0), Verdict.WITHIN_SEED_SPREAD)
    assert found["C04", "joint_naive"] == (pytest.approx(8.0), Verdict.SUPPORTED)


def test_a_faster_baseline_contradicts():
    numbers = measured(SPEED | {"joint_fused": lambda t: 64000 / t}, MEMORY | {"joint_fused": lambda t: t / 2})
    found = verdicts(numbers)
    assert found["C01", "joint_fused"] == (pytest.approx(1 / 8), Verdict.CONTRADICTED)
    assert {found[id, "joint_fused"][1] for id in ("C02", "C03", "C04")} == {Verdict.CONTRADICTED}
    assert found["C01", "joint_naive"][1] == Verdict.SUPPORTED


def test_the_stated_factor_counts_not_only_the_order():
    found = verdicts(measured(SPEED | {"joint_naive": lambda t: 1600 / t}, MEMORY | {"joint_naive": lambda t: 39 * t}))
    assert found["C01", "joint_naive"] == (pytest.approx(5.0), Verdict.CONTRADICTED)
    assert found["C02", "joint_naive"] == (pytest.approx(39.0), Verdict.CONTRADICTED)
    assert found["C03", "joint_naive"][1] == found["C04", "joint_naive"][1] == Verdict.SUPPORTED


def test_what_was_not_measured_is_not_judged():
    numbers = measured(SPEED, MEMORY, frames=(8, 16))
    assert verdicts(numbers)["C01", "joint_naive"] == (None, Verdict.NOT_RUN)
    numbers.loc[numbers["subject"] == "joint_naive", "status"] = "out of memory"
    assert fig1.rulings(numbers, "mini") == []


def test_no_verdict_rests_on_the_public_kernels_as_we_put_them_together():
    numbers = measured(SPEED | {"videomamba_mamba_ssm": lambda t: 10 / t}, MEMORY | {"videomamba_mamba_ssm": lambda t: 1e6 * t})
    assert [r.verdict for r in fig1.rulings(numbers, "mini")] == [
        r.verdict for r in fig1.rulings(measured(SPEED, MEMORY), "mini")
    ]


def test_smoke_judges_nothing():
    assert {verdict for _, verdict in verdicts(measured(SPEED, MEMORY), "smoke").values()} == {Verdict.NOT_TESTABLE}


def test_growth_over_the_last_two_doublings():
    numbers = measured(SPEED, MEMORY, frames=(8, 16, 32, 64))
    assert dict(fig1.slopes(numbers, "mib_per_clip")) == pytest.approx({"videomamba_cuda": 1.0, "joint_naive": 2.0})
    assert dict(fig1.slopes(numbers, "clips_per_s")) == pytest.approx({"videomamba_cuda": 1.0, "joint_naive": 2.0})


def test_the_picture_shows_the_largest_batch_and_the_equal_one():
    numbers = measured(SPEED, MEMORY)
    numbers.loc[numbers["largest"], "clips_per_s"] *= 3
    lines = figures.drawn(fig1.draw(numbers, "mini"))
    for panel, column, largest in (("(a) throughput", "clips_per_s", True), ("(b) memory", "mib_per_clip", False)):
        shown = lines[lines["panel"] == panel]
        assert sorted(shown["y"]) == sorted(numbers.loc[numbers["largest"] == largest, column])
        assert set(shown["series"]) == {fig1.CURVES[subject][0] for subject in SPEED}


@pytest.mark.parametrize("tier", ["smoke", "mini"])
def test_smoke_is_not_drawn_as_the_papers_model_or_clips(tier):
    figure = fig1.draw(measured(SPEED, MEMORY, frames=(16, 64, 128)), tier)
    words = " ".join([*(axes.get_xlabel() for axes in figure.axes), *figures.drawn(figure)["series"]])
    assert ("224" in words) == ("VideoMamba-Ti" in words) == (tier != "smoke")


def test_what_a_page_needs_of_a_figure():
    assert set(fig1.DATA) == set(TIERS)
    finals = fig1.finals(measured(SPEED, MEMORY))
    assert list(finals.index) == ["videomamba_cuda", "joint_naive"]
    assert finals.loc["joint_naive", "MiB a clip, 64"] == 64**2
    assert finals.loc["joint_naive", "clips/s, 64"] == 64000 / 64**2


def test_sizes_in_both_countings():
    sizes = fig1.sizes("mini").set_index("frames")
    assert sizes.loc[64, "gmacs_full"] > 1.5 * sizes.loc[64, "gmacs_paper"]
    assert sizes.loc[64, "gmacs_paper"] / sizes.loc[8, "gmacs_paper"] == pytest.approx(8, rel=0.01)
