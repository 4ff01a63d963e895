from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from vmrepro import data
from vmrepro.data.digits import Digits, _shifted
from vmrepro.specs.schema import AugmentSpec, DataSpec

CPU = torch.device("cpu")
WORLDS = pytest.mark.parametrize("world", [1, 2, 4])


def digits(seed: int = 0, max_shift: int = 0, img_size: int = 8) -> Digits:
    augment = AugmentSpec(max_shift=max_shift)
    spec = DataSpec(name="digits", img_size=img_size, num_classes=10, augment=augment)
    return data.build(spec, seed, CPU)


def scanned() -> tuple[np.ndarray, np.ndarray]:
    """All images (1797, 8, 8) with the statistics of the training half taken out, in float64, and their labels."""
    raw = load_digits()
    train = raw.images[:898]
    return (raw.images - train.mean()) / train.std(ddof=1), raw.target


def keys(images: torch.Tensor) -> list[bytes]:
    """What tells images apart."""
    return [image.numpy().tobytes() for image in images]


def flat(batches) -> Counter:
    return Counter(key for images, _ in batches for key in keys(images))


def test_the_halves_are_the_scanned_images_normalised():
    images, labels = scanned()
    ((train, train_labels),) = digits().train_batches(0, 898)
    tests = list(digits().test_batches(100))
    assert train.shape == (898, 1, 8, 8)
    assert train.dtype == torch.float32
    assert train_labels.dtype == torch.int64
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std().item() == pytest.approx(1, abs=1e-5)
    assert [len(y) for _, y in tests] == [100] * 8 + [99]
    # The test half keeps the file's order; the training half is a permutation of the file's.
    torch.testing.assert_close(torch.cat([x for x, _ in tests])[:, 0].double(), torch.from_numpy(images[898:]), atol=1e-5, rtol=0)
    assert torch.cat([y for _, y in tests]).tolist() == labels[898:].tolist()
    grey = load_digits().images[:898]
    recovered = (train[:, 0].double().numpy() * grey.std(ddof=1) + grey.mean()).round().astype(int)
    got = Counter(zip(map(bytes, recovered.astype(np.uint8)), train_labels.tolist(), strict=True))
    assert got == Counter(zip(map(bytes, grey.astype(np.uint8)), labels[:898].tolist(), strict=True))


def test_a_batch_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        torch.manual_seed(order.calls)
        order.calls += 1
        return [key for images, _ in digits(seed, max_shift=1).train_batches(epoch, 32) for key in keys(images)]

    order.calls = 0
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_shifts_are_drawn_anew_each_epoch_and_reach_as_far_as_asked():
    """Against the unshifted images of the same epoch, whose order is the same."""
    seen = set()
    for epoch in range(2):
        plain, _ = next(digits().train_batches(epoch, 64))
        moved, _ = next(digits(max_shift=1).train_batches(epoch, 64))
        background = digits()._background
        shifts = []
        for before, after in zip(plain, moved, strict=True):
            candidates = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            fits = [s for s in candidates if torch.equal(slow_shift(before, *s, background), after)]
            assert fits, "an image that is no shift of the scan"
            shifts.append(fits[0])
        seen.add(tuple(shifts))
        assert {dy for dy, _ in shifts} == {dx for _, dx in shifts} == {-1, 0, 1}
    assert len(seen) == 2


@pytest.mark.parametrize("batch_size", [2, 32, 64])
def test_an_epoch_shows_every_image_once(batch_size):
    ((whole, _),) = digits().train_batches(9, 898)
    missing = Counter(keys(whole))
    missing.subtract(flat(digits().train_batches(0, batch_size)))
    assert min(missing.values()) == 0  # none too often
    assert missing.total() == 898 % batch_size  # what does not fill a batch is left out


def test_labels_stay_with_their_images():
    images, labels = scanned()
    label = dict(zip(keys(torch.from_numpy(images).round(decimals=3)), labels, strict=True))
    for batch, targets in digits().train_batches(4, 32):
        assert [label[key] for key in keys(batch[:, 0].double().round(decimals=3))] == targets.tolist()


@WORLDS
@pytest.mark.parametrize("max_shift", [0, 1])
def test_ranks_share_a_batch_and_its_pairs(world, max_shift):
    """Mixup adds an image to its mirror image in the batch: ``.flip(0)`` must give it the same partner on every rank."""
    source = digits(seed=5, max_shift=max_shift)
    shares = [list(source.train_batches(1, 32, rank, world)) for rank in range(world)]
    batches = list(source.train_batches(1, 32))
    assert all(len(share) == len(batches) for share in shares)
    for number, (whole, labels) in enumerate(batches):
        together, partners = Counter(), {}
        for share in shares:
            images, own = share[number]
            assert len(images) == 32 // world
            together.update(zip(keys(images), own.tolist(), strict=True))
            partners |= zip(keys(images), keys(images.flip(0)), strict=True)
        assert together == Counter(zip(keys(whole), labels.tolist(), strict=True))
        assert partners == dict(zip(keys(whole), keys(whole.flip(0)), strict=True))


@WORLDS
def test_shares_of_the_test_set_are_disjoint_and_complete(world):
    shares = [flat(digits().test_batches(100, rank, world)) for rank in range(world)]
    assert sum(shares, Counter()) == flat(digits().test_batches(899))
    assert max(share.total() for share in shares) - min(share.total() for share in shares) <= 1


def test_a_larger_image_is_the_same_picture():
    small, large = (next(digits(img_size=side).test_batches(899)) for side in (8, 16))
    assert large[0].shape == (899, 1, 16, 16)
    assert large[1].tolist() == small[1].tolist()
    back = torch.nn.functional.avg_pool2d(large[0], 2)
    assert torch.corrcoef(torch.stack([back.flatten(), small[0].flatten()]))[0, 1] > 0.95
    # Corners of the scans are empty: what a shift brings in is what lies there.
    assert large[0][:, 0, 0, 0].median().item() == pytest.approx(digits(img_size=16)._background, abs=1e-5)


def slow_shift(image: torch.Tensor, dy: int, dx: int, fill: float) -> torch.Tensor:
    channels, height, width = image.shape
    moved = torch.full_like(image, fill)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                if 0 <= y - dy < height and 0 <= x - dx < width:
                    moved[c, y, x] = image[c, y - dy, x - dx]
    return moved


@pytest.mark.parametrize("shifts", [[(0, 0), (1, 0), (0, 1), (-1, 2)], [(3, -2), (-3, -4), (5, 1), (0, -7)], [(0, 0)] * 4])
def test_shifted_against_a_slow_loop(shifts):
    images = torch.arange(4 * 2 * 4 * 5, dtype=torch.float32).reshape(4, 2, 4, 5)
    want = torch.stack([slow_shift(image, dy, dx, -1.0) for image, (dy, dx) in zip(images, shifts, strict=True)])
    assert torch.equal(_shifted(images, torch.tensor(shifts), -1.0), want)
