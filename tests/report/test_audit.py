"""Each printed row with our counts beside it; other methods' counts come from a record."""

import subprocess
import sys
from dataclasses import dataclass

import pandas as pd
import pytest

from vmrepro import paths
from vmrepro.paper import reference
from vmrepro.report import audit, fig6, figures
from vmrepro.specs import catalog
from vmrepro.specs.schema import SCANS, to_dict
from vmrepro.store import Record

COSTED = ("table2", "table3", "table4")


@dataclass
class Method:
    row_id: str
    library: str | None = "timm"
    builder: str | None = "timm some_model"
    frames: int | None = 1
    size: int | None = 224
    match: str = "exact"
    note: str = ""


@dataclass
class Counted:
    params: int
    macs: int
    version: str = "1.0"


@pytest.mark.parametrize("table", reference.tables())
def test_a_line_per_printed_row_and_a_meaning_per_column(table):
    frame = audit.frame(table)
    assert list(frame["row"]) == [row.id for row in reference.table(table)]
    assert list(frame.columns) == list(audit.describe(table))
    assert all(audit.describe(table).values())
    for name in audit.shown(table):
        shown = frame[f"{audit.PRINTED[name]} (paper)"]
        assert [None if pd.isna(value) else value for value in shown] == [row.values[name] for row in reference.table(table)]


def test_printed_and_computed_cannot_be_confused():
    for table in reference.tables():
        for name in audit.frame(table).select_dtypes("number"):
            assert name.endswith(("(paper)", "(ours)"))


def test_what_was_inferred_is_not_shown_as_printed():
    inferred = [name for table in reference.tables() for name in audit.shown(table)]
    assert not {"isotropic", "views_spatial", "masked_pretraining"} & set(inferred)
    assert "input_frames" not in audit.shown("fig7a")


@pytest.mark.parametrize(
    ("printed", "counted", "verdict"),
    [
        ("7", 7_499_999, "exact"),
        ("7", 7_500_000, "differs"),
        ("6", 6_500_000, "differs"),  # halves go up
        ("26", 25_481_646, "within 3 %"),
        ("28.0", 28_040_000, "exact"),
        ("28.0", 28_060_000, "within 3 %"),
        ("", 5, ""),
        ("7", None, ""),
    ],
)
def test_matching(printed, counted, verdict):
    assert audit.matches(printed, counted, 10**6) == verdict


def test_own_rows_that_do_not_come_out():
    frames = pd.concat([audit.frame(table) for table in COSTED]).query("`counted by` == 'closed form'")
    assert len(frames) == 34
    off = {name: frames[frames[f"{name} match"] != "exact"] for name in ("params", "GFLOPs")}
    assert dict(zip(off["GFLOPs"]["row"], off["GFLOPs"]["GFLOPs match"], strict=True)) == {
        "t3_21": "differs",
        "t2_27": "within 3 %",
    }
    assert set(off["params"]["row"]) == {"t4_17", "t4_18"}
    assert all(erratum in row.errata for row, erratum in zip(off["GFLOPs"].itertuples(), ("E13", "E01"), strict=True))


def test_other_methods_that_do_not_come_out_have_an_erratum():
    frames = pd.concat([audit.frame(table) for table in COSTED]).query("`counted by` != 'closed form'")
    assert audit.NOT_RECORDED not in set(frames["counted by"])
    differ = frames[(frames["params match"] == "differs") | (frames["GFLOPs match"] == "differs")]
    assert set(differ["row"]) == {"t3_05", "t3_07", "t3_14", "t4_04", "t4_11", "t4_12"}
    assert (differ["errata"] != "").all()
    assert (frames["params match"] != "").sum() == 35


def test_views_multiply():
    row = audit.frame("table3").set_index("row").loc["t3_24"]
    assert row["GFLOPs x views (paper)"] == 2368 * 12
    assert row["GFLOPs x views (ours)"] == pytest.approx(row["GFLOPs (ours)"] * 12)


def test_counts_are_recorded_read_back_and_compared(figure_folder):
    assert set(audit.frame("table2")["counted by"]) == {"closed form", "not recorded"}
    counted = [
        (Method("t2_01"), Counted(28_589_128, 4_455_000_000)),
        (Method("t2_02", match="nearest", note="Swapped."), Counted(50_223_688, 1)),
        (Method("t2_07", None, None, match="none", note="Nobody."), None),
    ]
    audit.record_peers(counted, {"commit": "made"})
    assert figures.load(*audit.PEERS).origin["libraries"] == {"timm": "1.0"}
    assert (figure_folder / "peers.csv").is_file()
    frame = audit.frame("table2").set_index("row")
    assert frame.loc["t2_01", ["params (ours)", "GFLOPs (ours)", "counted by"]].tolist() == [28.589128, 4.455, "timm 1.0"]
    assert frame.loc["t2_02", ["GFLOPs match", "counted by"]].tolist() == ["differs", "timm 1.0, nearest"]
    assert frame.loc["t2_07", "counted by"] == audit.UNBUILT
    assert [tuple(line) for line in audit.peer_notes("table2").itertuples(index=False)] == [
        ("ConvNeXt-S", "Swapped."),
        ("VMamba-T", "Nobody."),
    ]
    assert audit.changed_peers(counted) == []
    assert audit.changed_peers([(Method("t2_01"), Counted(28_589_129, 4_455_000_000, "2.0"))]) == [
        "t2_01: params was 28589128, now 28589129 (timm 1.0 then, 2.0 now)"
    ]
    assert audit.changed_peers([(Method("t2_01"), None)]) == []  # its library is not installed
    assert len(audit.changed_peers([(Method("t2_07"), Counted(1, 2))])) == 2


def test_a_record_with_gaps_is_refused(figure_folder):
    with pytest.raises(ValueError, match="transformers is not installed"):
        audit.record_peers([(Method("t3_13", library="transformers"), None)], {})
    assert not (figure_folder / "peers.csv").exists()


def test_the_committed_record_names_every_other_method():
    recorded = audit.recorded_peers()
    wanted = {
        row.values["row_id"] for name in (*COSTED, "table6", "table8") for row in reference.table(name) if not audit.is_own(row)
    }
    assert set(recorded) == wanted
    assert all(isinstance(line["note"], str) for line in recorded.values() if pd.isna(line["params"]))


def paper_record(experiment, seed: int) -> Record:
    metrics = [{"epoch": 0, "top1": 81.0 + seed, "test_loss": 1.0, "train_loss": 1.0}]
    return Record(f"{experiment.id}-{seed}", None, {"experiment": to_dict(experiment), "seed": seed}, metrics, {})


def test_a_result_comes_from_the_tier_that_was_run(figure_folder):
    assert audit.result("t2_22", "paper") == "not run"
    records = [paper_record(experiment, seed) for experiment in catalog.fig6("paper") for seed in range(3)]
    fig6.save(records, "paper")
    assert audit.result("t2_22", "paper") == "82.00 ± 1.00 on imagenet, 3 seeds"
    assert audit.result("t2_22", "mini") == "not run"
    assert audit.result("t2_23", "paper") == "not run"
    results = audit.results("table2").set_index("row")
    assert results.loc["t2_25", "paper tier (ours)"].startswith("82.00")
    assert results.loc["t2_25", "command"] == "vmrepro run fig6_m_distill --tier paper"
    assert audit.frame("table2").set_index("row").loc["t2_22", "result (ours)"].startswith("82.00")


def test_a_command_names_an_experiment_that_is_the_row():
    said = [(row_id, one.id) for one in catalog.experiments("paper") for row_id in one.reproduces if not row_id.startswith("C")]
    for row_id, name in [*audit.TRAININGS.items(), *said]:
        (experiment,) = catalog.find(name, "paper")
        spec, row = audit.rows.spec_of(row_id), reference.row(row_id)
        same = ("depth", "embed_dim", "img_size", "num_frames", "num_classes", "scan")
        assert [getattr(experiment.model, field) for field in same] == [getattr(spec, field) for field in same]
        assert (experiment.distill is not None) == row.values.get("self_distillation", False)
    assert [experiment.id for experiment in audit.experiments("table2", "mini")] == list(audit.TRAININGS.values())
    assert [experiment.model.scan for experiment in audit.experiments("fig7a", "paper")] == list(SCANS)
    assert [experiment.id for experiment in audit.experiments("table3", "paper")] == [
        "fig7b_k400_f16_224px",
        "fig7b_k400_f32_224px",
    ]
    assert audit.experiments("table6", "paper") == []


def test_errata_of_a_table_name_its_rows():
    ledger = audit.errata("table3").set_index("id")
    assert ledger.loc["E02", "rows"] == "t3_05"
    assert ledger.loc["E22", "rows"] == "t3_16 ... t3_33 (13)"
    assert "E13" not in ledger.index
    assert audit.errata("table8").set_index("id").loc["E20", "rows"] == "t8_06_msrvtt t8_16_msvd"


def test_claims_of_a_table_have_a_verdict():
    judged = audit.claims("table3").set_index("claim")
    assert {"C09", "C39", "C52"} <= set(judged.index)
    assert judged.loc["C39", "paper"] == "supported"
    assert "C40" not in judged.index
    assert "C92" in set(audit.claims("table8")["claim"])  # it names printed rows, which the file spreads


def test_notes_say_what_is_assumed():
    assert audit.notes("table6")[0].startswith(
        "Not printed, assumed for the counts of own rows: input_size 224, dataset Breakfast"
    )
    assert any(note.startswith("VMamba-T, VMamba-S, VMamba-B: no ") for note in audit.notes("table2"))


def test_no_torch():
    code = (
        "import sys; from vmrepro.report import audit, export, scatter; audit.frame('table2'); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=paths.root()).returncode == 0
