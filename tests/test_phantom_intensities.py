"""Real and drawn intensities side by side: the measures on a scan of which all is known."""

import sys

import numpy as np
import pytest

from experiments.phantoms import intensities
from jaxmark.core.geometry import compose_affine
from jaxmark.data.scans import write_scan

SPACING_MM = np.array([0.4, 0.5, 0.7])


def tubes(noise, shape=(96, 48, 32)):
    """Brain of 100, two arteries of 300 along Z, 3 mm wide, and a point on each (2, 3)."""
    rng = np.random.default_rng(0)
    middles = np.array([[12.0, 12.0], [26.0, 12.0]])
    mm = np.stack(np.indices(shape), -1) * SPACING_MM
    inside = [np.linalg.norm(mm[..., :2] - middle, axis=-1) < 1.5 for middle in middles]
    voxels = 100 + 200.0 * np.any(inside, axis=0) + noise * rng.standard_normal(shape)
    return voxels, np.column_stack([middles / SPACING_MM[:2], [16.0, 16.0]])


def test_measures_are_those_of_a_scan_that_is_known():
    voxels, ijk = tubes(noise=0.0)
    values = intensities.scaled(voxels, ijk, SPACING_MM)
    found = intensities.figures(values, ijk, SPACING_MM)
    assert found["50 %"] == 0 and found["99.9 %"] == pytest.approx(1)
    assert found["artery's width (mm)"] == pytest.approx(3.0, abs=0.3)
    assert found["share over 0.5"] == (voxels > 200).mean() > 0.01
    assert found["noise"] == 0
    noisy = intensities.scaled(tubes(noise=10.0)[0], ijk, SPACING_MM)
    noise = intensities.figures(noisy, ijk, SPACING_MM)["noise"]
    assert noise == pytest.approx(10 / 200, rel=0.2)


def test_the_command_prints_a_row_a_measure(tmp_path, monkeypatch, capsys):
    voxels, ijk = tubes(noise=5.0)
    # Names of landmarks that everybody has, where the points of the drawn people lie.
    ijk_to_lps = compose_affine(np.diag(SPACING_MM), np.array([-19.0, -12.0, -11.0]))
    write_scan(tmp_path / "box.mha", voxels.astype(np.int16), ijk_to_lps)
    rows = ["ICA terminus R,-7,0,0", "ICA terminus L,7,0,0", "BA tip,0,12,-5"]
    table = "\n".join(["landmark,x_lps_mm,y_lps_mm,z_lps_mm", *rows]) + "\n"
    (tmp_path / "box.csv").write_text(table, encoding="utf-8")
    monkeypatch.setattr(
        sys, "argv", ["intensities", f"--scan={tmp_path / 'box.mha'}", "--people=1"]
    )
    intensities.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 8 + 3 and "1 drawn people" in lines[0]
    assert all(line.count("|") == 4 for line in lines if "---" not in line)
