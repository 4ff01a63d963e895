"""What only the numba backend has: blocks of 16 lanes, chunks of 16 steps, threads and a cache. Also judged in test_init.py."""

import functools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from tests.ops.oracle import judge, outputs_and_gradients, scan_inputs, scan_with, two_way_with, widened
from vmrepro.ops import ScanInputs, causal_conv1d, numba_conv, numba_cpu, numba_vectors, selective_scan

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def set_threads(monkeypatch):
    """Sets the number of threads, where every job is worth one."""
    before = torch.get_num_threads()
    monkeypatch.setattr(numba_cpu, "WORK_PER_THREAD", 1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def two_way_inputs(length: int, channels: int = 20) -> dict[str, torch.Tensor]:
    ways = {way: scan_inputs(length, torch.float32, channels=channels, seed=seed) for seed, way in enumerate("fb")}
    return {"z": ways["f"]["z"]} | {f"{name}_{way}": ways[way][name] for way in ways for name in ScanInputs._fields}


@pytest.mark.parametrize("decay", ["near_one", "fast"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("length", "channels", "state"), [(15, 16, 16), (16, 17, 1), (17, 32, 3), (48, 1, 17), (49, 33, 40)], ids=str
)
def test_scan_at_the_edges_of_chunks_and_blocks(length, channels, state, reverse, decay):
    inputs = scan_inputs(length, torch.float32, decay, channels=channels, state=state)
    ours, definition = (scan_with(name, reverse=reverse, return_last_state=True) for name in ("numba", "reference"))
    judge(ours, definition, inputs, torch.float32, "cpu")


@pytest.mark.parametrize("absent", [("z",), ("D", "delta_bias"), ("z", "D", "delta_bias")], ids=str)
@pytest.mark.parametrize("softplus", [False, True])
def test_scan_without_its_optional_parts(absent, softplus):
    inputs = scan_inputs(33, torch.float32) | dict.fromkeys(absent)
    inputs["delta"] = 0.1 * inputs["delta"].abs() + 2
    ours, definition = (functools.partial(selective_scan, delta_softplus=softplus, backend=b) for b in ("numba", "reference"))
    judge(ours, definition, inputs, torch.float32, "cpu")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("length", [1, 31])
def test_two_way_scan(length, gated):
    inputs = two_way_inputs(length) | ({} if gated else {"z": None})
    judge(two_way_with("numba"), two_way_with("reference"), inputs, torch.float32, "cpu")


@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output_alone(output):
    inputs = scan_inputs(40, torch.float32)
    unread = {name: inputs.pop(name) for name in (("C", "D", "z") if output == 1 else ())}

    def call(name, **leaves):
        others = {name: tensor.to(leaves["u"].dtype) for name, tensor in unread.items()}
        return scan_with(name, return_last_state=True)(**leaves, **others)[output]

    judge(*(functools.partial(call, name) for name in ("numba", "reference")), inputs, torch.float32, "cpu")


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "channels", "width"), [(1, 16, 1), (2, 17, 4), (4, 33, 4), (40, 1, 7)], ids=str)
def test_convolution(length, channels, width, reverse, activation):
    rng = torch.Generator().manual_seed(length)
    shapes = {"x": (2, length, channels), "weight": (channels, width), "bias": (channels,)}
    inputs = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    inputs["bias"] = inputs["bias"] if channels > 1 else None
    ours, definition = (
        functools.partial(causal_conv1d, activation=activation, reverse=reverse, backend=name) for name in ("numba", "reference")
    )
    judge(ours, definition, inputs, torch.float32, "cpu")


def test_views_are_read_in_place_of_copies():
    """Slices of wider buffers, transposed ones, and a gradient that is one number repeated give what contiguous copies give."""
    inputs = scan_inputs(35, torch.float32, channels=32)
    views = {name: torch.cat([x, x], -1)[..., x.shape[-1] :] if x.ndim == 3 else x for name, x in inputs.items()}
    views["u"] = views["u"].mT.contiguous().mT
    views["A"] = views["A"].mT.contiguous().mT

    def results(given):
        leaves = {name: x.detach().requires_grad_() for name, x in given.items()}
        y = scan_with("numba")(**leaves)
        u = causal_conv1d(leaves["u"], leaves["A"], backend="numba")
        return y, u, *torch.autograd.grad(y.sum() + u.sum(), leaves.values())

    assert views["z"].stride(1) == 2 * inputs["z"].stride(1)
    assert all(torch.equal(a, b) for a, b in zip(results(views), results(inputs), strict=True))


def test_the_number_of_threads_changes_no_bit(set_threads):
    runs = []
    for threads in (1, 2, 3, 5, 2):
        set_threads(threads)
        runs.append(outputs_and_gradients(two_way_with("numba"), two_way_inputs(37, channels=100)))
        x = {"x": runs[0]["out0"], "weight": two_way_inputs(37, channels=100)["A_f"]}
        conv = functools.partial(causal_conv1d, activation="silu", backend="numba")
        runs[-1] |= {f"conv {name}": tensor for name, tensor in outputs_and_gradients(conv, x).items()}
    assert all(torch.equal(run[name], runs[0][name]) for run in runs for name in run)


def test_every_job_is_done_once_by_as_many_threads_as_torch_has(set_threads, monkeypatch):
    parts = []
    monkeypatch.setattr(numba_vectors, "compiled", lambda kernel: lambda *arguments: parts.append(arguments[3:5]))
    for threads, want in ((1, [(0, 7)]), (3, [(0, 2), (2, 4), (4, 7)]), (20, [(job, job + 1) for job in range(7)])):
        parts.clear()
        set_threads(threads)
        causal_conv1d(torch.zeros(1, 4, 7 * 16), torch.zeros(7 * 16, 4), backend="numba")
        assert sorted(parts) == want


def test_two_python_threads_at_once(set_threads):
    set_threads(2)
    inputs = scan_inputs(300, torch.float32, channels=64)
    want = outputs_and_gradients(scan_with("numba"), inputs)
    with ThreadPoolExecutor(4) as callers:
        runs = list(callers.map(lambda _: outputs_and_gradients(scan_with("numba"), inputs), range(12)))
    assert all(torch.equal(run[name], want[name]) for run in runs for name in want)


def test_a_forked_process_has_threads_of_its_own():
    """The child of a process that has used its threads finishes, with the same numbers."""
    code = """
import os, warnings
import torch
from vmrepro.ops import numba_cpu, causal_conv1d
warnings.simplefilter("ignore")  # newer Pythons warn of forking a process with threads, which is the point here
torch.set_num_threads(2)
numba_cpu.WORK_PER_THREAD = 1
x, weight = torch.randn(2, 9, 64), torch.randn(64, 4)
want = causal_conv1d(x, weight, backend="numba")
child = os.fork()
same = torch.equal(causal_conv1d(x, weight, backend="numba"), want)
if not child:
    os._exit(not same)
assert same
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_what_is_kept_for_the_backward_pass_is_small():
    """A few sequences (batch, length, channels), where every state would be N of them."""
    length, channels, state = 1000, 64, 64
    inputs = scan_inputs(length, torch.float32, channels=channels, state=state)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = scan_with("numba")(**{name: tensor.requires_grad_() for name, tensor in inputs.items()})
    sequences = sum(kept.values()) / y.nbytes
    assert 3 + state / 16 < sequences < 7 + state / 16
    assert sequences < state / 4


def test_no_second_derivative():
    inputs = {name: tensor.requires_grad_() for name, tensor in scan_inputs(3, torch.float32).items()}
    (du,) = torch.autograd.grad(scan_with("numba")(**inputs).square().sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        du.sum().backward()


@numba.njit
def _exp2_of(x, y):
    for i in range(0, len(x), numba_vectors.LANES):
        numba_vectors.store(y, (i,), numba_vectors.exp2(numba_vectors.load(x, (i,))))


@numba.njit
def _sums_of_rows(rows, y):
    numba_vectors.store(y, (0,), numba_vectors.row_sums(rows))


def test_powers_of_two():
    x = np.concatenate([np.linspace(-126, 127.9, 9984), [0, 1, -1, -126, -127, -1e30, -np.inf, 127, 128, 1e30, np.inf, np.nan]])
    x = np.append(x, [-1e-9, 1e-9, 0.5, -0.5]).astype(np.float32)
    y = np.empty_like(x)
    _exp2_of(x, y)
    usual = (x >= -126) & (x < 128)
    exact = np.exp2(x[usual].astype(float))
    assert np.abs(y[usual] / exact - 1).max() < 2.5e-7
    assert (y[x <= -127] == 0).all()
    assert np.isposinf(y[x >= 128]).all()
    assert np.isnan(y[np.isnan(x)]).all()
    assert (y[np.isin(x, [0, 1, -1])] == np.exp2(x[np.isin(x, [0, 1, -1])])).all()
    assert y[np.abs(x) == np.float32(1e-9)].tolist() == [1, 1]


def test_sums_of_rows():
    rows = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    y = np.empty(16, np.float32)
    _sums_of_rows(rows, y)
    assert np.abs(y - rows.sum(1, dtype=float)).max() < 1e-5


def test_step_sizes_and_gates_at_their_ends():
    """Logits from -80 to 80: exact to a few roundings of the result, and of the logit where that is an exponent."""
    logits = torch.linspace(-80, 80, 320).reshape(1, 1, 320)
    one = torch.ones(1, 1, 1)
    inputs = {"u": 2 * torch.ones_like(logits), "delta": logits, "A": -torch.ones(320, 1), "B": one, "C": one}
    inputs["z"] = logits.flip(-1)
    exact = scan_with("reference")(**widened(inputs))
    error = (scan_with("numba")(**inputs) / exact - 1).abs()
    assert (error <= 5e-7 + 1.2e-7 * logits.abs()).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_nan_stays_in_its_channel_and_its_future(reverse):
    inputs = scan_inputs(40, torch.float32)
    inputs["delta"][0, 20, 3] = float("nan")
    y = scan_with("numba", reverse=reverse)(**inputs)
    expected = torch.zeros_like(y, dtype=torch.bool)
    expected[0, : 21 if reverse else None, 3] = True
    expected[0, : 0 if reverse else 20, 3] = False
    assert torch.equal(y.isnan(), expected)


def test_growing_states_overflow_to_infinity():
    inputs = scan_inputs(5, torch.float32) | dict.fromkeys(("z", "D", "delta_bias"))
    inputs |= {name: torch.ones_like(inputs[name]) for name in ("u", "delta", "B", "C")}
    inputs["A"] = 60 * torch.ones_like(inputs["A"])
    y = scan_with("numba")(**inputs)
    assert torch.equal(y.isposinf(), scan_with("reference")(**inputs).isposinf())
    assert y[:, :2].isfinite().all()
    assert y[:, -1].isposinf().all()


@pytest.mark.parametrize(
    ("dtype", "form", "words"),
    [
        (torch.float64, "time", "float32 only, got .*'u': 'torch.float64'.*: use 'chunked'"),
        (torch.bfloat16, "time", "float32 only, got .*'z': 'torch.bfloat16'.*: use 'chunked'"),
        (torch.float32, "grouped", r"B and C as \(batch, length, state\), got \(2, 5, 2, 16\).*: use 'chunked'"),
        (torch.float32, "fixed", r"B and C as \(batch, length, state\), got \(20, 16\).*: use 'chunked'"),
    ],
)
def test_what_it_does_not_take_is_named(dtype, form, words):
    with pytest.raises(NotImplementedError, match=words):
        scan_with("numba")(**scan_inputs(5, dtype, form=form))


def test_a_convolution_it_does_not_take_is_named():
    with pytest.raises(NotImplementedError, match=r"float32 only, got \{'weight': 'torch.float64'\}: use 'chunked'"):
        causal_conv1d(torch.zeros(1, 2, 3), torch.zeros(3, 4, dtype=torch.float64), backend="numba")


def test_absence_is_told_with_what_to_do(monkeypatch):
    assert numba_cpu.available(torch.device("cpu")) is None
    assert numba_cpu.available(torch.device("cuda")) == "its kernels are for the CPU"
    monkeypatch.setitem(sys.modules, "numba", None)
    numba_cpu._missing.cache_clear()
    try:
        assert "numba does not import (" in numba_cpu.available(torch.device("cpu"))
        assert "pip install numba" in numba_cpu.available(torch.device("cpu"))
    finally:
        numba_cpu._missing.cache_clear()


def test_numba_is_imported_at_the_first_use():
    code = "import sys, vmrepro.ops, vmrepro.ops.numba_cpu; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def _fresh_kernel():
    def kernel(x, y, first, stop):
        y[0, 0, 0] = x[0, 0, 0] + first + stop

    return kernel


def test_without_a_folder_for_its_cache_a_kernel_is_compiled_all_the_same(monkeypatch):
    def no_folder(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'kernel': no locator available")
        return numba.njit(*arguments, **options)

    monkeypatch.setattr(numba_vectors, "njit", no_folder)
    x, y = np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    numba_vectors.compiled(_fresh_kernel())(x, y, 2, 3)
    assert y.item() == 6
    monkeypatch.setattr(numba_vectors, "njit", lambda *_, **options: (_ for _ in ()).throw(RuntimeError("another error")))
    with pytest.raises(RuntimeError, match="another error"):
        numba_vectors.compiled(_fresh_kernel())


@pytest.mark.parametrize("changed", ["numba_vectors.py", "numba_conv.py"])
def test_a_kernel_on_disk_has_the_version_of_all_kernel_files(tmp_path, monkeypatch, changed):
    def name_on_disk():
        numba_vectors.compiled.cache_clear()
        return numba_vectors.compiled(numba_conv.conv_forward).__qualname__

    before = name_on_disk()
    assert name_on_disk() == before
    for file in Path(numba_vectors.__file__).parent.glob("numba_*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(numba_vectors, "__file__", str(tmp_path / "numba_vectors.py"))
    assert name_on_disk() == before
    (tmp_path / changed).write_bytes((tmp_path / changed).read_bytes() + b"#")
    assert name_on_disk() != before
    monkeypatch.undo()
    assert name_on_disk() == before
