"""The expected place of each landmark, given the case's other landmarks and the other cases.

A Gaussian of cases' differences from their common shape, fitted without the case in question.
Points that are far off do not change the expected places of the others. numpy only, on the host.
`N` cases, `K` landmarks, millimetres of the common shape, NaN where a landmark is not annotated.
"""

import dataclasses

import numpy as np

# Candidates for what is added to every variance, as shares of the mean variance: few cases show few
# of the directions in which people differ. With the last one other points hardly matter.
_NOISE = (0.1, 0.3, 1.0, 10.0)
# The candidates are compared on at most about _TRIED cases.
_FOLDS, _TRIED = 10, 40
# Longer differences are cut at this many usual lengths: a gross error is no way in which people
# differ.
_CUT = 3.0
# A point this many usual lengths off is not used for the others; at most 1 / _MOST_APART of all.
_APART, _MOST_APART = 3.5, 3
# The usual length of all landmarks has the weight of this many cases of a landmark.
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
    """Compares each point with its expected place by the other points and the other cases.

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
        """The median distance of points from their expected places."""
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
    """(K,) the median of each landmark's lengths (N, K), pulled to the median of all if few.

    NaN: unknown. The results are positive.
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
    """(K, 3) annotated minus expected place of one case, without using its worst points."""
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
    """(S, 3): each of the points `index` (S,) minus its expected place given the others.

    `precision` is the inverse covariance of all K points or of these S.
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
