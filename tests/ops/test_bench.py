"""The benchmark times what is right and refuses what is not."""

import pytest
import torch

from vmrepro.ops import bench, chunked


def test_prints_a_line_for_each_backend(capsys):
    bench.main(["--shape", "2", "9", "6", "4", "--repeats", "1", "--threads", str(torch.get_num_threads())])
    head, titles, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("cpu, shape (2, 9, 6, 4), float32")
    assert "times faster" in titles
    assert [line.split()[0] for line in lines] == ["reference", "chunked", "numba"]
    assert lines[0].split()[3] == "1.0"


def test_a_wrong_gradient_is_not_timed(monkeypatch):
    monkeypatch.setattr(chunked, "_add_over_channels", lambda *args: None)
    inputs = bench.make_inputs(1, 9, 6, 4, "cpu")
    with pytest.raises(RuntimeError, match=r"'chunked' is not timed: .*'B': '1.0e\+00', 'C': '1.0e\+00'"):
        bench.measure("chunked", inputs, repeats=1)
    assert bench.check("reference", inputs) < 1e-6
