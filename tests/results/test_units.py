"""Lengths in pixels: their names in files end in _px, and are read back."""

from types import SimpleNamespace

import numpy as np

from jaxmark.core.grids import Grid, Plane
from jaxmark.data.frame import PreparedScan
from jaxmark.inference.model import ScanLandmarks
from jaxmark.results.batch import _describe, read_record
from jaxmark.results.measures.units import from_unit, in_unit
from jaxmark.system.files import write_json


def test_names_of_lengths_change_with_the_unit_and_texts_do_not():
    tree = {"mre_mm": 1.5, "rows": [{"sd_mm": None, "name": "a_mm"}], "words": ["in_mm"]}
    written = in_unit(tree, "px")
    assert written == {
        "mre_px": 1.5,
        "rows": [{"sd_px": None, "name": "a_mm"}],
        "words": ["in_mm"],
    }
    assert from_unit(written, "px") == tree
    assert in_unit(tree, "mm") is tree and from_unit(tree, "mm") is tree
    assert in_unit("radius_mm", "px") == "radius_px"


def test_a_record_keeps_the_names_of_its_landmarks(tmp_path):
    names, positions = ("tip_mm", "base_px", "edge"), np.arange(9.0).reshape(3, 3)
    scan = tmp_path / "film.png"
    scan.write_bytes(b"film")
    case = ScanLandmarks(
        "film", names, positions, np.ones(3), None, np.full(3, 2.0), 0.9, plane=Plane("px", None)
    )
    nothing = np.zeros(3)
    prepared = PreparedScan(
        image=np.zeros((4, 4, 1), np.float16),
        ijk_to_lps=np.eye(4),
        quality=np.nan,
        lead=np.nan,
        overlap=1.0,
        profile=nothing,
        extent_mm=nothing,
        voxel_mm=nothing,
        grid=Grid((4, 4, 1), np.eye(4)),
    )
    tree = _describe(SimpleNamespace(case=case, model="m", scan=scan, prepared=(prepared,)))
    assert list(tree["landmarks"]) == list(names)
    assert tree["landmarks"]["tip_mm"]["lps_px"] == [0, 1, 2]
    assert tree["landmarks"]["base_px"]["radius_px"] == 2
    write_json(tmp_path / "film.json", tree)
    rows = read_record(tmp_path / "film.json", names)["landmarks"]
    assert rows["base_px"]["lps_mm"] == [3, 4, 5] and rows["tip_mm"]["radius_mm"] == 2
