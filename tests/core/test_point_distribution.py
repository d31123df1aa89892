"""The configuration of landmarks, learned batch by batch with some of them missing."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmark.core.point_distribution import learned_configuration, unknown_configuration


def learned(points, present, batch):
    """All points (N, K, 2) in batches, in order."""
    n, k = present.shape
    points = np.pad(points, [(0, 0), (0, 0), (0, 1)]).reshape(n // batch, batch, k, 3)
    shown = jnp.asarray(present).reshape(n // batch, batch, k)

    def step(known, inputs):
        index, ijk, seen = inputs
        return learned_configuration(*known, ijk, seen, index), None

    start = unknown_configuration((64, 48), k)
    inputs = (jnp.arange(n // batch), jnp.asarray(points, jnp.float32), shown)
    return jax.jit(lambda: jax.lax.scan(step, start, inputs)[0])()


def test_nothing_is_known_at_first():
    mean, covariance = unknown_configuration((64, 48), 2)
    np.testing.assert_allclose(mean, [31.5, 23.5] * 2)
    np.testing.assert_allclose(covariance, np.diag([64**2 / 12, 48**2 / 12] * 2))


def test_whole_cases_count_with_the_weights_of_their_batches():
    rng = np.random.default_rng(0)
    points = rng.normal(0, 3, (12, 2, 2)) + [[20, 10], [40, 30]]
    mean, covariance = learned(points, np.ones((12, 2), bool), 4)
    # Batches 0, 1, 2 have the rates 1, 2^-0.7, 3^-0.7 at their turn.
    rates = np.arange(1, 4) ** -0.7
    weights = rates * np.array([np.prod(1 - rates[i + 1 :]) for i in range(3)])
    weights = np.repeat(weights, 4) / 4
    rows = points.reshape(12, 4)
    expected = weights @ rows
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    spread = rows - expected
    np.testing.assert_allclose(covariance, (weights[:, None] * spread).T @ spread, rtol=1e-3)


def test_a_landmark_that_is_often_missing_is_known_from_the_others():
    rng = np.random.default_rng(1)
    together = rng.normal(0, 6, (16_000, 1, 2))
    points = [[20, 10], [40, 30], [30, 15]] + together + rng.normal(0, 1, (16_000, 3, 2))
    # The third is there only where the case lies far to the left, so that its plain mean is wrong.
    present = np.ones((16_000, 3), bool)
    present[:, 2] = together[:, 0, 0] < 0
    plain = points[present[:, 2], 2].mean(0)
    assert plain[0] < 26
    # What is not there has no meaning.
    points[~present] = 0
    mean, covariance = learned(points, present, 8)
    np.testing.assert_allclose(mean, [20, 10, 40, 30, 30, 15], atol=0.7)
    true = np.kron(np.ones((3, 3)), np.eye(2)) * 36 + np.eye(6)
    np.testing.assert_allclose(covariance, true, atol=5)
