"""The convolutions against XLA's own 3-D ones, in float64, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmark.core.conv import conv_same, conv_transpose_2, max_pool_2

NUMBERS = ("NXYZC", "XYZIO", "NXYZC")


def textbook_same(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=NUMBERS)


def textbook_transpose(x, kernel):
    return lax.conv_transpose(x, kernel, (2, 2, 2), "VALID", dimension_numbers=NUMBERS)


def textbook_pool(x, kernel):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 2, 1), (1, 2, 2, 2, 1), "VALID")


@pytest.mark.parametrize(
    ("ours", "textbook", "kernel"),
    [
        (conv_same, textbook_same, (3, 3, 3)),
        (conv_same, textbook_same, (1, 1, 1)),
        (conv_same, textbook_same, (5, 3, 1)),
        (conv_transpose_2, textbook_transpose, (2, 2, 2)),
        (lambda x, kernel: max_pool_2(x), textbook_pool, (1, 1, 1)),
    ],
)
def test_value_and_gradients_equal_the_textbook(ours, textbook, kernel):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, 6, 8, 4, 3)))
        k = jnp.asarray(rng.normal(size=(*kernel, 3, 5)))
        assert x.dtype == jnp.float64
        if ours is conv_transpose_2:
            # lax mirrors the kernel of a transposed convolution; the definition does not.
            expected = textbook(x, k[::-1, ::-1, ::-1])
        else:
            expected = textbook(x, k)
        found = jax.jit(ours)(x, k)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)

        weight = jnp.asarray(rng.normal(size=expected.shape))

        def loss(f, x, k):
            return (f(x, k) * weight).sum()

        def reference(x, k):
            return textbook(x, k[::-1, ::-1, ::-1]) if ours is conv_transpose_2 else textbook(x, k)

        for a, b in zip(
            jax.grad(loss, (1, 2))(ours, x, k), jax.grad(loss, (1, 2))(reference, x, k), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_transposed_convolution_by_hand():
    x = jnp.array([2.0, 3.0]).reshape(1, 2, 1, 1, 1)
    kernel = jnp.arange(8.0).reshape(2, 2, 2, 1, 1)
    out = conv_transpose_2(x, kernel)[0, ..., 0]
    assert out.shape == (4, 2, 2)
    assert out[0, 1, 0] == 2 * 2 and out[3, 1, 1] == 3 * 7
