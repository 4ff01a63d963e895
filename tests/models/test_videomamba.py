import copy
import io

import pytest
import torch

from tests.golden.cases import (
    MODEL_F32,
    MODEL_F64,
    STORED_F32,
    assert_gradient,
    case_id,
    cases,
    golden_model,
    options,
    read_json,
    recorded,
    tensor,
)
from vmrepro.models import VideoMamba, create_model
from vmrepro.models.videomamba import drop_path_rates

PRECISIONS = [("f32", torch.float32, MODEL_F32), ("f64", torch.float64, MODEL_F64)]
STATE_DICTS = read_json("state_dicts.json")
TINY = {"img_size": 32, "depth": 2, "embed_dim": 16, "num_classes": 5}


def outputs_of(model: VideoMamba, x: torch.Tensor) -> dict[str, torch.Tensor]:
    tokens = model.forward_features(x)
    named = {"logits": model.forward_head(tokens), "features": tokens[:, 0], "feats": model.distill_features(tokens)}
    return named | {"tokens": model.embed(x)[:1]}


@pytest.mark.parametrize(("name", "dtype", "close"), PRECISIONS, ids=["f32", "f64"])
@pytest.mark.parametrize("case", cases("image", "video", "distill"), ids=case_id)
def test_outputs_are_the_released_ones(case, name, dtype, close):
    model = golden_model(case["args"], case["seed"], dtype)
    assert sum(parameter.numel() for parameter in model.parameters()) == case["num_params"]
    x = tensor(case["input_tag"], case["input_shape"], case["seed"], dtype)
    with torch.no_grad():
        got = outputs_of(model, x)
        torch.testing.assert_close(model(x), got["logits"], atol=0, rtol=0)
    wanted = {key.split(".")[0]: value for key, value in recorded(case).items() if key in {f"{output}.{name}" for output in got}}
    assert "logits" in wanted
    for output, want in wanted.items():
        torch.testing.assert_close(got[output], want, **close, msg=lambda text, output=output: f"{output}: {text}")


@pytest.mark.parametrize("case", [case for case in cases("image", "video") if "layer0.hidden.f32" in recorded(case)], ids=case_id)
def test_every_block_is_the_released_one(case):
    model = golden_model(case["args"], case["seed"])
    seen = []
    for block in model.layers:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        model(tensor(case["input_tag"], case["input_shape"], case["seed"]))
    want = recorded(case)
    assert len(seen) == sum(key.endswith(".hidden.f32") for key in want)
    for index, (hidden, residual) in enumerate(seen):
        torch.testing.assert_close(hidden[:1], want[f"layer{index}.hidden.f32"], **MODEL_F32)
        torch.testing.assert_close(residual[:1], want[f"layer{index}.residual.f32"], **MODEL_F32)


@pytest.mark.parametrize(("name", "dtype", "close"), PRECISIONS, ids=["f32", "f64"])
@pytest.mark.parametrize("case", [case for case in cases("image", "video", "distill") if "grad_tag" in case], ids=case_id)
def test_gradients_are_the_released_ones(case, name, dtype, close):
    model = golden_model(case["args"], case["seed"], dtype)
    x = tensor(case["input_tag"], case["input_shape"], case["seed"], dtype).requires_grad_()
    got, want = outputs_of(model, x), recorded(case)
    tags = {output: case["grad_tag"] + output for output in case["grad_outputs"]}
    loss = sum((got[key] * tensor(tag, got[key].shape, case["seed"], dtype)).sum() for key, tag in tags.items())
    torch.testing.assert_close(loss.detach(), want[f"grad_loss.{name}"].squeeze(), atol=100 * close["atol"], rtol=0)
    loss.backward()
    gradients: dict = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert [key for key, gradient in gradients.items() if gradient is None] == case["params_without_grad"]

    norms = dict(zip(want["grad_names"], want[f"grad_norms.{name}"].tolist(), strict=True))
    got_norms = {key: gradient.double().norm().item() for key, gradient in gradients.items()}
    assert got_norms == pytest.approx(norms, rel=1e-4 if name == "f32" else 1e-8, abs=1e-12)
    arrays = {key.removeprefix("grad[").removesuffix("]"): value for key, value in want.items() if key.startswith("grad[")}
    gradients |= {"input][:1": x.grad[:1], "input][:1, ..., ::8, ::8": x.grad[:1, ..., ::8, ::8]}  # either part was stored
    fraction = STORED_F32 if name == "f64" else 1e-4
    for key, value in arrays.items():
        assert_gradient(gradients[key], value, key, fraction)
    assert bool(arrays) == ("grad_arrays_from" in case)


def test_last_block_hears_nothing_forward():
    case = next(case for case in cases("image") if "grad_tag" in case)
    model = golden_model(case["args"], case["seed"])
    model(tensor(case["input_tag"], case["input_shape"], case["seed"])).sum().backward()
    assert (model.layers[-1].mixer.A_log.grad == 0).all()
    assert (model.layers[-1].mixer.A_b_log.grad != 0).any()


@pytest.mark.parametrize("name", STATE_DICTS)
def test_state_dict_has_the_released_keys_shapes_and_order(name):
    want = STATE_DICTS[name]
    layers = {f"layers.{i}.{key}": shape for i in range(want["args"]["depth"]) for key, shape in want["each_layer"].items()}
    with torch.device("meta"):
        model = create_model("videomamba", **options(want["args"]))
    got = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    assert got == list((want["before_layers"] | layers | want["after_layers"]).items())
    assert len(got) == want["num_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == want["num_params"]
    assert sorted(model.no_weight_decay()) == want["no_weight_decay"]
    assert not list(model.buffers())


@pytest.mark.parametrize(("name", "count"), read_json("param_counts.json").items())
def test_parameter_counts_at_other_sizes(name, count):
    kind, size, *rest = name.split("_")
    chosen = {"num_classes": 1000, "img_size": int(rest[-2])}
    if kind == "video":
        chosen |= {"num_frames": int(rest[0][1:]), "num_classes": int(rest[-1].removeprefix("classes"))}
    with torch.device("meta"):
        model = create_model(f"videomamba_{ {'tiny': 'ti', 'small': 's', 'middle': 'm'}[size] }", **chosen)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_distillation_loss_is_the_released_one():
    record = cases("distill_loss")[0]
    by_id = {case["id"]: case for case in cases("distill")}
    student_case, teacher_case = by_id["tiny_distill_student"], by_id["tiny_distill_teacher"]
    student, teacher = golden_model(student_case["args"], 0), golden_model(teacher_case["args"], 5)
    x = tensor(student_case["input_tag"], student_case["input_shape"], 0)
    with torch.no_grad():
        ours, theirs = (model.distill_features(model.forward_features(x)) for model in (student, teacher))
    loss = (2 - 2 * (ours * theirs).sum(-1)).mean()
    assert loss.item() == pytest.approx(record["value"], abs=1e-5)


@pytest.mark.parametrize("row", read_json("drop_path.json"), ids=lambda row: f"{row['depth']}-{row['drop_path_rate']}")
def test_stochastic_depth_has_the_released_offset(row):
    with torch.device("meta"):
        model = create_model("videomamba", depth=row["depth"], embed_dim=16, drop_path_rate=row["drop_path_rate"])
    rates = [block.drop_path.rate for block in model.layers]
    assert rates == pytest.approx(row["layers"], abs=1e-7)
    assert model.drop_path.rate == pytest.approx(row["final"], abs=1e-7)


def test_one_block_drops_only_its_output():
    assert drop_path_rates(0.3, 1) == [0.0, 0.3]


def test_last_output_is_dropped_before_the_final_norm():
    torch.manual_seed(0)
    model = create_model("videomamba", **TINY | {"depth": 1}, drop_path_rate=0.999).train()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        embedded = model.embed(x)  # the one block's output is dropped, so the embedding alone is normalised
        torch.testing.assert_close(model.forward_features(x), model.norm_f(embedded)[0])


def test_dropout_places():
    torch.manual_seed(0)
    model = create_model("videomamba", **TINY, drop_path_rate=0.0, drop_rate=0.5, fc_drop_rate=0.5).train()
    with torch.no_grad():
        model.cls_token.fill_(1.0)
        embedded = model.embed(torch.randn(2, 3, 32, 32))
        head = model.forward_head(torch.ones(64, 2, 16), pre_logits=True)
    assert 0.3 < (embedded == 0).float().mean() < 0.7
    assert set(head.flatten().tolist()) == {0.0, 2.0}


def test_video_of_one_frame_without_time_is_an_image():
    image = golden_model(TINY, 2, torch.float64)
    video = create_model("videomamba", **TINY, num_frames=1).double().eval()
    state = {key: value.unsqueeze(2) if key == "patch_embed.proj.weight" else value for key, value in image.state_dict().items()}
    video.load_state_dict(state | {"temporal_pos_embedding": torch.zeros(1, 1, 16)})
    x = tensor("one frame", (2, 3, 32, 32), 0, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(video(x.unsqueeze(2)), image(x), atol=1e-12, rtol=0)


def test_frames_are_told_apart_by_the_temporal_table_alone():
    model = golden_model(TINY | {"num_frames": 3}, 0, torch.float64)
    frame = tensor("frame", (1, 3, 1, 32, 32), 0, torch.float64)
    with torch.no_grad():
        tokens = model.embed(frame.expand(-1, -1, 3, -1, -1))
        per_frame = tokens[:, 1:].unflatten(1, (3, 4)) - model.temporal_pos_embedding[:, :, None]
        torch.testing.assert_close(per_frame, per_frame[:, :1].expand_as(per_frame))
        torch.testing.assert_close(tokens[:, 0], model.cls_token[:, 0] + model.pos_embed[:, 0])


@pytest.mark.parametrize(
    ("chosen", "shape", "length"),
    [
        ({"img_size": 17}, (3, 17, 17), 2),
        ({"img_size": (33, 50)}, (3, 33, 50), 7),
        ({"img_size": 33, "stride": 7}, (3, 33, 33), 10),
        ({"img_size": 9, "patch_size": 3, "in_chans": 1}, (1, 9, 9), 10),
        ({"img_size": 32, "num_frames": 6, "kernel_size": 3}, (3, 6, 32, 32), 9),
        ({"img_size": 40, "num_frames": 5, "stride": 12}, (3, 5, 40, 40), 46),
    ],
    ids=str,
)
def test_any_size_runs(chosen, shape, length):
    model = create_model("videomamba", **TINY | chosen)
    with torch.no_grad():
        tokens = model.forward_features(torch.randn(2, *shape))
    assert tokens.shape == (2, length, 16)
    assert model.spec.length == length
    assert tokens.isfinite().all()


@pytest.mark.parametrize(
    ("chosen", "shape", "words"),
    [
        ({}, (2, 3, 48, 48), ["(batch, 3, 32, 32)", "(2, 3, 48, 48)", "img_size=(48, 48)", "resize_spatial"]),
        ({}, (3, 32, 32), ["(batch, channels, height, width)"]),
        ({}, (2, 1, 32, 32), ["(batch, channels, height, width)"]),
        ({"num_frames": 4}, (2, 4, 3, 32, 32), ["(batch, channels, frames, height, width)"]),
        ({"num_frames": 4}, (2, 3, 32, 32), ["(batch, channels, frames, height, width)"]),
        ({"num_frames": 4}, (2, 3, 8, 32, 32), ["num_frames=8", "resize_temporal"]),
        ({"num_frames": 4}, (2, 3, 8, 48, 32), ["img_size=(48, 32), num_frames=8", "resize_spatial and resize_temporal"]),
    ],
    ids=str,
)
def test_wrong_inputs_are_explained(chosen, shape, words):
    model = create_model("videomamba", **TINY, **chosen)
    with pytest.raises(ValueError, match="this model takes inputs of shape") as error:
        model(torch.zeros(shape))
    assert [word for word in words if word not in str(error.value)] == []


def test_integer_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        create_model("videomamba", **TINY)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_autocast_stays_close_and_trains():
    model = golden_model(TINY | {"num_frames": 2}, 0)
    x = tensor("autocast", (2, 3, 2, 32, 32), 0)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
        features = model.distill_features(model.forward_features(x))
    assert (logits.dtype, features.dtype) == (torch.bfloat16, torch.float32)
    with torch.no_grad():
        exact = model(x)
    assert (logits - exact).norm() < 0.05 * exact.norm()
    logits.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_model_cast_to_bf16_stays_close():
    model = golden_model(TINY, 0)
    x = tensor("cast", (2, 3, 32, 32), 0)
    with torch.no_grad():
        exact = model(x)
        cast = model.bfloat16()(x.bfloat16())
    assert cast.dtype == torch.bfloat16
    assert (cast - exact).norm() < 0.05 * exact.norm()


def test_copies_and_pickles_give_the_same_numbers():
    model = golden_model(TINY, 0)
    x = tensor("copy", (1, 3, 32, 32), 0)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    with torch.no_grad():
        for other in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
            assert torch.equal(other(x), model(x))
            assert other.spec == model.spec


def test_student_features_have_the_teachers_width_and_unit_length():
    student = create_model("videomamba", **TINY, distill_dim=12)
    features = student.distill_features(student.forward_features(torch.randn(2, 3, 32, 32)))
    assert features.shape == (2, 5, 12)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2, 5))


def test_unknown_backend_is_refused_when_the_model_is_built():
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        create_model("videomamba", **TINY, backend="fast")


def test_backend_reaches_every_block_and_changes_nothing():
    model = create_model("videomamba", **TINY, backend="reference").eval()
    backends = {module.backend for module in model.modules() if hasattr(module, "backend")}
    assert backends == {"reference"}
    auto = create_model("videomamba", **TINY).eval()
    auto.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(auto(x), model(x), **MODEL_F32)


def test_classifier_can_be_replaced_and_removed():
    model = create_model("videomamba", **TINY).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        model.reset_classifier(7)
        assert model.get_classifier().out_features == model.num_classes == 7
        assert model(x).shape == (1, 7)
        assert (model.head.bias == 0).all()
        model.reset_classifier(0)
        assert torch.equal(model(x), model.forward_features(x)[:, 0])
    with pytest.raises(ValueError, match="class token"):
        model.reset_classifier(3, global_pool="avg")


@pytest.mark.parametrize("place", ["layers.0", "pos_drop", "norm_f"])
def test_memory_is_used_again_only_where_nobody_can_see_it(monkeypatch, place):
    model = create_model("videomamba", depth=2, embed_dim=16, img_size=32, num_classes=3).eval()
    asked = []
    plain = type(model.layers[0]).forward
    monkeypatch.setattr(type(model.layers[0]), "forward", lambda *given, reuse: asked.append(reuse) or plain(*given))
    x = torch.randn(1, 3, 32, 32)
    model(x)
    with torch.no_grad():
        model(x)
        handle = model.get_submodule(place).register_forward_hook(lambda *call: None)
        model(x)
        handle.remove()
        model(x)
    assert asked == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2
