"""Statistics of point sets with missing points: alignment, and a Gaussian that outliers don't bend.

numpy and scipy alone. Shapes are (N, K, 3), NaN where a point is missing.
"""

import numpy as np
from scipy.stats import chi2

from jaxmark.core.geometry import apply_affine, fit_rigid

# Points of shape (N, K, 3) at this distance from the mean weigh half in an alignment.
_HALF_WEIGHT_MM = 3.0


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
    limit = chi2.isf(p, 3)
    kept = shapes.copy()
    for shape in kept:
        while True:
            seen = np.flatnonzero(~np.isnan(shape[:, 0]))
            if len(seen) < 4:
                break
            index = (seen[:, None] * 3 + np.arange(3)).ravel()
            # Of the inverse covariance, the block of a point is that of its conditional law.
            precision = np.linalg.inv(covariance[np.ix_(index, index)])
            pull = precision @ (shape[seen].ravel() - mean[index])
            distance = np.empty(len(seen))
            for j in range(len(seen)):
                block = slice(3 * j, 3 * j + 3)
                distance[j] = pull[block] @ np.linalg.solve(precision[block, block], pull[block])
            worst = distance.argmax()
            if distance[worst] <= limit:
                break
            shape[seen[worst]] = np.nan
    return kept


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
