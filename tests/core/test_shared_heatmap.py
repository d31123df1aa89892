"""One heatmap for all landmarks, its foreground, and the losses over them, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import huber

from jaxmark.core.losses import huber_loss, least_squares_loss, square_and_absolute_loss
from jaxmark.core.shared_heatmap import foreground, patches_with, shared_heatmap

SHAPE, VARIANCE = (32, 24), 2.0
# A pair near each other, one alone near the edge, none.
POINTS = jnp.array(
    [
        [[10.3, 8.2, 0], [14.0, 8.0, 0]],
        [[1.0, 20.0, 0], [9.0, 9.0, 0]],
        [[5.0, 5.0, 0], [6.0, 6.0, 0]],
    ]
)
PRESENT = jnp.array([[True, True], [True, False], [False, False]])


def test_the_heatmap_is_the_largest_gaussian_of_those_that_are_there():
    found = np.asarray(shared_heatmap(POINTS, PRESENT, SHAPE, VARIANCE))
    for case, x, y in [(0, 10, 8), (0, 12, 9), (0, 31, 0), (1, 1, 20), (1, 9, 9), (2, 5, 5)]:
        values = [0.0]
        for (px, py, _), there in zip(POINTS[case], PRESENT[case], strict=True):
            if there:
                values.append(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * VARIANCE)))
        np.testing.assert_allclose(found[case, x, y], max(values), rtol=1e-5, atol=1e-30)
    # Two that meet are not higher for it.
    assert found.max() <= 1


@pytest.mark.parametrize("single", [True, False])
def test_the_foreground_is_one_square_a_spot_or_one_around_all(single):
    found = np.asarray(foreground(POINTS, PRESENT, SHAPE, VARIANCE, single=single))
    reach = 3 * VARIANCE**0.5
    for case in range(3):
        points = np.asarray(POINTS[case])[np.asarray(PRESENT[case])][:, :2]
        squares = [(point, reach) for point in points]
        if not single and len(points):
            low, high = points.min(0), points.max(0)
            squares = [((low + high) / 2, (high - low).max() / 2 + reach)]
        for x in range(SHAPE[0]):
            for y in range(SHAPE[1]):
                inside = any(max(abs(x - c[0]), abs(y - c[1])) <= half for c, half in squares)
                assert found[case, x, y] == inside
    sides = found.any(2).sum(1)
    assert not sides[2]
    if not single:
        # Its size is the picture's own.
        assert sides[0] == 12 and sides[1] < 12


def test_patches_with_foreground():
    square = np.zeros((1, 32, 24), bool)
    square[0, 7:9, 12] = True
    found = np.asarray(patches_with(jnp.asarray(square), (4, 3)))
    assert np.argwhere(found[0]).tolist() == [[0, 1], [1, 1]]


def test_losses_are_means_over_what_is_counted():
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(3, 5, 4)).astype(np.float32) for _ in range(2))
    counted = rng.random((3, 5, 4)) < 0.5
    counted[1] = False
    error = (first - second)[counted]
    loss = huber_loss(first, second, 0.4, jnp.asarray(counted))
    np.testing.assert_allclose(loss, huber(0.4, error).mean(), rtol=1e-5)

    each = [
        7 * np.mean((first[i] - second[i])[counted[i]] ** 2)
        + np.mean(np.abs(first[i] - second[i])[counted[i]])
        for i in (0, 2)
    ]
    loss = square_and_absolute_loss(first, second, 7.0, jnp.asarray(counted))
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)
    assert square_and_absolute_loss(first, 0.0, 7.0, jnp.zeros((3, 5, 4), bool)) == 0

    responses = jnp.array([0.2, 5.0, 0.6])
    loss = least_squares_loss(responses, 1.0, jnp.array([True, False, True]))
    np.testing.assert_allclose(loss, (0.64 + 0.16) / 2, rtol=1e-6)


def test_huber_s_slope_ends_at_delta():
    slope = jax.grad(lambda e: huber_loss(e, jnp.zeros(3), 0.4, jnp.ones(3, bool)).sum())
    np.testing.assert_allclose(slope(jnp.array([0.1, 0.4, -3.0])) * 3, [0.1, 0.4, -0.4], atol=1e-6)
