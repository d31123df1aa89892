"""Where a landmark is expected, given the others of its case and what the other cases are like.

A Gaussian of how cases differ from their common shape, of which a case in question is no part;
points that are far off have no say in where the others are expected. numpy alone, on the host.
`N` cases, `K` landmarks, millimetres of the common shape, NaN where a landmark is not annotated.
"""

import dataclasses

import numpy as np

# What is added to every variance, in shares of the mean one: few cases show few of the directions
# in which people differ. The last one hardly heeds the other points.
_NOISE = (0.1, 0.3, 1.0, 10.0)
_FOLDS, _TRIED = 10, 40
# Lengths beyond so many usual ones are cut, so that a gross error does not become a way to differ.
_CUT = 3.0
# A point so many usual lengths off does not count for the others; but of a third of them at most.
_APART, _MOST_APART = 3.5, 3
# A landmark's usual length is its own median, and that of all as if of so many cases.
_POOLED_CASES = 4.0


@dataclasses.dataclass(frozen=True)
class Expected:
    """Annotated places compared with expected ones."""

    # (N, K, 3) mm: annotated minus expected.
    off: np.ndarray
    # (N, K) lengths of these, in usual ones: half of all points have less than about 1.
    z: np.ndarray
    # (K,) mm.
    usual_mm: np.ndarray


def expected_places(moved: np.ndarray, shape: np.ndarray, typical: np.ndarray) -> Expected:
    """What the other points and the other cases say of each point.

    Args:
      moved: (N, K, 3) cases on their common shape.
      shape: (K, 3).
      typical: (N,) bool, cases that others may be judged by.
    """
    off = moved - shape
    seen = np.isfinite(off).all(-1)
    usual = usual_lengths(np.where(typical[:, None], np.linalg.norm(off, axis=-1), np.nan))
    with np.errstate(invalid="ignore", divide="ignore"):
        cut = np.minimum(1, _CUT * usual / np.linalg.norm(off, axis=-1))
    # A missing point, and one of which nothing else is known, is like the shape.
    rows = np.nan_to_num(off * cut[..., None])
    learned = typical & seen.any(1)
    parts = np.arange(len(off)) % min(_FOLDS, len(off))
    covariances = [_covariance(rows[learned & (parts != part)]) for part in range(parts.max() + 1)]
    tried = np.flatnonzero(learned)[:: -(-int(learned.sum()) // _TRIED) or 1]

    def wrong_by(noise: float) -> float:
        """Half of all points are expected nearer than this to where they are."""
        precisions = [_precision(covariance, noise) for covariance in covariances]
        found = [_off(off[i], np.flatnonzero(seen[i]), precisions[parts[i]]) for i in tried]
        return float(np.median(np.linalg.norm(np.concatenate(found), axis=-1))) if found else 0.0

    noise = min(_NOISE, key=wrong_by)
    covariances = [_regular(covariance, noise) for covariance in covariances]
    precisions = [np.linalg.inv(covariance) for covariance in covariances]
    away = np.full(off.shape, np.nan)
    for i, part in enumerate(parts):
        index = np.flatnonzero(seen[i])
        if len(index):
            away[i, index] = _off(off[i], index, precisions[part])
    lengths = np.linalg.norm(away, axis=-1)
    usual = usual_lengths(np.where(typical[:, None], lengths, np.nan))
    for i in np.flatnonzero((np.nan_to_num(lengths / usual) > _APART).any(1)).tolist():
        away[i] = _without_far_ones(off[i], seen[i], covariances[parts[i]], usual)
    return Expected(away, np.linalg.norm(away, axis=-1) / usual, usual)


def usual_lengths(lengths: np.ndarray) -> np.ndarray:
    """(K,) the median of each landmark's lengths (N, K), drawn to that of all where few are known.

    NaN are not known. Positive.
    """
    known = np.isfinite(lengths)
    count = known.sum(0)
    columns = zip(lengths.T, known.T, strict=True)
    own = np.array([np.median(column[k]) if k.any() else 0.0 for column, k in columns])
    pooled = float(np.median(lengths[known])) if known.any() else 1.0
    mixed = np.sqrt((count * own**2 + _POOLED_CASES * pooled**2) / (count + _POOLED_CASES))
    return np.maximum(mixed, 1e-9)


def _without_far_ones(
    off: np.ndarray, seen: np.ndarray, covariance: np.ndarray, usual: np.ndarray
) -> np.ndarray:
    """(K, 3) of one case, as the points say that are not far off themselves, the worst first."""
    left: list[int] = np.flatnonzero(seen).tolist()
    apart: list[int] = []
    for _ in range(len(left) // _MOST_APART):
        found = _off(off, np.array(left), _inverse(covariance, left))
        z = np.linalg.norm(found, axis=-1) / usual[left]
        if z.max() <= _APART:
            break
        apart.append(left.pop(int(z.argmax())))
    away = np.full(off.shape, np.nan)
    away[left] = _off(off, np.array(left), _inverse(covariance, left))
    for k in apart:
        away[k] = _off(off, np.array([*left, k]), _inverse(covariance, [*left, k]))[-1]
    return away


def _off(off: np.ndarray, index: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """(S, 3): how far each of the points `index` (S,) is from where the others make it likely.

    `precision` is that of all K points or of the S alone.
    """
    if precision.shape[0] != 3 * len(index):
        which = (index[:, None] * 3 + np.arange(3)).ravel()
        precision = np.linalg.inv(np.linalg.inv(precision)[np.ix_(which, which)])
    pull = (precision @ off[index].ravel()).reshape(-1, 3, 1)
    blocks = precision.reshape(len(index), 3, len(index), 3)
    own = np.stack([blocks[j, :, j] for j in range(len(index))])
    # Of the inverse covariance, the block of a point is that of its conditional law.
    found: np.ndarray = np.linalg.solve(own, pull)[..., 0]
    return found


def _covariance(rows: np.ndarray) -> np.ndarray:
    flat = rows.reshape(len(rows), -1)
    return flat.T @ flat / max(len(flat), 1)


def _regular(covariance: np.ndarray, noise: float) -> np.ndarray:
    added = noise * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    return covariance + added * np.eye(len(covariance))


def _precision(covariance: np.ndarray, noise: float) -> np.ndarray:
    return np.linalg.inv(_regular(covariance, noise))


def _inverse(covariance: np.ndarray, points: list[int]) -> np.ndarray:
    which = (np.array(points)[:, None] * 3 + np.arange(3)).ravel()
    return np.linalg.inv(covariance[np.ix_(which, which)])
