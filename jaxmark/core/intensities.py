"""Intensities that mean the same in scans of any contrast."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

# Of the voxels that count: what becomes 0 and 1.
_LOW, _HIGH = 0.02, 0.995
# Bright structures, implants: beyond this nothing more is told.
_MOST = 2.0


def stretched(image: Array) -> Array:
    """Volumes (B, X, Y, Z, 1) of which most of what is seen lies between 0 and 1.

    Voxels as dark as the darkest do not count: they lie outside of the scan, or were set to zero.
    Every second one is looked at, as in `data.frame`: to sort all takes a tenth of a step on a CPU.
    """
    flat = jnp.sort(image[:, ::2, ::2, ::2].reshape(len(image), -1), axis=1)
    size = flat.shape[1]
    # A little above the darkest, for interpolation and half precision.
    floor = flat[:, :1] + 1e-3 * (flat[:, -1:] - flat[:, :1])
    count = (flat > floor).sum(1, keepdims=True)

    def quantile(share: float) -> Array:
        at = size - count + jnp.round(share * (count - 1)).astype(jnp.int32)
        return jnp.take_along_axis(flat, jnp.clip(at, 0, size - 1), axis=1)

    low, high = quantile(_LOW), quantile(_HIGH)
    scale = 1 / jnp.maximum(high - low, 1e-6)
    shape = (-1, *[1] * (image.ndim - 1))
    return jnp.clip((image - low.reshape(shape)) * scale.reshape(shape), -_MOST, _MOST)


def percentiles(image: Array, inside: Array, shares: Sequence[float]) -> tuple[Array, Array]:
    """Two percentiles (B,) of what counts of volumes (B, X, Y, Z), `inside` (B, X, Y, Z) bool.

    As `numpy.percentile`, by linear interpolation. Where both are the same, contrast is in very few
    voxels: the least and the largest value instead.
    """
    flat = jnp.where(inside, image, jnp.inf).reshape(len(image), -1)
    flat = jnp.sort(flat, axis=1)
    last = inside.sum((1, 2, 3)) - 1

    def value(place: Array) -> Array:
        return jnp.take_along_axis(flat, jnp.clip(place, 0, None)[:, None], axis=1)[:, 0]

    def percentile(share: float) -> Array:
        # Counted from the nearer end: far from it float32 has no digits left for a fraction.
        nearer = min(share, 100 - share) / 100 * last.astype(jnp.float32)
        whole = jnp.floor(nearer)
        part, steps = nearer - whole, whole.astype(jnp.int32)
        first, step = (last - steps, -1) if share > 50 else (steps, 1)
        return value(first) * (1 - part) + value(first + step) * part

    low, high = (percentile(share) for share in shares)
    flat_out = high <= low
    return jnp.where(flat_out, value(0 * last), low), jnp.where(flat_out, value(last), high)


def clipped_between(image: Array, low: Array, high: Array, most: tuple[float, float]) -> Array:
    """Volumes (B, X, Y, Z) with `low` as 0 and `high` as 1, (B,) each; cut off at `most`."""
    of_case = (slice(None), None, None, None)
    return jnp.clip((image - low[of_case]) / (high - low)[of_case], *most)
