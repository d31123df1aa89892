"""Volumes slab by slab, so that arrays computed from them are never in memory as a whole."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# Turns features (..., C) into heatmaps (..., K), voxel by voxel.
Head = Callable[[Array], Array]

# About the voxels of a slab: on a CPU its results fit into the caches; on accelerators it is large
# enough to occupy the device.
SLAB_VOXELS_CPU, SLAB_VOXELS = 2**12, 2**19


def slab_voxels(platform: str) -> int:
    """About the voxels of a slab on devices of this JAX platform."""
    return SLAB_VOXELS_CPU if platform == "cpu" else SLAB_VOXELS


def map_slabs(
    function: Callable[[Array, Array], Any],
    volume: Array,
    *,
    voxels: int = SLAB_VOXELS_CPU,
    multiple: int = 1,
) -> Any:
    """Applies `function(slab, first)` to slabs of equal thickness along X, one after another.

    Args:
      function: takes (B, n, Y, Z, C) and the number of its first plane, returns arrays.
      volume: (B, X, Y, Z, C).
      voxels: a slab has at most this many, or one plane if a plane has more.
      multiple: slabs have a multiple of this many planes, and so must X.

    Returns:
      The function's results, with a new first axis over the slabs. The gradient computes each slab
      again: between the passes only `volume` is kept.
    """
    planes = slab_planes(volume.shape[1:4], voxels, multiple)
    slabs = volume.shape[1] // planes
    again = jax.checkpoint(function)
    if slabs == 1:
        return jax.tree.map(lambda x: x[None], again(volume, jnp.zeros((), jnp.int32)))
    firsts = planes * jnp.arange(slabs)
    return lax.map(lambda args: again(*args), (_slabs(volume, planes), firsts))


def sum_slabs(
    function: Callable[[Array, Array], Array], volume: Array, *, voxels: int = SLAB_VOXELS_CPU
) -> Array:
    """The sum of `function(slab, first)`, a number for each slab; arguments as in `map_slabs`.

    The gradient is computed slab by slab in the same pass, and kept in place of the volume: each
    slab is computed once, not twice as with the gradient of `map_slabs`.
    """
    planes = slab_planes(volume.shape[1:4], voxels)
    firsts = planes * jnp.arange(volume.shape[1] // planes)
    # Arrays that the function closes over, such as a head's weights, need gradients too.
    function, used = jax.closure_convert(function, volume[:, :planes], firsts[0])

    @jax.custom_vjp
    def total(volume: Array, *used: Array) -> Array:
        values = lax.map(lambda args: function(*args, *used), (_slabs(volume, planes), firsts))
        return values.sum()

    def forward(volume: Array, *used: Array) -> tuple[Array, tuple[Array, ...]]:
        gradient = jax.value_and_grad(function, (0, *range(2, 2 + len(used))))

        def add(total: Any, args: tuple[Array, Array]) -> tuple[Any, Array]:
            value, (slab, *others) = gradient(*args, *used)
            return jax.tree.map(jnp.add, total, (value, others)), slab

        nothing = (jnp.zeros(()), [jnp.zeros_like(x) for x in used])
        (value, others), slabs = lax.scan(add, nothing, (_slabs(volume, planes), firsts))
        return value, (join_slabs(slabs), *others)

    def backward(gradient: tuple[Array, ...], outer: Array) -> tuple[Array, ...]:
        return tuple((outer * x).astype(x.dtype) for x in gradient)

    total.defvjp(forward, backward)
    return total(volume, *used)


def make_slabs(
    function: Callable[[Array, tuple[int, int, int]], Any],
    shape: Sequence[int],
    *,
    voxels: int = SLAB_VOXELS_CPU,
    multiple: int = 1,
) -> Any:
    """As `map_slabs` without a volume, for a shape (X, Y, Z): `function(first, slab's shape)`."""
    planes = slab_planes(shape, voxels, multiple)
    slab = (planes, shape[1], shape[2])
    again = jax.checkpoint(lambda first: function(first, slab))
    return lax.map(again, planes * jnp.arange(shape[0] // planes))


def _slabs(volume: Array, planes: int) -> Array:
    """(B, X, ...) to slabs of `planes` planes, (slabs, B, planes, ...)."""
    return volume.reshape(volume.shape[0], -1, planes, *volume.shape[2:]).swapaxes(0, 1)


def join_slabs(slabs: Array) -> Array:
    """Joins slabs that `map_slabs` returned: (slabs, B, n, ...) to (B, X, ...)."""
    return slabs.swapaxes(0, 1).reshape(slabs.shape[1], -1, *slabs.shape[3:])


def slab_planes(shape: Sequence[int], voxels: int, multiple: int = 1) -> int:
    """Planes along X of a slab: the most that divide X evenly and hold no more than `voxels`."""
    fits = max(multiple, voxels // (shape[1] * shape[2]))
    sizes = range(multiple, shape[0] + 1, multiple)
    return max(n for n in sizes if shape[0] % n == 0 and n <= fits)
