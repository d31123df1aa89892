"""Intensities that mean the same in scans of any contrast."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

# Quantiles of the voxels that count, which become 0 and 1.
_LOW, _HIGH = 0.02, 0.995
# Scaled intensities are cut off here: bright structures, implants.
_MAX_SCALED = 2.0


def stretched(image: Array) -> Array:
    """Volumes (B, X, Y, Z, 1) scaled so that most seen voxels lie between 0 and 1.

    Voxels as dark as the darkest do not count: they lie outside of the scan, or were set to zero.
    Quantiles use every second voxel, as in `data.frame`: sorting all takes a tenth of a CPU's step.
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
    return jnp.clip((image - low.reshape(shape)) * scale.reshape(shape), -_MAX_SCALED, _MAX_SCALED)


def percentiles(image: Array, inside: Array, shares: Sequence[float]) -> tuple[Array, Array]:
    """Two percentiles (B,) of volumes (B, X, Y, Z) where `inside` (B, X, Y, Z) is true.

    As `numpy.percentile`, by linear interpolation. If both are equal, very few voxels differ: the
    results are then the smallest and the largest value.
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
