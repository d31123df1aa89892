"""Maps by landmarks: exact where they can be, weighted, and hard to bend by one wrong pair."""

import numpy as np
import pytest
from conftest import random_rotation
from scipy.interpolate import RBFInterpolator
from scipy.stats import f as f_distribution

from jaxmark import main
from jaxmark.core.alignment import (
    KINDS,
    LEAST_PAIRS,
    Transform,
    choose_smoothing,
    fit,
    fit_affine,
    fit_thin_plate,
    leave_one_out_mm,
    variance_of_radii,
)
from jaxmark.core.geometry import apply_affine, compose_affine, fit_rigid

EXACT = {"rtol": 0, "atol": 1e-9}


def landmarks(rng, count=15):
    return rng.normal(0, 30, (count, 3))


def map_of(kind, rng):
    """(4, 4): one that this kind can be, and the simpler ones can't."""
    turn = random_rotation(rng)
    linear = {
        "rigid": turn,
        "similarity": 1.3 * turn,
        "affine": turn @ (np.eye(3) + rng.normal(0, 0.2, (3, 3))),
        "thin_plate": turn @ (np.eye(3) + rng.normal(0, 0.2, (3, 3))),
    }[kind]
    return compose_affine(linear, rng.normal(0, 50, 3))


def test_flags_name_the_kinds_that_there_are():
    assert main.TRANSFORMS == KINDS


@pytest.mark.parametrize("variance", [None, 1.5])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_finds_its_map_exactly(kind, variance):
    rng = np.random.default_rng(0)
    fixed, matrix = landmarks(rng), map_of(kind, rng)
    known = None if variance is None else np.full(len(fixed), variance)
    found = fit(kind, fixed, apply_affine(matrix, fixed), known)
    elsewhere = landmarks(rng, 50)
    np.testing.assert_allclose(
        found.transform(elsewhere), apply_affine(matrix, elsewhere), rtol=0, atol=1e-4
    )
    assert np.isclose(found.weights.sum(), 1)
    alone = leave_one_out_mm(kind, fixed, apply_affine(matrix, fixed), known)
    np.testing.assert_allclose(alone, 0, atol=1e-4)


def test_a_simpler_kind_can_not_be_a_richer_one():
    rng = np.random.default_rng(1)
    fixed = landmarks(rng)
    for kind, richer in zip(KINDS, KINDS[1:3], strict=False):
        moving = apply_affine(map_of(richer, rng), fixed)
        left = np.linalg.norm(fit(kind, fixed, moving).transform(fixed) - moving, axis=1)
        assert left.mean() > 1


def test_an_affine_fit_is_that_of_least_weighted_squares():
    rng = np.random.default_rng(2)
    fixed, weights = landmarks(rng, 9), rng.uniform(0.1, 5, 9)
    moving = apply_affine(map_of("affine", rng), fixed) + rng.normal(0, 2, (9, 3))
    # The normal equations, whose columns are x, y, z and 1.
    columns = np.column_stack([fixed, np.ones(9)])
    solution = np.linalg.solve(
        columns.T @ (weights[:, None] * columns), columns.T @ (weights[:, None] * moving)
    )
    np.testing.assert_allclose(fit_affine(fixed, moving, weights)[:3].T, solution, rtol=1e-9)
    assert not np.allclose(fit_affine(fixed, moving)[:3].T, solution, rtol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 3.0, "unequal"])
def test_a_thin_plate_spline_is_scipys(smoothing):
    rng = np.random.default_rng(3)
    fixed = landmarks(rng, 12)
    moving = fixed + rng.normal(0, 6, (12, 3)) + [100, -50, 20]
    each = rng.uniform(0, 20, 12) if smoothing == "unequal" else np.full(12, smoothing)
    ours = fit_thin_plate(fixed, moving, each)
    theirs = RBFInterpolator(fixed, moving, kernel="linear", degree=1, smoothing=each)
    points = landmarks(rng, 200)
    np.testing.assert_allclose(ours(points), theirs(points), rtol=0, atol=1e-8)
    if smoothing == 0:
        np.testing.assert_allclose(ours(fixed), moving, **EXACT)
    else:
        assert np.linalg.norm(ours(fixed) - moving, axis=1).max() > 0.5


def test_much_smoothing_leaves_the_affine_map():
    rng = np.random.default_rng(4)
    fixed, variance = landmarks(rng, 10), rng.uniform(1, 4, 10)
    moving = fixed + rng.normal(0, 3, (10, 3))
    spline = fit_thin_plate(fixed, moving, 1e9 * variance)
    affine = fit_affine(fixed, moving, 1 / variance)
    np.testing.assert_allclose(spline(fixed), apply_affine(affine, fixed), rtol=0, atol=1e-5)


def test_smoothing_is_the_likeliest_one():
    # The same likelihood, written down with whole covariance matrices.
    rng = np.random.default_rng(5)
    fixed, variance = landmarks(rng, 14), rng.uniform(0.5, 2, 14)
    distances = np.linalg.norm(fixed[:, None] - fixed, axis=-1)
    columns = np.column_stack([fixed, np.ones(14)])
    contrasts = np.linalg.svd(columns.T)[2][4:]
    field = np.linalg.cholesky(contrasts @ (-0.2 * distances) @ contrasts.T)
    bent = contrasts.T @ field @ rng.normal(0, 1, (10, 3))
    moving = fixed + bent + np.sqrt(variance)[:, None] * rng.normal(0, 1, (14, 3))

    def surprise(smoothing):
        covariance = contrasts @ (np.diag(variance) - distances / smoothing) @ contrasts.T
        seen = contrasts @ moving
        mahalanobis = np.einsum("ia,ij,ja->", seen, np.linalg.inv(covariance), seen)
        return mahalanobis + 3 * np.linalg.slogdet(covariance)[1]

    found = choose_smoothing(fixed, moving, variance)
    others = found * np.geomspace(0.01, 100, 101)
    assert surprise(found) <= min(map(surprise, others)) + 1e-2
    # Between 1 / 0.2 and ten times more or less: the field was drawn with 0.2 mm^2 per mm.
    assert 0.5 < found < 50


def test_radii_decide_what_a_spline_follows():
    rng = np.random.default_rng(6)
    fixed = landmarks(rng, 16)
    moving = fixed + 5 * np.sin(fixed / 20)
    after = [
        np.linalg.norm(
            fit("thin_plate", fixed, moving, np.full(16, v)).transform(fixed) - moving, axis=1
        )
        for v in (1e-4, 0.5, 1e4)
    ]
    left = [float(part.mean()) for part in after]
    assert left[0] < 0.05 < left[1] < left[2]
    # Without radii it goes through all landmarks.
    through = fit("thin_plate", fixed, moving).transform(fixed)
    np.testing.assert_allclose(through, moving, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_weights_matter(kind):
    rng = np.random.default_rng(7)
    fixed = landmarks(rng, 12)
    truth = compose_affine(random_rotation(rng), np.array([5.0, 6, 7]))
    noise = np.where(np.arange(12) < 6, 0.01, 3.0)
    moving = apply_affine(truth, fixed) + noise[:, None] * rng.normal(0, 1, (12, 3))
    points = landmarks(rng, 50)

    def error(variance):
        mapped = fit(kind, fixed, moving, variance).transform(points)
        return float(np.linalg.norm(mapped - apply_affine(truth, points), axis=1).mean())

    assert error(noise**2) < 0.1
    assert error(np.full(12, 3.0)) > 0.4


@pytest.mark.parametrize("variance", [None, 0.25])
@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_one_pair_far_off_bends_little(kind, variance):
    rng = np.random.default_rng(8)
    fixed = landmarks(rng, 16)
    truth = map_of(kind, rng)
    moving = apply_affine(truth, fixed) + rng.normal(0, 0.5, (16, 3))
    known = None if variance is None else np.full(16, variance)
    points = landmarks(rng, 50)

    def error(targets):
        mapped = fit(kind, fixed, targets, known).transform(points)
        return float(np.linalg.norm(mapped - apply_affine(truth, points), axis=1).mean())

    wrong = moving.copy()
    wrong[3] += [25, -20, 10]
    plain = {"rigid": fit_rigid, "similarity": lambda a, b: fit_rigid(a, b, scale=True)}
    bent = apply_affine(plain.get(kind, fit_affine)(fixed, wrong), points)
    assert np.linalg.norm(bent - apply_affine(truth, points), axis=1).mean() > 2
    assert error(wrong) < error(moving) + 0.3
    trust = fit(kind, fixed, wrong, known).trust
    assert trust.argmin() == 3 and trust[3] < 0.1
    assert (np.delete(trust, 3) > 0.3).all() and trust.max() == 1


def test_a_spline_with_radii_does_not_follow_a_pair_far_off():
    rng = np.random.default_rng(9)
    fixed, known = landmarks(rng, 16), np.full(16, 0.25)
    moving = fixed + rng.normal(0, 0.5, (16, 3))
    moving[5] += [0, 30, 0]
    near = fixed[5] + rng.normal(0, 2, (20, 3))
    found = fit("thin_plate", fixed, moving, known)
    assert np.linalg.norm(found.transform(near) - near, axis=1).max() < 2
    assert found.trust.argmin() == 5


def test_leave_one_out_is_the_error_at_what_was_left_out():
    rng = np.random.default_rng(10)
    fixed = landmarks(rng, 8)
    moving = fixed + rng.normal(0, 2, (8, 3))
    found = leave_one_out_mm("affine", fixed, moving)
    others = np.arange(8) != 2
    transform = fit("affine", fixed[others], moving[others]).transform
    assert np.isclose(found[2], np.linalg.norm(transform(fixed[2]) - moving[2]))
    left = np.linalg.norm(fit("affine", fixed, moving).transform(fixed) - moving, axis=1)
    assert found.mean() > left.mean()
    # One pair less does not determine a map.
    assert np.isnan(leave_one_out_mm("affine", fixed[:4], moving[:4])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_or_flat_landmarks_are_refused(kind):
    rng = np.random.default_rng(11)
    fixed = landmarks(rng, LEAST_PAIRS[kind])
    np.testing.assert_allclose(fit(kind, fixed, fixed + 1).transform(fixed), fixed + 1, atol=1e-4)
    with pytest.raises(ValueError, match=f"needs {LEAST_PAIRS[kind]} landmarks, got"):
        fit(kind, fixed[1:], fixed[1:])
    line = np.outer(np.arange(9.0), [1, 2, 3])
    with pytest.raises(ValueError, match=r"one line|one plane"):
        fit(kind, line, line)


def test_a_flat_set_has_no_affine_map_but_a_rigid_one():
    flat = np.column_stack([np.random.default_rng(12).normal(0, 20, (8, 2)), np.zeros(8)])
    for kind in ("affine", "thin_plate"):
        with pytest.raises(ValueError, match="one plane"):
            fit(kind, flat, flat)
    np.testing.assert_allclose(fit("rigid", flat, flat + 2).transform(flat), flat + 2, **EXACT)


def test_two_landmarks_in_one_place_do_no_harm():
    rng = np.random.default_rng(13)
    fixed = landmarks(rng, 10)
    fixed[4] = fixed[7]
    moving = fixed + rng.normal(0, 1, (10, 3))
    there = fit("thin_plate", fixed, moving).transform(fixed)
    np.testing.assert_allclose(there[4], (moving[4] + moving[7]) / 2, atol=1e-3)


def test_the_jacobian_is_the_derivative_and_points_are_pulled_back():
    rng = np.random.default_rng(14)
    fixed = landmarks(rng, 9)
    transform = fit_thin_plate(fixed, fixed + rng.normal(0, 3, (9, 3)), np.zeros(9))
    points = landmarks(rng, 20)
    steps = 1e-5 * np.eye(3)
    numeric = [(transform(points + s) - transform(points - s)) / 2e-5 for s in steps]
    np.testing.assert_allclose(transform.jacobian(points), np.stack(numeric, -1), atol=1e-6)
    # A tenth of a millimetre off: what first order leaves is far less.
    near = points + rng.normal(0, 0.1, (20, 3))
    back = transform.pulled_back(transform(points), near)
    assert np.linalg.norm(back - points, axis=1).max() < 0.02
    linear = Transform(map_of("affine", rng))
    np.testing.assert_allclose(linear.pulled_back(linear(points), points + 9), points, **EXACT)


def test_a_radius_is_a_quantile_of_the_error():
    # Errors that are drawn: multivariate t with 4 degrees of freedom.
    rng = np.random.default_rng(15)
    radius = np.array([1.0, 4.0])
    scale = np.sqrt(variance_of_radii(radius, 0.9))
    heavy = rng.normal(0, 1, (50000, 3)) / np.sqrt(rng.chisquare(4, (50000, 1)) / 4)
    for r, s in zip(radius, scale, strict=True):
        assert abs((np.linalg.norm(s * heavy, axis=1) < r).mean() - 0.9) < 0.01
    np.testing.assert_allclose((radius / scale) ** 2, 3 * f_distribution(3, 4).ppf(0.9))


def test_an_unknown_radius_counts_as_the_largest_known_one():
    found = variance_of_radii(np.array([1.0, np.inf, 3.0]), 0.9)
    assert found[1] == found[2] == 9 * found[0]
    assert np.isinf(variance_of_radii(np.full(3, np.inf), 0.9)).all()
