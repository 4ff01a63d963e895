"""The scan's kernels: their own source, emulated on the CPU, against the definition; on a GPU test_init.py runs them for real."""

import pytest
import torch

from tests.ops.cuda_emulator import emulated, needs_compiler
from tests.ops.oracle import judge, outputs_and_gradients, rms_error, scan_inputs, widened
from vmrepro.ops import ScanInputs, bidirectional_scan, cuda, selective_scan
from vmrepro.ops.cuda import driver, layout, scan

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_compiler]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def emulator(folder):
    with emulated(folder) as emulator:
        yield emulator


def two_ways(length, dtype, decay="fast", channels=24, gated=True, start=4):
    """Flat inputs of both directions; B, C and z are views of wider buffers, B and C from element ``start`` of each row on."""
    flat = {}
    for seed, way in enumerate("fb"):
        inputs = scan_inputs(length, dtype, decay, channels=channels, seed=seed)
        z = inputs.pop("z")
        for name in ("B", "C"):
            wide = torch.full((2, length, 32 + start), torch.nan, dtype=dtype)
            wide[..., start : start + 16] = inputs[name]
            inputs[name] = wide[..., start : start + 16]
        flat |= {f"{name}_{way}": value for name, value in inputs.items()}
    return flat | {"z": torch.stack([z, z], dim=2).flatten(2)[..., channels:] if gated else None}


def call(both):
    def flat_call(z, **flat):
        return both(*(ScanInputs(**{name: flat[f"{name}_{way}"] for name in ScanInputs._fields}) for way in "fb"), z)

    return flat_call


def definition(forward, backward, z):
    return bidirectional_scan(forward, backward, z, backend="reference")


@pytest.mark.parametrize("decay", ["near_one", "fast"])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 37])
def test_two_directions_in_bfloat16(emulator, length, decay):
    judge(call(cuda.bidirectional_scan), call(definition), two_ways(length, torch.bfloat16, decay), torch.bfloat16, "cpu")
    assert emulator.launched == ["scan_forward", "gate_backward", "scan_backward", "join_projections"]


@pytest.mark.parametrize(("length", "channels"), [(1, 1), (35, 5), (18, 131)])
def test_two_directions_in_float32_with_rows_that_no_wide_access_fits(emulator, length, channels):
    inputs = two_ways(length, torch.float32, "near_one", channels)
    judge(call(cuda.bidirectional_scan), call(definition), inputs, torch.float32, "cpu")


def test_two_directions_without_a_gate_at_odd_addresses(emulator):
    inputs = two_ways(21, torch.bfloat16, gated=False, start=5)
    judge(call(cuda.bidirectional_scan), call(definition), inputs, torch.bfloat16, "cpu")


@pytest.mark.parametrize("decay", ["near_one", "fast"])
@pytest.mark.parametrize("length", [33, 100])
def test_time_cut_in_parts(folder, monkeypatch, length, decay):
    monkeypatch.setattr(scan, "MIN_SPLIT_SEGMENTS", 1)
    with emulated(folder, multiprocessors=16) as emulator:
        judge(call(cuda.bidirectional_scan), call(definition), two_ways(length, torch.bfloat16, decay), torch.bfloat16, "cpu")
    assert {"scan_summary", "scan_summary_gradient", "scan_chain"} <= set(emulator.launched)


@pytest.fixture
def spread(folder, monkeypatch):
    """As on a GPU that a few channels fill without cutting time."""
    monkeypatch.setattr(scan, "MIN_SPLIT_SEGMENTS", 1)
    monkeypatch.setattr(scan, "SPREAD_FILL", 0)
    with emulated(folder, multiprocessors=16) as emulator:
        yield emulator


@pytest.mark.parametrize("decay", ["near_one", "fast"])
@pytest.mark.parametrize(
    ("length", "channels", "gated"), [(17, 24, True), (32, 40, True), (33, 8, False), (100, 24, True), (113, 56, False)]
)
def test_a_channel_spread_over_lanes(spread, length, channels, gated, decay):
    inputs = two_ways(length, torch.bfloat16, decay, channels, gated, start=8)
    judge(call(cuda.bidirectional_scan), call(definition), inputs, torch.bfloat16, "cpu")
    assert spread.launched == ["scan_spread", *["gate_backward"] * gated, "scan_spread_backward", "join_projections"]
    spread.launched.clear()
    with torch.no_grad():
        got, exact = call(cuda.bidirectional_scan)(**inputs), call(definition)(**widened(inputs))
    assert rms_error(got, exact) < 5e-3
    assert spread.launched == ["scan_spread"]


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(("length", "reverse"), [(1, False), (16, True), (50, False), (50, True)])
def test_one_direction_back_with_a_channel_spread_over_lanes(spread, monkeypatch, length, reverse, softplus):
    monkeypatch.setattr(scan, "SPREAD_STEPS", 0)
    options = {"delta_softplus": softplus, "reverse": reverse}
    inputs = scan_inputs(length, torch.bfloat16, "near_one", channels=56)
    if not softplus:
        inputs |= {"delta": inputs["delta"].abs() / 8, "delta_bias": inputs["delta_bias"].abs() / 8}
    judge(
        lambda **x: cuda.selective_scan(**x, **options),
        lambda **x: selective_scan(**x, **options, backend="reference"),
        inputs,
        torch.bfloat16,
        "cpu",
    )
    assert "scan_spread_backward" in spread.launched


def test_a_gradient_of_the_last_state_is_not_spread_over_lanes(spread, monkeypatch):
    monkeypatch.setattr(scan, "SPREAD_STEPS", 0)
    options = {"delta_softplus": True, "return_last_state": True}
    judge(
        lambda **x: cuda.selective_scan(**x, **options),
        lambda **x: selective_scan(**x, **options, backend="reference"),
        scan_inputs(20, torch.bfloat16, channels=24),
        torch.bfloat16,
        "cpu",
    )
    assert "scan_spread_backward" not in spread.launched


@pytest.mark.parametrize("ready", [False, True])
def test_states_saved_while_spread_are_those_saved_otherwise(spread, monkeypatch, ready):
    """But for a rounding of what is added to them, dt u B; the sums of directions are rounded elsewhere, where the two meet."""
    inputs = []
    for seed in range(2):
        u, delta, A, B, C, D, bias = (scan_inputs(100, torch.bfloat16, seed=seed, channels=40)[k] for k in ScanInputs._fields)
        sizes = torch.nn.functional.softplus(delta.float() + bias)
        packed = (sizes.view(torch.int32) >> 15).to(torch.int16).view(torch.bfloat16)
        inputs += [u, packed if ready else delta, A, B, C, D, bias]
    ours = scan.run_forward(inputs, None, True, False, True, False, ready)
    monkeypatch.setattr(scan, "SPREAD_FILL", 2)
    plain = scan.run_forward(inputs, None, True, False, True, False, ready)
    assert [name for name in spread.launched if name != "scan_chain"] == ["scan_spread", "scan_summary", "scan_forward"]
    assert ours[2].shape == plain[2].shape
    assert rms_error(ours[2].double(), plain[2].double()) < 2e-3
    assert rms_error(ours[0].double(), plain[0].double()) < 4e-3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"sequences": 16}, True),
        ({"sequences": 9}, False),  # 144 blocks, of which 132 multiprocessors do 12 after the others
        ({"sequences": 4}, False),
        ({"dtype": torch.float16}, False),
        ({"channels": 380}, False),
        ({"start": 4}, False),
        ({"ways": 1}, False),
        ({"shared": 99 * 1024}, False),  # as on a GPU of compute capability 8.9
        ({"back": True}, True),
        ({"back": True, "sequences": 9}, False),
        ({"back": True, "ways": 1}, False),  # 64 blocks
        ({"back": True, "ways": 1, "sequences": 16}, True),
        ({"back": True, "dtype": torch.float16}, False),
        ({"back": True, "start": 4}, False),
        ({"back": True, "shared": 163 * 1024}, False),  # 8.0
    ],
)
def test_channels_are_spread_where_that_fills_the_gpu(monkeypatch, change, expected):
    given = {"sequences": 8, "channels": 384, "dtype": torch.bfloat16, "start": 8, "ways": 2, "shared": 227 * 1024, "back": False}
    given |= change
    monkeypatch.setattr(driver, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(driver, "most_shared_bytes", lambda device: given["shared"])
    u = torch.empty(given["sequences"], 2, given["channels"], dtype=given["dtype"])
    projections = torch.empty(given["sequences"], 2, 32 + given["start"], dtype=u.dtype)[..., given["start"] :].split(16, -1)
    inputs = [u, u, torch.empty(given["channels"], 16), *projections, *torch.empty(2, given["channels"])] * given["ways"]
    config = layout.configure(inputs, None, True)
    forward = (layout.SPREAD_LANES, 2, config.spread_shared)
    backward = (layout.SPREAD_BACKWARD_LANES, 1, config.spread_backward_shared)
    assert scan._spreads(inputs, config, *(backward if given["back"] else forward)) == expected


@pytest.mark.parametrize(
    ("length", "parts"), [(100, (4, 2, 2)), (100, (3, 3, 3)), (100, (2, 6, 3)), (100, (7, 1, 1)), (150, (5, 2, 2))]
)
def test_what_enters_a_part_is_found_by_pieces(emulator, monkeypatch, length, parts):
    """Of 7 segments the last part is short, and some of its pieces have nothing in them; of 10 the pieces before it are 8."""
    monkeypatch.setattr(scan, "_parts", lambda *_: scan.Parts(*parts))
    judge(call(cuda.bidirectional_scan), call(definition), two_ways(length, torch.bfloat16, "near_one"), torch.bfloat16, "cpu")
    options = {"delta_softplus": True, "reverse": True, "return_last_state": True}
    judge(
        lambda **x: cuda.selective_scan(**x, **options),
        lambda **x: selective_scan(**x, **options, backend="reference"),
        scan_inputs(length, torch.float32, "near_one"),
        torch.float32,
        "cpu",
    )
    assert {"scan_summary", "scan_summary_gradient", "scan_chain"} <= set(emulator.launched)


@pytest.mark.parametrize("state", [8, 16])
@pytest.mark.parametrize(("length", "time"), [(1, "whole"), (37, "whole"), (100, "cut"), (100, "spread")])
def test_step_sizes_made_before_do_what_the_same_sizes_as_operands_do(folder, monkeypatch, length, time, state):
    """But for the gradient of their logits, which softplus has part in. The bias is in them, and nobody reads it again."""
    monkeypatch.setattr(scan, "MIN_SPLIT_SEGMENTS", 1)
    spread = time == "spread" and state == 16
    if spread:
        monkeypatch.setattr(scan, "SPREAD_FILL", 0)
    plain, ready = [], []
    for seed in range(2):
        inputs = scan_inputs(length, torch.bfloat16, seed=seed, channels=40, state=state)
        u, delta, A, B, C, D, bias = (inputs[name] for name in ScanInputs._fields)
        sizes = torch.nn.functional.softplus(delta)
        packed = (sizes.float().view(torch.int32) >> 15).to(torch.int16).view(torch.bfloat16)
        plain += [u, sizes, A, B, C, D, torch.zeros_like(bias)]
        ready += [u, packed, A, B, C, D, torch.full_like(bias, torch.nan)]
    z, dy = (torch.randn(u.shape, generator=torch.Generator().manual_seed(i)).to(u) for i in range(2))

    def run(inputs, made):
        out = scan.run_forward(inputs, z, made, False, True, False, made)
        streams, rows = [torch.empty_like(u) for _ in range(4)], [u.new_empty((*u.shape[:2], 2 * state)) for _ in "fb"]
        parts = scan.scan_backward_into(streams, rows, dy, None, inputs, out[2], made, False, made)
        return [*out[:3], *rows, streams[0], streams[2]], streams[1::2], parts.sum(0)

    with emulated(folder, multiprocessors=1 if time == "whole" else 16) as emulator:
        (expected, dsizes, parameters), (got, dlogits, parameters_made) = run(plain, False), run(ready, True)
    assert ("scan_spread_backward" in emulator.launched) == spread
    assert ("scan_summary_gradient" in emulator.launched) == (time != "whole" and not spread)
    assert all(map(torch.equal, got, expected))
    assert torch.equal(parameters_made[:, :-1], parameters[:, :-1])
    for way in range(2):
        slope = -torch.expm1(-plain[7 * way + 1].double())
        assert rms_error(dlogits[way], dsizes[way].double() * slope) < 5e-3
        assert rms_error(parameters_made[way, -1], (dsizes[way].double() * slope).sum((0, 1))) < 5e-3


@pytest.mark.parametrize(
    ("channels", "sequences", "lanes"),
    [(384, 128, 128), (384, 64, 64), (1152, 32, 64), (384, 88, 128), (384, 44, 128), (384, 20, 64)],
)
def test_blocks_are_as_large_as_keeps_132_multiprocessors_equally_busy(channels, sequences, lanes):
    config = layout.Config(torch.bfloat16, 16)
    assert layout.balanced(config, channels, sequences, 132).lanes == lanes


@pytest.mark.parametrize(("state", "reverse", "dtype"), [(64, True, torch.bfloat16), (8, False, torch.float16)])
def test_one_direction_and_its_last_state(emulator, state, reverse, dtype):
    options = {"delta_softplus": state == 8, "reverse": reverse, "return_last_state": True}
    inputs = scan_inputs(11, dtype, channels=40, state=state)
    if state == 64:
        inputs |= {"delta": inputs["delta"].abs() / 8, "delta_bias": None, "D": None, "z": None}
    judge(
        lambda **x: cuda.selective_scan(**x, **options),
        lambda **x: selective_scan(**x, **options, backend="reference"),
        inputs,
        dtype,
        "cpu",
    )


def test_steps_past_the_end_add_nothing_to_the_gradient_of_the_bias_without_softplus(emulator):
    inputs = scan_inputs(3, torch.bfloat16) | {"D": None, "z": None}
    inputs |= {"delta": inputs["delta"].abs() / 8, "delta_bias": inputs["delta_bias"].abs() / 8}
    judge(
        lambda **x: cuda.selective_scan(**x, return_last_state=True),
        lambda **x: selective_scan(**x, return_last_state=True, backend="reference"),
        inputs,
        torch.bfloat16,
        "cpu",
    )


def test_the_same_bits_every_time_and_nothing_saved_without_gradients(emulator):
    inputs = two_ways(20, torch.bfloat16)
    first, second = (outputs_and_gradients(call(cuda.bidirectional_scan), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    emulator.launched.clear()
    with torch.no_grad():
        assert torch.equal(call(cuda.bidirectional_scan)(**inputs), first["out0"])
    assert emulator.launched == ["scan_forward"]


def test_registration_as_an_operator(emulator):
    inputs = two_ways(9, torch.float32, channels=8)
    z = inputs.pop("z")
    tensors = [
        inputs[f"{name}_{way}"].contiguous().requires_grad_() for way in "fb" for name in ("u", "delta", "A", "B", "C", "D")
    ]
    tensors.insert(6, inputs["delta_bias_f"])
    tensors.append(inputs["delta_bias_b"])
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(scan.scan_forward, (tensors, z, True, False, True, False), test_utils=tests)
    y, ungated, states, _ = scan.scan_forward(tensors, z, True, False, True, False)
    arguments = (torch.ones_like(y), None, [t.detach() for t in tensors], z, ungated, states, True, False)
    torch.library.opcheck(scan.scan_backward, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float64}, "bf16, fp16 and fp32 .* got torch.float64"),
        ({"state": 5}, "got 5 states"),
        ({"form": "grouped"}, r"B, C \(batch, length, state\)"),
        ({"form": "fixed"}, r"B, C \(batch, length, state\)"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(emulator, change, message):
    inputs = scan_inputs(4, change.pop("dtype", torch.float32), **change)
    with pytest.raises(NotImplementedError, match=message):
        cuda.selective_scan(**inputs)
    assert emulator.launched == []


@pytest.mark.parametrize(
    ("lanes", "ways", "blocks", "expected"),
    [(64, 2, 120, 3), (64, 2, 396, 3), (64, 2, 397, 4), (128, 2, 132, 1), (128, 2, 384, 2), (128, 1, 396, 3), (128, 1, 500, 4)],
)
def test_a_kernel_is_compiled_for_as_many_blocks_as_share_a_multiprocessor(lanes, ways, blocks, expected):
    assert layout.resident(layout.Config(torch.bfloat16, 16, widest=lanes), ways, blocks, 132) == expected
    assert layout.resident(layout.Config(torch.float32, 16), 2, blocks, 132) == 1


@pytest.mark.parametrize(
    ("length", "batch", "channels", "expected"),
    [
        (12545, 8, 384, (11, 72, 3)),  # 480 summaries would leave some of 132 multiprocessors with 4 and most with 3
        (12545, 1, 384, (88, 9, 1)),
        (1569, 64, 384, (1, 99, 1)),
        (100, 1, 384, (1, 7, 1)),
    ],
)
def test_time_is_cut_so_that_132_multiprocessors_are_equally_busy(monkeypatch, length, batch, channels, expected):
    monkeypatch.setattr(driver, "multiprocessors", lambda device: 132)
    u, config = torch.empty(batch, length, channels, dtype=torch.bfloat16, device="meta"), layout.Config(torch.bfloat16, 16)
    parts = scan._parts(config, u, 2 * batch * -(-channels // config.lanes), config.forward_blocks, scan.FORWARD_ENOUGH)
    assert parts == expected
    assert parts.segments % parts.finer == 0
    assert (parts.count - 1) * parts.segments < -(-length // config.segment) <= parts.count * parts.segments
