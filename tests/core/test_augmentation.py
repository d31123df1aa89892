"""Volume and landmarks must move together, and by what the settings say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxmark.core import augmentation
from jaxmark.core.heatmaps import decode, gaussians

CROP, MARGIN, SPACING = (16, 14, 12), 4, (1.0, 1.2, 1.5)
FULL = tuple(n + 2 * MARGIN for n in CROP)
OFF = {
    "translation_voxels": 0,
    "rotation_degrees": 0.0,
    "scale": 0.0,
    "contrast": 0.0,
    "brightness": 0.0,
    "noise": 0.0,
}


def volumes(batch=3, landmarks=1):
    """Volumes that show their landmark as a spot, so that decoding tells where it went."""
    centre = np.array([(n - 1) / 2 for n in FULL])
    points = centre + np.random.default_rng(0).uniform(-1, 1, (batch, landmarks, 3))
    points = jnp.asarray(points, jnp.float32)
    return gaussians(points, FULL, SPACING, 2.0), points


def augment(key, image, points, **changes):
    settings = {**OFF, **changes}
    return augmentation.augment(key, image, points, margin=MARGIN, spacing_mm=SPACING, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"translation_voxels": 3},
        {"translation_voxels": 2, "rotation_degrees": 25.0},
        {"translation_voxels": 1, "rotation_degrees": 10.0, "scale": 0.15},
    ],
)
def test_landmarks_follow_the_volume(settings):
    image, points = volumes()
    found, moved = jax.jit(lambda k: augment(k, image, points, **settings))(jax.random.key(3))
    assert found.shape == (3, *CROP, 1) and found.dtype == jnp.float32
    _, seen, *_ = decode(found, lambda x: x, spacing_mm=SPACING, sigma_mm=2.0, softmax=False)
    np.testing.assert_allclose(seen * np.array(SPACING), moved * np.array(SPACING), atol=0.2)
    # Something did move, and each volume by its own amount.
    shift = np.asarray(moved - (points - MARGIN))
    assert np.abs(shift).max() > 0.5 and not np.allclose(shift[0], shift[1])


def test_nothing_set_is_the_centre_crop():
    image, points = volumes()
    found, moved = augment(jax.random.key(0), image, points)
    np.testing.assert_array_equal(found, augmentation.centre_crop(image, MARGIN))
    np.testing.assert_array_equal(moved, points - MARGIN)


def test_centre_crop_without_margin_is_everything():
    image, _ = volumes()
    np.testing.assert_array_equal(augmentation.centre_crop(image, 0), image)


def test_translation_stays_within_its_bound_and_reaches_it():
    image, points = volumes(batch=1)
    shifts = []
    for seed in range(60):
        _, moved = augment(jax.random.key(seed), image, points, translation_voxels=2)
        shifts.append(np.asarray(moved - (points - MARGIN))[0, 0])
    shifts = np.array(shifts)
    assert np.array_equal(shifts, shifts.round())
    assert shifts.min() == -2 and shifts.max() == 2


def test_a_turned_view_agrees_with_scipy():
    image = np.random.default_rng(1).normal(size=(1, *FULL, 1)).astype(np.float32)
    affine = augmentation.random_affines(jax.random.key(5), 1, degrees=20.0, scale=0.1)
    offset = jnp.array([[0.5, -1.25, 0.75]])
    view = augmentation.View(affine, offset)
    found = augmentation.view_image(jnp.asarray(image), view, margin=MARGIN, spacing_mm=SPACING)
    a = np.asarray(affine[0], np.float64)
    linear = np.diag(1 / np.array(SPACING)) @ a @ np.diag(SPACING)
    centre = (np.array(CROP) - 1) / 2
    expected = ndimage.affine_transform(
        image[0, ..., 0].astype(np.float64),
        linear,
        centre + MARGIN + np.asarray(offset[0]) - linear @ centre,
        output_shape=CROP,
        order=1,
        mode="nearest",
    )
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=2e-3)


def test_rotations_are_rigid_in_millimetres_and_bounded():
    matrices = np.asarray(
        augmentation.random_affines(jax.random.key(0), 200, degrees=30.0, scale=0.0)
    )
    np.testing.assert_allclose(
        matrices @ matrices.swapaxes(1, 2), np.tile(np.eye(3), (200, 1, 1)), atol=1e-5
    )
    angle = np.degrees(np.arccos(np.clip((np.trace(matrices, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert 25 < angle.max() <= 30.01
    scaled = np.asarray(augmentation.random_affines(jax.random.key(0), 200, degrees=0.0, scale=0.2))
    factor = np.cbrt(np.linalg.det(scaled))
    assert 0.8 <= factor.min() < 0.85 and 1.15 < factor.max() <= 1.2


def test_intensity_changes_leave_landmarks_alone():
    image, points = volumes()
    found, moved = augment(
        jax.random.key(1), image, points, contrast=0.2, brightness=0.1, noise=0.05
    )
    np.testing.assert_array_equal(moved, points - MARGIN)
    plain = augmentation.centre_crop(image, MARGIN)
    assert 0.01 < np.abs(np.asarray(found - plain)).mean() < 0.3
