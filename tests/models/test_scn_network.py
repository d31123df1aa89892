"""SpatialConfiguration-Net: parameters by hand, the product of its parts, and what each sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.models.scn import (
    AddingUNet,
    ConcatenatingUNet,
    SpatialConfigurationNet,
    multiples,
    upsample_cubic,
)

F, K = 4, 3


def net(recipe="2019", **changes):
    settings = {
        "landmarks": K, "recipe": recipe, "filters": F, "levels": 2, "downsample": 4,
        "spatial_levels": 2, "dropout": 0.5, "reflect": recipe == "2019",
    }  # fmt: skip
    return SpatialConfigurationNet(**(settings | changes))


@functools.cache
def started(recipe="2019"):
    """Parameters at the start."""
    return jax.jit(net(recipe).init)(jax.random.key(0), image())


def image(shape=(16, 16, 8), batch=1):
    return jax.random.normal(jax.random.key(7), (batch, *shape, 1))


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def convolution(kernel, c_in, c_out):
    return kernel**3 * c_in * c_out + c_out


def test_parameters_of_the_paper_by_hand():
    # 4 levels of 64, as in the code; 25 landmarks as in its spines.
    paper = net(landmarks=25, filters=64, levels=4, downsample=8)
    shapes = jax.eval_shape(paper.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))
    local = convolution(3, 1, 64) + 4 * 3 * convolution(3, 64, 64) + convolution(3, 64, 25)
    spatial = convolution(7, 25, 64) + 2 * convolution(7, 64, 64) + convolution(7, 64, 25)
    assert count(shapes) == local + spatial


def test_parameters_of_the_later_recipe_by_hand():
    later = net("later", landmarks=26, filters=96, levels=4, spatial_levels=4)
    shapes = jax.eval_shape(later.init, jax.random.key(0), jnp.zeros((1, 32, 32, 32, 1)))
    whole, joined = convolution(3, 96, 96), convolution(3, 192, 96)
    down = convolution(3, 1, 96) + 7 * whole
    up = 2 * whole + 3 * (joined + whole)
    heads = 2 * convolution(1, 96, 26)
    spatial = convolution(3, 26, 96) + 3 * whole + whole + 3 * joined
    assert count(shapes) == down + up + spatial + heads


@pytest.mark.parametrize("recipe", ["2019", "later"])
def test_heatmaps_are_the_product_of_both_parts(recipe):
    model = net(recipe, dtype=jnp.bfloat16)
    params = started(recipe)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    # Kernels that are not small: so both parts have something to say.
    params = jax.tree.map(lambda x: x + 0.05, params)
    heatmaps, local, spatial = jax.jit(model.apply)(params, image())
    assert heatmaps.shape == (1, 16, 16, 8, K) and heatmaps.dtype == jnp.float32
    np.testing.assert_array_equal(heatmaps, local * spatial)
    assert 0.05 < jnp.abs(spatial).max() <= (1.3 if recipe == "2019" else 1)
    if recipe == "later":
        assert jnp.abs(local).max() <= 1
    else:
        assert jnp.abs(local).max() > 1  # linear


def test_the_spatial_part_sees_nothing_but_the_local_heatmaps():
    model = net()
    params = jax.tree.map(jnp.copy, started())
    kernel = params["params"]["local_heatmaps"]["kernel"]
    params["params"]["local_heatmaps"]["kernel"] = jnp.zeros_like(kernel)
    apply = jax.jit(model.apply)
    a, b = (apply(params, x)[2] for x in (image(), 3 * image()))
    np.testing.assert_array_equal(a, b)


def test_heatmaps_start_near_zero():
    heatmaps, local, _ = jax.jit(net().apply)(started(), image())
    assert 0 < jnp.abs(heatmaps).max() < 0.01 and jnp.abs(local).max() < 0.1


@pytest.mark.parametrize("recipe", ["2019", "later"])
def test_dropout_is_on_in_training_alone(recipe):
    model = net(recipe)
    params = started(recipe)
    training = model.clone(training=True)
    random = jax.jit(lambda p, key: training.apply(p, image(), rngs={"dropout": key})[1])
    a, b = (random(params, jax.random.key(i)) for i in (0, 1))
    assert jnp.abs(a - b).max() > 1e-4
    still, plain = (jax.jit(m.apply)(params, image())[1] for m in (net(recipe, dropout=0.0), model))
    np.testing.assert_array_equal(plain, still)


def test_mirrored_borders_continue_a_constant_volume():
    # With zeros outside, borders of a constant volume would look different from its middle.
    constant = jnp.ones((1, 8, 8, 8, F))
    for reflect in (True, False):
        unet = AddingUNet(F, 1, 0.0, reflect)
        params = jax.jit(unet.init)(jax.random.key(0), constant)
        # The first layer has zeros outside in both: its borders must not speak here.
        first = params["params"]["Layer_0"]["Conv_0"]
        first["kernel"] = first["kernel"].at[jnp.array([0, 2])].set(0)
        first["kernel"] = first["kernel"].at[:, jnp.array([0, 2])].set(0)
        first["kernel"] = first["kernel"].at[:, :, jnp.array([0, 2])].set(0)
        y = jax.jit(unet.apply)(params, constant)
        assert (jnp.ptp(y, axis=(1, 2, 3)).max() < 1e-5) == reflect


@pytest.mark.parametrize(
    "unet", [AddingUNet(F, 2, 0.5, True, True), ConcatenatingUNet(F, 2, 1, 0.5, False, True)]
)
def test_rematerialisation_changes_no_gradient(unet):
    """The same dropout, too, when layers are computed again."""
    x, dropout = image((8, 8, 4)), jax.random.key(1)
    params = jax.jit(unet.clone(training=False).init)(jax.random.key(0), x)

    def gradient(net):
        return jax.jit(jax.grad(lambda p: (net.apply(p, x, rngs={"dropout": dropout}) ** 2).sum()))

    pairs = (jax.tree.leaves(gradient(net)(params)) for net in (unet, unet.clone(remat=True)))
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))


def test_unets_refuse_nothing_that_divides():
    for unet in (AddingUNet(F, 3, 0.0, True), ConcatenatingUNet(F, 3, 1, 0.0, False)):
        x = jnp.ones((1, 8, 4, 12, 2))
        made = jax.eval_shape(unet.init_with_output, jax.random.key(0), x)
        assert made[0].shape == (1, 8, 4, 12, F)
    assert multiples("2019", 4, 8, 4) == (8, 8)
    assert multiples("later", 4, 4, 4) == (8, 32)


def test_cubic_interpolation_against_its_kernel():
    """Keys' kernel in float64, weights at the edges scaled to a sum of 1."""

    def keys(x):
        x = np.abs(x)
        near = 1.5 * x**3 - 2.5 * x**2 + 1
        far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    def matrix(n, factor):
        at = (np.arange(factor * n) + 0.5) / factor - 0.5
        weights = keys(at[:, None] - np.arange(n))
        return weights / weights.sum(1, keepdims=True)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5, 2))
    expected = np.einsum(
        "ai,bj,ck,nijkl->nabcl", matrix(3, 4), matrix(4, 4), matrix(5, 4), x, optimize=True
    )
    found = upsample_cubic(jnp.asarray(x, jnp.float32), 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
