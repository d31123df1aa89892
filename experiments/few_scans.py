"""The error of a detector trained on a few real scans, and the parts of this error.

    python -m experiments.few_scans --root=FOLDER --rows=Short,Long --seeds=0,1,2

FOLDER is that of `experiments/mouse_ct.py`: 16 training and 4 validation heads with 45 landmarks.
Rows are the cascade of `experiments/mouse_ct_cascade.py`, trained in different ways:

- `Short`: 600 steps of the second stage; `Long`: 1800; `Longer`: 3600
- `Half`, `Quarter`: as `Long`, from 8 and 4 of the training heads

Finished rows are not run again, and a stopped row continues. All figures are of the validation
heads. `predictions.csv` compares ways to predict with the models of `Long` (or else the first row):
number of looks, shifted patches, the mean of all seeds' models. `limits.csv` splits the remaining
error into parts (`limits`).
"""

import contextlib
import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from scipy.optimize import linear_sum_assignment

from experiments import mouse_ct_cascade
from experiments.cascade_stages import places
from experiments.tables import Table
from jaxmark.config import Experiment
from jaxmark.core import metrics
from jaxmark.core.geometry import apply_affine, fit_rigid
from jaxmark.core.shapes import aligned_to, mirror
from jaxmark.system.files import write_text_atomic
from jaxmark.trained import get_config as trained_config
from jaxmark.workflow import Run, prepare

LONG = "Long"
# Steps of the second stage, and the share of the training heads.
ROWS: dict[str, tuple[int, float]] = {
    "Short": (600, 1.0),
    LONG: (1800, 1.0),
    "Longer": (3600, 1.0),
    "Half": (1800, 0.5),
    "Quarter": (1800, 0.25),
}
# Ways to predict with one model: looks of the second stage, and voxels of shift.
WAYS = {
    "1 look": (1, 0),
    "2 looks": (2, 0),
    "3 looks": (3, 0),
    "2 looks, patches shifted by 1 voxel": (2, 1),
    "2 looks, patches shifted by 2 voxels": (2, 2),
    "3 looks, patches shifted by 1 voxel": (3, 1),
}
# The way that the others are compared with.
PLAIN = "2 looks"


def mouse() -> Experiment:
    """The experiment before a row's changes, with one patch a look."""
    experiment = mouse_ct_cascade.get_config()
    experiment.method.shifted = 0
    return experiment


TABLE = Table(
    name="few_scans",
    sizes={"mouse": mouse},
    rows=tuple(ROWS),
    reference=LONG,
    note="Validation heads; the checkpoint is the best on these.",
    published={},
)


def get_config(preset: str = f"mouse/{LONG}") -> Experiment:
    """`mouse/ROW`; ValueError for one that does not exist."""
    size, row = TABLE.split(preset)
    experiment = TABLE.sizes[size]()
    steps, share = ROWS[row]
    experiment.method.refine_steps = steps
    experiment.data.train_fraction = share
    experiment.name = f"few_scans_{row.lower()}"
    return experiment


def opened(workdir: Path) -> Run:
    """A trained run, opened without the lines that preparation printed in training."""
    with contextlib.redirect_stdout(io.StringIO()):
        return prepare(trained_config(str(workdir)), workdir)


def predicted(run: Run, looks: int, shifted: int) -> np.ndarray:
    """(N, K, 3) mm: predictions of the evaluated cases with these looks and shifts."""
    method = dataclasses.replace(run.experiment.method, shifted=shifted)
    other = dataclasses.replace(run.experiment, method=method)
    _, cases = run.evaluated()
    *_, (_, found) = places(dataclasses.replace(run, experiment=other), cases, looks)
    return found


def by_way(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Way -> (M, N, K, 3) mm of M models."""
    return {name: np.stack([predicted(run, *way) for run in runs]) for name, way in WAYS.items()}


def ways_table(found_mm: Mapping[str, np.ndarray], truth_mm: np.ndarray) -> list[list[Any]]:
    """For each way a line of single models and one of their mean; errors compared with `PLAIN`."""
    present = np.isfinite(truth_mm).all(-1)

    def errors(positions_mm: np.ndarray) -> np.ndarray:
        return metrics.radial_error_mm(np.nan_to_num(truth_mm), positions_mm, present)

    # The error of single models is the mean of their errors.
    single = {name: np.mean([errors(p) for p in found], 0) for name, found in found_mm.items()}
    rows = dict(single)
    models = len(next(iter(found_mm.values())))
    if models > 1:
        for name, found in found_mm.items():
            rows[f"mean of {models} models, {name}"] = errors(found.mean(0))
    lines = [["way", "mre_mm", "median_mm", f"minus {PLAIN}", "95 % low", "95 % high"]]
    for name, error in rows.items():
        test = metrics.paired_comparison(error, single[PLAIN], 0)
        low, high = test["interval"] or (np.nan, np.nan)
        figures = (np.nanmean(error), np.nanmedian(error), test["difference"], low, high)
        lines.append([name, *(f"{value:.4f}" for value in figures)])
    return lines


def limits(
    found_mm: np.ndarray, truth_mm: np.ndarray, scan_to_prepared: np.ndarray, training: np.ndarray
) -> list[list[Any]]:
    """Parts of the error, as roots of mean squares in mm.

    - `error`: error of single models
    - `between models`: differences by the seed, the standard deviation of one model's positions;
      the mean of many models does not have this part
    - `common to models`: the rest, which more models do not reduce
    - `common to heads`: the mean error of each landmark over all validation heads, a bias of
      annotations or method (the noise of this estimate is subtracted)
    - `asymmetry`: distance of one point from its place in the mirrored head, without the mean
      asymmetry. It holds both differences of an annotator's repetitions and true asymmetry, so it
      is an upper limit of the former.

    Args:
      found_mm: (M, N, K, 3) positions by M models; `truth_mm` (N, K, 3), all present.
      scan_to_prepared: (N, 4, 4) to the common frame, in mm.
      training: (T, K, 3) landmarks of training heads, mm, in any pose.
    """
    off = found_mm - truth_mm
    square = float((off**2).sum(-1).mean())
    lines: list[list[Any]] = [["part", "rms_mm"], ["error", np.sqrt(square)]]
    if len(found_mm) > 1:
        between = float(found_mm.var(0, ddof=1).sum(-1).mean())
        lines.append(["between models", np.sqrt(between)])
        lines.append(["common to models", np.sqrt(max(square - between, 0))])
    turned = np.einsum("nij,nkj->nki", scan_to_prepared[:, :3, :3], off.mean(0))
    count = len(turned)
    bias = (turned.mean(0) ** 2 - turned.var(0, ddof=1) / count).sum(-1).mean()
    lines.append(["common to heads", np.sqrt(max(float(bias), 0))])
    lines.append(["asymmetry", asymmetry(training)])
    return [
        [part, f"{value:.4f}" if not isinstance(value, str) else value] for part, value in lines
    ]


def asymmetry(shapes: np.ndarray) -> float:
    """RMS mm of one point's difference from its place in the mirrored head; shapes (T, K, 3)."""
    twins = symmetric_partners(shapes)
    turned = [aligned_to(shape, shapes[0]) for shape in shapes]
    differences = np.stack([_from_mirror(shape, twins) for shape in turned])
    paired = twins != np.arange(len(twins))
    rest = (differences - differences.mean(0))[:, paired]
    # A difference has the noise of two points; the mean takes one degree of freedom.
    freed = len(shapes) / (len(shapes) - 1)
    return float(np.sqrt((rest**2).sum(-1).mean() * freed / 2))


def _from_mirror(shape: np.ndarray, twins: np.ndarray) -> np.ndarray:
    other = mirror(shape, twins)
    matrix = fit_rigid(other, shape)
    return shape - apply_affine(matrix, other)


def symmetric_partners(shapes: np.ndarray) -> np.ndarray:
    """(K,) each landmark's twin on the other side, itself in the middle, from shapes (T, K, 3).

    The mirror plane minimises the distance of the mean shape's points from the nearest points of
    its mirror image; the search starts with planes through the middle across the principal axes.
    """
    mean = np.mean([aligned_to(shape, shapes[0]) for shape in shapes], axis=0)
    centred = mean - mean.mean(0)
    best = (np.inf, np.arange(len(centred)))
    for normal in np.linalg.svd(centred, full_matrices=False)[2]:
        flipped = centred - 2 * np.outer(centred @ normal, normal)
        for _ in range(10):
            distance = np.linalg.norm(centred[:, None] - flipped[None], axis=-1)
            _, twins = linear_sum_assignment(distance)
            flipped = apply_affine(fit_rigid(flipped[twins], centred), flipped)
        cost = float(np.linalg.norm(centred - flipped[twins], axis=-1).mean())
        if cost < best[0] and (twins[twins] == np.arange(len(twins))).all():
            best = cost, twins
    return best[1]


def main(argv: Sequence[str]) -> None:
    """See above."""
    logging.set_verbosity(logging.FATAL)
    values: Any = flags.FLAGS
    folder, _ = TABLE.run(argv, "Few real scans", always=[f"--config.data.root={values.root}"])
    row = LONG if LONG in values.rows else values.rows[0]
    runs = [opened(folder / f"{row}-{seed}") for seed in values.seeds]
    _, cases = runs[0].evaluated()
    truth_mm = np.stack([case.landmarks_mm for case in cases])
    found_mm = by_way(runs)
    spacing = np.diag([*runs[0].experiment.data.spacing_mm, 1.0])
    to_prepared = np.stack([spacing @ np.linalg.inv(case.ijk_to_lps) for case in cases])
    training = np.stack([c.landmarks_mm for c in runs[0].prepared.split("train")])
    tables = {
        "predictions.csv": ways_table(found_mm, truth_mm),
        "limits.csv": limits(found_mm[PLAIN], truth_mm, to_prepared, training),
    }
    for name, lines in tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        write_text_atomic(folder / name, text.getvalue())
        print(f"{text.getvalue()}{folder / name}")


if __name__ == "__main__":
    TABLE.define_flags()
    flags.DEFINE_string("root", None, "The folder of the scans.", required=True)
    app.run(main)
