import os
import subprocess
import sys

import pytest
import torch

from tests.runs.conftest import numbers, tiny
from vmrepro import paths, store
from vmrepro.runs.distributed import join, pick_device
from vmrepro.runs.runner import run

# No stochastic depth at smoke, so that only the sharing of work differs.
RUN = """
import sys
from tests.runs.conftest import tiny
from vmrepro.runs.runner import run
for name in sys.argv[1:]:
    run(tiny(name), 0, device="cpu")
"""
NAMES = ["fig6_s", "fig6_m_distill_stopped"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test wants absent")
def test_an_absent_gpu_is_an_error():
    with pytest.raises(RuntimeError, match="torch sees no GPU"):
        pick_device("cuda")


def test_one_process_is_a_world_of_its_own():
    world = join("cpu")
    assert (world.rank, world.size, world.leads) == (0, 1, True)
    assert world.sum(torch.ones(2)).tolist() == [1.0, 1.0]


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(tmp_path, monkeypatch):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), *NAMES]
    environment = {**os.environ, "PYTHONPATH": str(paths.root()), "VMREPRO_RUNS": str(tmp_path / "together")}
    subprocess.run(launch, env=environment | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=300)
    curves = {}
    for folder, names in ("alone", NAMES), ("together", []):
        monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / folder))
        for name in names:
            run(tiny(name), 0, device="cpu")
        curves[folder] = {record.id: record for record in store.records()}
    assert curves["alone"].keys() == curves["together"].keys()
    assert {record.provenance["processes"] for record in curves["together"].values()} == {2}
    for identifier, record in curves["alone"].items():
        for one, two in zip(numbers(record), numbers(curves["together"][identifier]), strict=True):
            assert two == pytest.approx(one, rel=1e-7)
