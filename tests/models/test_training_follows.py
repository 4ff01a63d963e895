"""A model trained by a fast backend goes where the definition's goes: 200 steps on scanned digits, loss by loss."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from vmrepro import data
from vmrepro.models import create_model
from vmrepro.ops import available_backends
from vmrepro.specs.schema import DataSpec

STEPS = 200
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CASES = [
    ("numba", "cpu", False),
    pytest.param("cuda", "cuda", False, marks=gpu),
    pytest.param("cuda", "cuda", True, marks=gpu),
]


def losses(backend, device, half):
    """The training losses of a small model, the same start and batches for every backend."""
    torch.manual_seed(0)
    batches = data.build(DataSpec(name="digits", img_size=8, num_classes=10), 0, torch.device("cpu"))
    sizes = {"depth": 2, "embed_dim": 48} if device == "cpu" else {"depth": 6, "embed_dim": 192}
    model = create_model(
        "videomamba", **sizes, img_size=8, patch_size=2, in_chans=1, num_classes=10, drop_path_rate=0.0, backend=backend
    )
    model.to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    taken = []
    stream = itertools.chain.from_iterable(batches.train_batches(epoch, 32) for epoch in itertools.count())
    for x, y in itertools.islice(stream, STEPS):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x.to(device)).float(), y.to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        taken.append(float(loss.detach()))
    return torch.tensor(taken)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device", "half"), CASES)
def test_losses_follow_the_definition(backend, device, half):
    assert available_backends(device)[backend] is None
    ours, plain = losses(backend, device, half), losses("reference", device, half)
    assert plain[-20:].mean() < 0.5 * plain[:20].mean(), "the definition did not learn: nothing can be said"
    # Rounding grows step by step; where the losses part early, something else differs.
    assert (ours[:20] - plain[:20]).abs().max() < (5e-2 if half else 1e-4)
    smooth = [F.avg_pool1d(curve[None], 20)[0] for curve in (ours, plain)]
    apart = (smooth[0] - smooth[1]).abs()
    assert half or apart[:5].max() < 1e-4
    assert apart.max() < (0.15 if half else 0.05)
