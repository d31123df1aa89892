"""The experiment about maps between phantoms: its table says what must be so."""

import subprocess
import sys

from running import ROOT

from jaxmark.core.alignment import KINDS


def test_maps_that_can_be_exact_are():
    # A process of its own: other experiments have flags of the same names.
    result = subprocess.run(
        [sys.executable, "-m", "experiments.phantoms.alignment", "--pairs=1"],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    header, _, *lines = result.stdout.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["pair", "landmarks", *KINDS]
    table = {}
    for line in lines:
        pair, landmarks, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for kind, cell in zip(KINDS, cells, strict=True):
            table[pair, landmarks, kind] = [float(error) for error in cell.split(",")]
    assert len(table) == 3 * 3 * len(KINDS)
    for kind in KINDS:
        assert table["two times", "true", kind] == [0, 0]
        # Errors of the landmarks average out, and one far off does not count.
        for landmarks in ("2 mm off", "2 mm off, one 25 mm"):
            assert max(table["two times", landmarks, kind]) < 2.0
        # Two people differ, whatever the map.
        assert table["two people", "true", kind][0] > 2
    for kind in ("similarity", "affine", "thin_plate"):
        assert table["re-posed", "true", kind] == [0, 0]
    # A rigid map has no scale.
    assert min(table["re-posed", "true", "rigid"]) > 0.1
    spline, affine = (table["two people", "true", kind][1] for kind in ("thin_plate", "affine"))
    assert spline < affine
