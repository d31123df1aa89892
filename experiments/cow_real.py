"""Errors of a trained model on real patients: on scans, and on label maps drawn as scans.

    python -m jaxmark.main --config=experiments/cow_any.py:small --workdir=runs/any
    python -m experiments.cow_real --checkpoint=runs/any --folder=FOLDER --output=OUT

FOLDER holds label maps `*_labels.nii.gz` with the values of the TopCoW challenge (Yang et al.,
2023), and scans `NAME.mha` or `NAME.nii.gz` with known points in `NAME.csv` (columns landmark,
x_lps_mm, y_lps_mm, z_lps_mm). The bifurcations of a label map are where labels touch. The map is
drawn three times: as an MRA and a CTA with noise in the brain around the arteries, and as arteries
alone. OUT gets the drawn scans and the files of batch prediction, with pictures.

`--posed` poses each scan by its known points and runs the fine network alone. These errors come
from resolution and appearance, not from the search for the circle. For comparison it prints the
errors of the typical shape in that pose.
"""

import argparse
import csv
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from experiments.commands import errors_on_one_line
from jaxmark.core.geometry import apply_affine
from jaxmark.core.pose import true_pose
from jaxmark.data.frame import prepare_scan
from jaxmark.data.landmarks import Landmarks, write_mrk_json
from jaxmark.data.scans import read_scan, write_scan
from jaxmark.inference.model import TrainedModel
from jaxmark.inference.packed import folder_of
from jaxmark.methods.coarse_to_fine import CoarseToFine
from jaxmark.methods.method import Prediction
from jaxmark.system.devices import local_mesh
from jaxmark.trained import get_config
from jaxmark.workflow import load_model, predict_batch, task_of

# Landmark -> pairs of labels that touch there.
JUNCTIONS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "BA tip": ((1, 2), (1, 3)),
    "P1/P2A R": ((2, 8),),
    "P1/P2A L": ((3, 9),),
    "ICA terminus R": ((4, 5), (4, 11)),
    "ICA terminus L": ((6, 7), (6, 12)),
    "ICA/PCoA R": ((4, 8),),
    "ICA/PCoA L": ((6, 9),),
    "A1/A2 R": ((10, 11),),
    "A1/A2 L": ((10, 12),),
}
# Intensities of brain and arteries, and noise, of the drawn scans.
_LOOKS = {"mra": (100.0, 420.0, 12.0), "cta": (40.0, 340.0, 12.0), "arteries": (0.0, 400.0, 0.0)}


def junctions(labels: np.ndarray, ijk_to_lps: np.ndarray) -> Landmarks:
    """LPS mm of the bifurcations of a label map (X, Y, Z) whose labels touch."""
    found: dict[str, np.ndarray | None] = {}
    for name, pairs in JUNCTIONS.items():
        places = [place for pair in pairs if (place := _contact(labels, *pair)) is not None]
        if len(places) == len(pairs):
            found[name] = apply_affine(ijk_to_lps, np.mean(places, axis=0))
    return found


def _contact(labels: np.ndarray, a: int, b: int) -> np.ndarray | None:
    """(3,) the middle of the faces, edges and corners that voxels of two labels share."""
    near = [ndimage.binary_dilation(labels == value, np.ones((3, 3, 3), bool)) for value in (a, b)]
    shared = (near[0] & (labels == b)) | (near[1] & (labels == a))
    return np.argwhere(shared).mean(0) if shared.any() else None


def drawn(labels: np.ndarray, look: str, rng: np.random.Generator) -> np.ndarray:
    """(X, Y, Z) int16: a simple simulated scan of the arteries of a label map."""
    brain, artery, noise = _LOOKS[look]
    share = ndimage.gaussian_filter((labels > 0).astype(np.float32), 0.6)
    texture = ndimage.gaussian_filter(rng.standard_normal(labels.shape), 3.0) * 60 * (noise > 0)
    image = brain + texture + share * (artery - brain)
    return np.rint(image + noise * rng.standard_normal(labels.shape)).astype(np.int16)


def known_points(table: Path) -> dict[str, np.ndarray]:
    """Landmark -> LPS mm (3,), of a table with the columns named above."""
    with table.open(encoding="utf-8", newline="") as file:
        return {
            row["landmark"]: np.array([float(row[f"{axis}_lps_mm"]) for axis in "xyz"])
            for row in csv.DictReader(file)
        }


def cases(folder: Path, scans: Path) -> Iterator[tuple[str, Landmarks]]:
    """Write all scans into a folder; yield their names with known points in LPS mm."""
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("*_labels.nii.gz")):
        scan = read_scan(path)
        labels = np.rint(scan.voxels).astype(int)
        points = junctions(labels, scan.ijk_to_lps)
        for look in _LOOKS:
            name = f"{path.name.removesuffix('_labels.nii.gz')}_{look}"
            write_scan(scans / f"{name}.nii.gz", drawn(labels, look, rng), scan.ijk_to_lps)
            yield name, points
    for table in sorted(folder.glob("*.csv")):
        image = next(p for end in (".mha", ".nii.gz") if (p := table.with_suffix(end)).exists())
        scan = read_scan(image)
        write_scan(scans / f"{table.stem}.nii.gz", scan.voxels, scan.ijk_to_lps)
        yield table.stem, dict(known_points(table))


def posed(model: TrainedModel, scan: Path, known: Landmarks) -> Landmarks:
    """LPS mm by the fine network of `CoarseToFine`, in the pose of the known points."""
    task = task_of(model.experiment, model.scheme, local_mesh())
    task = dataclasses.replace(task, shape_mm=model.frame.shape_mm)
    stage = model.experiment.method.build(task).stages[-1]
    with tempfile.TemporaryDirectory() as folder:
        volume = prepare_scan(scan, model.frame, Path(folder)).volume(scan.name)
        middle_ijk = (np.array(volume.shape) - 1) / 2
        to_ijk = np.linalg.inv(volume.ijk_to_lps)
        ijk = np.stack([
            middle_ijk if (at := known.get(name)) is None else apply_affine(to_ijk, at)
            for name in model.landmarks
        ])  # fmt: skip
        unknown = np.array([known.get(name) is None for name in model.landmarks])
        none = jnp.zeros(len(ijk))
        earlier = Prediction(
            dict.fromkeys(CoarseToFine.decoders, jnp.asarray(ijk, jnp.float32)),
            none,
            none,
            spread_mm=jnp.where(unknown, 1e3, 0.0),
        )
        arrays = jax.tree.map(lambda x: np.asarray(x)[None], stage.read(volume, earlier))
        found = jax.device_get(jax.jit(stage.run)(model.variables, arrays))
        found = stage.finish(jax.tree.map(lambda x: x[0], found))
        places = apply_affine(volume.ijk_to_lps, found.positions_ijk["subvoxel"])
    return dict(zip(model.landmarks, places, strict=True))


def residuals(model: TrainedModel, known: Landmarks) -> list[float]:
    """Distances in mm of known points from the typical shape fitted to them."""
    assert model.frame.shape_mm is not None, "a model that knows no typical shape"
    index = [model.landmarks.index(name) for name, at in known.items() if at is not None]
    points = np.stack([at for at in known.values() if at is not None])
    shape = model.frame.shape_mm[index]
    off = apply_affine(true_pose(shape, points), shape) - points
    return list(np.linalg.norm(off, axis=1))


def main() -> None:
    """Print a line for each scan, and the errors of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="work dir of the model, or packed")
    parser.add_argument("--folder", type=Path, required=True, help="see the module's text")
    parser.add_argument("--output", type=Path, required=True, help="gets scans and predictions")
    parser.add_argument("--posed", action="store_true", help="see the module's text")
    options = parser.parse_args()
    with errors_on_one_line():
        evaluate(options)


def evaluate(options: argparse.Namespace) -> None:
    """Print the figures of `main`; InputError for a folder or model that can't be read."""
    workdir = folder_of(options.checkpoint)
    experiment = get_config(str(workdir))
    scans = options.output / "scans"
    known = dict(cases(options.folder, scans))
    for name, points in known.items():
        write_mrk_json(options.output / "known" / f"{name}.mrk.json", points)
    predict_batch(experiment, workdir, scans, options.output / "predictions")
    model = load_model(workdir, experiment)
    print("scan, points, hidden of these, median mm, largest mm (its landmark), doubts")
    every: list[float] = []
    shape_alone: list[float] = []
    for name, points in known.items():
        scan = scans / f"{name}.nii.gz"
        found = model.predict(scan)
        places = posed(model, scan, points) if options.posed else found.points()
        errors = {
            landmark: float(np.linalg.norm(places[landmark] - place))
            for landmark, place in points.items()
            if place is not None
        }
        if options.posed:
            shape_alone += residuals(model, points)
        hidden = [] if options.posed else [name for name in errors if name in found.hidden]
        shown = {k: e for k, e in errors.items() if k not in hidden}
        every += shown.values()
        worst = max(shown, key=lambda k: shown[k], default="")
        median = np.median(list(shown.values())) if shown else np.nan
        print(
            f"{name}, {len(errors)}, {len(hidden)}, {median:.2f}, {shown.get(worst, np.nan):.2f} "
            f"({worst}), {'; '.join(found.doubts)}"
        )
    over = sum(error > 10 for error in every)
    print(
        f"all: median {np.median(every):.2f} mm, mean {np.mean(every):.2f}, "
        f"{100 * np.mean(np.array(every) < 2):.0f} % within 2 mm, {over} of {len(every)} over 10 mm"
    )
    if shape_alone:
        alone = np.array(shape_alone)
        print(
            f"the typical shape in that pose: median {np.median(alone):.2f} mm, mean "
            f"{alone.mean():.2f}, {100 * (alone < 2).mean():.0f} % within 2 mm"
        )


if __name__ == "__main__":
    main()
