"""Landmarks that contradict the other cases': a wrong frame, exchanged sides or exchanged names.

Every case is moved to the median of the others and compared with it, so that a head that only lies
elsewhere is no contradiction. numpy only, on the host. `N` cases, `K` landmarks, millimetres of one
frame, NaN where a landmark is not annotated.
"""

import dataclasses

import numpy as np

from jaxmark.core.geometry import apply_affine, fit_rigid

# With fewer other cases a landmark's spread is unknown.
_LEAST_OTHERS = 4
# This many points determine a rotation robustly; with fewer a case is only shifted.
_LEAST_RIGID, _LEAST_SHIFT = 6, 3
# Up to this many cases, each is compared with a median without it; in larger cohorts one case
# hardly changes the median.
_LEAVE_OUT_UNTIL = 40
# The spread of all landmarks together has the weight of this many cases of a landmark.
_POOLED_CASES = 4.0
# A point is far off beyond `_FAR + _FAR_MORE / others` spreads. In a cohort with long tails it must
# also be beyond `_TAILS` times the quantile `_NEARLY_ALL` of the other cases' points.
_FAR, _FAR_MORE, _TAILS, _NEARLY_ALL = 3.6, 14.0, 1.75, 0.98
# Two names are exchanged if one of the points is this many spreads off, and both are nearer than
# `_RIGHT_AGAIN` once exchanged. A pair is tried if that lowers the sum of squares by `_GAIN`.
_EXCHANGED, _RIGHT_AGAIN, _GAIN, _PAIRS_TRIED = 3.0, 2.8, 12.0, 3
# Another reading of a whole case is accepted if it leaves less than `_NEARER` of its distance to
# the others, and less than `_AS_NEAR` of their usual distance, which must be under `_AGREE` of
# their size.
_NEARER, _AS_NEAR, _AGREE = 0.55, 2.0, 0.3
_FITS, _ROUNDS, _CANDIDATES = 4, 3, 8
# About this many cases, evenly spaced among all, define the first reference.
_FIRST_CASES = 100


@dataclasses.dataclass(frozen=True)
class Contradiction:
    """The contradiction between one case's landmarks and the other cases'."""

    # "negated", "sides", "exchanged" or "far".
    kind: str
    # "exchanged": the two landmarks; "far": the landmarks that are far off; else none.
    landmarks: tuple[int, ...]
    # Distance of the case, or of the worst of these points, as annotated; mm.
    off_mm: float
    # "far": the largest usual distance; else the distance that the other reading leaves; mm.
    then_mm: float


def contradictions(
    points: np.ndarray, negated: np.ndarray, mirrored: np.ndarray
) -> dict[int, Contradiction]:
    """Case -> its contradiction, for cases that have one: the first of the four kinds that fits.

    Args:
      points: (N, K, 3) in a frame common to all, as far as there is one.
      negated: (N, K, 3) the same with x and y of the files negated.
      mirrored: (K,) index of each landmark's twin on the other side, its own without one.
    """
    if len(points) <= _LEAST_OTHERS:
        return {}
    # "negated" needs a comparison without rotations: headers or registration align directions.
    shifted = _Compared(points, rigid=False)
    turned = _Compared(points, rigid=True)
    paired = mirrored != np.arange(len(mirrored))
    found = {}
    for case in range(len(points)):
        whole = [shifted.whole(case, negated[case], "negated", np.ones(len(mirrored), bool))]
        if paired.any():
            swapped = points[case][mirrored]
            whole += [c.whole(case, swapped, "sides", paired) for c in (shifted, turned)]
        likely = [w for w in whole if w is not None]
        if likely:
            found[case] = min(likely, key=lambda w: w.then_mm / w.off_mm)
        elif single := turned.exchanged(case) or turned.far(case):
            found[case] = single
    return found


class _Compared:
    """Cases moved to their median, by a rotation and a shift, or by a shift only."""

    def __init__(self, points: np.ndarray, *, rigid: bool):
        self._rigid = rigid
        # Landmarks of pictures all lie in the plane z = constant.
        known = points[np.isfinite(points).all(-1)]
        self._planar = len(known) > 0 and float(np.ptp(known[:, 2])) == 0
        moved, reference = self._together(points)
        # A landmark that is annotated in too few cases has no known spread.
        self._others = np.isfinite(moved).all(-1).sum(0) - 1
        self._moved = moved
        n = len(points)
        if n <= _LEAVE_OUT_UNTIL:
            middle = np.stack([_median(np.delete(moved, i, 0)) for i in range(n)])
        else:
            middle = np.broadcast_to(_median(moved), moved.shape)
        middle = np.where((self._others >= _LEAST_OTHERS)[:, None], middle, np.nan)
        self._middle = middle
        self._off_mm = np.linalg.norm(moved - middle, axis=-1)
        self._spread_mm = self._spreads()
        # (N, K), in spreads: half of all points are below 1.
        self._z = self._off_mm / self._spread_mm
        self._typical_mm = _nan_median(self._off_mm, 1)
        self._ordered_z, self._ordered_typical_mm = map(_ordered, (self._z, self._typical_mm))
        self._size_mm = _nan_median(np.linalg.norm(reference - _median(reference), axis=-1), 0)

    def whole(
        self, case: int, points: np.ndarray, kind: str, judged: np.ndarray
    ) -> Contradiction | None:
        """The contradiction if these points fit the others far better than the case's points."""
        others = quantile_of_others(self._ordered_typical_mm, self._typical_mm[case], 0.5)
        own = float(_nan_median(self._off_mm[case, judged], 0))
        middle = self._middle[case]
        then_mm = np.linalg.norm(self._move(points, middle) - middle, axis=-1)
        then = float(_nan_median(then_mm[judged], 0))
        agree = others < _AGREE * self._size_mm
        if agree and then < _NEARER * own and then < _AS_NEAR * others:
            return Contradiction(kind, (), own, then)
        return None

    def exchanged(self, case: int) -> Contradiction | None:
        """The contradiction if two landmarks lie at each other's places."""
        middle, spread_mm = self._middle[case], self._spread_mm[case]
        z = np.linalg.norm(self._moved[case, :, None] - middle, axis=-1) / spread_mm
        own = z.diagonal()
        gain = np.nan_to_num(own[:, None] ** 2 + own**2 - z**2 - z.T**2)
        likely = np.maximum(own[:, None], own) > _EXCHANGED
        order = np.argsort(-np.where(likely, np.triu(gain, 1), 0.0), axis=None)
        for flat in order[:_PAIRS_TRIED]:
            a, b = (int(k) for k in np.unravel_index(flat, gain.shape))
            if a >= b or not likely[a, b] or gain[a, b] < _GAIN:
                break
            # The exchanged points have pulled the case away a little, so it is moved again.
            points = self._moved[case].copy()
            points[[a, b]] = points[[b, a]]
            then_mm = np.linalg.norm(self._move(points, middle) - middle, axis=-1)[[a, b]]
            if (then_mm / spread_mm[[a, b]]).max() < _RIGHT_AGAIN:
                worst_mm = float(self._off_mm[case, [a, b]].max())
                return Contradiction("exchanged", (a, b), worst_mm, float(then_mm.max()))
        return None

    def far(self, case: int) -> Contradiction | None:
        """Points far beyond the other cases' spread, the farthest first."""
        usual = quantile_of_others(self._ordered_z, self._z[case], _NEARLY_ALL)
        if np.isnan(usual):
            return None
        limit = np.maximum(_FAR + _FAR_MORE / np.maximum(self._others, 1), _TAILS * usual)
        excess = np.nan_to_num(self._z[case] / limit)
        far = tuple(int(k) for k in np.argsort(-excess) if excess[k] > 1)
        if not far:
            return None
        worst_mm = float(self._off_mm[case, far[0]])
        return Contradiction("far", far, worst_mm, worst_mm / float(excess[far[0]]))

    def _together(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, K, 3) cases moved to their median, and the median (K, 3)."""
        counts = np.isfinite(points).all(-1).sum(1)
        tried = np.argsort(-counts, kind="stable")[:_CANDIDATES]
        known = points[counts > 0] if counts.any() else points
        some = known[:: -(-len(known) // _FIRST_CASES) or 1]

        def distance(start: int) -> float:
            off = np.linalg.norm(self._moved_to(points[start], some) - points[start], axis=-1)
            return float(np.nan_to_num(_nan_median(_nan_median(off, 1), 0), nan=np.inf))

        reference = points[min(tried, key=distance)]
        for cases in (some, *[points] * (_ROUNDS - 1)):
            moved = self._moved_to(reference, cases)
            reference = _median(moved)
        return moved, reference

    def _moved_to(self, reference: np.ndarray, cases: np.ndarray) -> np.ndarray:
        return np.stack([self._move(own, reference) for own in cases])

    def _move(self, points: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """The points (K, 3) moved to the reference by a robust fit."""
        both = np.isfinite(points).all(-1) & np.isfinite(reference).all(-1)
        if both.sum() < _LEAST_SHIFT:
            return points
        if self._rigid and both.sum() >= _LEAST_RIGID:
            try:
                return apply_affine(robust_fit(points, reference, both, self._planar), points)
            except ValueError:
                # The points lie on one line: shift only.
                pass
        return points + np.median((reference - points)[both], axis=0)

    def _spreads(self) -> np.ndarray:
        """(N, K) mm: the median distance of the other cases' points of that landmark."""
        n = len(self._off_mm)
        out: list[np.ndarray] = []
        for case in range(n):
            if case and n > _LEAVE_OUT_UNTIL:
                out.append(out[0])
                continue
            left = np.delete(self._moved, case, 0) if n <= _LEAVE_OUT_UNTIL else self._moved
            own = _nan_median(np.linalg.norm(left - self._middle[case], axis=-1), 0)
            pooled, count = _nan_median(own, 0), np.maximum(self._others, 0)
            mixed = (count * own**2 + _POOLED_CASES * pooled**2) / (count + _POOLED_CASES)
            # Copies of one case would have a spread of 0.
            out.append(np.maximum(np.sqrt(mixed), 1e-3 * self._scale_mm))
        return np.stack(out)

    @property
    def _scale_mm(self) -> float:
        known = self._moved[np.isfinite(self._moved).all(-1)]
        return max(float(np.linalg.norm(np.ptp(known, axis=0))), 1e-6) if len(known) else 1e-6


def robust_fit(
    points: np.ndarray,
    reference: np.ndarray,
    both: np.ndarray,
    planar: bool,
    *,
    scale: bool = False,
    rounds: int = _FITS,
) -> np.ndarray:
    """(4, 4) rigid fit (pictures turn about z only) that a few outliers do not change.

    Args:
      points, reference: (K, 3), used where `both` (K,).
      scale: also fits one scale.
      rounds: with more rounds, outliers may be farther off.

    Raises:
      ValueError: fewer than three points, or all on one line.
    """
    if planar:
        # A picture could be turned over to fit its mirror image; added points above it prevent it.
        heights = [float(np.ptp(reference[both], axis=0).max())] * 2
        if scale:
            heights = [_height(points[both]), _height(reference[both])]
        own, other = (np.array([0.0, 0.0, height]) for height in heights)
        points, reference, both = (
            np.concatenate([points, points + own]),
            np.concatenate([reference, reference + other]),
            np.tile(both, 2),
        )
    weights = both.astype(float)
    for _ in range(rounds):
        matrix = fit_rigid(points, reference, weights, scale)
        off = np.linalg.norm(apply_affine(matrix, points) - reference, axis=-1)
        usual = max(2 * float(np.median(off[both])), 1e-9)
        weights = np.where(both, 1 / (1 + (np.nan_to_num(off) / usual) ** 2) ** 2, 0.0)
    return matrix


def _height(points: np.ndarray) -> float:
    """Twice the median distance of a picture's points from their median: a robust size."""
    return 2 * float(np.median(np.linalg.norm(points - np.median(points, axis=0), axis=-1)))


def _ordered(values: np.ndarray) -> np.ndarray:
    """The finite values, sorted."""
    return np.sort(values[np.isfinite(values)])


def quantile_of_others(ordered: np.ndarray, own: np.ndarray, share: float) -> float:
    """The quantile `share` of the sorted values `ordered` without the values `own` among them.

    Interpolated linearly. Sorting the rest for each case would take time with the square of their
    number. NaN where nothing is left.
    """
    own = _ordered(np.atleast_1d(own))
    left = len(ordered) - len(own)
    if not left:
        return float("nan")
    # The places of `own` in `ordered`; equal values get consecutive places.
    places = np.searchsorted(ordered, own) + np.arange(len(own)) - np.searchsorted(own, own)
    at = share * (left - 1)
    rank = np.array([np.floor(at), np.ceil(at)], int)
    low, high = ordered[rank + np.searchsorted(places - np.arange(len(own)), rank, side="right")]
    return float(low + (high - low) * (at - rank[0]))


def _median(points: np.ndarray) -> np.ndarray:
    return _nan_median(points, 0)


def _nan_median(values: np.ndarray, axis: int) -> np.ndarray:
    """The median of finite values; NaN, without a warning, where there are none."""
    known = np.isfinite(values)
    ordered = np.sort(np.where(known, values, np.inf), axis=axis)
    count = np.expand_dims(known.sum(axis), axis)
    low, high = (np.maximum(at, 0) for at in ((count - 1) // 2, count // 2))
    pair = [
        np.take_along_axis(ordered, np.minimum(i, values.shape[axis] - 1), axis)
        for i in (low, high)
    ]
    middle = np.where(count > 0, (pair[0] + pair[1]) / 2, np.nan)
    return np.squeeze(middle, axis)
