"""The convolutions against XLA's own, in float64, with gradients, of volumes and pictures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmark.core import conv


def numbers(x):
    axes = "XYZ"[: x.ndim - 2]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def textbook(x, kernel, stride, padding):
    strides = (stride,) * (x.ndim - 2)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers(x))


textbook_same = functools.partial(textbook, stride=1, padding="SAME")
textbook_strided = functools.partial(textbook, stride=2, padding="VALID")


def textbook_transpose(x, kernel):
    # lax mirrors the kernel of a transposed convolution; the definition does not.
    axes = x.ndim - 2
    mirrored = jnp.flip(kernel, range(axes))
    return lax.conv_transpose(x, mirrored, (2,) * axes, "VALID", dimension_numbers=numbers(x))


def textbook_max_pool(x):
    window = (1, *(2,) * (x.ndim - 2), 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def textbook_avg_pool(x):
    window = (1, *(2,) * (x.ndim - 2), 1)
    return lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / 2 ** (x.ndim - 2)


def textbook_upsample(x, method):
    b, *sides, c = x.shape
    return jax.image.resize(x, (b, *(2 * n for n in sides), c), method)


def assert_equal_with_gradients(ours, textbook, *shapes, tolerance=1e-12):
    """Value, and the gradient of a random weighting of it for every argument."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        args = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        assert args[0].dtype == jnp.float64
        expected, expected_back = jax.vjp(textbook, *args)
        found, found_back = jax.vjp(jax.jit(ours), *args)
        weight = jnp.asarray(rng.normal(size=expected.shape))
        pairs = [(found, expected)]
        pairs += list(zip(found_back(weight), expected_back(weight), strict=True))
        for a, b in pairs:
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    ("volume", "kernel", "channels"),
    [
        ((6, 8, 4), (3, 3, 3), (2, 5)),
        ((5, 3, 7), (3, 3, 3), (9, 18)),
        ((1, 4, 3), (3, 3, 3), (9, 4)),
        ((6, 5, 4), (1, 1, 1), (2, 5)),
        ((6, 5, 4), (1, 1, 1), (5, 2)),
        ((6, 5, 4), (5, 3, 1), (2, 5)),
        ((4, 5, 6), (1, 3, 5), (9, 10)),
        ((6, 8), (3, 3), (2, 5)),
        ((5, 3), (3, 3), (9, 18)),
        ((1, 7), (5, 3), (9, 4)),
        ((6, 5), (1, 1), (5, 2)),
    ],
)
def test_same_convolution(volume, kernel, channels):
    assert_equal_with_gradients(
        conv.conv_same, textbook_same, (2, *volume, channels[0]), (*kernel, *channels)
    )


@pytest.mark.parametrize("volume", [(8, 4, 5), (6, 5, 4), (7, 3, 2), (2, 6, 3)])
@pytest.mark.parametrize("channels", [(9, 10), (17, 8)])
@pytest.mark.parametrize("rows", [10**6, 10])
def test_forms_for_large_volumes(volume, channels, rows, monkeypatch):
    """What large volumes choose (Winograd, weight gradients in a loop), on small ones."""
    monkeypatch.setattr(conv, "WINOGRAD_FROM", 0)
    monkeypatch.setattr(conv, "LOOP_FROM_ROWS", 0)
    monkeypatch.setattr(conv, "ROWS_AT_ONCE", rows)
    assert_equal_with_gradients(
        conv.conv_same, textbook_same, (2, *volume, channels[0]), (3, 3, 3, *channels)
    )


@pytest.mark.parametrize("at_once", [0, 10**6])
@pytest.mark.parametrize("channels", [(9, 10), (17, 8)])
def test_weight_gradients_of_pictures(channels, at_once, monkeypatch):
    monkeypatch.setattr(conv, "VALUES_AT_ONCE", at_once)
    assert_equal_with_gradients(
        conv.conv_same, textbook_same, (3, 6, 5, channels[0]), (3, 5, *channels)
    )


@pytest.mark.parametrize("form", [conv.planes_as_inputs, conv.planes_as_outputs, conv.winograd])
def test_every_form_equals_the_textbook_whatever_the_rule(form):
    assert_equal_with_gradients(form, textbook_same, (2, 7, 4, 5, 3), (3, 3, 3, 3, 18))


@pytest.mark.parametrize("size", [(3, 3, 3), (5, 3, 1), (3, 3), (7, 5)])
def test_what_other_platforms_run_equals_what_the_cpu_runs(size):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        shape = (2, *(4, 5, 6)[: len(size)])
        x = jnp.asarray(rng.normal(size=(*shape, 3)))
        dy = jnp.asarray(rng.normal(size=(*shape, 4)))
        kernel = jnp.asarray(rng.normal(size=(*size, 3, 4)))
        np.testing.assert_allclose(
            conv.conv_direct(x, kernel), conv.conv_on_cpu(x, kernel), atol=1e-12
        )
        np.testing.assert_allclose(
            conv.weight_gradient_direct(x, dy, size),
            conv.weight_gradient_on_cpu(x, dy, size),
            atol=1e-11,
        )


@pytest.mark.parametrize("planes", [1, 2, 3, 6])
def test_groups_of_planes_equal_the_textbook(planes):
    form = functools.partial(conv.plane_groups, planes=planes)
    assert_equal_with_gradients(form, textbook_same, (2, 6, 4, 5, 3), (3, 3, 3, 3, 4))
    assert_equal_with_gradients(form, textbook_same, (2, 6, 4, 5, 1), (5, 3, 1, 1, 4))


@pytest.mark.parametrize(
    ("volume", "channels", "planes"),
    [
        ((8, 4, 5), (1, 16), 4),
        ((6, 4, 5), (1, 16), 2),
        ((8, 4, 5), (16, 32), 2),
        ((7, 4, 5), (9, 9), 0),
    ],
)
def test_what_cuda_runs_equals_the_textbook(volume, channels, planes):
    rng = np.random.default_rng(0)
    c_in, c_out = channels
    x = jnp.asarray(rng.normal(size=(2, *volume, c_in)), jnp.bfloat16)
    dy = jnp.asarray(rng.normal(size=(2, *volume, c_out)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, *channels)), jnp.bfloat16)
    assert conv.planes_at_once(x, *kernel.shape) == planes
    assert conv.planes_at_once(x.astype(jnp.float32), *kernel.shape) == 0
    x32, dy32, kernel32 = (a.astype(jnp.float32) for a in (x, dy, kernel))
    for found, expected in (
        (conv.conv_on_cuda(x, kernel), conv.conv_direct(x32, kernel32)),
        (
            conv.weight_gradient_on_cuda(x, dy, (3, 3, 3)),
            conv.weight_gradient_direct(x32, dy32, (3, 3, 3)),
        ),
    ):
        assert found.dtype == jnp.bfloat16
        error = jnp.abs(found.astype(jnp.float32) - expected).max()
        assert error <= 0.02 * jnp.abs(expected).max()


def test_programs_for_cuda_have_2d_convolutions_where_channels_are_few():
    def text(channels):
        arguments = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16)
            for shape in ((1, 8, 8, 8, channels), (3, 3, 3, channels, channels))
        ]

        def both(x, kernel):
            return jax.vjp(conv.conv_same, x, kernel)[1](x)

        return jax.jit(both).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()

    assert "[b, 0, 1, f]" in text(16) and "[b, 0, 1, 2, f]" not in text(16)
    assert "[b, 0, 1, f]" not in text(64) and "[b, 0, 1, 2, f]" in text(64)


def test_winograd_is_accurate_in_float32():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 16, 12, 12, 32)), rng.normal(size=(3, 3, 3, 32, 32))
    found = conv.winograd(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    with jax.enable_x64(True):
        expected = np.asarray(textbook_same(jnp.asarray(x), jnp.asarray(kernel)))
    assert np.abs(np.asarray(found) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("axes", [3, 2])
@pytest.mark.parametrize("channels", [(2, 20), (20, 2)])
def test_strided_and_transposed_convolution(channels, axes):
    kernel = (*(2,) * axes, *channels)
    even, any_size = (2, *(6, 4, 2)[:axes], channels[0]), (2, *(3, 4, 5)[:axes], channels[0])
    assert_equal_with_gradients(conv.conv_strided_2, textbook_strided, even, kernel)
    assert_equal_with_gradients(conv.conv_transpose_2, textbook_transpose, any_size, kernel)


@pytest.mark.parametrize("volume", [(6, 4), (2, 2), (4, 2, 6), (5, 4), (1, 1)])
@pytest.mark.parametrize("form", [conv.conv_halving, conv.halving_on_cpu])
def test_convolution_that_halves(volume, form):
    textbook_halving = functools.partial(textbook, stride=2, padding="SAME")
    kernel = ((3,) * len(volume)) + (3, 5)
    assert_equal_with_gradients(form, textbook_halving, (2, *volume, 3), kernel)


@pytest.mark.parametrize("volume", [(6, 4), (3, 1), (4, 2, 3)])
@pytest.mark.parametrize("form", [conv.conv_doubled, conv.doubled_direct])
def test_convolution_of_what_is_doubled(volume, form):
    def textbook_doubled(x, kernel):
        return textbook_same(textbook_upsample(x, "nearest"), kernel)

    kernel = ((3,) * len(volume)) + (3, 5)
    assert_equal_with_gradients(form, textbook_doubled, (2, *volume, 3), kernel)


@pytest.mark.parametrize("shape", [(2, 6, 8, 4, 3), (2, 6, 8, 3)])
def test_pooling(shape):
    assert_equal_with_gradients(conv.max_pool_2, textbook_max_pool, shape)
    assert_equal_with_gradients(conv.avg_pool_2, textbook_avg_pool, shape)


@pytest.mark.parametrize("method", ["nearest", "trilinear"])
@pytest.mark.parametrize("volume", [(4, 3, 5), (1, 2, 6), (4, 3)])
def test_upsampling(method, volume):
    named = "bilinear" if method == "trilinear" else method
    assert_equal_with_gradients(
        functools.partial(conv.upsample_2, method=method),
        functools.partial(textbook_upsample, method=named),
        (2, *volume, 3),
    )


def test_unknown_upsampling_is_refused():
    with pytest.raises(ValueError, match="cubic"):
        conv.upsample_2(jnp.zeros((1, 2, 2, 2, 1)), "cubic")


def test_batches_of_convolutions():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(3, 1, 4, 5, 6, 9)))
        kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 3, 9, 4)))
        expected = jnp.stack([textbook_same(a, k) for a, k in zip(x, kernel, strict=True)])
        np.testing.assert_allclose(jax.vmap(conv.conv_same)(x, kernel), expected, atol=1e-12)

        def gradient(x, kernel):
            return jax.grad(lambda k: (conv.conv_same(x, k) ** 2).sum())(kernel)

        one_by_one = jnp.stack([gradient(a, k) for a, k in zip(x, kernel, strict=True)])
        np.testing.assert_allclose(jax.vmap(gradient)(x, kernel), one_by_one, atol=1e-10)


@pytest.mark.parametrize(
    ("function", "kernel"),
    [
        (conv.conv_same, (3, 3, 3, 9, 4)),
        (conv.conv_same, (1, 1, 1, 9, 4)),
        (conv.conv_same, (7, 7, 7, 9, 4)),
        (conv.conv_strided_2, (2, 2, 2, 9, 4)),
        (conv.conv_transpose_2, (2, 2, 2, 9, 4)),
        (conv.max_pool_2, None),
        (conv.avg_pool_2, None),
        (conv.upsample_2, None),
        (conv.conv_same, (3, 3, 9, 4)),
        (conv.conv_transpose_2, (2, 2, 9, 4)),
    ],
)
def test_bfloat16_stays_bfloat16(function, kernel):
    rng = np.random.default_rng(0)
    sides = (4, 6, 2)[: len(kernel) - 2] if kernel else (4, 6, 2)
    shapes = [(2, *sides, 9)] + ([kernel] if kernel else [])
    exact = [jnp.asarray(rng.normal(size=s), jnp.bfloat16).astype(jnp.float32) for s in shapes]
    args = [a.astype(jnp.bfloat16) for a in exact]
    found, back = jax.vjp(function, *args)
    expected = function(*exact)
    assert found.dtype == jnp.bfloat16
    assert all(g.dtype == jnp.bfloat16 for g in back(found))
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected, atol=0.02 * float(jnp.abs(expected).max())
    )


def test_transposed_convolution_by_hand():
    x = jnp.array([2.0, 3.0]).reshape(1, 2, 1, 1, 1)
    kernel = jnp.arange(8.0).reshape(2, 2, 2, 1, 1)
    out = conv.conv_transpose_2(x, kernel)[0, ..., 0]
    assert out.shape == (4, 2, 2)
    assert out[0, 1, 0] == 2 * 2 and out[3, 1, 1] == 3 * 7


def test_equals_share_the_gradient_of_a_maximum():
    gradient = jax.grad(lambda x: conv.max_pool_2(x).sum())(jnp.zeros((1, 2, 2, 2, 1)))
    np.testing.assert_array_equal(gradient, np.full((1, 2, 2, 2, 1), 1 / 8))


@pytest.mark.parametrize("towards", [-np.inf, np.inf])
def test_a_maximum_that_is_rounded_otherwise_loses_no_gradient(towards):
    x, dy = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(2, 8, 6, 4, 3), (2, 4, 3, 2, 3)])
    )
    y, pull = jax.vjp(conv.max_pool_2, x)
    (expected,) = pull(dy)
    (found,) = conv._max_pool_backward((x, jnp.nextafter(y, towards)), dy)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found.sum(), dy.sum(), rtol=1e-5)


def mirrored(x, rim):
    return jnp.pad(x, [(0, 0), *((r, r) for r in rim), (0, 0)], mode="reflect")


@pytest.mark.parametrize(
    ("volume", "kernel"),
    [
        ((6, 8, 5), (3, 3, 3)),
        ((7, 5, 4), (7, 7, 7)),
        ((4, 5, 6), (1, 3, 5)),
        ((9, 8), (7, 7)),
        ((4, 6), (3, 3)),
    ],
)
def test_convolution_with_mirrored_borders(volume, kernel):
    def expected(x, k):
        return textbook(mirrored(x, [n // 2 for n in kernel]), k, stride=1, padding="VALID")

    assert_equal_with_gradients(conv.conv_reflect, expected, (2, *volume, 3), (*kernel, 3, 9))


def test_of_a_mirrored_convolution_no_padded_volume_is_kept():
    x, kernel = jnp.ones((1, 6, 6, 6, 2)), jnp.ones((3, 3, 3, 2, 2))
    kept = jax.eval_shape(lambda x, k: jax.vjp(conv.conv_reflect, x, k)[1], x, kernel)
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) == x.size + kernel.size


@pytest.mark.parametrize(
    ("volume", "kernel"),
    [
        ((8, 7, 9), (7, 7, 7)),
        ((5, 12, 8), (7, 7, 7)),
        ((3, 7, 7), (7, 7, 7)),
        ((4, 8, 9), (1, 7, 9)),
        ((6, 11, 7), (3, 11, 7)),
        ((8, 9), (7, 7)),
    ],
)
def test_large_kernels_by_fourier_transforms(volume, kernel):
    one = (1,) * (3 - len(volume))
    assert conv.suits_dft((2, *one, *volume, 2), (*one, *kernel))
    assert_equal_with_gradients(conv.conv_same, textbook_same, (2, *volume, 2), (*kernel, 2, 3))


@pytest.mark.parametrize("products", [1, 7, 1000])
def test_blocks_of_products_of_any_size(products, monkeypatch):
    monkeypatch.setattr(conv, "PRODUCTS_AT_ONCE", products)
    assert_equal_with_gradients(conv.conv_by_dft, textbook_same, (1, 3, 4, 5, 2), (3, 3, 3, 2, 3))


def test_products_of_a_transform():
    """A real frequency takes one, a pair of complex ones three; both periods are even here."""
    voxels, taps, back = conv.dft_matrices((9, 5), (7, 7))
    used = np.abs(voxels).sum(2) > 0
    assert used.sum() == 4 + 3 * (12 * 8 - 4) // 2
    assert voxels.shape[2] == back.shape[2] == 45 and taps.shape[2] == 49


def test_what_goes_by_fourier_transforms():
    assert conv.suits_dft((1, 30, 26, 18, 64), (7, 7, 7))
    assert not conv.suits_dft((1, 30, 26, 18, 64), (7, 3, 3))
    assert not conv.suits_dft((1, 30, 46, 30, 64), (7, 7, 7))
    assert not conv.suits_dft((1, 30, 26, 6, 64), (7, 7, 7))


def test_taps_that_meet_nothing_have_no_gradient():
    x, kernel = jnp.ones((1, 9, 3, 9, 2)), jnp.ones((7, 7, 7, 2, 2))
    found = jax.grad(lambda k: (conv.conv_same(x, k) ** 2).sum())(kernel)
    assert (found[:, 0] == 0).all() and (found[:, 6] == 0).all() and (found[:, 3] > 0).all()


def test_a_kernels_transform_is_not_stored():
    x, kernel = jnp.ones((1, 2, 20, 20, 16)), jnp.ones((7, 7, 7, 16, 16))
    transform = 4 * 7 * 16 * 16 * conv.dft_matrices((20, 20), (7, 7))[1].size // 49
    for of_kernel in (
        conv.conv_by_dft,
        jax.grad(lambda x, k: (conv.conv_same(x, k) ** 2).sum(), 1),
    ):
        memory = jax.jit(of_kernel).lower(x, kernel).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 0.75 * transform


@pytest.mark.parametrize("rows", [0, 10**6])
@pytest.mark.parametrize("channels", [(4, 9), (9, 4)])
def test_seven_cubed_in_float32(channels, rows, monkeypatch):
    """The sums over 343 taps, direct and by Fourier transforms, must not add up to an error."""
    monkeypatch.setattr(conv, "DFT_TO_ROWS", rows)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(1, 8, 7, 9, channels[0])), rng.normal(size=(1, 8, 7, 9, channels[1]))
    kernel = rng.normal(size=(7, 7, 7, *channels))
    single = [jnp.asarray(a, jnp.float32) for a in (x, kernel, dy)]
    y, back = jax.vjp(jax.jit(conv.conv_same), *single[:2])
    found = (y, *back(single[2]))
    with jax.enable_x64(True):
        y, back = jax.vjp(textbook_same, jnp.asarray(x), jnp.asarray(kernel))
        expected = [np.asarray(a) for a in (y, *back(jnp.asarray(dy)))]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_average_pooling_of_larger_blocks():
    x = np.random.default_rng(0).normal(size=(2, 8, 4, 12, 3))
    found = conv.avg_pool(jnp.asarray(x, jnp.float32), 4)
    for place in np.ndindex(2, 1, 3):
        corner = tuple(slice(4 * i, 4 * i + 4) for i in place)
        np.testing.assert_allclose(found[:, *place], x[:, *corner].mean((1, 2, 3)), atol=1e-6)
