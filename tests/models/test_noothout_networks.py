"""Networks of patches: parameters counted by hand, a strided convolution, K networks as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxmark.models.blocks import for_each_landmark
from jaxmark.models.noothout import LocalPatchNet, PatchResNet, Stem


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def shapes(net, volume):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(volume))


def heads(c_in, landmarks, hidden):
    """Of both: a hidden layer, and 1 + 3 channels a landmark."""
    return 2 * (c_in * hidden + hidden) + (hidden + 1) * 4 * landmarks


def test_parameter_count_of_the_global_network_by_hand():
    def block(c_in, c_out):
        convolutions = 27 * c_in * c_out + 27 * c_out * c_out
        return convolutions + 2 * 2 * c_out + (c_in * c_out if c_in != c_out else 0)

    net = PatchResNet(landmarks=3, stem=2, widths=(4, 8, 6), blocks=(2, 1, 2), head=5)
    params = shapes(net, (1, 8, 8, 8, 1))
    stages = block(2, 4) + block(4, 4) + block(4, 8) + block(8, 6) + block(6, 6)
    assert count(params) == 343 * 2 + 2 * 2 + stages + heads(6, 3, 5)

    # The size of the paper: 16 layers of blocks, 32 convolutions with those, and the stem's.
    params = shapes(PatchResNet(landmarks=19, head=128), (1, 8, 8, 8, 1))
    stages = block(16, 32) + 2 * block(32, 32) + block(32, 64) + 3 * block(64, 64)
    stages += block(64, 128) + 5 * block(128, 128) + block(128, 256) + 2 * block(256, 256)
    assert count(params) == 343 * 16 + 2 * 16 + stages + heads(256, 19, 128)


def test_parameter_count_of_a_local_network_by_hand():
    params = shapes(LocalPatchNet(widths=(4, 6), head=5), (1, 4, 4, 4, 1))
    assert count(params) == 27 * 4 + 2 * 4 + 27 * 4 * 6 + 2 * 6 + heads(6, 1, 5)


def test_what_patches_say_has_a_place_for_each_patch_and_landmark():
    nets = [
        (PatchResNet(3, 2, (4, 8), (1, 1), dtype=jnp.bfloat16), (2, 2, 1, 3, 3)),
        (LocalPatchNet((4, 4), dtype=jnp.bfloat16), (2, 8, 4, 12, 1)),
    ]
    for net, shape in nets:
        params = shapes(net, (2, 16, 8, 24, 1))
        logits, votes = jax.eval_shape(net.apply, params, jnp.zeros((2, 16, 8, 24, 1)))
        assert logits.shape == shape and votes.shape == (*shape, 3)
        assert logits.dtype == votes.dtype == jnp.float32
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: PatchResNet(2, 4, (4, 4), (1, 1), dtype=dtype),
        lambda dtype: LocalPatchNet((4, 8), dtype=dtype),
    ],
)
def test_half_precision_stays_near_full(make):
    x = jax.random.normal(jax.random.key(1), (1, 16, 16, 8, 1))
    params = jax.jit(make(jnp.float32).init)(jax.random.key(0), x)
    full, half = (jax.jit(make(dtype).apply)(params, x) for dtype in (jnp.float32, jnp.bfloat16))
    for a, b in zip(full, half, strict=True):
        assert 0 < jnp.abs(a - b).max() < 0.05 * jnp.abs(a).max()


@pytest.mark.parametrize("sides", [(12, 8, 10), (12, 8)])
def test_the_first_convolution_is_one_with_stride_two(sides):
    x = jax.random.normal(jax.random.key(0), (2, *sides, 3))
    stem = Stem(5)
    params = jax.jit(stem.init)(jax.random.key(1), x)

    def textbook(params, x):
        kernel, axes = params["params"]["kernel"], "XYZ"[: len(sides)]
        assert kernel.shape == (*(7,) * len(sides), 3, 5)
        return lax.conv_general_dilated(
            x,
            kernel,
            (2,) * len(sides),
            [(3, 3)] * len(sides),
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        )

    np.testing.assert_allclose(stem.apply(params, x), textbook(params, x), atol=1e-4)
    ours, theirs = (
        jax.jit(jax.grad(lambda *args, f=f: (f(*args) ** 2).sum(), (0, 1)))(params, x)
        for f in (stem.apply, textbook)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * jnp.abs(b).max())


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_stacked_networks_are_so_many_separate_ones(platform):
    # For a CPU a loop, for others a vmap; both run here.
    net, rng = LocalPatchNet((4,)), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 2, 4, 4, 4, 1)), jnp.float32)
    # Parameters that are not small, so that heads say something.
    like = shapes(net, x.shape[1:])
    stacked = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=(3, *p.shape)), p.dtype), like)

    def loss(params, x):
        logits, votes = net.apply(params, x)
        return (logits**2).mean() + jnp.sin(votes).mean()

    def total(params, x):
        values = for_each_landmark(loss, params, x, platform=platform)
        return values.sum(), values

    gradients, values = jax.jit(jax.grad(total, has_aux=True))(stacked, x)
    alone = jax.jit(jax.value_and_grad(loss))
    for k in range(3):
        value, expected = alone(jax.tree.map(lambda p, k=k: p[k], stacked), x[k])
        np.testing.assert_allclose(values[k], value, rtol=1e-4)
        for a, b in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
            np.testing.assert_allclose(a[k], b, atol=1e-3 * float(jnp.abs(b).max()))


def test_a_side_that_is_no_number_of_patches_is_refused():
    with pytest.raises(ValueError, match=r"\(16, 12, 8\).*multiple of 8"):
        net = PatchResNet(1, 2, (2, 2), (1, 1))
        net.init(jax.random.key(0), jnp.zeros((1, 16, 12, 8, 1)))
