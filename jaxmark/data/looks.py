"""What scans look like about annotated points: read once each, in processes, a small array a case.

`K` landmarks. Patches are sampled in the frame of the common shape: a grid of `NODES` nodes along
each axis, of pictures along two.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from jaxmark.core.consensus import Consensus
from jaxmark.core.geometry import apply_affine
from jaxmark.core.templates import normalised
from jaxmark.data.cohort import is_inside
from jaxmark.data.pictures import read_picture
from jaxmark.data.resampling import Sampling
from jaxmark.data.scans import Scan, read_scan

NODES, SEARCHED = 7, 13
# Between nodes, as a share of the shape's size.
STEP = 0.04
# What is 0 and 1 in a patch.
_RANGE = (0.5, 99.5)
# So many turns of the axes beside the right one.
_ORDERS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
# Another reading of a case's points is right where so few lie outside, ...
_MAY_BE_OUTSIDE = 0.05
# ... sizes differ by less than this factor, and the scan looks nearly as others do there.
_SIZES, _NEARLY, _BETTER = 1.5, 0.6, 0.25
# Readings that are so much like the best one are the same.
_THE_SAME = 0.95
# So many landmarks, evenly spaced among all, judge that.
_SOME = 15


@dataclasses.dataclass(frozen=True)
class Source:
    """How a case's scan is read."""

    path: Path
    # Of a picture: unit of its world, and the pixel size that is stated elsewhere; "": a volume.
    unit: str = ""
    pixel_size_mm: float = 0.0

    def read(self) -> Scan:
        """InputError where it cannot be read."""
        if self.unit:
            return read_picture(self.path, self.unit, self.pixel_size_mm)
        return read_scan(self.path, as_stored=True)


@dataclasses.dataclass(frozen=True)
class Look:
    """What a scan says of its case's points."""

    outside: np.ndarray  # (K,) bool
    # (K, NODES ** 3) float16, shares of the scan's range, about the annotated points; NaN: none.
    patches: np.ndarray
    # (K, SEARCHED ** 3) about the expected places.
    blocks: np.ndarray
    digest: str  # of the voxels


@dataclasses.dataclass(frozen=True)
class LookJob:
    """A case to be looked at."""

    source: Source
    points_mm: np.ndarray  # (K, 3)
    expected_mm: np.ndarray  # (K, 3); NaN: not to be looked for
    to_shape: np.ndarray  # (4, 4); NaN: there is no common frame
    step_mm: float


def look(job: LookJob) -> Look:
    """Read a scan and sample it."""
    scan = job.source.read()
    planar = bool(job.source.unit)
    sampler = _Sampler(scan, planar)
    return Look(
        outside=outside_of(job.points_mm, scan),
        patches=sampler.patches(job.points_mm, job.to_shape, job.step_mm, NODES),
        blocks=sampler.patches(job.expected_mm, job.to_shape, job.step_mm, SEARCHED),
        digest=hashlib.sha256(scan.voxels.tobytes(order="K")).hexdigest() + str(scan.voxels.shape),
    )


def outside_of(points_mm: np.ndarray, scan: Scan) -> np.ndarray:
    """(K,) bool: points that have a position, outside of the scan."""
    return np.array([np.isfinite(p).all() and not is_inside(p, scan) for p in points_mm])


def grid_shape(side: int, planar: bool) -> tuple[int, int, int]:
    """Nodes of a patch."""
    return side, side, 1 if planar else side


class _Sampler:
    """A scan's intensities as shares of its range."""

    def __init__(self, scan: Scan, planar: bool):
        self._scan, self._planar = scan, planar
        thin = scan.voxels[::2, ::2, ::2] if scan.voxels.size > 2**18 else scan.voxels
        low, high = np.percentile(thin, _RANGE)
        self._low, self._range = float(low), max(float(high - low), 1e-6)

    def patches(
        self, points_mm: np.ndarray, to_shape: np.ndarray, step_mm: float, side: int
    ) -> np.ndarray:
        """(K, P) about points (K, 3) of the scan, in the frame of the shape; NaN of unknown ones.

        Outside of the scan is its background.
        """
        shape = grid_shape(side, self._planar)
        found = np.full((len(points_mm), int(np.prod(shape))), np.nan, np.float32)
        if not np.isfinite(to_shape).all():
            return found
        to_scan = np.linalg.inv(to_shape)
        for k, at in enumerate(apply_affine(to_shape, points_mm)):
            if not np.isfinite(at).all():
                continue
            grid = np.diag([step_mm, step_mm, step_mm, 1.0])
            grid[:3, 3] = at - step_mm * (np.array(shape) - 1) / 2
            part = Sampling.of(self._scan, to_scan @ grid)
            found[k] = part.interpolated((0, 0, 0), shape).ravel()
        return ((found - self._low) / self._range).astype(np.float16)


@dataclasses.dataclass(frozen=True)
class ExplainJob:
    """A case whose points do not fit its scan."""

    source: Source
    points_mm: np.ndarray  # (K, 3)
    common: Consensus  # `shape` and `planar` count
    step_mm: float
    templates: np.ndarray  # (K, P) normalised, of the other cases
    others: tuple[tuple[int, np.ndarray], ...]  # other cases' points (K, 3), by their numbers
    like: float  # what half of good cases' points are like at least


@dataclasses.dataclass(frozen=True)
class Explanation:
    """How the points would have to be read."""

    kind: str
    detail: str
    points_mm: np.ndarray
    like: float
    other: int | None = None


def explain(job: ExplainJob) -> Explanation | None:
    """The reading of a case's points by which its scan looks there as others do, if there is one.

    Units, frames, the order of axes, and other cases' points are tried.
    """
    scan = job.source.read()
    sampler = _Sampler(scan, bool(job.source.unit))

    def like(points_mm: np.ndarray) -> float:
        """How much the scan looks about these points as others do; -1: they cannot be in it."""
        known = np.isfinite(points_mm).all(-1)
        if outside_of(points_mm, scan).sum() > _MAY_BE_OUTSIDE * known.sum() or not known.any():
            return -1.0
        to_shape, _ = job.common.fit(points_mm)
        size = 1 / np.cbrt(np.abs(np.linalg.det(to_shape[:3, :3])))
        if not 1 / _SIZES < size < _SIZES:
            return -1.0
        known = np.flatnonzero(known)
        # Some of many say as much as all.
        known = known[:: -(-len(known) // _SOME)]
        patches = sampler.patches(points_mm[known], to_shape, job.step_mm, NODES)
        unit = normalised(patches.astype(np.float32))
        return float(np.median((unit * job.templates[known]).sum(-1)))

    own = max(like(job.points_mm), 0.0)
    others = [Explanation("other case", "", points, 0.0, number) for number, points in job.others]
    for readings in (_readings(job.points_mm, scan), others):
        tried = [dataclasses.replace(one, like=like(one.points_mm)) for one in readings]
        best = max(tried, key=lambda one: one.like, default=None)
        if best and best.like > max(_NEARLY * job.like, own + _BETTER * job.like):
            # Of readings that are nearly the same the first is the most usual mistake.
            return next(one for one in tried if one.like > _THE_SAME * best.like)
    return None


def _readings(points: np.ndarray, scan: Scan) -> list[Explanation]:
    """What the points of a case may have been meant to be, (K, 3) LPS mm each."""
    negated = points * np.array([-1.0, -1.0, 1.0])
    spacing, origin = scan.spacing_mm, scan.ijk_to_lps[:3, 3]
    found = [("frame", "x and y negated (RAS taken for LPS, or LPS for RAS)", negated)]
    for given, also in ((points, ""), (negated, ", with x and y negated")):
        found += [
            ("units", f"voxel indices{also}", apply_affine(scan.ijk_to_lps, given)),
            ("units", f"voxel indices from 1{also}", apply_affine(scan.ijk_to_lps, given - 1)),
            ("units", f"multiplied by the voxels' size{also}", given / spacing),
            ("units", f"divided by the voxels' size{also}", given * spacing),
            ("units", f"from the first voxel on{also}", given + origin),
        ]
    centre = apply_affine(scan.ijk_to_lps, (np.array(scan.voxels.shape) - 1) / 2)
    for axis, name in enumerate("xyz"[: 2 if scan.planar else 3]):
        flipped = points.copy()
        flipped[:, axis] = 2 * centre[axis] - points[:, axis]
        found.append(("axes", f"{name} counted from the other end of the scan", flipped))
    for order in [(1, 0, 2)] if scan.planar else _ORDERS:
        letters = ", ".join("xyz"[axis] for axis in order)
        found.append(("axes", f"axes in the order {letters}", points[:, order]))
        indices = apply_affine(scan.ijk_to_lps, points[:, order])
        found.append(("axes", f"voxel indices in the order {letters}", indices))
    return [Explanation(kind, detail, at, 0.0) for kind, detail, at in found]
