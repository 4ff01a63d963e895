"""With a small tree of real JPEG files of one colour each, which no crop and no flip changes."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from vmrepro import data
from vmrepro.data import imagenet
from vmrepro.data.imagenet import ImageNet
from vmrepro.specs.schema import AugmentSpec, DataSpec

CPU = torch.device("cpu")
CLASSES, SIDE = 3, 32
SHADES = {"train": [20 * (i + 1) for i in range(12)], "val": [20 * (i + 1) + 10 for i in range(10)]}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
RECIPE = AugmentSpec(auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.3, hflip=0.5, random_erasing=0.25)
pytestmark = [
    # Python 3.12 warns of every fork in a process with threads, and torch starts threads; its loaders fork all the same.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.usefixtures("one_worker"),
]


@pytest.fixture
def one_worker(monkeypatch):
    monkeypatch.setattr(imagenet, "WORKERS", 1)  # torch warns of more workers than cores


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "imagenet"
    for split, shades in SHADES.items():
        for index, shade in enumerate(shades):
            folder = root / split / f"n{index % CLASSES:08}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), (shade, 128, 255 - shade)).save(folder / f"{index}.JPEG", quality=95)
    return root


def spec(augment: AugmentSpec = RECIPE, **options) -> DataSpec:
    return DataSpec(**{"name": "imagenet", "img_size": SIDE, "num_classes": CLASSES, "augment": augment, **options})


def shades(split: str, batches) -> list[int]:
    """The numbers of the images that a pass shows, told by their colour; labels must be those of their folders."""
    seen = []
    for images, labels in batches:
        red = (images.mean((2, 3))[:, 0] * STD[0] + MEAN[0]) * 255
        numbers = [min(range(len(SHADES[split])), key=lambda i: abs(SHADES[split][i] - value)) for value in red.tolist()]
        assert [number % CLASSES for number in numbers] == labels.tolist()
        seen += numbers
    return seen


def test_batches_are_normalised_crops(tree):
    source = ImageNet(spec(AugmentSpec()), 0, CPU, tree)
    assert (source.train_size, source.num_classes) == (12, 3)
    for split, batches in (("train", source.train_batches(0, 4)), ("val", source.test_batches(4))):
        for images, labels in batches:
            assert images.dtype == torch.float32
            assert labels.dtype == torch.int64
            assert images.shape[1:] == (3, SIDE, SIDE)
            colours = (images * STD[:, None, None] + MEAN[:, None, None]) * 255
            assert colours.amin((2, 3)).sub(colours.amax((2, 3))).abs().max() < 2  # still one colour
            assert colours.mean((2, 3))[:, 1].tolist() == pytest.approx([128] * len(labels), abs=3)
            assert colours.mean((2, 3))[:, [0, 2]].sum(1).tolist() == pytest.approx([255] * len(labels), abs=5)
            assert shades(split, [(images, labels)])  # red tells the image, and so its label


def test_the_test_crop_leaves_the_rim_out(tree, tmp_path):
    """Of a 64-pixel image, crop_ratio 0.875 leaves out some 3.5 pixels at each edge; this one has a rim of 2."""
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[:2] = picture[-2:] = picture[:, :2] = picture[:, -2:] = 0
    for split in SHADES:
        for name in range(CLASSES):
            (tmp_path / split / str(name)).mkdir(parents=True)
            Image.fromarray(picture).save(tmp_path / split / str(name) / "a.JPEG", quality=95)
    corner = {}
    for ratio in (0.875, 1.0):
        images, _ = next(ImageNet(spec(crop_ratio=ratio), 0, CPU, tmp_path).test_batches(1))
        corner[ratio] = (images[0, 0, 0, 0] * STD[0] + MEAN[0]).item()
    assert corner[0.875] > 0.9
    assert corner[1.0] < 0.3


@pytest.mark.parametrize("repeats", [1, 3])
def test_seed_and_epoch_decide_order_and_augmentation(tree, repeats):
    augment = AugmentSpec(**{**vars(RECIPE), "repeats": repeats})

    def epoch(seed, number):
        # What this process drew before must not matter: not torch's chance, nor those that timm reads.
        epoch.calls += 1
        torch.manual_seed(epoch.calls), random.seed(epoch.calls), np.random.seed(epoch.calls)  # noqa: NPY002
        source = ImageNet(spec(augment), seed, CPU, tree)
        return torch.cat([images for images, _ in source.train_batches(number, 4)])

    epoch.calls = 0
    first = epoch(0, 0)
    assert first.shape == (12, 3, SIDE, SIDE)
    assert torch.equal(first, epoch(0, 0))
    assert not torch.equal(first, epoch(0, 1))
    assert not torch.equal(first, epoch(1, 0))


def test_ranks_augment_differently(tree):
    """Repeats put one image on several ranks, which is of use only when they do not draw the same augmentation."""
    source = ImageNet(spec(AugmentSpec(**{**vars(RECIPE), "repeats": 2, "random_erasing": 1.0})), 0, CPU, tree)
    one, other = (torch.cat([images for images, _ in source.train_batches(0, 4, rank, 2)]) for rank in range(2))
    assert one.shape == other.shape
    assert not torch.equal(one, other)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_the_training_set(tree, world):
    source = ImageNet(spec(AugmentSpec(hflip=0.5)), 0, CPU, tree)
    seen = [shades("train", source.train_batches(0, 6, rank, world)) for rank in range(world)]
    assert {len(share) for share in seen} == {12 // world}
    assert Counter(number for share in seen for number in share) == Counter(range(12))


def test_what_does_not_fill_a_batch_is_left_out(tree):
    source = ImageNet(spec(AugmentSpec()), 0, CPU, tree)
    assert [len(labels) for _, labels in source.train_batches(0, 8)] == [8]


@pytest.mark.parametrize("world", [1, 3])
def test_repeats_show_fewer_images_more_often(tree, world):
    source = ImageNet(spec(AugmentSpec(repeats=3)), 0, CPU, tree)
    seen = [shades("train", source.train_batches(0, 3, rank, world)) for rank in range(world)]
    counts = Counter(number for share in seen for number in share)
    # As long as a pass without repeats, in a third of the images; with three ranks each shows each of them once.
    assert list(counts.values()) == [3] * 4
    if world == 3:
        assert all(len(set(share)) == 4 for share in seen)
    other = Counter(number for rank in range(world) for number in shades("train", source.train_batches(1, 3, rank, world)))
    assert set(other) != set(counts)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_of_the_test_set_are_disjoint_and_complete(tree, world):
    source = ImageNet(spec(), 0, CPU, tree)
    seen = [shades("val", source.test_batches(4, rank, world)) for rank in range(world)]
    assert sorted(number for share in seen for number in share) == list(range(10))


def test_build_looks_where_the_variable_says(tree, monkeypatch):
    monkeypatch.setenv("VMREPRO_DATA", str(tree.parent))
    source = data.build(spec(), 0, CPU)
    assert isinstance(source, ImageNet)
    assert source.train_size == 12


@pytest.mark.parametrize(
    ("build", "found"),
    [
        ([], "train has 0"),
        (["train/a", "train/b", "train/c"], "val has 0"),
        (["train/a", "train/b", "train/c", "val/a", "val/b"], "val has 2"),
        (["train/a", "train/b", "train/c", "train/d"], "train has 4"),
    ],
)
def test_a_wrong_tree_is_one_error_that_names_the_right_one(build, found, tmp_path, monkeypatch):
    monkeypatch.setenv("VMREPRO_DATA", str(tmp_path))
    root = tmp_path / "imagenet"
    for folder in build:
        (root / folder).mkdir(parents=True)
        (root / "train" / "notes.txt").touch()  # a file is no class
    with pytest.raises(FileNotFoundError) as caught:
        data.build(spec(), 0, CPU)
    message = str(caught.value)
    for part in (found, f"{root}/train/<class>/<image>.JPEG", f"{root}/val/<class>/<image>.JPEG", "3 class", "VMREPRO_DATA"):
        assert part in message
