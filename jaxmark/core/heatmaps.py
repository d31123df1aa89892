"""Gaussian heatmaps from landmark coordinates, and landmark coordinates from heatmaps.

Heatmaps are `(B, X, Y, Z, K)`, positions `(B, K, 3)` in voxels of the heatmap (voxel centres at
integers). Everything runs on the device: coordinates go in and come out, volumes stay.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def gaussians(
    landmarks_ijk: Array, shape: Sequence[int], spacing_mm: Sequence[float], sigma_mm: float
) -> Array:
    """Target heatmaps `(B, X, Y, Z, K)`: Gaussians of height 1 (Tan et al. 2023, Eq. 1).

    A product of three vectors per landmark: under jit, XLA fuses it into whatever consumes it and
    the volume is never stored. A landmark may lie outside the volume.
    """
    x, y, z = (
        jnp.exp(
            -0.5
            * ((jnp.arange(n)[:, None] - landmarks_ijk[:, None, :, axis]) * (s / sigma_mm)) ** 2
        )
        for axis, (n, s) in enumerate(zip(shape, spacing_mm, strict=True))
    )
    return x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]


def spatial_softmax(logits: Array, spacing_mm: Sequence[float], sigma_mm: float) -> Array:
    """Softmax over the voxels, scaled so that a Gaussian of `sigma_mm` inside has a peak of 1."""
    voxel_mm3 = math.prod(spacing_mm)
    volume_mm3 = (2 * math.pi) ** 1.5 * sigma_mm**3
    return jax.nn.softmax(logits.astype(jnp.float32), axis=(1, 2, 3)) * (volume_mm3 / voxel_mm3)


def decode_argmax(heatmaps: Array) -> tuple[Array, Array]:
    """Voxel of the maximum of each heatmap, and its value: `(B, K, 3)` float32 and `(B, K)`."""
    b, *shape, k = heatmaps.shape
    flat = heatmaps.reshape(b, -1, k)
    index = jnp.argmax(flat, axis=1)
    score = jnp.take_along_axis(flat, index[:, None], axis=1)[:, 0]
    position = jnp.stack(jnp.unravel_index(index, shape), axis=-1)
    return position.astype(jnp.float32), score.astype(jnp.float32)


def decode_subvoxel(
    heatmaps: Array, argmax_ijk: Array, spacing_mm: Sequence[float], sigma_mm: float
) -> Array:
    """Sub-voxel peaks `(B, K, 3)` by mean shift with a Gaussian of the target's width.

    The fixed point is a maximum of the heatmap smoothed by that Gaussian, the matched filter for a
    known peak shape: it uses the whole spot, not the three brightest voxels, and is exact for a
    noise-free Gaussian. Each iteration halves the distance, so twelve leave a 4000th of a voxel.
    Only a window of about 2 sigma around the maximum is read; negative values count as zero.
    """
    shape = heatmaps.shape[1:4]
    radius = [max(2, round(2 * sigma_mm / s)) for s in spacing_mm]
    size = [min(2 * r + 1, n) for r, n in zip(radius, shape, strict=True)]
    spacing = jnp.asarray(spacing_mm, jnp.float32)

    def one(heatmap: Array, peak: Array) -> Array:
        start = [
            jnp.clip(peak[a].astype(jnp.int32) - radius[a], 0, shape[a] - size[a]) for a in range(3)
        ]
        window = jnp.maximum(jax.lax.dynamic_slice(heatmap, start, size), 0).astype(jnp.float32)
        grids = [start[a] + jnp.arange(size[a], dtype=jnp.float32) for a in range(3)]

        def shift(_: int, centre: Array) -> Array:
            gx, gy, gz = (
                jnp.exp(-0.5 * ((grids[a] - centre[a]) * spacing[a] / sigma_mm) ** 2)
                for a in range(3)
            )
            weight = window * gx[:, None, None] * gy[:, None] * gz
            marginals = weight.sum((1, 2)), weight.sum((0, 2)), weight.sum((0, 1))
            total = jnp.maximum(weight.sum(), 1e-30)
            moved = jnp.stack(
                [(m * g).sum() / total for m, g in zip(marginals, grids, strict=True)]
            )
            # An empty window (no positive value) says nothing: stay at the maximum.
            return jnp.where(weight.sum() > 1e-30, moved, centre)

        return jax.lax.fori_loop(0, 12, shift, peak.astype(jnp.float32))

    # A landmark's heatmap is a strided slice; mapping over (B, K) reads only its window.
    channels = jnp.moveaxis(heatmaps, -1, 1)
    return jax.vmap(jax.vmap(one))(channels, argmax_ijk)
