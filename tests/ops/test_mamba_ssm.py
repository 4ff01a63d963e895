"""The public kernels behind our signatures: refused clearly where they are absent, near the definition where they are not."""

import pytest
import torch

from tests.ops.oracle import outputs_and_gradients, rms_error, scan_inputs, two_way_with, widened
from vmrepro import ops
from vmrepro.ops import BackendUnavailableError, available_backends

absent = available_backends("cuda" if torch.cuda.is_available() else "cpu")["mamba_ssm"]
installed = pytest.mark.skipif(absent is not None, reason=str(absent))
# Built with fast arithmetic by its authors.
BUDGET = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def test_absence_says_what_is_missing_or_where_it_runs(monkeypatch):
    assert "NVIDIA GPUs, not on device type 'cpu'" in available_backends("cpu")["mamba_ssm"]
    monkeypatch.setitem(__import__("sys").modules, "selective_scan_cuda", None)
    reason = available_backends("cuda")["mamba_ssm"]
    assert "selective_scan_cuda" in reason
    assert "pip install 'vmrepro[mamba]'" in reason
    with pytest.raises(BackendUnavailableError, match="needs mamba-ssm"):
        ops.resolve_backend("mamba_ssm", "cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dtype": torch.float64}, "float64"), ({"form": "grouped"}, r"B \(2, 4, 2, 16\)"), ({"form": "fixed"}, r"B \(20, 16\)")],
)
def test_what_the_kernels_do_not_take_is_refused(change, message):
    from vmrepro.ops import mamba_ssm

    with pytest.raises(NotImplementedError, match=message):
        mamba_ssm.selective_scan(**scan_inputs(4, change.pop("dtype", torch.float32), **change))
    with pytest.raises(NotImplementedError, match="float64"):
        mamba_ssm.selective_scan(**(half := scan_inputs(4, torch.float32)) | {"u": half["u"].double()})
    with pytest.raises(NotImplementedError, match=r"widths in \(2, 3, 4\), got torch\.float32 and 5"):
        mamba_ssm.causal_conv1d(torch.randn(1, 3, 4), torch.randn(4, 5))
    with pytest.raises(NotImplementedError, match="float64"):
        mamba_ssm.add_rms_norm(torch.randn(2, 4).double(), None, torch.ones(4), 1e-5)


@installed
@pytest.mark.parametrize("dtype", list(BUDGET))
@pytest.mark.parametrize("length", [1, 65, 2049])
def test_both_directions(length, dtype):
    one = scan_inputs(length, dtype, "near_one", channels=32)
    flat = {"z": one["z"]} | {f"{name}_{way}": one[name] for way in "fb" for name in ops.ScanInputs._fields}
    ours = outputs_and_gradients(two_way_with("mamba_ssm"), flat, "cuda")
    exact = outputs_and_gradients(two_way_with("chunked"), widened(flat))
    for name, want in exact.items():
        assert rms_error(ours[name], want) <= BUDGET[dtype], name


@installed
@pytest.mark.parametrize("reverse", [False, True])
def test_convolution_and_norm(reverse):
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=rng) for shape in ((2, 37, 16), (16, 4), (16,)))

    def conv(backend):
        return lambda **x: ops.causal_conv1d(**x, activation="silu", reverse=reverse, backend=backend)

    def norm(backend):
        return lambda **x: ops.add_rms_norm(**x, eps=1e-5, backend=backend)

    taps = {"x": x, "weight": weight, "bias": bias}
    for make, inputs in ((conv, taps), (norm, {"hidden": x, "residual": x.flip(1), "weight": bias})):
        ours = outputs_and_gradients(make("mamba_ssm"), inputs, "cuda")
        exact = outputs_and_gradients(make("reference"), widened(inputs))
        for name, want in exact.items():
            assert rms_error(ours[name], want) <= BUDGET[torch.float32], name
