"""Volumes slab by slab: the same as whole, of the size asked for, on any platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.core.slabs import (
    join_slabs,
    make_slabs,
    map_slabs,
    slab_planes,
    slab_voxels,
    sum_slabs,
)

SHAPE = (12, 5, 4)


@pytest.mark.parametrize("voxels", [1, 3 * 20, 10**6])
def test_slabs_joined_are_the_whole(voxels):
    volume = jax.random.normal(jax.random.key(0), (2, *SHAPE, 3))
    slabs = jax.jit(lambda x: map_slabs(lambda slab, _: 2 * slab, x, voxels=voxels))(volume)
    np.testing.assert_array_equal(join_slabs(slabs), 2 * volume)


@pytest.mark.parametrize("voxels", [1, 3 * 20, 10**6])
def test_a_sum_of_slabs_and_its_gradient_are_those_of_the_whole(voxels):
    volume = jax.random.normal(jax.random.key(0), (2, *SHAPE, 3))
    weights = jax.random.normal(jax.random.key(1), (3, 4))

    def part(slab, weights, first):
        planes = first + jnp.arange(slab.shape[1])[:, None, None, None]
        return (planes * jnp.tanh(slab @ weights) ** 2).sum()

    def by_slabs(volume, weights):
        return 3 * sum_slabs(lambda slab, first: part(slab, weights, first), volume, voxels=voxels)

    def whole(volume, weights):
        return 3 * part(volume, weights, 0)

    one, other = (jax.jit(jax.value_and_grad(f, (0, 1))) for f in (by_slabs, whole))
    for mine, true in zip(
        jax.tree.leaves(one(volume, weights)), jax.tree.leaves(other(volume, weights)), strict=True
    ):
        np.testing.assert_allclose(mine, true, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        jax.jit(by_slabs)(volume, weights), whole(volume, weights), rtol=1e-5
    )


def test_the_gradient_of_a_sum_computes_each_slab_once():
    volume, weights = jnp.ones((1, *SHAPE, 3)), jnp.ones((3, 4))

    def products(total):
        gradient = jax.grad(
            lambda volume, weights: total(volume, lambda x: (x @ weights) ** 2), (0, 1)
        )
        return str(jax.make_jaxpr(gradient)(volume, weights)).count("dot_general")

    def once(volume, head):
        return sum_slabs(lambda slab, _: head(slab).sum(), volume, voxels=20)

    def twice(volume, head):
        return map_slabs(lambda slab, _: head(slab).sum(), volume, voxels=20).sum()

    # The value's, and one for each gradient; and the value's again.
    assert (products(once), products(twice)) == (3, 4)


@pytest.mark.parametrize("voxels", [1, 3 * 20, 10**6])
def test_slabs_of_a_volume_that_is_not_there_are_those_of_one_that_is(voxels):
    place = jnp.arange(12.0)[None, :, None, None, None] * jnp.ones((1, *SHAPE, 1))

    def made(first, shape):
        planes = first + jnp.arange(shape[0], dtype=jnp.float32)
        return planes[None, :, None, None, None] * jnp.ones((1, *shape, 1))

    found = jax.jit(lambda: make_slabs(made, SHAPE, voxels=voxels, multiple=2))()
    there = map_slabs(lambda slab, _: slab, place, voxels=voxels, multiple=2)
    np.testing.assert_array_equal(found, there)
    np.testing.assert_array_equal(join_slabs(found), place)


def test_planes_divide_the_volume_and_keep_to_the_multiple():
    assert slab_planes(SHAPE, 3 * 20) == 3 and slab_planes(SHAPE, 5 * 20) == 4
    assert slab_planes(SHAPE, 1) == 1 and slab_planes(SHAPE, 1, multiple=2) == 2
    assert slab_planes(SHAPE, 10**6, multiple=4) == 12


def test_the_platform_is_told_and_not_asked_for():
    assert jax.default_backend() == "cpu"
    assert slab_voxels("gpu") > slab_voxels("cpu")
