"""A checkpoint is asked about real files: written here, read back by the decoders."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import videos
from vmrepro.data.clips import test_frames as frames_of_clip
from vmrepro.data.decode import DecodeError, read_frames
from vmrepro.data.moving_digits import MOTIONS
from vmrepro.data.video_transforms import views_of
from vmrepro.models import create_model
from vmrepro.runs import classify
from vmrepro.specs.schema import ClipSpec

SIZES = {"depth": 1, "embed_dim": 16, "img_size": 32, "num_frames": 4}


def save(file: Path, seed: int = 0, **changes) -> Path:
    """A checkpoint of a small model, with weights large enough that it has an opinion."""
    torch.manual_seed(seed)
    model = create_model("videomamba", **SIZES | {"num_classes": 400} | changes)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict()}, file)
    return file


def moving(file: Path, seed: int, count: int = 12) -> Path:
    """A video of noise that drifts, unlike any other's."""
    chance = np.random.default_rng(seed)
    base = chance.integers(0, 255, (count, 6, 8, 3), dtype=np.uint8)
    return videos.write(file, base.repeat(8, 1).repeat(8, 2))


@pytest.fixture
def film(tmp_path) -> Path:
    return moving(tmp_path / "film.mp4", 0)


def by_hand(film: Path, file: Path, clip: ClipSpec) -> torch.Tensor:
    """The mean over views of the softmax, each view read and classified alone."""
    model = classify.open_checkpoint(file).load("auto", torch.device("cpu"))
    shares = []
    for number in range(clip.test_clips):
        frames = read_frames(film, lambda count, number=number: frames_of_clip(clip, count, number), short_side=32)
        with torch.no_grad():
            shares += [model(view[None]).softmax(-1)[0] for view in views_of(frames, clip.test_crops)]
    assert len(shares) == clip.views
    return torch.stack(shares).mean(0).double()


@pytest.mark.parametrize(("clips", "crops"), [(1, 1), (2, 3)])
def test_a_prediction_is_the_mean_over_the_views_of_the_file(tmp_path, film, clips, crops):
    file = save(tmp_path / "model.pth")
    answer = classify.predict(film, file, clips=clips, crops=crops, device="cpu")
    want = by_hand(film, file, ClipSpec(num_frames=4, test_clips=clips, test_crops=crops))
    torch.testing.assert_close(answer.probabilities, want, atol=1e-5, rtol=0)
    (best, share), *others = answer.top(5)
    assert len(others) == 4
    assert best == str(int(answer.probabilities.argmax()))
    assert share == pytest.approx(answer.probabilities.max().item())


def test_labels_are_the_lines_of_a_file(tmp_path, film):
    file, labels = save(tmp_path / "model.pth", num_classes=3), tmp_path / "labels.txt"
    labels.write_text("running\nair drumming\nzumba\n")
    answer = classify.predict(film, file, labels=labels, clips=1, crops=1, device="cpu")
    assert sorted(name for name, _ in answer.top(5)) == ["air drumming", "running", "zumba"]
    labels.write_text("running\nzumba\n")
    with pytest.raises(ValueError, match=r"has 2 labels.*has 3 classes"):
        classify.predict(film, file, labels=labels, device="cpu")


def test_a_run_of_the_store_is_what_its_spec_says(tmp_path, film):
    """The order of its scan, its way of choosing frames and the names of its classes leave no trace in the weights."""
    sizes = SIZES | {"num_classes": 12, "scan": "temporal_first"}
    file = save(tmp_path / "run" / "weights.pt", **sizes)
    spec = create_model("videomamba", **sizes).spec
    data = {"name": "moving_digits", "label": "motion", "clip": {"num_frames": 4, "sampling": "segments", "test_clips": 2}}
    (tmp_path / "run" / "spec.json").write_text(json.dumps({"experiment": {"model": vars(spec), "data": data}, "seed": 0}))
    opened = classify.open_checkpoint(file)
    assert opened.spec == spec
    assert opened.clip == ClipSpec(num_frames=4, sampling="segments", test_clips=2)
    assert classify.read_labels(None, opened) == MOTIONS
    answer = classify.predict(film, file, device="cpu")
    torch.testing.assert_close(answer.probabilities, by_hand(film, file, opened.clip), atol=1e-5, rtol=0)
    elsewhere = classify.open_checkpoint(file.rename(tmp_path / "weights.pt"))
    assert elsewhere.spec.scan == "spatial_first"
    assert elsewhere.clip is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_frames": None}, "image model"), ({"in_chans": 1}, "1 channels"), ({"num_classes": 0}, "0 classes")],
)
def test_what_is_no_video_classifier_is_refused(tmp_path, film, changes, words):
    with pytest.raises(ValueError, match=words):
        classify.predict(film, save_plain(tmp_path / "model.pth", **changes), device="cpu")


def save_plain(file: Path, **changes) -> Path:
    torch.save(create_model("videomamba", **SIZES | changes).state_dict(), file)
    return file


def test_missing_and_damaged_files_are_named(tmp_path, film):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        classify.predict(film, tmp_path / "absent.pth", device="cpu")
    file = save(tmp_path / "model.pth")
    with pytest.raises(FileNotFoundError, match=r"absent\.mp4"):
        classify.predict(tmp_path / "absent.mp4", file, device="cpu")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    with pytest.raises(DecodeError, match=r"broken\.mp4"):
        classify.predict(broken, file, device="cpu")


@pytest.fixture
def kinetics(tmp_path, monkeypatch) -> Path:
    """Seven videos under two folders, some of one name, with their lists; records go beside."""
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    root = tmp_path / "kinetics"
    lines = []
    for number in range(7):
        name = f"part{number % 2}/clip_{number // 2}.mp4"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        moving(root / name, number, count=6 + number)
        lines.append(f"{name},{number % 3}\n")
    for split in ("train", "val", "test"):
        (root / f"{split}.csv").write_text("".join(lines))
    return root


def test_a_data_set_is_tested_file_by_file_and_recorded_once(kinetics, tmp_path):
    file = save(tmp_path / "model.pth")
    names = [line.rpartition(",")[0] for line in (kinetics / "test.csv").read_text().splitlines()]
    answers = {name: classify.predict(kinetics / name, file, device="cpu").top(1)[0] for name in names}
    # The first three are right.
    labels = [int(best) if place < 3 else (int(best) + 1) % 400 for place, (best, _) in enumerate(answers.values())]
    (kinetics / "test.csv").write_text("".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True)))
    record = classify.evaluate(file, "kinetics400", kinetics, device="cpu")
    with open(record.folder / "predictions.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["video"] for row in rows] == names
    for row in rows:
        best, share = answers[row["video"]]
        assert row["class_1"] == best
        assert float(row["probability_1"]) == pytest.approx(share, rel=1e-4)
    tested = record.provenance["test"]
    assert (tested["seen"], tested["views"], tested["correct"]) == (7, 12, 3)
    assert classify.evaluate(file, "kinetics400", kinetics, device="cpu") == record
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_data_set_is_tested_by_its_test_list_alone(kinetics, tmp_path):
    file = save(tmp_path / "model.pth")
    for split in ("train", "val"):
        (kinetics / f"{split}.csv").unlink()
    record = classify.evaluate(file, "kinetics400", kinetics, clips=1, crops=1, device="cpu")
    assert record.provenance["test"]["seen"] == 7
    (kinetics / "test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"kinetics400 needs .*test\.csv, which is missing"):
        classify.evaluate(file, "kinetics400", kinetics, clips=1, crops=1, device="cpu")


def test_another_protocol_list_or_checkpoint_is_another_record(kinetics, tmp_path):
    file = save(tmp_path / "model.pth")
    first = classify.evaluate(file, "kinetics400", kinetics, clips=1, crops=1, device="cpu")
    more = classify.evaluate(file, "kinetics400", kinetics, clips=2, crops=1, device="cpu")
    assert [record.provenance["test"]["views"] for record in (first, more)] == [1, 2]
    other = classify.evaluate(save(file, seed=1), "kinetics400", kinetics, clips=1, crops=1, device="cpu")
    lines = (kinetics / "test.csv").read_text().splitlines(keepends=True)
    (kinetics / "test.csv").write_text("".join(lines[:4]))
    fewer = classify.evaluate(file, "kinetics400", kinetics, clips=1, crops=1, device="cpu")
    assert fewer.provenance["test"]["seen"] == 4
    assert len({first.id, more.id, other.id, fewer.id}) == 4


def test_the_protocol_follows_the_data_set(kinetics, tmp_path):
    record = classify.evaluate(save(tmp_path / "model.pth", num_classes=174), "ssv2", kinetics, device="cpu")
    clip = record.spec["experiment"]["data"]["clip"]
    assert (clip["sampling"], clip["test_clips"], clip["test_crops"]) == ("segments", 2, 3)


def test_a_checkpoint_for_other_data_is_refused(kinetics, tmp_path):
    file = save(tmp_path / "model.pth")
    with pytest.raises(ValueError, match="has 400 classes, ssv2 has 174"):
        classify.evaluate(file, "ssv2", kinetics, device="cpu")
    with pytest.raises(ValueError, match="kinetics400, ssv2, got 'k400'"):
        classify.evaluate(file, "k400", kinetics, device="cpu")
