"""The model behind each of the paper's own rows, as a spec that :mod:`vmrepro.specs.cost` can price (no torch)."""

from __future__ import annotations

from collections.abc import Mapping

from vmrepro.paper import reference
from vmrepro.specs.schema import SIZES, ModelSpec

# Classes of each data set and LVU task; the two user tasks are regressions with one output. The paper names 1,000, 10 and
# 180 in its text, the others are those of the public lists.
CLASSES = {
    **{"ImageNet-1K": 1000, "K400": 400, "SSV2": 174, "Breakfast": 10, "COIN": 180},
    **{"relation": 4, "speak": 5, "scene": 6, "director": 10, "genre": 4, "writer": 10, "year": 9, "like": 1, "view": 1},
}
# The scan orders of Fig. 7a, by our name in its table.
SCAN_TYPES = {
    "sf_bidirectional": "spatial_first",
    "tf_bidirectional": "temporal_first",
    "st_bidirectional_v1": "spatiotemporal_v1",
    "st_bidirectional_v2": "spatiotemporal_v2",
    "half_sf_half_tf": "half_spatial_half_temporal",
    "half_tf_half_sf": "half_temporal_half_spatial",
    "alternative_sf_tf": "alternating",
}
# What a table does not print of its own rows, taken from the text or else from the released scripts of the same results.
ASSUMED: Mapping[str, Mapping[str, object]] = {
    "table1": {"input_size": 224, "dataset": "ImageNet-1K"},
    **{name: {"input_frames": 8, "input_size": 224} for name in ("table5a", "table5b", "table5c", "table5d")},
    "table6": {"input_size": 224, "dataset": "Breakfast"},
    "table7": {"input_size": 224, "task": "relation"},
    "table7_long": {"input_size": 224},
    "table8": {"model_size": "M", "input_frames": 8, "input_size": 224, "dataset": None},
}


def spec_of(row_id: str) -> ModelSpec | None:
    """The spec of the paper's own model in a row or a cell, None where the row is another method's.

    What the row does not print comes from ``ASSUMED``. Tables 1 and 2 are image models. Table 6: 224 pixels and the ten classes
    of Breakfast; COIN is ``replace(spec, num_classes=CLASSES["COIN"])``. Table 7: 224 pixels; ``t7_07`` has the four classes
    of its first task, ``t7_07_year`` and the like those of theirs. Table 5: 8 frames at 224 pixels, and Table 8: M with 8
    frames at 224 pixels, the visual encoder alone (no head, no text encoder). Each row of Fig. 7a has its scan order, all other
    rows spatial-first. Training settings stay at their defaults: they change neither size nor cost. ValueError for an unknown
    row.
    """
    row = reference.rows(row_id)[0]
    if not row.values.get("is_ours", True):
        return None
    cells = {**row.values, **ASSUMED.get(row.table, {})}
    size = cells.get("model_size") or str(cells.get("model") or cells["backbone"]).rpartition("-")[2]
    data = cells.get("task") or cells["dataset"]
    image = data == "ImageNet-1K"
    return ModelSpec(
        **SIZES[size.lower()],
        img_size=cells["input_size"],
        num_frames=None if image else cells["input_frames"],
        num_classes=0 if data is None else CLASSES[data],
        scan=SCAN_TYPES[cells.get("scan_type", "sf_bidirectional")],
    )
