"""All claims judged from the printed numbers, against the verdicts that another computation gave."""

import pytest

from vmrepro.paper import claims, own_images, own_long, own_numbers, own_video, reference

WHOLE_TABLE = {"C52", "C53", "C83"}  # "the best" of a table reads it all
COUNTED = {"C11", "C12", "C20"}  # rows that only counting reads


def differs(claim: claims.Claim) -> bool:
    found = own_numbers.finding(claim.id)
    if found.verdict != own_numbers.GIVEN[claim.support]:
        return True
    return claim.computed_number is not None and (
        found.number is None or abs(found.number - claim.computed_number) > 6e-4  # given with three or four decimals
    )


def test_every_claim_has_one_judge():
    modules = (own_images.JUDGES, own_video.JUDGES, own_long.JUDGES)
    assert [name for judges in modules for name in judges] == [claim.id for claim in claims.claims()]


def test_verdicts_and_numbers_are_the_given_ones_but_for_a_list_with_reasons():
    assert {claim.id for claim in claims.claims() if differs(claim)} == set(own_numbers.DIFFERS)
    assert all(reason.startswith("given: ") for reason in own_numbers.DIFFERS.values())


@pytest.mark.parametrize("claim", claims.claims(), ids=lambda claim: claim.id)
def test_a_judge_reads_the_rows_that_its_claim_names(claim, monkeypatch):
    real, read = reference.row, set()

    def spy(row_id):
        row = real(row_id)
        read.add(row_id if row_id in claim.rows else row.values["row_id"])
        return row

    monkeypatch.setattr(reference, "row", spy)
    own_numbers.finding(claim.id)
    if claim.id not in COUNTED:
        assert set(claim.rows) <= read
    if claim.id not in WHOLE_TABLE:
        assert read <= set(claim.rows)


def test_an_unknown_claim_is_refused():
    with pytest.raises(ValueError, match="unknown claim 'C99'"):
        own_numbers.finding("C99")
