"""Every claim judged from the paper's own printed numbers, and where that differs from the verdicts given in ``claims.csv``."""

from __future__ import annotations

from vmrepro.paper import own_images, own_long, own_video
from vmrepro.paper.claims import Finding, Verdict, claim

JUDGES = {**own_images.JUDGES, **own_video.JUDGES, **own_long.JUDGES}

# What ``support`` in claims.csv says, in the words of a verdict.
GIVEN = {
    "full": Verdict.SUPPORTED,
    "partial": Verdict.PARTLY_SUPPORTED,
    "none": Verdict.CONTRADICTED,
    "not_tabulated": Verdict.NO_NUMBER,
}
# Where this recomputation and the verdict or number given in claims.csv part, and which of the two to trust.
DIFFERS = {
    "C11": "given: partial, 0.8941, from a count and not from printed numbers. That count is no whole model either: it lacks "
    "norms and scan. Judged under counts, against everything.",
    "C12": "given: full, 0.4016. Sizes follow from depth and width by counting, not from printed numbers; counts give the same.",
    "C13": "given: 1.1667, the ratio of Ti. S is further from 1, with 26 to 22 M, and decides. The verdict is the same.",
    "C32": "given: -0.9, the gap to VMamba-B. ConvNeXt-B is further above, by 1.0. The verdict is the same.",
    "C71": "given: 12.4 bits, from counting masks and not from printed numbers; counts give the same.",
    "C90": "given: full, because 7 of 9 tasks are won, whatever the other two lose: a rule that cannot fail on a lost task. Here "
    "a lost task is comparable within 5 % of the best; speak is (0.9 %), like is not (a squared error 13 % larger).",
}


def finding(claim_id: str) -> Finding:
    """What the printed numbers say of a claim; ValueError for an unknown claim."""
    subject = claim(claim_id)
    return JUDGES[subject.id](subject)
