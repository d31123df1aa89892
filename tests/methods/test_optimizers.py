"""Optimisers and learning rates that methods share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmark.methods.optimizers import clipped, cosine_at_the_end


def test_the_rate_is_constant_and_then_falls_to_zero():
    rate = cosine_at_the_end(1e-3, 100, 0.4)
    np.testing.assert_allclose([rate(0), rate(59), rate(80), rate(100)], [1e-3, 1e-3, 5e-4, 0])
    assert cosine_at_the_end(1e-3, 100, 0.0)(99) == 1e-3


def test_long_gradients_are_shortened_and_short_ones_left():
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    for norm, expected in ((1.0, 1.0), (10.0, 5.0), (0.0, 5.0)):
        optimizer = clipped(norm, optax.sgd(1.0))
        update, _ = jax.jit(optimizer.update)(gradient, optimizer.init(gradient))
        np.testing.assert_allclose(optax.tree.norm(update), expected, rtol=1e-6)
        np.testing.assert_allclose(update["a"][0] / update["b"][0], 0.75, rtol=1e-6)
