"""Speed and memory: what is counted, what happens where a model does not fit or cannot be built, and that records are kept."""

import pytest
import torch

from vmrepro.ops import BackendUnavailableError
from vmrepro.runs import efficiency
from vmrepro.runs.efficiency import PeakMemory, measure, measure_all, peak_bytes, seconds_of
from vmrepro.specs.efficiency import AttentionSpec, Measurement, fig1
from vmrepro.specs.schema import ModelSpec

CPU = torch.device("cpu")
JOINT = AttentionSpec(kind="joint_naive", num_frames=2, img_size=32, depth=1, width=12, heads=3)
MAMBA = ModelSpec(depth=1, embed_dim=16, img_size=32, num_frames=2, num_classes=3)


def small(model=JOINT, **options):
    return Measurement(subject="small", model=model, precision="fp32", seconds=0.0, **{"batch": 2} | options)


def test_peak_memory_is_of_what_is_alive_at_once():
    x = torch.zeros(1000)

    def call():
        a = x + 1  # 4000 bytes
        b = a * 2  # 8000 together
        del a
        c = b.view(10, 100)  # no memory of its own
        return c.sum() + x[:500].view(50, 10).sum()

    assert 8000 <= peak_bytes(call, CPU) <= 8100


def test_peak_memory_forgets_what_is_gone():
    with PeakMemory() as memory:
        for _ in range(5):
            pair = [torch.ones(1000), torch.ones(1000)]
        del pair
        assert memory.bytes == memory.users == {}
        kept = torch.ones(10)
    assert memory.peak == 16000  # the new pair is made before the old one goes
    assert sum(memory.bytes.values()) == kept.untyped_storage().nbytes()


def test_calls_are_repeated_for_the_budget(monkeypatch):
    made = []
    monkeypatch.setattr(efficiency, "_seconds", lambda call: call() or 0.1)
    assert len(seconds_of(lambda: made.append(1), CPU, 0.0)) == efficiency.FEWEST
    assert len(made) == efficiency.FEWEST + efficiency.WARM_UP
    assert len(seconds_of(lambda: None, CPU, 0.55)) == 6
    assert len(seconds_of(lambda: None, CPU, 1e9)) == efficiency.MOST


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("model", [JOINT, MAMBA])
def test_a_row(model, train):
    row = measure(small(model, train=train, backend="chunked"), CPU, 2)
    assert row["status"] == "ok"
    assert (row["frames"], row["tokens"], row["batch"], row["train"]) == (2, 9, 2, train)
    assert 0 < row["low"] <= row["clips_per_s"] <= row["high"]
    assert row["bytes_per_clip"] > 9 * 16 * 4


def test_quadratic_memory_is_seen():
    clips = [
        Measurement(subject="j", model=AttentionSpec(**{**vars(JOINT), "num_frames": t}), precision="fp32", seconds=0.0)
        for t in (32, 64)
    ]
    short, long = (measure(spec, CPU, 1)["bytes_per_clip"] for spec in clips)
    assert 3.3 < long / short < 4.1


def test_what_does_not_fit_or_exist_is_a_row_without_numbers(monkeypatch):
    row = measure(small(MAMBA, backend="cuda"), CPU, 2)
    assert "backend 'cuda' cannot run on cpu" in row["status"]
    assert row["clips_per_s"] is row["bytes_per_clip"] is None
    monkeypatch.setattr(efficiency, "make_call", lambda *arguments: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    assert measure(small(), CPU, 2)["status"] == "out of memory"
    monkeypatch.setattr(efficiency, "make_call", lambda *arguments: (_ for _ in ()).throw(BackendUnavailableError("gone")))
    assert measure(small(), CPU, 2)["status"] == "gone"


def test_the_largest_batch_is_found_by_halving(monkeypatch, capsys):
    tried = []

    def fits_four(spec, device, batch):
        tried.append(batch)
        fits = batch <= 4
        numbers = {"clips_per_s": 1.0 if fits else None, "bytes_per_clip": 1.0 if fits else None}
        return {"subject": spec.subject, "frames": 2, "batch": batch, "status": "ok" if fits else "out of memory"} | numbers

    monkeypatch.setattr(efficiency, "measure", fits_four)
    rows = measure_all([small(batch=None)], CPU)
    assert tried == [128, 64, 32, 16, 8, 4]
    assert rows[0]["batch"] == 4
    tried.clear()
    assert measure_all([small(batch=8)], CPU)[0]["status"] == "out of memory"
    assert tried == [8]


def test_the_largest_batch_follows_from_the_memory_of_the_equal_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("Card", (), {"total_memory": 1000}))
    row = {"subject": "small", "frames": 2, "batch": 4, "status": "ok", "bytes_per_clip": 30.0}
    gpu = torch.device("cuda")
    assert efficiency._largest(small(batch=None), [row], gpu) == 16  # 28 would fit the 850 bytes
    assert efficiency._largest(small(batch=None), [row | {"bytes_per_clip": 1.0}], gpu) == 128
    assert efficiency._largest(small(batch=None), [row | {"status": "out of memory"}], gpu) == 2
    assert efficiency._largest(small(batch=None), [], gpu) == 128
    long = small(AttentionSpec(**{**vars(JOINT), "num_frames": 256}), batch=None)
    assert efficiency._largest(long, [], gpu) == 16


def test_a_record_is_made_once_with_its_provenance(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path))
    threads = torch.get_num_threads()
    first = efficiency.run("fig1", [small()], "smoke")
    again = efficiency.run("fig1", [small()], "smoke")
    assert again == first
    assert "reused" in capsys.readouterr().out
    assert first.provenance["device"]["type"] == "cpu"
    assert first.spec["experiment"]["measurements"][0]["subject"] == "small"
    assert torch.get_num_threads() == threads
    assert efficiency.run("fig1", [small(batch=3)], "smoke").id != first.id


def test_smoke_measures_what_the_catalogue_says():
    assert {spec.precision for spec in fig1("smoke")} == {"fp32"}
