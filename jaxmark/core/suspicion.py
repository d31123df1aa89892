"""Which annotations of a cohort to look at first: every kind of mistake on one scale.

The scale is that of E-values: a suspicion of s means that a good cohort of this size would be
expected to show 10**-s such rows. Probabilities come from the cohort, by quantiles that even many
wrong cases do not move. numpy only, on the host. `N` cases, `K` landmarks, NaN where a landmark is
not annotated.
"""

import dataclasses
import functools
import math

import numpy as np

from jaxmark.core.consensus import LEAST_CASES, Consensus, consensus, pairs_of
from jaxmark.core.expected_places import Expected, expected_places, usual_lengths
from jaxmark.core.geometry import rotation_angle_degrees

# The suspicion of what needs no statistics (a point outside of its scan), and the largest suspicion
# that statistics give.
CERTAIN, MOST = 10.0, 9.0
# Rows from here on are suspicions; one in ten good cohorts shows one.
LINE = 1.0
# Quantiles between which a tail's decay is measured: with at least _MANY values, and with fewer.
_TAIL_OF_MANY, _TAIL_OF_FEW, _MANY = (0.8, 0.95), (0.5, 0.8), 200
# A case is typical if half of its points are at most this many times as far off as is usual.
_TYPICAL = 3.0
# Two names are exchanged if one point is this many usual lengths off, if both are nearer than
# _RIGHT_AGAIN once exchanged, or than _RIGHT_SHARE of that distance, and if the exchange lowers the
# sum of squares by _GAIN.
_EXCHANGED, _RIGHT_AGAIN, _RIGHT_SHARE, _GAIN = 3.5, 2.8, 0.25, 15.0
# Suspicion that is added if both points are right once exchanged.
_BOTH_RIGHT = 2.0
# Degrees from the common pose: cases have one pose if half of them are turned by less than
# _LIE_ALIKE; then a case is suspicious if it is turned by more than _TURNED.
_LIE_ALIKE, _TURNED = 25.0, 90.0
# Smallest spreads that are used: of logarithms of sizes, and of correlations (artanh).
_LEAST_SIZE_SPREAD, _LEAST_LIKE_SPREAD = 0.02, 0.1
# Two cases are copies if they are nearer than this share of the usual distance to the nearest case.
_SAME = 0.4


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """One thing to look at."""

    case: int
    # None for a whole case, two for exchanged names.
    landmarks: tuple[int, ...]
    # One of the keys of `results.check.KINDS`.
    kind: str
    suspicion: float
    # Distance of the point, or the median distance of the case's points; NaN: none.
    off_mm: float = math.nan
    # (3,) mm of the case: where the (first) landmark is expected.
    expected_mm: np.ndarray | None = None
    # The other case, for kinds about two cases.
    other: int | None = None
    # A figure or name for the message: a factor, a frame.
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Looks:
    """The scans' evidence on annotations; all of shape (N, K), NaN or False where unknown."""

    # Correlation of the image around a point with the other cases' images there.
    like: np.ndarray
    # (N, K, 3) mm of the common shape: annotated place minus the nearby place that looks right.
    off: np.ndarray
    outside: np.ndarray  # bool: the point lies outside of the scan
    air: np.ndarray  # bool: the point lies in air


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Landmarks by models that were trained without the case; NaN where unknown."""

    points_mm: np.ndarray  # (N, K, 3)
    radius_mm: np.ndarray  # (N, K) stated; infinite or NaN: not stated


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The points' evidence, without scans."""

    points_mm: np.ndarray
    common: Consensus
    expected: Expected
    typical: np.ndarray  # (N,) bool: other cases are compared with it
    twins: np.ndarray  # (K,) index of each landmark's twin on the other side

    @property
    def moved(self) -> np.ndarray:
        """(N, K, 3) mm on the common shape."""
        return self.common.moved(self.points_mm)

    @functools.cached_property
    def size_log10_p(self) -> np.ndarray:
        """(N,) log10 of the probability of each size."""
        size = np.log(self.common.sizes)
        away = np.abs(size - np.nanmedian(size))
        # From the median: a wrong unit may spoil many cases.
        spread = max(float(np.nanmedian(away)) / 0.674, _LEAST_SIZE_SPREAD)
        return np.minimum(0.0, math.log10(0.5) - (away / spread - 0.674) * 1.66 / math.log(10))

    @functools.cached_property
    def turned_degrees(self) -> np.ndarray | None:
        """(N,) angles from the common pose; None where cases have no common pose."""
        turn = self.common.maps[:, :3, :3] * self.common.sizes[:, None, None]
        known = turn[self.typical & np.isfinite(turn).all((1, 2))]
        if not len(known):
            return None
        u, _, vt = np.linalg.svd(np.median(known, axis=0))
        pose = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        angle = rotation_angle_degrees(pose.T @ turn)
        return angle if np.median(angle[self.typical]) < _LIE_ALIKE else None


def shapes_of(points_mm: np.ndarray, twins: np.ndarray) -> Shapes | None:
    """The evidence of points (N, K, 3); None if there are too few. `twins` are by names."""
    common = consensus(points_mm)
    if common is None:
        return None
    if (twins == np.arange(len(twins))).all():
        twins = pairs_of(common.shape)
    known = np.isfinite(common.off_mm)
    usual = float(np.median(common.off_mm[known]))
    typical = known & ~common.mirrored & (np.nan_to_num(common.off_mm) <= _TYPICAL * usual)
    expected = expected_places(common.moved(points_mm), common.shape, typical)
    return Shapes(points_mm, common, expected, typical, twins)


def log10_p(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """log10 of the probability of values at least as large, by the tail of `among`.

    Beyond a high quantile, probabilities fall exponentially, at the rate between two quantiles.
    """
    known = among[np.isfinite(among)]
    if len(known) < 4:
        return np.zeros(np.shape(values))
    low, high = _TAIL_OF_MANY if len(known) >= _MANY else _TAIL_OF_FEW
    begin, end = np.quantile(known, [low, high])
    step = max(float(end - begin), 0.02 * abs(float(end)), 1e-9)
    decay = math.log10((1 - low) / (1 - high)) / step
    return np.minimum(0.0, math.log10(1 - high) - (values - end) * decay)


def both_log10_p(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """log10 p of two independent tests together (Fisher 1932); NaN in the second: not made."""
    total = first + np.nan_to_num(second)
    joint = total + np.log10(1 - math.log(10) * total)
    return np.where(np.isfinite(second), np.minimum(joint, 0.0), first)


def misfits(shapes: Shapes, looks: Looks | None) -> np.ndarray:
    """(N,) log10 of the probability that a case's points as a whole belong to its scan."""
    n = len(shapes.points_mm)
    found = np.zeros(n)
    if looks is None:
        return found
    like = np.full(n, np.nan)
    for i, row in enumerate(looks.like):
        if np.isfinite(row).any():
            like[i] = np.arctanh(np.clip(np.nanmedian(row), -0.99, 0.99))
    if np.isfinite(like).sum() >= 4:
        best, middle = np.nanquantile(like, [0.9, 0.5])
        # The spread is measured above the median: bad cases, which may be many, are below it.
        spread = max(float(best - middle), _LEAST_LIKE_SPREAD)
        worse = np.nan_to_num((middle - like) / spread)
        found = np.minimum(0.0, math.log10(0.5) - worse * math.log10(5))
    known = np.isfinite(shapes.points_mm).all(-1)
    mostly = (looks.outside & known).sum(1) > 0.5 * np.maximum(known.sum(1), 1)
    return np.where(mostly, -CERTAIN - math.log10(n), found)


def point_log10_p(
    shapes: Shapes, looks: Looks | None, judged: np.ndarray, predictions: Predictions | None
) -> np.ndarray:
    """(N, K) log10 of the probability of each point's distance from its expected place.

    `judged` (N,): cases that are right as a whole.
    """
    z = shapes.expected.z
    if looks is not None:
        length = np.linalg.norm(looks.off, axis=-1)
        usual = usual_lengths(np.where(judged[:, None], length, np.nan))
        z = np.where(np.isfinite(length), (z + length / usual) / 2, z)
    found = log10_p(z, z[judged])
    found = np.where(np.isfinite(found), found, 0.0)
    if predictions is None:
        return found
    return both_log10_p(found, predicted_log10_p(shapes.points_mm, predictions))


def predicted_log10_p(points_mm: np.ndarray, predictions: Predictions) -> np.ndarray:
    """(N, K) log10 of the probability of predictions so far off; NaN where there are none."""
    away = np.linalg.norm(predictions.points_mm - points_mm, axis=-1)
    stated = np.where(np.isfinite(predictions.radius_mm), predictions.radius_mm, np.nan)
    usual = usual_lengths(away) * np.ones((len(away), 1))
    # A very small stated radius must not make every error a large one.
    radius = np.maximum(np.where(np.isnan(stated), usual, stated), 0.2 * usual)
    ratio = away / radius
    return np.where(np.isfinite(ratio), log10_p(ratio, ratio), np.nan)


def predicted_suspicions(
    points_mm: np.ndarray, predictions: Predictions, least: float
) -> list[Suspicion]:
    """Points that contradict predictions, for cohorts with too few points for a shape."""
    log_p = predicted_log10_p(points_mm, predictions)
    scores = -log_p - math.log10(max(int(np.isfinite(log_p).sum()), 1))
    away = np.linalg.norm(predictions.points_mm - points_mm, axis=-1)
    return [
        _row(int(i), (int(k),), "far", scores[i, k], away[i, k], predictions.points_mm[i, k])
        for i, k in np.argwhere(np.nan_to_num(scores, nan=-1.0) > least)
    ]


def exchanged(shapes: Shapes, case: int) -> list[tuple[int, int]]:
    """Pairs of landmarks of a case that lie where the other one is expected."""
    at, usual = shapes.moved[case], shapes.expected.usual_mm
    place = at - shapes.expected.off[case]
    z = np.linalg.norm(at[:, None] - place, axis=-1) / usual
    own = z.diagonal()
    gain = np.nan_to_num(own[:, None] ** 2 + own**2 - z**2 - z.T**2)
    then, worst = np.fmax(z, z.T), np.fmax(own[:, None], own)
    right = then < np.maximum(_RIGHT_AGAIN, _RIGHT_SHARE * worst)
    fits = (gain > _GAIN) & right & (worst > _EXCHANGED)
    pairs: list[tuple[int, int]] = []
    for flat in np.argsort(-np.where(np.triu(fits, 1), gain, 0.0), axis=None):
        a, b = (int(k) for k in np.unravel_index(flat, gain.shape))
        if a >= b or not fits[a, b]:
            break
        if not {a, b} & {k for pair in pairs for k in pair}:
            pairs.append((a, b))
    return pairs


def point_suspicions(
    shapes: Shapes,
    looks: Looks | None,
    judged: np.ndarray,
    predictions: Predictions | None,
    least: float,
) -> list[Suspicion]:
    """Single points and exchanged pairs of cases that are right as a whole (`judged`, (N,))."""
    log_p = point_log10_p(shapes, looks, judged, predictions)
    count = int(np.isfinite(shapes.points_mm[judged]).all(-1).sum())
    k_all = shapes.points_mm.shape[1]
    pairs_count = len(judged) * k_all * max(k_all - 1, 1) / 2
    found = []
    for case in np.flatnonzero(judged):
        places = _places(shapes, looks, predictions, int(case))
        away = np.linalg.norm(shapes.points_mm[case] - places, axis=-1)
        told: set[int] = set()
        for a, b in exchanged(shapes, int(case)):
            score = _BOTH_RIGHT - (log_p[case, a] + log_p[case, b] + math.log10(pairs_count))
            if score <= least:
                continue
            pair, far = (a, b), float(np.nanmax(away[[a, b]]))
            found.append(_row(int(case), pair, "exchanged", score, far, places[a]))
            told |= {a, b}
        for k in range(k_all):
            outside, air = (False, False)
            if looks is not None:
                outside, air = bool(looks.outside[case, k]), bool(looks.air[case, k])
            score = -(log_p[case, k] + math.log10(max(count, 1)))
            if outside:
                found.append(_row(int(case), (k,), "outside", CERTAIN, away[k], places[k]))
            elif k not in told and score > least:
                kind = "air" if air else "far"
                found.append(_row(int(case), (k,), kind, score, away[k], places[k]))
    return found


def _places(
    shapes: Shapes, looks: Looks | None, predictions: Predictions | None, case: int
) -> np.ndarray:
    """(K, 3) mm of the case: expected places by shape, by looks and by predictions."""
    place = shapes.moved[case] - shapes.expected.off[case]
    if looks is not None:
        by_look = shapes.moved[case] - looks.off[case]
        place = np.where(np.isfinite(by_look), (place + by_look) / 2, place)
    own = shapes.common.back(case, place)
    if predictions is None:
        return own
    known = np.isfinite(predictions.points_mm[case])
    return np.where(known, (own + np.nan_to_num(predictions.points_mm[case])) / 2, own)


def _row(
    case: int,
    landmarks: tuple[int, ...],
    kind: str,
    score: float,
    off_mm: float,
    expected_mm: np.ndarray | None,
) -> Suspicion:
    if expected_mm is not None and not np.isfinite(expected_mm).all():
        expected_mm = None
    score = CERTAIN if kind == "outside" else min(score, MOST)
    return Suspicion(case, landmarks, kind, float(score), float(off_mm), expected_mm)


def shape_suspicions(shapes: Shapes) -> list[Suspicion]:
    """Cases whose points as a whole are mirrored, of another size, turned, or of another shape."""
    common, n = shapes.common, len(shapes.points_mm)
    log_n = math.log10(n)
    found = []
    off_log_p = log10_p(common.off_mm, common.off_mm[shapes.typical])
    for case in range(n):
        if not np.isfinite(common.off_mm[case]):
            continue
        straight = common.straight_mm[case]
        if common.mirrored[case]:
            score = float(-log10_p(straight, common.off_mm[shapes.typical]) - log_n)
            off = straight * common.sizes[case]
            found.append(Suspicion(case, (), "mirrored", min(score, MOST), float(off)))
        elif (score := float(-off_log_p[case] - log_n)) > 0 and not shapes.typical[case]:
            off = common.off_mm[case] * common.sizes[case]
            found.append(Suspicion(case, (), "shape", min(score, MOST), float(off)))
        if (score := float(-shapes.size_log10_p[case] - log_n)) > 0:
            size = f"{common.sizes[case]:.3g}"
            found.append(Suspicion(case, (), "size", min(score, MOST), detail=size))
    angle = shapes.turned_degrees
    if angle is not None:
        log_p = log10_p(angle, angle[shapes.typical])
        for case in np.flatnonzero(np.nan_to_num(angle) > _TURNED).tolist():
            score = min(float(-log_p[case] - log_n), MOST)
            found.append(Suspicion(case, (), "frame", score, detail=f"{angle[case]:.0f}"))
    return found


def doubled(shapes: Shapes) -> list[tuple[int, int, float, float]]:
    """(case, other, suspicion, mm) for pairs whose landmarks are nearer than two people's."""
    # Compared in millimetres: two people may have the same shape in two sizes.
    moved = shapes.moved * shapes.common.sizes[:, None, None]
    n = len(moved)
    away = np.full((n, n), np.inf)
    for i in range(n - 1):
        apart = ((moved[i + 1 :] - moved[i]) ** 2).sum(-1)
        both = np.isfinite(apart)
        enough = both.sum(1) >= 3
        mean = np.where(both, apart, 0).sum(1) / np.maximum(both.sum(1), 1)
        away[i, i + 1 :] = away[i + 1 :, i] = np.where(enough, np.sqrt(mean), np.inf)
    return _too_near(away)


def doubled_looks(unit: np.ndarray) -> list[tuple[int, int, float, float]]:
    """As `doubled`, for normalised patches (N, K, P): distance 0 is the same image, 1 unrelated.

    Cases with misplaced points are unrelated to others, and to a copy whose points are right.
    """
    flat = unit.reshape(len(unit), -1)
    shown = np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    away = np.sqrt(np.maximum(1 - (flat / shown) @ (flat / shown).T, 0.0)).astype(float)
    np.fill_diagonal(away, np.inf)
    return _too_near(away)


def _too_near(away: np.ndarray) -> list[tuple[int, int, float, float]]:
    nearest = away.min(1)
    known = nearest[np.isfinite(nearest)]
    if len(known) < 4:
        return []
    # Copies are among the nearest, so the usual distance is a quantile above them.
    usual, spread = float(np.quantile(known, 0.6)), -np.log(np.maximum(nearest, 1e-9))
    log_p = log10_p(spread, spread[nearest > _SAME * usual])
    found = []
    for first, second in np.argwhere(np.triu(away < _SAME * usual, 1)):
        score = -float(min(log_p[first], log_p[second])) - math.log10(len(away))
        if score > 0:
            apart = float(away[first, second])
            found.append((int(first), int(second), min(score, MOST), apart))
    return found


def distance_suspicions(points_mm: np.ndarray, least: float) -> list[Suspicion]:
    """Pairs of landmarks with an unusual distance, where points are too few for a shape."""
    n, k = points_mm.shape[:2]
    found: list[Suspicion] = []
    if n < LEAST_CASES:
        return found
    for a in range(k):
        for b in range(a + 1, k):
            apart = np.linalg.norm(points_mm[:, a] - points_mm[:, b], axis=-1)
            logs = np.log(np.maximum(apart, 1e-6))
            away = np.abs(logs - np.nanmedian(logs)) if np.isfinite(logs).any() else logs
            scores = -log10_p(away, away) - math.log10(max(n * k * (k - 1) / 2, 1))
            for case in np.flatnonzero(np.nan_to_num(scores, nan=-9.0) > least):
                usual = float(np.exp(np.nanmedian(logs)))
                score = float(min(scores[case], MOST))
                off = abs(float(apart[case]) - usual)
                detail = f"{apart[case]:.4g}, usually {usual:.4g}"
                found.append(Suspicion(int(case), (a, b), "distance", score, off, detail=detail))
    return found
