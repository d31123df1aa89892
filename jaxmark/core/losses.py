"""Losses: pure functions of a network's output and the landmarks' positions.

Of arrays as large as the heatmaps only the prediction is stored: targets and weights are products
of vectors that XLA fuses into the sums, slab by slab. With `head` not even the prediction is: the
losses take features instead, and compute heatmaps again for the gradient. 19 heatmaps of
192 x 160 x 96 voxels are 224 MB, the coordinates behind them 228 B.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.scipy.special import logsumexp

from jaxmark.core.heatmaps import gaussians
from jaxmark.core.slabs import SLAB_VOXELS_CPU, Head, map_slabs, sum_slabs


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
      landmarks_ijk: true positions (B, K, 3) in voxels; ignored where not present.
      present: (B, K) bool: annotated landmarks.
      absent: (B, K) bool: landmarks known to be absent, whose heatmap should be empty (ours). A
        landmark that is neither is unknown, and is not in the sum.
      head: turns features into heatmaps.
      slab_voxels: about the number of voxels that are computed at a time.

    Returns:
      The mean over voxels and over the known landmarks of the batch: the paper writes a norm and
      leaves its scale open.
    """
    known = present if absent is None else present | absent

    def part(heatmaps: Array, points: Array) -> Array:
        target = gaussians(points, heatmaps.shape[1:4], spacing_mm, sigma_mm)
        target = target * present[:, None, None, None]
        weight = jnp.exp(jnp.log(alpha) * target)
        return _masked_mean((weight * (heatmaps - target) ** 2).sum((1, 2, 3)), known)

    voxels = prediction[0, ..., 0].size
    by_slab = _of_heatmaps(part, landmarks_ijk, head)
    return sum_slabs(by_slab, prediction, voxels=slab_voxels) / voxels


def balanced_heatmap_loss(
    prediction: Array,
    landmarks_ijk: Array,
    present: Array,
    *,
    spacing_mm: Sequence[float],
    sigma_mm: float,
    balance: float = 1.0,
    absent: Array | None = None,
    head: Head | None = None,
    slab_voxels: int = SLAB_VOXELS_CPU,
) -> Array:
    """Squared error weighted by the ratio of background to foreground voxels (Tan et al. 2022).

    A landmark's foreground are the voxels whose true heatmap is at least a half (ours; the paper
    leaves it open). They weigh `ratio^balance`, the others 1. With 1, as in the paper, foreground
    and background have the same weight; with 0 all voxels have. Arguments as
    `weighted_heatmap_loss`.

    Returns:
      The weighted mean over voxels, and its mean over the known landmarks of the batch.
    """
    known = present if absent is None else present | absent

    def sums(heatmaps: Array, points: Array) -> tuple[Array, Array, Array]:
        target = gaussians(points, heatmaps.shape[1:4], spacing_mm, sigma_mm)
        target = target * present[:, None, None, None]
        error, inside = (heatmaps - target) ** 2, target >= 0.5
        foreground = jnp.where(inside, error, 0.0).sum((1, 2, 3))
        return error.sum((1, 2, 3)), foreground, inside.sum((1, 2, 3))

    by_slab = _of_heatmaps(sums, landmarks_ijk, head)
    parts = map_slabs(by_slab, prediction, voxels=slab_voxels)
    total, foreground, count = (part.sum(0).astype(jnp.float32) for part in parts)
    voxels = prediction[0, ..., 0].size
    # Without a foreground the ratio has no effect.
    ratio = ((voxels - count) / jnp.maximum(count, 1)) ** balance
    weighted = total + (ratio - 1) * foreground
    return _masked_mean(weighted / (voxels + (ratio - 1) * count), known)


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
    Arguments as `weighted_heatmap_loss`. A landmark that a translation moved out of the volume is
    not in the sum, as unknown ones are not.

    With `absent` (ours) there is one more class, "nowhere", so that the level of a landmark's
    logits tells whether it is present. The class has a fixed logit: with all voxels at 0, the
    landmark is present with the probability `presence`. If that is its share in the training
    cases, the level starts right.
    """

    def sums(heatmaps: Array, points: Array) -> tuple[Array, Array, Array]:
        target = gaussians(points, heatmaps.shape[1:4], spacing_mm, sigma_mm)
        expected = (target * heatmaps).sum((1, 2, 3))
        return expected, target.sum((1, 2, 3)), logsumexp(heatmaps, axis=(1, 2, 3))

    by_slab = _of_heatmaps(sums, landmarks_ijk, head)
    expected, mass, log_sums = map_slabs(by_slab, logits, voxels=slab_voxels)
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


def exponential_heatmap_loss(
    prediction: Array,
    landmarks_ijk: Array,
    present: Array,
    *,
    spacing_mm: Sequence[float],
    sigma_mm: float,
    height: float = 1.0,
    absent: Array | None = None,
    of_truth: bool = False,
    head: Head | None = None,
    slab_voxels: int = SLAB_VOXELS_CPU,
) -> Array:
    """Squared error of K heatmaps and their background, with exponential weights (Tan et al. 2019).

    The truth (Eq. 1): Gaussians of `height`, and 1 minus that of the closest landmark as the
    background, the last channel. Where Gaussians overlap they are scaled, so that all channels'
    sum is 1.

    Args:
      prediction: (B, X, Y, Z, K + 1), or with `head` the features that it makes them of.
      landmarks_ijk, present, absent: as in `weighted_heatmap_loss`. A channel of what is neither
        present nor absent leaves the sum.
      of_truth: weights are e to the power of the true values; else, as printed, of the predicted
        ones, through which no gradient runs.

    Returns:
      The mean over voxels, over the known channels of the batch.
    """
    known = present if absent is None else present | absent
    known = jnp.concatenate([known, jnp.ones_like(known[:, :1])], axis=-1)

    def part(maps: Array, points: Array) -> Array:
        target = gaussians(points, maps.shape[1:4], spacing_mm, sigma_mm)
        target = height * target * present[:, None, None, None]
        closest = target.max(-1, keepdims=True)
        scaled = target * (closest / jnp.maximum(target.sum(-1, keepdims=True), 1e-12))
        truth = jnp.concatenate([scaled, 1 - closest], axis=-1)
        weight = jnp.exp(truth if of_truth else jax.lax.stop_gradient(maps))
        return _masked_mean((weight * (maps - truth) ** 2).sum((1, 2, 3)), known)

    voxels = prediction[0, ..., 0].size
    by_slab = _of_heatmaps(part, landmarks_ijk, head)
    return sum_slabs(by_slab, prediction, voxels=slab_voxels) / voxels


def distance_loss(predicted: Array, true: Array, present: Array) -> Array:
    """Euclidean distance (B, K, 3) -> the mean over what is present (Tan et al. 2019, stage 2)."""
    square = ((predicted - true) ** 2).sum(-1)
    # The root has no slope at 0.
    return _masked_mean(jnp.sqrt(square + 1e-8), present)


def adversarial_loss(fake_logits: Array) -> Array:
    """The generator's loss: high where the discriminator is right (Tan et al. 2023, Eq. 3).

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


@struct.dataclass
class SegmentationSums:
    """Sums of a softmax over C classes for Dice, cross-entropy and attributes; float32."""

    overlap: Array  # (C,) probability of the true class, where that is the class; of the batch
    voxels: Array  # (C,) voxels of the class; of the batch
    surprise: Array  # (C,) -log of the same probability; of the batch
    predicted: Array  # (B, C) probability of the class
    peak: Array  # (B, C) largest probability of the class


def segmentation_sums(
    prediction: Array,
    labels: Array,
    *,
    head: Head | None = None,
    slab_voxels: int = SLAB_VOXELS_CPU,
) -> SegmentationSums:
    """One pass over the voxels; softmax and one-hot labels exist a slab at a time.

    Args:
      prediction: logits (B, X, Y, Z, C), or with `head` the features that it makes them of.
      labels: (B, X, Y, Z) integers under C.
    """

    def sums(slab: Array, first: Array) -> SegmentationSums:
        logits = (slab if head is None else head(slab)).astype(jnp.float32)
        true = jax.lax.dynamic_slice_in_dim(labels, first, slab.shape[1], axis=1)
        is_true = true[..., None] == jnp.arange(logits.shape[-1], dtype=labels.dtype)
        log_sum = logsumexp(logits, axis=-1, keepdims=True)
        probability = jnp.exp(logits - log_sum)
        axes = (0, 1, 2, 3)
        return SegmentationSums(
            overlap=jnp.where(is_true, probability, 0.0).sum(axes),
            voxels=is_true.astype(jnp.float32).sum(axes),
            surprise=jnp.where(is_true, log_sum - logits, 0.0).sum(axes),
            predicted=probability.sum((1, 2, 3)),
            peak=probability.max((1, 2, 3)),
        )

    slabs = map_slabs(sums, prediction, voxels=slab_voxels)
    total = jax.tree.map(lambda x: x.sum(0), slabs)
    return total.replace(peak=slabs.peak.max(0))


def weighted_dice_loss(sums: SegmentationSums, *, balance: float = 1.0) -> Array:
    """1 - Dice of all classes together, each with its weight (Tan et al. 2022).

    Overlaps and sizes are weighted before they are summed, so that with a `balance` of 1, as in the
    paper, every segment says as much as the background; see `class_weights`. A weighted mean of the
    classes' own Dice counts a small class twice: with it no segment was learned.
    """
    weight = class_weights(sums, balance)
    overlap = (weight * sums.overlap).sum()
    sizes = (weight * (sums.predicted.sum(0) + sums.voxels)).sum()
    return 1 - (2 * overlap + 1) / (sizes + 1)


def segmentation_cross_entropy(sums: SegmentationSums, *, balance: float = 0.0) -> Array:
    """Cross-entropy of the softmax in nats, mean over all voxels, each with its class's weight."""
    weight = class_weights(sums, balance)
    return (weight * sums.surprise).sum() / (weight * sums.voxels).sum()


def class_weights(sums: SegmentationSums, balance: float) -> Array:
    """(C,): ratio of background voxels, class 0, to a class's own, to the power of `balance`.

    A class that the batch lacks has no ratio, and weighs as much as the mean of the others (ours):
    what is predicted of it is wrong.
    """
    there = sums.voxels > 0
    ratio = (sums.voxels[0] / jnp.maximum(sums.voxels, 1)) ** balance
    mean = jnp.where(there, ratio, 0.0).sum() / jnp.maximum(there.sum(), 1)
    return jnp.where(there, ratio, mean)


def attribute_loss(logits: Array, present: Array, absent: Array, *, rare: float = 1.0) -> Array:
    """Cross-entropy of yes-or-no attributes (B, N), mean over the known ones, in nats.

    `rare` is what an absent one weighs; the paper (Tan et al. 2022) states no weight: 1.
    """
    loss = jnp.where(present, jax.nn.softplus(-logits), jax.nn.softplus(logits))
    weight = jnp.where(absent, rare, jnp.where(present, 1.0, 0.0))
    return (weight * loss).sum() / jnp.maximum(weight.sum(), 1e-6)


def self_consistency_loss(fork_logits: Array, derived: Array, may_change: Array) -> Array:
    """Cross-entropy between derived and predicted forks (Tan et al. 2022, Eq. 1), in nats.

    Args:
      fork_logits: (B, K), y_l before its sigmoid.
      derived: (B, K) in [0, 1], y~_l: what the predicted segments say of the landmarks.
      may_change: (K,) bool, the set Omega. The mean is over it.
    """
    nats = derived * jax.nn.softplus(-fork_logits) + (1 - derived) * jax.nn.softplus(fork_logits)
    return _masked_mean(nats, jnp.broadcast_to(may_change, nats.shape))


def orientation_loss(
    prediction: Array,
    axes: Array,
    inside: Array,
    *,
    head: Head | None = None,
    slab_voxels: int = SLAB_VOXELS_CPU,
) -> Array:
    """1 - cos^2 between predicted vectors and vessels' axes, mean over the voxels inside.

    A vessel has no sign: v and -v are one axis.

    Args:
      prediction: (B, X, Y, Z, 3), or with `head` the features that it makes them of.
      axes: (B, X, Y, Z, 3) unit vectors.
      inside: (B, X, Y, Z) bool.
    """

    def part(slab: Array, first: Array) -> Array:
        vectors = (slab if head is None else head(slab)).astype(jnp.float32)
        count = slab.shape[1]
        true = jax.lax.dynamic_slice_in_dim(axes, first, count, axis=1)
        mask = jax.lax.dynamic_slice_in_dim(inside, first, count, axis=1)
        square = (vectors * true).sum(-1) ** 2 / ((vectors**2).sum(-1) + 1e-6)
        return jnp.where(mask, 1 - square, 0.0).sum()

    total = sum_slabs(part, prediction, voxels=slab_voxels)
    return total / jnp.maximum(inside.sum(), 1)


def _of_heatmaps(
    function: Callable[[Array, Array], Any], landmarks_ijk: Array, head: Head | None
) -> Callable[[Array, Array], Any]:
    """A function of heatmaps and points in their voxels as one of a slab and its first plane."""

    def of_slab(slab: Array, first: Array) -> Any:
        heatmaps = (slab if head is None else head(slab)).astype(jnp.float32)
        return function(heatmaps, landmarks_ijk - jnp.stack([first, 0, 0]))

    return of_slab


def _masked_mean(values: Array, mask: Array) -> Array:
    """Mean of the values (B, K) where the mask is true; 0 where it never is."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def huber_loss(prediction: Array, target: Array, delta: float, counted: Array) -> Array:
    """Huber's loss (1964), mean over the pixels that are counted (Kanakatte et al., Eq. 3).

    Half the square of errors up to `delta`, from there on the line that continues it. All arrays
    have one shape; `counted` is bool.
    """
    error = jnp.abs(prediction - target)
    near = jnp.minimum(error, delta)
    return _masked_mean(near * (error - near / 2), counted)


def square_and_absolute_loss(
    first: Array, second: Array | float, alpha: float, counted: Array
) -> Array:
    """`alpha` MSE + MAE over what is counted of each case (Kanakatte et al., Eq. 7).

    Args:
      first, second: (B, X, Y), or one number.
      counted: (B, X, Y) bool, as the pixels of the foreground square.

    Returns:
      The mean over the cases of which anything is counted.
    """
    error = jnp.abs(first - second)
    where = jnp.where(counted, alpha * error**2 + error, 0.0).sum((1, 2))
    each = where / jnp.maximum(counted.sum((1, 2)), 1)
    return _masked_mean(each, counted.any((1, 2)))


def least_squares_loss(responses: Array, wanted: float, counted: Array) -> Array:
    """A discriminator's responses (B,) against 1 or 0 (Mao et al., ICCV 2017, Eq. 2)."""
    return _masked_mean((responses - wanted) ** 2, counted)
