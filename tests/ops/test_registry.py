"""Names, absences and preferences; and that a backend with nothing but a scan has every operator."""

import subprocess
import sys
import types

import pytest
import torch

from tests.ops.oracle import outputs_and_gradients, scan_inputs, two_way_with
from vmrepro import ops
from vmrepro.ops import BackendUnavailableError, available_backends, reference, registry, resolve_backend


@pytest.fixture
def toy(monkeypatch):
    """A backend that has only a scan, and counts its calls; absent from CUDA devices."""
    module = types.ModuleType("toy_backend")
    module.calls = 0

    def selective_scan(*args, **kwargs):
        module.calls += 1
        return reference.selective_scan(*args, **kwargs)

    module.selective_scan = selective_scan
    module.available = lambda device: "it is a toy" if device.type == "cuda" else None
    monkeypatch.setitem(sys.modules, "toy_backend", module)
    monkeypatch.setitem(registry.BACKENDS, "toy", "toy_backend")
    return module


def test_every_backend_is_listed_with_the_reason_of_its_absence():
    listed = available_backends("cpu")
    assert listed.keys() == registry.BACKENDS.keys()
    assert listed["reference"] is None
    assert listed["chunked"] is None
    assert isinstance(listed["cuda"], str)
    assert available_backends() == available_backends("cuda" if torch.cuda.is_available() else "cpu")


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown backend 'chunky': the known ones are auto, reference, chunked, numba, cuda"):
        ops.selective_scan(**scan_inputs(2, torch.float32), backend="chunky")


def test_an_absent_backend_is_refused_with_its_reason(toy, monkeypatch):
    with pytest.raises(BackendUnavailableError, match="'toy' cannot run on cuda: it is a toy"):
        resolve_backend("toy", "cuda")
    with pytest.raises(BackendUnavailableError, match="'cuda' cannot run on cpu"):
        ops.selective_scan(**scan_inputs(2, torch.float32), backend="cuda")
    monkeypatch.setitem(registry.BACKENDS, "gone", "vmrepro.ops.gone")
    assert "No module named 'vmrepro.ops.gone'" in available_backends("cpu")["gone"]


def test_auto_takes_the_first_present(toy, monkeypatch):
    assert resolve_backend("auto", "cpu") == "numba"
    assert resolve_backend("auto", "meta") == "chunked"
    monkeypatch.setitem(registry.PREFERENCE, "cuda", ("toy", "chunked"))
    monkeypatch.setitem(registry.PREFERENCE, "cpu", ("toy", "chunked"))
    assert resolve_backend("auto", "cuda") == "chunked"
    assert resolve_backend("auto", "cpu") == "toy"


def test_auto_goes_on_where_a_backend_does_not_take_the_inputs(toy, monkeypatch):
    def refuse(*args, **kwargs):
        toy.calls += 1
        raise NotImplementedError("the toy takes nothing")

    monkeypatch.setattr(toy, "selective_scan", refuse)
    monkeypatch.setitem(registry.PREFERENCE, "cpu", ("toy", "reference"))
    inputs = scan_inputs(3, torch.float64)
    assert torch.equal(ops.selective_scan(**inputs), reference.selective_scan(**inputs))
    assert toy.calls == 1
    with pytest.raises(NotImplementedError, match="the toy takes nothing"):
        ops.selective_scan(**inputs, backend="toy")


def test_a_backend_is_imported_at_its_first_use():
    names = [module for name, module in registry.BACKENDS.items() if name != "reference"]
    code = f"import sys, vmrepro.ops; print([name for name in {names} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_a_backend_lacks_is_composed(toy):
    one = scan_inputs(5, torch.float32)
    flat = {"z": one["z"]} | {f"{name}_{way}": one[name] for way in "fb" for name in ops.ScanInputs._fields}
    ours, exact = (outputs_and_gradients(two_way_with(name), flat) for name in ("toy", "reference"))
    assert toy.calls == 2
    assert all(torch.equal(ours[name], exact[name]) for name in exact)
    x, weight = one["u"], one["A"][:, :4]
    for name in ("toy", "reference"):
        u_f, u_b = ops.bidirectional_conv(x, weight, None, weight, None, backend=name)
        assert torch.equal(u_f, ops.causal_conv1d(x, weight, activation="silu", backend="reference"))
        assert torch.equal(u_b, ops.causal_conv1d(x, weight, activation="silu", reverse=True, backend=name))
    assert torch.equal(
        ops.add_rms_norm(x, None, one["D"], 1e-5, backend="toy")[0], reference.add_rms_norm(x, None, one["D"], 1e-5)[0]
    )
