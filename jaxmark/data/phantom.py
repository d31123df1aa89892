"""A synthetic cohort of branching vessels, written as raw scans and landmark files.

Small and plain: it lets the whole chain run where no real data is at hand. A trunk divides into a
left and a right branch, and each of these divides twice; the five divisions are the landmarks. All
look alike from nearby, so that a detector has to tell them apart by where they lie.
"""

import json
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxmark.config import Phantom
from jaxmark.core.files import write_text_atomic
from jaxmark.data.landmarks import write_mrk_json
from jaxmark.data.scans import write_scan

LANDMARKS = ("trunk", "right 1", "right 2", "left 1", "left 2")
SHAPE = (64, 56, 48)
SPACING_MM = 1.0

# One side in millimetres from the trunk's division at the origin, x towards the patient's left.
_FIRST, _SECOND = np.array([11.0, 3.0, 5.0]), np.array([18.0, -5.0, 9.0])
# Ends of the twigs: one leaves the first division, two the second.
_TIPS = np.array([[13.0, 15.0, 10.0], [27.0, -6.0, 6.0], [20.0, -15.0, 15.0]])


def write_cohort(root: Path, phantom: Phantom) -> None:
    """Write `images/`, `landmarks/` and `splits.json` into `root`; does nothing if they are there.

    A case is a function of (seed, its number) alone. `splits.json` comes last: a folder that has it
    is whole.
    """
    splits_file = root / "splits.json"
    if splits_file.exists():
        return
    counts = {"train": phantom.train, "val": phantom.val, "test": phantom.test}
    names = iter([f"phantom-{number:03d}" for number in range(sum(counts.values()))])
    splits = {split: list(islice(names, count)) for split, count in counts.items()}
    cases = [name for split in splits.values() for name in split]
    for number, name in enumerate(tqdm(cases, desc="making phantoms", unit="scan")):
        voxels, ijk_to_lps, landmarks_mm = make_case(phantom.seed, number)
        write_scan(root / "images" / f"{name}.nii.gz", voxels, ijk_to_lps)
        points = dict(zip(LANDMARKS, landmarks_mm, strict=True))
        write_mrk_json(root / "landmarks" / f"{name}.mrk.json", points)
    write_text_atomic(splits_file, json.dumps(splits, indent=1))


def make_case(seed: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One case: voxels (X, Y, Z) int16, `ijk_to_lps` (4, 4), landmarks (5, 3) in LPS mm."""
    rng = np.random.default_rng([seed, number])
    origin = -(np.array(SHAPE) - 1) / 2 * SPACING_MM + rng.normal(0, 2, 3)
    ijk_to_lps = np.diag([SPACING_MM] * 3 + [1.0])
    ijk_to_lps[:3, 3] = origin

    base: np.ndarray = rng.normal(0, 2, 3) + [0, 0, -4]
    segments: list[tuple[np.ndarray, np.ndarray, float]]
    segments = [(base + [0, 0, -22] + rng.normal(0, 1.5, 3), base, 1.9)]
    landmarks = [base]
    for side in (-1.0, 1.0):
        mirror = np.array([side, 1.0, 1.0])
        size = rng.normal(1, 0.08)
        first, second = (
            base + mirror * node * size + rng.normal(0, 1.5, 3) for node in (_FIRST, _SECOND)
        )
        landmarks += [first, second]
        segments += [(base, first, 1.5), (first, second, 1.3)]
        for start, end in zip((first, second, second), _TIPS, strict=True):
            tip = base + mirror * end * size + rng.normal(0, 2, 3)
            segments.append((start, tip, 1.0))

    grid = [origin[a] + SPACING_MM * np.arange(SHAPE[a]) for a in range(3)]
    points = np.stack(np.meshgrid(*grid, indexing="ij"), -1)
    lumen = np.zeros(SHAPE)
    for start, end, radius in segments:
        for a, b in _bend(start, end, rng):
            # Partial volume: the edge falls from 1 to 0 over about a voxel.
            lumen = np.maximum(lumen, np.clip(radius + 0.5 - _distance(points, a, b), 0, 1))
    texture = 120 + 25 * np.sin(points @ rng.normal(0, 0.15, 3) + rng.uniform(0, 6))
    signal = texture + rng.uniform(350, 500) * lumen
    # Magnitude images have Rician noise.
    noisy = np.hypot(signal + rng.normal(0, 22, SHAPE), rng.normal(0, 22, SHAPE))
    return noisy.astype(np.int16), ijk_to_lps, np.stack(landmarks)


def _bend(
    start: np.ndarray, end: np.ndarray, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A curved way between two points, as straight pieces (a quadratic Bezier curve)."""
    length = np.linalg.norm(end - start)
    middle = (start + end) / 2 + rng.normal(0, 0.12 * length, 3)
    t = np.linspace(0, 1, 7)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    return list(zip(curve[:-1], curve[1:], strict=True))


def _distance(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of `points` (..., 3) from the straight piece a-b."""
    along = b - a
    t = np.clip((points - a) @ along / (along @ along), 0, 1)
    return np.linalg.norm(points - a - t[..., None] * along, axis=-1)
