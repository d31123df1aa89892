"""The common shape of a cohort's landmarks, for cases in any frame, unit or mirror image.

A case that is mirrored, in other units or elsewhere is still compared with the others; the result
holds its map onto the shape. numpy and scipy, on the host. `N` cases, `K` landmarks, millimetres,
NaN where a landmark is not annotated.
"""

import dataclasses

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxmark.core.geometry import apply_affine, fit_rigid
from jaxmark.core.plausibility import robust_fit

# Fewer cases, or cases with fewer points, define no shape.
LEAST_CASES, LEAST_POINTS = 8, 5
# About this many cases, evenly spaced among all, make the common shape.
_SHAPE_CASES, _CANDIDATES, _ROUNDS, _FIT_ROUNDS = 100, 6, 4, 10
# A case is mirrored if its mirror image leaves less than _MIRRORED of its distance, and less than
# _AS_NEAR of the usual distance.
_MIRRORED, _AS_NEAR = 0.6, 2.5
# Two points are a pair if a mirror brings them this near, as a share of the shape's size.
_PAIRED = 0.12
# This many mirror planes are scored, and the best of them are refined.
_MIRRORS, _MIRRORS_REFINED = 500, 5
_FLIP = np.diag([-1.0, 1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Consensus:
    """The common shape, and each case's map onto it."""

    # (K, 3) mm about the origin, of usual size; NaN: too few cases have the landmark.
    shape: np.ndarray
    # (N, 4, 4) mm of the case -> mm of the shape; NaN where a case has too few points.
    maps: np.ndarray
    # (N,) size of each case relative to the shape; NaN as above.
    sizes: np.ndarray
    # (N,) bool: the map has a reflection.
    mirrored: np.ndarray
    # (N,) mm of the shape: median distance of a case's points from it.
    off_mm: np.ndarray
    # (N,) the same without a reflection.
    straight_mm: np.ndarray
    planar: bool

    def moved(self, points: np.ndarray) -> np.ndarray:
        """(N, K, 3) each case's points, mapped onto the shape."""
        return np.stack([apply_affine(m, p) for m, p in zip(self.maps, points, strict=True)])

    def back(self, case: int, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the shape, mapped to the case's millimetres."""
        return apply_affine(np.linalg.inv(self.maps[case]), points)

    def fit(self, points: np.ndarray) -> tuple[np.ndarray, float]:
        """The map of points (K, 3) onto the shape, and their `off_mm`; NaN if they are too few."""
        matrix, off, _, _ = _best_fit(points, self.shape, self.planar)
        return matrix, off

    @property
    def scale_mm(self) -> float:
        """The shape's size: the root of the mean squared distance from its middle."""
        known = self.shape[np.isfinite(self.shape).all(-1)]
        return float(np.sqrt(((known - known.mean(0)) ** 2).sum(-1).mean()))


def consensus(points: np.ndarray) -> Consensus | None:
    """The shape that most cases (N, K, 3) share; None with too few cases or points."""
    seen = np.isfinite(points).all(-1)
    known = points[seen]
    planar = len(known) > 0 and float(np.ptp(known[:, 2])) == 0
    counts = seen.sum(1)
    able = np.flatnonzero(counts >= max(LEAST_POINTS, counts.max(initial=0) // 2))
    if len(able) < LEAST_CASES:
        return None
    some = able[:: -(-len(able) // _SHAPE_CASES)]
    starts = some[np.argsort(-counts[some], kind="stable")[:_CANDIDATES]]

    def distance(start: int) -> float:
        reference = _of_size_1(points[start])
        return float(np.median([_fit(points[i], reference, planar, flip=False)[1] for i in some]))

    shape = _of_size_1(points[min(starts, key=distance)])
    for _ in range(_ROUNDS):
        fits = [_best_fit(points[i], shape, planar) for i in some]
        # Mirror images are left out: they would blur the differences of the two sides.
        moved = [apply_affine(f[0], points[i]) for f, i in zip(fits, some, strict=True) if not f[2]]
        shape = _of_size_1(np.nanmedian(np.stack(moved), axis=0))
    shape[seen[able].sum(0) < LEAST_CASES // 2] = np.nan
    everyone = [_best_fit(p, shape, planar) for p in points]
    straight = np.array([f[3] for f in everyone])
    maps = np.stack([f[0] for f in everyone])
    off, mirrored = np.array([f[1] for f in everyone]), np.array([f[2] for f in everyone])
    usual_off = float(np.nanmedian(off))
    mirrored &= off < _AS_NEAR * usual_off
    for i in np.flatnonzero([f[2] for f in everyone] & ~mirrored):
        # Neither way fits: keep the map without reflection.
        maps[i], off[i] = _fit(points[i], shape, planar, flip=False)
    sizes = 1 / np.cbrt(np.abs(np.linalg.det(maps[:, :3, :3])))
    usual = float(np.nanmedian(sizes))
    return Consensus(
        shape=shape * usual,
        maps=np.diag([usual, usual, usual, 1.0]) @ maps,
        sizes=sizes / usual,
        mirrored=mirrored,
        off_mm=off * usual,
        straight_mm=straight * usual,
        planar=planar,
    )


def pairs_of(shape: np.ndarray) -> np.ndarray:
    """(K,) index of each landmark's twin on the other side of a mirror, its own without one.

    For landmarks whose names do not tell sides: mirrors are planes midway between two landmarks. If
    the shape (K, 3) is symmetric about none of them, no landmark has a twin.
    """
    alone = np.arange(len(shape))
    known = np.flatnonzero(np.isfinite(shape).all(-1))
    x = shape[known] - shape[known].mean(0)
    size = np.sqrt((x**2).sum(-1).mean())
    best, cost = alone, np.inf
    if len(known) < LEAST_POINTS:
        return alone
    for axis in _normals(x, size):
        image = x - 2 * np.outer(x @ axis, axis)
        for _ in range(5):
            away = np.linalg.norm(image[:, None] - x, axis=-1)
            # Distances are capped: a landmark without a twin must not spoil the rest.
            rows, twin = linear_sum_assignment(np.minimum(away, 0.5 * size))
            both = away[rows, twin] < 0.5 * size
            if both.sum() < LEAST_POINTS:
                break
            image = apply_affine(fit_rigid(image, x[twin], both), image)
        agree = (twin[twin] == rows) & (away[rows, twin] < _PAIRED * size)
        if agree.mean() < 0.6 or (twin[agree] == rows[agree]).all():
            continue
        if (own := float(away[rows, twin][agree].mean())) < cost:
            best, cost = alone.copy(), own
            best[known[rows[agree]]] = known[twin[agree]]
    return best


def _normals(x: np.ndarray, size: float) -> np.ndarray:
    """(M, 3) normals of mirror planes through the middle of points (K, 3), the best first."""
    first, second = np.triu_indices(len(x), 1)
    across = x[first] - x[second]
    length = np.linalg.norm(across, axis=1)
    across = across[length > _PAIRED * size] / length[length > _PAIRED * size, None]
    across = across[:: -(-len(across) // _MIRRORS) or 1]

    def left(axis: np.ndarray) -> float:
        image = x - 2 * np.outer(x @ axis, axis)
        nearest = np.linalg.norm(image[:, None] - x, axis=-1).min(1)
        return float(np.minimum(nearest, 0.5 * size).mean())

    return across[np.argsort([left(axis) for axis in across])[:_MIRRORS_REFINED]]


def _of_size_1(points: np.ndarray) -> np.ndarray:
    """The points about their median, divided by their median distance from it."""
    away = points - np.nanmedian(points, axis=0)
    return away / max(float(np.nanmedian(np.linalg.norm(away, axis=-1))), 1e-9)


def _fit(
    points: np.ndarray, shape: np.ndarray, planar: bool, *, flip: bool
) -> tuple[np.ndarray, float]:
    """The similarity (4, 4) onto the shape, and the median distance that it leaves."""
    both = np.isfinite(points).all(-1) & np.isfinite(shape).all(-1)
    none = np.full((4, 4), np.nan), np.nan
    if both.sum() < LEAST_POINTS:
        return none
    before = _FLIP if flip else np.eye(4)
    try:
        own = apply_affine(before, points)
        fit = robust_fit(own, shape, both, planar, scale=True, rounds=_FIT_ROUNDS)
    except (ValueError, np.linalg.LinAlgError):
        # The points lie on one line, or in one place.
        return none
    if planar:
        # The points added above a picture only fixed its side: remove them from the map.
        fit[2], fit[:2, 2] = [0.0, 0.0, np.sqrt(np.linalg.det(fit[:2, :2])), 0.0], 0.0
    off = np.linalg.norm(apply_affine(fit, own) - shape, axis=-1)
    return fit @ before, float(np.median(off[both]))


def _best_fit(
    points: np.ndarray, shape: np.ndarray, planar: bool
) -> tuple[np.ndarray, float, bool, float]:
    """The map, the distance it leaves, whether it reflects, and the distance without reflection."""
    straight, flipped = (_fit(points, shape, planar, flip=flip) for flip in (False, True))
    if flipped[1] < _MIRRORED * straight[1]:
        return *flipped, True, straight[1]
    return *straight, False, straight[1]
