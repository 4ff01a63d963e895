"""Every claim is judged, the committed list is today's, and what changes in it is named."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys

import pytest

from vmrepro import cli, paths
from vmrepro.paper import claims
from vmrepro.paper.claims import Verdict
from vmrepro.report import rebuild, verify

COMMITTED = paths.root() / "figures"
SECONDS = 2.0  # of processor time for the whole list


@pytest.fixture
def copied(figure_folder):
    """The committed figures, copied so that a test may change them."""
    figure_folder.mkdir()
    shutil.copy(COMMITTED / "verdicts.csv", figure_folder)
    for figure_id in rebuild.DRAWN_BY:
        if (COMMITTED / figure_id).is_dir():
            shutil.copytree(COMMITTED / figure_id, figure_folder / figure_id)
    return figure_folder


@pytest.fixture
def unrecorded(figure_folder):
    """A folder of figures with nothing in it."""
    figure_folder.mkdir()
    return figure_folder


def by_basis(lines, claim_id: str) -> dict[str, verify.Line]:
    return {line.basis: line for line in lines if line.claim == claim_id}


def test_the_committed_list_is_todays(copied):
    lines = verify.judgements()
    assert verify.changed(lines) == []
    committed = (COMMITTED / "verdicts.csv").read_text()
    assert verify.render(lines, "csv") == committed


def test_every_claim_has_a_line_for_each_basis_that_can_speak(copied):
    lines = verify.judgements()
    assert list(dict.fromkeys(line.claim for line in lines)) == [claim.id for claim in claims.claims()]
    assert len({(line.claim, line.basis, line.source, line.comparison) for line in lines}) == len(lines)
    for claim in claims.claims():
        found = by_basis(lines, claim.id)
        assert "paper" in found
        assert ("paper-tier" in found) == (claim.test_scale != "analytic")
        assert {line.verdict for line in found.values()} <= set(map(str, Verdict))
        assert all(line.comparison and line.source and line.statement == claim.statement for line in found.values())
        assert "smoke" not in found


def test_lines_say_what_was_compared():
    lines = verify.judgements()
    printed = by_basis(lines, "C29")["paper"]
    assert (printed.verdict, printed.number, printed.unit, printed.source) == ("contradicted", 1.0, "points", "t2_25;t2_14")
    assert printed.comparison == "82.8 - 81.8 = +1.0, stated +2.0"
    assert "2.0 arises only" in printed.note
    assert "given: full" in by_basis(lines, "C90")["paper"].note
    assert by_basis(lines, "C29")["paper-tier"].comparison == "t2_25 - t2_14 = 2"
    assert by_basis(lines, "C01")["paper"].source == "Fig. 1"
    assert by_basis(lines, "C17")["paper"].source == "section 3.2"


def test_a_recorded_figure_judges_at_its_tier(copied):
    found = by_basis(verify.judgements(), "C24")
    assert list(found) == ["paper", "mini", "paper-tier"]
    mini = found["mini"]
    assert (mini.verdict, mini.seeds, mini.unit, mini.source) == ("supported", 3, "points", "figures/fig6/mini.json")
    assert mini.low < mini.number < mini.high
    assert found["paper-tier"].verdict == "not run"


def test_a_smoke_record_is_not_even_read(copied):
    for suffix in ("csv", "json"):
        (copied / "fig6" / f"smoke.{suffix}").write_text("not a record")
    assert verify.changed(verify.judgements()) == []


@pytest.mark.parametrize(
    ("claim", "basis", "verdict"),
    [
        ("C07", "counts", "supported"),  # a misprint in the table does not decide
        ("C13", "counts", "partly supported"),
        ("C29", "paper", "contradicted"),
        ("C23", "paper", "supported"),  # a run on small data does not outweigh print
        ("C24", "mini", "supported"),
        ("C21", "mini", "within seed spread"),
        ("C05", "paper-tier", "not run"),
    ],
)
def test_one_line_over_all_bases(copied, claim, basis, verdict):
    found = verify.overall(claim)
    assert (found.basis, found.verdict) == (basis, verdict)
    assert all(f"{line.basis}: {line.verdict}" in found.comparison for line in by_basis(verify.judgements(), claim).values())


def test_an_unknown_claim_is_refused():
    with pytest.raises(ValueError, match="unknown claim 'C99'"):
        verify.overall("C99")


def test_a_verdict_that_differs_from_the_committed_one_is_named(copied, capsys):
    path = copied / "verdicts.csv"
    path.write_text(path.read_text().replace("C29,paper,contradicted", "C29,paper,supported"))
    assert verify.changed(verify.judgements()) == ["C29 paper t2_25;t2_14: committed as 'supported', now 'contradicted'"]
    assert cli.main(["verify"]) == 1
    assert "CHANGED C29 paper" in capsys.readouterr().err


def test_a_line_in_one_list_only_is_a_change(copied):
    path = copied / "verdicts.csv"
    kept = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith("C31,paper,")]
    path.write_text("".join([*kept, "C31,guess,supported,,,,,,,nowhere,,\n"]))
    assert sorted(re.sub(r"t2\S+:", "rows:", line) for line in verify.changed(verify.judgements())) == [
        "C31 guess nowhere: committed as 'supported', now 'absent'",
        "C31 paper rows: committed as 'absent', now 'supported'",
    ]


def test_a_verdict_that_differs_from_the_one_beside_its_figure_is_named(copied):
    origin = json.loads((copied / "fig6" / "mini.json").read_text())
    origin["claims"][0]["verdict"] = "supported"
    (copied / "fig6" / "mini.json").write_text(json.dumps(origin))
    assert verify.changed(verify.judgements()) == ["fig6 mini C21: recorded as 'supported', now 'within seed spread'"]


def test_without_a_list_there_is_nothing_to_compare_with(unrecorded, capsys):
    assert cli.main(["verify"]) == 2
    printed = capsys.readouterr()
    assert "C98" in printed.out
    assert "`vmrepro verify --write` makes one" in printed.err
    assert cli.main(["verify", "--write"]) == 0
    assert verify.changed(verify.judgements()) == []


def test_formats_hold_the_same_lines(copied, capsys):
    assert cli.main(["verify", "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert cli.main(["verify", "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert cli.main(["verify"]) == 0
    text = capsys.readouterr().out
    assert len(table) == len(values) == len(verify.judgements())
    for row, value in zip(table, values, strict=True):
        assert list(row) == list(value)
        assert (row["claim"], row["verdict"], row["comparison"]) == (value["claim"], value["verdict"], value["comparison"])
        assert row["number"] == ("" if value["number"] is None else f"{value['number']:.6g}")
    body, tally = text.split("\n\n")
    assert len(body.splitlines()) == len(table) + 1
    measured = next(line for line in verify.judgements() if (line.claim, line.basis) == ("C24", "mini"))
    number, interval = re.escape(f"{measured.number:.4g} points"), re.escape(f"{measured.low:.2f} to {measured.high:.2f}")
    assert re.search(rf"^C24 +mini +supported +{number} +{interval} +3 +fig6_b_distill > fig6_b$", body, re.MULTILINE)
    supported = sum(line.basis == "paper" and line.verdict == "supported" for line in verify.judgements())
    assert f"{supported} supported" in tally
    with pytest.raises(ValueError, match="unknown format 'yaml'; expected one of text, csv, json"):
        verify.render([], "yaml")


def test_the_list_is_quick_and_needs_no_torch():
    code = (
        "import sys, time; from vmrepro import cli; status = cli.main(['verify']);"
        "print(status, 'torch' in sys.modules, time.process_time(), file=sys.stderr)"
    )
    best = float("inf")
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=paths.root(), capture_output=True, text=True)
        status, torch, seconds = done.stderr.split()
        assert (status, torch) == ("0", "False")
        best = min(best, float(seconds))
    assert best < SECONDS


def test_print_and_counts_need_neither_pandas_nor_scipy(unrecorded):
    code = (
        "import sys; from vmrepro.report import verify; verify.judgements(); print({'pandas', 'scipy', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=paths.root(), capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
