"""What only the chunked scan has: chunks, a backward of its own, and little memory. Its numbers are judged in test_init.py."""

import functools

import pytest
import torch

from tests.ops.oracle import outputs_and_gradients, rms_error, scan_inputs, scan_with
from vmrepro.ops import chunked

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def chunks_of_three(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_NUMBERS", 0)
    monkeypatch.setattr(chunked, "MIN_STEPS", 3)


@pytest.mark.usefixtures("chunks_of_three")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["time", "grouped", "fixed"])
def test_gradients_by_finite_differences(form, reverse):
    inputs = scan_inputs(7, torch.float64, channels=4, state=2, form=form)

    def call(*values):
        named = dict(zip(inputs, values, strict=True))
        return chunked.selective_scan(**named, delta_softplus=True, reverse=reverse, return_last_state=True)

    assert torch.autograd.gradcheck(call, [tensor.requires_grad_() for tensor in inputs.values()])


@pytest.mark.usefixtures("chunks_of_three")
@pytest.mark.parametrize("output", [0, 1])
def test_gradient_of_one_output_alone(output):
    inputs = scan_inputs(8, torch.float64)
    unread = {name: inputs.pop(name) for name in (("C", "D", "z") if output == 1 else ())}

    def call(scan, **leaves):
        return scan(**leaves, **unread)[output]

    ours, exact = (
        outputs_and_gradients(functools.partial(call, scan_with(name, return_last_state=True)), inputs)
        for name in ("chunked", "reference")
    )
    assert max(rms_error(ours[name], exact[name]) for name in exact) < 1e-14


def test_no_second_derivative():
    inputs = {name: tensor.requires_grad_() for name, tensor in scan_inputs(3, torch.float64).items()}
    (du,) = torch.autograd.grad(scan_with("chunked")(**inputs).sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        du.sum().backward()


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 100, 1569])
@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_partition_time_in_the_order_of_the_walk(monkeypatch, length, reverse):
    monkeypatch.setattr(chunked, "CHUNK_NUMBERS", 12 * 2 * 6)
    sequence, A = torch.zeros(length, 2, 1, 1, 3), torch.zeros(1, 2, 3)
    chunks = chunked._Replay(sequence, sequence, A, torch.zeros(length, 2, 1, 2, 1), reverse).chunks
    steps = [t for chunk in (chunks[::-1] if reverse else chunks) for t in range(chunk.start, chunk.stop)]
    assert steps == list(range(length))
    assert max(chunk.stop - chunk.start for chunk in chunks) <= 1.5 * 12


def test_what_is_kept_for_the_backward_pass_is_small():
    """A few sequences (batch, length, channels), where autograd would keep several times the state for each of them."""
    length, channels, state = 1000, 64, 64
    inputs = scan_inputs(length, torch.float32, channels=channels, state=state)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = chunked.selective_scan(**{name: tensor.requires_grad_() for name, tensor in inputs.items()}, delta_softplus=True)
    sequence = y.nbytes
    assert 2 * sequence < sum(kept.values()) < 20 * sequence < state * sequence / 3
