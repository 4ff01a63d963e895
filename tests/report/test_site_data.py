import json
import shutil

import pytest

from vmrepro import paths
from vmrepro.paper import claims, reference
from vmrepro.report import site_data, verify

COMMITTED = paths.root() / "figures"


@pytest.fixture
def copied(figure_folder):
    shutil.copytree(COMMITTED, figure_folder, ignore=shutil.ignore_patterns("smoke.*", "*.html"))
    return figure_folder


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Fig. 6a, Table 2", {"fig6", "table2"}),
        ("Tables 3 and 4", {"table3", "table4"}),
        ("Tables 2-4", {"table2", "table3", "table4"}),
        ("Tables 2 to 4", {"table2", "table3", "table4"}),
        ("Tables 1, 2; Figs. 7b", {"table1", "table2", "fig7"}),
        ("Figure 4", {"fig4"}),
        ("Table 6 (COIN)", {"table6"}),
        ("section 4.1", set()),
        (None, set()),
    ],
)
def test_mentions_of_figures_and_tables(text, found):
    assert site_data.mentioned(text) == found


def test_every_table_has_a_page():
    pages = {result.id for result in site_data.RESULTS}
    assert {site_data.result_of(name) for name in reference.tables()} <= pages
    assert site_data.result_of("table7_long") == "table7"
    assert site_data.result_of("fig7a") == "fig7"


def test_every_claim_and_erratum_is_gathered(copied):
    content = site_data.gather()
    assert [entry.claim for entry in content.claims] == list(claims.claims())
    assert [entry.erratum for entry in content.errata] == list(reference.errata())
    assert all(entry.lines for entry in content.claims)
    assert sum(len(entry.lines) for entry in content.claims) == len(verify.judgements())


def test_claims_and_errata_belong_to_what_they_name_and_to_their_rows(copied):
    content = site_data.gather()
    results = {entry.claim.id: entry.results for entry in content.claims}
    results |= {entry.erratum.id: entry.results for entry in content.errata}
    assert results["C29"] == {"table2"}
    assert results["C66"] == {"fig7", "table4"}  # "Fig. 7b", with rows of Table 4
    assert results["C65"] == {"fig7"}  # said in the text alone, tested by the runs of that figure
    assert results["E02"] == {"table3", "table4"}
    assert results["E10"] == {"table2"}  # said in the text, of a row of Table 2


def test_recordings_carry_every_run_of_their_origin(copied):
    found = {(recording.figure, recording.name): recording for recording in site_data.gather().recordings}
    recording, origin = found["fig6", "mini"], json.loads((copied / "fig6" / "mini.json").read_text())
    assert [row.id for row in recording.runs.rows] == [run["id"] for run in origin["runs"]]
    assert recording.facts["commit"] == origin["runs"][0]["commit"]
    assert recording.facts["device name"] == origin["runs"][0]["device"]["name"]
    assert recording.command == "vmrepro run fig6 --tier mini"
    assert found["fig6", "tried_256_images"].command is None


def test_numbers_that_were_edited_are_refused(copied):
    path = copied / "fig6" / "mini.csv"
    path.write_text(path.read_text().replace("fig6_s,0,1,", "fig6_s,0,1,9", 1))
    with pytest.raises(ValueError, match="is not the file its origin"):
        site_data.gather()


def test_what_is_not_recorded_is_listed_with_its_command(copied):
    before = site_data.missing_figures(site_data.gather()).set_index(["figure", "tier"])
    assert before.loc[("Fig. 6", "mini"), "state"] == "recorded"
    assert before.loc[("Fig. 6", "paper"), "state"] == "not run"
    assert before.loc[("Fig. 6", "paper"), "command"] == "vmrepro run fig6 --tier paper"
    assert set(before.reset_index()["figure"]) == {"Fig. 1", "Fig. 6", "Fig. 7"}  # Fig. 4 is drawn, and takes no run
    (copied / "fig6" / "mini.json").unlink()
    (copied / "fig6" / "mini.csv").unlink()
    after = site_data.missing_figures(site_data.gather()).set_index(["figure", "tier"])
    assert after.loc[("Fig. 6", "mini"), "state"] == "not run"


def test_own_rows_without_a_run_are_listed(copied):
    missing = site_data.missing_rows()
    assert "t2_25" in set(missing["table2"]["row"])
    assert "table1" not in missing  # it prints no score


def test_counts_of_own_rows_against_what_is_printed(copied):
    found = {agreement.quantity: agreement for agreement in site_data.agreements(site_data.gather())}
    flops = found["Multiply-adds of VideoMamba"]
    assert (flops.total, flops.exact, flops.differs) == (34, 32, 1)  # all but t2_27 (0.2 off) and t3_21 (erratum E01)
