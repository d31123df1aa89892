"""Pictures of doubtful annotations: planes through a point, or projections of the scan."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxmark.core.geometry import apply_affine
from jaxmark.core.suspicion import Suspicion
from jaxmark.data.annotated import Annotated
from jaxmark.data.looks import Source
from jaxmark.data.resampling import resample
from jaxmark.data.scans import Scan
from jaxmark.results.figures.doubts import View, doubt
from jaxmark.system.parallel import parallel, worker_pool

# Pixels along a side of a plane; voxels along the longest side of a projected scan.
_PLANE_PIXELS, _PROJECTED_VOXELS = 160, 128
# Half a plane's side: this share of the points' extent, and at least this many times the distance
# of the two places that it shows from its middle.
_REACH, _BEYOND = 0.2, 1.6
# Name, horizontal axis, vertical axis, axis of sight; x grows to the left, y to the back, z to the
# head.
_VIEWS = (("coronal", 0, 2, 1), ("sagittal", 1, 2, 0), ("axial", 0, 1, 2))


@dataclasses.dataclass(frozen=True)
class _Job:
    source: Source
    points_mm: np.ndarray  # (K, 3)
    landmarks: tuple[int, ...]
    expected_mm: np.ndarray | None
    unit: str


def pictures_of(
    annotated: Annotated, rows: Sequence[Suspicion], unit: str, workers: int
) -> list[bytes | None]:
    """A PNG for each row, or None where there is nothing to show.

    Args:
      unit: the unit of positions on pictures; "": mm.
    """
    planar = (
        np.isfinite(annotated.points_mm).any()
        and not np.nan_to_num(annotated.points_mm[..., 2]).any()
    )
    jobs = []
    for row in rows:
        source = Source(annotated.scans[row.case])
        if planar:
            size = float(annotated.pixel_size_mm[row.case])
            source = dataclasses.replace(source, unit=unit or "mm", pixel_size_mm=size)
        points = annotated.points_mm[row.case]
        jobs.append(_Job(source, points, row.landmarks, row.expected_mm, unit or "mm"))
    with worker_pool(workers, len(jobs)) as pool:
        return parallel(pool, _draw, jobs, "drawing", unit="picture")


def _draw(job: _Job) -> bytes | None:
    scan = job.source.read()
    shown = [k for k in job.landmarks if np.isfinite(job.points_mm[k]).all()]
    if not shown:
        known = job.points_mm[np.isfinite(job.points_mm).all(-1)]
        return doubt(_through(scan, known, job.unit)) if len(known) else None
    expected = np.full((len(shown), 3), np.nan)
    if job.expected_mm is not None:
        expected[0] = job.expected_mm
    return doubt(_planes(scan, job.points_mm, job.points_mm[shown], expected, job.unit))


def _planes(
    scan: Scan, every: np.ndarray, points: np.ndarray, expected: np.ndarray, unit: str
) -> list[View]:
    """Planes through the expected place of the first point, or else the point; both are drawn."""
    middle = points[0] if np.isnan(expected[0]).any() else (points[0] + expected[0]) / 2
    known = every[np.isfinite(every).all(-1)]
    extent = np.percentile(known, 90, axis=0) - np.percentile(known, 10, axis=0)
    reach = _REACH * float(extent.max())
    away = np.nan_to_num(np.abs(np.concatenate([points[:1], expected[:1]]) - middle))
    reach = max(reach, _BEYOND * float(away.max()), 3 * float(scan.spacing_mm.min()))
    step = 2 * reach / (_PLANE_PIXELS - 1)
    views = []
    for name, across, upright, along in _chosen(scan):
        at = middle.copy()
        # The expected place has structure to see; the point's may have none.
        at[along] = points[0, along] if np.isnan(expected[0]).any() else expected[0, along]
        grid = np.zeros((4, 4))
        grid[across, 0] = grid[upright, 1] = grid[along, 2] = step
        grid[:3, 3], grid[3, 3] = at, 1.0
        grid[[across, upright], 3] -= reach
        image = resample(scan, (_PLANE_PIXELS, _PLANE_PIXELS, 1), grid)[..., 0]
        centre = middle[[across, upright]]
        lims = (centre[0] - reach, centre[0] + reach, centre[1] - reach, centre[1] + reach)
        plane = [across, upright]
        views.append(
            _view(name, across, upright, image, lims, points[:, plane], expected[:, plane], unit)
        )
    return views


def _through(scan: Scan, points: np.ndarray, unit: str) -> list[View]:
    """All points of a case on projections of the scan."""
    corners = apply_affine(
        scan.ijk_to_lps, np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(scan.voxels.shape) - 1)
    )
    low, high = corners.min(0), corners.max(0)
    step = max(float((high - low).max()) / (_PROJECTED_VOXELS - 1), 1e-6)
    n = np.maximum(np.ceil((high - low) / step).astype(int) + 1, 1)
    grid = np.diag([step, step, step, 1.0])
    grid[:3, 3] = low
    volume = resample(scan, (int(n[0]), int(n[1]), int(n[2])), grid)
    far = low + (n - 1) * step
    views = []
    for name, across, upright, along in _chosen(scan):
        image = volume.max(along) if across < upright else volume.max(along).T
        lims = (low[across], far[across], low[upright], far[upright])
        at = points[:, [across, upright]]
        views.append(_view(name, across, upright, image, lims, at, np.full_like(at, np.nan), unit))
    return views


def _chosen(scan: Scan) -> Sequence[tuple[str, int, int, int]]:
    return (("", 0, 1, 2),) if scan.planar else _VIEWS


def _view(
    name: str,
    across: int,
    upright: int,
    image: np.ndarray,
    extent: tuple[float, float, float, float],
    annotated: np.ndarray,
    expected: np.ndarray,
    unit: str,
) -> View:
    axes = f"{'xyz'[across]} ({unit})", f"{'xyz'[upright]} ({unit})"
    return View(name, axes, image, extent, annotated, expected, downwards=upright == 1)
