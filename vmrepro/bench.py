"""How fast the operator and the model are, against their peers on the same device: ``python -m vmrepro.bench [--record]``.

Every backend is first compared with the float64 definition, outputs and gradients; one that is wrong ends the command. A GPU
takes about four minutes; without one only the CPU's row is measured. A peer that is not installed is listed as absent.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vmrepro.models import create_model
from vmrepro.ops import ScanInputs, available_backends, bidirectional_scan, candidates, selective_scan
from vmrepro.ops import bench as scans
from vmrepro.report import figures
from vmrepro.runs import efficiency, provenance
from vmrepro.specs.efficiency import CLASSES, DEIT_TI, AttentionSpec, Measurement
from vmrepro.specs.schema import SIZES, ModelSpec

FIGURE = "speed"
SCAN = (1, 1569, 384, 16)  # batch, length, channels, states of the check and of the CPU's row
MODEL_TOLERANCE = 1e-4  # relative, of a model's logits in float32
Call = Callable[[], Any]


@dataclass(frozen=True)
class Goal:
    """What is wanted of one piece of work: at least ``reach`` of a rate, at most of a time or a memory."""

    work: str
    unit: str
    reach: float
    rate: bool = False

    def line(self, ours: float, peers: dict[str, float | str]) -> dict[str, Any]:
        """A row of the table. peers: value by name, or in words why there is none; the best one is compared with."""
        measured = {name: value for name, value in peers.items() if not isinstance(value, str)}
        best = (max if self.rate else min)(measured, key=measured.get, default=None)
        worse, better = (None, None) if best is None else (measured[best], ours) if self.rate else (ours, measured[best])
        return {
            "work": self.work,
            "unit": self.unit,
            "ours": ours,
            "reach": self.reach,
            "met": ours >= self.reach if self.rate else ours <= self.reach,
            "peer": best,
            "peers": None if best is None else measured[best],
            "times_better": None if best is None else better / worse,
            "all_peers": "; ".join(
                f"{name}: {value if isinstance(value, str) else format(value, '.4g')}" for name, value in peers.items()
            ),
        }


def check(device: torch.device) -> None:
    """Compare every backend of the device with the definition, and the whole model; RuntimeError where one is wrong."""
    inputs = scans.make_inputs(*SCAN, str(device))
    for name, absent in available_backends(device).items():
        if absent is None and name != "reference":
            print(f"check {name}: largest relative error {scans.check(name, inputs):.1e}", flush=True)
    if device.type != "cuda":
        return
    x = torch.randn(2, 3, 2, 64, 64, device=device)
    logits = {}
    for backend in ("reference", "cuda"):
        torch.manual_seed(0)
        model = create_model("videomamba_ti", depth=4, img_size=64, num_frames=2, backend=backend).to(device)
        with torch.no_grad():
            logits[backend] = model(x)
    error = float((logits["cuda"] - logits["reference"]).norm() / logits["reference"].norm())
    if not error <= MODEL_TOLERANCE:
        raise RuntimeError(f"the model is not timed: its logits differ by {error:.1e}, allowed {MODEL_TOLERANCE:.0e}")
    print(f"check model: relative difference of logits {error:.1e}", flush=True)


def cpu_rows(threads: int) -> list[dict[str, Any]]:
    """The forward scan on the CPU: the fastest backend against the definition."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    inputs = scans.make_inputs(*SCAN, "cpu")
    times = {name: scans.measure(name, inputs, 15).forward * 1e3 for name in ("reference", *candidates("auto", "cpu"))}
    torch.set_num_threads(before)
    ours = min(times, key=times.get)
    goal = Goal(f"scan forward, CPU, {threads} threads, B1 D384 N16 L1569 ({ours})", "ms", times["reference"] / 20)
    return [goal.line(times.pop(ours), times)]


def scan_rows(device: torch.device) -> list[dict[str, Any]]:
    """Both directions at batch 128, forward and backward, and one direction of one long clip, in bf16."""
    wide, long = _draw(128, 384, 1569, device), _draw(1, 384, 12545, device)

    def times(timed: Callable[..., Call]) -> dict[str, float | str]:
        return {name: _or_why(lambda scan=scan: _milliseconds(timed(*scan), device)) for name, scan in SCANS.items()}

    rows = []
    for goal, timed in (
        (Goal("scan forward, both directions, B128 D384 N16 L1569", "ms", 0.95), lambda make, _: _forward(make(wide)[0])),
        (Goal("scan backward, both directions, B128 D384 N16 L1569", "ms", 4.5), lambda make, _: _backward(*make(wide))),
        (
            Goal("scan forward, one direction, B1 D384 N16 L12545, CUDA graph", "ms", 0.12),
            lambda _, one: efficiency.graphed(_forward(one(long))),
        ),
    ):
        found = times(timed)
        rows.append(goal.line(found.pop("ours"), found))
    return rows


def _draw(batch: int, channels: int, length: int, device: torch.device) -> list[Tensor]:
    """Seven inputs of each direction and the gate: streams in bf16, parameters in float32, all leaves."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, shift: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator, device=device) + shift).to(dtype).requires_grad_()

    def way() -> list[Tensor]:
        A = (-torch.rand(channels, 16, generator=generator, device=device) - 0.1).requires_grad_()
        streams = [normal(batch, length, channels), normal(batch, length, channels)]
        projections = [normal(batch, length, 16), normal(batch, length, 16)]
        return [*streams, A, *projections, normal(channels, dtype=A.dtype), normal(channels, dtype=A.dtype, shift=-2.0)]

    return [*way(), *way(), normal(batch, length, channels)]


def _two_ours(t: list[Tensor]) -> tuple[Call, list[Tensor]]:
    return lambda: [bidirectional_scan(ScanInputs(*t[:7]), ScanInputs(*t[7:14]), t[14], backend="cuda")], t


def _one_ours(t: list[Tensor]) -> Call:
    return lambda: selective_scan(*t[:6], t[14], t[6], delta_softplus=True, backend="cuda")


def _peer(t: list[Tensor]) -> tuple[Call, list[Tensor]]:
    """mamba-ssm's function in its own layout (batch, channels, length): two scans, without the flips and sums around them."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    turned = [s.detach().transpose(1, 2).contiguous().requires_grad_() if s.ndim == 3 else s for s in t]

    def scan(way: list[Tensor]) -> Tensor:
        return selective_scan_fn(*way[:6], z=turned[14], delta_bias=way[6], delta_softplus=True)

    return lambda: [scan(turned[:7]), scan(turned[7:14])], turned


def _one_peer(t: list[Tensor]) -> Call:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    turned = [s.detach().transpose(1, 2).contiguous() if s.ndim == 3 else s.detach() for s in t]
    return lambda: selective_scan_fn(*turned[:6], z=turned[14], delta_bias=turned[6], delta_softplus=True)


SCANS = {"ours": (_two_ours, _one_ours), "mamba-ssm": (_peer, _one_peer)}


def _forward(call: Call) -> Call:
    def forward() -> None:
        with torch.no_grad():
            call()

    return forward


def _backward(call: Call, leaves: list[Tensor]) -> Call:
    outputs = call()
    upstream = [torch.randn_like(out) for out in outputs]
    return lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)


def _or_why(measure: Callable[[], float]) -> float | str:
    try:
        return measure()
    except (ImportError, torch.OutOfMemoryError) as reason:
        return str(reason)[:90]


def _milliseconds(call: Call, device: torch.device) -> float:
    return statistics.median(efficiency.seconds_of(call, device, 0.5)) * 1e3


def _models(frames: int, **options) -> dict[str, Measurement]:
    """What is measured beside each other: ours, the same model on the public kernels, and fused joint attention."""
    model = ModelSpec(**SIZES["ti"], num_frames=frames, num_classes=CLASSES)
    joint = AttentionSpec(kind="joint_fused", num_frames=frames, img_size=224, **DEIT_TI)
    return {
        "ours": Measurement(subject="videomamba_cuda", model=model, backend="cuda", **options),
        "mamba-ssm kernels": Measurement(subject="videomamba_mamba_ssm", model=model, backend="mamba_ssm", **options),
        "joint attention, fused": Measurement(subject="joint_fused", model=joint, **options),
    }


def model_rows(device: torch.device) -> list[dict[str, Any]]:
    """VideoMamba-Ti at 224 pixels, inference and training: clips a second and peak memory."""
    rows = []
    for frames, batch, train, rate, memory in (
        (8, 128, False, 2840, 9.0),
        (64, 64, False, 360, 60.0),
        (8, 64, True, 780, 8.3),
        (64, 8, True, 100, 8.3),
    ):
        # A training step is captured, as the trainer does: launched one by one its kernels would wait for the host.
        found = {
            name: efficiency.measure(spec, device, batch) for name, spec in _models(frames, train=train, graph=train).items()
        }
        what = f"VideoMamba-Ti {'training step in a CUDA graph' if train else 'inference'}, {frames} frames, batch {batch}"
        speeds = {name: row["clips_per_s"] or row["status"][:90] for name, row in found.items()}
        # Of training all that is allocated counts, of inference what a clip adds to weights and input.
        key, unit, scale = ("peak_bytes", "GiB", 2**30) if train else ("bytes_per_clip", "MiB a clip", 2**20)
        sizes = {name: row["status"][:90] if row[key] is None else row[key] / scale for name, row in found.items()}
        rows.append(Goal(what, "clips/s", rate, rate=True).line(speeds.pop("ours"), speeds))
        rows.append(Goal(f"{what}, memory", unit, memory).line(sizes.pop("ours"), sizes))
    return rows


def latency_rows(device: torch.device) -> list[dict[str, Any]]:
    """One clip of eight frames, in milliseconds; ours in a CUDA graph, the public kernels as they are called today."""
    found: dict[str, float | str] = {}
    for name, spec in list(_models(8).items())[:2]:
        for way in ("eager", "CUDA graph"):

            def time(spec: Measurement = spec, way: str = way) -> float:
                call = efficiency.make_call(spec, efficiency.build(spec, device), 1, device)
                return _milliseconds(call if way == "eager" else efficiency.graphed(call), device)

            found[f"{name}, {way}"] = _or_why(time)
    ours, peer = found.pop("ours, CUDA graph"), found["mamba-ssm kernels, eager"]
    goal = Goal("VideoMamba-Ti inference, 8 frames, batch 1, CUDA graph", "ms", peer / 3 if isinstance(peer, float) else 0.0)
    return [goal.line(ours, found)]


def main(argv: list[str] | None = None) -> None:
    """Check, measure, print the table; with ``--record`` keep it under figures/speed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help="keep the table under figures/speed")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU's row (default: 2)")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check(torch.device("cpu"))
    rows = cpu_rows(options.threads)
    if device.type == "cuda":
        check(device)
        rows += scan_rows(device) + model_rows(device) + latency_rows(device)
    else:
        print("no NVIDIA GPU here: the rows of the GPU are not measured")
    table = pd.DataFrame(rows)
    print(table.drop(columns="all_peers").to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="-"))
    for line in rows:
        print(f"{line['work']}: {line['all_peers']}")
    if options.record:
        signed = provenance.collect(device, "auto", 1) | {"clocks": efficiency.clocks(device)}
        figures.save_numbers(
            FIGURE, "mini" if device.type == "cuda" else "cpu", table, {"claims": [], "runs": [{"id": FIGURE, **signed}]}
        )


if __name__ == "__main__":
    main()
