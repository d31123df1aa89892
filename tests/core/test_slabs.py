"""Volumes slab by slab: the same as whole, of the size asked for, on any platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.core.slabs import join_slabs, make_slabs, map_slabs, slab_planes, slab_voxels

SHAPE = (12, 5, 4)


@pytest.mark.parametrize("voxels", [1, 3 * 20, 10**6])
def test_slabs_joined_are_the_whole(voxels):
    volume = jax.random.normal(jax.random.key(0), (2, *SHAPE, 3))
    slabs = jax.jit(lambda x: map_slabs(lambda slab, _: 2 * slab, x, voxels=voxels))(volume)
    np.testing.assert_array_equal(join_slabs(slabs), 2 * volume)


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
