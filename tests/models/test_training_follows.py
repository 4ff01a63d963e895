"""A model trained by a fast backend goes where the definition's goes: 200 steps on scanned digits, loss by loss.

Training multiplies every rounding, on a GPU until late losses differ by whole percents. So the definition is trained again from
starts a rounding beside its own, and how far those runs part from it is the yardstick of how far a backend may.
"""

import functools
import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from vmrepro import data
from vmrepro.models import create_model
from vmrepro.ops import available_backends
from vmrepro.specs.schema import DataSpec

STEPS, WINDOW = 200, 20


class Small(NamedTuple):
    depth: int
    width: int
    nudged: int  # other starts of the definition


SMALL = {"cpu": Small(2, 48, 2), "cuda": Small(6, 192, 7)}
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CASES = [
    ("numba", "cpu", False),
    ("chunked", "cpu", False),
    pytest.param("cuda", "cuda", False, marks=gpu),
    pytest.param("cuda", "cuda", True, marks=gpu),
]


def small_model(backend: str, device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}
    shape |= {"depth": SMALL[device].depth, "embed_dim": SMALL[device].width}
    return create_model("videomamba", **shape, drop_path_rate=0.0, backend=backend).to(device).train()


def train(losses_of, parameters: list[Tensor], device: str, half: bool) -> tuple[Tensor, Tensor]:
    """Losses (copies, steps) and gradient norms (copies, steps, parameters), the same batches for every backend.

    losses_of: the loss of each copy, (copies,), for images and labels; parameters: (copies, ...) each. Or a single loss, (),
    and parameters without copies.
    """
    batches = data.build(DataSpec(name="digits", img_size=8, num_classes=10), 0, torch.device("cpu"))
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    losses, norms = [], []
    stream = itertools.chain.from_iterable(batches.train_batches(epoch, 32) for epoch in itertools.count())
    for x, y in itertools.islice(stream, STEPS):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = losses_of(x.to(device), y.to(device))
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
        losses.append(loss.detach().view(-1))
        norms.append(torch.stack([p.grad.reshape(len(losses[-1]), -1).norm(dim=1) for p in parameters], dim=1))
    return torch.stack(losses, dim=1).double().cpu(), torch.stack(norms, dim=1).double().cpu()


@functools.cache
def definition(device: str, half: bool) -> tuple[Tensor, Tensor]:
    """The curves of the definition, followed by those of the same with every start weight one rounding up or down."""
    model = small_model("reference", device)
    rounding = 2**-8 if half else 2**-23
    copies = {}
    for name, parameter in model.named_parameters():
        signs = 2 * torch.randint(2, (1 + SMALL[device].nudged, *parameter.shape)).to(device) - 1
        signs[0] = 0
        copies[name] = (parameter.detach() * (1 + rounding * signs)).requires_grad_()

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x,)).float(), y)

    losses_of = functools.partial(torch.vmap(loss, in_dims=(0, None, None)), copies)
    return train(losses_of, list(copies.values()), device, half)


def apart(losses: Tensor, plain: Tensor) -> Tensor:
    """The root mean square of the difference in each window of steps: (..., steps) to (..., windows)."""
    return (losses - plain).unflatten(-1, (-1, WINDOW)).square().mean(-1).sqrt()


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "device", "half"), CASES)
def test_training_follows_the_definition(backend, device, half):
    assert available_backends(device)[backend] is None
    model = small_model(backend, device)
    ours, norms = train(lambda x, y: F.cross_entropy(model(x).float(), y), list(model.parameters()), device, half)
    curves, curves_norms = definition(device, half)
    plain, plain_norms = curves[0], curves_norms[0]
    assert plain[-WINDOW:].mean() < 0.5 * plain[:WINDOW].mean(), "the definition did not learn: nothing can be said"

    # Rounding grows step by step; where the losses part early, something else differs.
    early = 5e-2 if half else 1e-4
    assert (ours[0] - plain)[:WINDOW].abs().max() < early
    smooth = F.avg_pool1d(torch.cat([ours, curves])[:, None], WINDOW, 1)[:, 0]
    drift = (smooth[0] - smooth[1]).abs()
    nudged = (smooth[1:, None] - smooth[None, 1:]).abs().amax((0, 1)).cummax(0).values
    assert half or drift[: 100 - WINDOW + 1].max() < early
    late = 0.15 if half else 0.05
    yardstick, far = apart(curves[1:], plain).amax(0).cummax(0).values, apart(ours[0], plain)
    print(f"apart {far.tolist()}\nthe definition from itself {yardstick.tolist()}")
    print(
        f"smoothed, at most {drift.max():.3f} apart, two definitions {nudged[-1]:.3f}; allowed is half as much again, or {late}"
    )
    # On a GPU the definition itself goes farther at the end. Of 16 starts in bf16 on an H200, 22 % of the pairs of definitions
    # went farther than 0.15, and 14 % of those of a definition and the CUDA backend (ops/NOTES.md).
    assert (drift < (1.5 * nudged).clamp(min=late)).all()

    # With another start, another backend that is right went up to 2.4 times as far as the farthest of three nudged definitions
    # had gone until then (H100, both types). To that come a few roundings of a loss.
    assert (far <= 3 * yardstick + 1e-6).all()

    # AdamW hides a wrong factor of a gradient from the losses.
    allowed = 3 * (curves_norms[1:] - plain_norms)[:, :WINDOW].norm(dim=1).amax(0) + early * plain_norms[:WINDOW].norm(dim=0)
    far = (norms[0] - plain_norms)[:WINDOW].norm(dim=0)
    assert [name for (name, _), i, most in zip(model.named_parameters(), far, allowed, strict=True) if not i <= most] == []
