"""The residual U-Net: shapes, a parameter count by hand, and what the blocks promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.models.blocks import Norm, ResidualBlock, append_coordinates
from jaxmark.models.unet import ResidualUNet


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameter_count_by_hand():
    params = ResidualUNet((4, 8), 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 4, 1)))

    def block(c_in, c_out):
        convolutions = 27 * c_in * c_out + 27 * c_out * c_out
        return convolutions + 2 * 2 * c_out + (c_in * c_out if c_in != c_out else 0)

    up, head = 8 * 8 * 4, 4 * 3 + 3
    assert count(params) == block(1, 4) + block(4, 8) + up + block(4 + 4, 4) + head


def test_output_has_a_channel_a_landmark_and_the_shape_of_the_volume():
    net = ResidualUNet((4, 8, 8), 5, dtype=jnp.bfloat16)
    x = jnp.ones((2, 8, 4, 12, 1))
    params = net.init(jax.random.key(0), x)
    y = jax.jit(net.apply)(params, x)
    assert y.shape == (2, 8, 4, 12, 5) and y.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_half_precision_stays_near_full():
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 8, 1))
    full, half = ResidualUNet((4, 8), 2), ResidualUNet((4, 8), 2, dtype=jnp.bfloat16)
    params = full.init(jax.random.key(0), x)
    a, b = full.apply(params, x), half.apply(params, x)
    assert 0 < jnp.abs(a - b).max() < 0.05 * jnp.abs(a).max()


def test_the_volumes_of_a_batch_do_not_mix():
    net = ResidualUNet((4, 8), 2)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 8, 1))
    params = net.init(jax.random.key(0), x)
    alone = net.apply(params, x[:1])
    np.testing.assert_allclose(net.apply(params, x)[:1], alone, atol=1e-5)


def test_a_side_that_pooling_cannot_halve_is_refused():
    with pytest.raises(ValueError, match=r"\(8, 6, 8\).*multiple of 4"):
        ResidualUNet((2, 2, 2), 1).init(jax.random.key(0), jnp.zeros((1, 8, 6, 8, 1)))


def test_a_block_with_its_second_convolution_at_zero_is_its_shortcut():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 4, 6))
    block = ResidualBlock(6)
    params = block.init(jax.random.key(1), x)["params"]
    params["Conv_1"]["kernel"] = jnp.zeros_like(params["Conv_1"]["kernel"])
    np.testing.assert_allclose(block.apply({"params": params}, x), jax.nn.relu(x), atol=1e-6)


def test_norm_gives_every_group_mean_zero_and_variance_one():
    x = 3 + 5 * jax.random.normal(jax.random.key(0), (2, 6, 6, 6, 16))
    norm = Norm()
    y = norm.apply(norm.init(jax.random.key(1), x), x).reshape(2, -1, 2, 8)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(y.var((1, 3)), 1, atol=1e-3)


def test_coordinates_run_from_minus_one_to_one_on_their_axis():
    x = append_coordinates(jnp.zeros((2, 3, 5, 7, 1)))
    assert x.shape == (2, 3, 5, 7, 4)
    for axis in range(3):
        place = np.moveaxis(np.asarray(x[1, ..., 1 + axis]), axis, 0)
        assert (place == place[:, :1, :1]).all()
        np.testing.assert_allclose(place[:, 0, 0], np.linspace(-1, 1, len(place)), atol=1e-6)


def test_gradients_are_finite_however_xla_rounds_on_the_way():
    # Without optimisation XLA computes values again that JAX's maximum expects to be equal.
    net = ResidualUNet((4, 8), 2, head=4)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 8, 1))
    params = net.init(jax.random.key(1), x)

    def gradient(level):
        options = {"xla_backend_optimization_level": level}
        function = jax.jit(jax.grad(lambda p: (net.apply(p, x) ** 2).mean()))
        return function.lower(params).compile(compiler_options=options)(params)

    for a, b in zip(*map(jax.tree.leaves, (gradient(0), gradient(3))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
