"""The weighted heatmap loss: by hand, against float64 NumPy, masked, eager and under jit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxmark.core.losses import (
    adversarial_loss,
    discriminator_loss,
    heatmap_cross_entropy,
    weighted_heatmap_loss,
)

SETTINGS = {"spacing_mm": (1.0, 1.0, 2.0), "sigma_mm": 1.5, "alpha": 1000.0}


def loss(prediction, landmarks, present, **changes):
    return weighted_heatmap_loss(prediction, landmarks, present, **{**SETTINGS, **changes})


def reference(prediction, landmarks, present, spacing_mm, sigma_mm, alpha):
    total, count = 0.0, 0
    shape = prediction.shape[1:4]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    for b, k in zip(*np.nonzero(present), strict=True):
        squared = (((grid - landmarks[b, k]) * spacing_mm) ** 2).sum(-1)
        target = np.exp(-squared / (2 * sigma_mm**2))
        total += (alpha**target * (target - prediction[b, ..., k]) ** 2).mean()
        count += 1
    return total / max(count, 1)


def case(seed=0):
    rng = np.random.default_rng(seed)
    prediction = rng.normal(size=(2, 6, 5, 4, 3))
    landmarks = rng.uniform(0, 5, (2, 3, 3))
    return prediction, landmarks, np.array([[True, False, True], [True, True, False]])


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_agrees_with_float64_numpy(transform):
    prediction, landmarks, present = case()
    found = transform(loss)(
        jnp.asarray(prediction, jnp.float32), jnp.asarray(landmarks, jnp.float32), present
    )
    np.testing.assert_allclose(
        found, reference(prediction, landmarks, present, **SETTINGS), rtol=2e-5
    )


def test_by_hand_on_one_voxel():
    # The landmark is on the only voxel: H = 1, w = 1000, so 1000 * (1 - 0.25)^2.
    found = loss(jnp.full((1, 1, 1, 1, 1), 0.25), jnp.zeros((1, 1, 3)), jnp.ones((1, 1), bool))
    np.testing.assert_allclose(found, 1000 * 0.75**2, rtol=1e-5)
    # Far from it: H = 0, w = 1.
    far = jnp.full((1, 1, 3), 50.0)
    found = loss(jnp.full((1, 1, 1, 1, 1), 0.25), far, jnp.ones((1, 1), bool))
    np.testing.assert_allclose(found, 0.0625, rtol=1e-5)


def test_absent_landmarks_have_no_say():
    prediction, landmarks, present = case()
    changed = np.where(present[..., None], landmarks, 777.0)
    noisy = prediction + 9 * ~present[:, None, None, None, :]
    a, b = (
        loss(jnp.asarray(p, jnp.float32), jnp.asarray(x, jnp.float32), present)
        for p, x in ((prediction, landmarks), (noisy, changed))
    )
    assert a == b
    gradient = jax.grad(loss)(jnp.asarray(prediction, jnp.float32), landmarks, present)
    assert (np.abs(gradient).sum((1, 2, 3)) > 0).tolist() == present.tolist()


def test_no_landmark_at_all_is_zero_not_nan():
    prediction, landmarks, present = case()
    value, gradient = jax.value_and_grad(loss)(
        jnp.asarray(prediction, jnp.float32), landmarks, np.zeros_like(present)
    )
    assert value == 0 and not np.any(gradient)


def test_gradient_by_finite_differences():
    prediction, landmarks, present = case()
    with jax.enable_x64(True):
        check_grads(
            lambda p: weighted_heatmap_loss(
                p, jnp.asarray(landmarks), present, **{**SETTINGS, "alpha": 10.0}
            ),
            (jnp.asarray(prediction),),
            order=1,
            modes=["rev"],
            # The loss is computed in float32 whatever comes in.
            rtol=2e-2,
            atol=2e-2,
            eps=1e-2,
        )


def test_half_precision_predictions_are_scored_in_float32():
    prediction, landmarks, present = case()
    half = jnp.asarray(prediction, jnp.bfloat16)
    assert loss(half, landmarks, present) == loss(half.astype(jnp.float32), landmarks, present)


PLACE = {"spacing_mm": (1.0, 1.0, 2.0), "sigma_mm": 1.5}


def cross_entropy_reference(logits, landmarks, present, spacing_mm, sigma_mm):
    shape = logits.shape[1:4]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    values = []
    for b, k in zip(*np.nonzero(present), strict=True):
        squared = (((grid - landmarks[b, k]) * spacing_mm) ** 2).sum(-1)
        target = np.exp(-squared / (2 * sigma_mm**2))
        target /= target.sum()
        chance = np.exp(logits[b, ..., k])
        values.append(-(target * np.log(chance / chance.sum())).sum())
    return np.mean(values)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_cross_entropy_agrees_with_float64_numpy(transform):
    logits, landmarks, present = case()
    landmarks = np.minimum(landmarks, np.array(logits.shape[1:4]) - 1)
    found = transform(lambda *a: heatmap_cross_entropy(*a, **PLACE))(
        jnp.asarray(logits, jnp.float32), jnp.asarray(landmarks, jnp.float32), present
    )
    expected = cross_entropy_reference(logits, landmarks, present, **PLACE)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_cross_entropy_of_equal_logits_is_the_log_of_the_voxels():
    found = heatmap_cross_entropy(
        jnp.full((1, 4, 4, 4, 1), 7.0), jnp.full((1, 1, 3), 2.0), jnp.ones((1, 1), bool), **PLACE
    )
    np.testing.assert_allclose(found, np.log(64), rtol=1e-6)


def test_cross_entropy_leaves_out_absent_landmarks_and_those_outside():
    logits, landmarks, present = case()
    landmarks[0, 0] = [-0.6, 1, 1]
    gradient = jax.grad(
        lambda x: heatmap_cross_entropy(x, jnp.asarray(landmarks), present, **PLACE)
    )(jnp.asarray(logits, jnp.float32))
    shape = np.array(logits.shape[1:4])
    counted = present & ((landmarks >= -0.5) & (landmarks <= shape - 0.5)).all(-1)
    assert not counted[0, 0] and counted.any()
    assert (np.abs(gradient).sum((1, 2, 3)) > 0).tolist() == counted.tolist()


def test_adversarial_losses_are_those_of_the_paper():
    # D is the sigmoid of the logits.
    real, fake = np.array([1.5, -0.5]), np.array([0.25, -2.0])
    d_real, d_fake = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    eq3 = -np.log(d_fake).mean()
    eq4 = -np.log(d_real).mean() - np.log(1 - d_fake).mean()
    for wrap in (lambda f: f, jax.jit):
        np.testing.assert_allclose(wrap(adversarial_loss)(jnp.asarray(fake)), eq3, rtol=1e-6)
        np.testing.assert_allclose(
            wrap(discriminator_loss)(jnp.asarray(real), jnp.asarray(fake)), eq4, rtol=1e-6
        )
    # By hand: at logits of 0 every probability is a half.
    zero = jnp.zeros(3)
    np.testing.assert_allclose(adversarial_loss(zero), math.log(2), rtol=1e-6)
    np.testing.assert_allclose(discriminator_loss(zero, zero), 2 * math.log(2), rtol=1e-6)


def test_label_smoothing_moves_the_best_real_logit_only():
    real = jnp.linspace(-6, 6, 1201)
    fake = jnp.array([-50.0])
    losses = jax.vmap(lambda r: discriminator_loss(r[None], fake, label_smoothing=0.1))(real)
    # The smallest loss is where D(H) = 0.9.
    np.testing.assert_allclose(real[losses.argmin()], math.log(0.9 / 0.1), atol=0.011)


def test_adversarial_gradients_neither_vanish_nor_overflow():
    logits = jnp.array([-200.0, 0.0, 200.0])
    gradient = jax.grad(lambda x: adversarial_loss(x) * 3)(logits)
    np.testing.assert_allclose(gradient, [-1.0, -0.5, 0.0], atol=1e-6)
    assert np.isfinite(discriminator_loss(logits, logits))
    d_gradient = jax.grad(lambda x: discriminator_loss(x, -x) * 3)(logits)
    np.testing.assert_allclose(d_gradient, [-2.0, -1.0, 0.0], atol=1e-6)


ABSENT = np.array([[False, True, False], [False, False, False]])


@pytest.mark.parametrize("by_slabs", [False, True])
def test_cross_entropy_with_a_class_for_nowhere_agrees_with_float64_numpy(by_slabs):
    logits, landmarks, present = case()
    landmarks = np.minimum(landmarks, np.array(logits.shape[1:4]) - 1)
    shape = logits.shape[1:4]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    values = []
    for b, k in zip(*np.nonzero(present | ABSENT), strict=True):
        squared = (((grid - landmarks[b, k]) * PLACE["spacing_mm"]) ** 2).sum(-1)
        target = np.exp(-squared / (2 * PLACE["sigma_mm"] ** 2))
        # With all voxels at logit 0 the landmark is there with a probability of 0.8.
        classes = np.append(np.exp(logits[b, ..., k]).ravel(), np.prod(shape) * 0.25)
        wanted = np.append((target / target.sum()).ravel() * present[b, k], ABSENT[b, k])
        values.append(-(wanted * np.log(classes / classes.sum())).sum())
    found = heatmap_cross_entropy(
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(landmarks, jnp.float32),
        present,
        absent=ABSENT,
        presence=0.8,
        head=(lambda x: x) if by_slabs else None,
        **PLACE,
    )
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-5)


def test_what_is_absent_is_pushed_away_and_what_is_unknown_left_alone():
    logits, landmarks, present = case()
    arguments = (jnp.asarray(np.clip(landmarks, 0, 3)), present)
    for loss_of in (
        lambda x: heatmap_cross_entropy(x, *arguments, absent=ABSENT, **PLACE),
        lambda x: weighted_heatmap_loss(x, *arguments, absent=ABSENT, **SETTINGS),
    ):
        x = jnp.abs(jnp.asarray(logits, jnp.float32))
        gradient = np.asarray(jax.grad(loss_of)(x))
        assert (gradient[0, ..., 1] > 0).all()
        assert (gradient[1, ..., 2] == 0).all()


def test_weighted_loss_of_absent_landmarks_is_that_of_empty_heatmaps():
    prediction, landmarks, present = case()
    found = loss(jnp.asarray(prediction, jnp.float32), landmarks, present, absent=ABSENT)
    known = reference(prediction, landmarks, present, **SETTINGS) * present.sum()
    empty = (prediction[0, ..., 1] ** 2).mean()
    np.testing.assert_allclose(found, (known + empty) / (present.sum() + 1), rtol=2e-5)
