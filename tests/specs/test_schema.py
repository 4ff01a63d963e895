import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from vmrepro import paths
from vmrepro.specs import catalog
from vmrepro.specs.schema import (
    SCANS,
    AugmentSpec,
    ClipSpec,
    DataSpec,
    DistillSpec,
    Experiment,
    ModelSpec,
    StartSpec,
    TrainSpec,
    digest,
    to_dict,
)

MODEL = {"depth": 2, "embed_dim": 16}
DATA = {"name": "digits", "img_size": 8, "num_classes": 10}
CLIP = {"num_frames": 4}
TRAIN = {"epochs": 5, "batch_size": 4, "lr": 0.1}


def experiment(**changes) -> Experiment:
    model = ModelSpec(**MODEL, img_size=8, patch_size=2, num_classes=10)
    parts = {"id": "teacher", "tier": "smoke", "model": model, "data": DataSpec(**DATA), "train": TrainSpec(**TRAIN)}
    return Experiment(**parts | changes)


@pytest.mark.parametrize(
    ("make", "good", "bad", "complaint"),
    [
        *[
            (ModelSpec, MODEL, {name: value}, f"{name} must be a positive integer, got {value!r}")
            for name in ("depth", "embed_dim", "patch_size", "in_chans", "kernel_size", "d_state", "d_conv", "expand")
            for value in (0, -1, 1.5, "2", None)
        ],
        (ModelSpec, MODEL, {"num_classes": -1}, "num_classes must be 0 or a positive integer"),
        *[
            (ModelSpec, MODEL, {name: value}, f"{name} must be None or a positive integer, got {value!r}")
            for name in ("stride", "num_frames", "dt_rank", "distill_dim")
            for value in (0, -3, 2.0)
        ],
        *[
            (ModelSpec, MODEL, {name: value}, rf"{name} must lie in \[0, 1\)")
            for name in ("drop_path_rate", "drop_rate", "fc_drop_rate")
            for value in (-0.1, 1.0, float("nan"))
        ],
        (ModelSpec, MODEL, {"norm": "batch"}, "norm must be one of 'rms', 'layer', got 'batch'"),
        (ModelSpec, MODEL, {"initialisation": "zero"}, "initialisation must be one of 'released', 'mamba'"),
        (ModelSpec, MODEL, {"img_size": (224, 224, 3)}, r"img_size must be an integer or \(height, width\)"),
        (ModelSpec, MODEL, {"img_size": 224.0}, r"img_size must be an integer or \(height, width\)"),
        (ModelSpec, MODEL, {"img_size": (224, 8)}, "smaller than one patch of 16 pixels"),
        (ModelSpec, MODEL, {"kernel_size": 2}, r"kernel_size 2 .*image model \(num_frames=None\)"),
        (ModelSpec, MODEL, {"num_frames": 9, "kernel_size": 2}, "num_frames 9 is not a multiple .* kernel_size=2"),
        (DataSpec, DATA, {"name": "cifar"}, "name must be one of 'digits', 'imagenet', .*, got 'cifar'"),
        (ModelSpec, MODEL, {"scan": "diagonal", "num_frames": 4}, "scan must be one of 'spatial_first', .*, got 'diagonal'"),
        *[(ModelSpec, MODEL, {"scan": scan}, f"scan '{scan}' .* needs num_frames") for scan in SCANS[1:]],
        (ModelSpec, MODEL, {"scan": SCANS[1], "num_frames": 4, "bidirectional": False}, "needs num_frames and bidirectional"),
        *[
            (ClipSpec, CLIP, {name: value}, f"{name} must be a positive integer, got {value!r}")
            for name in ("num_frames", "stride", "test_clips")
            for value in (0, -2, 2.0)
        ],
        (ClipSpec, CLIP, {"sampling": "random"}, "sampling must be one of 'sparse', 'segments', 'dense', got 'random'"),
        (ClipSpec, CLIP, {"test_crops": 2}, "test_crops must be one of 1, 3, got 2"),
        (ClipSpec, CLIP, {"control": "reversed"}, "control must be one of None, 'shuffled', 'single'"),
        (DataSpec, DATA, {"clip": ClipSpec(num_frames=4)}, "clip is for videos, .* got 'digits'"),
        (DataSpec, DATA | {"clip": ClipSpec(num_frames=4), "name": "ssv2"}, {"clip": None}, "they need one; got 'ssv2' and None"),
        (DataSpec, DATA, {"name": "moving_digits"}, "label must be 'digit' for moving digits without a clip"),
        (DataSpec, DATA, {"label": "colour"}, "label must be one of 'motion', 'digit'"),
        (DataSpec, DATA, {"videos": 1}, "videos must be 2 or more"),
        (TrainSpec, TRAIN, {"input_lr_scale": -1.0}, "input_lr_scale must be a finite number"),
        (StartSpec, {"checkpoint": "a.pth"}, {"checkpoint": None}, "an experiment or a checkpoint file, one of the two"),
        (TrainSpec, TRAIN, {"schedule": "constant"}, "schedule must be one of 'step', 'epoch_lagged'"),
        (TrainSpec, TRAIN, {"precision": "fp16"}, "precision must be one of .*'bf16', got 'fp16'"),
        (TrainSpec, TRAIN, {"epochs": 0}, "epochs and batch_size must be positive"),
        (TrainSpec, TRAIN, {"batch_size": -1}, "epochs and batch_size must be positive"),
        (TrainSpec, TRAIN, {"warmup_epochs": 6}, "warmup_epochs must lie between 0 and epochs = 5, got 6"),
        (experiment, {}, {"tier": "huge"}, "tier must be one of 'smoke', 'mini', 'paper', got 'huge'"),
        (
            experiment,
            {},
            {"model": ModelSpec(**MODEL, img_size=8, patch_size=2, num_classes=10, num_frames=4)},
            "the model takes 4 frames, the data gives None",
        ),
        (experiment, {}, {"data": DataSpec(**DATA | {"num_classes": 9})}, "the model has 10 classes, the data 9"),
    ],
)
def test_nonsense_is_refused_by_name(make, good, bad, complaint):
    make(**good)
    with pytest.raises(ValueError, match=complaint):
        make(**good | bad)


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="learning_rate"):
        TrainSpec(**TRAIN, learning_rate=0.1)


def test_a_student_imitates_the_width_of_its_teacher():
    teacher = experiment()
    with pytest.raises(ValueError, match="loss must be one of 'cosine', 'l2', got 'kl'"):
        DistillSpec(teacher=teacher, loss="kl")
    for wrong in (None, 8):
        with pytest.raises(ValueError, match=f"student: .*distill_dim is {wrong}, the teacher's width is 16"):
            experiment(
                id="student", model=replace(teacher.model, embed_dim=32, distill_dim=wrong), distill=DistillSpec(teacher=teacher)
            )
    student = replace(teacher.model, embed_dim=32, distill_dim=16)
    assert experiment(model=student, distill=DistillSpec(teacher=teacher)).distill.teacher is teacher


def test_a_spec_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        experiment().model.depth = 3


@pytest.mark.parametrize(
    ("options", "grid", "time_steps", "length"),
    [
        ({}, (14, 14), 1, 197),
        ({"stride": 8}, (27, 27), 1, 730),
        ({"img_size": (64, 96)}, (4, 6), 1, 25),
        ({"num_frames": 8, "kernel_size": 2}, (14, 14), 4, 785),
        ({"img_size": 230}, (14, 14), 1, 197),
    ],
)
def test_sizes_that_follow(options, grid, time_steps, length):
    spec = ModelSpec(**MODEL, **options)
    assert (spec.grid_hw, spec.time_steps, spec.length) == (grid, time_steps, length)


def test_widths_that_follow():
    spec = ModelSpec(depth=2, embed_dim=40, expand=3)
    assert (spec.inner_dim, spec.step_rank) == (120, 3)
    assert replace(spec, dt_rank=7).step_rank == 7


def test_a_square_has_one_spelling():
    spellings = [ModelSpec(**MODEL, img_size=size) for size in (64, (64, 64), [64, 64])]
    assert {spec.img_size for spec in spellings} == {64}
    assert len({digest(to_dict(spec)) for spec in spellings}) == 1
    assert ModelSpec(**MODEL, img_size=[64, 96]).img_size == (64, 96)


def test_a_spec_comes_back_from_its_values():
    for spec in (ModelSpec(**MODEL, img_size=(64, 96)), DataSpec(**DATA), TrainSpec(**TRAIN, betas=(0.8, 0.9))):
        values = to_dict(spec)
        assert set(values) == set(spec.__dataclass_fields__)  # defaults are written out
        if isinstance(spec, DataSpec):
            values["augment"] = spec.augment
        assert type(spec)(**values) == spec


def test_a_digest_depends_on_content_alone():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(value) for value in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": [1]}, {"a": "1"}, {})}) == 6
    assert len(digest({})) == 12
    values = to_dict(experiment())
    assert digest(values) != digest(to_dict(experiment(train=TrainSpec(**TRAIN | {"lr": 0.2}))))


def test_every_process_computes_the_same_digests():
    code = "from vmrepro.specs.catalog import experiments; from vmrepro.specs.schema import digest, to_dict\n"
    code += "print(*[digest(to_dict(e)) for e in experiments('mini')])"
    here = " ".join(digest(to_dict(each)) for each in catalog.experiments("mini"))
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(paths.PACKAGE.parent)}
        other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert other.stdout.strip() == here


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainSpec(epochs=3, batch_size=8, lr=float("nan"), warmup_epochs=1), r"TrainSpec\.lr must be a finite"),
        (lambda: TrainSpec(epochs=3, batch_size=8, lr=1e-3, warmup_epochs=-1), r"TrainSpec\.warmup_epochs"),
        (lambda: AugmentSpec(label_smoothing=1.5), r"AugmentSpec\.label_smoothing"),
        (lambda: AugmentSpec(mixup=-0.1), r"AugmentSpec\.mixup"),
    ],
)
def test_settings_that_no_training_can_use_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
