"""Group normalisation against Flax's, in float64, with gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.core.normalization import group_norm, leaky_relu, relu


@pytest.mark.parametrize("sides", [(5, 4, 3), (5, 4)])
@pytest.mark.parametrize(("channels", "group"), [(16, 8), (6, 2), (4, 4), (3, 1)])
def test_value_and_gradients_are_flax_s(channels, group, sides):
    rng = np.random.default_rng(0)
    layer = nn.GroupNorm(num_groups=None, group_size=group, param_dtype=jnp.float64)
    with jax.enable_x64(True):
        x = jnp.asarray(3 + 2 * rng.normal(size=(2, *sides, channels)))
        scale, bias = jnp.asarray(rng.normal(size=(2, channels)))
        weight = jnp.asarray(rng.normal(size=x.shape))
        found, back = jax.vjp(jax.jit(lambda *a: group_norm(*a, group)), x, scale, bias)
        expected, textbook_back = jax.vjp(
            lambda x, s, b: layer.apply({"params": {"scale": s, "bias": b}}, x), x, scale, bias
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        for a, b in zip(back(weight), textbook_back(weight), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_half_precision_goes_in_and_out_and_statistics_are_single():
    x = jnp.asarray(100 + np.random.default_rng(0).normal(size=(1, 8, 8, 8, 8)), jnp.bfloat16)
    ones, zeros = jnp.ones(8), jnp.zeros(8)
    found, back = jax.vjp(lambda *a: group_norm(*a, 8), x, ones, zeros)
    expected = group_norm(x.astype(jnp.float32), ones, zeros, 8)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.02)
    dx, dscale, dbias = back(found)
    assert dx.dtype == jnp.bfloat16 and dscale.dtype == dbias.dtype == jnp.float32


def test_a_constant_volume_is_not_divided_by_zero():
    found = group_norm(jnp.full((1, 2, 2, 2, 4), 1e3), jnp.ones(4), jnp.zeros(4), 2)
    assert np.isfinite(found).all()


def test_relu_and_its_gradient():
    x = jnp.array([-2.0, -0.0, 0.0, 3.0])
    found, back = jax.vjp(relu, x)
    np.testing.assert_array_equal(found, [0, 0, 0, 3])
    np.testing.assert_array_equal(back(jnp.full(4, 5.0))[0], [0, 0, 0, 5])


def test_leaky_relu_and_its_gradient():
    x = jnp.array([-2.0, 0.0, 3.0])
    found, back = jax.vjp(lambda x: leaky_relu(x, 0.1), x)
    np.testing.assert_allclose(found, [-0.2, 0, 3])
    np.testing.assert_allclose(back(jnp.full(3, 5.0))[0], [0.5, 0.5, 5])
