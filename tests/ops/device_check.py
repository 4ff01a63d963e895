"""Checks and times the CUDA backend on the GPU at hand; no test module, run it there: ``python tests/ops/device_check.py OUT``.

Results go to OUT/check.json and, as a table, to stdout. With ``--profile`` it only runs the large scan forward and backward once,
for a profiler.
"""

import argparse
import json
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vmrepro.ops import chunked, cuda, reference
from vmrepro.ops.cuda import scan
from vmrepro.ops.reference import ScanInputs

GPU = torch.device("cuda")
LENGTHS = (1, 2, 17, 63, 64, 65, 197, 1569, 12545)
# step-size logit shift, log of the largest decay rate: typical, decay near one, fast decay
DECAYS = {"typical": (-1.0, 1.0), "slow": (-7.0, -2.0), "fast": (2.0, 3.0)}
# Relative RMS error; 16-bit types round each output, and the states that the backward pass replays from.
BUDGET = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
TIMED = (
    (128, 384, 1569),
    (256, 1152, 65),
    (256, 768, 17),
    (64, 384, 12545),
    (32, 1152, 1569),
    (8, 384, 1569),
    (8, 384, 12545),
    (1, 384, 12545),
)
NAMES = [f"{n}_{way}" for way in "fb" for n in ScanInputs._fields] + ["z"]


def draw(batch, length, channels, state=16, dtype=torch.bfloat16, decay="typical", seed=0, grad=True):
    """Inputs of both directions and the gate, as strided slices of wider buffers, drawn on the CPU unless they are large."""
    device = GPU if batch * length * channels > 1e7 else torch.device("cpu")
    g = torch.Generator(device).manual_seed(seed)
    shift, rate = DECAYS[decay]

    def normal(*shape):
        return torch.randn(*shape, generator=g, device=device)

    def leaf(t, to=torch.float32):
        t = t.to(GPU, to)
        return t.requires_grad_() if grad else t

    def direction():
        wide = normal(batch, length, 8 + 2 * state).to(GPU, dtype)
        B, C = wide[..., 8 : 8 + state].detach(), wide[..., 8 + state :].detach()
        B, C = (B.requires_grad_(), C.requires_grad_()) if grad else (B, C)
        u, delta = leaf(normal(batch, length, channels), dtype), leaf(normal(batch, length, channels) + shift, dtype)
        A = leaf(-torch.exp(torch.rand(channels, state, generator=g, device=device) * rate))
        return ScanInputs(u, delta, A, B, C, leaf(normal(channels)), leaf(normal(channels) * 0.5))

    xz = normal(batch, length, 2 * channels).to(GPU, dtype)
    z = xz[..., channels:].detach()
    return direction(), direction(), z.requires_grad_() if grad else z


def exact(forward, backward, z, dy):
    wide = [t.detach().double().requires_grad_() for t in (*forward, *backward, z)]
    y = sum(
        reference.selective_scan(u, d, A, B, C, D, None, bias, delta_softplus=True, reverse=reverse)
        for (u, d, A, B, C, D, bias), reverse in ((wide[:7], False), (wide[7:14], True))
    )
    y = y * F.silu(wide[14])
    return y.detach(), torch.autograd.grad(y, wide, dy.double())


def error(ours, true):
    return ((ours.double() - true).norm() / true.norm().clamp_min(1e-12)).item()


def check_scan(record, lengths=LENGTHS):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for length in lengths:
            for decay in DECAYS:
                if length >= 1569 and (decay == "fast" or dtype == torch.float16):
                    continue
                if length > 1569 and decay != "typical":
                    continue
                check_one_scan(record, dtype, length, 201 if length == 65 else 72, decay)
    # Few channels: above, time was cut in parts where it is long enough.
    shortest, scan.MIN_SPLIT_SEGMENTS = scan.MIN_SPLIT_SEGMENTS, 1 << 30
    for dtype in (torch.float32, torch.bfloat16):
        check_one_scan(record, dtype, 1569, 72, "slow", "uncut")
    scan.MIN_SPLIT_SEGMENTS = shortest
    check_spread(record)


def check_spread(record):
    """The kernels for few long sequences, with fewer channels than they are meant for."""
    launch, fill, launched = scan._launch, scan.SPREAD_FILL, []
    scan._launch, scan.SPREAD_FILL = lambda file, *given: launched.append(file) or launch(file, *given), 0
    for length, decay in ((197, "fast"), (1569, "typical"), (1569, "slow"), (12545, "typical")):
        check_one_scan(record, torch.bfloat16, length, 72, decay, "spread")
    forward, backward, z = draw(2, 1569, 72, grad=False)
    forward.u[0, 700, 3], backward.u[1, 700, 3] = torch.nan, torch.nan
    y = cuda.bidirectional_scan(forward, backward, z).isnan()
    lost = int((~y[0, 700:, 3]).sum() + (~y[1, :701, 3]).sum())
    record("spread, NaN stays in a state", lost == 0, lost=lost)
    scan._launch, scan.SPREAD_FILL = launch, fill
    runs = [launched.count(name) for name in ("scan_spread.cu", "scan_spread_backward.cu")]
    record("spread, passes forward and back", runs == [13, 8], forward=runs[0], back=runs[1])


def check_one_scan(record, dtype, length, channels, decay, label=""):
    forward, backward, z = draw(2, length, channels, 16, dtype, decay, seed=length)
    y = cuda.bidirectional_scan(forward, backward, z)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(GPU, dtype)
    leaves = [*forward, *backward, z]
    grads = torch.autograd.grad(y, leaves, dy)
    again = cuda.bidirectional_scan(forward, backward, z)
    same = torch.equal(y, again) and all(map(torch.equal, grads, torch.autograd.grad(again, leaves, dy)))
    true_y, true_grads = exact(forward, backward, z, dy)
    errors = {"y": error(y, true_y)} | {n: error(a, b) for n, a, b in zip(NAMES, grads, true_grads, strict=True)}
    if length == 1:
        errors = {n: e for n, e in errors.items() if not n.startswith("A")}  # the gradient is exactly zero
    with torch.no_grad():
        plain = error(cuda.bidirectional_scan(forward, backward, z), true_y)
    name, worst = max(errors.items(), key=lambda item: item[1])
    ok = same and worst < BUDGET[dtype] and plain < BUDGET[dtype]
    record(f"scan {dtype} L{length} D{channels} {decay} {label}", ok, y=errors["y"], worst=worst, where=name, same_bits=same)


def check_states(record):
    for state in (8, 32, 64):
        for dtype in (torch.float32, torch.bfloat16):
            forward, _, z = draw(2, 37, 72, state, dtype, seed=state)
            y, last = cuda.selective_scan(
                *forward[:6], z, forward[6], delta_softplus=True, reverse=state == 32, return_last_state=True
            )
            leaves = [*forward, z]
            dy, dlast = torch.randn_like(y), torch.randn_like(last)
            grads = torch.autograd.grad([y, last], leaves, [dy, dlast])
            wide = [t.detach().double().requires_grad_() for t in leaves]
            true = reference.selective_scan(
                *wide[:6], wide[7], wide[6], delta_softplus=True, reverse=state == 32, return_last_state=True
            )
            true_grads = torch.autograd.grad(true, wide, [dy.double(), dlast.double()])
            worst = max(error(a, b) for a, b in zip((y, last, *grads), (*true, *true_grads), strict=True))
            record(f"one direction, N{state} {dtype}", worst < BUDGET[dtype], worst=worst)


def check_long(record):
    """Few channels and a long sequence, no gradient: where a kernel may split time."""
    forward, backward, z = draw(1, 12545, 384, dtype=torch.float32, grad=False)
    true = chunked.selective_scan(*forward[:6], z, forward[6], delta_softplus=True)
    worst = error(cuda.selective_scan(*forward[:6], z, forward[6], delta_softplus=True), true.double())
    record("long, one direction, float32 against chunked", worst < 1e-4, worst=worst)
    both = chunked.selective_scan(*backward[:6], None, backward[6], delta_softplus=True, reverse=True)
    both = (both + chunked.selective_scan(*forward[:6], None, forward[6], delta_softplus=True)) * F.silu(z)
    worst = error(cuda.bidirectional_scan(forward, backward, z), both.double())
    record("long, two directions, float32 against chunked", worst < 1e-4, worst=worst)


def check_fused(record):
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    for dtype in (torch.float32, torch.bfloat16):
        for length, channels, width in ((1, 8, 4), (197, 384, 4), (65, 201, 3)):
            x = normal(2, length, 2 * channels).to(GPU, dtype)[..., :channels].detach().requires_grad_()
            taps = [normal(*s).to(GPU).requires_grad_() for s in ((channels, width), (channels,)) * 2]
            out = cuda.bidirectional_conv(x, *taps)
            dout = [torch.randn_like(o) for o in out]
            wide = [t.detach().double().requires_grad_() for t in (x, *taps)]
            true = (
                reference.causal_conv1d(*wide[:3], activation="silu"),
                reference.causal_conv1d(wide[0], *wide[3:], activation="silu", reverse=True),
            )
            pairs = zip(
                (*out, *torch.autograd.grad(out, [x, *taps], dout)),
                (*true, *torch.autograd.grad(true, wide, [d.double() for d in dout])),
                strict=True,
            )
            worst = max(error(a, b) for a, b in pairs)
            record(f"conv {dtype} L{length} D{channels} W{width}", worst < BUDGET[dtype], worst=worst)
            for way, reverse in enumerate((False, True)):
                leaves, given = [x, *taps[2 * way : 2 * way + 2]], [wide[0], *wide[2 * way + 1 : 2 * way + 3]]
                one = cuda.causal_conv1d(*leaves, activation="silu", reverse=reverse)
                grads = torch.autograd.grad(one, leaves, dout[way])
                true_one = reference.causal_conv1d(*given, activation="silu", reverse=reverse)
                true_grads = torch.autograd.grad(true_one, given, dout[way].double())
                worst = max(error(a, b) for a, b in zip((one, *grads), (true_one, *true_grads), strict=True))
                record(f"one conv {dtype} L{length} D{channels} {reverse=}", worst < BUDGET[dtype], worst=worst)
        for rows, channels in ((1, 192), (1000, 576), (77, 37)):
            leaves = [normal(2, rows, channels).to(GPU, dtype), normal(2, rows, channels).to(GPU), normal(channels).to(GPU)]
            leaves = [t.requires_grad_() for t in leaves]
            out = cuda.add_rms_norm(*leaves, 1e-5)
            dout = [torch.randn_like(o) for o in out]
            wide = [t.detach().double().requires_grad_() for t in leaves]
            true = reference.add_rms_norm(*wide, 1e-5)
            pairs = zip(
                (*out, *torch.autograd.grad(out, leaves, dout)),
                (*true, *torch.autograd.grad(true, wide, [d.double() for d in dout])),
                strict=True,
            )
            worst = max(error(a, b) for a, b in pairs)
            record(f"norm {dtype} {rows} x {channels}", worst < BUDGET[dtype], worst=worst)


def check_graph(record):
    """Forward and backward replayed from a CUDA graph on new data give what a plain call gives."""
    forward, backward, z = draw(4, 65, 384)
    other = draw(4, 65, 384, seed=5)
    leaves, fresh = [*forward, *backward, z], [*other[0], *other[1], other[2]]
    dy = torch.randn_like(forward.u)

    def step():
        y = cuda.bidirectional_scan(forward, backward, z)
        return y, torch.autograd.grad(y, leaves, dy)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grads = step()
    with torch.no_grad():
        for old, new in zip(leaves, fresh, strict=True):
            old.copy_(new)
    graph.replay()
    plain_y, plain_grads = step()
    record("CUDA graph", torch.equal(y, plain_y) and all(map(torch.equal, grads, plain_grads)))


def check_compile(record):
    forward, backward, z = draw(2, 65, 384)
    leaves = [*forward, *backward, z]
    compiled = torch.compile(cuda.bidirectional_scan, fullgraph=True)
    y, plain = compiled(forward, backward, z), cuda.bidirectional_scan(forward, backward, z)
    dy = torch.randn_like(y)
    grads = zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(plain, leaves, dy), strict=True)
    record("torch.compile", torch.equal(y, plain) and all(error(a, b.double()) < 1e-6 for a, b in grads))


def milliseconds(run, repeats=20):
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in times)


def replayed(run):
    """Milliseconds of one run inside a CUDA graph of ten: without the gaps between launches."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            run()
    return milliseconds(graph.replay, 10) / 10


def time_scan(record, batch, channels, length, label=""):
    forward, backward, z = draw(batch, length, channels)
    leaves = [*forward, *backward, z]
    name = f"{label}B{batch} D{channels} L{length} bf16"
    with torch.no_grad():
        infer = milliseconds(lambda: cuda.bidirectional_scan(forward, backward, z))
        graph = replayed(lambda: cuda.bidirectional_scan(forward, backward, z))
    train = milliseconds(lambda: cuda.bidirectional_scan(forward, backward, z))
    y = cuda.bidirectional_scan(forward, backward, z)
    dy = torch.randn_like(y)
    back = milliseconds(lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True))
    torch.cuda.reset_peak_memory_stats()
    record(f"time {name}", True, forward_ms=infer, forward_in_graph_ms=graph, forward_saving_ms=train, backward_ms=back)


def time_kernels(record, batch, channels, length):
    """The kernels of one backward pass apart, by the profiler."""
    forward, backward, z = draw(batch, length, channels)
    y = cuda.bidirectional_scan(forward, backward, z)
    dy = torch.randn_like(y)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(5):
            torch.autograd.grad(y, [*forward, *backward, z], dy, retain_graph=True)
        torch.cuda.synchronize()
    parts = {e.key[:60]: round(e.self_device_time_total / 5000, 4) for e in profile.key_averages() if e.self_device_time_total}
    record(f"kernels of the backward pass, B{batch} D{channels} L{length}, ms", True, **parts)


def time_long(record):
    forward, backward, z = draw(1, 12545, 384, grad=False)
    one = milliseconds(lambda: cuda.selective_scan(*forward[:6], z, forward[6], delta_softplus=True))
    record("time B1 D384 L12545 one direction", True, forward_ms=one)
    record("time B1 D384 L12545 both", True, forward_ms=milliseconds(lambda: cuda.bidirectional_scan(forward, backward, z)))
    graph = replayed(lambda: cuda.selective_scan(*forward[:6], z, forward[6], delta_softplus=True))
    record("time B1 D384 L12545 one direction, in a graph", True, forward_ms=graph)


def time_fused(record):
    batch, length, channels = 128, 1569, 384
    x = torch.randn(batch, length, 2 * channels, device=GPU, dtype=torch.bfloat16)[..., :channels].detach().requires_grad_()
    taps = [torch.randn(*s, device=GPU, requires_grad=True) for s in ((channels, 4), (channels,)) * 2]

    def plain_conv():
        turned = x.transpose(1, 2)
        f, b = (w.to(x.dtype)[:, None] for w in (taps[0], taps[2].flip(1)))
        f = F.conv1d(F.pad(turned, (3, 0)), f, taps[1].to(x.dtype), groups=channels)
        b = F.conv1d(F.pad(turned, (0, 3)), b, taps[3].to(x.dtype), groups=channels)
        return F.silu(f).transpose(1, 2), F.silu(b).transpose(1, 2)

    hidden = torch.randn(batch, length, 192, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    residual, weight = (
        torch.randn(batch, length, 192, device=GPU, requires_grad=True),
        torch.ones(192, device=GPU, requires_grad=True),
    )
    for name, ours, plain, leaves in (
        ("conv", lambda: cuda.bidirectional_conv(x, *taps), plain_conv, [x, *taps]),
        (
            "norm",
            lambda: cuda.add_rms_norm(hidden, residual, weight, 1e-5),
            lambda: reference.add_rms_norm(hidden, residual, weight, 1e-5),
            [hidden, residual, weight],
        ),
    ):
        times = {}
        for who, run in (("ours", ours), ("torch", plain)):
            out = run()
            dout = [torch.randn_like(o) for o in out]
            times[f"{who}_forward_ms"] = milliseconds(run)
            times[f"{who}_backward_ms"] = milliseconds(
                lambda o=out, d=dout, v=leaves: torch.autograd.grad(o, v, d, retain_graph=True)
            )
        record(f"time {name} B128 L1569", True, **times)


def time_host(record):
    """A training step whose kernels take no time: what the host needs for its launches."""
    forward, backward, z = draw(8, 64, 17)
    leaves = [*forward, *backward, z]

    def step():
        y = cuda.bidirectional_scan(forward, backward, z)
        torch.autograd.grad(y, leaves, y.detach())

    for _ in range(20):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(50):
        step()
    torch.cuda.synchronize()
    record("time of a training step that is all launches", True, host_ms=(time.perf_counter() - began) * 20)


def profile():
    forward, backward, z = draw(128, 1569, 384)
    y = cuda.bidirectional_scan(forward, backward, z)
    torch.autograd.grad(y, [*forward, *backward, z], torch.ones_like(y))
    torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-times", action="store_true", help="only check, as on a GPU that others use")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS, help="of the scans that are checked")
    options = parser.parse_args()
    if options.profile:
        return profile()
    began, rows = time.time(), []

    def record(name, ok, **values):
        rows.append({"name": name, "ok": bool(ok)} | values)
        shown = " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        print(f"{time.time() - began:6.1f}s {'ok  ' if ok else 'FAIL'} {name}: {shown}", flush=True)

    def section(run, *arguments):
        try:
            run(record, *arguments)
        except Exception:
            record(run.__name__, False, error=traceback.format_exc()[-1500:])
        torch.cuda.empty_cache()

    # New memory holds NaN while the results are checked.
    torch.use_deterministic_algorithms(True, warn_only=True)
    section(check_scan, options.lengths)
    for run in (check_states, check_long, check_fused, check_graph):
        section(run)
    torch.use_deterministic_algorithms(False)
    section(check_compile)
    if not options.no_times:
        for shape in TIMED:
            section(time_scan, *shape)
        section(time_kernels, 128, 384, 1569)
        section(time_kernels, 256, 768, 17)
        for run in (time_long, time_fused, time_host):
            section(run)
    where = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": time.strftime("%Y-%m-%d"),
    }
    (options.out / "check.json").write_text(json.dumps({"where": where, "rows": rows}, indent=1))
    bad = [row["name"] for row in rows if not row["ok"]]
    print(where, f"{len(rows) - len(bad)} ok, {len(bad)} failed", *bad, sep="\n")
    for row in rows:
        if row["name"].startswith(("time", "kernels")):
            print(row)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
