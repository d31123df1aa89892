"""Measures how far a model's landmarks move if the same scan is stored in another way.

    python -m experiments.orientations --checkpoint=WORKDIR --input=SCAN_OR_FOLDER

Each scan is written again with its array flipped, with its axes permuted, and resampled onto grids
turned at random; the header always states where the voxels are. Predictions in world millimetres
should not move; the table has the distances by which they do.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging

from jaxmark.core.geometry import apply_affine, compose_affine, spread_rotations
from jaxmark.data.landmarks import read_table
from jaxmark.data.resampling import resample
from jaxmark.data.scans import Scan, read_scan, write_scan
from jaxmark.results.batch import predict_scans, scans_at
from jaxmark.workflow import load_model

FLIPS = ((0,), (1,), (2,), (0, 1, 2))
ORDERS = ((1, 0, 2), (2, 0, 1), (0, 2, 1))


def variants(scan: Scan, turns: int, rng: np.random.Generator) -> Iterator[tuple[str, Scan]]:
    """The same scan in other arrays, each with the kind of change."""
    size = np.array(scan.voxels.shape)
    yield "as it is", scan
    for axes in FLIPS:
        matrix = np.eye(4)
        for axis in axes:
            matrix[axis, axis], matrix[axis, 3] = -1, size[axis] - 1
        yield "flipped", Scan(np.flip(scan.voxels, axes), scan.ijk_to_lps @ matrix)
    for order in ORDERS:
        matrix = np.eye(4)
        matrix[:3, :3] = np.eye(3)[:, order]
        yield "permuted", Scan(scan.voxels.transpose(order), scan.ijk_to_lps @ matrix)
    rotations = spread_rotations(1000)
    for rotation in rotations[rng.choice(len(rotations), turns, replace=False)]:
        spacing = scan.spacing_mm.min()
        corners = np.indices((2, 2, 2)).reshape(3, 8).T * (size - 1)
        corners_mm = apply_affine(scan.ijk_to_lps, corners) @ rotation
        extent = np.ptp(corners_mm, axis=0)
        x, y, z = (np.ceil(extent / spacing).astype(int) + 1).tolist()
        grid = compose_affine(rotation * spacing, rotation @ corners_mm.min(0))
        yield "turned", Scan(resample(scan, (x, y, z), grid), grid)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="work dir of the trained model")
    parser.add_argument("--input", type=Path, required=True, help="a scan, or a folder of scans")
    parser.add_argument("--turns", type=int, default=5, help="random rotations a scan")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    model = load_model(arguments.checkpoint)
    rng = np.random.default_rng(0)
    moved: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as name:
        kinds = {}
        for case, path in scans_at(arguments.input).items():
            for number, (kind, scan) in enumerate(variants(read_scan(path), arguments.turns, rng)):
                kinds[f"{case}-{number}"] = (case, kind)
                write_scan(
                    Path(name) / "in" / f"{case}-{number}.nrrd", scan.voxels, scan.ijk_to_lps
                )
        outcome = predict_scans(model, scans_at(Path(name) / "in"), Path(name) / "out")
        if outcome.failures:
            sys.exit("\n".join(map(str, outcome.failures.values())))
        table = read_table(Path(name) / "out" / "batch" / "landmarks.csv")
    points = {key: np.array([*landmarks.values()], float) for key, landmarks in table.items()}
    for key, (case, kind) in kinds.items():
        distance = np.linalg.norm(points[key] - points[f"{case}-0"], axis=-1)
        moved.setdefault(kind, []).append(distance)
    voxel = max(model.experiment.data.spacing_mm)
    print(f"{len(points[f'{case}-0'])} landmarks; a voxel is up to {voxel:g} mm wide")
    print("| stored | scans | median moved (mm) | 95 % | largest | under a voxel |")
    print("|---|---|---|---|---|---|")
    for kind, distances in moved.items():
        d = np.concatenate(distances)
        print(
            f"| {kind} | {len(distances)} | {np.median(d):.4f} | {np.quantile(d, 0.95):.4f} | "
            f"{d.max():.3f} | {100 * (d < voxel).mean():.2f} % |"
        )


if __name__ == "__main__":
    main()
