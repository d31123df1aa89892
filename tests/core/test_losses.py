"""The weighted heatmap loss: by hand, against float64 NumPy, masked, eager and under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxmark.core.losses import weighted_heatmap_loss

SETTINGS = {"spacing_mm": (1.0, 1.0, 2.0), "sigma_mm": 1.5, "alpha": 1000.0}


def loss(prediction, landmarks, present, **changes):
    return weighted_heatmap_loss(prediction, landmarks, present, **{**SETTINGS, **changes})[0]


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
    np.testing.assert_allclose(found, reference(prediction, landmarks, present, **SETTINGS), rtol=2e-5)


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
            )[0],
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
