"""One run, one folder: spec.json, metrics.jsonl, provenance.json; what is written is whole or not there at all.

A folder is a *record* once provenance.json exists, which is written last. Before that it is work in progress that a
restarted run picks up. The name of the folder is the run id: what was asked for, the seed, and the code that ran.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmrepro import paths

# The part of the package that can change a result; reports and notebooks cannot.
CODE_THAT_MATTERS = ("specs/schema.py", "data", "ops", "models", "runs")


@functools.cache
def code_digest() -> str:
    """Twelve hexadecimal digits of the code a result depends on; of Python, comments, docstrings and layout do not count."""
    total = hashlib.sha256()
    for part in CODE_THAT_MATTERS:
        place = paths.PACKAGE / part
        files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.suffix in (".py", ".cu"))
        for file in files:
            total.update(file.relative_to(paths.PACKAGE).as_posix().encode())
            total.update(_meaning(file).encode())
    return total.hexdigest()[:12]


def _meaning(file: Path) -> str:
    text = file.read_text()
    if file.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and node.body and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def run_id(name: str, spec: dict[str, Any], seed: int) -> str:
    """The id of a run: readable name and seed, then a hash of the resolved spec, the seed and the code that matters."""
    text = json.dumps({"spec": spec, "seed": seed, "code": code_digest()}, sort_keys=True)
    return f"{name}-seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Record:
    """A finished run as it lies on disk."""

    id: str
    folder: Path
    spec: dict[str, Any]
    metrics: list[dict[str, Any]]
    provenance: dict[str, Any]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is either whole or not there, whatever moment the process dies."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    data = content.encode() if isinstance(content, str) else content
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_metrics(place: Path, rows: list[dict[str, Any]]) -> None:
    """Replace metrics.jsonl, one JSON object a line (one epoch each)."""
    write_atomically(place / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def folder(identifier: str) -> Path:
    """Where the run of this id lies, or would lie."""
    return paths.runs() / identifier


@contextlib.contextmanager
def claim(identifier: str) -> Iterator[Path]:
    """Yield the run's folder, held alone: a second process that asks for the same run waits until the first is done or dead."""
    place = folder(identifier)
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place


def read(identifier: str) -> Record | None:
    """The record of this id, or None while there is none; ValueError when its files cannot be read."""
    place = folder(identifier)
    if not (place / "provenance.json").is_file():
        return None
    try:
        spec = json.loads((place / "spec.json").read_text())
        metrics = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
        provenance = json.loads((place / "provenance.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"the record {place} is damaged ({error}); remove that folder and run again") from error
    return Record(identifier, place, spec, metrics, provenance)


def records() -> list[Record]:
    """Every finished run in the store, by id; unfinished folders are passed over."""
    if not paths.runs().is_dir():
        return []
    found = (read(place.name) for place in sorted(paths.runs().iterdir()) if place.is_dir())
    return [record for record in found if record is not None]
