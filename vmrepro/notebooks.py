"""Runs notebooks with Papermill: parameters are checked before anything starts, and no source notebook is written over.

Every execution is a process of its own. Only ``bless`` changes a committed notebook, and only when all its cells pass.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import copy
import difflib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmrepro import paths, store
from vmrepro.specs.schema import TIERS

CHECKED_TYPES = {"int", "float", "bool", "str", "list", "dict", "None"}
TRACEBACK_LINES = 12  # of a failing cell, in reports
ANSI = re.compile(r"\x1b\[[0-9;]*m")  # colours
DEAD_KERNEL = 138  # Papermill's exit code
START_TIMEOUT = 180  # seconds for a kernel to start; a loaded machine takes long


class NotebookFailedError(RuntimeError):
    """A notebook did not run to its end; the message names the cell, its last lines and the executed copy."""


@dataclass(frozen=True)
class ExecutedNotebook:
    """Where the executed copy lies, and how long it took in seconds, start of the kernel included."""

    path: Path
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook in ``run_all``; ``error`` is None when it ran to its end."""

    source: Path
    seconds: float
    executed: Path | None
    figures: tuple[Path, ...]  # files under figures/ that it made or changed
    error: str | None


@dataclass(frozen=True)
class Declared:
    """A parameter as its notebook declares it; ``types`` is None where the cell does not say what may come."""

    types: frozenset[str] | None
    default: Any  # the value of a literal, else its source text
    text: str  # the declaring statement


def declared_parameters(notebook: Any, name: str) -> dict[str, Declared]:
    """The assignments in the notebook's first cell tagged ``parameters``, by name.

    notebook: an nbformat node. name: what errors call it. The cell is parsed, since ``papermill.inspect_notebook`` reads
    it by lines and misses unions and strings with ``=`` or ``#``. Raises ValueError without such a cell or when it is not Python.
    """
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        raise ValueError(f"{name} has no cell tagged 'parameters'; tag the one with its defaults, or nothing passed can reach it")
    declared = {}
    try:
        for statement in ast.parse(tagged[0].source).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target), value=ast.expr()):
                    declared[target] = _declaration(statement)
    except SyntaxError as error:
        raise ValueError(f"the parameters cell of {name} is not plain Python (line {error.lineno}: {error.msg})") from error
    return declared


def _declaration(statement: ast.Assign | ast.AnnAssign) -> Declared:
    try:
        default, literal = ast.literal_eval(statement.value), True
    except (ValueError, TypeError):
        default, literal = ast.unparse(statement.value), False
    types = {_type_name(default)} if literal and default is not None else {"unknown"}
    if isinstance(statement, ast.AnnAssign):
        types = _annotated(statement.annotation) | ({"None"} if default is None else set())
    return Declared(frozenset(types) if types <= CHECKED_TYPES else None, default, ast.unparse(statement))


def _annotated(annotation: ast.expr) -> set[str]:
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _annotated(left) | _annotated(right)
        case ast.Subscript(value=container):
            return _annotated(container)
        case ast.Constant(value=None):
            return {"None"}
        case ast.Constant(value=str(text)):
            return _annotated(ast.parse(text, mode="eval").body)
        case _:
            return {ast.unparse(annotation)}


def _type_name(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def check_parameters(declared: Mapping[str, Declared], given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The given values as the notebook gets them: of the declared type, each.

    An int, and a string that spells a number (``1e-4`` in YAML is one), become a float where a float is declared; nothing
    else is converted, and a bool is no int. Raises ValueError naming every unknown parameter, with the nearest known one,
    and every value of another type.
    """
    checked, problems = {}, []
    for parameter, value in given.items():
        if parameter not in declared:
            near = difflib.get_close_matches(str(parameter), declared, n=1)
            problems.append(f"unknown parameter {parameter!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
            continue
        types = declared[parameter].types
        if types and "float" in types and _type_name(value) in ("int", "str") and _type_name(value) not in types:
            with contextlib.suppress(ValueError, OverflowError):
                value = float(value)
        if types and _type_name(value) not in types:
            problems.append(f"{parameter} must be {' or '.join(sorted(types))}, got {_type_name(value)} {value!r}")
        checked[parameter] = value
    if problems:
        known = "; ".join(parameter.text for parameter in declared.values()) or "none"
        raise ValueError(f"{name}: {', '.join(problems)}. Its parameters: {known}")
    return checked


def default_output(source: str | Path, declared: Mapping[str, Declared], checked: Mapping[str, Any]) -> Path:
    """``runs/notebooks/<name>-<hash>.ipynb``: the same file for the same notebook and values, defaults included."""
    values = {name: parameter.default for name, parameter in declared.items()} | dict(checked)
    place = os.path.relpath(os.path.realpath(source), paths.root().resolve())
    digest = hashlib.sha256(json.dumps([place, values], sort_keys=True, default=repr).encode()).hexdigest()[:8]
    return paths.runs() / "notebooks" / f"{Path(source).stem}-{digest}.ipynb"


def refuse_to_overwrite(target: Path, source: Path) -> None:
    """Raise ValueError when writing ``target`` could change ``source`` or anything in the notebooks folder, however spelled."""
    folder = paths.notebooks()
    sources = [source, *(folder.rglob("*") if folder.is_dir() else [])]
    same = target.exists() and any(file.exists() and target.samefile(file) for file in sources)  # links of both kinds
    ancestors = (target.resolve(), *target.resolve().parents)
    inside = folder.is_dir() and any(parent.exists() and parent.samefile(folder) for parent in ancestors)
    if same or inside:
        advice = f"name a file elsewhere, or none to have it in {paths.runs() / 'notebooks'}"
        raise ValueError(f"refusing to write {target}: it is the notebook to run, or lies in {folder}; {advice}")


def run_notebook(
    path: str | Path, parameters: Mapping[str, Any] | None = None, output: str | Path | None = None
) -> ExecutedNotebook:
    """Execute a copy of a notebook in a process of its own, with the repository root as working folder.

    parameters: values for its ``parameters`` cell, as ``check_parameters`` takes them. output: where the executed copy
    goes, by default ``default_output``. Raises FileNotFoundError, ValueError for parameters or an output that do not
    fit, and NotebookFailedError when a cell fails or the kernel dies.
    """
    import nbformat
    import yaml

    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(_no_notebook(source))
    declared = declared_parameters(nbformat.read(source, as_version=4), source.name)
    checked = check_parameters(declared, parameters or {}, source.name)
    target = Path(output) if output is not None else default_output(source, declared, checked)
    refuse_to_overwrite(target, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a report must not quote an earlier run
    command = [sys.executable, "-P", "-m", "papermill", _literal(source.resolve()), _literal(target.resolve())]
    command += ["--kernel", "python3", "--language", "python", "--start-timeout", str(START_TIMEOUT), "--cwd", str(paths.root())]
    command += ["--no-progress-bar", "--log-level", "WARNING"]
    if checked:
        command += ["--parameters_base64", base64.b64encode(yaml.safe_dump(checked).encode()).decode()]
    start = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise NotebookFailedError(f"{source.name} failed after {seconds:.0f} s {_failure(target, done)}")
    return ExecutedNotebook(target, seconds)


def _literal(path: str | Path) -> str:
    """The path with its braces doubled, since Papermill takes paths as format strings."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _no_notebook(source: Path) -> str:
    folder = source.parent if source.parent.is_dir() else Path()
    near = difflib.get_close_matches(source.name, [file.name for file in folder.glob("*.ipynb")], n=1)
    return f"there is no notebook {source}" + (f"; did you mean {folder / near[0]}?" if near else "")


def _failure(executed: Path, done: subprocess.CompletedProcess[str]) -> str:
    import nbformat

    cells = nbformat.read(executed, as_version=4).cells if executed.is_file() else []
    code = [cell for cell in cells if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])]
    begun = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    if not begun:
        return f"outside its cells (exit {done.returncode})\n{_tail(done.stderr)}"
    errors = ["\n".join(output.traceback) for output in begun[-1].outputs if output.output_type == "error"]
    died = "the kernel died" if done.returncode == DEAD_KERNEL else f"exit {done.returncode} and no traceback"
    where = f"at code cell {len(begun)} ({begun[-1].source.partition(chr(10))[0]!r}); executed copy: {executed}"
    return f"{where}\n{_tail(ANSI.sub('', errors[-1]) if errors else died)}"


def _tail(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-TRACEBACK_LINES:])


def run_all(tier: str = "smoke", folder: Path | None = None) -> list[Outcome]:
    """Run every notebook of a folder at one tier, whatever became of the one before; one line each goes to stderr.

    tier: smoke is the notebooks' own defaults, others are passed as their parameter ``tier``. folder: by default
    the source notebooks. Raises ValueError for an unknown tier and FileNotFoundError when there is no notebook.
    """
    if tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")
    folder = folder or paths.notebooks()
    sources = sorted(folder.glob("*.ipynb"))
    if not sources:
        raise FileNotFoundError(f"there is no notebook in {folder}")
    outcomes = []
    for source in sources:
        print(f"{source.name} ...", end=" ", file=sys.stderr, flush=True)
        outcomes.append(_attempt(source, {} if tier == "smoke" else {"tier": tier}))
        print(f"{'failed' if outcomes[-1].error else 'done'}, {outcomes[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    return outcomes


def _attempt(source: Path, parameters: dict[str, Any]) -> Outcome:
    before, start = _stamps(paths.figures()), time.perf_counter()
    executed, error = None, None
    try:
        executed = run_notebook(source, parameters).path
    except (NotebookFailedError, ValueError, OSError) as failure:
        error = str(failure)
    seconds, after = time.perf_counter() - start, _stamps(paths.figures())
    figures = tuple(sorted(file for file, stamp in after.items() if before.get(file) != stamp))
    return Outcome(source, seconds, executed, figures, error)


def _stamps(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def summary(outcomes: list[Outcome]) -> str:
    """What ``run_all`` made, where, and how long each notebook took; failures with their cell and last lines at the end."""
    width = max(len(outcome.source.name) for outcome in outcomes)
    lines = []
    for outcome in outcomes:
        executed = _shown(outcome.executed) if outcome.executed else "FAILED"
        lines.append(f"{outcome.source.name:<{width}}  {outcome.seconds:7.1f} s  {executed}")
        lines += [f"{'':<{width + 13}}{_shown(figure)}" for figure in outcome.figures]
    failed = [outcome.error for outcome in outcomes if outcome.error]
    ran = (
        f"{len(outcomes) - len(failed)} of {len(outcomes)} notebooks ran in {sum(outcome.seconds for outcome in outcomes):.0f} s"
    )
    files = f"{sum(len(outcome.figures) for outcome in outcomes)} files written under {_shown(paths.figures())}"
    return "\n".join([*lines, f"{ran}; {files}", *(f"\n{error}" for error in failed)])


def _shown(path: Path) -> str:
    return os.path.relpath(path, paths.root()) if path.resolve().is_relative_to(paths.root().resolve()) else str(path)


def bless(path: str | Path) -> Path:
    """Execute a notebook at its defaults and write counts and outputs back into it, as the reference that nbval compares.

    Cells and tags stay as they are; what changes from run to run (Papermill's and Jupyter's times, widget state, the
    Python patch version) is dropped. The file is replaced whole, and only when every cell passed. Raises as ``run_notebook``.
    """
    import nbformat

    source = Path(path).resolve()
    executed = nbformat.read(run_notebook(source).path, as_version=4)
    notebook = nbformat.read(source, as_version=4)
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags" and value}
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            cell.outputs = _settled(ran.outputs)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    store.write_atomically(source, nbformat.writes(notebook) + "\n")
    return source


def _settled(outputs: list[Any]) -> list[Any]:
    """The outputs without widget views, each run of pieces of one stream joined: how a kernel cuts them is chance."""
    settled: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and settled and settled[-1].get("name") == output.name:
            settled[-1].text += output.text
            continue
        if "data" in output:
            output.data.pop("application/vnd.jupyter.widget-view+json", None)
        settled.append(output)
    return settled


def papermill_main(argv: list[str] | None = None) -> None:
    """The project's ``papermill``: the stock command, but one path is enough, parameters are checked, sources are safe.

    argv: as ``sys.argv[1:]``, the default. Exits with the stock command's code: 0 done, 1 a cell failed, 2 misuse
    (here also unknown or ill-typed parameters), 138 dead kernel.
    """
    import papermill.cli

    command = copy.copy(papermill.cli.papermill)  # its options, help and parser, with our steps before its own
    command.callback = _checked_papermill
    command.epilog = "vmrepro: OUTPUT_PATH is runs/notebooks/... by default. The stock command: python -m papermill"
    command.main(argv, prog_name="papermill")


def _checked_papermill(**options: Any) -> None:
    import click
    import papermill.cli
    import yaml
    from papermill.exceptions import PapermillException

    run = papermill.cli.papermill.callback
    if options["help_notebook"]:
        return run(**options)
    chosen = options["output_path"]
    try:
        options |= _checked_options(options)
    except (ValueError, OSError, yaml.YAMLError, PapermillException) as error:
        raise click.UsageError(str(error)) from error
    if options["progress_bar"] is None and not sys.stderr.isatty():
        options["progress_bar"] = False
    run(**options)
    if not chosen:
        click.echo(options["output_path"])


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The stock command's options for paths and parameters, checked, with the output path filled in."""
    import yaml
    from papermill.iorw import LocalHandler, load_notebook_node, papermill_io
    from papermill.parameterize import add_builtin_parameters, parameterize_path

    if options["notebook_path"] in (None, "-"):
        raise ValueError("name a notebook file; one on standard input is read by the stock command only (python -m papermill)")
    given = _given_parameters(options)
    source, target = (
        parameterize_path(options[path] or "", add_builtin_parameters(given)) for path in ("notebook_path", "output_path")
    )
    if isinstance(papermill_io.get_handler(source), LocalHandler) and not Path(source).is_file():
        raise FileNotFoundError(_no_notebook(Path(source)))
    declared = declared_parameters(load_notebook_node(source), Path(source).name)
    checked = check_parameters(declared, given, Path(source).name)
    written = [stream.name for stream in (options["stdout_file"], options["stderr_file"]) if stream]
    target = target or str(default_output(source, declared, checked))
    for file in (target, *written):
        if isinstance(papermill_io.get_handler(file), LocalHandler):
            refuse_to_overwrite(Path(file), Path(source))
    if not options["output_path"]:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    encoded = (base64.b64encode(yaml.safe_dump(checked).encode()).decode(),) if checked else ()
    emptied = dict.fromkeys(("parameters", "parameters_raw", "parameters_file", "parameters_yaml"), ())
    return emptied | {"parameters_base64": encoded, "notebook_path": _literal(source), "output_path": _literal(target)}


def _given_parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a command line, read and ranked as the stock command does: -b, -f, -y, -p, then -r."""
    import papermill.cli
    import yaml
    from papermill.iorw import NoDatesSafeLoader, read_yaml_file

    documents = [yaml.load(base64.b64decode(text), Loader=NoDatesSafeLoader) for text in options["parameters_base64"]]
    documents += [read_yaml_file(file) for file in options["parameters_file"]]
    documents += [yaml.load(text, Loader=NoDatesSafeLoader) for text in options["parameters_yaml"]]
    given: dict[str, Any] = {}
    for document in documents:
        if not isinstance(document, dict | None):
            raise ValueError(f"parameters in YAML must be a mapping, as in 'seed: 3', got {document!r}")
        given |= document or {}
    given |= {name: papermill.cli._resolve_type(value) for name, value in options["parameters"]}
    return given | dict(options["parameters_raw"])
