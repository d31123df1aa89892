"""Statistics of point sets with missing points: alignment, and a Gaussian that outliers don't bend.

numpy and scipy alone. Shapes are (N, K, 3), NaN where a point is missing.
"""

import contextlib
import dataclasses

import numpy as np
from scipy import special

from jaxmark.core.alignment import fit
from jaxmark.core.geometry import apply_affine, fit_rigid

# Points of shape (N, K, 3) at this distance from the mean weigh half in an alignment.
_HALF_WEIGHT_MM = 3.0
# With fewer shapes, or fewer points of a shape, no probability is computed.
LEAST_SHAPES, LEAST_POINTS = 8, 5
# Candidates for the variance that is added along every axis, as shares of the points' mean
# variance: few shapes show few of the directions in which people differ.
_NOISE = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6)
_FOLDS = 4
_MEANS, _EM_ROUNDS = 4, 30
# Points of pictures are flat to this share of their extent, but for rounding.
_FLAT = 1e-9


def mirror(shapes: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Shapes (..., K, 3) seen in a mirror: x negated, and `mirrored` (K,) exchanges the sides."""
    return shapes[..., mirrored, :] * np.array([-1.0, 1.0, 1.0])


def align_shapes(shapes: np.ndarray, mirrored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rigid generalised Procrustes analysis: turn and move all shapes onto their common mean.

    Robust (Cauchy weights), and symmetric: the mean is that of all shapes and their mirror images,
    and its centre is the origin. Sizes are kept.

    Args:
      shapes: (N, K, 3) mm, each in its own frame, with at least three points each.
      mirrored: (K,) index of each point's mirror image.

    Returns:
      The aligned shapes (N, K, 3), and the maps (N, 4, 4) onto them.
    """
    seen = ~np.isnan(shapes[..., 0])
    mean = np.nanmedian(shapes - np.nanmedian(shapes, axis=1, keepdims=True), axis=0)
    mean = (mean + mirror(mean, mirrored)) / 2
    aligned, maps = shapes, np.tile(np.eye(4), (len(shapes), 1, 1))
    for _ in range(60):
        for i, shape in enumerate(shapes):
            distance = np.linalg.norm(apply_affine(maps[i], shape) - mean, axis=1)
            weight = np.where(seen[i], 1 / (1 + (distance / _HALF_WEIGHT_MM) ** 2), 0.0)
            maps[i] = fit_rigid(shape, mean, weight)
        aligned = np.stack([apply_affine(m, shape) for m, shape in zip(maps, shapes, strict=True)])
        both = np.concatenate([aligned, mirror(aligned, mirrored)])
        distance = np.linalg.norm(both - mean, axis=-1, keepdims=True)
        weights = np.nan_to_num(1 / (1 + (distance / _HALF_WEIGHT_MM) ** 2))
        new = (weights * np.nan_to_num(both)).sum(0) / weights.sum(0)
        new -= new.mean(0)
        if np.abs(new - mean).max() < 1e-4:
            break
        mean = new
    return aligned, maps


def typical_shape(shapes: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """(K, 3) mm: the median of shapes that are turned and moved onto each other.

    Its bounding box is around the origin; a point that no shape has is there. Shapes with fewer
    than three points do not count.

    Args:
      shapes, mirrored: as in `align_shapes`.

    Raises:
      ValueError: no shape has three points.
    """
    enough = (~np.isnan(shapes[..., 0])).sum(1) >= 3
    if not enough.any():
        raise ValueError("no training case has three landmarks")
    known = (~np.isnan(shapes[enough][..., 0])).any(0)
    middle = np.zeros((shapes.shape[1], 3))
    # Of one point of a pair alone the mirror image says where the other is: not here.
    kept = np.flatnonzero(known & known[mirrored])
    own = np.searchsorted(kept, mirrored[kept])
    aligned, _ = align_shapes(shapes[enough][:, kept], own)
    middle[kept] = np.nanmedian(aligned, axis=0)
    middle[kept] -= (middle[kept].min(0) + middle[kept].max(0)) / 2
    return middle


def fit_gaussian(
    rows: np.ndarray, *, ridge: float = 1e-2, rounds: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """Maximum-likelihood mean (D,) and covariance (D, D) of rows (N, D) with NaN where missing.

    Expectation-maximisation (Dempster, Laird, Rubin 1977), for values that are missing at random.
    `ridge` is added to each variance.
    """
    seen = ~np.isnan(rows)
    mean = np.nanmean(rows, axis=0)
    covariance = np.diag(np.nanvar(rows, axis=0) + ridge)
    for _ in range(rounds):
        filled, doubt = _expectation(rows, seen, mean, covariance)
        mean = filled.mean(0)
        spread = filled - mean
        new = (spread.T @ spread + doubt) / len(rows) + ridge * np.eye(len(mean))
        change = np.abs(new - covariance).max()
        covariance = new
        if change < 1e-5 * covariance.max():
            break
    return mean, covariance


def drop_outliers(
    shapes: np.ndarray, mean: np.ndarray, covariance: np.ndarray, p: float = 1e-3
) -> np.ndarray:
    """Shapes with NaN for each point that the shape's other points make unlikely.

    A point goes where its squared Mahalanobis distance, given the others, is beyond the quantile
    of probability `p`; the worst point of a shape first, since it speaks against its neighbours.
    """
    limit = special.chdtri(3, p)
    kept = shapes.copy()
    for shape in kept:
        while True:
            seen = np.flatnonzero(~np.isnan(shape[:, 0]))
            if len(seen) < 4:
                break
            index = (seen[:, None] * 3 + np.arange(3)).ravel()
            off = shape[seen].ravel() - mean[index]
            distance = _given_the_others(off, covariance[np.ix_(index, index)])
            worst = distance.argmax()
            if distance[worst] <= limit:
                break
            shape[seen[worst]] = np.nan
    return kept


def _given_the_others(off: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(S,) squared Mahalanobis distances of S points (3 S,), each given all others."""
    # Of the inverse covariance, the block of a point is that of its conditional law.
    precision = np.linalg.inv(covariance)
    pull = (precision @ off).reshape(-1, 3, 1)
    blocks = precision.reshape(len(pull), 3, len(pull), 3)
    own = np.stack([blocks[j, :, j] for j in range(len(pull))])
    found: np.ndarray = (pull * np.linalg.solve(own, pull)).sum((1, 2))
    return found


@dataclasses.dataclass(frozen=True)
class ShapeModel:
    """The relative places of K points: a Gaussian after a rigid alignment (Cootes et al. 1995).

    Sizes are kept: heads hardly differ in size, and most predictions for an image that shows
    something else are far too large or too small.
    """

    mean: np.ndarray  # (K, 3); NaN: too few shapes have the point
    covariance: np.ndarray  # (3 K, 3 K), positive definite; a unit matrix for unknown points

    def distances(self, points: np.ndarray) -> np.ndarray:
        """(K,) distance of each of the points (K, 3) from its expected place, given the others.

        Mahalanobis distances, with a median of about 1.5 in good shapes. The alignment is robust:
        points far off do not change it. NaN for missing points, and for all points if under
        `LEAST_POINTS` are left, or they lie on a line.
        """
        found = np.full(len(self.mean), np.nan)
        seen = np.isfinite(points).all(-1) & np.isfinite(self.mean).all(-1)
        try:
            off = (aligned_to(points, self.mean) - self.mean)[seen].ravel()
        except ValueError:
            return found
        index = np.flatnonzero(np.repeat(seen, 3))
        found[seen] = np.sqrt(_given_the_others(off, self.covariance[np.ix_(index, index)]))
        return found

    def as_a_whole(self, points: np.ndarray) -> float:
        """The median of `distances` over the better three quarters of the points (K, 3).

        The worst points are left out one after the other, so that a few gross errors do not count.
        About 0.8 in good shapes. NaN as in `distances`.
        """
        left = points.copy()
        for _ in range(int(np.isfinite(points).all(-1).sum()) // 4):
            left[np.nan_to_num(self.distances(left)).argmax()] = np.nan
        known = self.distances(left)
        known = known[np.isfinite(known)]
        return float(np.median(known)) if len(known) else float("nan")

    def unlikely(self, points: np.ndarray, limit: float) -> list[int]:
        """Points farther off than `limit`, the worst first.

        A point far off makes its neighbours look wrong, so it is removed before the others are
        judged again. At most half of the points: beyond that, the wrong ones cannot be told.
        """
        left, found = points.copy(), []
        for _ in range(int(np.isfinite(points).all(-1).sum()) // 2):
            distance = np.nan_to_num(self.distances(left))
            worst = int(distance.argmax())
            if distance[worst] <= limit:
                break
            found.append(worst)
            left[worst] = np.nan
        return found


def aligned_to(points: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Points (K, 3), moved onto others by a robust rigid fit.

    NaN in either is missing. ValueError if both share under `LEAST_POINTS`, or these lie on a line.
    """
    both = np.isfinite(points).all(-1) & np.isfinite(mean).all(-1)
    if both.sum() < LEAST_POINTS:
        raise ValueError("too few points to align")
    own, other = points[both], mean[both]
    if max(np.ptp(own[:, 2]), np.ptp(other[:, 2])) <= _FLAT * np.ptp(other):
        # A picture could be turned over to fit its mirror image; added points above it prevent it.
        above = np.array([0.0, 0.0, float(np.ptp(other, axis=0).max())])
        own, other = np.concatenate([own, own + above]), np.concatenate([other, other + above])
    return fit("rigid", own, other).transform(points)


def fit_shapes(shapes: np.ndarray) -> tuple[ShapeModel, np.ndarray, np.ndarray] | None:
    """The model of shapes (N, K, 3), and each shape judged by a model without it.

    The judgements are the points' `distances` (N, K), and the shape `as_a_whole` (N,).

    The covariance gets a multiple of the unit matrix: the one of `_NOISE` that makes left-out
    shapes most likely. None if there are too few shapes.
    """
    seen = np.isfinite(shapes).all(-1)
    known = seen.sum(0) >= LEAST_SHAPES
    shapes = np.where((seen & known)[..., None], shapes, np.nan)
    moved = _together(shapes)
    kept = np.flatnonzero(np.isfinite(moved).any((1, 2)))
    rows = moved[kept][:, known].reshape(len(kept), 3 * known.sum())
    parts = np.arange(len(rows)) % _FOLDS
    if len(rows) < LEAST_SHAPES or not all(
        np.isfinite(rows[parts != part]).any(0).all() for part in range(_FOLDS)
    ):
        return None
    folds = [
        (*fit_gaussian(rows[parts != part], rounds=_EM_ROUNDS), rows[parts == part])
        for part in range(_FOLDS)
    ]
    unit = np.eye(rows.shape[1])
    noise = max(
        _NOISE,
        key=lambda share: sum(
            _log_likelihood(left, mean, cov + share * np.trace(cov) / len(cov) * unit)
            for mean, cov, left in folds
        ),
    )

    def model(mean: np.ndarray, covariance: np.ndarray) -> ShapeModel:
        inside = np.repeat(known, 3)
        whole_mean, whole = np.full(len(inside), np.nan), np.eye(len(inside))
        whole_mean[inside] = mean
        added = noise * np.trace(covariance) / len(covariance) * unit
        whole[np.ix_(inside, inside)] = covariance + added
        return ShapeModel(whole_mean.reshape(-1, 3), whole)

    distances, whole = np.full(shapes.shape[:2], np.nan), np.full(len(shapes), np.nan)
    for part, (mean, covariance, _) in enumerate(folds):
        without = model(mean, covariance)
        for case in kept[parts == part]:
            distances[case] = without.distances(shapes[case])
            whole[case] = without.as_a_whole(shapes[case])
    return model(*fit_gaussian(rows, rounds=_EM_ROUNDS)), distances, whole


def _together(shapes: np.ndarray) -> np.ndarray:
    """Shapes (N, K, 3) aligned to their mean; NaN where one shares too few points with it."""
    moved = np.full_like(shapes, np.nan)
    if not len(shapes):
        return moved
    mean = shapes[np.isfinite(shapes).all(-1).sum(1).argmax()]
    for _ in range(_MEANS):
        for i, shape in enumerate(shapes):
            with contextlib.suppress(ValueError):
                moved[i] = aligned_to(shape, mean)
        counts = np.isfinite(moved).all(-1).sum(0)[:, None]
        mean = np.where(counts, np.nansum(moved, 0) / np.maximum(counts, 1), np.nan)
    return moved


def _log_likelihood(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Of rows (N, D), NaN where missing, but for a constant."""
    total = 0.0
    for row in rows:
        seen = np.isfinite(row)
        block, off = covariance[np.ix_(seen, seen)], (row - mean)[seen]
        total -= 0.5 * (np.linalg.slogdet(block)[1] + off @ np.linalg.solve(block, off))
    return float(total)


def _expectation(
    rows: np.ndarray, seen: np.ndarray, mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows with expected values where missing, and the summed covariance of what is expected."""
    filled = np.where(seen, rows, 0.0)
    doubt = np.zeros_like(covariance)
    patterns, which = np.unique(seen, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        members = np.flatnonzero(which.ravel() == number)
        known, unknown = np.flatnonzero(pattern), np.flatnonzero(~pattern)
        if not len(unknown):
            continue
        across = covariance[np.ix_(unknown, known)]
        gain = np.linalg.solve(covariance[np.ix_(known, known)], across.T).T
        filled[np.ix_(members, unknown)] = (
            mean[unknown] + (rows[np.ix_(members, known)] - mean[known]) @ gain.T
        )
        rest = covariance[np.ix_(unknown, unknown)] - gain @ across.T
        doubt[np.ix_(unknown, unknown)] += len(members) * rest
    return filled, doubt
