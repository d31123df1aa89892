"""Predicted label maps against the true ones, each on its scan's own grid."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core import metrics
from jaxmark.core.anatomy import Scheme
from jaxmark.core.grids import Grid
from jaxmark.core.segmentation import agreement, voxels
from jaxmark.data.cases import CaseSegments, PreparedCase
from jaxmark.data.label_map_files import label_map_file, labels_on_grid
from jaxmark.results.measures.tables import about_damage, cases_and_names, read_rows, write_rows
from jaxmark.system.errors import InputError
from jaxmark.system.parallel import parallel, worker_pool

MAPS = "segmentation.csv"
# Name of all labels together, in the column of segments.
TREE = "all segments"
_MEASURES = ("dice", "cldice", "betti0_error")
_VOLUMES = ("volume_true_mm3", "volume_predicted_mm3")
_COLUMNS = ("case", "segment", *_MEASURES, *_VOLUMES)
# Starting processes takes as long as comparing about this many cases.
_CASES_WORTH_PROCESSES = 12


@dataclasses.dataclass(frozen=True)
class Maps:
    """Measures of `core.segmentation`: S segments in N cases; the last column is all together.

    `values`: name of the table's column -> (N, S + 1), NaN where neither map has the segment.
    """

    cases: tuple[str, ...]
    segments: tuple[str, ...]
    values: dict[str, np.ndarray]

    def of_present(self, measure: str) -> np.ndarray:
        """(N, S) values of a measure, NaN where the truth lacks the segment."""
        there = self.values["volume_true_mm3"][:, :-1] > 0
        return np.where(there, self.values[measure][:, :-1], np.nan)


def measure(
    cases: Sequence[PreparedCase], scheme: Scheme, predictions: Path, workers: int
) -> Maps | None:
    """Compare the label maps in the folder `predictions` with the true ones.

    Returns:
      None if no case has a true map.

    Raises:
      InputError, or an ExceptionGroup of them: a label map is missing, damaged, or not on the grid
        of its scan.
    """
    jobs = [
        _Job(case.name, case.segments, label_map_file(predictions, case.name), len(scheme.segments))
        for case in cases
        if case.segments is not None and case.segments.source is not None
    ]
    if not jobs:
        return None
    with worker_pool(workers if len(jobs) >= _CASES_WORTH_PROCESSES else 1, len(jobs)) as pool:
        rows = parallel(pool, _compare, jobs, "comparing label maps")
    return Maps(
        cases=tuple(job.case for job in jobs),
        segments=tuple(segment.name for segment in scheme.segments),
        values={name: np.stack([row[name] for row in rows]) for name in _COLUMNS[2:]},
    )


@dataclasses.dataclass(frozen=True)
class _Job:
    case: str
    segments: CaseSegments
    predicted: Path
    count: int


def true_labels(segments: CaseSegments) -> np.ndarray:
    """(X, Y, Z) uint8 on the scan's own grid; InputError for a missing or damaged map.

    Labels that the scheme does not have become background.
    """
    if segments.source is None:
        raise ValueError("a case without a label map")
    return labels_on_grid(segments.source, segments.values, segments.grid)


def predicted_labels(path: Path, grid: Grid, count: int) -> np.ndarray:
    """(X, Y, Z) uint8: a case's predicted map; InputError if the file is missing or damaged."""
    if not path.exists():
        raise InputError(path, "no such file: run --mode=predict")
    return labels_on_grid(path, range(1, count + 1), grid)


def _compare(job: _Job) -> dict[str, np.ndarray]:
    truth = true_labels(job.segments)
    predicted = predicted_labels(job.predicted, job.segments.grid, job.count)
    found = agreement(truth, predicted, job.count)
    voxel_mm3 = abs(float(np.linalg.det(job.segments.grid.ijk_to_lps[:3, :3])))
    values = {name: [*getattr(found, name), getattr(found, f"tree_{name}")] for name in _MEASURES}
    for name, labels in zip(_VOLUMES, (truth, predicted), strict=True):
        count = voxels(labels, job.count)
        values[name] = [*(count * voxel_mm3), count.sum() * voxel_mm3]
    return {name: np.array(row, float) for name, row in values.items()}


def figures(maps: Maps) -> dict[str, Any]:
    """Means over cases, in JSON types.

    `dice`, `cldice` and `betti0_error` are over the segments that the truth has, `tree` has the
    same for all segments together; each is a `mean` with its `interval`, as in `metrics.average`.
    `n_scans`; `n_present`: segments that the truth has; `n_invented`: segments that only the
    prediction has. `per_segment`: rows of `name`, `n`, the three means over cases that have the
    segment, its mean volumes there, and `n_invented`.
    """
    truth, predicted = (maps.values[name][:, :-1] > 0 for name in _VOLUMES)
    invented = predicted & ~truth
    present = {name: maps.of_present(name) for name in (*_MEASURES, *_VOLUMES)}
    return {
        "n_scans": len(maps.cases),
        "n_present": int(truth.sum()),
        "n_invented": int(invented.sum()),
        **{name: metrics.average(present[name], seed=0) for name in _MEASURES},
        "tree": {name: metrics.average(maps.values[name][:, -1:], seed=0) for name in _MEASURES},
        "per_segment": [
            {
                "name": segment,
                "n": int(truth[:, s].sum()),
                **{name: _mean(values[:, s]) for name, values in present.items()},
                "n_invented": int(invented[:, s].sum()),
            }
            for s, segment in enumerate(maps.segments)
        ],
    }


def write_maps(maps: Maps, folder: Path) -> None:
    """Write `segmentation.csv`: a row for each case and segment, and one for all together."""
    rows = []
    for n, case in enumerate(maps.cases):
        for s, segment in enumerate((*maps.segments, TREE)):
            values = (float(maps.values[name][n, s]) for name in _COLUMNS[2:])
            rows.append([case, segment, *(v if np.isfinite(v) else "" for v in values)])
    write_rows(folder / MAPS, _COLUMNS, rows)


def read_maps(folder: Path) -> Maps:
    """Read the table of `write_maps`; InputError if it is missing or damaged."""
    with about_damage(folder / MAPS):
        rows = read_rows(folder / MAPS, _COLUMNS)
        cases, segments = cases_and_names(rows)
        if segments[-1:] != (TREE,):
            raise ValueError(f"the last row of a case is not that of {TREE!r}")
        cells = [[float(cell) if cell else np.nan for cell in row[2:]] for row in rows]
        table = np.array(cells).reshape(len(cases), len(segments), len(_COLUMNS) - 2)
    values = {name: table[..., column] for column, name in enumerate(_COLUMNS[2:])}
    return Maps(cases, segments[:-1], values)


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
