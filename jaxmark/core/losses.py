"""Losses: pure functions that return `(loss, diagnostics)`."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from jaxmark.core.heatmaps import gaussians


def weighted_heatmap_loss(
    prediction: Array,
    landmarks_ijk: Array,
    present: Array,
    *,
    spacing_mm: Sequence[float],
    sigma_mm: float,
    alpha: float,
) -> tuple[Array, dict[str, Array]]:
    """Squared error weighted by alpha^H of the ground truth H (Tan et al. 2023, Eqs. 1 and 2).

    Args:
      prediction: heatmaps (B, X, Y, Z, K), any float type; the loss is computed in float32.
      landmarks_ijk: true positions (B, K, 3) in voxels; values of absent landmarks are ignored.
      present: (B, K) bool; absent landmarks leave the sum.

    Returns:
      The mean over voxels and over the present landmarks of the batch (the paper writes a norm and
      leaves its scale open), and the mean peak value at the true voxels as a diagnostic.
    """
    shape = prediction.shape[1:4]
    target = gaussians(landmarks_ijk, shape, spacing_mm, sigma_mm)
    error = (prediction.astype(jnp.float32) - target) ** 2 * jnp.exp(jnp.log(alpha) * target)
    mask = present.astype(jnp.float32)
    count = jnp.maximum(mask.sum(), 1.0)
    per_landmark = error.mean((1, 2, 3))
    loss = (per_landmark * mask).sum() / count
    return loss, {"loss_heatmap": loss}
