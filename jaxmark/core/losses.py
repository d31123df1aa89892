"""Losses: pure functions from what a network gives and where the landmarks are to a number.

Nothing the size of the heatmaps is stored for them but the prediction: targets and weights are
products of vectors that XLA fuses into the sums, slab by slab. With `head`, not even the prediction
is: the features that it makes heatmaps of come in its place, and heatmaps are made anew for the
gradient. 19 heatmaps of 192 x 160 x 96 voxels are 224 MB, the coordinates behind them 228 B.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from jaxmark.core.heatmaps import gaussians
from jaxmark.core.slabs import SLAB_VOXELS_CPU, Head, map_slabs


def weighted_heatmap_loss(
    prediction: Array,
    landmarks_ijk: Array,
    present: Array,
    *,
    spacing_mm: Sequence[float],
    sigma_mm: float,
    alpha: float,
    absent: Array | None = None,
    head: Head | None = None,
    slab_voxels: int = SLAB_VOXELS_CPU,
) -> Array:
    """Squared error weighted by alpha^H of the ground truth H (Tan et al. 2023, Eqs. 1 and 2).

    Args:
      prediction: heatmaps (B, X, Y, Z, K), any float type; the loss is computed in float32. With
        `head`: features (B, X, Y, Z, C).
      landmarks_ijk: true positions (B, K, 3) in voxels; those of others than present are ignored.
      present: (B, K) bool: annotated landmarks.
      absent: (B, K) bool: landmarks that are known not to be there, whose heatmap should be empty
        (ours). Of what is neither nothing is known, and it leaves the sum.
      head: what makes heatmaps of features.
      slab_voxels: how many, about, at a time.

    Returns:
      The mean over voxels and over the known landmarks of the batch: the paper writes a norm and
      leaves its scale open.
    """
    known = present if absent is None else present | absent

    def sums(heatmaps: Array, points: Array) -> Array:
        target = gaussians(points, heatmaps.shape[1:4], spacing_mm, sigma_mm)
        target = target * present[:, None, None, None]
        weight = jnp.exp(jnp.log(alpha) * target)
        return (weight * (heatmaps - target) ** 2).sum((1, 2, 3))

    voxels = prediction[0, ..., 0].size
    total = _over_slabs(sums, prediction, landmarks_ijk, head, slab_voxels).sum(0)
    return _masked_mean(total / voxels, known)


def heatmap_cross_entropy(
    logits: Array,
    landmarks_ijk: Array,
    present: Array,
    *,
    spacing_mm: Sequence[float],
    sigma_mm: float,
    absent: Array | None = None,
    presence: float = 0.5,
    head: Head | None = None,
    slab_voxels: int = SLAB_VOXELS_CPU,
) -> Array:
    """Cross-entropy between a softmax over all voxels and a Gaussian of sum 1, in nats.

    A landmark is in one place: the softmax makes all voxels compete, so that a second peak costs
    as much as the first one gains (McCouat & Voiculescu, CVPR 2022, with one voxel as target).
    Arguments as `weighted_heatmap_loss`. A landmark outside of the volume, to which a translation
    may move it, has no place to be in and leaves the sum as unknown ones do.

    With `absent` (ours) a landmark may also be nowhere: one more class, so that the level of a
    landmark's logits says whether it is there. The logit of that class is fixed where, with all
    voxels at 0, the landmark is there with the probability `presence`: if that is its share in the
    training cases, the level has nothing to learn before the place is known.
    """

    def sums(heatmaps: Array, points: Array) -> tuple[Array, Array, Array]:
        target = gaussians(points, heatmaps.shape[1:4], spacing_mm, sigma_mm)
        expected = (target * heatmaps).sum((1, 2, 3))
        return expected, target.sum((1, 2, 3)), logsumexp(heatmaps, axis=(1, 2, 3))

    expected, mass, log_sums = _over_slabs(sums, logits, landmarks_ijk, head, slab_voxels)
    expected = expected.sum(0) / jnp.maximum(mass.sum(0), 1e-6)
    last = jnp.asarray(logits.shape[1:4], jnp.float32) - 0.5
    inside = ((landmarks_ijk >= -0.5) & (landmarks_ijk <= last)).all(-1)
    here = present & inside
    log_sum = logsumexp(log_sums, axis=0)
    if absent is None:
        return _masked_mean(log_sum - expected, here)
    nowhere = math.log(math.prod(logits.shape[1:4]) * (1 - presence) / presence)
    total = jnp.logaddexp(log_sum, nowhere)
    return _masked_mean(total - jnp.where(absent, nowhere, expected), here | absent)


def adversarial_loss(fake_logits: Array) -> Array:
    """What the generator pays where the discriminator is not deceived (Tan et al. 2023, Eq. 3).

    -log D(G(I)) with D the sigmoid of the logits, which is softplus(-logits): no rounding to
    log(0), and a gradient where the discriminator is sure. Mean over the logits.
    """
    return jax.nn.softplus(-fake_logits).mean()


def discriminator_loss(
    real_logits: Array, fake_logits: Array, *, label_smoothing: float = 0.0
) -> Array:
    """-log D(H) - log(1 - D(G(I))), each term's mean over its logits (Tan et al. 2023, Eq. 4).

    With `label_smoothing` s, real is to be called 1 - s instead of 1 (Salimans et al., NIPS 2016:
    on the real side only); the paper: 0.
    """
    sure = jax.nn.softplus(-real_logits).mean()
    unsure = jax.nn.softplus(real_logits).mean()
    real = (1 - label_smoothing) * sure + label_smoothing * unsure
    return real + jax.nn.softplus(fake_logits).mean()


def _over_slabs(
    sums: Callable[[Array, Array], Any],
    prediction: Array,
    landmarks_ijk: Array,
    head: Head | None,
    slab_voxels: int,
) -> Any:
    """`sums(heatmaps, points)` of every slab, stacked; points are in voxels of the slab."""

    def one(slab: Array, first: Array) -> Any:
        heatmaps = (slab if head is None else head(slab)).astype(jnp.float32)
        return sums(heatmaps, landmarks_ijk - jnp.stack([first, 0, 0]))

    return map_slabs(one, prediction, voxels=slab_voxels)


def _masked_mean(values: Array, mask: Array) -> Array:
    """Mean of the values (B, K) where the mask is true; 0 where it never is."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)
