"""Patches of scans around annotated points; each scan is read once, in worker processes.

`K` landmarks. Patches are sampled in the frame of the common shape, on a grid of `NODES` nodes
along each axis (two axes for pictures).
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
# Distance between nodes, as a share of the shape's size.
STEP = 0.04
# Percentiles of a scan's voxels that are 0 and 1 in a patch.
_RANGE = (0.5, 99.5)
# The wrong orders of three axes.
_ORDERS = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
# Another reading of a case's points is accepted if at most this share lies outside the scan, ...
_MAX_OUTSIDE = 0.05
# ... if the shapes' sizes differ by less than this factor, ...
_MAX_SIZE_RATIO = 1.5
# ... and if the patches are this much like other cases' (as a share of what good cases reach), and
# by this share more like them than with the points as they are.
_MIN_LIKE, _MIN_GAIN = 0.6, 0.25
# Of readings with at least this share of the best one's likeness, the first is taken.
_AS_GOOD = 0.95
# At most this many landmarks, evenly spaced among all, are compared.
_MAX_COMPARED = 15


@dataclasses.dataclass(frozen=True)
class Source:
    """How a case's scan is read."""

    path: Path
    # For a picture: its world's unit, and a pixel size stated elsewhere; "": it is a volume.
    unit: str = ""
    pixel_size_mm: float = 0.0

    def read(self) -> Scan:
        """Reads the scan; InputError where that is impossible."""
        if self.unit:
            return read_picture(self.path, self.unit, self.pixel_size_mm)
        return read_scan(self.path, as_stored=True)


@dataclasses.dataclass(frozen=True)
class Look:
    """A scan's evidence on its case's points."""

    outside: np.ndarray  # (K,) bool: the point lies outside of the scan
    # (K, NODES ** 3) float16, shares of the scan's range, around annotated points; NaN: no point.
    patches: np.ndarray
    # (K, SEARCHED ** 3) the same around the expected places.
    blocks: np.ndarray
    digest: str  # of the voxels


@dataclasses.dataclass(frozen=True)
class LookJob:
    """The input of `look` for one case."""

    source: Source
    points_mm: np.ndarray  # (K, 3)
    expected_mm: np.ndarray  # (K, 3); NaN: no block is sampled
    to_shape: np.ndarray  # (4, 4) scan mm -> common shape; NaN: there is none
    step_mm: float


def look(job: LookJob) -> Look:
    """Reads a scan and samples its patches."""
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
    """(K,) bool: points with a position that lie outside of the scan."""
    return np.array([np.isfinite(p).all() and not is_inside(p, scan) for p in points_mm])


def grid_shape(side: int, planar: bool) -> tuple[int, int, int]:
    """(X, Y, Z) nodes of a patch."""
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
        """(K, P) patches around points (K, 3) of the scan, in the shape's frame; NaN if unknown.

        Nodes outside of the scan get its background.
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
    common: Consensus  # only `shape` and `planar` are used
    step_mm: float
    templates: np.ndarray  # (K, P) normalised, of the other cases
    others: tuple[tuple[int, np.ndarray], ...]  # numbers of other cases, and their points (K, 3)
    like: float  # the median likeness to the templates over all cases


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Another reading of a case's points, and how well it fits."""

    kind: str
    detail: str
    points_mm: np.ndarray
    like: float
    other: int | None = None


def explain(job: ExplainJob) -> Explanation | None:
    """The reading of a case's points at which its scan looks like the others' scans, if any.

    It tries other units, frames and orders of axes, then other cases' points.
    """
    scan = job.source.read()
    sampler = _Sampler(scan, bool(job.source.unit))

    def like(points_mm: np.ndarray) -> float:
        """The scan's likeness to the templates at these points; -1: they cannot be right."""
        known = np.isfinite(points_mm).all(-1)
        if outside_of(points_mm, scan).sum() > _MAX_OUTSIDE * known.sum() or not known.any():
            return -1.0
        to_shape, _ = job.common.fit(points_mm)
        size = 1 / np.cbrt(np.abs(np.linalg.det(to_shape[:3, :3])))
        if not 1 / _MAX_SIZE_RATIO < size < _MAX_SIZE_RATIO:
            return -1.0
        known = np.flatnonzero(known)
        # A few landmarks decide as well as all, and faster.
        known = known[:: -(-len(known) // _MAX_COMPARED)]
        patches = sampler.patches(points_mm[known], to_shape, job.step_mm, NODES)
        unit = normalised(patches.astype(np.float32))
        return float(np.median((unit * job.templates[known]).sum(-1)))

    own = max(like(job.points_mm), 0.0)
    others = [Explanation("other case", "", points, 0.0, number) for number, points in job.others]
    for readings in (_readings(job.points_mm, scan), others):
        tried = [dataclasses.replace(one, like=like(one.points_mm)) for one in readings]
        best = max(tried, key=lambda one: one.like, default=None)
        if best and best.like > max(_MIN_LIKE * job.like, own + _MIN_GAIN * job.like):
            # Readings are in the order of how usual the mistakes are.
            return next(one for one in tried if one.like > _AS_GOOD * best.like)
    return None


def _readings(points: np.ndarray, scan: Scan) -> list[Explanation]:
    """Other readings of a case's points, the most usual mistakes first; (K, 3) LPS mm each."""
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
