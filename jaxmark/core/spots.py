"""Assigns the spots of one shared heatmap to landmarks, and finds each landmark in its spot.

numpy and scipy, on the host, because the number of spots varies. A heatmap is (X, Y), positions are
in its pixels (centres at integers), x before y.

A picture with a spot at every landmark does not tell which spot belongs to which landmark. The
landmarks' configuration does: a Gaussian over the positions of all K in the training pictures. Each
spot belongs to one landmark or is a stray one, and each landmark has one spot or none. The reading
(assignment) with the largest probability is taken:

    log N(found positions) + sum over the found landmarks of (log area + log odds of the height)

`area` is the number of pixels: a stray spot has the same probability everywhere. So a landmark
takes a spot that is likely given the others; a surplus spot is left over, and so is one so far off
that a stray spot explains it better. The Gaussian is widened by a shift of the whole configuration,
since a heart may lie elsewhere in a new picture.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.measure import find_contours

# Standard deviation of the common shift, as a share of the picture's longer side.
_SHIFT = 0.25
# Heights are clipped to this range before their odds are computed: no spot is certain.
_LEAST_HEIGHT, _MOST_HEIGHT = 0.02, 0.98
# The highest spots are considered: as many as landmarks, and this many more.
_EXTRA_SPOTS = 8
# The best readings that start from one landmark at one spot are improved, in some rounds.
_IMPROVED, _ROUNDS = 5, 10
_MEAN_SHIFTS = 12


@dataclasses.dataclass(frozen=True)
class Spots:
    """The M spots of a heatmap, highest first."""

    peaks: np.ndarray  # (M, 2) int: their brightest pixels
    heights: np.ndarray  # (M,)

    def __len__(self) -> int:
        return len(self.heights)


@dataclasses.dataclass(frozen=True)
class Named:
    """The spot of each of the K landmarks."""

    spot: np.ndarray  # (K,) index of the spot; -1: none
    expected: np.ndarray  # (K, 2) where the other landmarks' spots make it likely
    evidence: np.ndarray  # (K,) nats in favour of its spot being there rather than a stray one


def find_spots(heatmap: np.ndarray, sigma: float, least: float, most: int) -> Spots:
    """The highest local maxima of at least height `least`; at most `most` of them.

    Of two that are less than 2 `sigma` pixels apart, the lower one is no spot: noise alone could
    make a valley between two Gaussians so near.
    """
    # Few pixels are high enough: only their neighbours are compared.
    places = np.argwhere(heatmap >= least)
    heights = heatmap[tuple(places.T)]
    around = sliding_window_view(np.pad(heatmap, 1, constant_values=-np.inf), (3, 3))
    peak = around[tuple(places.T)].max((1, 2)) == heights
    places, heights = places[peak], heights[peak]
    kept: list[int] = []
    left = np.argsort(-heights, kind="stable")
    # A heatmap of noise has thousands of maxima: a round for each that is kept.
    while left.size and len(kept) < most:
        kept.append(int(left[0]))
        apart = np.linalg.norm(places[left] - places[kept[-1]], axis=-1)
        left = left[apart >= 2 * sigma]
    return Spots(places[kept], heights[kept].astype(float))


def named(
    spots: Spots, mean: np.ndarray, covariance: np.ndarray, shape: Sequence[int], variance: float
) -> Named:
    """The most probable reading of the spots; where there are any, at least one has a name.

    Args:
      mean, covariance: (2 K,), (2 K, 2 K) of the configuration, x before y.
      shape: (X, Y) of the heatmap.
      variance: of a spot, pixels^2; how far a brightest pixel may be from the landmark.
    """
    law = _Law(spots, mean, covariance, shape, variance)
    best = np.full(law.landmarks, -1)
    if len(spots):
        best = max(law.readings(), key=law.log_probability)
    expected, gains = law.by_others(best)
    chosen = gains[np.arange(law.landmarks), best] if len(spots) else np.zeros(law.landmarks)
    return Named(best, expected, np.where(best >= 0, chosen, _log_odds(np.zeros(()))))


class _Law:
    """Probabilities of readings: (K,) indices of the spots that landmarks have, -1 for none."""

    def __init__(
        self,
        spots: Spots,
        mean: np.ndarray,
        covariance: np.ndarray,
        shape: Sequence[int],
        variance: float,
    ):
        self.landmarks = len(mean) // 2
        self._places = spots.peaks.astype(float)
        self._mean = np.asarray(mean, float)
        shift = np.kron(np.ones((self.landmarks,) * 2), np.eye(2)) * (_SHIFT * max(shape)) ** 2
        self._covariance = covariance + shift + variance * np.eye(len(mean))
        # Log odds of a landmark's spot against a stray one, without the term of its place.
        self._ahead = math.log(math.prod(shape)) + _log_odds(spots.heights)

    def starts(self) -> list[np.ndarray]:
        """Readings from one landmark at one spot each, with the others where that makes likely."""
        found = []
        for k in range(self.landmarks):
            own = slice(2 * k, 2 * k + 2)
            gain = np.linalg.solve(self._covariance[own, own], self._covariance[own]).T
            rest = self._covariance - gain @ self._covariance[own]
            means = self._mean + (self._places - self._mean[own]) @ gain.T
            alone = self._ahead + _log_normal(
                self._places, self._mean[own], self._covariance[own, own]
            )
            blocks = np.einsum("jajb->jab", rest.reshape(self.landmarks, 2, self.landmarks, 2))
            # Its own is 0, and is not asked for.
            blocks[k] = np.eye(2)
            centres = means.reshape(-1, self.landmarks, 2)
            gains = self._ahead + _log_normal(self._places, centres, blocks)
            gains[:, k] = -np.inf
            for m, of_start in enumerate(gains):
                of_start[:, m] = -np.inf
                reading = _assignment(of_start)
                others = np.flatnonzero(reading >= 0)
                value = alone[m] + of_start[others, reading[others]].sum()
                reading[k] = m
                found.append((float(value), reading))
        found.sort(key=lambda pair: -pair[0])
        return [reading for _, reading in found[:_IMPROVED]]

    def readings(self) -> Iterator[np.ndarray]:
        """The starts, and those that follow from them: each landmark by where the others are.

        Each once: most starts lead to the same few.
        """
        known = set()
        for reading in self.starts():
            for _ in range(_ROUNDS):
                if (reading < 0).all() or tuple(reading) in known:
                    break
                known.add(tuple(reading))
                yield reading
                _, gains = self.by_others(reading)
                reading = _assignment(gains)

    def by_others(self, reading: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(K, 2) where the others expect each landmark, and (K, M) nats for each spot there."""
        expected, gains = [], []
        for k in range(self.landmarks):
            others = np.flatnonzero((reading >= 0) & (np.arange(self.landmarks) != k))
            mean, covariance = self._given(others, self._places[reading[others]], k)
            expected.append(mean)
            gains.append(self._ahead + _log_normal(self._places, mean, covariance))
        return np.stack(expected), np.stack(gains)

    def log_probability(self, reading: np.ndarray) -> float:
        """The log probability of the reading, minus that of all spots being stray."""
        found = np.flatnonzero(reading >= 0)
        index = _index(found)
        off = self._places[reading[found]].ravel() - self._mean[index]
        whole = self._covariance[np.ix_(index, index)]
        _, log_size = np.linalg.slogdet(2 * np.pi * whole)
        normal = -0.5 * (off @ np.linalg.solve(whole, off) + log_size)
        return float(normal + self._ahead[reading[found]].sum())

    def _given(
        self, others: np.ndarray, places: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean (2,) and covariance (2, 2) of a landmark, given where some others are."""
        index, own = _index(others), slice(2 * k, 2 * k + 2)
        across = self._covariance[index, own]
        gain = np.linalg.solve(self._covariance[np.ix_(index, index)], across).T
        mean = self._mean[own] + gain @ (places.ravel() - self._mean[index])
        return mean, self._covariance[own, own] - gain @ across


def contour_centre(heatmap: np.ndarray, spots: Spots, index: int, sigma: float) -> np.ndarray:
    """(2,) centre of the contour around a spot at half of its height.

    The contour runs between pixels, where the heatmap, interpolated linearly, has that height. It
    holds what is nearer to this spot's peak than to any other's, within 4 `sigma`; its centre is
    that of the area it encloses.
    """
    window, first = _window(heatmap, spots, index, sigma)
    level = spots.heights[index] / 2
    pieces, _ = ndimage.label(window > level)
    own = pieces == pieces[tuple(spots.peaks[index] - first)]
    # A border of zeros, so that every contour is closed.
    padded = np.pad(np.where(own | (window <= level), window, 0.0), 1)
    centres = [_centre_of_area(contour) for contour in find_contours(padded, level)]
    _, centre = max(centres, key=lambda pair: pair[0])
    return centre + first - 1


def mean_shift(heatmap: np.ndarray, spots: Spots, index: int, sigma: float) -> np.ndarray:
    """(2,) sub-pixel peak of a spot, as `core.heatmaps.mean_shift`, here of one of several."""
    window, first = _window(heatmap, spots, index, sigma)
    window = np.maximum(window, 0.0)
    axes = [np.arange(n) + start for n, start in zip(window.shape, first, strict=True)]
    centre = spots.peaks[index].astype(float)
    for _ in range(_MEAN_SHIFTS):
        near = [
            np.exp(-0.5 * ((axis - c) / sigma) ** 2) for axis, c in zip(axes, centre, strict=True)
        ]
        weight = window * near[0][:, None] * near[1]
        marginals = weight.sum(1), weight.sum(0)
        centre = (
            np.array([m @ axis for m, axis in zip(marginals, axes, strict=True)]) / weight.sum()
        )
    return centre


def _window(
    heatmap: np.ndarray, spots: Spots, index: int, sigma: float
) -> tuple[np.ndarray, np.ndarray]:
    """The heatmap around a spot, 0 where another spot is nearer, and the window's first pixel."""
    reach, peak = math.ceil(4 * sigma), spots.peaks[index]
    first = np.maximum(peak - reach, 0)
    last = np.minimum(peak + reach + 1, heatmap.shape)
    pixels = np.stack(np.meshgrid(*map(np.arange, first, last), indexing="ij"), -1)
    distance = ((pixels[..., None, :] - spots.peaks) ** 2).sum(-1)
    own = distance.argmin(-1) == index
    return np.where(own, heatmap[first[0] : last[0], first[1] : last[1]], 0.0), first


def _centre_of_area(contour: np.ndarray) -> tuple[float, np.ndarray]:
    """Area of a closed polygon (N + 1, 2), and its centre (the shoelace formula)."""
    origin = contour[0]
    a, b = contour[:-1] - origin, contour[1:] - origin
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return abs(cross.sum()) / 2, origin + (cross @ (a + b)) / (3 * cross.sum())


def _assignment(gains: np.ndarray) -> np.ndarray:
    """(K,) spot of each landmark, -1 for none: the largest sum of gains (K, M), none being 0."""
    landmarks, spots = gains.shape
    none = np.zeros((landmarks, landmarks))
    _, chosen = linear_sum_assignment(np.hstack([np.maximum(gains, -1e6), none]), maximize=True)
    return np.where(chosen < spots, chosen, -1)


def _log_normal(places: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(..., M) log density at places (M, 2) of Gaussians in the plane, (..., 2) and (..., 2, 2)."""
    off = places - mean[..., None, :]
    inverse = np.linalg.inv(covariance)[..., None, :, :]
    square = (off[..., None, :] @ inverse @ off[..., None])[..., 0, 0]
    return -0.5 * (square + np.log(np.linalg.det(2 * np.pi * covariance))[..., None])


def _log_odds(heights: np.ndarray) -> np.ndarray:
    share = np.clip(heights, _LEAST_HEIGHT, _MOST_HEIGHT)
    return np.log(share / (1 - share))


def _index(landmarks: np.ndarray) -> np.ndarray:
    """Rows of the covariance that are these landmarks'."""
    return (2 * landmarks[:, None] + np.arange(2)).ravel()


def most_spots(landmarks: int) -> int:
    """How many spots are worth being looked at for so many landmarks."""
    return landmarks + _EXTRA_SPOTS
