"""Running notebooks: what is refused, where copies go, what failures say, and what nbval makes of the committed form."""

import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from vmrepro import notebooks, paths

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = """\
tier: str = "smoke"  # smoke, mini or paper
seed: int = 0
lr: float = 1e-3
amp = False
frames: list[int] = [8, 16]
width: int | None = None
title: str = "a = b #c\""""
REPORT = "print(tier, seed, lr, amp, frames, width, title)"


def write(path: Path, *sources: str, parameters: str | None = PARAMETERS) -> Path:
    cells = [new_code_cell(source) for source in sources]
    if parameters is not None:
        cells.insert(0, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def printed(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.text for cell in cells for output in cell.get("outputs", ()) if output.output_type == "stream")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `toy.ipynb` in the source folder `notebooks`, and runs/ and figures/ beside it."""
    monkeypatch.setenv("VMREPRO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VMREPRO_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(paths, "notebooks", lambda: tmp_path / "notebooks")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "notebooks" / "toy.ipynb", REPORT)
    return tmp_path


@pytest.fixture(scope="module")
def papermill(tmp_path_factory) -> str:
    """The launcher that the Makefile puts into .venv/bin, in a folder of its own."""
    folder = tmp_path_factory.mktemp("bin with space")
    subprocess.run([ROOT / "environment" / "papermill.sh", sys.executable, folder], check=True)
    return str(folder / "papermill")


def declared(source: str = PARAMETERS) -> dict[str, notebooks.Declared]:
    notebook = new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]})])
    return notebooks.declared_parameters(notebook, "toy.ipynb")


# Parameters


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"lr": 1}, {"lr": 1.0}),
        ({"lr": "1e-4"}, {"lr": 1e-4}),
        ({"seed": 3, "amp": True}, {"seed": 3, "amp": True}),
        ({"frames": [4], "width": None, "title": "7"}, {"frames": [4], "width": None, "title": "7"}),
        ({"width": 5}, {"width": 5}),
    ],
)
def test_a_value_of_the_declared_type_reaches_the_notebook(given, seen):
    checked = notebooks.check_parameters(declared(), given, "toy.ipynb")
    assert checked == seen
    assert {name: type(value) for name, value in checked.items()} == {name: type(value) for name, value in seen.items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sead": 1}, "unknown parameter 'sead' .did you mean 'seed'"),
        ({"seed": True}, "seed must be int, got bool True"),
        ({"seed": 1.5}, "seed must be int, got float"),
        ({"seed": "7"}, "seed must be int, got str"),
        ({"lr": True}, "lr must be float, got bool"),
        ({"lr": "fast"}, "lr must be float, got str 'fast'"),
        ({"amp": 1}, "amp must be bool, got int"),
        ({"frames": "[8,16]"}, "frames must be list, got str"),
        ({"width": 1.0}, "width must be None or int, got float"),
        ({"title": 202401}, "title must be str, got int"),
        ({"seed": None}, "seed must be int, got None"),
    ],
)
def test_any_other_value_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        notebooks.check_parameters(declared(), given, "toy.ipynb")


def test_all_wrong_parameters_are_named_at_once():
    with pytest.raises(ValueError, match=r"sead.*amp must be bool"):
        notebooks.check_parameters(declared(), {"sead": 1, "amp": 1}, "toy.ipynb")


def test_an_undeclared_type_is_not_checked():
    known = declared("import os\nout = os.sep\nshape: tuple = (1, 2)\nnothing = None")
    assert list(known) == ["out", "shape", "nothing"]
    assert notebooks.check_parameters(known, {"out": 1, "nothing": 2.0}, "toy.ipynb") == {"out": 1, "nothing": 2.0}


def test_a_notebook_without_the_tag_or_with_magics_in_its_parameters_is_refused():
    with pytest.raises(ValueError, match="no cell tagged 'parameters'"):
        notebooks.declared_parameters(new_notebook(cells=[new_code_cell("seed = 0")]), "toy.ipynb")
    with pytest.raises(ValueError, match=r"not plain Python \(line 2"):
        declared("seed = 0\n%matplotlib inline")


def test_the_default_output_is_named_by_the_values_the_notebook_sees(here):
    def output(given):
        return notebooks.default_output(here / "notebooks" / "toy.ipynb", declared(), given)

    assert output({}) == output({"seed": 0})
    assert len({output({}), output({"seed": 1}), notebooks.default_output(here / "toy.ipynb", declared(), {})}) == 3
    assert re.fullmatch(r"toy-[0-9a-f]{8}\.ipynb", output({}).name)
    assert output({}).parent == here / "runs" / "notebooks"


# The papermill command: what it refuses, in this process since nothing runs


@pytest.mark.parametrize(
    "spelling", ["same", "relative", "symlink", "hard link", "link to folder", "sibling", "folder", "template"]
)
@pytest.mark.parametrize("option", ["output", "--stdout-file"])
def test_no_source_notebook_can_be_the_target(here, capsys, spelling, option):
    source = here / "notebooks" / "toy.ipynb"
    os.symlink(source, here / "soft.ipynb")
    os.link(source, here / "hard.ipynb")
    os.symlink(here / "notebooks", here / "alias")
    target = {
        "same": str(source),
        "relative": "runs/../notebooks/./toy.ipynb",
        "symlink": "soft.ipynb",
        "hard link": "hard.ipynb",
        "link to folder": "alias/new.ipynb",
        "sibling": "notebooks/new.ipynb",
        "folder": "notebooks",
        "template": "{title}/toy.ipynb" if option == "output" else "notebooks/toy.ipynb",
    }[spelling]
    where = [target] if option == "output" else ["out.ipynb", option, target]
    before = source.read_bytes()
    with pytest.raises(SystemExit) as exit_:
        notebooks.papermill_main([str(source), *where, "-p", "title", "notebooks"])
    assert exit_.value.code == 2
    assert "refusing to write" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert sorted(file.name for file in (here / "notebooks").iterdir()) == ["toy.ipynb"]


def test_a_notebook_elsewhere_is_protected_too(here, capsys):
    mine = write(here / "mine.ipynb", REPORT)
    before = mine.read_bytes()
    with pytest.raises(SystemExit):
        notebooks.papermill_main(["mine.ipynb", "./mine.ipynb"])
    assert "refusing to write mine.ipynb" in capsys.readouterr().err
    assert mine.read_bytes() == before


def test_a_default_output_among_the_sources_is_refused(here, monkeypatch):
    monkeypatch.setenv("VMREPRO_RUNS", str(here / "notebooks" / "runs"))
    with pytest.raises(ValueError, match="refusing to write"):
        notebooks.run_notebook("notebooks/toy.ipynb")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "sead", "1"], "did you mean 'seed'"),
        (["-y", "seed: [1]"], "seed must be int, got list"),
        (["-y", "seed"], "must be a mapping"),
        (["-r", "seed", "1"], "seed must be int, got str"),
        (["-f", "absent.yaml"], "absent.yaml"),
        (["out_{nope}.ipynb"], "nope"),
        (["--nope"], "No such option"),
    ],
)
def test_misuse_ends_with_2_before_anything_runs(here, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        notebooks.papermill_main(["notebooks/toy.ipynb", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["notebooks/toi.ipynb"], "did you mean notebooks/toy.ipynb"), (["-", "out.ipynb"], "name a notebook file")],
)
def test_a_missing_or_piped_notebook_is_refused(here, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        notebooks.papermill_main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_stock_options_and_the_parameters(here, capsys):
    with pytest.raises(SystemExit) as exit_:
        notebooks.papermill_main(["--help"])
    assert exit_.value.code == 0
    assert "--parameters_base64" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        notebooks.papermill_main(["notebooks/toy.ipynb", "--help-notebook"])
    assert exit_.value.code == 0
    assert "seed: int (default 0)" in capsys.readouterr().out


# The papermill command, run


def test_one_path_on_a_terminal(here, papermill):
    before = Path("notebooks/toy.ipynb").read_bytes()
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))  # a progress bar needs columns
    done = subprocess.Popen([papermill, "notebooks/toy.ipynb"], stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    screen = b""
    try:
        while piece := os.read(leader, 4096):
            screen += piece
    except OSError:  # Linux says so when the last writer closes its end
        pass
    os.close(leader)
    assert done.wait(timeout=60) == 0, screen.decode()
    assert b"Executing: 100%" in screen  # a terminal gets the progress bar
    [executed] = (here / "runs" / "notebooks").glob("toy-*.ipynb")
    assert printed(executed) == "smoke 0 0.001 False [8, 16] None a = b #c\n"
    assert Path("notebooks/toy.ipynb").read_bytes() == before


def test_one_path_inside_the_folder_with_another_notebook_on_a_pipe(here, papermill):
    before = Path("notebooks/toy.ipynb").read_bytes()
    piped = write(here / "other.ipynb", "print('another')").read_text()
    command = [papermill, "toy.ipynb", "-p", "seed", "3", "-y", "lr: 1e-4"]
    done = subprocess.run(command, cwd="notebooks", input=piped, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    [executed] = (here / "runs" / "notebooks").glob("*.ipynb")
    assert done.stdout == f"{executed}\n"
    assert "Executing:" not in done.stderr
    assert printed(executed) == "smoke 3 0.0001 False [8, 16] None a = b #c\n"
    assert Path("notebooks/toy.ipynb").read_bytes() == before


def test_two_paths_with_stock_options_and_a_failing_cell(here, papermill):
    write(here / "bad.ipynb", "import os\nprint(os.getcwd(), PAPERMILL_OUTPUT_PATH, frames)", "1 / 0")
    Path("more.yaml").write_text("frames: [4]\nseed: 5\n")
    options = ["-f", "more.yaml", "-p", "seed", "6", "--cwd", "runs", "--inject-output-path"]
    Path("runs").mkdir()
    command = [papermill, "bad.ipynb", "out_{seed}.ipynb", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert printed(here / "out_6.ipynb") == f"{here / 'runs'} out_6.ipynb [4]\n"


# The same from Python


@pytest.mark.slow
def test_run_all_goes_on_after_a_failure_and_reports_it(here, capsys):
    for name, last in {"b_bad": "raise OSError('disk gone')", "c_dead": "import os\nos._exit(9)"}.items():
        write(here / "notebooks" / f"{name}.ipynb", "2 + 2", last)
    draw = "import os, pathlib\nplace = pathlib.Path(os.environ['VMREPRO_FIGURES'])\nplace.mkdir()"
    write(here / "notebooks" / "d_draws.ipynb", draw, "(place / 'new.csv').write_text('x')")
    (here / "notebooks" / "toy.ipynb").unlink()
    write(here / "notebooks" / "e_untagged.ipynb", "1", parameters=None)
    outcomes = notebooks.run_all()
    assert [outcome.source.stem for outcome in outcomes] == ["b_bad", "c_dead", "d_draws", "e_untagged"]
    assert [outcome.error is None for outcome in outcomes] == [False, False, True, False]
    assert "at code cell 3 (\"raise OSError('disk gone')\")" in outcomes[0].error
    assert outcomes[0].error.endswith("OSError: disk gone")
    assert "at code cell 3 ('import os')" in outcomes[1].error
    assert "the kernel died" in outcomes[1].error
    assert outcomes[2].figures == (here / "figures" / "new.csv",)
    assert "no cell tagged" in outcomes[3].error
    text = notebooks.summary(outcomes)
    assert "1 of 4 notebooks ran" in text
    assert "1 files written" in text
    assert str(outcomes[2].executed) in text
    assert f"{outcomes[2].seconds:.1f} s" in text
    assert "d_draws.ipynb ... done" in capsys.readouterr().err


def test_run_all_refuses_an_unknown_tier_and_an_empty_folder(here):
    with pytest.raises(ValueError, match="smoke, mini, paper, got 'tiny'"):
        notebooks.run_all("tiny")
    with pytest.raises(FileNotFoundError, match="no notebook in"):
        notebooks.run_all(folder=here / "figures")


def test_a_tier_is_a_parameter_of_the_notebooks(here, monkeypatch):
    asked = []

    def record(source, parameters):
        asked.append(parameters)
        return notebooks.ExecutedNotebook(source, 0.0)

    monkeypatch.setattr(notebooks, "run_notebook", record)
    notebooks.run_all("smoke")
    notebooks.run_all("mini")
    assert asked == [{}, {"tier": "mini"}]


# The committed form, and the nbval configuration, in a project of toys


def make_project(folder: Path) -> None:
    """The configuration of this repository around toys: tests/ that pass, a runs/ that would fail."""
    (folder / "tests").mkdir()
    for file in ("pyproject.toml", "conftest.py", "tests/nbval_sanitize.cfg"):
        shutil.copy(ROOT / file, folder / file)
    (folder / "tests" / "test_plain.py").write_text("def test_plain():\n    assert True\n")
    write(folder / "runs" / "wrong.ipynb", "1 / 0")


def run_pytest(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--color=no", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_blessed_notebook_passes_nbval_and_a_changed_result_does_not(here):
    source = here / "notebooks" / "toy.ipynb"
    notebook = nbformat.read(
        write(source, "import time\nprint(f'took {time.time():.3f} s', flush=True)\nprint('top-1', 70.5)"), 4
    )
    notebook.cells[1].metadata = {"papermill": {"duration": 1.0}, "execution": {"iopub.execute_input": "now"}}
    notebook.metadata["widgets"] = {"state": {}}
    nbformat.write(notebook, source)
    notebooks.bless(source)
    blessed = nbformat.read(source, 4)
    assert [cell.execution_count for cell in blessed.cells] == [1, 2]
    assert [cell.metadata for cell in blessed.cells] == [{"tags": ["parameters"]}, {}]
    assert set(blessed.metadata) == {"kernelspec", "language_info"}
    assert blessed.metadata.language_info == {"name": "python"}
    [output] = blessed.cells[1].outputs
    assert output.text.endswith(" s\ntop-1 70.5\n")

    make_project(here)
    changed = source.read_text().replace("top-1 70.5", "top-1 71.5")
    (here / "notebooks" / "changed.ipynb").write_text(changed)
    done = run_pytest("--nbval", "-rf", cwd=here)
    assert "1 failed, 3 passed" in done.stdout, done.stdout
    assert "FAILED notebooks/changed.ipynb::Cell 1" in done.stdout
    inside = run_pytest("--nbval", "toy.ipynb", cwd=here / "notebooks")
    assert "2 passed" in inside.stdout, inside.stdout
    plain = run_pytest("-v", cwd=here)
    assert "1 passed" in plain.stdout, plain.stdout
    assert "test_plain.py::test_plain" in plain.stdout


def test_bless_leaves_a_notebook_that_fails_as_it_was(here):
    source = write(here / "notebooks" / "toy.ipynb", "raise KeyError('gone')")
    before = source.read_bytes()
    with pytest.raises(notebooks.NotebookFailedError, match="KeyError: 'gone'"):
        notebooks.bless(source)
    assert source.read_bytes() == before
