from dataclasses import replace

import pytest
import torch

from tests.golden.cases import arrays, case_id, cases, golden_model, options, read_json, recorded
from tests.golden.golden_formula import golden_state
from vmrepro.models import create_model, load_checkpoint, model_spec
from vmrepro.models.checkpoints import (
    image_to_video,
    inflate_2d_to_3d,
    read_state,
    resize_spatial,
    resize_temporal,
    spec_of_state,
    start_from,
)

TINY = {"img_size": 32, "depth": 1, "embed_dim": 16, "num_classes": 5}
CLOSE = {"atol": 1e-6, "rtol": 0.0}


def tiny(**changes):
    return create_model("videomamba", **TINY | changes)


def numbered(model) -> dict[str, torch.Tensor]:
    """A state with golden values, none of which a fresh model has."""
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    return {name: torch.from_numpy(value) for name, value in golden_state(shapes, 1).items()}


@pytest.mark.parametrize("case", cases("interpolation"), ids=case_id)
def test_tables_are_resized_as_released(case):
    want = recorded(case)
    grid, steps = case["img_size"][1] // case["patch_size"], case["num_frames"][1] // case["kernel_size"]
    spatial = resize_spatial(want["in.pos_embed"], (grid, grid))
    torch.testing.assert_close(spatial, want["out.pos_embed"], **CLOSE)
    assert torch.equal(spatial[:, 0], want["in.pos_embed"][:, 0])
    temporal = resize_temporal(want["in.temporal_pos_embedding"], steps)
    torch.testing.assert_close(temporal, want["out.temporal_pos_embedding"], **CLOSE)


@pytest.mark.parametrize("case", cases("interpolation"), ids=case_id)
def test_loading_resizes_when_asked(case):
    want = recorded(case)
    (side_from, side_to), (frames_from, frames_to) = case["img_size"], case["num_frames"]
    sizes = {"depth": 1, "embed_dim": case["dim"], "kernel_size": case["kernel_size"], "num_classes": 3}
    before = create_model("videomamba", **sizes, img_size=side_from, num_frames=frames_from)
    after = create_model("videomamba", **sizes, img_size=side_to, num_frames=frames_to)
    state = before.state_dict() | {name: want[f"in.{name}"] for name in ("pos_embed", "temporal_pos_embedding")}
    report = load_checkpoint(after, state, resize=True)
    assert report.resized == (("pos_embed",) if side_from != side_to else ()) + ("temporal_pos_embedding",)
    torch.testing.assert_close(after.pos_embed.data, want["out.pos_embed"], **CLOSE)
    torch.testing.assert_close(after.temporal_pos_embedding.data, want["out.temporal_pos_embedding"], **CLOSE)


def test_a_rectangular_table_needs_its_grid():
    table = torch.randn(1, 1 + 2 * 6, 4)
    with pytest.raises(ValueError, match="pass grid_from"):
        resize_spatial(table, (3, 3))
    with pytest.raises(ValueError, match="does not fit grid_from"):
        resize_spatial(table, (3, 3), grid_from=(3, 6))
    torch.testing.assert_close(resize_spatial(table, (2, 6), grid_from=(2, 6)), table)
    turned = resize_spatial(table, (6, 2), grid_from=(2, 6))
    assert turned.shape == table.shape
    assert not torch.allclose(turned, table)


def test_a_grid_of_as_many_patches_is_resized_when_the_files_grid_is_told():
    wide, tall = tiny(img_size=(32, 48)), tiny(img_size=(48, 32))
    state = numbered(wide)
    report = load_checkpoint(tall, state, resize=True, grid_from=(2, 3))
    assert report.resized == ("pos_embed",)
    torch.testing.assert_close(tall.pos_embed.data, resize_spatial(state["pos_embed"], (3, 2), grid_from=(2, 3)))


def test_tables_keep_their_type():
    table = torch.randn(1, 5, 4)
    assert resize_spatial(table.bfloat16(), (3, 3)).dtype == torch.bfloat16
    assert resize_temporal(table.double(), 3).dtype == torch.float64


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("mode", "recorded_as"), [("centre", "True"), ("average", "False")])
def test_kernels_are_inflated_as_released(kernel_size, mode, recorded_as):
    want = recorded(cases("inflate")[0])
    got = inflate_2d_to_3d(want["in.weight2d"], kernel_size, mode)
    torch.testing.assert_close(got, want[f"t{kernel_size}.center{recorded_as}"], **CLOSE)


def test_inflation_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="'centre' or 'average'"):
        inflate_2d_to_3d(torch.zeros(2, 3, 4, 4), 2, "center")
    with pytest.raises(ValueError, match="4 dimensions"):
        inflate_2d_to_3d(torch.zeros(2, 3, 1, 4, 4), 2)


@pytest.mark.parametrize("case", cases("inflate_loader"), ids=case_id)
def test_image_weights_start_a_video_model_as_released(case):
    image = golden_model(case["image_args"], case["image_weights_seed"]).state_dict()
    video = golden_model(case["video_args"], case["video_weights_seed_before"])
    before = {name: value.clone() for name, value in video.state_dict().items()}
    report = load_checkpoint(video, image_to_video(image, video.spec), skip=("head", "temporal_pos_embedding"))
    after = video.state_dict()
    for name in case["copied_from_image"]:
        assert torch.equal(after[name], image[name]), name
    for name in case["unchanged_keys"]:
        assert torch.equal(after[name], before[name]), name
    torch.testing.assert_close(after["patch_embed.proj.weight"], torch.from_numpy(arrays(case["file"])[case["key"]]), **CLOSE)
    assert sorted(report.kept) == sorted(case["unchanged_keys"])
    assert report.unused == ("head.weight", "head.bias")
    assert sorted(report.loaded) == sorted([*case["copied_from_image"], "patch_embed.proj.weight"])


def test_image_to_video_refuses_the_wrong_way_round():
    image, video = tiny(), tiny(num_frames=2)
    with pytest.raises(ValueError, match="needs the spec of a video model"):
        image_to_video(image.state_dict(), image.spec)
    with pytest.raises(ValueError, match="4 dimensions"):
        image_to_video(video.state_dict(), video.spec)
    with pytest.raises(ValueError, match="read_state first"):
        image_to_video({"model": image.state_dict()}, video.spec)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"module": s}], ids=["bare", "model", "module"])
@pytest.mark.parametrize("in_file", [False, True])
def test_every_released_wrapping_loads(tmp_path, wrap, in_file):
    model = tiny()
    state = numbered(model)
    source = wrap(state)
    if in_file:
        torch.save(source, tmp_path / "weights.pth")
        source = tmp_path / "weights.pth"
    report = load_checkpoint(model, source)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert report == (tuple(state), (), (), ())


def test_released_names_load_strictly():
    want = read_json("state_dicts.json")["video_tiny_f8_224_k400"]
    layers = {f"layers.{i}.{key}": shape for i in range(want["args"]["depth"]) for key, shape in want["each_layer"].items()}
    state = {key: torch.zeros(shape) for key, shape in (want["before_layers"] | layers | want["after_layers"]).items()}
    model = create_model("videomamba", **options(want["args"]))
    assert len(load_checkpoint(model, state).loaded) == want["num_keys"]
    assert all((value == 0).all() for value in model.state_dict().values())


def altered(model, **changes):
    """The model's golden state with entries replaced, or removed where the change is None; ``__`` stands for a dot."""
    state = numbered(model) | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("model", "state", "words"),
    [
        (tiny(), altered(tiny(), cls_token=None), ["missing in the file: cls_token"]),
        (tiny(), altered(tiny(), extra=torch.zeros(1)), ["unexpected in the file: extra"]),
        (tiny(), altered(tiny(), norm_f__weight=torch.zeros(15)), ["norm_f.weight (15,) in the file, (16,) in the model"]),
        (tiny(num_classes=7), numbered(tiny()), ["head.weight (5, 16)", "skip 'head'"]),
        (tiny(), numbered(tiny(distill_dim=8)), ["distill_head.0.weight", "skip 'distill_head'"]),
        (tiny(img_size=48), numbered(tiny()), ["pos_embed (1, 5, 16)", "resize=True"]),
        (tiny(num_frames=4), numbered(tiny(num_frames=2)), ["temporal_pos_embedding", "resize=True"]),
        (tiny(num_frames=4), numbered(tiny()), ["image_to_video", "skip 'temporal_pos_embedding'"]),
        (tiny(depth=2), numbered(tiny()), ["and 9 more"]),
        (tiny(), altered(tiny(), norm_f__weight=None, norm__weight=torch.ones(16)), ["masked-pretraining encoder"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_explained_and_nothing_is_loaded(model, state, words):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        load_checkpoint(model, state)
    assert [word for word in words if word not in str(error.value)] == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_skipping_gives_a_fresh_head_or_a_plain_model():
    model, student = tiny(num_classes=7), tiny(distill_dim=8)
    head = model.head.weight.clone()
    report = load_checkpoint(model, numbered(student), skip=("head", "distill_head"))
    assert report.kept == ("head.weight", "head.bias")
    assert report.unused == ("head.weight", "head.bias", "distill_head.0.weight", "distill_head.1.weight", "distill_head.1.bias")
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.norm_f.weight, numbered(student)["norm_f.weight"])


def test_a_masked_pretraining_encoder_starts_a_classifier():
    model = tiny(num_frames=2)
    absent = {"norm_f__weight": None, "head__weight": None, "head__bias": None}
    state = altered(model, **absent, norm__weight=torch.ones(16), clip_decoder__0__head__bias=torch.ones(3))
    report = load_checkpoint(model, state, skip=("norm", "clip_decoder", "norm_f", "head"))
    assert report.kept == ("head.weight", "head.bias", "norm_f.weight")
    assert report.unused == ("norm.weight", "clip_decoder.0.head.bias")
    assert torch.equal(model.layers[0].norm.weight, state["layers.0.norm.weight"])


@pytest.mark.parametrize("name", ["haed", "norm", "layers.0.mixer.A"])
def test_skipping_what_is_not_there_is_an_error(name):
    with pytest.raises(ValueError, match=f"skip names '{name}'"):
        load_checkpoint(tiny(), numbered(tiny()), skip=(name,))


def test_resizing_does_not_hide_another_width():
    with pytest.raises(ValueError, match=r"pos_embed \(1, 5, 8\)"):
        load_checkpoint(tiny(img_size=48), numbered(tiny(embed_dim=8)), resize=True)


@pytest.mark.parametrize("source", [{}, {"model": 3}, {"a": torch.ones(1), "epoch": 3}, [1]], ids=str)
def test_what_is_no_state_is_refused(source):
    with pytest.raises(ValueError, match="holds no state"):
        read_state(source)


def test_a_file_with_code_in_it_is_refused(tmp_path):
    torch.save({"model": tiny()}, tmp_path / "pickled.pth")
    with pytest.raises(ValueError, match="not a file of tensors alone"):
        read_state(tmp_path / "pickled.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_state(tmp_path / "absent.pth")


@pytest.mark.parametrize("case", cases("inflate_loader"), ids=case_id)
def test_a_training_starts_from_image_weights_as_released(case):
    image = golden_model(case["image_args"], case["image_weights_seed"]).state_dict()
    told, same = (golden_model(case["video_args"], case["video_weights_seed_before"]) for _ in range(2))
    skip = [name for name in ("head", "temporal_pos_embedding") if any(key.startswith(name) for key in case["unchanged_keys"])]
    load_checkpoint(told, image_to_video(image, told.spec), skip=skip)
    report = start_from(same, image)
    assert sorted(report.kept) == sorted(case["unchanged_keys"])
    assert all(torch.equal(value, told.state_dict()[name]) for name, value in same.state_dict().items())


def test_a_start_of_another_size_is_resized_and_of_other_classes_has_a_fresh_head():
    before, after = tiny(num_frames=2), tiny(num_frames=4, img_size=48, num_classes=7)
    state, head = numbered(before), after.head.weight.clone()
    report = start_from(after, state)
    assert report.resized == ("pos_embed", "temporal_pos_embedding")
    assert report.kept == report.unused == ("head.weight", "head.bias")
    assert torch.equal(after.head.weight, head)
    torch.testing.assert_close(after.pos_embed.data, resize_spatial(state["pos_embed"], (3, 3)))
    torch.testing.assert_close(after.temporal_pos_embedding.data, resize_temporal(state["temporal_pos_embedding"], 4))
    assert torch.equal(after.layers[0].mixer.A_log, state["layers.0.mixer.A_log"])


def test_a_start_of_as_many_classes_keeps_the_head():
    model, state = tiny(num_frames=4), numbered(tiny(num_frames=4))
    assert start_from(model, state).kept == ()
    assert torch.equal(model.head.weight, state["head.weight"])


def test_image_weights_leave_the_temporal_table_zero_and_the_head_fresh():
    video, state = tiny(num_frames=4, kernel_size=2), numbered(tiny())
    head = video.head.weight.clone()
    assert start_from(video, state).kept == ("temporal_pos_embedding", "head.weight", "head.bias")
    assert not video.temporal_pos_embedding.any()
    assert torch.equal(video.head.weight, head)
    assert torch.equal(video.patch_embed.proj.weight, inflate_2d_to_3d(state["patch_embed.proj.weight"], 2))


def test_a_students_weights_start_a_plain_model():
    model, student = tiny(), tiny(distill_dim=8)
    assert start_from(model, numbered(student)).unused == (
        "distill_head.0.weight",
        "distill_head.1.weight",
        "distill_head.1.bias",
    )
    fresh = tiny(distill_dim=8)
    assert start_from(fresh, numbered(model)).kept == report_names(fresh, "distill_head")


def report_names(model, part: str) -> tuple[str, ...]:
    return tuple(name for name in model.state_dict() if name.startswith(part))


@pytest.mark.parametrize(
    ("model", "state"),
    [
        (tiny(depth=2), numbered(tiny())),
        (tiny(), numbered(tiny(num_frames=2))),
        (tiny(embed_dim=24), numbered(tiny())),
        (tiny(), altered(tiny(), norm_f__weight=None, norm__weight=torch.ones(16))),
    ],
    ids=["depth", "video for an image", "width", "other names"],
)
def test_a_start_that_differs_otherwise_is_refused(model, state):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="nothing was loaded"):
        start_from(model, state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(read_json("state_dicts.json")))
def test_the_sizes_of_a_released_state_are_told_from_its_shapes(name):
    want = read_json("state_dicts.json")[name]
    layers = {f"layers.{i}.{key}": shape for i in range(want["args"]["depth"]) for key, shape in want["each_layer"].items()}
    shapes = want["before_layers"] | layers | want["after_layers"]
    spec = spec_of_state({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    asked = model_spec("videomamba", **options(want["args"]))
    assert spec == replace(asked, drop_path_rate=spec.drop_path_rate)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 8, "kernel_size": 2},
        {"num_frames": 2, "img_size": 48, "patch_size": 8},
        {"in_chans": 1, "norm": "layer", "bidirectional": False},
        {"d_state": 4, "d_conv": 3, "expand": 3, "dt_rank": 5, "depth": 3},
        {"num_classes": 0},
        {"distill_dim": 8},
    ],
    ids=str,
)
def test_the_sizes_of_an_own_state_are_told_from_its_shapes(changes):
    model = tiny(**changes)
    assert spec_of_state(model.state_dict()) == model.spec


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (altered(tiny(), norm_f__weight=None, norm__weight=torch.ones(16)), "masked-pretraining encoder"),
        (tiny(img_size=(32, 48)).state_dict(), "6 patches of a frame form no square"),
        ({"conv1.weight": torch.ones(1)}, "pos_embed, patch_embed.proj.weight"),
    ],
    ids=["encoder", "rectangle", "another model"],
)
def test_what_shapes_do_not_tell_is_said(state, words):
    with pytest.raises(ValueError, match=words):
        spec_of_state(state)
