"""Is a data set on disk what a run needs? Every file of its lists is looked for and really decoded; a killed check goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from vmrepro import paths
from vmrepro.data.clips import test_frames
from vmrepro.data.decode import DecodeError, read_frames
from vmrepro.data.imagenet import WORKERS, check_folder
from vmrepro.data.video import MOST_LOST, SPLITS, Video, duplicates, read_list
from vmrepro.specs.schema import ClipSpec

CLASSES = {"imagenet": 1000, "kinetics400": 400, "ssv2": 174}
# What is tried of each file unless the caller says otherwise: the frames that the released test scripts take.
CLIPS = {
    "kinetics400": ClipSpec(num_frames=16, sampling="sparse", test_clips=4),
    "ssv2": ClipSpec(num_frames=16, sampling="segments", test_clips=2),
}
SECONDS_BETWEEN_LINES = 10.0
MOST_SHOWN = 10  # names of each kind of fault in the text; the report object has them all


@dataclass
class SplitReport:
    """What is wrong with the videos of one list. ``missing`` and the other lists hold names as the list has them."""

    sha256: str
    videos: int
    classes: int
    missing: list[str] = field(default_factory=list)
    undecodable: dict[str, str] = field(default_factory=dict)  # name: reason
    short: dict[str, int] = field(default_factory=dict)  # name: frames, fewer than a clip has
    duplicates: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Videos without a score: missing or undecodable."""
        return len(self.missing) + len(self.undecodable)

    @property
    def points(self) -> float:
        """What the bad videos can move an accuracy by, in points, at most."""
        return 100.0 * self.bad / self.videos


@dataclass
class Report:
    """Everything a check found. ``problems`` are the sentences that speak against a run; there are none if it is ``ok``."""

    name: str
    root: str
    num_classes: int
    decoded: bool  # or only looked for
    clip: ClipSpec | None = None
    splits: dict[str, SplitReport] = field(default_factory=dict)
    shared: dict[str, list[str]] = field(default_factory=dict)  # "train, test": paths in both lists
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


class _Finding(NamedTuple):
    """What reading one file gave: its frames, or the reason why it could not be read."""

    frames: int
    reason: str | None


def check(name: str, root: Path, *, decode: bool = True, clip: ClipSpec | None = None, workers: int = WORKERS) -> Report:
    """The report on data set ``name`` ("imagenet", "kinetics400", "ssv2") in the folder ``root``.

    decode: try to read the frames that a test with ``clip`` takes, by default those of the released scripts, in
    ``workers`` processes. Files that could be read are remembered below the folder of runs, and read anew only if their
    size or time has changed. Of ImageNet the folders are checked only. ValueError for another name.
    """
    if name not in CLASSES:
        raise ValueError(f"a data set on disk is one of {', '.join(CLASSES)}, got {name!r}")
    root = Path(root).absolute()
    if name == "imagenet":
        report = Report(name, str(root), CLASSES[name], decoded=False)
        try:
            check_folder(root, CLASSES[name])
        except FileNotFoundError as error:
            report.problems.append(str(error))
        return report
    clip = clip or CLIPS[name]
    report = Report(name, str(root), CLASSES[name], decode, clip)
    lists: dict[str, list[Video]] = {}
    for split in SPLITS:
        try:
            lists[split] = read_list(root / f"{split}.csv", CLASSES[name], name)
        except (FileNotFoundError, ValueError) as error:
            report.problems.append(str(error))
    files = sorted({video.path for videos in lists.values() for video in videos})
    stamps = {path: _stamp(path) for path in files}
    findings: dict[str, _Finding] = {}
    if decode:
        findings = _findings({path: stamp for path, stamp in stamps.items() if stamp}, name, clip, workers)
    for split, videos in lists.items():
        report.splits[split] = _split_report(root / f"{split}.csv", videos, stamps, findings, clip)
    _compare(report, lists)
    _judge(report)
    return report


def _stamp(path: str) -> tuple[int, int] | None:
    """Size in bytes and time of change in nanoseconds; None if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _split_report(file: Path, videos: list[Video], stamps: dict, findings: dict[str, _Finding], clip: ClipSpec) -> SplitReport:
    report = SplitReport(hashlib.sha256(file.read_bytes()).hexdigest(), len(videos), len({video.label for video in videos}))
    report.duplicates = duplicates(videos)
    for video in videos:
        finding = findings.get(video.path)
        if stamps[video.path] is None:
            report.missing.append(video.name)
        elif finding is not None and finding.reason is not None:
            report.undecodable[video.name] = finding.reason
        elif finding is not None and finding.frames < clip.num_frames:
            report.short[video.name] = finding.frames
    return report


def _compare(report: Report, lists: dict[str, list[Video]]) -> None:
    """Which files stand in two lists."""
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            both = {video.path for video in lists.get(one, [])} & {video.path for video in lists.get(other, [])}
            if both:
                report.shared[f"{one}, {other}"] = sorted(both)


def _judge(report: Report) -> None:
    """Put into words what speaks against a run. Short videos do not, nor do val and test with the same videos."""
    for split, found in report.splits.items():
        allowed = MOST_LOST * found.videos if split == "train" else 0
        rule = f"a training goes on without {MOST_LOST:.0%} at most" if split == "train" else "a test needs every one"
        if found.bad > allowed:
            report.problems.append(f"{split}: {found.bad} of {found.videos} videos cannot be used; {rule}")
        if split == "train" and found.classes < report.num_classes:
            report.problems.append(f"{split}: {found.classes} of {report.num_classes} classes occur")
        if split != "train" and found.duplicates:
            report.problems.append(f"{split}: {len(found.duplicates)} videos are listed more than once")
    for pair, both in report.shared.items():
        if pair.startswith("train"):
            report.problems.append(f"{pair}: {len(both)} videos are in both lists")


def _findings(stamps: dict[str, tuple[int, int]], name: str, clip: ClipSpec, workers: int) -> dict[str, _Finding]:
    """What reading each file gives, from the record of earlier checks where the file is still the same."""
    key = hashlib.sha256(json.dumps(asdict(clip), sort_keys=True).encode()).hexdigest()[:12]
    record = paths.runs() / "data_check" / f"{name}_{key}.jsonl"
    findings = _recorded(record, stamps)
    open_files = [path for path in stamps if path not in findings]
    _say(f"{name}: {len(findings)} of {len(stamps)} files are known from {record}")
    record.parent.mkdir(parents=True, exist_ok=True)
    started = said = time.monotonic()
    with record.open("a", encoding="utf-8") as out:
        out.write("\n")  # ends a line that a killed check may have left unfinished
        for count, (path, finding) in enumerate(_read_all(open_files, clip, workers), 1):
            findings[path] = finding
            row = {"path": path, "stamp": stamps[path], "frames": finding.frames, "reason": finding.reason}
            out.write(json.dumps(row) + "\n")
            out.flush()
            now = time.monotonic()
            if now - said > SECONDS_BETWEEN_LINES or count == len(open_files):
                said = now
                _say(f"{name}: {count} of {len(open_files)} files read, {count / (now - started):.3g} a second")
    return findings


def _recorded(record: Path, stamps: dict[str, tuple[int, int]]) -> dict[str, _Finding]:
    findings = {}
    for line in record.read_text("utf-8").splitlines() if record.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # empty, or left unfinished
        findings.pop(row["path"], None)
        # What could not be read is tried again: the disk or the decoder may be another by now.
        if stamps.get(row["path"]) == tuple(row["stamp"]) and row["reason"] is None:
            findings[row["path"]] = _Finding(row["frames"], None)
    return findings


def _read_all(files: list[str], clip: ClipSpec, workers: int) -> Iterator[tuple[str, _Finding]]:
    """Each file with its finding, in the order of completion or nearly so.

    A file that kills the process which reads it takes the others of that moment along: those are tried again, each alone.
    """
    at_once = 64 * workers  # enough to keep all busy, few enough to try again
    for start in range(0, len(files), at_once):
        block = files[start : start + at_once]
        futures: dict[str, Future] = {}
        again = []
        pool = ProcessPoolExecutor(workers, initializer=_leave_interrupts_to_the_parent)
        try:
            with contextlib.suppress(BrokenProcessPool):  # a reader may die before all are handed out
                for path in block:
                    futures[path] = pool.submit(_read, path, clip)
            for path in block:
                finding = _result(futures.get(path))
                if finding is None:
                    again.append(path)
                else:
                    yield path, finding
        finally:
            pool.shutdown(cancel_futures=True)
        for path in again:
            with ProcessPoolExecutor(1) as alone:
                finding = _result(alone.submit(_read, path, clip))
            yield path, finding or _Finding(0, "the process that read it died")


def _result(future: Future | None) -> _Finding | None:
    """What a process found; None if it died."""
    try:
        return None if future is None else future.result()
    except BrokenProcessPool:
        return None


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read(path: str, clip: ClipSpec) -> _Finding:
    frames = 0

    def choose(count: int) -> list[int]:
        nonlocal frames
        frames = count
        return sorted({i for c in range(clip.test_clips) for i in test_frames(clip, count, c)})

    try:
        read_frames(path, choose, decoder="av")  # which notices damage inside a picture that decord patches up
    except DecodeError as error:
        return _Finding(0, error.reason)
    except OSError as error:
        return _Finding(0, str(error))
    return _Finding(frames, None)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def render(report: Report) -> str:
    """The report as text for a person, without a last line break."""
    lines = [f"{report.name} in {report.root}"]
    for split, found in report.splits.items():
        lines.append(
            f"{split}.csv: {found.videos} videos, {found.classes} of {report.num_classes} classes, sha256 {found.sha256}"
        )
        lines += _listed("missing", found.missing)
        lines += _listed("undecodable", [f"{name}: {reason}" for name, reason in found.undecodable.items()])
        if report.clip is not None:
            short = [f"{name}: {frames} frames" for name, frames in found.short.items()]
            lines += _listed(f"shorter than a clip of {report.clip.num_frames} frames", short)
        lines += _listed("listed more than once", found.duplicates)
        if split != "train" and found.bad:
            lines.append(
                f"  counted as wrong, they take up to {found.points:.3g} points off the accuracy; "
                f"left out, they move it by up to {found.points:.3g} either way"
            )
    for pair, both in report.shared.items():
        lines += _listed(f"in both of {pair}", both)
    if report.splits and not report.decoded:
        lines.append("no file was opened")
    lines += [f"PROBLEM {problem}" for problem in report.problems]
    return "\n".join([*lines, "ok" if report.ok else f"{len(report.problems)} problems"])


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = [f"    and {len(names) - MOST_SHOWN} more"] if len(names) > MOST_SHOWN else []
    return [f"  {len(names)} {what}:", *(f"    {name}" for name in names[:MOST_SHOWN]), *more]
