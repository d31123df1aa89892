"""Networks of the cardiac GAN: sizes, what training leaves behind, dropout that may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.models.cardiac_gan import Dropout, PatchDiscriminator, UNetGenerator

WIDTHS = (4, 8, 8, 16)
OFF = jnp.zeros(())


def keys(seed=0):
    names = ("params", "dropout")
    return dict(zip(names, jax.random.split(jax.random.key(seed)), strict=True))


def test_the_generator_keeps_the_picture_s_sides_and_halves_them_four_times():
    net = UNetGenerator(WIDTHS)
    image = jax.random.normal(jax.random.key(1), (2, 32, 48, 1))
    _, seen = net.apply(
        jax.jit(net.init)(keys(), image, OFF), image, OFF, rngs=keys(),
        mutable=["batch_stats", "intermediates"], capture_intermediates=True,
    )  # fmt: skip
    layers = seen["intermediates"]
    shapes = [layers[f"Layer_{i}"]["__call__"][0].shape[1:] for i in range(8)]
    down = [(16, 24, 4), (8, 12, 8), (4, 6, 8), (2, 3, 16)]
    assert shapes == [*down, (4, 6, 8), (8, 12, 8), (16, 24, 4), (32, 48, 4)]
    assert layers["FeatureFilter_2"]["__call__"][0].shape == (2, 2, 3, 16)
    heatmap = layers["__call__"][0]
    assert heatmap.shape == (2, 32, 48) and heatmap.dtype == jnp.float32
    # It starts near 0, and nothing bounds it.
    assert 0 < jnp.abs(heatmap).max() < 0.1


def test_prediction_uses_the_running_means_and_no_dropout():
    net = UNetGenerator(WIDTHS)
    image = jax.random.normal(jax.random.key(1), (4, 32, 32, 1))
    variables = jax.jit(net.init)(keys(), image, OFF)
    train = jax.jit(lambda v, rate: net.apply(v, image, rate, rngs=keys(), mutable=["batch_stats"]))
    for _ in range(60):
        trained, new = train(variables, OFF)
        variables = {**variables, **new}
    predicted = net.apply(variables, image)
    # A running variance is not that of the batch to the last bit.
    np.testing.assert_allclose(predicted, trained, atol=0.02 * float(jnp.abs(trained).max()))
    dropped, _ = train(variables, jnp.asarray(0.5))
    assert jnp.abs(dropped - trained).max() > 0.1 * jnp.abs(trained).max()
    # One picture alone is predicted as among others.
    np.testing.assert_allclose(net.apply(variables, image[:1]), predicted[:1], atol=1e-5)


def test_six_layers_make_four_by_four_patches_of_256_pixels():
    net = PatchDiscriminator((4,) * 6)
    picture = jax.ShapeDtypeStruct((2, 256, 256, 1), jnp.float32)
    heatmap = jax.ShapeDtypeStruct((2, 256, 256), jnp.float32)
    found, _ = jax.eval_shape(
        lambda i, h: net.init_with_output(keys(), i, h, OFF), picture, heatmap
    )
    assert found.shape == (2, 4, 4) and found.dtype == jnp.float32


def test_the_discriminator_looks_at_picture_and_heatmap():
    net = PatchDiscriminator((4, 8))
    image, heatmap = (jax.random.normal(jax.random.key(i), (3, 16, 16)) for i in (1, 2))
    variables = net.init(keys(), image[..., None], heatmap, OFF)

    def verdicts(image, heatmap):
        found, _ = net.apply(
            variables, image[..., None], heatmap, OFF, rngs=keys(), mutable=["batch_stats"]
        )
        return found

    for gradient in jax.grad(lambda *x: (verdicts(*x) ** 2).sum(), (0, 1))(image, heatmap):
        assert jnp.abs(gradient).max() > 0


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.6])
def test_dropout_keeps_the_mean_at_any_rate(rate):
    x = jnp.ones((8, 32, 32, 4))
    apply = jax.jit(lambda r: Dropout().apply({}, x, r, rngs={"dropout": jax.random.key(0)}))
    found = np.asarray(apply(jnp.asarray(rate)))
    np.testing.assert_allclose((found == 0).mean(), rate, atol=0.01)
    np.testing.assert_allclose(found[found > 0], 1 / (1 - rate), rtol=1e-6)
    assert Dropout().apply({}, x, None) is x
