"""Losses of the multi-task network and the cascade against float64 NumPy, with a head, in slabs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.core.losses import (
    attribute_loss,
    balanced_heatmap_loss,
    distance_loss,
    exponential_heatmap_loss,
    orientation_loss,
    segmentation_cross_entropy,
    segmentation_sums,
    self_consistency_loss,
    weighted_dice_loss,
)

SHAPE = (8, 5, 6)
PLACE = {"spacing_mm": (1.0, 1.0, 2.0), "sigma_mm": 1.5}
# All at once, and a plane at a time.
SLABS = pytest.mark.parametrize("slab_voxels", [10_000, 30])


def targets(points):
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    squared = (((grid[..., None, :] - points) * PLACE["spacing_mm"]) ** 2).sum(-1)
    return np.exp(-squared / (2 * PLACE["sigma_mm"] ** 2))


@SLABS
@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_balanced_heatmaps(slab_voxels, balance):
    rng = np.random.default_rng(0)
    maps, points = rng.normal(size=(2, *SHAPE, 3)), rng.uniform(0, 5, (2, 3, 3))
    present = np.array([[True, False, True], [True, True, False]])
    absent = np.array([[False, True, False], [False, False, False]])
    total = 0.0
    for b, k in zip(*np.nonzero(present | absent), strict=True):
        target = targets(points[b])[..., k] * present[b, k]
        inside = target >= 0.5
        ratio = ((~inside).sum() / max(inside.sum(), 1)) ** balance
        weight = np.where(inside, ratio, 1.0)
        total += (weight * (maps[b, ..., k] - target) ** 2).sum() / weight.sum()
    loss = functools.partial(
        balanced_heatmap_loss, balance=balance, slab_voxels=slab_voxels, absent=absent, **PLACE
    )
    args = jnp.asarray(points, jnp.float32), present
    found = jax.jit(loss)(jnp.asarray(maps, jnp.float32), *args)
    assert found == pytest.approx(total / (present | absent).sum(), rel=1e-5)
    doubled = loss(jnp.asarray(maps / 2, jnp.float32), *args, head=lambda x: 2 * x)
    assert doubled == pytest.approx(float(found), rel=1e-5)


def segmentation(seed=0, classes=4, missing=None):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=(2, *SHAPE), p=[0.7, 0.1, 0.15, 0.05])
    if missing is not None:
        labels[labels == missing] = 0
    return rng.normal(size=(2, *SHAPE, classes)), labels.astype(np.uint8)


@SLABS
@pytest.mark.parametrize("balance", [0.0, 1.0])
@pytest.mark.parametrize("missing", [None, 2])
def test_weighted_dice_and_cross_entropy(slab_voxels, balance, missing):
    logits, labels = segmentation(missing=missing)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    one_hot = np.eye(4)[labels]
    axes = (0, 1, 2, 3)
    voxels = one_hot.sum(axes)
    there = voxels > 0
    weight = (voxels[0] / np.where(there, voxels, 1)) ** balance
    weight[~there] = weight[there].mean()
    overlap, sizes = weight * (softmax * one_hot).sum(axes), weight * (softmax.sum(axes) + voxels)
    expected = 1 - (2 * overlap.sum() + 1) / (sizes.sum() + 1)
    surprise = -np.log((softmax * one_hot).sum(-1))

    def losses(x, head=None):
        sums = segmentation_sums(x, jnp.asarray(labels), head=head, slab_voxels=slab_voxels)
        of_labels = segmentation_cross_entropy(sums, balance=balance)
        return weighted_dice_loss(sums, balance=balance), of_labels

    found, nats = jax.jit(losses)(jnp.asarray(logits, jnp.float32))
    assert found == pytest.approx(expected, rel=1e-5)
    assert nats == pytest.approx(np.average(surprise, weights=weight[labels]), rel=1e-5)
    by_head = losses(jnp.asarray(logits / 2, jnp.float32), lambda x: 2 * x)
    assert np.allclose(by_head, (found, nats), rtol=1e-5)


def test_dice_is_nothing_for_a_perfect_segmentation():
    _, labels = segmentation()
    logits = 30.0 * jnp.asarray(np.eye(4)[labels])
    sums = segmentation_sums(logits, jnp.asarray(labels))
    assert abs(weighted_dice_loss(sums)) < 1e-4 and segmentation_cross_entropy(sums) < 1e-4


def test_the_gradient_of_dice_is_that_of_the_plain_formula():
    logits, labels = segmentation()
    one_hot = jnp.asarray(np.eye(4)[labels])

    def plain(x):
        p, axes = jax.nn.softmax(x), (0, 1, 2, 3)
        n = one_hot.sum(axes)
        overlap, sizes = (n[0] / n * (p * one_hot).sum(axes)).sum(), (n[0] / n * (p.sum(axes) + n))
        return 1 - (2 * overlap + 1) / (sizes.sum() + 1)

    def fused(x):
        return weighted_dice_loss(segmentation_sums(x, jnp.asarray(labels), slab_voxels=30))

    x = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(jax.grad(fused)(x), jax.grad(plain)(x), atol=1e-7, rtol=1e-3)


def test_attributes_that_are_not_known_have_no_say():
    logits = jnp.array([[2.0, -1.0, 5.0]])
    present, absent = jnp.array([[True, False, False]]), jnp.array([[False, True, False]])
    yes, no = np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))
    assert attribute_loss(logits, present, absent) == pytest.approx((yes + no) / 2)
    found = attribute_loss(logits, present, absent, rare=3.0)
    assert found == pytest.approx((yes + 3 * no) / 4)
    nothing = jnp.zeros((1, 3), bool)
    assert attribute_loss(logits, nothing, nothing) == 0


def test_self_consistency_is_over_the_landmarks_that_may_change():
    logits, derived = jnp.array([[1.0, -2.0, 9.0]]), jnp.array([[1.0, 0.25, 0.0]])
    first, second = -np.log(1 / (1 + np.exp(-1.0))), 1 / (1 + np.exp(2.0))
    second = -(0.25 * np.log(second) + 0.75 * np.log(1 - second))
    found = self_consistency_loss(logits, derived, np.array([True, True, False]))
    assert found == pytest.approx((first + second) / 2, rel=1e-5)


@SLABS
def test_orientation_has_no_sign_and_no_length(slab_voxels):
    rng = np.random.default_rng(0)
    vectors, axes = rng.normal(size=(2, 1, *SHAPE, 3)).astype(np.float32)
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    inside = rng.random((1, *SHAPE)) < 0.3
    cosine = (vectors * axes).sum(-1) / np.linalg.norm(vectors, axis=-1)
    expected = (1 - cosine**2)[inside].mean()
    for x in (vectors, -7 * vectors):
        found = orientation_loss(jnp.asarray(x), axes, inside, slab_voxels=slab_voxels)
        assert found == pytest.approx(expected, rel=1e-4)
    assert orientation_loss(jnp.asarray(vectors), axes, np.zeros_like(inside)) == 0


@SLABS
@pytest.mark.parametrize("of_truth", [False, True])
def test_exponential_weights_and_a_background_channel(slab_voxels, of_truth):
    rng = np.random.default_rng(0)
    maps, points = rng.normal(size=(2, *SHAPE, 4)), rng.uniform(0, 5, (2, 3, 3))
    present = np.array([[True, False, True], [True, True, False]])
    absent = np.array([[False, True, False], [False, False, False]])
    total, channels = 0.0, 0
    for b in range(2):
        heat = 2.0 * targets(points[b]) * present[b]
        closest = heat.max(-1)
        truth = np.concatenate(
            [heat * (closest / np.maximum(heat.sum(-1), 1e-12))[..., None], 1 - closest[..., None]],
            axis=-1,
        )
        np.testing.assert_allclose(truth.sum(-1), 1, atol=1e-6)
        weight = np.exp(truth if of_truth else maps[b])
        error = (weight * (maps[b] - truth) ** 2).mean((0, 1, 2))
        known = [*(present[b] | absent[b]), True]
        total, channels = total + error[known].sum(), channels + sum(known)
    loss = functools.partial(
        exponential_heatmap_loss,
        height=2.0,
        absent=absent,
        of_truth=of_truth,
        slab_voxels=slab_voxels,
        **PLACE,
    )
    args = jnp.asarray(points, jnp.float32), present
    found = jax.jit(loss)(jnp.asarray(maps, jnp.float32), *args)
    assert found == pytest.approx(total / channels, rel=1e-5)


def test_no_gradient_runs_through_predicted_weights():
    # One voxel, far from the landmark: the truth is 0, and 1 for the background.
    far, here = jnp.full((1, 1, 3), 99.0), jnp.ones((1, 1), bool)
    maps = jnp.array([0.5, 0.2]).reshape(1, 1, 1, 1, 2)
    slope = jax.grad(exponential_heatmap_loss)(maps, far, here, **PLACE)
    expected = [2 * 0.5 * np.exp(0.5) / 2, 2 * (0.2 - 1) * np.exp(0.2) / 2]
    np.testing.assert_allclose(slope.ravel(), expected, rtol=1e-5)


def test_distances_of_what_is_present():
    true = jnp.zeros((1, 2, 3))
    moved = jnp.array([[[3.0, 4.0, 0.0], [9.0, 9.0, 9.0]]])
    present = jnp.array([[True, False]])
    assert distance_loss(moved, true, present) == pytest.approx(5.0)
    slope = jax.grad(distance_loss)(true, true, present)
    assert np.isfinite(slope).all()
