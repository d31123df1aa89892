"""Intensities of a real scan of the circle beside those of drawn people, in the same place.

    python -m experiments.phantoms.intensities --scan=topcow_cta_box.mha --kind=CTA

Beside NAME.mha lies NAME.csv with known points (columns landmark, x_lps_mm, y_lps_mm, z_lps_mm).
Each drawn person of `experiments.phantoms.looks` is laid onto the real scan by these points, and
read where it has voxels. Scanners scale differently, so brain (the median) is 0 and artery (the
median of what is brightest within 2 mm of each point) is 1, in both. In the table: percentiles of
all voxels, the share that is brighter than half of an artery, noise (the median difference between
neighbours along X, over 0.954: the SD of noise that is independent), and how wide arteries are (mm
along X at half of their height, median over the points).
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage

from experiments.cow_real import known_points
from experiments.phantoms.looks import KINDS, Drawn, people, scan
from jaxmark.core.geometry import apply_affine, fit_rigid
from jaxmark.core.grids import centred
from jaxmark.data.phantoms.cow.cohort import CirclePhantom
from jaxmark.data.phantoms.grids import Grid
from jaxmark.data.scans import Scan, read_scan

_AROUND_MM, _STEP_MM = 2.0, 0.1
_PERCENTILES = (1, 10, 25, 50, 75, 90, 99, 99.9)


def laid_onto(drawn: Drawn, real: Scan, points: dict[str, np.ndarray]) -> np.ndarray | None:
    """The drawn person's values at the real scan's voxels; None where landmarks are missing."""
    chosen = [CirclePhantom.scheme.landmark(name) for name in points]
    if not drawn.present[chosen].all():
        return None
    real_to_drawn = fit_rigid(np.stack(list(points.values())), drawn.landmarks_mm[chosen])
    to_voxels = np.linalg.inv(drawn.ijk_to_lps) @ real_to_drawn @ real.ijk_to_lps
    ijk = apply_affine(to_voxels, np.moveaxis(np.indices(real.voxels.shape), 0, -1).astype(float))
    return ndimage.map_coordinates(
        drawn.voxels.astype(np.float32), np.moveaxis(ijk, -1, 0), order=1, mode="nearest"
    )


def scaled(voxels: np.ndarray, ijk: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Brain 0, artery 1; `ijk` (K, 3) are the known points."""
    brain = np.median(voxels)
    return (voxels - brain) / (np.median(brightest(voxels, ijk, spacing_mm)) - brain)


def brightest(voxels: np.ndarray, ijk: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """(K,) the largest value within 2 mm of each point."""
    reach = np.ceil(_AROUND_MM / spacing_mm).astype(int)
    offsets = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1)
    offsets = offsets[np.linalg.norm(offsets * spacing_mm, axis=-1) <= _AROUND_MM]
    near = np.clip(np.rint(ijk)[:, None].astype(int) + offsets, 0, np.array(voxels.shape) - 1)
    return voxels[tuple(np.moveaxis(near, -1, 0))].max(1)


def width_mm(values: np.ndarray, ijk: np.ndarray, spacing_mm: np.ndarray) -> float:
    """How wide the artery at each known point is along X at half of its height; the median."""
    steps = np.arange(-60, 61)
    line = np.zeros((len(ijk), steps.size, 3)) + ijk[:, None]
    line[..., 0] += steps * _STEP_MM / spacing_mm[0]
    bright = ndimage.map_coordinates(values, np.moveaxis(line, -1, 0), order=1) > 0.5
    widths = []
    for row in bright:
        found = np.flatnonzero(row)
        if found.size:
            # The run of bright steps that is nearest to the point.
            parts = ndimage.label(row)[0]
            nearest = found[np.abs(steps[found]).argmin()]
            widths.append((parts == parts[nearest]).sum() * _STEP_MM)
    return float(np.median(widths)) if widths else np.nan


def figures(values: np.ndarray, ijk: np.ndarray, spacing_mm: np.ndarray) -> dict[str, float]:
    """What the table shows of one scan."""
    found = {f"{p} %": float(np.percentile(values, p)) for p in _PERCENTILES}
    found["share over 0.5"] = float((values > 0.5).mean())
    found["noise"] = float(np.median(np.abs(np.diff(values, axis=0))) / 0.954)
    found["artery's width (mm)"] = width_mm(values, ijk, spacing_mm)
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", required=True, type=Path, help="with its table beside it")
    parser.add_argument("--kind", choices=list(KINDS), default="CTA")
    parser.add_argument("--people", type=int, default=12)
    options = parser.parse_args()
    real, points = read_scan(options.scan), known_points(options.scan.with_suffix(".csv"))
    spacing = np.linalg.norm(real.ijk_to_lps[:3, :3], axis=0)
    ijk = apply_affine(np.linalg.inv(real.ijk_to_lps), np.stack(list(points.values())))
    grid = Grid((224, 224, 176), centred((224, 224, 176), (0.8, 0.8, 0.8)).ijk_to_lps)
    one = figures(scaled(real.voxels.astype(np.float32), ijk, spacing), ijk, spacing)
    rows = []
    for number, case in enumerate(people(options.people, grid)):
        laid = laid_onto(scan(case, options.kind, grid, number), real, points)
        if laid is not None:
            rows.append(figures(scaled(laid, ijk, spacing), ijk, spacing))
    print(f"| measure | real | {len(rows)} drawn people: least, median, most |\n|---|---|---|")
    for name, value in one.items():
        least, median, most = np.percentile([row[name] for row in rows], [0, 50, 100])
        print(f"| {name} | {value:.2f} | {least:.2f}, {median:.2f}, {most:.2f} |")


if __name__ == "__main__":
    main()
