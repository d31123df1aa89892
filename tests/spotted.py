"""A small cohort of scans with a spot of its own kind at each landmark, as files."""

from pathlib import Path

import numpy as np
from conftest import random_rotation

from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.landmarks import write_table
from jaxmark.data.scans import write_scan

NAMES = ("tip", "top", "deep", "eye R", "eye L", "ear R", "ear L", "jaw R", "jaw L")
SHAPE_MM = np.array(
    [[0, -16, 1], [2, 3, 15], [1, 9, -4], *([s * 9, -8, 7] for s in (-1, 1))]
    + [[s * 13, 10, 3] for s in (-1, 1)]
    + [[s * 7, -5, -12] for s in (-1, 1)],
    float,
)
SPACING_MM, SIDE = 1.5, 36


def heads(count: int, seed: int = 0, spread_mm: float = 0.4) -> np.ndarray:
    """(count, K, 3) mm about (27, 27, 27), turned at random."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        noise = spread_mm * np.clip(rng.standard_normal(SHAPE_MM.shape), -1.8, 1.8)
        turn = compose_affine(random_rotation(rng), np.full(3, SIDE * SPACING_MM / 2))
        found.append(apply_affine(turn, SHAPE_MM + noise))
    return np.stack(found)


def scan_of(points_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(X, Y, Z) float32: each landmark is a spot of its own width, in a dim ball."""
    at = SPACING_MM * np.stack(np.indices((SIDE,) * 3), -1)
    middle = points_mm.mean(0)
    voxels = 30.0 * (np.linalg.norm(at - middle, axis=-1) < 21)
    for k, point in enumerate(points_mm):
        away = ((at - point) ** 2).sum(-1)
        voxels += (60 + 12 * k) * np.exp(-away / (2 * (1.6 + 0.25 * k) ** 2))
    return (voxels + rng.random(voxels.shape)).astype(np.float32)


def write_cohort(root: Path, points: dict[str, np.ndarray], shown: dict[str, np.ndarray]) -> None:
    """Landmarks `points`, and scans of heads whose landmarks are `shown`."""
    (root / "images").mkdir(parents=True)
    for number, (case, at) in enumerate(shown.items()):
        voxels = scan_of(at, np.random.default_rng(number))
        place = np.diag([SPACING_MM] * 3 + [1.0])
        write_scan(root / "images" / f"{case}.nii.gz", voxels, place)
    tables = {
        case: {name: at for name, at in zip(NAMES, some, strict=True) if np.isfinite(at).all()}
        for case, some in points.items()
    }
    write_table(root / "landmarks.csv", tables)
