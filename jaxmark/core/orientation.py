"""The direction of vessels, from their masks only."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array


def vessel_axes(inside: Array, spacing_mm: Sequence[float], radius_mm: float = 3.0) -> Array:
    """The direction of the vessel around each voxel, as a unit vector without a sign.

    The axis of largest spread of the vessels' voxels within a box of `radius_mm` to each side: for
    a tube, its tangent. Nothing but the mask is needed, so a view that was turned or mirrored has
    its own axes.

    Args:
      inside: (B, X, Y, Z) bool.

    Returns:
      (B, X, Y, Z, 3) float32 in millimetre axes; meaningless at voxels outside of vessels.
    """
    mask = inside.astype(jnp.float32)
    reach = [max(1, round(radius_mm / s)) for s in spacing_mm]

    def moments(orders: Sequence[int]) -> Array:
        """Sums over the box of products of powers of the distances along X, Y and Z."""
        total = mask
        for axis, (order, n, spacing) in enumerate(zip(orders, reach, spacing_mm, strict=True)):
            total = _moment(total, axis + 1, order, n, spacing)
        return total

    unit = [tuple(int(a == b) for b in range(3)) for a in range(3)]
    count = jnp.maximum(moments((0, 0, 0)), 1.0)
    mean = [moments(u) / count for u in unit]
    covariance = jnp.stack(
        [
            jnp.stack(
                [
                    moments([p + q for p, q in zip(unit[a], unit[b], strict=True)]) / count
                    - mean[a] * mean[b]
                    for b in range(3)
                ],
                -1,
            )
            for a in range(3)
        ],
        -2,
    )
    return _largest(covariance)


def _moment(x: Array, axis: int, order: int, reach: int, spacing: float) -> Array:
    """Sums of `x` over neighbours along an axis, times their signed distances to this power."""
    size = x.shape[axis]
    border = [(0, 0)] * x.ndim
    border[axis] = (reach, reach)
    padded = jnp.pad(x, border)
    total = jnp.zeros_like(x)
    for offset in range(-reach, reach + 1):
        begin = [0] * x.ndim
        begin[axis] = reach + offset
        end = list(padded.shape)
        end[axis] = reach + offset + size
        part = padded[tuple(slice(b, e) for b, e in zip(begin, end, strict=True))]
        total = total + (offset * spacing) ** order * part
    return total


def _largest(matrices: Array) -> Array:
    """Unit eigenvectors (..., 3) of the largest eigenvalues of symmetric matrices (..., 3, 3).

    By squaring: each of five times makes the largest stand out by its square.
    """
    power = matrices
    for _ in range(5):
        power = power / jnp.maximum(jnp.trace(power, axis1=-2, axis2=-1)[..., None, None], 1e-12)
        power = jnp.einsum("...ij,...jk->...ik", power, power)
    # Of the columns, all along the same axis by now, the longest is the most exact.
    best = jnp.argmax((power**2).sum(-2), axis=-1)
    column = jnp.take_along_axis(power, best[..., None, None], axis=-1)[..., 0]
    return column / jnp.maximum(jnp.linalg.norm(column, axis=-1, keepdims=True), 1e-12)
