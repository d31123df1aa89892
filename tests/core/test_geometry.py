"""Fits, angles and the choice of a template, against closed forms and planted answers."""

import numpy as np
import pytest
from conftest import random_rotation

from jaxmark.core.geometry import (
    apply_affine,
    compose_affine,
    fit_rigid,
    pick_template,
    rotation_angle_degrees,
    spread_rotations,
)


def _turn_about_z(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def test_apply_affine_composes_and_keeps_leading_axes() -> None:
    rng = np.random.default_rng(0)
    first, second = (compose_affine(rng.normal(size=(3, 3)), rng.normal(size=3)) for _ in range(2))
    points = rng.normal(size=(2, 5, 3))
    once = apply_affine(second @ first, points)
    assert once.shape == points.shape
    np.testing.assert_allclose(once, apply_affine(second, apply_affine(first, points)))


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 30.0, 120.0, 179.999999, 180.0])
def test_rotation_angle_is_exact_also_at_the_ends(degrees: float) -> None:
    basis = random_rotation(np.random.default_rng(1))
    angle = rotation_angle_degrees(basis @ _turn_about_z(degrees) @ basis.T)
    assert angle == pytest.approx(degrees, abs=1e-7)


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_fit_recovers_a_known_map_from_the_points_that_count(scale: float) -> None:
    rng = np.random.default_rng(2)
    truth = compose_affine(scale * random_rotation(rng), np.array([10.0, -20, 5]))
    source = rng.normal(size=(8, 3))
    target = apply_affine(truth, source)
    target[3], source[5] = 1e3, np.nan
    weights = np.ones(8)
    weights[[3, 5]] = 0
    fit = fit_rigid(source, target, weights, scale=scale != 1.0)
    np.testing.assert_allclose(fit, truth, atol=1e-10)
    np.testing.assert_array_equal(fit, fit_rigid(source, target, weights > 0, scale=scale != 1.0))


def test_fit_to_a_mirror_image_is_still_a_rotation() -> None:
    source = np.random.default_rng(3).normal(size=(9, 3))
    fit = fit_rigid(source, source * [-1, 1, 1])
    assert np.linalg.det(fit[:3, :3]) == pytest.approx(1.0)


def test_fit_is_no_worse_than_its_neighbours() -> None:
    rng = np.random.default_rng(4)
    source, target, weights = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)), rng.uniform(size=7)
    fit = fit_rigid(source, target, weights, scale=True)

    def error(matrix: np.ndarray) -> float:
        return float(weights @ ((apply_affine(matrix, source) - target) ** 2).sum(-1))

    for _ in range(50):
        turn = fit_rigid(np.eye(3), np.eye(3) + 0.01 * rng.normal(size=(3, 3)), scale=True)
        assert error(fit) <= error(turn @ fit)


@pytest.mark.parametrize(
    "points", [np.eye(3)[:2], np.outer(np.arange(4.0), [1, 2, 3])], ids=["two", "on a line"]
)
def test_fit_refuses_points_that_leave_the_rotation_open(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="3 points"):
        fit_rigid(points, points)


def test_spread_rotations_are_rotations_that_leave_no_gap() -> None:
    spread = spread_rotations(1000)
    identity = np.broadcast_to(np.eye(3), spread.shape)
    np.testing.assert_allclose(spread @ np.swapaxes(spread, 1, 2), identity, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(spread), 1)
    rng = np.random.default_rng(5)
    gaps = [rotation_angle_degrees(spread @ random_rotation(rng)).min() for _ in range(300)]
    assert max(gaps) < 20


def test_template_is_the_case_nearest_to_the_mean_shape() -> None:
    rng = np.random.default_rng(7)
    typical = rng.normal(size=(10, 3)) * 20
    noise_mm = np.array([3.0, 2.0, 0.1, 2.5, 4.0])
    cases = []
    for sd in noise_mm:
        place = compose_affine(random_rotation(rng), rng.normal(size=3) * 50)
        cases.append(apply_affine(place, typical + sd * rng.normal(size=(10, 3))))
    landmarks, present = np.stack(cases), rng.uniform(size=(5, 10)) > 0.2
    landmarks[~present] = np.nan
    assert pick_template(landmarks, present) == 2


def test_template_has_typical_size_and_enough_landmarks() -> None:
    shape = np.random.default_rng(8).normal(size=(6, 3))
    landmarks = np.stack([1.3 * shape, shape, 0.7 * shape, shape])
    present = np.ones((4, 6), bool)
    present[1, 2:] = False
    assert pick_template(landmarks, present) == 3


def test_template_needs_a_case_with_three_landmarks() -> None:
    present = np.zeros((2, 5), bool)
    present[:, :2] = True
    with pytest.raises(ValueError, match="3 landmarks"):
        pick_template(np.zeros((2, 5, 3)), present)
