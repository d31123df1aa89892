"""A Gaussian of the landmarks' positions in a picture, learned while a network is trained.

The mean (2 K,) and covariance (2 K, 2 K) are in pixels, landmark by landmark, x before y.
`core.spots` uses them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

# Pixels^2 added to each variance where a covariance is inverted: a batch may hold one case.
_RIDGE = 0.1


def unknown_configuration(shape: Sequence[int], landmarks: int) -> tuple[Array, Array]:
    """Mean and covariance before training: uniform over a picture of this shape."""
    sides = jnp.tile(jnp.asarray(shape, jnp.float32), landmarks)
    return (sides - 1) / 2, jnp.diag(sides**2 / 12)


def learned_configuration(
    mean: Array, covariance: Array, landmarks_ijk: Array, present: Array, step: Array
) -> tuple[Array, Array]:
    """Mean and covariance after one more batch: stepwise EM (Cappe & Moulines, JRSS B 2009).

    A missing landmark counts with its expected position, given the others, and with the variance
    that remains. Batch number t has the weight t^-0.7, so that the first ones are forgotten.

    Args:
      landmarks_ijk: (B, K, 3), of which x and y are used; present: (B, K) bool.
      step: () batches seen before.
    """
    seen = jnp.repeat(present, 2, axis=1)
    rows = landmarks_ijk[..., :2].reshape(len(seen), -1)
    prior = covariance + _RIDGE * jnp.eye(len(mean))

    def expected(row: Array, seen: Array) -> tuple[Array, Array]:
        # Missing landmarks get the identity's rows and columns, so that shapes stay the same.
        known = jnp.where(seen[:, None] & seen, prior, jnp.eye(len(seen)))
        across = jnp.where(seen, prior, 0.0)
        gain = jnp.linalg.solve(known, across.T).T
        filled = mean + gain @ jnp.where(seen, row - mean, 0.0)
        doubt = prior - gain @ across.T
        both_missing = ~seen[:, None] & ~seen
        return jnp.where(seen, row, filled), jnp.where(both_missing, doubt, 0.0)

    filled, doubt = jax.vmap(expected)(rows, seen)
    rate = (step + 1.0) ** -0.7
    new = mean + rate * (filled.mean(0) - mean)
    spread = filled - new
    of_batch = spread.T @ spread / len(rows) + doubt.mean(0)
    moved = mean - new
    return new, (1 - rate) * (covariance + jnp.outer(moved, moved)) + rate * of_batch
