"""Every kernel of the CUDA backend once, on small inputs, for a checker of memory and races; no test module:
``compute-sanitizer --tool memcheck --error-exitcode 1 python tests/ops/sanitize.py``, then ``--tool racecheck``, ``synccheck``.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vmrepro.models import create_model
from vmrepro.ops import ScanInputs, bidirectional_scan, causal_conv1d, selective_scan
from vmrepro.ops.cuda import scan

# Lengths around the chunks, one long enough that time is split; channels that no block divides.
SHAPES = ((1, 1, 8, 16), (2, 65, 24, 16), (1, 197, 40, 8), (1, 2500, 32, 16), (1, 66, 16, 32))


def inputs(batch: int, length: int, channels: int, state: int, dtype: torch.dtype) -> ScanInputs:
    """Random operands on the GPU that want gradients."""
    wide = (batch, length, channels)
    u, delta = (torch.randn(wide, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
    A = -torch.rand(channels, state, device="cuda") - 0.1
    B, C = (torch.randn(batch, length, state, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
    D, bias = (torch.randn(channels, device="cuda", requires_grad=True) for _ in range(2))
    return ScanInputs(u, delta, A.requires_grad_(), B, C, D, bias)


def main() -> None:
    torch.manual_seed(0)
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            forward, backward = inputs(*shape, dtype), inputs(*shape, dtype)
            z = torch.randn_like(forward.u, requires_grad=True)
            for scan.SPREAD_FILL in (0, 1):  # where time is cut, the kernel that spreads channels over lanes first
                bidirectional_scan(forward, backward, z, backend="cuda").float().square().sum().backward()
            u, delta, A, B, C, D, bias = forward
            y = selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True, reverse=True, backend="cuda")
            y.float().square().sum().backward()
            weight = torch.randn(shape[2], 4, device="cuda", requires_grad=True)
            for reverse in (False, True):
                conv = causal_conv1d(u, weight, bias, activation="silu", reverse=reverse, backend="cuda")
                conv.float().square().sum().backward()
    for frames, side in ((2, 32), (40, 128)):
        model = create_model("videomamba", depth=2, embed_dim=64, num_frames=frames, img_size=side, num_classes=4, backend="cuda")
        model.cuda().train()
        clip = torch.randn(1, 3, frames, side, side, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            model(clip).float().square().sum().backward()
            with torch.no_grad():
                model.eval()(clip)
    torch.cuda.synchronize()
    print("all kernels ran")


if __name__ == "__main__":
    main()
