"""What Fig. 1 measures at each tier."""

import pytest

from vmrepro.paper import claims
from vmrepro.specs import efficiency
from vmrepro.specs.schema import SIZES, TIERS, ModelSpec


@pytest.mark.parametrize("tier", TIERS)
def test_every_model_meets_every_clip_length_and_batch(tier):
    specs = efficiency.fig1(tier)
    keys = [(s.subject, s.model.num_frames, s.batch) for s in specs]
    subjects = {s.subject for s in specs} - (set() if tier == "smoke" else set(efficiency.SLOWEST))
    assert len(set(keys)) == len(keys)
    for subject in subjects:
        wanted = {(subject, frames, batch) for frames in efficiency.FRAMES[tier] for batch in efficiency.BATCHES[tier]}
        assert wanted <= set(keys)
    assert {"joint_naive", "joint_fused"} < subjects
    for frames in efficiency.FRAMES[tier]:
        assert len({s.model.length for s in specs if s.model.num_frames == frames}) == 1


@pytest.mark.parametrize("tier", ["mini", "paper"])
def test_the_models_are_of_the_papers_size_with_its_clip_lengths(tier):
    specs = efficiency.fig1(tier)
    mamba = next(s.model for s in specs if isinstance(s.model, ModelSpec))
    assert (mamba.depth, mamba.embed_dim, mamba.img_size) == (SIZES["ti"]["depth"], SIZES["ti"]["embed_dim"], 224)
    assert {8, 16, 32, 64} <= {s.model.num_frames for s in specs}
    assert {s.subject for s in specs} >= {"videomamba_cuda", "videomamba_mamba_ssm", "divided"}


def test_a_slow_subject_is_measured_on_short_clips_only():
    slow = [s for s in efficiency.fig1("mini") if s.subject in efficiency.SLOWEST]
    assert {(s.model.num_frames, s.batch) for s in slow} == {(8, 4), (16, 4)}


def test_the_paper_tier_has_the_papers_batch():
    assert {s.batch for s in efficiency.fig1("paper")} == {128, None}


def test_unknown_tiers_are_refused():
    with pytest.raises(ValueError, match="unknown tier 'midi': choose from smoke, mini, paper"):
        efficiency.fig1("midi")


def test_the_claims_exist():
    for ids in efficiency.CLAIMS.values():
        assert {claims.claim(id).topic for id in ids} == {"efficiency"}
