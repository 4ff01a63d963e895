"""The paper's own columns are the check: what a library builds has the printed parameters and cost, or the reason is known."""

import importlib.util
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vmrepro.models import peers
from vmrepro.models.peers_table import ABSENT, ARCHITECTURES, BUILT
from vmrepro.paper import reference

PRINTED = [row_id for row_id in BUILT if row_id.startswith(("t2", "t3", "t4"))]
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason=f"the extra peers is not installed: {peers.INSTALL}"
)


def rows(row_ids):
    """The rows as parameters of a test, those of transformers skipped where it is not installed."""
    built = {row_id: peers.PEERS[row_id].library == "transformers" for row_id in row_ids}
    return [pytest.param(row_id, marks=needs_transformers if extra else ()) for row_id, extra in built.items()]


def agrees(number: float, printed: float, decimals: int, tolerance: float) -> bool:
    """Whether a number is within ``tolerance`` of the printed one, or rounds to it."""
    return round(number, decimals) == printed or abs(number / printed - 1) <= tolerance


def agrees_with_the_cost(row_id: str, made: peers.Count) -> bool:
    return agrees(made.macs / 1e9, reference.value(row_id, "flops_g").value, 1 if row_id.startswith("t2") else 0, 0.015)


def test_every_peer_row_is_built_or_has_its_reason():
    of_the_paper = {row.values["row_id"] for table in peers.TABLES for row in reference.table(table) if not row.values["is_ours"]}
    assert set(peers.PEERS) == of_the_paper == set(BUILT) | set(ABSENT)
    assert not set(BUILT) & set(ABSENT)
    assert {built.architecture for built in BUILT.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("row_id", rows(PRINTED))
def test_parameters_and_cost_are_the_printed_ones_or_the_erratum_is_named(row_id):
    made, peer = peers.count(row_id), peers.PEERS[row_id]
    # Two points: the tables mix heads of 400 and 174 classes, and size and length add positions.
    assert agrees(made.params / 1e6, reference.value(row_id, "params_m").value, 0, 0.02)
    named = set(re.findall(r"E\d\d", peer.note))
    assert named <= {erratum.id for erratum in reference.errata(row_id)}
    assert agrees_with_the_cost(row_id, made) == (not named)
    if peer.fits:
        assert agrees_with_the_cost(row_id, peers.count(row_id, frames=peer.fits[0], size=peer.fits[1]))


@pytest.mark.parametrize(
    ("row_id", "parameters"),
    [("t2_12", 5_717_416), ("t2_13", 22_050_664), ("t2_14", 86_567_656), ("t2_01", 28_589_128), ("t2_04", 28_288_354)],
)
def test_known_models_have_their_known_size_and_another_input_is_seen(row_id, parameters):
    assert peers.count(row_id).params == parameters
    assert agrees(parameters / 1e6, reference.value(row_id, "params_m").value, 0, 0.01)
    assert not agrees_with_the_cost(row_id, peers.count(row_id, size=256))


@pytest.mark.parametrize(("row_id", "constructor"), [("t3_08", "mvit_v2_s"), ("t4_05", "mvit_v1_b")])
def test_our_mvit_is_torchvisions_own_where_it_has_one(row_id, constructor):
    from torchvision.models import video

    made = peers.count(row_id)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = getattr(video, constructor)(num_classes=peers.PEERS[row_id].classes).eval()
        model(torch.empty(1, 3, 16, 224, 224))
    assert made.params == sum(parameter.numel() for parameter in model.parameters())
    assert made.macs == counter.get_total_flops() // 2


def windowed(window: int, tokens: int, width: int, depths: tuple[int, ...]) -> int:
    """Multiply-adds of both products of attention in windows; a stage has a quarter of the tokens and twice the width."""
    return sum(depth * 2 * window * (tokens >> 2 * stage) * (width << stage) for stage, depth in enumerate(depths))


@pytest.mark.parametrize(
    ("row_id", "attention"),
    [
        ("t2_01", 0),
        ("t2_13", 12 * 2 * 197**2 * 384),
        ("t2_15", 12 * 2 * 577**2 * 768),
        ("t2_04", windowed(49, 56 * 56, 96, (2, 2, 6, 2))),
        ("t3_04", windowed(8 * 49, 16 * 56 * 56, 96, (2, 2, 6, 2))),
        ("t4_23", windowed(16 * 49, 16 * 56 * 56, 128, (2, 2, 18, 2))),
        pytest.param("t3_28", 12 * 2 * 1568**2 * 768, marks=needs_transformers),
        pytest.param("t3_14", 24 * 2 * 1569**2 * 1024, marks=needs_transformers),
        pytest.param("t3_13", 12 * 2 * (196 * 96**2 + 96 * 197**2) * 768, marks=needs_transformers),
    ],
)
def test_attention_is_counted_in_full(row_id, attention):
    assert peers.count(row_id).attention_macs == attention


@pytest.mark.parametrize("row_id", ["t2_01", "t3_04", "t4_05"])
def test_views_multiply_the_cost(row_id):
    made, values = peers.count(row_id), reference.row(row_id).values
    assert made.total_macs == made.macs * values.get("views_total", 1)
    assert made.total_macs / 1e9 == pytest.approx(values.get("flops_total_g", values["flops_g"]), rel=0.015)


def test_a_row_without_views_has_no_total():
    assert peers.count("t8_07").macs > 0
    assert peers.count("t8_07").total_macs is None


@needs_transformers
@pytest.mark.parametrize("row_id", ["t6_04", "t6_05", "t8_13"])
def test_a_backbone_is_counted_at_the_input_taken_for_it(row_id):
    peer = peers.PEERS[row_id]
    assert peers.count(row_id) == peers.count(row_id, frames=BUILT[row_id].taken[0], size=BUILT[row_id].taken[1])
    assert (peer.match, peer.views, peer.fits) == ("nearest", None, None)
    assert "The row prints" in peer.note


def test_a_table_is_counted_row_by_row_and_a_gap_is_none(monkeypatch):
    monkeypatch.setattr(peers, "absence", lambda row_id: None if row_id == "t3_04" else "not here")
    counted = peers.counts("table3")
    assert [peer.row_id for peer, _ in counted][:4] == ["t3_01", "t3_02", "t3_03", "t3_04"]
    assert [peer.row_id for peer, made in counted if made] == ["t3_04"]


def test_a_configuration_is_built_once():
    assert peers.count("t3_25") == peers.count("t3_06")  # the seconds included


def test_what_is_not_installed_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "transformers" else name)
    with pytest.raises(
        ValueError, match=r"t3_28 .*VideoMAE-B.* built by transformers, which is not installed: pip install .*peers"
    ):
        peers.count("t3_28")
    assert peers.absence("t2_01") is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: peers.count("t2_07"), r"t2_07 \(Table 2, VMamba-T 224\) is not counted: no well-kept library builds VMamba"),
        (lambda: peers.count("t3_02"), "pytorchvideo 0.1.5 does, but"),
        (lambda: peers.count("t8_01"), "names a family of backbones, Swin, without a size"),
        (lambda: peers.count("t2_19"), "unknown peer 't2_19'; the nearest known: "),
        (lambda: peers.counts("table5"), "unknown table of peers 'table5'; the nearest known: "),
        (lambda: peers.count("t2_01", frames=8), "convnext_tiny is an image model and takes 1 frame, not 8"),
        (lambda: peers.count("t2_13", size=225), "a multiple of 32 pixels; got 1 of 225"),
        (lambda: peers.count("t3_04", frames=0), "at least one frame of a multiple of 32 pixels; got 0 of 224"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_absent_are_absent():
    """Red once a new version of a library has learned to build one of them; then the row can be counted."""
    import timm
    import torchvision

    names = {*timm.list_models(), *torchvision.models.list_models()}
    if importlib.util.find_spec("transformers"):
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        names |= set(CONFIG_MAPPING_NAMES)
    sought = r"vmamba|^vim|s4nd|slowfast|x3d|uniformer|^stam|motionformer|^ct_?net|^tdn|i3d"
    assert "convnext_tiny" in names
    assert [name for name in sorted(names) if re.search(sought, name)] == []
