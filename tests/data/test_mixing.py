import numpy as np
import pytest
import torch

from vmrepro.data.digits import Digits
from vmrepro.data.mixing import Mixing
from vmrepro.specs.schema import AugmentSpec, DataSpec

MIXED = AugmentSpec(mixup=0.8, cutmix=1.0, label_smoothing=0.1)


def batch(count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 8, 8, generator=chance), torch.arange(count) % 10


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_mixing_targets_are_smoothed_labels(smoothing, dtype):
    images, labels = batch()
    same, targets = Mixing(AugmentSpec(label_smoothing=smoothing), 10)(images.to(dtype), labels, 0)
    assert torch.equal(same, images.to(dtype))
    assert targets.dtype == dtype
    want = torch.full((8, 10), smoothing / 10, dtype=dtype)
    want[torch.arange(8), labels] += 1 - smoothing
    torch.testing.assert_close(targets, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(6))
def test_mixed_targets_are_shares_of_two_labels(seed, dtype):
    images, labels = batch()
    mixed, targets = Mixing(MIXED, 10)(images.to(dtype, copy=True), labels, seed)
    assert (mixed.dtype, targets.dtype) == (dtype, dtype)  # a loss takes the type of its targets
    torch.testing.assert_close(targets.sum(1), torch.ones(8, dtype=dtype))
    floor = 0.1 / 10
    for row, own, other in zip(targets, labels, labels.flip(0), strict=True):
        rest = [value for index, value in enumerate(row.tolist()) if index not in (own, other)]
        assert rest == pytest.approx([floor] * 8)
    share = (targets[0, labels[0]].item() - floor) / 0.9
    assert 0 <= share <= 1
    blend = share * images + (1 - share) * images.flip(0)
    kept = mixed == images
    if (kept | (mixed == images.flip(0))).all():  # cutmix: the label's share is the area's
        assert kept.double().mean().item() == pytest.approx(share, abs=1e-6)
    else:
        torch.testing.assert_close(mixed, blend.to(dtype), atol=1e-5, rtol=0)


def test_both_kinds_of_mixing_and_none_occur():
    spec = AugmentSpec(mixup=0.8, cutmix=1.0, mixup_prob=0.5)
    kinds = set()
    for seed in range(20):
        images, labels = batch()
        mixed, _ = Mixing(spec, 10)(images.clone(), labels, seed)
        kept = mixed == images
        kinds.add("none" if kept.all() else "cutmix" if (kept | (mixed == images.flip(0))).all() else "mixup")
    assert kinds == {"none", "cutmix", "mixup"}


def test_the_seed_decides_whatever_was_drawn_before():
    def mix(seed):
        np.random.seed(mix.calls)  # noqa: NPY002 - the generator that timm reads
        mix.calls += 1
        images, labels = batch()
        return torch.cat([part.flatten() for part in Mixing(MIXED, 10)(images, labels, seed)])

    mix.calls = 0
    assert torch.equal(mix(1), mix(1))
    assert not torch.equal(mix(1), mix(2))
    assert torch.equal(mix(1_000_003 * 7_000), mix(1_000_003 * 7_000))  # beyond 32 bits


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_mixing_does_not_depend_on_the_number_of_processes(world, seed):
    """Ranks mix their own shares with their own reverse, and get what one process gets for the whole batch."""
    data = Digits(DataSpec(name="digits", img_size=8, num_classes=10), 3, torch.device("cpu"))
    whole, labels = next(data.train_batches(0, 32))
    place = {image.numpy().tobytes(): index for index, image in enumerate(whole)}
    mixed, targets = Mixing(MIXED, 10)(whole.clone(), labels, seed)
    assert not torch.equal(mixed, whole)
    for rank in range(world):
        share, own = next(data.train_batches(0, 32, rank, world))
        places = [place[image.numpy().tobytes()] for image in share]
        got, got_targets = Mixing(MIXED, 10)(share, own, seed)
        assert torch.equal(got, mixed[places])
        assert torch.equal(got_targets, targets[places])


@pytest.mark.parametrize("seed", range(6))
def test_a_clip_is_mixed_as_its_frames_are(seed):
    """Cutmix takes one box through all frames, and the targets' share is the area of that box."""
    clips = torch.rand(4, 3, 5, 8, 6, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(4)
    mixed, targets = Mixing(MIXED, 10)(clips.clone(), labels, seed)
    assert mixed.shape == clips.shape
    for frame in range(5):
        alone, same = Mixing(MIXED, 10)(clips[:, :, frame].clone(), labels, seed)
        assert torch.equal(mixed[:, :, frame], alone)
        assert torch.equal(targets, same)


def test_boxes_lie_in_height_and_width():
    """A box that reached into the channels or the frames would spare some of them."""
    spec, boxes = AugmentSpec(cutmix=1.0), 0
    for seed in range(20):
        clips = torch.rand(2, 3, 4, 8, 6, generator=torch.Generator().manual_seed(seed))
        mixed, _ = Mixing(spec, 10)(clips.clone(), torch.arange(2), seed)
        changed = mixed != clips
        assert torch.equal(changed, changed[:, :1, :1].expand_as(changed))
        rows, columns = changed[0, 0, 0].any(1), changed[0, 0, 0].any(0)
        assert torch.equal(changed[0, 0, 0], rows[:, None] & columns)
        boxes += bool(changed.any() and not changed.all())
    assert boxes > 5
