"""Each operator on each backend against the float64 definition, the laws that the definition obeys, and the errors of misuse."""

import functools

import pytest
import torch

from tests.ops.oracle import (
    ALL,
    FAST,
    KERNELS,
    assert_as_exact,
    judge,
    outputs_and_gradients,
    rms_error,
    scan_inputs,
    scan_with,
    two_way_with,
    widened,
)
from vmrepro.ops import (
    ScanInputs,
    add_rms_norm,
    bidirectional_conv,
    bidirectional_scan,
    causal_conv1d,
    chunked,
    selective_scan,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LENGTHS = [1, 2, 7, 8, 9, 13, 63, 64, 65, 197]


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of eight steps, so that short sequences have several."""
    monkeypatch.setattr(chunked, "CHUNK_NUMBERS", 0)
    monkeypatch.setattr(chunked, "MIN_STEPS", 8)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize(("backend", "device"), FAST)
@pytest.mark.parametrize("decay", ["near_one", "fast"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scan_is_the_definition(backend, device, dtype, length, decay):
    inputs = scan_inputs(length, dtype, decay)
    options = {"return_last_state": True, "reverse": length % 2 == 0}
    judge(scan_with(backend, **options), scan_with("reference", **options), inputs, dtype, device)


@functools.cache
def definition_at_eight_frames(decay):
    """Inputs, and the definition's outputs and gradients in their type and in float64, for all backends."""
    inputs = scan_inputs(8 * 14 * 14 + 1, torch.float32, decay, channels=200)
    return inputs, *(outputs_and_gradients(scan_with("reference"), x) for x in (inputs, widened(inputs)))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device"), FAST)
@pytest.mark.parametrize("decay", ["near_one", "fast"])
def test_scan_is_the_definition_at_eight_frames(backend, device, decay):
    inputs, plain, exact = definition_at_eight_frames(decay)
    assert_as_exact(outputs_and_gradients(scan_with(backend), inputs, device), plain, exact, torch.float32)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize(("backend", "device"), FAST)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["grouped", "fixed"])
def test_scan_takes_every_form_of_B_and_C(backend, device, form, reverse):
    inputs = scan_inputs(21, torch.float64, form=form)
    judge(scan_with(backend, reverse=reverse), scan_with("reference", reverse=reverse), inputs, torch.float64, device)


@pytest.mark.parametrize(("backend", "device"), FAST)
def test_scan_takes_a_fixed_B_with_a_grouped_C(backend, device):
    inputs = scan_inputs(21, torch.float64, form="grouped") | {"B": scan_inputs(21, torch.float64, form="fixed")["B"]}
    judge(scan_with(backend), scan_with("reference"), inputs, torch.float64, device)


@pytest.mark.parametrize(("backend", "device"), FAST)
def test_scan_takes_different_groups_of_B_and_C(backend, device):
    inputs = scan_inputs(21, torch.float64, form="grouped")
    inputs["C"] = torch.cat([inputs["C"], 2 - inputs["C"]], dim=2)
    judge(scan_with(backend), scan_with("reference"), inputs, torch.float64, device)


@pytest.mark.parametrize(("backend", "device"), FAST)
@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids="-".join)
def test_scan_without_an_optional_input(backend, device, absent):
    inputs = scan_inputs(11, torch.float32) | dict.fromkeys(absent)
    judge(scan_with(backend), scan_with("reference"), inputs, torch.float32, device)


@pytest.mark.parametrize(("backend", "device"), FAST)
def test_scan_without_softplus(backend, device):
    inputs = scan_inputs(11, torch.float32)
    inputs |= {"delta": inputs["delta"].abs(), "delta_bias": inputs["delta_bias"].abs()}
    scan, definition = (functools.partial(selective_scan, backend=name) for name in (backend, "reference"))
    judge(scan, definition, inputs, torch.float32, device)


@pytest.mark.parametrize(("backend", "device"), FAST)
@pytest.mark.parametrize(("channels", "state"), [(1, 16), (37, 16), (130, 16), (6, 1), (6, 5)])
def test_scan_of_odd_sizes(backend, device, channels, state):
    inputs = scan_inputs(19, torch.float32, channels=channels, state=state)
    judge(scan_with(backend), scan_with("reference"), inputs, torch.float32, device)


@pytest.mark.parametrize(("backend", "device"), FAST)
def test_scan_of_mixed_types(backend, device):
    inputs = scan_inputs(19, torch.bfloat16)
    inputs |= {"u": inputs["u"].float(), "z": inputs["z"].float()}
    judge(scan_with(backend), scan_with("reference"), inputs, torch.bfloat16, device)


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("two_way", [False, True])
def test_scan_of_slices_of_wider_buffers(backend, device, two_way):
    """u and z, and B and C, come as slices of what one projection wrote."""
    rng = torch.Generator().manual_seed(0)
    wide = {"uz": torch.randn(2, 19, 2 * 20, generator=rng), "dBC": torch.randn(2, 19, 4 + 2 * 16, generator=rng)}
    rest = {name: tensor for name, tensor in scan_inputs(19, torch.float32).items() if name in ("delta", "A", "D", "delta_bias")}

    def sliced(copy):
        def call(uz, dBC, **rest):
            u, z, B, C = (part.contiguous() if copy else part for part in (*uz.chunk(2, -1), *dBC[..., 4:].chunk(2, -1)))
            if not two_way:
                return selective_scan(u=u, B=B, C=C, z=z, **rest, delta_softplus=True, backend="reference" if copy else backend)
            inputs = ScanInputs(u=u, B=B, C=C, **rest)
            return bidirectional_scan(inputs, inputs, z, backend="reference" if copy else backend)

        return call

    judge(sliced(copy=False), sliced(copy=True), wide | rest, torch.float32, device)


@pytest.mark.parametrize(("backend", "device"), FAST)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("length", [1, 13, 65])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_way_scan_is_the_definition(backend, device, dtype, length, gated):
    ways = {way: scan_inputs(length, dtype, "fast", seed=seed) for seed, way in enumerate("fb")}
    flat = {f"{name}_{way}": ways[way][name] for way in "fb" for name in ScanInputs._fields}
    inputs = {"z": ways["f"]["z"] if gated else None} | flat
    judge(two_way_with(backend), two_way_with("reference"), inputs, dtype, device)


@pytest.mark.parametrize(("backend", "device"), ALL)
def test_two_way_scan_is_the_sum_of_two_gated_scans(backend, device):
    """Not their mean; and the backward one starts from the end."""
    forward, backward = (scan_inputs(17, torch.float32, seed=seed) for seed in (0, 1))
    backward["z"] = forward["z"]
    flat = {"z": forward["z"]} | {f"{n}_{w}": x[n] for w, x in (("f", forward), ("b", backward)) for n in ScanInputs._fields}
    ours = outputs_and_gradients(two_way_with(backend), flat, device)["out0"]
    ways = {False: forward, True: backward}
    halves = [outputs_and_gradients(scan_with("reference", reverse=r), x)["out0"] for r, x in ways.items()]
    assert rms_error(ours, (halves[0] + halves[1]).double()) < 1e-6


@pytest.mark.parametrize(("backend", "device"), ALL)
def test_two_way_scan_rounds_once(backend, device):
    """In bfloat16 the sum of the directions is no further from the exact one than its rounding."""
    inputs = scan_inputs(65, torch.bfloat16)
    flat = {"z": inputs["z"]} | {f"{name}_{way}": inputs[name] for way in "fb" for name in ScanInputs._fields}
    ours = outputs_and_gradients(two_way_with(backend), flat, device)["out0"]
    exact = outputs_and_gradients(two_way_with("reference"), widened(flat))["out0"]
    assert rms_error(ours, exact) < 1.1 * rms_error(exact.bfloat16(), exact)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolution_is_the_definition(backend, device, dtype, activation, reverse):
    rng = torch.Generator().manual_seed(0)
    for length, width, bias in ((1, 4, True), (2, 4, False), (3, 2, True), (65, 4, True), (66, 3, True)):
        inputs = {"x": torch.randn(2, length, 37, generator=rng).to(dtype), "weight": torch.randn(37, width, generator=rng)}
        inputs["bias"] = torch.randn(37, generator=rng) if bias else None
        conv, definition = (
            functools.partial(causal_conv1d, activation=activation, reverse=reverse, backend=name)
            for name in (backend, "reference")
        )
        judge(conv, definition, inputs, dtype, device)


@pytest.mark.parametrize(("backend", "device"), KERNELS)
@pytest.mark.parametrize("length", [1, 3, 65])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_way_convolution_is_the_definition(backend, device, dtype, length):
    rng = torch.Generator().manual_seed(0)
    shapes = {"x": (2, length, 37), "weight_f": (37, 4), "bias_f": (37,), "weight_b": (37, 4), "bias_b": (37,)}
    inputs = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    inputs["x"] = inputs["x"].to(dtype)
    conv, definition = (functools.partial(bidirectional_conv, backend=name) for name in (backend, "reference"))
    judge(conv, definition, inputs, dtype, device)


@pytest.mark.parametrize(("backend", "device"), ALL)
def test_two_way_convolution_of_a_slice_is_two_convolutions(backend, device):
    rng = torch.Generator().manual_seed(0)
    wide, weight_f, weight_b = (torch.randn(shape, generator=rng).to(device) for shape in ((2, 9, 30), (15, 4), (15, 4)))
    u_f, u_b = bidirectional_conv(wide[..., 15:], weight_f, None, weight_b, None, backend=backend)
    x = wide[..., 15:].contiguous().double().cpu()
    for got, weight, reverse in ((u_f, weight_f, False), (u_b, weight_b, True)):
        want = causal_conv1d(x, weight.cpu(), activation="silu", reverse=reverse, backend="reference")
        assert rms_error(got.cpu(), want) < 1e-6


@pytest.mark.parametrize(("backend", "device"), KERNELS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_is_the_definition(backend, device, dtype, first):
    rng = torch.Generator().manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    hidden, residual, weight = (torch.randn(shape, generator=rng) for shape in ((2, 9, 37), (2, 9, 37), (37,)))
    inputs = {"hidden": hidden.to(dtype), "residual": None if first else residual.to(wide), "weight": weight}
    norm, definition = (functools.partial(add_rms_norm, eps=1e-5, backend=name) for name in (backend, "reference"))
    judge(norm, definition, inputs, dtype, device)


@pytest.mark.parametrize(("backend", "device"), ALL)
def test_norm_types_and_values(backend, device):
    """The type of hidden comes back, the stream widens, and a row of RMS r leaves with r / sqrt(r² + eps)."""
    hidden, residual = torch.full((1, 2, 8), 3.0), torch.full((1, 2, 8), -1.0)
    normed, stream = add_rms_norm(
        hidden.to(device, torch.bfloat16), residual.to(device), torch.ones(8, device=device), 5.0, backend=backend
    )
    assert (normed.dtype, stream.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(stream.cpu(), hidden + residual)
    assert torch.allclose(normed.cpu().float(), torch.full((1, 2, 8), 2 / 3), rtol=4e-3)


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_outputs_have_the_type_and_shape_of_u(backend, device, dtype):
    got = outputs_and_gradients(scan_with(backend, return_last_state=True), scan_inputs(5, dtype), device)
    assert (got["out0"].dtype, got["out0"].shape) == (dtype, (2, 5, 20))
    assert (got["out1"].dtype, got["out1"].shape) == (torch.promote_types(dtype, torch.float32), (2, 20, 16))


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_past_does_not_hear_the_future(backend, device, reverse):
    """Outputs before a change are the same bits, the one at the change differs, and no gradient crosses it backwards."""
    inputs = {name: tensor.to(device) for name, tensor in scan_inputs(40, torch.float32, "near_one").items()}
    past, future = (slice(25, None), slice(None, 25)) if reverse else (slice(None, 25), slice(25, None))
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    for name in ("u", "delta", "B", "C", "z"):
        changed[name][:, future] += 1
    scan = scan_with(backend, reverse=reverse)
    y, y_changed = scan(**inputs), scan(**changed)
    assert torch.equal(y[:, past], y_changed[:, past])
    assert not torch.isclose(y[:, 24 if reverse else 25], y_changed[:, 24 if reverse else 25]).any()
    u = inputs["u"].requires_grad_()
    (du,) = torch.autograd.grad(scan(**inputs)[:, past].square().sum(), u)
    assert du[:, past].abs().min() > 0
    assert (du[:, future] == 0).all()


@pytest.mark.parametrize(("backend", "device"), ALL)
def test_reverse_is_flip_run_flip(backend, device):
    inputs = {name: tensor.to(device) for name, tensor in scan_inputs(40, torch.float32, "near_one").items()}
    flipped = {name: tensor.flip(1) if tensor.ndim == 3 else tensor for name, tensor in inputs.items()}
    scan = scan_with(backend, return_last_state=True)
    y, last = scan(**inputs, reverse=True)
    y_flipped, last_flipped = scan(**flipped)
    assert rms_error(y.cpu(), y_flipped.flip(1).cpu().double()) < 1e-6
    assert rms_error(last.cpu(), last_flipped.cpu().double()) < 1e-6
    assert not torch.allclose(y, scan(**inputs)[0], rtol=0.1)

    weight, bias = inputs["A"][:, :4].contiguous(), inputs["D"]
    u = causal_conv1d(inputs["u"], weight, bias, reverse=True, backend=backend)
    u_flipped = causal_conv1d(flipped["u"], weight, bias, backend=backend).flip(1)
    assert torch.equal(u, u_flipped)


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_state_is_the_one_the_last_output_reads(backend, device, reverse):
    """Without skip and gate the output of the last step taken is <C, h>."""
    inputs = scan_inputs(33, torch.float32, "near_one") | {"D": None, "z": None}
    inputs = {name: None if tensor is None else tensor.to(device) for name, tensor in inputs.items()}
    y, h = scan_with(backend, return_last_state=True, reverse=reverse)(**inputs)
    last = 0 if reverse else -1
    assert rms_error((h * inputs["C"][:, last, None]).sum(-1).cpu(), y[:, last].cpu().double()) < 1e-6


@pytest.mark.parametrize(("backend", "device"), FAST)
def test_the_scan_repeats_to_the_bit(backend, device):
    inputs = scan_inputs(65, torch.float32)
    first, second = (outputs_and_gradients(scan_with(backend), inputs, device) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("backend", "device"), ALL)
def test_autocast_does_not_narrow_the_scan(backend, device):
    inputs = scan_inputs(33, torch.float32)
    plain = outputs_and_gradients(scan_with(backend), inputs, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        cast = outputs_and_gradients(scan_with(backend), inputs, device)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_poisoned_memory_is_poisoned():
    assert torch.empty(3).isnan().all()
    assert torch.ones(2).new_empty(3).isnan().all()


WRONG = {
    "delta": torch.zeros(2, 5, 19),
    "A": torch.zeros(19, 16),
    "B": torch.zeros(2, 4, 16),
    "C": torch.zeros(2, 5, 3, 16),
    "D": torch.zeros(1),
    "z": torch.zeros(2, 5, 1),
    "delta_bias": torch.zeros(16),
}


@pytest.mark.parametrize("name", WRONG)
def test_scan_names_the_input_that_does_not_fit(name):
    with pytest.raises(ValueError, match=rf"^{name} must be \("):
        selective_scan(**(scan_inputs(5, torch.float32) | {name: WRONG[name]}))


def test_scan_refuses_what_it_cannot_mean():
    inputs = scan_inputs(5, torch.float32)
    with pytest.raises(ValueError, match=r"float32 or wider.*bfloat16"):
        selective_scan(**(inputs | {"A": inputs["A"].bfloat16()}))
    with pytest.raises(ValueError, match="at least one sequence, step"):
        selective_scan(**{name: tensor[:, :0] if tensor.ndim == 3 else tensor for name, tensor in inputs.items()})
    with pytest.raises(ValueError, match="expected u"):
        selective_scan(**(inputs | {"u": inputs["u"][0]}))
    z, one = inputs.pop("z"), ScanInputs(**inputs)
    with pytest.raises(ValueError, match="two directions differ in shape"):
        bidirectional_scan(one, ScanInputs(**{k: v for k, v in scan_inputs(6, torch.float32).items() if k != "z"}), None)
    with pytest.raises(ValueError, match="z must be"):
        bidirectional_scan(one, one, z[:1])


def test_convolution_and_norm_refuse_what_does_not_fit():
    x, weight = torch.zeros(2, 5, 6), torch.zeros(6, 4)
    with pytest.raises(ValueError, match="weight \\(channels, width\\)"):
        causal_conv1d(x, weight[:5])
    with pytest.raises(ValueError, match="weight \\(channels, width\\)"):
        bidirectional_conv(x, weight, None, weight, torch.zeros(5))
    with pytest.raises(ValueError, match="None or 'silu', got 'relu'"):
        causal_conv1d(x, weight, activation="relu")
    with pytest.raises(ValueError, match="expected residual"):
        add_rms_norm(x, x[:1], torch.ones(6), 1e-5)
