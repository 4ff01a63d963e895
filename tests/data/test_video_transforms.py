"""Pixels of a clip: where crops lie, that all frames undergo the same, and that chance comes from the generator alone."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from vmrepro.data.video_transforms import TrainTransform, crop_starts, normalised, square_crops, views_of
from vmrepro.specs.schema import AugmentSpec

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RECIPE = AugmentSpec(auto_augment="rand-m7-n4-mstd0.5-inc1", hflip=0.5, random_erasing=0.25)


def chance(seed=0):
    return np.random.default_rng(seed)


def still(frames=6, height=40, width=52, seed=0):
    """A photograph-like picture, the same in every frame."""
    low = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.float32)
    picture = torch.nn.functional.interpolate(torch.from_numpy(low).permute(2, 0, 1)[None], (height, width), mode="bilinear")
    return np.repeat(picture[0].permute(1, 2, 0).to(torch.uint8).numpy()[None], frames, axis=0)


def ramp(height, width, frames=2):
    """Channel 0 holds the row of a pixel, channel 1 its column, channel 2 the frame."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[..., 0] = np.arange(height)[:, None]
    clip[..., 1] = np.arange(width)
    clip[..., 2] = np.arange(frames)[:, None, None]
    return clip


def levels(clip):
    """A normalised clip (3, T, H, W) back as grey levels."""
    return (clip * torch.tensor(DEVIATION).view(3, 1, 1, 1) + torch.tensor(MEAN).view(3, 1, 1, 1)) * 255


def test_normalising_takes_out_the_mean_and_deviation_of_imagenet():
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1).expand(3, 2, 1, 1)
    clip = normalised(black_and_white)
    assert clip.dtype == torch.float32
    expected = [[-m / s, (1 - m) / s] for m, s in zip(MEAN, DEVIATION, strict=True)]
    torch.testing.assert_close(clip[..., 0, 0], torch.tensor(expected))


@pytest.mark.parametrize(
    ("longer", "size", "crops", "starts"),
    [(10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 7]), (4, 4, 3, [0, 0, 0]), (10, 4, 1, [3]), (11, 4, 1, [3])],
)
def test_crops_begin_where_the_released_test_begins_them(longer, size, crops, starts):
    assert crop_starts(longer, size, crops) == starts


@pytest.mark.parametrize(("height", "width"), [(8, 13), (13, 8), (8, 8)])
@pytest.mark.parametrize("crops", [1, 3])
def test_a_test_crops_along_the_longer_side_and_keeps_the_shorter_whole(height, width, crops):
    cut = square_crops(ramp(height, width), crops)
    assert cut.shape == (crops, 3, 2, 8, 8)
    assert cut.dtype == torch.uint8
    for crop, start in zip(cut, crop_starts(13 if height != width else 8, 8, crops), strict=True):
        top, left = (start, 0) if height > width else (0, start)
        assert crop[0, 0, :, 0].tolist() == list(range(top, top + 8))
        assert crop[1, 0, 0].tolist() == list(range(left, left + 8))
        assert crop[2, :, 0, 0].tolist() == [0, 1]


def test_views_are_the_crops_normalised():
    frames = still(height=16, width=21)
    assert torch.equal(views_of(frames, 3), normalised(square_crops(frames, 3)))
    assert views_of(frames).shape == (1, 3, 6, 16, 16)


def test_a_training_clip_has_the_shape_and_the_range_of_normalised_pixels():
    for seed in range(8):
        clip = TrainTransform(AugmentSpec(auto_augment=RECIPE.auto_augment, hflip=0.5), 16)(still(), chance(seed))
        assert clip.shape == (3, 6, 16, 16)
        assert clip.dtype == torch.float32
        assert clip.is_contiguous()
        assert levels(clip).min() > -0.01
        assert levels(clip).max() < 255.01


def test_all_frames_of_a_clip_undergo_the_same():
    changed = set()
    for seed in range(40):
        transform = TrainTransform(AugmentSpec(auto_augment="rand-m9-n3-mstd0.5-inc1", hflip=0.5), 16)
        clip = transform(still(), chance(seed))
        assert (clip == clip[:, :1]).all(), f"seed {seed}: frames of a still differ"
        changed.add(float(clip.mean()))
    assert len(changed) > 35  # and clips with different seeds do differ


def test_randaugment_changes_most_clips_and_leaves_its_generators_alone():
    plain, augmented = (TrainTransform(AugmentSpec(auto_augment=policy), 16) for policy in (None, RECIPE.auto_augment))
    differ = [not torch.equal(plain(still(), chance(seed)), augmented(still(), chance(seed))) for seed in range(30)]
    assert sum(differ) > 15
    assert not all(differ)  # the crop is drawn apart from the policy: four operations at one half leave some clips alone


def test_crops_are_of_one_region_with_the_released_area_and_aspect():
    height, width = 120, 200
    areas, aspects = [], []
    for seed in range(200):
        clip = levels(TrainTransform(AugmentSpec(), 10)(ramp(height, width), chance(seed)))
        rows, columns = clip[0, :, :, 0], clip[1, :, 0, :]
        assert (rows == rows[:1]).all()
        assert (columns == columns[:1]).all()
        # Centres of the first and last output pixel lie half a step inside the crop.
        tall, wide = (float(line[0, -1] - line[0, 0]) * 10 / 9 for line in (rows, columns))
        assert columns[0, -1] > columns[0, 0], "mirrored though hflip is 0"
        areas.append(tall * wide / (height * width))
        aspects.append(wide / tall)
    assert min(areas) < 0.15
    assert max(areas) > 0.6
    assert 0.06 < min(areas) <= max(areas) < 1.05
    assert 0.7 < min(aspects) < 0.85
    assert 1.2 < max(aspects) < 1.45


def test_a_crop_is_resized_bilinearly_without_antialiasing(monkeypatch):
    region = []
    monkeypatch.setattr(RandomResizedCrop, "get_params", lambda *_: region)
    frames = np.zeros((1, 6, 10, 3), np.uint8)
    frames[0, 1:3, 2:6, 0] = [0, 100, 200, 40]
    region[:] = 1, 2, 2, 4  # top, left, height, width
    larger = levels(TrainTransform(AugmentSpec(), 8)(frames, chance()))
    expected = torch.tensor([0.0, 25, 75, 125, 175, 160, 80, 40])
    torch.testing.assert_close(larger[0, 0], expected.expand(8, 8), rtol=0, atol=1e-3)
    frames[0, :, ::4, 1] = 200
    region[:] = 0, 0, 4, 8
    smaller = levels(TrainTransform(AugmentSpec(), 2)(frames, chance()))
    assert smaller[1, 0].abs().max() < 1e-3  # between pixels 1 and 2, 5 and 6; antialiasing would see the bright ones
    assert levels(TrainTransform(AugmentSpec(), 4)(frames, chance()))[1, 0].round().tolist() == [[100, 0, 100, 0]] * 4


@pytest.mark.parametrize(("hflip", "mirrored"), [(0.0, 0), (1.0, 60)])
def test_a_flip_follows_its_probability(hflip, mirrored):
    clips = [levels(TrainTransform(AugmentSpec(hflip=hflip), 8)(ramp(40, 40), chance(seed))) for seed in range(60)]
    assert sum(bool(clip[1, 0, 0, 0] > clip[1, 0, 0, -1]) for clip in clips) == mirrored
    assert all(clip[0, 0, 0, 0] < clip[0, 0, -1, 0] for clip in clips)


def test_half_of_the_clips_are_flipped_at_one_half_and_nothing_else_changes():
    always, half = (TrainTransform(AugmentSpec(hflip=p), 8) for p in (1.0, 0.5))
    never = TrainTransform(AugmentSpec(), 8)
    flipped = 0
    for seed in range(80):
        clip, mirror = never(ramp(40, 40), chance(seed)), always(ramp(40, 40), chance(seed))
        assert torch.equal(clip.flip(-1), mirror)
        mixed = half(ramp(40, 40), chance(seed))
        assert torch.equal(mixed, clip) or torch.equal(mixed, mirror)
        flipped += torch.equal(mixed, mirror)
    assert 25 < flipped < 55


def test_an_erased_box_is_the_same_in_all_frames_and_its_noise_is_not():
    plain, erased = TrainTransform(AugmentSpec(), 32), TrainTransform(AugmentSpec(random_erasing=1.0), 32)
    noise, shares = [], []
    for seed in range(30):
        before, after = plain(still(), chance(seed)), erased(still(), chance(seed))
        box = (before != after).all(0)
        rows, columns = box[0].any(1).nonzero(), box[0].any(0).nonzero()
        inside = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        assert box[:, *inside].all(), "the same box in every frame and channel"
        outside = torch.ones(32, 32, dtype=torch.bool)
        outside[inside] = False
        assert torch.equal(before[..., outside], after[..., outside])
        assert not torch.equal(after[:, 0, *inside], after[:, 1, *inside])
        noise.append(after[:, :, *inside].flatten())
        shares.append((~outside).float().mean())
    assert abs(torch.cat(noise).mean()) < 0.05
    assert abs(torch.cat(noise).std() - 1) < 0.05
    assert 0.01 < min(shares) < max(shares) < 0.36
    assert not torch.equal(noise[0][:20], noise[1][:20])


def test_erasing_follows_its_probability():
    plain, erased = TrainTransform(AugmentSpec(), 16), TrainTransform(AugmentSpec(random_erasing=0.25), 16)
    changed = sum(not torch.equal(plain(still(), chance(seed)), erased(still(), chance(seed))) for seed in range(120))
    assert 15 < changed < 50


def test_a_generator_decides_everything_and_no_other_is_touched():
    transform = TrainTransform(RECIPE, 16)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    first = [transform(still(), chance(seed)) for seed in range(6)]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    again = [TrainTransform(RECIPE, 16)(still(), chance(seed)) for seed in range(6)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(torch.equal(first[0], other) for other in first[1:])


def test_decoded_frames_are_left_as_they_are():
    frames = still()
    copy = frames.copy()
    TrainTransform(AugmentSpec(auto_augment=RECIPE.auto_augment, hflip=1.0, random_erasing=1.0), 16)(frames, chance())
    views_of(frames, 3)
    assert (frames == copy).all()


@pytest.mark.parametrize("bad", [{"color_jitter": 0.4}, {"max_shift": 2}, {"auto_augment": "v0"}])
def test_settings_that_videos_do_not_have_are_refused(bad):
    with pytest.raises(ValueError, match="videos"):
        TrainTransform(AugmentSpec(**bad), 16)
