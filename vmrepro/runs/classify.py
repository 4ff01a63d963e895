"""What does a checkpoint say of a video file, or of a data set? Trained elsewhere or here; nothing is trained."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vmrepro import store
from vmrepro.data.check import CLASSES
from vmrepro.data.clips import test_frames
from vmrepro.data.decode import read_frames
from vmrepro.data.moving_digits import MOTIONS
from vmrepro.data.video import Videos
from vmrepro.data.video_transforms import views_of
from vmrepro.models import VideoMamba, load_checkpoint
from vmrepro.models.checkpoints import read_state, spec_of_state
from vmrepro.runs import distributed, provenance
from vmrepro.runs.train import WEIGHTS
from vmrepro.runs.views import ViewTest, mean_of_views, score_views
from vmrepro.specs.schema import ClipSpec, DataSpec, ModelSpec, to_dict

# The test of the released scripts: how frames are chosen, clips, crops.
PROTOCOLS = {"kinetics400": ("sparse", 4, 3), "ssv2": ("segments", 2, 3)}
FRAMES_AT_ONCE = 512  # in one pass of the model


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights with the model that it belongs to.

    clip: how the run that made it tests, None for a released file. names: of the classes, where they are known.
    """

    file: Path
    spec: ModelSpec
    clip: ClipSpec | None = None
    names: tuple[str, ...] | None = None

    def load(self, backend: str, device: torch.device) -> VideoMamba:
        """The model with its weights in float32, in eval mode. Raises ValueError if the file does not fit."""
        model = VideoMamba(self.spec, backend=backend)
        load_checkpoint(model, self.file)
        return model.to(device).eval()


class Answer(NamedTuple):
    """Probabilities of the classes, (classes,), and what the classes are called."""

    probabilities: torch.Tensor
    names: tuple[str, ...]

    def top(self, count: int) -> list[tuple[str, float]]:
        """The likeliest classes by name, with their probabilities."""
        shares, classes = self.probabilities.topk(min(count, len(self.names)))
        return [(self.names[index], share) for index, share in zip(classes.tolist(), shares.tolist(), strict=True)]


def open_checkpoint(file: Path) -> Checkpoint:
    """What is in a file of weights: of a run in the store what its spec says, of any other what the shapes tell.

    Raises FileNotFoundError, and ValueError for what is no classifier of colour videos.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no checkpoint {file}")
    beside = file.with_name("spec.json")
    if file.name == WEIGHTS and beside.is_file():
        experiment = json.loads(beside.read_text())["experiment"]
        data, clip = experiment["data"], experiment["data"]["clip"]
        names = MOTIONS if data["name"] == "moving_digits" and data["label"] == "motion" else None
        found = Checkpoint(file, ModelSpec(**experiment["model"]), clip and ClipSpec(**clip), names)
    else:
        found = Checkpoint(file, spec_of_state(read_state(file)))
    spec = found.spec
    if spec.num_frames is None:
        raise ValueError(f"{file} is an image model (no temporal table): a video model of {spec.depth} blocks can start from it")
    if not spec.num_classes or spec.in_chans != 3 or spec.image_hw[0] != spec.image_hw[1]:
        raise ValueError(
            f"expected a classifier of square colour videos; {file} has {spec.num_classes} classes, {spec.in_chans} channels and "
            f"frames of {spec.image_hw[0]} x {spec.image_hw[1]} pixels"
        )
    return found


def read_labels(file: Path | None, checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of the classes: the lines of ``file``, else those that are known, else numbers. ValueError for another count."""
    classes = checkpoint.spec.num_classes
    if file is None:
        return checkpoint.names or tuple(map(str, range(classes)))
    names = tuple(file.read_text("utf-8").splitlines())
    if len(names) != classes:
        raise ValueError(f"{file} has {len(names)} labels, one a line; {checkpoint.file} has {classes} classes")
    return names


def predict(
    video: Path,
    checkpoint: Path,
    *,
    labels: Path | None = None,
    clips: int | None = None,
    crops: int | None = None,
    device: str = "auto",
    backend: str = "auto",
    decoder: str = "auto",
) -> Answer:
    """What the model in ``checkpoint`` says of a video file: the mean over views of its softmax.

    Frames are chosen as the run that made the checkpoint chooses them, of any other file as the released Kinetics test does.
    clips, crops: views, by default those of that test. Raises FileNotFoundError, DecodeError for a file that is no whole
    video, ValueError for a checkpoint or labels that do not fit, RuntimeError for an absent device or backend, ImportError for
    an absent decoder.
    """
    opened = open_checkpoint(checkpoint)
    names = read_labels(labels, opened)
    clip = _clip(opened.spec, opened.clip, *PROTOCOLS["kinetics400"], clips, crops)
    place = distributed.pick_device(device)

    def choose(count: int) -> list[int]:
        return [index for number in range(clip.test_clips) for index in test_frames(clip, count, number)]

    frames = read_frames(video, choose, short_side=opened.spec.img_size, decoder=decoder)
    views = views_of(frames, clip.test_crops).unflatten(2, (clip.test_clips, clip.num_frames))
    inputs = views.transpose(1, 2).flatten(0, 1)[None].to(place)
    model = opened.load(backend, place)
    return Answer(mean_of_views(model, inputs, _at_once(clip), _precision(place))[0].cpu(), names)


def evaluate(
    checkpoint: Path,
    dataset: str,
    root: Path,
    *,
    clips: int | None = None,
    crops: int | None = None,
    device: str = "auto",
    backend: str = "auto",
) -> store.Record:
    """The record of the test of ``checkpoint`` on the data set in ``root``: the one in the store if there is one, else made now.

    The protocol is the released one of that data set, and only its test list is read; clips and crops may be others. The record
    holds the accuracies, and its folder the prediction for each video. Under torchrun the processes share the videos. Raises
    FileNotFoundError, ValueError for a checkpoint or list that does not fit, RuntimeError for a video that cannot be read or an
    absent device or backend.
    """
    if dataset not in PROTOCOLS:
        raise ValueError(f"a data set of videos is one of {', '.join(PROTOCOLS)}, got {dataset!r}")
    opened, world = open_checkpoint(checkpoint), distributed.join(device)
    if opened.spec.num_classes != CLASSES[dataset]:
        raise ValueError(f"{checkpoint} has {opened.spec.num_classes} classes, {dataset} has {CLASSES[dataset]}")
    clip = _clip(opened.spec, None, *PROTOCOLS[dataset], clips, crops)
    data = DataSpec(name=dataset, img_size=opened.spec.img_size, num_classes=opened.spec.num_classes, clip=clip)
    videos = Videos(data, 0, world.device, root, splits=("test",))
    spec = {
        "id": f"evaluate_{dataset}",
        "tier": "paper",
        "checkpoint": {"file": checkpoint.name, "sha256": provenance.sha256(checkpoint)},
        "model": to_dict(opened.spec),
        "data": to_dict(data) | {"test_list_sha256": provenance.sha256(root / "test.csv")},
        "precision": _precision(world.device),
    }
    identifier = store.run_id(f"evaluate_{dataset}-{checkpoint.stem}", spec, 0)
    if (record := store.read(identifier)) is not None:
        return record
    model, began = opened.load(backend, world.device), time.perf_counter()
    tested = score_views(model, videos, clip.views, _at_once(clip), world, spec["precision"])
    if world.leads:
        _keep(identifier, spec, tested, time.perf_counter() - began, world, backend)
    world.barrier()
    return store.read(identifier)


def _keep(
    identifier: str, spec: dict[str, Any], tested: ViewTest, seconds: float, world: distributed.World, backend: str
) -> None:
    with store.claim(identifier) as folder:
        store.write_json(folder / "spec.json", {"experiment": spec, "seed": 0})
        store.write_metrics(folder, [tested.summary()])
        tested.write(folder)
        signed = provenance.collect(world.device, backend, world.size)
        signed |= {"seed": 0, "wall_seconds": round(seconds, 2), "test": tested.summary()}
        store.write_json(folder / "provenance.json", signed)


def _clip(
    model: ModelSpec, own: ClipSpec | None, sampling: str, clips: int, crops: int, told_clips: int | None, told_crops: int | None
) -> ClipSpec:
    """The views of a test: as told, else as of the run that made the checkpoint, else by protocol."""
    if own is not None:
        sampling, clips, crops = own.sampling, own.test_clips, own.test_crops
    return ClipSpec(
        num_frames=model.num_frames,
        sampling=sampling,
        test_clips=clips if told_clips is None else told_clips,
        test_crops=crops if told_crops is None else told_crops,
    )


def _at_once(clip: ClipSpec) -> int:
    return max(1, FRAMES_AT_ONCE // clip.num_frames)


def _precision(device: torch.device) -> str:
    return "bf16" if device.type == "cuda" else "fp32"
