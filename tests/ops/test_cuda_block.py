"""A whole block as one operator: the kernels' own source, emulated on the CPU, against the composition it stands for."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.cuda_emulator import emulated, needs_compiler
from tests.ops.oracle import assert_as_exact, judge, outputs_and_gradients, widened
from vmrepro.models.blocks import Block
from vmrepro.ops import MixerWay, ScanInputs, add_rms_norm, bidirectional_conv, bidirectional_scan, cuda
from vmrepro.ops.cuda import block
from vmrepro.ops.cuda.weights import ALIGNMENT, Weights

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), needs_compiler]
WIDTH, INNER, STATE = 12, 24, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def emulator(folder):
    with emulated(folder) as emulator:
        yield emulator


def block_inputs(length, dtype, *, rank=3, batch=2, width=WIDTH, inner=INNER, with_residual=True, with_keep=False):
    """Flat inputs by name; parameters in float32, as a model keeps them under autocast."""
    rng = torch.Generator().manual_seed(length)

    def normal(*shape, scale=1.0):
        return torch.randn(shape, generator=rng) * scale

    inputs = {"hidden": normal(batch, length, width).to(dtype), "norm_weight": 1 + normal(width, scale=0.1)}
    inputs["residual"] = normal(batch, length, width) if with_residual else None
    inputs["keep"] = torch.tensor([0.0, 1.25] * (batch // 2)) if with_keep else None
    inputs |= {"in_proj": normal(2 * inner, width, scale=0.3), "out_proj": normal(width, inner, scale=0.2)}
    for way in "fb":
        values = {"conv_weight": normal(inner, 4, scale=0.5), "conv_bias": normal(inner, scale=0.1)}
        values |= {"x_proj": normal(rank + 2 * STATE, inner, scale=0.2), "dt_proj": normal(inner, rank, scale=0.5)}
        values |= {"dt_bias": normal(inner) - 1, "A_log": normal(inner, STATE, scale=0.5), "D": normal(inner)}
        inputs |= {f"{name}_{way}": value for name, value in values.items()}
    return inputs


def ways_of(flat):
    return [MixerWay(**{name: flat[f"{name}_{way}"] for name in MixerWay._fields}) for way in "fb"]


def whole(hidden, residual, norm_weight, keep, in_proj, out_proj, reuse=False, **flat):
    keep = None if keep is None else keep.detach()
    return cuda.add_norm_mix(hidden, residual, norm_weight, 1e-5, in_proj, out_proj, *ways_of(flat), keep, reuse)


def composed(hidden, residual, norm_weight, keep, in_proj, out_proj, **flat):
    """What ``Block`` computes of single operators, products in hidden's type."""
    if keep is not None:
        hidden = hidden * keep.detach().to(hidden.dtype).view(-1, 1, 1)
    normed, stream = add_rms_norm(hidden, residual, norm_weight, 1e-5, backend="reference")
    linear = lambda t, weight: F.linear(t, weight.to(t.dtype))  # noqa: E731
    x, z = linear(normed, in_proj).chunk(2, dim=-1)
    ways, scans = ways_of(flat), []
    taps = [t for way in ways for t in way[:2]]
    for u, way in zip(bidirectional_conv(x, *taps, backend="reference"), ways, strict=True):
        rank = way.dt_proj.shape[1]
        step, B, C = linear(u, way.x_proj).split((rank, STATE, STATE), dim=-1)
        scans.append(ScanInputs(u, linear(step, way.dt_proj), -torch.exp(way.A_log), B, C, way.D, way.dt_bias))
    return linear(bidirectional_scan(*scans, z, backend="reference"), out_proj), stream


@pytest.mark.parametrize(
    ("length", "dtype", "options"),
    [
        (1, torch.bfloat16, {}),
        (19, torch.bfloat16, {"rank": 8}),
        (19, torch.bfloat16, {"with_residual": False}),
        (19, torch.float32, {"with_residual": False}),
        (33, torch.float16, {}),
        (70, torch.float32, {"rank": 9}),
        (19, torch.float32, {"inner": 21}),
    ],
)
def test_outputs_and_gradients(emulator, length, dtype, options):
    inputs = {name: t for name, t in block_inputs(length, dtype, **options).items() if name != "keep"}
    judge(lambda **x: whole(keep=None, **x), lambda **x: composed(keep=None, **x), inputs, dtype, "cpu")


@pytest.mark.parametrize(("length", "rank", "fits"), [(70, 12, True), (19, 3, True), (19, 49, False)])
def test_products_with_kernels_of_their_own(folder, length, rank, fits):
    """Sizes as models have them; a rank that is too large for these kernels is left to plain products."""
    inputs = {
        name: t for name, t in block_inputs(length, torch.bfloat16, rank=rank, width=64, inner=128).items() if name != "keep"
    }
    with emulated(folder) as emulator:
        judge(lambda **x: whole(keep=None, **x), lambda **x: composed(keep=None, **x), inputs, torch.bfloat16, "cpu")
    assert ("step_sizes" in emulator.launched) == ("step_gradients" in emulator.launched) == fits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_norm_weight_of_any_sign_and_zero(emulator, dtype):
    """The gradient of a weight that is zero comes from the product that has it inside, and nothing divides by it."""
    inputs = {name: t for name, t in block_inputs(19, dtype).items() if name != "keep"}
    inputs["norm_weight"][::3] *= -1
    inputs["norm_weight"][[1, 6]] = 0
    judge(lambda **x: whole(keep=None, **x), lambda **x: composed(keep=None, **x), inputs, dtype, "cpu")
    ours = outputs_and_gradients(lambda **x: whole(keep=None, **x), inputs)
    assert (ours["dnorm_weight"] != 0).all()
    assert ((ours["din_proj"] == 0).all(dim=0) == (inputs["norm_weight"] == 0)).all()


@pytest.mark.parametrize(
    ("hidden_type", "dtype"), [(torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.float32)]
)
def test_hidden_in_another_type_than_the_products(emulator, hidden_type, dtype):
    """As under autocast. The definition's own error is that of the narrower type."""
    narrow = dtype if hidden_type == torch.float32 else hidden_type
    inputs = {name: t for name, t in block_inputs(19, narrow).items() if name != "keep"}

    def call(hidden, residual, norm_weight, in_proj, out_proj, **flat):
        ways = [t for way in ways_of(flat) for t in way]
        return block.block_forward(hidden, residual, None, norm_weight, 1e-5, in_proj, out_proj, ways, dtype)[:2]

    ours = outputs_and_gradients(call, inputs | {"hidden": inputs["hidden"].to(hidden_type)})
    plain, exact = (outputs_and_gradients(lambda **x: composed(keep=None, **x), x) for x in (inputs, widened(inputs)))
    assert ours["out0"].dtype == dtype
    assert_as_exact(ours, plain, exact, narrow)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("length", "dtype"), [(1, torch.bfloat16), (197, torch.bfloat16), (197, torch.float32), (65, torch.float16)]
)
def test_on_a_gpu(length, dtype):
    inputs = {name: t for name, t in block_inputs(length, dtype).items() if name != "keep"}
    judge(lambda **x: whole(keep=None, **x), lambda **x: composed(keep=None, **x), inputs, dtype, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_dropped_sample_passes_on_its_residual(emulator, dtype):
    inputs = block_inputs(17, dtype, with_keep=True)
    keep = inputs.pop("keep")
    judge(lambda **x: whole(keep=keep, **x), lambda **x: composed(keep=keep, **x), inputs, dtype, "cpu")
    _, stream = whole(keep=keep, **inputs)
    assert torch.equal(stream[0], inputs["residual"][0])


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_without_gradients_in_slices(folder, monkeypatch, with_residual, reuse):
    monkeypatch.setattr(block, "SMALLEST_SLICE", 1)
    inputs = block_inputs(21, torch.float32, batch=5, with_residual=with_residual)
    definition = {name: t for name, t in inputs.items() if name != "keep"}
    exact = outputs_and_gradients(lambda **x: composed(keep=None, **x), widened(definition))
    plain = outputs_and_gradients(lambda **x: composed(keep=None, **x), definition)
    with emulated(folder) as emulator, torch.no_grad():
        ours = whole(reuse=reuse, **inputs)
    assert emulator.launched.count("scan_forward") == 2
    outputs = {"out0": ours[0], "out1": ours[1]}
    assert_as_exact(outputs, plain, {name: exact[name] for name in outputs}, torch.float32)
    assert (ours[1] is inputs["residual" if with_residual else "hidden"]) == reuse
    assert (ours[0] is inputs["hidden"]) == (reuse and with_residual)


@pytest.mark.parametrize(
    ("batch", "length", "sizes"),
    [(64, 12545, (22, 42)), (128, 1569, (44, 84)), (1, 1569, (1,)), (64, 197, (64,)), (1, 100_001, (1,)), (2, 50_177, (1, 1))],
)
def test_slices_fill_132_multiprocessors(monkeypatch, batch, length, sizes):
    monkeypatch.setattr(block.driver, "multiprocessors", lambda device: 132)
    assert block._slices(batch, length, 384, torch.device("cpu")) == sizes


def test_the_same_bits_every_time(emulator):
    inputs = {name: t for name, t in block_inputs(20, torch.bfloat16).items() if name != "keep"}
    first, second = (outputs_and_gradients(lambda **x: whole(keep=None, **x), inputs) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_backward_pass_leaves_what_it_reads(emulator):
    inputs = {name: t for name, t in block_inputs(20, torch.bfloat16).items() if name != "keep"}
    leaves = {name: t.requires_grad_() for name, t in inputs.items()}
    mixed, stream = whole(keep=None, **leaves)
    upstream = [torch.ones_like(mixed), torch.ones_like(stream)]
    first, second = (torch.autograd.grad((mixed, stream), list(leaves.values()), upstream, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kernel", ["norm_forward", "norm_backward", "pack_weights", "unpack_weights", "sum_parts"])
def test_a_training_step_launches_once(folder, kernel):
    inputs = {name: t for name, t in block_inputs(4, torch.float32).items() if name != "keep"}
    with emulated(folder) as emulator:
        outputs_and_gradients(lambda **x: whole(keep=None, **x), inputs)
    assert emulator.launched.count(kernel) == 1


def test_what_is_kept_for_the_backward_pass(emulator):
    """xhat and its scale, the ungated sum, the products of x_proj, the states, weights packed and plain: not a byte more."""
    inputs = block_inputs(64, torch.bfloat16)
    leaves = {name: None if t is None else t.requires_grad_() for name, t in inputs.items()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        whole(**leaves)
    read = [t for name, t in inputs.items() if name not in ("hidden", "residual", "keep", "out_proj")]
    tokens, segments, rank = 2 * 64, 64 // 16, 3
    filled = rank + -rank % ALIGNMENT
    of_tokens = tokens * (2 * WIDTH + 4 + 2 * INNER + 2 * 2 * (filled + 2 * STATE)) + 2 * 2 * segments * INNER * STATE * 2
    packed, rates = 2 * Weights.size(WIDTH, INNER, STATE, rank), 4 * 2 * INNER * STATE
    assert sum(kept.values()) == of_tokens + packed + rates + sum(4 * t.numel() for t in read)


def test_what_the_kernels_do_not_take_is_left_to_the_composition(emulator):
    assert whole(**block_inputs(4, torch.float64)) is None
    inputs = block_inputs(4, torch.float32)
    assert whole(**inputs | {"residual": inputs["residual"].double()}) is None
    assert whole(**inputs | {f"A_log_{way}": inputs[f"A_log_{way}"][:, :5] for way in "fb"}) is None


def test_a_block_uses_it(emulator, monkeypatch):
    """The module's two ways of computing agree, gradients of every parameter included."""
    torch.manual_seed(0)
    layer = Block(WIDTH, backend="chunked")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-0.4, 0.4)
    hidden, residual = torch.randn(2, 9, WIDTH), torch.randn(2, 9, WIDTH)

    def run():
        out, stream = layer(hidden, residual)
        return [out, stream, *torch.autograd.grad(out.sin().sum() + stream.cos().sum(), list(layer.parameters()))]

    plain = run()
    kernels = lambda *given, keep, reuse, backend: cuda.add_norm_mix(*given, keep, reuse)  # noqa: E731
    monkeypatch.setattr("vmrepro.models.blocks.add_norm_mix", kernels)
    ours = run()
    assert "scan_backward" in emulator.launched
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["mixer", "mixer.x_proj", "norm"])
def test_a_part_that_is_watched_is_called(monkeypatch, part):
    monkeypatch.setattr("vmrepro.models.blocks.add_norm_mix", lambda *given, **options: pytest.fail("the part was passed over"))
    layer, seen = Block(WIDTH, backend="chunked"), []
    layer.get_submodule(part).register_forward_hook(lambda *call: seen.append(part))
    layer(torch.randn(1, 3, WIDTH))
    assert set(seen) == {part}


def test_a_part_that_was_replaced_is_called(monkeypatch):
    """As by an adapter that keeps the old weight beside its own."""

    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    monkeypatch.setattr("vmrepro.models.blocks.add_norm_mix", lambda *given, **options: pytest.fail("the part was passed over"))
    layer = Block(WIDTH, backend="chunked")
    layer.mixer.out_proj = Adapted(2 * WIDTH, WIDTH, bias=False)
    with torch.no_grad():
        layer.mixer.out_proj.weight.zero_()
    assert torch.equal(layer(torch.randn(1, 3, WIDTH))[0], torch.ones(1, 3, WIDTH))


def test_registration_as_operators(emulator):
    inputs = block_inputs(9, torch.float32)
    ways = [t for way in ways_of(inputs) for t in way]
    leaves = [inputs["hidden"], inputs["residual"], None, inputs["norm_weight"], 1e-5, inputs["in_proj"], inputs["out_proj"]]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaves = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t for t in leaves]
    torch.library.opcheck(block.block_forward, (*leaves, ways, torch.float32), test_utils=tests)
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in leaves[:2] + leaves[3:]]
    torch.library.opcheck(block.block_infer, (*plain, ways, torch.float32, False), test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(block.block_infer_in_place, (*plain, ways), test_utils=("test_schema", "test_faketensor"))
    mixed, *saved = block.block_forward(*[t.detach() if isinstance(t, torch.Tensor) else t for t in leaves], ways, torch.float32)
    given = (None, inputs["norm_weight"], inputs["in_proj"], ways, torch.float32, True)
    arguments = (torch.ones_like(mixed), None, *saved[1:], *given)
    torch.library.opcheck(block.block_backward, arguments, test_utils=("test_schema", "test_faketensor"))
