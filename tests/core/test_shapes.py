"""Statistics of point sets, on simulated people of whom the truth is known."""

import numpy as np
import pytest
from scipy.stats import chi2

from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.core.shapes import (
    align_shapes,
    aligned_to,
    drop_outliers,
    fit_gaussian,
    fit_shapes,
    mirror,
)
from tests.conftest import random_rotation

MIRRORED = np.array([1, 0, 3, 2, 4])
MEAN = np.array([[-20.0, 0, 5], [20, 0, 5], [-8, 15, 0], [8, 15, 0], [0, -10, -9]])


def covariance(rng, scale):
    root = rng.normal(0, scale, (15, 15))
    return root @ root.T / 15 + 0.5 * np.eye(15)


def test_gaussian_with_missing_points_is_found_again():
    rng = np.random.default_rng(0)
    truth = covariance(rng, 2)
    rows = rng.multivariate_normal(MEAN.ravel(), truth, 6000)
    shapes = rows.reshape(-1, 5, 3)
    shapes[rng.random((6000, 5)) < 0.3] = np.nan
    mean, found = fit_gaussian(shapes.reshape(-1, 15))
    np.testing.assert_allclose(mean, MEAN.ravel(), atol=0.15)
    np.testing.assert_allclose(found, truth, atol=0.35)
    # What is left without the rows that miss something says less.
    whole = ~np.isnan(shapes).any((1, 2))
    assert whole.mean() < 0.25


def test_gaussian_without_missing_points_is_the_sample_mean_and_covariance():
    rng = np.random.default_rng(1)
    rows = rng.normal(0, 2, (50, 6)) + np.arange(6)
    mean, found = fit_gaussian(rows, ridge=0.0)
    np.testing.assert_allclose(mean, rows.mean(0))
    np.testing.assert_allclose(found, np.cov(rows.T, bias=True))


def test_gross_outliers_go_and_others_stay():
    rng = np.random.default_rng(2)
    truth = covariance(rng, 1.5)
    shapes = rng.multivariate_normal(MEAN.ravel(), truth, 400).reshape(-1, 5, 3)
    shapes[:20, 3] += [0, 25, 0]
    shapes[30:60, 1] = np.nan
    kept = drop_outliers(shapes, MEAN.ravel(), truth)
    gone = np.isnan(kept[..., 0]) & ~np.isnan(shapes[..., 0])
    assert gone[:20, 3].all()
    gone[:20, 3] = False
    # One in a thousand by chance.
    assert gone.sum() <= 10


def test_alignment_undoes_turning_and_moving_despite_outliers():
    rng = np.random.default_rng(3)
    bodies = MEAN + rng.normal(0, 0.3, (40, 5, 3))
    moved = np.stack(
        [
            apply_affine(compose_affine(random_rotation(rng), rng.normal(0, 50, 3)), b)
            for b in bodies
        ]
    )
    moved[0, 2] += 60
    moved[5:10, 0] = np.nan
    aligned, maps = align_shapes(moved, MIRRORED)
    for shape, matrix, before in zip(aligned, maps, moved, strict=True):
        np.testing.assert_allclose(shape, apply_affine(matrix, before))
    # The mean's frame is free only in its turning about the x axis: distances are not.
    inner = np.delete(aligned, 0, 0)
    mean = np.nanmean(inner, 0)
    for a, b in ((0, 1), (2, 3), (0, 4), (1, 2)):
        expected = np.linalg.norm(MEAN[a] - MEAN[b])
        assert np.linalg.norm(mean[a] - mean[b]) == pytest.approx(expected, abs=0.3)
    assert np.nanmax(np.linalg.norm(inner - mean, axis=-1)) < 2


def test_alignment_is_symmetric():
    rng = np.random.default_rng(4)
    shapes = MEAN + rng.normal(0, 1, (30, 5, 3)) + [3.0, 0, 0]
    aligned, _ = align_shapes(shapes, MIRRORED)
    other, _ = align_shapes(mirror(shapes, MIRRORED), MIRRORED)
    np.testing.assert_allclose(mirror(other, MIRRORED), aligned, atol=1e-2)


def people(rng, count, sd=1.0):
    """Turned and moved shapes of twelve points, whose neighbours vary together."""
    mean = np.random.default_rng(0).normal(0, 20, (12, 3))
    near = np.exp(-np.linalg.norm(mean[:, None] - mean, axis=-1) / 15)
    varied = mean + sd * np.einsum(
        "ij,njc->nic", np.linalg.cholesky(near), rng.normal(size=(count, 12, 3))
    )
    return np.stack(
        [
            apply_affine(compose_affine(random_rotation(rng), rng.normal(0, 30, 3)), s)
            for s in varied
        ]
    )


def test_distances_are_those_of_the_conditional_law():
    rng = np.random.default_rng(1)
    shapes = people(rng, 400)
    model, *_ = fit_shapes(shapes)
    points = people(rng, 1)[0]
    found = model.distances(points)
    moved = (aligned_to(points, model.mean) - model.mean).ravel()
    for k in range(12):
        own, rest = (
            np.arange(3 * k, 3 * k + 3),
            np.delete(np.arange(36), np.arange(3 * k, 3 * k + 3)),
        )
        across = model.covariance[np.ix_(own, rest)]
        gain = across @ np.linalg.inv(model.covariance[np.ix_(rest, rest)])
        law = model.covariance[np.ix_(own, own)] - gain @ across.T
        off = moved[own] - gain @ moved[rest]
        np.testing.assert_allclose(found[k], np.sqrt(off @ np.linalg.solve(law, off)), rtol=1e-6)


def test_distances_of_new_shapes_are_those_of_a_gaussian_in_space():
    rng = np.random.default_rng(2)
    model, left_out, whole = fit_shapes(people(rng, 150))
    fresh = np.stack([model.distances(shape) for shape in people(rng, 100)])
    # The root of chi-squared with three degrees of freedom; the alignment takes a little away.
    fresh_whole = [model.as_a_whole(shape) for shape in people(rng, 40)]
    assert np.median(fresh_whole) == pytest.approx(np.median(whole), rel=0.1)
    for distances in (fresh, left_out):
        assert np.median(distances) == pytest.approx(np.sqrt(chi2.median(3)), rel=0.15)
    # Few shapes know few directions, and are not sure of them.
    few, left_out, _ = fit_shapes(people(rng, 15))
    fresh = np.stack([few.distances(shape) for shape in people(rng, 100)])
    assert np.median(fresh) == pytest.approx(np.median(left_out), rel=0.3)


def test_unlikely_points_are_found_and_their_neighbours_are_not():
    rng = np.random.default_rng(3)
    model, left_out, whole = fit_shapes(people(rng, 150))
    limit = np.quantile(left_out.max(1), 0.99)
    wrong = 0
    for shape in people(rng, 50):
        wrong += bool(model.unlikely(shape, limit))
        axes = rng.normal(size=(2, 3))
        shape[[2, 7]] += 15 * axes / np.linalg.norm(axes, axis=1, keepdims=True)
        found = model.unlikely(shape, limit)
        # Two of twelve are left out.
        assert model.as_a_whole(shape) < 2.5 < model.distances(shape).max()
        assert {2, 7} <= {*found} and len(found) <= 4
    assert wrong <= 3


def test_a_mirror_image_is_like_nobody_also_in_a_picture():
    rng = np.random.default_rng(4)
    shapes = people(rng, 60)
    model, left_out, whole = fit_shapes(shapes)
    own, mirrored = shapes[0], shapes[0] * [-1, 1, 1]
    assert np.median(model.distances(own)) < 2 and np.median(model.distances(mirrored)) > 5
    # Turned over, a picture would fit: a rotation in space makes its mirror image.
    flat = np.random.default_rng(0).normal(0, 20, (12, 3)) + rng.normal(size=(60, 12, 3))
    flat[..., 2] = 0
    model, *_ = fit_shapes(flat)
    own, mirrored = flat[0], flat[0] * [-1, 1, 1]
    assert np.median(model.distances(own)) < 2 and np.median(model.distances(mirrored)) > 5


def test_points_that_few_shapes_have_are_not_judged_and_few_shapes_say_nothing():
    rng = np.random.default_rng(5)
    shapes = people(rng, 40)
    shapes[5:, 3] = np.nan
    shapes[rng.random((40, 12)) < 0.1] = np.nan
    model, left_out, whole = fit_shapes(shapes)
    found = model.distances(people(rng, 1)[0])
    assert np.isnan(found[3]) and np.isfinite(np.delete(found, 3)).all()
    assert np.isnan(left_out[np.isnan(shapes[..., 0])]).all()
    assert np.isnan(model.distances(np.full((12, 3), np.nan))).all()
    assert np.isnan(model.distances(np.arange(12.0)[:, None] * [1, 2, 3])).all()
    assert fit_shapes(shapes[:7]) is None and fit_shapes(shapes[:, :4]) is None
    assert fit_shapes(shapes[:0]) is None
