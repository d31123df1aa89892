"""Losses: pure functions from what a network gives and where the landmarks are to a number."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from jaxmark.core.heatmaps import gaussians


def weighted_heatmap_loss(
    prediction: Array,
    landmarks_ijk: Array,
    present: Array,
    *,
    spacing_mm: Sequence[float],
    sigma_mm: float,
    alpha: float,
) -> Array:
    """Squared error weighted by alpha^H of the ground truth H (Tan et al. 2023, Eqs. 1 and 2).

    Args:
      prediction: heatmaps (B, X, Y, Z, K), any float type; the loss is computed in float32.
      landmarks_ijk: true positions (B, K, 3) in voxels; values of absent landmarks are ignored.
      present: (B, K) bool; absent landmarks leave the sum.

    Returns:
      The mean over voxels and over the present landmarks of the batch: the paper writes a norm and
      leaves its scale open.
    """
    target = gaussians(landmarks_ijk, prediction.shape[1:4], spacing_mm, sigma_mm)
    weight = jnp.exp(jnp.log(alpha) * target)
    error = weight * (prediction.astype(jnp.float32) - target) ** 2
    return _masked_mean(error.mean((1, 2, 3)), present)


def heatmap_cross_entropy(
    logits: Array,
    landmarks_ijk: Array,
    present: Array,
    *,
    spacing_mm: Sequence[float],
    sigma_mm: float,
) -> Array:
    """Cross-entropy between a softmax over all voxels and a Gaussian of sum 1, in nats.

    A landmark is in one place: the softmax makes all voxels compete, so that a second peak costs
    as much as the first one gains (McCouat & Voiculescu, CVPR 2022, with one voxel as target).
    Arguments as `weighted_heatmap_loss`. A landmark outside of the volume, to which a translation
    may move it, has no place to be in and leaves the sum as absent ones do.
    """
    shape = logits.shape[1:4]
    logits = logits.astype(jnp.float32)
    target = gaussians(landmarks_ijk, shape, spacing_mm, sigma_mm)
    expected = (target * logits).sum((1, 2, 3)) / jnp.maximum(target.sum((1, 2, 3)), 1e-6)
    last = jnp.asarray(shape, jnp.float32) - 0.5
    inside = ((landmarks_ijk >= -0.5) & (landmarks_ijk <= last)).all(-1)
    return _masked_mean(logsumexp(logits, axis=(1, 2, 3)) - expected, present & inside)


def _masked_mean(values: Array, mask: Array) -> Array:
    """Mean of the values (B, K) where the mask is true; 0 where it never is."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)
