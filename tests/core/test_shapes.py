"""Statistics of point sets, on simulated people of whom the truth is known."""

import numpy as np
import pytest

from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.core.shapes import align_shapes, drop_outliers, fit_gaussian, mirror
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
