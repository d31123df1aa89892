"""Rendering and decoding of heatmaps, against NumPy and against known positions."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmark.core.heatmaps import decode_argmax, decode_subvoxel, gaussians, spatial_softmax

SHAPE, SPACING, SIGMA = (16, 14, 10), (1.0, 1.2, 1.6), 2.0


def reference(points, shape, spacing, sigma):
    """Tan et al. 2023, Eq. 1, one voxel at a time."""
    out = np.zeros((len(points), *shape, len(points[0])))
    for b, case in enumerate(points):
        for k, centre in enumerate(case):
            for voxel in np.ndindex(shape):
                d = (np.array(voxel) - centre) * spacing
                out[(b, *voxel, k)] = np.exp(-(d @ d) / (2 * sigma**2))
    return out


def test_gaussians_are_equation_1():
    points = np.random.default_rng(0).uniform(-1, 12, (2, 3, 3))
    found = jax.jit(lambda p: gaussians(p, SHAPE, SPACING, SIGMA))(points.astype(np.float32))
    np.testing.assert_allclose(found, reference(points, SHAPE, SPACING, SIGMA), atol=2e-6)


def test_peak_of_a_landmark_on_a_voxel_is_one():
    heatmap = gaussians(jnp.array([[[3.0, 4.0, 5.0]]]), SHAPE, SPACING, SIGMA)
    assert heatmap.max() == 1 and heatmap[0, 3, 4, 5, 0] == 1


def test_argmax_is_the_brightest_voxel_of_each_channel():
    heatmaps = np.random.default_rng(1).normal(size=(2, *SHAPE, 4)).astype(np.float32)
    position, score = decode_argmax(jnp.asarray(heatmaps))
    for b in range(2):
        for k in range(4):
            best = np.unravel_index(heatmaps[b, ..., k].argmax(), SHAPE)
            assert tuple(position[b, k].astype(int)) == best
            assert score[b, k] == heatmaps[(b, *best, k)]


def test_subvoxel_is_exact_on_a_gaussian_and_better_than_argmax_under_noise():
    rng = np.random.default_rng(2)
    truth = rng.uniform(4.5, 8.5, (4, 3, 3)) * [1, 0.9, 0.6]
    clean = gaussians(jnp.asarray(truth, jnp.float32), SHAPE, SPACING, SIGMA)
    peak, _ = decode_argmax(clean)
    fine = decode_subvoxel(clean, peak, SPACING, SIGMA)
    assert np.abs((fine - truth) * np.array(SPACING)).max() < 0.06
    assert np.linalg.norm((peak - truth) * np.array(SPACING), axis=-1).mean() > 0.4

    noisy = clean + 0.05 * rng.normal(size=clean.shape).astype(np.float32)
    peak, _ = decode_argmax(noisy)
    fine = decode_subvoxel(noisy, peak, SPACING, SIGMA)
    coarse_error, fine_error = (
        np.linalg.norm((p - truth) * np.array(SPACING), axis=-1).mean() for p in (peak, fine)
    )
    assert fine_error < 0.3 * coarse_error


def test_subvoxel_stays_at_the_maximum_where_nothing_is_positive():
    heatmaps = jnp.full((1, *SHAPE, 1), -1.0).at[0, 2, 3, 4, 0].set(-0.5)
    peak, _ = decode_argmax(heatmaps)
    np.testing.assert_array_equal(
        decode_subvoxel(heatmaps, peak, SPACING, SIGMA), [[[2.0, 3.0, 4.0]]]
    )


def test_subvoxel_at_the_corner_of_the_volume():
    truth = jnp.array([[[0.3, 0.2, 9.1]]])
    heatmaps = gaussians(truth, SHAPE, SPACING, SIGMA)
    peak, _ = decode_argmax(heatmaps)
    fine = decode_subvoxel(heatmaps, peak, SPACING, SIGMA)
    # Half of the spot is cut away: the position is drawn inwards, but stays within a sigma.
    assert np.isfinite(fine).all()
    assert np.linalg.norm((fine - truth) * np.array(SPACING)) < SIGMA


def test_softmax_of_a_log_gaussian_is_the_gaussian_with_peak_one():
    wide = (40, 40, 30)
    heatmap = gaussians(jnp.array([[[20.0, 19.0, 15.0]]]), wide, SPACING, SIGMA)
    found = spatial_softmax(jnp.log(jnp.maximum(heatmap, 1e-30)) + 3.0, SPACING, SIGMA)
    np.testing.assert_allclose(found, heatmap, atol=1e-4)
