"""schedules.json holds what the released code computed: the rates of one schedule, and the decay of each parameter."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from vmrepro.models import VideoMamba
from vmrepro.runs.optimise import learning_rate, make_optimiser, set_rate
from vmrepro.specs import catalog
from vmrepro.specs.schema import ModelSpec, TrainSpec

RELEASED = json.loads((Path(__file__).parent / "schedules.json").read_text())
MODEL = ModelSpec(depth=4, embed_dim=16, img_size=32, num_classes=5, num_frames=2)


def decay_by_name(spec: ModelSpec, train: TrainSpec) -> dict[str, float]:
    model = VideoMamba(spec)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimiser(model, train).param_groups
    decay = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert len(decay) == len(names) == sum(len(group["params"]) for group in groups)  # each of them, once
    return decay


def test_each_step_has_the_released_rate():
    args = RELEASED["cosine"]["args"]
    spec = TrainSpec(
        epochs=args["epochs"],
        batch_size=1,
        lr=args["base_value"],
        min_lr=args["final_value"],
        warmup_lr=args["start_warmup_value"],
        warmup_epochs=args["warmup_epochs"],
    )
    steps = args["niter_per_ep"]
    rates = [learning_rate(spec, step, steps) for step in range(args["epochs"] * steps)]
    assert rates == pytest.approx(RELEASED["cosine"]["values"], rel=1e-12)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    spec = TrainSpec(epochs=2, batch_size=1, lr=0.1, warmup_epochs=0)
    assert learning_rate(spec, 0, 3) == 0.1
    # A warm-up of a single step has no line to climb.
    assert learning_rate(replace(spec, warmup_epochs=1, warmup_lr=0.01), 0, 1) == 0.01


@pytest.mark.parametrize("name", ["fig6_s", "fig6_m_distill"])
def test_the_lagged_schedule_is_timms_one_epoch_late(name):
    (experiment,) = catalog.find(name, "paper")
    spec = experiment.train
    assert spec.schedule == "epoch_lagged"
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=spec.lr)
    schedule = CosineLRScheduler(
        optimiser, t_initial=spec.epochs, lr_min=spec.min_lr, warmup_t=spec.warmup_epochs, warmup_lr_init=spec.warmup_lr
    )
    rates = []
    for epoch in range(spec.epochs):
        of_epoch = {learning_rate(spec, step, 7) for step in range(7 * epoch, 7 * epoch + 7)}
        assert len(of_epoch) == 1, "the rate changes within an epoch"
        rates += of_epoch
    assert rates[:2] == [spec.warmup_lr] * 2
    assert max(rates) == rates[spec.warmup_epochs + 1] == pytest.approx(spec.lr, rel=0.02)
    late = []
    for epoch in range(1, spec.epochs):
        schedule.step(epoch - 1)
        late.append(optimiser.param_groups[0]["lr"])
    assert rates[1:] == pytest.approx(late, rel=1e-12)


def test_each_parameter_decays_as_released():
    decay = decay_by_name(MODEL, TrainSpec(epochs=5, batch_size=1, lr=0.1, weight_decay=0.05))
    assert decay == RELEASED["weight_decay"]


def test_a_students_head_and_a_layer_norm_decay_by_their_shape():
    spec = replace(MODEL, distill_dim=8, norm="layer", num_frames=None)
    decay = decay_by_name(spec, TrainSpec(epochs=5, batch_size=1, lr=0.1, weight_decay=0.3))
    assert {decay[f"layers.{i}.mixer.{name}"] for i in range(4) for name in ("A_log", "A_b_log")} == {0.3}
    assert decay["distill_head.1.weight"] == 0.3
    never = ["pos_embed", "cls_token", "layers.0.mixer.D", "layers.0.mixer.D_b", "layers.0.norm.bias", "norm_f.bias"]
    never += ["distill_head.0.weight", "distill_head.0.bias", "distill_head.1.bias", "head.bias"]
    assert {name: decay[name] for name in never} == dict.fromkeys(never, 0.0)


def test_the_optimiser_has_the_numbers_of_the_spec():
    spec = TrainSpec(epochs=5, batch_size=1, lr=0.02, betas=(0.8, 0.95), eps=1e-6)
    optimiser = make_optimiser(VideoMamba(MODEL), spec)
    assert type(optimiser) is torch.optim.AdamW
    settings = {(group["lr"], tuple(group["betas"]), group["eps"], group["amsgrad"]) for group in optimiser.param_groups}
    assert settings == {(0.02, (0.8, 0.95), 1e-6, False)}


def test_the_input_learns_at_its_own_rate_and_decays_as_before():
    model = VideoMamba(MODEL)
    spec = TrainSpec(epochs=5, batch_size=1, lr=0.02, weight_decay=0.05, input_lr_scale=7.5e-4)
    optimiser = make_optimiser(model, spec)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for rate in (0.02, 0.004):  # as made, and as a schedule sets it
        set_rate(optimiser, rate)
        rates = {names[id(p)]: group["lr"] for group in optimiser.param_groups for p in group["params"]}
        slow = {name for name, own in rates.items() if own == pytest.approx(rate * 7.5e-4)}
        assert slow == {"patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed", "cls_token"}
        assert {own for name, own in rates.items() if name not in slow} == {rate}
        assert rates["temporal_pos_embedding"] == rate
    assert decay_by_name(MODEL, spec) == decay_by_name(MODEL, replace(spec, input_lr_scale=1.0)) == RELEASED["weight_decay"]


def test_two_steps_of_adamw_by_hand():
    """w <- w - lr·scale·(decay·w + m/(sqrt(v) + eps)), the first step with m/sqrt(v) = sign of the gradient."""
    model = VideoMamba(MODEL).double()
    spec = TrainSpec(epochs=5, batch_size=1, lr=0.02, weight_decay=0.05, eps=0.0, input_lr_scale=0.25)
    optimiser = make_optimiser(model, spec)
    parameters = dict(model.named_parameters())
    watched = {
        "patch_embed.proj.weight": (0.25, 0.05),
        "pos_embed": (0.25, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0),
    }
    want = {name: parameters[name].detach().clone() for name in watched}
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 3.0)
    for rate in (0.02, 0.01):
        set_rate(optimiser, rate)
        optimiser.step()
        for name, (scale, decay) in watched.items():
            want[name] = want[name] * (1 - rate * scale * decay) - rate * scale
    for name, value in want.items():
        torch.testing.assert_close(parameters[name].detach(), value, rtol=1e-9, atol=1e-12)
