"""Landmarks by votes of patches: each predicts whether it holds a landmark, and where it lies.

A volume is divided into cubes of `stride` voxels a side. For each landmark, each patch gives a
logit that the landmark lies inside, and a displacement from the patch's centre to the landmark
(Noothout et al., IEEE TMI 2020). Displacements are in voxels, on the scale of `shrink`.

Logits are `(B, x, y, z, K)` and displacements `(B, x, y, z, K, 3)`, of a grid of patches; positions
`(B, K, 3)` in voxels (voxel centres at integers). Everything is float32. Pictures have two axes:
there is no z, and positions and displacements are two numbers.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array


def shrink(displacement: Array) -> Array:
    """sign(d) log10(|d| + 1): large displacements need less precision."""
    return jnp.sign(displacement) * jnp.log1p(jnp.abs(displacement)) / math.log(10)


def stretch(shrunk: Array) -> Array:
    """The inverse of `shrink`."""
    return jnp.sign(shrunk) * jnp.expm1(jnp.abs(shrunk) * math.log(10))


def patch_centres(grid: Sequence[int], stride: int) -> Array:
    """(x, y, z, 3): the middle of each patch in voxels; the first patch begins at voxel 0."""
    axes = (stride * jnp.arange(n, dtype=jnp.float32) + (stride - 1) / 2 for n in grid)
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


def displacements(landmarks_ijk: Array, grid: Sequence[int], stride: int) -> Array:
    """(B, x, y, z, K, 3) voxels, not shrunk: from each patch's centre to each landmark."""
    centres = patch_centres(grid, stride)
    return _of_patches(landmarks_ijk, len(grid)) - centres[..., None, :]


def _of_patches(values: Array, axes: int) -> Array:
    """(B, K, ...) with axes of length 1 for the patches between the first two."""
    return jnp.expand_dims(values, range(1, axes + 1))


def vote_losses(
    logits: Array,
    votes: Array,
    landmarks_ijk: Array,
    present: Array,
    absent: Array,
    *,
    stride: int,
) -> tuple[Array, Array]:
    """The losses of the patches' logits and of their displacements.

    Args:
      logits, votes: the patches' predictions; `votes` are displacements.
      landmarks_ijk: true positions; ignored where not present. A landmark may lie outside of the
        volume: no patch holds it, and all point to it.
      present: (B, K) bool: annotated landmarks.
      absent: (B, K) bool: landmarks known to be absent (ours): no patch holds them, and their
        displacements are ignored. A landmark that is neither is in neither sum.
      stride: voxels of a patch's side.

    Returns:
      Binary cross-entropy in nats, mean over all patches of the known landmarks, and the absolute
      error of the shrunk displacements, mean over axes and all patches of the present landmarks.
    """
    grid = logits.shape[1:-1]
    true = displacements(landmarks_ijk, grid, stride)
    # Half open, so that a landmark on a border is in one patch.
    inside = ((true >= -stride / 2) & (true < stride / 2)).all(-1)
    holds = inside & _of_patches(present, len(grid))
    entropy = jax.nn.softplus(logits) - jnp.where(holds, logits, 0.0)
    error = jnp.abs(votes - shrink(true)).mean(-1)
    return _mean(entropy, present | absent), _mean(error, present)


def _mean(values: Array, mask: Array) -> Array:
    """Mean of (B, x, y, z, K) over all patches where the mask (B, K) is true; 0 if it never is."""
    values = jnp.where(mask, values.mean(_patch_axes(values)), 0.0)
    return values.sum() / jnp.maximum(mask.sum(), 1)


def decode_votes(logits: Array, votes: Array, *, stride: int) -> tuple[Array, Array]:
    """Each landmark's position: the mean of the patches' votes, weighted by probability.

    Returns:
      Positions (B, K, 3), and the largest logit (B, K).
    """
    # Ratios of probabilities, which are correct even where all are too small for float32.
    chance = jax.nn.log_sigmoid(logits)
    axes = _patch_axes(logits)
    highest = chance.max(axes, keepdims=True)
    weight = jnp.exp(chance - highest)[..., None]
    seen = patch_centres(logits.shape[1:-1], stride)[..., None, :] + stretch(votes)
    mean = (weight * seen).sum(axes) / weight.sum(axes)
    return mean, logits.max(axes)


def _patch_axes(logits: Array) -> tuple[int, ...]:
    return tuple(range(1, logits.ndim - 1))
