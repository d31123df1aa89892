"""Small cohorts for plans: written as files, or as surveys of files that nobody has to read."""

from pathlib import Path

import numpy as np

from jaxmark.core.geometry import apply_affine, compose_affine, rotation_from_quaternion
from jaxmark.data.alignment_trials import as_they_are, poses
from jaxmark.data.cohort import Cohort, RawCase
from jaxmark.data.landmarks import write_table
from jaxmark.data.scans import write_scan
from jaxmark.data.survey import ScanFacts, Survey
from jaxmark.planning.placing import Placed

NAMES = ("tip", "eye R", "eye L", "jaw", "deep")
# Radii differ, so that a head looks the same in no other pose.
SHAPE_MM = np.array([[0, -9, 2], [-8, -2, 3], [8, -2, 3], [2, 8, -6], [0, 3, 8]], float)
RADII_MM = (2.0, 2.5, 3.0, 3.5, 4.0)


def turn(degrees: float, axis=(0.0, 0.0, 1.0), shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """(4, 4) a rotation about the origin, then a shift."""
    axis = np.asarray(axis) / np.linalg.norm(axis)
    half = np.radians(degrees) / 2
    quaternion = np.array([np.cos(half), *(np.sin(half) * axis)])
    return compose_affine(rotation_from_quaternion(quaternion), np.asarray(shift, float))


def head(points_mm: np.ndarray, ijk_to_lps: np.ndarray, shape=(32, 32, 32)) -> np.ndarray:
    """(X, Y, Z) float32: each landmark is a blob of its own size."""
    at = apply_affine(ijk_to_lps, np.moveaxis(np.indices(shape), 0, -1).astype(float))
    voxels = np.zeros(shape)
    for k, (point, radius) in enumerate(zip(points_mm, RADII_MM, strict=True)):
        away = ((at - point) ** 2).sum(-1)
        voxels += (50 + 20 * k) * np.exp(-away / (2 * radius**2))
    return voxels.astype(np.float32)


def write_small_cohort(root: Path, count: int = 5, noise_mm: float = 0.5) -> dict[str, dict]:
    """Heads of 20 x 20 x 16 voxels of 1.5 mm that lie alike; the landmarks of each case."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    place = np.diag([1.5, 1.5, 1.5, 1.0])
    tables = {}
    for number in range(count):
        noise = noise_mm * np.clip(rng.standard_normal(SHAPE_MM.shape), -2, 2)
        points = SHAPE_MM + [14.25, 14.25, 11.25] + noise
        write_scan(
            root / "images" / f"case{number}.nii.gz", head(points, place, (20, 20, 16)), place
        )
        tables[f"case{number}"] = dict(zip(NAMES, points, strict=True))
    write_table(root / "landmarks.csv", tables)
    return tables


def survey_of(
    points: np.ndarray,
    names: tuple[str, ...] = (),
    *,
    shape=(64, 64, 64),
    spacing=(1.0, 1.0, 1.0),
    values=(0.0, 50.0, 100.0),
    near=(20.0, 90.0),
    planar: bool = False,
    unit: str = "mm",
) -> Survey:
    """Of training cases with landmarks (N, K, 3), whose scans are all alike and begin at 0."""
    names = names or tuple(f"point {k}" for k in range(points.shape[1]))
    present = np.isfinite(points).all(-1)
    cases = {
        f"c{i}": RawCase(f"c{i}", Path("nowhere"), p, seen, ~seen, Path("nowhere"), names)
        for i, (p, seen) in enumerate(zip(points, present, strict=True))
    }
    at = np.diag([*spacing, 1.0])
    fact = ScanFacts(tuple(shape), tuple(spacing), at, "LPS", values, near)
    splits = {"train": tuple(cases), "val": (), "test": ()}
    return Survey(
        cohort=Cohort(names, cases, splits),
        rare={},
        points=points,
        train=tuple(cases.values()),
        facts=dict.fromkeys(cases, fact),
        labelled=len(cases),
        unlabelled=0,
        planar=planar,
        unit=unit,
    )


def as_placed(survey: Survey) -> Placed:
    """Nothing is registered."""
    trial = as_they_are(survey, survey.train)
    return Placed(survey, (trial,), trial, survey.points, poses(survey.points), survey.points)
