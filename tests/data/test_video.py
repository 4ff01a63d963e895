"""Lists of videos and the batches made of them: every line read as meant, every video once, no chance but the seed's."""

import gc
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch

from tests import videos
from vmrepro.data import build
from vmrepro.data.clips import test_frames as frames_of_a_test
from vmrepro.data.clips import train_frames, validation_frames
from vmrepro.data.decode import read_frames
from vmrepro.data.video import Videos, read_list
from vmrepro.data.video_transforms import views_of
from vmrepro.specs.schema import AugmentSpec, ClipSpec, DataSpec

CPU = torch.device("cpu")
FILES, FRAMES, SIDE = 6, 12, 32
CLIP = ClipSpec(num_frames=4, sampling="sparse")
RECIPE = AugmentSpec(auto_augment="rand-m7-n4-mstd0.5-inc1", hflip=0.5, random_erasing=0.25, repeats=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Square videos 0.mp4 to 5.mp4, their frames numbered 16 * i onwards, and one that breaks off in its header."""
    root = tmp_path_factory.mktemp("files")
    for i in range(FILES):
        videos.write(root / f"{i}.mp4", videos.numbered(FRAMES, (SIDE, SIDE), first=16 * i), codec="mpeg4")
    (root / "broken.mp4").write_bytes((root / "0.mp4").read_bytes()[:200])
    return root


@pytest.fixture
def root(tmp_path, files):
    """A data set of the six videos in all three lists, comma-separated; the label is the number of the file."""
    for split in ("train", "val", "test"):
        write_list(tmp_path, split, [f"{files}/{i}.mp4" for i in range(FILES)], range(FILES))
    return tmp_path


def write_list(root, split, names, labels, delimiter=","):
    (root / f"{split}.csv").write_text("".join(f"{name}{delimiter}{label}\n" for name, label in zip(names, labels, strict=True)))


def spec(**changes):
    return DataSpec(**({"name": "kinetics400", "img_size": SIDE, "num_classes": FILES, "clip": CLIP} | changes))


def numbers(clip):
    """The frame numbers in a normalised clip (3, T, H, W)."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    levels = (clip * deviation.view(3, 1, 1, 1) + mean.view(3, 1, 1, 1)) * 255
    return videos.numbers(levels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy())


def whole(batches):
    """All batches as one tuple of tensors."""
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@pytest.mark.parametrize(
    ("line", "name", "label"),
    [
        ("a/b.mp4,3", "a/b.mp4", 3),
        ("a/b.mp4 3", "a/b.mp4", 3),
        ("a/b.mp4\t3", "a/b.mp4", 3),
        ("a/b.mp4, 3", "a/b.mp4", 3),
        ("riding a bike/b c.mp4,3", "riding a bike/b c.mp4", 3),
        ("riding a bike/b c.mp4 3", "riding a bike/b c.mp4", 3),
        ("one, two/b.mp4,3", "one, two/b.mp4", 3),
        ("one, two/b.mp4 3", "one, two/b.mp4", 3),
        ("/elsewhere/b.mp4,3", "/elsewhere/b.mp4", 3),
        ("17.webm 0", "17.webm", 0),
        ("straße/b.mp4,173", "straße/b.mp4", 173),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_is_read_with_either_delimiter(tmp_path, line, name, label, ending, mark):
    list_file = tmp_path / "train.csv"
    list_file.write_bytes(f"{mark}{line}{ending}{ending}{line}".encode())
    found = read_list(list_file, 174, "ssv2")
    assert [(video.name, video.label) for video in found] == [(name, label)] * 2
    assert found[0].path == (name if name.startswith("/") else str(tmp_path / name))


@pytest.mark.parametrize(
    ("lines", "number", "words"),
    [
        ("path,label\na.mp4,1", 1, "expected a path, a space and a label from 0 to 9, got 'path,label'"),
        ("a.mp4,1\nb.mp4", 2, "expected a path, a comma and a label from 0 to 9, got 'b.mp4'"),
        ("a.mp4,1\nb.mp4 2", 2, "a comma"),
        ("a.mp4 1\nb.mp4,2", 2, "a space"),
        ("a.mp4,1\n,2", 2, "a comma"),
        ("a.mp4,1\nb.mp4,", 2, "a comma"),
        ("a.mp4,1\nb.mp4,1.5", 2, "from 0 to 9"),
        ("a.mp4,1\nb.mp4,-1", 2, "from 0 to 9"),
        ("a.mp4,1\nb.mp4,10", 2, "too large for 10 classes"),
        ("a.mp4,1,33.5", 1, "Three columns, as in lists of LVU"),
        ("a.mp4,1,33", 1, "Three columns"),
        ("a.mp4,1\nb.mp4,1,33", 2, "Three columns"),
        ("folder/17 48 1", 1, "Three columns"),
    ],
)
def test_a_malformed_line_is_named_with_what_was_expected(tmp_path, lines, number, words):
    (tmp_path / "val.csv").write_text(lines)
    with pytest.raises(ValueError, match=rf"val\.csv, line {number}: ") as error:
        read_list(tmp_path / "val.csv", 10, "ssv2")
    assert words in str(error.value)


def test_an_empty_list_is_an_error(tmp_path):
    (tmp_path / "val.csv").write_text("\n\n")
    with pytest.raises(ValueError, match=r"val\.csv is empty"):
        read_list(tmp_path / "val.csv", 10, "ssv2")


def test_a_list_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "val.csv").write_bytes(b"caf\xe9.mp4,1")
    with pytest.raises(ValueError, match=r"val\.csv is not UTF-8 text"):
        read_list(tmp_path / "val.csv", 10, "ssv2")


def test_an_ending_is_added_only_where_there_is_no_file_without_it(tmp_path):
    (tmp_path / "raw").touch()
    (tmp_path / "v1.0").mkdir()
    write_list(tmp_path, "train", ["raw", "video", "film.avi", "v1.0/video"], [0] * 4, " ")
    found = [os.path.relpath(video.path, tmp_path) for video in read_list(tmp_path / "train.csv", 1, "ssv2")]
    assert found == ["raw", "video.mp4", "film.avi", "v1.0/video.mp4"]
    assert read_list(tmp_path / "train.csv", 1, "ssv2")[1].name == "video"


@pytest.mark.parametrize("missing", ["train", "val", "test"])
def test_a_missing_list_names_the_data_set_the_file_and_the_variable(root, missing):
    (root / f"{missing}.csv").unlink()
    with pytest.raises(FileNotFoundError, match=rf"^kinetics400 needs {root}/{missing}\.csv, which is missing.*VMREPRO_DATA"):
        Videos(spec(), 0, CPU, root)


def test_only_the_lists_that_are_asked_for_are_read(root):
    for split in ("train", "val"):
        (root / f"{split}.csv").unlink()
    data = Videos(spec(), 0, CPU, root, splits=("test",), workers=0)
    seen = torch.cat([index for index, _, _ in data.view_batches(2)])
    assert seen.tolist() == list(range(len(data.test_names)))
    with pytest.raises(KeyError, match="val"):
        next(data.test_batches(2))


def test_data_sets_are_looked_for_in_the_folder_of_their_name(root, monkeypatch):
    monkeypatch.setenv("VMREPRO_DATA", str(root.parent))
    with pytest.raises(FileNotFoundError, match=f"{root.parent}/ssv2/train.csv"):
        build(spec(name="ssv2"), 0, CPU)
    root.rename(root.parent / "ssv2")
    assert build(spec(name="ssv2"), 0, CPU).train_size == FILES
    (root.parent / "ssv2").rename(root)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_video_that_stands_twice_in_a_test_list_is_refused(root, files, split):
    write_list(root, split, [f"{files}/0.mp4", f"{files}/1.mp4", f"{files}/../{files.name}/0"], [0, 1, 0])
    with pytest.raises(ValueError, match=rf"{split}\.csv lists 1 videos again, such as .*/\.\./.*0: each must count once"):
        Videos(spec(), 0, CPU, root)


def test_equal_base_names_in_different_folders_stay_two_videos(root, files):
    for i in (1, 2):
        (root / f"p{i}").mkdir()
        (root / f"p{i}" / "same.mp4").symlink_to(files / f"{i}.mp4")
    write_list(root, "test", ["p1/same.mp4", "p2/same.mp4"], [1, 2])
    data = Videos(spec(), 0, CPU, root, workers=0)
    assert data.test_names == ["p1/same.mp4", "p2/same.mp4"]
    index, clips, labels = whole(data.view_batches(2))
    assert (index.tolist(), labels.tolist()) == ([0, 1], [1, 2])
    assert [min(numbers(clip[0])) // 16 for clip in clips] == [1, 2]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_validation_video_is_seen_once_with_the_frames_of_a_validation(root, world):
    data = Videos(spec(), 0, CPU, root, workers=0)
    seen = {}
    for rank in range(world):
        for clips, labels in data.test_batches(2, rank, world):
            assert clips.shape == (len(labels), 3, 4, SIDE, SIDE)
            assert clips.dtype == torch.float32
            assert labels.dtype == torch.int64
            for clip, label in zip(clips, labels.tolist(), strict=True):
                assert label not in seen
                seen[label] = numbers(clip)
    assert seen == {i: [16 * i + frame for frame in validation_frames(CLIP, FRAMES)] for i in range(FILES)}


def test_views_are_clip_after_clip_and_for_each_its_crops(root):
    for split in ("val", "test"):
        wide = videos.numbered(FRAMES, (32, 48))
        wide[..., 2] = np.arange(48) * 5  # so that crops differ
        videos.write(root / "wide.mp4", wide, codec="mpeg4")
        write_list(root, split, ["wide.mp4"], [0])
    clip = ClipSpec(num_frames=4, sampling="segments", test_clips=2, test_crops=3)
    index, clips, _ = whole(Videos(spec(clip=clip, img_size=24), 0, CPU, root, workers=0).view_batches(8))
    assert index.tolist() == [0]
    assert clips.shape == (1, 6, 3, 4, 24, 24)
    for c in range(2):
        frames = read_frames(root / "wide.mp4", lambda count, c=c: frames_of_a_test(clip, count, c), short_side=24)
        assert torch.equal(clips[0, 3 * c : 3 * c + 3], views_of(frames, 3))
    blue = clips[0, :3, 2].mean((1, 2, 3))
    assert blue[0] < blue[1] < blue[2]


@pytest.mark.parametrize("world", [1, 2])
def test_every_test_video_is_given_once_with_its_index(root, world):
    data = Videos(spec(clip=ClipSpec(num_frames=4, test_clips=3)), 0, CPU, root, workers=0)
    found = [whole(data.view_batches(4, rank, world)) for rank in range(world)]
    index, clips, labels = whole(found)
    assert sorted(index.tolist()) == list(range(FILES))
    assert index.tolist() == labels.tolist()
    clip = ClipSpec(num_frames=4, test_clips=3)
    for i, views in zip(index.tolist(), clips, strict=True):
        assert [numbers(view) for view in views] == [[16 * i + f for f in frames_of_a_test(clip, FRAMES, c)] for c in range(3)]


def test_a_control_shuffles_or_repeats_the_frames_of_tests_too(root):
    shuffled = Videos(spec(clip=ClipSpec(num_frames=8, control="shuffled")), 0, CPU, root, workers=0)
    single = Videos(spec(clip=ClipSpec(num_frames=8, control="single")), 0, CPU, root, workers=0)
    plain = validation_frames(ClipSpec(num_frames=8), FRAMES)
    orders = [[n % 16 for n in numbers(clip)] for clip in whole(shuffled.test_batches(8))[0]]
    assert all(sorted(order) == plain for order in orders)
    assert sum(order != plain for order in orders) >= FILES - 1
    again = [[n % 16 for n in numbers(clip)] for clip in whole(shuffled.test_batches(8))[0]]
    assert orders == again
    assert all(len(set(numbers(clip))) == 1 for clip in whole(single.test_batches(8))[0])
    assert all(len(set(numbers(view))) == 1 for video in whole(single.view_batches(8))[1] for view in video)


def test_training_takes_the_frames_and_pixels_that_the_seed_says(root):
    """Without augmentation but for the crop, whose middle still shows which frames these are."""
    data = Videos(spec(), 3, CPU, root, workers=0)
    clips, labels = whole(data.train_batches(5, 6))
    assert sorted(labels.tolist()) == list(range(FILES))
    for clip, label in zip(clips, labels.tolist(), strict=True):
        chance = np.random.default_rng([3, 0, 5, label])
        expected = read_frames(data._lists["train"][label].path, lambda n, c=chance: train_frames(CLIP, n, c))
        crop = views_of(expected)[0]
        assert crop.shape == clip.shape
        changes, same = clip.diff(dim=1).abs().amax((0, 2, 3)) > 0.5, crop.diff(dim=1).abs().amax((0, 2, 3)) > 0.5
        assert (~changes | same).all(), "a clip never changes where its frames do not"


def test_copies_of_a_video_are_neighbours_made_of_the_same_frames(root):
    data = Videos(spec(augment=AugmentSpec(repeats=3)), 0, CPU, root, workers=0)
    assert data.train_size == 3 * FILES
    clips, labels = whole(data.train_batches(0, 6))
    assert clips.shape == (18, 3, 4, SIDE, SIDE)
    assert sorted(labels[::3].tolist()) == list(range(FILES))
    assert labels.tolist() == labels[::3].repeat_interleave(3).tolist()
    for i in range(0, 18, 3):
        assert not torch.equal(clips[i], clips[i + 1])
        assert not torch.equal(clips[i + 1], clips[i + 2])


def test_an_epoch_is_the_same_for_any_number_of_workers_and_in_any_order_of_epochs(root):
    runs = {}
    for workers in (0, 1, 2):
        data = Videos(spec(augment=RECIPE), 1, CPU, root, workers=workers)
        epochs = (4, 0, 4) if workers else (0, 4)
        runs[workers] = {epoch: whole(data.train_batches(epoch, 4)) for epoch in epochs}
        assert not torch.equal(runs[workers][0][0], runs[workers][4][0])
    for epoch in (0, 4):
        for workers in (1, 2):
            assert all(torch.equal(one, other) for one, other in zip(runs[0][epoch], runs[workers][epoch], strict=True))
    other_seed = whole(Videos(spec(augment=RECIPE), 2, CPU, root, workers=0).train_batches(0, 4))
    assert not torch.equal(other_seed[0], runs[0][0][0])


def test_processes_share_a_batch_as_mixup_pairs_it(root):
    data = Videos(spec(augment=RECIPE), 1, CPU, root, workers=0)
    ((clips, labels),) = data.train_batches(0, 12)
    shares = [next(data.train_batches(0, 12, rank, 3)) for rank in range(3)]
    for rank, (share, share_labels) in enumerate(shares):
        mine = [2 * rank, 2 * rank + 1, 10 - 2 * rank, 11 - 2 * rank]
        assert torch.equal(share, clips[mine])
        assert torch.equal(share_labels, labels[mine])


def test_a_last_batch_that_is_not_full_is_dropped_and_a_batch_that_cannot_be_shared_refused(root):
    data = Videos(spec(augment=RECIPE), 0, CPU, root, workers=0)
    assert data.train_size == 12
    assert [len(labels) for _, labels in data.train_batches(0, 8)] == [8]
    with pytest.raises(ValueError, match="batch_size 6 must be a multiple of 4: 2 clips of each video"):
        next(data.train_batches(0, 6))
    with pytest.raises(ValueError, match="batch_size 12 must be a multiple of 8"):
        next(data.train_batches(0, 12, 0, 2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad", ["broken.mp4", "absent.mp4"])
def test_a_test_stops_at_a_video_that_cannot_be_read(root, files, workers, bad):
    for split in ("val", "test"):
        write_list(root, split, [f"{files}/1.mp4", f"{files}/{bad}"], [1, 0])
    data = Videos(spec(), 0, CPU, root, workers=workers)
    with pytest.raises(RuntimeError, match=rf"{bad} of val\.csv cannot be read.*`vmrepro data check kinetics400`"):
        whole(data.test_batches(2))
    with pytest.raises(RuntimeError, match=rf"{bad} of test\.csv cannot be read"):
        whole(data.view_batches(1))
    assert data.lost == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_counts_what_it_loses_and_takes_the_next_of_the_list(root, files, workers):
    names, labels = [f"{files}/{i % 3}.mp4" for i in range(102)], [i % 3 for i in range(102)]
    names[101] = f"{files}/broken.mp4"
    write_list(root, "train", names, labels)
    data = Videos(spec(augment=AugmentSpec(hflip=0.5)), 0, CPU, root, workers=workers)
    with pytest.warns(UserWarning, match=r"training goes on without .*broken\.mp4, the next video takes its place") as warned:
        first = [*data.train_batches(0, 34)]
    assert len(warned) == 1
    assert list(data.lost) == [f"{files}/broken.mp4"]
    assert "broken.mp4" in data.lost[f"{files}/broken.mp4"]
    order = np.random.default_rng([0, 0]).permutation(102).tolist()
    expected = [{101: 0}.get(i, i % 3) for i in order]  # after the last of the list comes the first
    assert whole(first)[1].tolist() == expected
    whole(data.train_batches(1, 34))  # no second warning, which would be an error here
    # The clips of all others are what they are without a loss.
    names[101], labels[101] = names[0], 0
    write_list(root, "train", names, labels)
    assert torch.equal(whole(first)[0], whole(Videos(data._spec, 0, CPU, root, workers=0).train_batches(0, 34))[0])


def test_a_training_that_loses_more_than_one_in_a_hundred_stops_and_lists_them(root, files):
    for i in range(2):
        (root / f"bad{i}.mp4").write_bytes(b"no video")
    names = [f"{files}/0.mp4"] * 120
    names[7], names[90] = "bad0.mp4", "bad1.mp4"
    write_list(root, "train", names, [0] * 120)
    data = Videos(spec(), 0, CPU, root, workers=2)
    with (
        pytest.warns(UserWarning, match="training goes on without"),
        pytest.raises(
            RuntimeError, match=r"2 of 120 training videos cannot be read, more than 1%.*\n.*bad\d.mp4: .*\n.*bad\d.mp4: "
        ),
    ):
        whole(data.train_batches(0, 10))
    assert sorted(data.lost) == ["bad0.mp4", "bad1.mp4"]


@pytest.mark.parametrize("names", [["bad.mp4"] * 200, ["bad.mp4", "worse.mp4", "good"]])
def test_a_training_list_without_a_readable_stretch_stops(root, files, names):
    write_list(root, "train", [f"{files}/0.mp4" if name == "good" else name for name in names], [0] * len(names))
    data = Videos(spec(), 0, CPU, root, workers=0)
    with pytest.warns(UserWarning, match="without"), pytest.raises(RuntimeError, match="training videos cannot be read"):
        whole(data.train_batches(0, 2))


def children():
    return {child.pid for child in multiprocessing.active_children()}


def test_all_passes_share_one_set_of_workers_and_it_ends_with_the_data(root):
    before = children()
    data = Videos(spec(), 0, CPU, root, workers=2)
    assert children() == before
    used = set()
    for epoch in range(4):
        whole(data.train_batches(epoch, 2))
        used |= children() - before
        whole(data.test_batches(4))
        next(data.view_batches(1))  # abandoned
        used |= children() - before
    assert len(used) == 2
    assert [labels.tolist() for _, labels in data.test_batches(3)] == [[0, 1, 2], [3, 4, 5]]
    del data
    gc.collect()
    deadline = time.monotonic() + 20
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_two_passes_at_once_are_refused(root, workers):
    data = Videos(spec(), 0, CPU, root, workers=workers)
    first = data.test_batches(1)
    next(first)
    whole(data.train_batches(0, 2))
    with pytest.raises(RuntimeError, match="another pass over these videos has begun"):
        next(first)


def resident_and_open(pid):
    """Resident KiB of a process and how many files it has open."""
    with open(f"/proc/{pid}/statm") as statm:
        pages = int(statm.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024, len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
def test_workers_do_not_grow_over_hundreds_of_videos(root, files):
    write_list(root, "train", [f"{files}/{i % FILES}.mp4" for i in range(160)], [i % FILES for i in range(160)])
    before = children()
    data = Videos(spec(augment=RECIPE), 0, CPU, root, workers=2)
    sizes = []
    for epoch in range(5):
        for _ in data.train_batches(epoch, 16):
            pass
        sizes.append([resident_and_open(pid) for pid in [*sorted(children() - before), os.getpid()]])
    for process, (early, late) in enumerate(zip(sizes[1], sizes[-1], strict=True)):
        assert late[0] - early[0] < 4096, f"process {process} grew from {early[0]:.0f} to {late[0]:.0f} KiB over 480 videos"
        assert late[1] <= early[1] + 2, f"process {process} has {late[1]} files open, had {early[1]}"
