"""Gaussian heatmaps from landmark coordinates, and landmark coordinates from heatmaps.

Heatmaps are `(B, X, Y, Z, K)`, positions `(B, K, 3)` in voxels of the heatmap (voxel centres at
integers). Everything runs on the device: only coordinates leave it.

Decoders take heatmaps, or features and the `head` that turns them into heatmaps voxel by voxel.
With a head, heatmaps are computed slab by slab, and again in a small window around each maximum.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from jaxmark.core.slabs import SLAB_VOXELS_CPU, Head, join_slabs, map_slabs


def gaussians(
    landmarks_ijk: Array,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    sigma_mm: float | Array,
) -> Array:
    """Target heatmaps `(B, X, Y, Z, K)`: Gaussians of height 1 (Tan et al. 2023, Eq. 1).

    `sigma_mm` is one number for all landmarks, or (K,).

    A product of three vectors per landmark: under jit, XLA fuses it into the operations that use
    it, and the volume is never stored. A landmark may lie outside the volume.
    """
    x, y, z = (
        _gaussian_1d(landmarks_ijk[..., axis], n, s, sigma_mm)
        for axis, (n, s) in enumerate(zip(shape, spacing_mm, strict=True))
    )
    return x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]


def _gaussian_1d(centre: Array, n: int, spacing_mm: float, sigma_mm: float | Array) -> Array:
    """(B, K) centres in voxels -> (B, n, K)."""
    distance = (jnp.arange(n)[:, None] - centre[:, None, :]) * (spacing_mm / sigma_mm)
    return jnp.exp(-0.5 * distance**2)


def gaussian_sum(shape: Sequence[int], spacing_mm: Sequence[float], sigma_mm: float) -> float:
    """The sum of a Gaussian of height 1 over all voxels of a volume of this shape (X, Y, Z).

    Pictures, with one voxel along Z, are summed along X and Y only; their spacing along Z is not
    used.
    """
    sides = [mm for n, mm in zip(shape, spacing_mm, strict=True) if n > 1]
    return (2 * math.pi) ** (len(sides) / 2) * sigma_mm ** len(sides) / math.prod(sides)


def places(shape: Sequence[int], spacing_mm: Sequence[float]) -> Array:
    """(X, Y, Z, 4): mm of each voxel from the volume's middle, x, y, z, and their squares' sum.

    Appended to features as channels, they tell a head the place of each voxel.
    """
    axes = [s * (jnp.arange(n) - (n - 1) / 2) for n, s in zip(shape, spacing_mm, strict=True)]
    mm = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1)
    return jnp.concatenate([mm, (mm**2).sum(-1, keepdims=True)], -1)


def log_gaussians(
    placed: Array,
    means_mm: Array,
    sd_mm: float,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
) -> Array:
    """Rows of `places`, (..., 4) -> (..., K): logarithms of Gaussians over a uniform density.

    `means_mm` (K, 3) are counted from the middle of the volume, of this shape. The mean of the
    exponentials over a volume that holds the Gaussians is 1. So, added to logits that are 0, they
    do not change the logarithm of the sum of all exponentials.
    """
    across = jnp.matmul(placed[..., :3], means_mm.T, precision="highest")
    squared = placed[..., 3:] - 2 * across + (means_mm**2).sum(-1)
    level = math.log(math.prod(shape) / gaussian_sum(shape, spacing_mm, sd_mm))
    return level - squared / (2 * sd_mm**2)


def cell_voxels(
    shape: Sequence[int], spacing_mm: Sequence[float], cell_mm: float
) -> tuple[int, int, int]:
    """Voxels along each side of equal cells that fill the volume: at most `cell_mm`, or 1 voxel."""
    x, y, z = (
        max(c for c in range(1, n + 1) if n % c == 0 and (c == 1 or c * s <= cell_mm))
        for n, s in zip(shape, spacing_mm, strict=True)
    )
    return x, y, z


def cell_masses(heatmaps: Array, cell: Sequence[int], power: float) -> Array:
    """Sums of heatmaps (B, n, Y, Z, K) over cells, each value raised to `power`, negatives 0."""
    b, *shape, k = heatmaps.shape
    (x, cx), (y, cy), (z, cz) = ((n // c, c) for n, c in zip(shape, cell, strict=True))
    mass = jnp.maximum(heatmaps, 0.0) ** power
    return mass.reshape(b, x, cx, y, cy, z, cz, k).sum((2, 4, 6))


def gaussian_cell_masses(
    landmarks_ijk: Array,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    sigma_mm: float,
    cell: Sequence[int],
    power: float,
) -> Array:
    """`cell_masses` of `gaussians`, from three vectors: a Gaussian's power is a Gaussian."""
    narrow = sigma_mm / math.sqrt(power)
    x, y, z = (
        _gaussian_1d(landmarks_ijk[..., axis], n, s, narrow)
        .reshape(landmarks_ijk.shape[0], n // c, c, -1)
        .sum(2)
        for axis, (n, s, c) in enumerate(zip(shape, spacing_mm, cell, strict=True))
    )
    return x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]


# Heatmaps of a regression are raised to this power before their spread is computed: small values
# all over the volume would outweigh any spot.
_SPREAD_POWER = 4


class Decoded(NamedTuple):
    """K landmarks decoded from heatmaps."""

    argmax_ijk: Array  # (B, K, 3): the voxel of the maximum
    subvoxel_ijk: Array  # (B, K, 3): the sub-voxel peak
    score: Array  # (B, K): the height
    evidence: Array  # (B, K) nats, not calibrated: evidence that the landmark is present
    spread_mm: Array  # (B, K): root mean square distance of the heatmap from the sub-voxel peak


def decode(
    features: Array,
    head: Head,
    *,
    spacing_mm: Sequence[float],
    sigma_mm: float,
    softmax: bool,
    slab_voxels: int = SLAB_VOXELS_CPU,
) -> Decoded:
    """Landmarks of the heatmaps that `head` makes of features `(B, X, Y, Z, C)`.

    With `softmax`, the head's outputs are logits, and their softmax over all voxels is the heatmap,
    scaled so that a Gaussian of `sigma_mm` inside has a peak of 1. Heatmaps are computed for about
    `slab_voxels` at a time.

    The evidence is, with `softmax`, the logarithm of the mean of the exponentials, else the
    log-odds of the height as a probability. The spread weighs distances by the probabilities with
    `softmax` (a Gaussian in three dimensions has sqrt(3) sigma), else by the fourth power of
    positive values. A second spot or a wide spot makes it larger. 0 where nothing is positive.
    """
    shape = features.shape[1:4]
    rows, sums = map_slabs(
        lambda slab, first: _survey(head(slab), first, shape, spacing_mm, softmax),
        features,
        voxels=slab_voxels,
    )
    argmax, score = _argmax_of_rows(join_slabs(rows), features, head)
    window, start = windows(features, argmax, head, spacing_mm, sigma_mm)
    if softmax:
        # The mean shift needs no scale; relative to the maximum nothing over- or underflows.
        window = jnp.exp(window - score[..., None, None, None])
        log_sum = logsumexp(sums.log_scale, axis=0, b=sums.mass)
        score = jnp.exp(score - log_sum) * gaussian_sum(shape, spacing_mm, sigma_mm)
        evidence = log_sum - math.log(math.prod(shape))
    else:
        evidence = jax.scipy.special.logit(jnp.clip(score, 1e-4, 1 - 1e-4))
    fine = mean_shift(window, start, argmax, spacing_mm, sigma_mm)
    return Decoded(argmax, fine, score, evidence, _spread_mm(sums, fine, shape, spacing_mm))


class _Moments(NamedTuple):
    """Sums over a slab of the weights w and of their products with the place p in mm.

    All are relative to exp(`log_scale`); p is counted from the volume's middle, so that squares
    keep their digits.
    """

    log_scale: Array  # (B, K)
    mass: Array  # (B, K): sum w
    first: Array  # (B, K, 3): sum w p
    second: Array  # (B, K): sum w |p|^2


def _survey(
    heatmaps: Array, start: Array, shape: Sequence[int], spacing_mm: Sequence[float], softmax: bool
) -> tuple[Array, _Moments]:
    """Maxima along Z, (B, n, Y, K), and moments of a slab that begins at plane `start`."""
    heatmaps = heatmaps.astype(jnp.float32)
    rows = heatmaps.max(3)
    if softmax:
        highest = rows.max((1, 2))
        weights = jnp.exp(heatmaps - highest[:, None, None, None])
    else:
        # Relative to the peak of a target, 1.
        highest = jnp.zeros((heatmaps.shape[0], heatmaps.shape[-1]))
        weights = jnp.maximum(heatmaps, 0.0) ** _SPREAD_POWER
    x, y, z = (
        s * (jnp.arange(n, dtype=jnp.float32) - (whole - 1) / 2)
        for n, whole, s in zip(heatmaps.shape[1:4], shape, spacing_mm, strict=True)
    )
    x = x + spacing_mm[0] * start.astype(jnp.float32)
    # One pass along Z makes all three sums; the remaining arrays are small.
    powers = jnp.stack([jnp.ones_like(z), z, z**2])
    along_z = jnp.einsum("bxyzk,pz->pbxyk", weights, powers)
    plane, first_z, second_z = along_z
    by_x, by_y = plane.sum(2), plane.sum(1)
    first = [jnp.einsum("bnk,n->bk", by_x, x), jnp.einsum("bnk,n->bk", by_y, y)]
    second = jnp.einsum("bnk,n->bk", by_x, x**2) + jnp.einsum("bnk,n->bk", by_y, y**2)
    return rows, _Moments(
        highest,
        by_x.sum(1),
        jnp.stack([*first, first_z.sum((1, 2))], -1),
        second + second_z.sum((1, 2)),
    )


def _spread_mm(
    slabs: _Moments, positions_ijk: Array, shape: Sequence[int], spacing_mm: Sequence[float]
) -> Array:
    """(B, K): root mean square distance from the positions (B, K, 3), of all slabs together."""
    scale = jnp.exp(slabs.log_scale - slabs.log_scale.max(0))
    mass, second = (slabs.mass * scale).sum(0), (slabs.second * scale).sum(0)
    first = (slabs.first * scale[..., None]).sum(0)
    place = (positions_ijk - (jnp.asarray(shape) - 1) / 2) * jnp.asarray(spacing_mm)
    squared = second - 2 * (first * place).sum(-1) + mass * (place**2).sum(-1)
    known = mass > 1e-30
    return jnp.where(known, jnp.sqrt(jnp.maximum(squared, 0) / jnp.where(known, mass, 1)), 0.0)


def _argmax_of_rows(rows: Array, features: Array, head: Head) -> tuple[Array, Array]:
    """The voxel of the maximum and its value, from the maxima along Z.

    A reduction that carries indices is slow. This one reduces values only, and then searches the
    row of each landmark that holds the maximum. Of equal values the first in X, Y, Z counts.
    """
    b, _, ny, k = rows.shape
    best = jnp.argmax(rows.reshape(b, -1, k), axis=1)
    x, y = best // ny, best % ny
    row = jax.vmap(lambda volume, i, j: volume[i, j])(features, x, y)  # (B, K, Z, C)
    z = jnp.argmax(_own_channel(head(row)), axis=-1)
    return jnp.stack([x, y, z], axis=-1).astype(jnp.float32), rows.max((1, 2))


def _own_channel(values: Array) -> Array:
    """(B, K, ..., K), places of each landmark with the heatmaps of all -> (B, K, ...), its own."""
    return jnp.moveaxis(jnp.diagonal(values, axis1=1, axis2=-1), -1, 1).astype(jnp.float32)


def windows(
    features: Array,
    argmax_ijk: Array,
    head: Head,
    spacing_mm: Sequence[float],
    sigma_mm: float,
) -> tuple[Array, Array]:
    """Each landmark's heatmap within about 2 sigma of its maximum, and where that window starts.

    Returns arrays (B, K, wx, wy, wz) and (B, K, 3), the latter whole numbers.
    """
    shape = jnp.asarray(features.shape[1:4])
    radius = [max(2, round(2 * sigma_mm / s)) for s in spacing_mm]
    size = [min(2 * r + 1, n) for r, n in zip(radius, features.shape[1:4], strict=True)]
    start = argmax_ijk.astype(jnp.int32) - jnp.asarray(radius)
    start = jnp.clip(start, 0, shape - jnp.asarray(size))

    def cut(volume: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(volume, (*corner, 0), (*size, volume.shape[-1]))

    cuts = jax.vmap(jax.vmap(cut, (None, 0)))(features, start)
    return _own_channel(head(cuts)), start


def mean_shift(
    window: Array,
    start: Array,
    argmax_ijk: Array,
    spacing_mm: Sequence[float],
    sigma_mm: float,
) -> Array:
    """Sub-voxel peaks `(B, K, 3)` by mean shift with a Gaussian of the target's width.

    The fixed point is a maximum of the heatmap smoothed by that Gaussian, the matched filter for a
    known peak shape: it uses the whole spot, not the three brightest voxels, and is exact for a
    noise-free Gaussian. Each iteration halves the distance, so twelve leave a 4000th of a voxel.
    Negative values count as zero. `window` and `start` as `windows` returns them.
    """
    spacing = jnp.asarray(spacing_mm, jnp.float32)

    def one(values: Array, first: Array, peak: Array) -> Array:
        values = jnp.maximum(values, 0)
        grids = [first[a] + jnp.arange(values.shape[a], dtype=jnp.float32) for a in range(3)]

        def shift(_: int, centre: Array) -> Array:
            gx, gy, gz = (
                jnp.exp(-0.5 * ((grids[a] - centre[a]) * spacing[a] / sigma_mm) ** 2)
                for a in range(3)
            )
            weight = values * gx[:, None, None] * gy[:, None] * gz
            marginals = weight.sum((1, 2)), weight.sum((0, 2)), weight.sum((0, 1))
            total = jnp.maximum(weight.sum(), 1e-30)
            moved = jnp.stack(
                [(m * g).sum() / total for m, g in zip(marginals, grids, strict=True)]
            )
            # In an empty window (no positive value) stay at the maximum.
            return jnp.where(weight.sum() > 1e-30, moved, centre)

        return jax.lax.fori_loop(0, 12, shift, peak)

    return jax.vmap(jax.vmap(one))(window, start, argmax_ijk)
