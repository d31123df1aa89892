"""Which spot is which landmark: against all readings there are, and where its centre is."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from jaxmark.core.spots import Spots, contour_centre, find_spots, mean_shift, named

VARIANCE = 5.0
SIGMA = math.sqrt(VARIANCE)
SHAPE = (96, 80)


def drawn(places, heights=None, shape=SHAPE):
    """A heatmap with Gaussian spots."""
    x, y = np.meshgrid(*map(np.arange, shape), indexing="ij")
    places = np.asarray(places, float).reshape(-1, 2)
    heights = np.ones(len(places)) if heights is None else heights
    spots = [
        h * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * VARIANCE))
        for h, (a, b) in zip(heights, places, strict=True)
    ]
    return np.max([np.zeros(shape), *spots], axis=0)


def spots_at(places, heights=None):
    places = np.asarray(places)
    heights = np.ones(len(places)) if heights is None else np.asarray(heights)
    order = np.argsort(-heights, kind="stable")
    return Spots(places[order], heights[order])


def triangle(spread=3.0):
    """Mean and covariance of three landmarks that keep their distances to within `spread`."""
    mean = np.array([30.0, 30, 60, 32, 45, 60])
    together = np.kron(np.ones((3, 3)), np.eye(2)) * 36
    return mean, together + spread**2 * np.eye(6)


def test_spots_are_the_local_maxima_that_are_high_and_far_enough_from_each_other():
    heatmap = drawn([[20, 20], [50, 30], [53, 30], [70, 60], [10, 70]], [0.9, 1, 0.8, 0.4, 0.05])
    found = find_spots(heatmap, SIGMA, 0.1, 10)
    assert found.peaks.tolist() == [[50, 30], [20, 20], [70, 60]]
    np.testing.assert_allclose(found.heights, [1, 0.9, 0.4])
    assert find_spots(heatmap, SIGMA, 0.1, 2).peaks.tolist() == [[50, 30], [20, 20]]
    assert len(find_spots(np.zeros(SHAPE), SIGMA, 0.1, 10)) == 0


@pytest.mark.parametrize("centre", [(40.0, 30.0), (40.3, 30.45), (12.5, 61.2)])
@pytest.mark.parametrize("decode", [contour_centre, mean_shift])
def test_the_centre_of_a_spot_is_found_between_pixels(centre, decode):
    # The other spot is near enough to overlap, and higher.
    other = np.add(centre, (9, 4))
    heatmap = drawn([centre, other], [0.8, 1.0])
    spots = find_spots(heatmap, SIGMA, 0.1, 10)
    np.testing.assert_allclose(decode(heatmap, spots, 1, SIGMA), centre, atol=0.06)
    np.testing.assert_allclose(decode(heatmap, spots, 0, SIGMA), other, atol=0.06)


def test_the_contour_takes_the_middle_of_a_spot_whose_brightest_pixel_is_at_its_edge():
    # A flat disc with one bright pixel: the paper's case for the contour.
    x, y = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    heatmap = 0.8 * ((x - 20) ** 2 + (y - 18) ** 2 <= 16)
    heatmap[23, 18] = 1.0
    spots = find_spots(heatmap, SIGMA, 0.1, 1)
    np.testing.assert_allclose(contour_centre(heatmap, spots, 0, SIGMA), [20, 18], atol=0.1)


def test_a_spot_at_the_edge_of_the_picture_has_a_centre():
    heatmap = drawn([[0, 40]])
    spots = find_spots(heatmap, SIGMA, 0.1, 1)
    centre = contour_centre(heatmap, spots, 0, SIGMA)
    assert 0 <= centre[0] < 2 and abs(centre[1] - 40) < 0.01
    assert 0 <= mean_shift(heatmap, spots, 0, SIGMA)[0] < 2


def log_probability(reading, spots, mean, covariance):
    """The formula at the head of the module, by scipy."""
    shift = np.tile(np.eye(2), (len(mean) // 2,) * 2) * (0.25 * max(SHAPE)) ** 2
    whole = covariance + shift + VARIANCE * np.eye(len(mean))
    found = [k for k, m in enumerate(reading) if m >= 0]
    rows = [2 * k + axis for k in found for axis in range(2)]
    chosen = [reading[k] for k in found]
    height = np.clip(spots.heights[chosen], 0.02, 0.98)
    law = multivariate_normal(mean[rows], whole[np.ix_(rows, rows)])
    area = len(found) * math.log(math.prod(SHAPE))
    return law.logpdf(spots.peaks[chosen].ravel()) + area + np.log(height / (1 - height)).sum()


def test_the_reading_is_the_most_probable_of_all():
    rng = np.random.default_rng(0)
    mean, covariance = triangle()
    whole = 0
    for _ in range(60):
        true = rng.multivariate_normal(mean, covariance).reshape(3, 2)
        # Some are missing, some are stray.
        places = [*true[rng.random(3) < 0.8], *rng.uniform(5, 75, (rng.integers(1, 4), 2))]
        spots = spots_at(np.round(places).astype(int), rng.uniform(0.1, 1.0, len(places)))
        choices = range(-1, len(spots))
        readings = [
            reading
            for reading in itertools.product(choices, repeat=3)
            if (taken := [m for m in reading if m >= 0]) and len(set(taken)) == len(taken)
        ]
        best = max(readings, key=lambda r: log_probability(r, spots, mean, covariance))
        found = named(spots, mean, covariance, SHAPE, VARIANCE)
        assert found.spot.tolist() == list(best)
        whole += min(best) >= 0
    # Both kinds were there.
    assert 10 < whole < 50


def test_a_missing_spot_is_expected_where_the_others_make_it_likely():
    mean, covariance = triangle()
    # The whole configuration lies 8 pixels further along X.
    spots = spots_at(np.array([[38, 30], [68, 32]]))
    found = named(spots, mean, covariance, SHAPE, VARIANCE)
    assert found.spot.tolist() == [0, 1, -1]
    shift = np.tile(np.eye(2), (3, 3)) * 24.0**2
    whole = covariance + shift + VARIANCE * np.eye(6)
    gain = whole[4:, :4] @ np.linalg.inv(whole[:4, :4])
    np.testing.assert_allclose(found.expected[2], mean[4:] + gain @ [8, 0, 8, 0], atol=1e-6)
    np.testing.assert_allclose(found.expected[2], [53, 60], atol=0.5)
    assert found.evidence[2] < 0 < found.evidence[:2].min()


def test_without_any_spot_all_are_expected_at_the_mean():
    mean, covariance = triangle()
    found = named(Spots(np.zeros((0, 2), int), np.zeros(0)), mean, covariance, SHAPE, VARIANCE)
    assert found.spot.tolist() == [-1] * 3
    np.testing.assert_allclose(found.expected, mean.reshape(3, 2))
    assert (found.evidence < 0).all()


def test_of_too_many_spots_the_unlikely_ones_are_left_over_however_high():
    mean, covariance = triangle()
    places = np.array([[30, 30], [60, 32], [45, 60], [80, 70], [5, 40]])
    spots = spots_at(places, [0.6, 0.6, 0.6, 1.0, 0.9])
    found = named(spots, mean, covariance, SHAPE, VARIANCE)
    assert spots.peaks[found.spot].tolist() == places[:3].tolist()


def test_a_faint_spot_is_better_than_none_for_a_single_landmark():
    found = named(spots_at([[10, 70]], [0.11]), np.array([48.0, 40]), np.eye(2), SHAPE, VARIANCE)
    assert found.spot.tolist() == [0]


def test_many_landmarks_keep_their_names():
    rng = np.random.default_rng(1)
    mean = rng.uniform(10, 70, (19, 2))
    shapes = mean + rng.normal(0, 2.0, (200, 19, 2)) + rng.normal(0, 8.0, (200, 1, 2))
    rows = shapes.reshape(200, -1)
    right = 0
    for _ in range(5):
        true = mean + rng.normal(0, 2.0, (19, 2)) + rng.normal(0, 8.0, (1, 2))
        gone = rng.choice(19, 2, replace=False)
        places = np.round([*np.delete(true, gone, 0), *rng.uniform(0, 80, (3, 2))]).astype(int)
        order = rng.permutation(len(places))
        spots = spots_at(places[order], rng.uniform(0.5, 1, len(places)))
        found = named(spots, rows.mean(0), np.cov(rows.T), SHAPE, VARIANCE)
        assert sorted(set(found.spot[found.spot >= 0])) == sorted(found.spot[found.spot >= 0])
        for k in np.delete(np.arange(19), gone):
            at = spots.peaks[found.spot[k]] if found.spot[k] >= 0 else np.full(2, np.nan)
            right += bool((np.abs(at - np.round(true[k])) < 0.5).all())
    # Of 85; two landmarks may lie nearer to each other than a configuration is known.
    assert right >= 72


@pytest.mark.parametrize("least", [0.1, 2.5])
def test_spots_of_noise_are_those_of_the_definition(least):
    heatmap = np.random.default_rng(3).standard_normal((40, 30))
    found = find_spots(heatmap, 1.5, least, 12)
    kept = []
    for flat in np.argsort(-heatmap, axis=None):
        x, y = np.unravel_index(flat, heatmap.shape)
        highest = heatmap[max(x - 1, 0) : x + 2, max(y - 1, 0) : y + 2].max()
        far = all(math.hypot(x - a, y - b) >= 3 for a, b in kept)
        if heatmap[x, y] == highest and heatmap[x, y] >= least and far and len(kept) < 12:
            kept.append((x, y))
    assert len(kept) == (12 if least < 1 else len(kept)) > 1
    assert found.peaks.tolist() == [list(map(int, place)) for place in kept]
