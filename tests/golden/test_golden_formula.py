import pytest

from tests.golden.cases import read_json
from tests.golden.golden_formula import golden_input, golden_weight


@pytest.mark.parametrize("row", read_json("formula_check.json"), ids=lambda row: f"{row['name']}-{row['seed']}")
def test_formula_gives_the_recorded_values(row):
    make = {"golden_weight": golden_weight, "golden_input": golden_input}[row["what"]]
    value = make(row["name"], tuple(row["shape"]), row["seed"])
    assert value.ravel()[: len(row["first"])].tolist() == pytest.approx(row["first"], rel=1e-6)
    assert value.astype("float64").sum() == pytest.approx(row["sum_float64"], rel=1e-9, abs=1e-4)
