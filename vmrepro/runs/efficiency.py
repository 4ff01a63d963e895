"""How fast a model is and how much memory it takes: measured now, on this device, and kept with where it was measured."""

from __future__ import annotations

import contextlib
import gc
import itertools
import statistics
import subprocess
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmrepro import store
from vmrepro.models import VideoMamba, attention
from vmrepro.ops import BackendUnavailableError, resolve_backend
from vmrepro.runs import distributed, provenance
from vmrepro.specs.efficiency import MOST_CLIPS, MOST_FRAMES, Measurement
from vmrepro.specs.schema import ModelSpec, Tier

WARM_UP = 2  # calls that are not counted
FEWEST, MOST = 3, 30  # that are
ROOM = 0.85  # of the device's memory that a batch may be expected to take


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive at once; ``peak`` is the most there were.

    For CPUs, whose allocator keeps no count. Without gradients only, since it does not see what autograd holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}  # tensors alive, by their storage
        self.bytes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor, given)
        self.peak = max(self.peak, sum(self.bytes.values()))
        return results

    def _count(self, tensor: torch.Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in given and key not in self.users:
            return  # a view of something made outside
        self.users[key] = self.users.get(key, 0) + 1
        self.bytes[key] = storage.nbytes()
        weakref.finalize(tensor, self._forget, key)

    def _forget(self, key: int) -> None:
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key], self.bytes[key]


def seconds_of(call: Callable[[], Any], device: torch.device, budget: float) -> list[float]:
    """How long each of some calls takes, after a warm-up; as many as fit ``budget`` seconds, at least three.

    On a GPU they are queued one behind the other, so that the host's time shows only where it is what the GPU waits for.
    """
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        taken = [_seconds(call)]
        while len(taken) < FEWEST or (len(taken) < MOST and sum(taken) < budget):
            taken.append(_seconds(call))
        return taken
    torch.cuda.synchronize(device)
    one = _seconds(lambda: (call(), torch.cuda.synchronize(device)))
    count = max(FEWEST, min(MOST, int(budget / one)))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1e3 for start, end in itertools.pairwise(marks)]


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most memory that a call takes above what is held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    with PeakMemory() as memory:
        call()
    return memory.peak


def graphed(call: Callable[[], Any]) -> Callable[[], None]:
    """The call as a CUDA graph: the same work on the same memory, without the gaps between its launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def build(spec: Measurement, device: torch.device) -> nn.Module:
    """The model, freshly initialised on the device; BackendUnavailableError or ImportError where something is absent."""
    torch.manual_seed(0)
    if isinstance(spec.model, ModelSpec):
        resolve_backend(spec.backend or "auto", device)
        model: nn.Module = VideoMamba(spec.model, backend=spec.backend or "auto")
    else:
        model = attention.build(spec.model)
    return model.to(device).train(spec.train)


def make_call(spec: Measurement, model: nn.Module, batch: int, device: torch.device) -> Callable[[], None]:
    """A forward pass of ``batch`` random clips, or a step of fused AdamW on them; bf16 by autocast."""
    side, frames = spec.model.img_size, spec.model.num_frames
    half = spec.precision == "bf16"
    x = torch.randn(batch, 3, frames, side, side, device=device, dtype=torch.bfloat16 if half else torch.float32)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=half)
    if not spec.train:

        def forward() -> None:
            with torch.no_grad(), cast:
                model(x)

        return forward
    fast = device.type == "cuda"
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fast, capturable=fast)
    targets = torch.zeros(batch, dtype=torch.long, device=device)

    def step() -> None:
        with cast:
            loss = functional.cross_entropy(model(x).float(), targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def measure(spec: Measurement, device: torch.device, batch: int) -> dict[str, Any]:
    """One row: clips a second with the quartiles of the repeats, and memory.

    bytes_per_clip: above weights and input (and, training, the optimiser's state). peak_bytes: with these, on a GPU.
    ``status`` is "ok", "out of memory", or why the model cannot be built here; numbers are None unless it is "ok".
    """
    row: dict[str, Any] = {
        "subject": spec.subject,
        "frames": spec.model.num_frames,
        "tokens": spec.model.length,
        "batch": batch,
        "largest": spec.batch is None,
        "train": spec.train,
        "precision": spec.precision,
        "status": "ok",
    }
    numbers = dict.fromkeys(("clips_per_s", "low", "high", "repeats", "bytes_per_clip", "peak_bytes"))
    gc.collect()  # what a model before this one left
    _release(device)
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    try:
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(_release, device)
            call = make_call(spec, build(spec, device), batch, device)
            call()
            taken = peak_bytes(call, device)
            peak = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else None
            times = seconds_of(graphed(call) if spec.graph and device.type == "cuda" else call, device, spec.seconds)
            del call
    except torch.OutOfMemoryError:
        return row | numbers | {"status": "out of memory"}
    except (BackendUnavailableError, ImportError) as reason:
        return row | numbers | {"status": str(reason)}
    first, middle, last = statistics.quantiles(times, n=4)
    speeds = {"clips_per_s": batch / middle, "low": batch / last, "high": batch / first}
    return row | speeds | {"repeats": len(times), "bytes_per_clip": taken / batch, "peak_bytes": peak}


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_all(specs: Sequence[Measurement], device: torch.device) -> list[dict[str, Any]]:
    """A row for each; the largest batch is chosen by the memory that the same model took before, or found by halving."""
    rows: list[dict[str, Any]] = []
    for spec in specs:
        batch = spec.batch or _largest(spec, rows, device)
        row = measure(spec, device, batch)
        while row["status"] == "out of memory" and spec.batch is None and batch > 1:
            batch //= 2
            row = measure(spec, device, batch)
        rows.append(row)
        speed = (
            ""
            if row["clips_per_s"] is None
            else f" {row['clips_per_s']:.4g} clips/s, {row['bytes_per_clip'] / 2**20:.4g} MiB a clip"
        )
        print(f"{spec.subject}, {row['frames']} frames, batch {batch}: {row['status']}{speed}", flush=True)
    return rows


def _largest(spec: Measurement, rows: list[dict[str, Any]], device: torch.device) -> int:
    most = max(1, min(MOST_CLIPS, MOST_FRAMES // spec.model.num_frames))
    same = [row for row in rows if (row["subject"], row["frames"]) == (spec.subject, spec.model.num_frames)]
    if device.type != "cuda" or not same:
        return most
    if same[-1]["status"] != "ok":
        return max(1, same[-1]["batch"] // 2)
    room = ROOM * torch.cuda.get_device_properties(device).total_memory / same[-1]["bytes_per_clip"]
    return max(1, min(most, 1 << (int(room).bit_length() - 1)))


def run(figure: str, specs: Sequence[Measurement], tier: Tier, device: str = "auto") -> store.Record:
    """The record of a figure's measurements on this kind of device: the one in the store if there is one, else made now.

    Smoke is measured on the CPU unless told otherwise. RuntimeError for a device that is absent, as ``runner.run`` raises.
    """
    place = distributed.join("cpu" if device == "auto" and tier == "smoke" else device).device
    threads = torch.get_num_threads()
    if place.type == "cpu":
        torch.set_num_threads(1)  # other processes disturb one thread least
    try:
        return _record(figure, specs, tier, place)
    finally:
        torch.set_num_threads(threads)


def _record(figure: str, specs: Sequence[Measurement], tier: Tier, device: torch.device) -> store.Record:
    where = provenance.describe_device(device)
    spec = {"experiment": {"id": figure, "tier": tier, "measurements": [asdict(s) for s in specs]}, "seed": 0, "device": where}
    identifier = store.run_id(f"{figure}-{tier}", spec, 0)
    if (record := store.read(identifier)) is not None:
        print(f"{identifier}: reused, measured on {where['name']}")
        return record
    with store.claim(identifier) as folder:
        if store.read(identifier) is None:
            store.write_json(folder / "spec.json", spec)
            began = time.perf_counter()
            store.write_metrics(folder, measure_all(specs, device))
            signed = provenance.collect(device, "auto", 1) | {
                "backend": "as each subject says",
                "seed": 0,
                "clocks": clocks(device),
            }
            signed |= {"wall_seconds": round(time.perf_counter() - began, 2)}
            store.write_json(folder / "provenance.json", signed)
    return store.read(identifier)


def clocks(device: torch.device) -> str | None:
    """Clocks and driver of a GPU, as nvidia-smi gives them; None on a CPU, or where it cannot be asked."""
    if device.type != "cuda":
        return None
    fields = "clocks.sm,clocks.max.sm,clocks.mem,driver_version"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={device.index or 0}"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return ", ".join(
            f"{name} {value}" for name, value in zip(fields.split(","), answer.stdout.strip().split(", "), strict=False)
        )
    return None
