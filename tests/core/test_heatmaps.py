"""Rendering and decoding of heatmaps, against NumPy and against known positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.core.heatmaps import (
    cell_masses,
    cell_voxels,
    decode,
    gaussian_cell_masses,
    gaussians,
)

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


def decoded(heatmaps, head=lambda x: x, softmax=False, **slabs):
    """Maximum, sub-voxel peak, height."""
    place = {"spacing_mm": SPACING, "sigma_mm": SIGMA}
    return decode(jnp.asarray(heatmaps), head, softmax=softmax, **place, **slabs)


def test_gaussians_are_equation_1():
    points = np.random.default_rng(0).uniform(-1, 12, (2, 3, 3))
    found = jax.jit(lambda p: gaussians(p, SHAPE, SPACING, SIGMA))(points.astype(np.float32))
    np.testing.assert_allclose(found, reference(points, SHAPE, SPACING, SIGMA), atol=2e-6)


def test_peak_of_a_landmark_on_a_voxel_is_one():
    heatmap = gaussians(jnp.array([[[3.0, 4.0, 5.0]]]), SHAPE, SPACING, SIGMA)
    assert heatmap.max() == 1 and heatmap[0, 3, 4, 5, 0] == 1


def test_argmax_is_the_brightest_voxel_of_each_channel():
    heatmaps = np.random.default_rng(1).normal(size=(2, *SHAPE, 4)).astype(np.float32)
    position, _, score, *_ = decoded(heatmaps)
    for b in range(2):
        for k in range(4):
            best = np.unravel_index(heatmaps[b, ..., k].argmax(), SHAPE)
            assert tuple(position[b, k].astype(int)) == best
            assert score[b, k] == heatmaps[(b, *best, k)]


def test_subvoxel_is_exact_on_a_gaussian_and_better_than_argmax_under_noise():
    rng = np.random.default_rng(2)
    truth = rng.uniform(4.5, 8.5, (4, 3, 3)) * [1, 0.9, 0.6]
    clean = gaussians(jnp.asarray(truth, jnp.float32), SHAPE, SPACING, SIGMA)
    peak, fine, *_ = decoded(clean)
    assert np.abs((fine - truth) * np.array(SPACING)).max() < 0.06
    assert np.linalg.norm((peak - truth) * np.array(SPACING), axis=-1).mean() > 0.4

    noisy = clean + 0.05 * rng.normal(size=clean.shape).astype(np.float32)
    peak, fine, *_ = decoded(noisy)
    coarse_error, fine_error = (
        np.linalg.norm((p - truth) * np.array(SPACING), axis=-1).mean() for p in (peak, fine)
    )
    assert fine_error < 0.3 * coarse_error


def test_subvoxel_stays_at_the_maximum_where_nothing_is_positive():
    heatmaps = jnp.full((1, *SHAPE, 1), -1.0).at[0, 2, 3, 4, 0].set(-0.5)
    _, fine, *_ = decoded(heatmaps)
    np.testing.assert_array_equal(fine, [[[2.0, 3.0, 4.0]]])


def test_subvoxel_at_the_corner_of_the_volume():
    truth = jnp.array([[[0.3, 0.2, 9.1]]])
    heatmaps = gaussians(truth, SHAPE, SPACING, SIGMA)
    peak, fine, *_ = decoded(heatmaps)
    # Half of the spot is cut away: the position is drawn inwards, but stays within a sigma.
    assert np.isfinite(fine).all()
    assert np.linalg.norm((fine - truth) * np.array(SPACING)) < SIGMA


def test_among_equal_voxels_the_first_counts():
    heatmaps = np.zeros((1, *SHAPE, 2), np.float32)
    heatmaps[0, 5, 3, 7, 0] = heatmaps[0, 5, 3, 2, 0] = heatmaps[0, 9, 0, 0, 0] = 1
    position, *_ = decoded(heatmaps)
    np.testing.assert_array_equal(position[0], [[5, 3, 2], [0, 0, 0]])


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("voxels", [1, 14 * 10, 3 * 14 * 10, 10**6])
def test_slabs_change_nothing(voxels, softmax):
    rng = np.random.default_rng(3)
    features = rng.normal(size=(2, *SHAPE, 4)).astype(np.float32)
    weight = rng.normal(size=(4, 3)).astype(np.float32)
    whole = decoded(features @ weight, softmax=softmax)

    def by_slabs(x):
        return decoded(x, lambda part: part @ weight, softmax, slab_voxels=voxels)

    found = jax.jit(by_slabs)(features)
    np.testing.assert_array_equal(found[0], whole[0])
    np.testing.assert_allclose(found[1], whole[1], atol=1e-4)
    np.testing.assert_allclose(found[2], whole[2], rtol=1e-5)
    np.testing.assert_allclose(found.spread_mm, whole.spread_mm, rtol=1e-4)


def test_softmax_of_a_log_gaussian_has_peak_one_and_the_gaussian_s_place():
    wide = (40, 40, 30)
    truth = jnp.array([[[20.2, 19.4, 15.0]]])
    heatmap = gaussians(truth, wide, SPACING, SIGMA)
    logits = jnp.log(jnp.maximum(heatmap, 1e-30)) + 3.0
    _, fine, score, *_ = decoded(logits, softmax=True)
    np.testing.assert_allclose(score, heatmap.max(), atol=1e-4)
    np.testing.assert_allclose(fine, truth, atol=0.03)


def test_cells_fill_the_volume_and_are_no_larger_than_asked():
    assert cell_voxels((192, 160, 96), (0.513, 0.513, 0.8), 8.0) == (12, 10, 8)
    assert cell_voxels((56, 48, 40), (1.6, 1.6, 2.0), 8.0) == (4, 4, 4)
    # A voxel that is larger than a cell is a cell.
    assert cell_voxels((7, 5, 4), (3.0, 3.0, 9.0), 8.0) == (1, 1, 1)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_masses_of_gaussians_are_those_of_their_heatmaps(power):
    points = jnp.array([[[3.3, 4.0, 2.5], [9.0, 0.0, 5.0]]])
    shape, spacing, cell = (12, 8, 6), (1.0, 1.5, 2.0), (3, 4, 2)
    found = gaussian_cell_masses(points, shape, spacing, 2.0, cell, power)
    heatmaps = np.asarray(gaussians(points, shape, spacing, 2.0), np.float64)
    expected = np.zeros((1, 4, 2, 3, 2))
    for i, j, k in np.ndindex(*shape):
        expected[:, i // 3, j // 4, k // 2] += heatmaps[:, i, j, k] ** power
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # What is below zero counts as nothing.
    negative = jnp.asarray(heatmaps, jnp.float32) - 2 * (heatmaps < 0.1)
    masses = cell_masses(negative, cell, power)
    kept = np.where(heatmaps < 0.1, 0, heatmaps) ** power
    np.testing.assert_allclose(masses.sum((1, 2, 3)), kept.sum((1, 2, 3)), rtol=1e-5)


def test_evidence_is_the_log_odds_of_being_somewhere():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, *SHAPE, 3))
    evidence = decoded(jnp.asarray(logits, jnp.float32), softmax=True).evidence
    somewhere = np.exp(logits).sum((1, 2, 3))
    np.testing.assert_allclose(evidence, np.log(somewhere / np.prod(SHAPE)), rtol=1e-4, atol=1e-5)
    # Without a softmax those of the height, kept finite.
    heights = jnp.zeros((1, *SHAPE, 3)).at[0, 2, 2, 2].set(jnp.array([0.5, 0.8, 1.5]))
    evidence = decoded(heights).evidence
    np.testing.assert_allclose(evidence[0], [0, np.log(4), np.log(9999)], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("softmax", [False, True])
def test_the_spread_is_the_root_mean_square_distance_from_the_position(softmax):
    rng = np.random.default_rng(5)
    heatmaps = rng.normal(size=(2, *SHAPE, 3)).astype(np.float32)
    found = decoded(heatmaps, softmax=softmax, slab_voxels=3 * 14 * 10)
    weights = np.exp(heatmaps) if softmax else np.maximum(heatmaps, 0) ** 4
    places = np.stack(np.indices(SHAPE), -1)
    for b in range(2):
        for k in range(3):
            off_mm = (places - np.asarray(found.subvoxel_ijk)[b, k]) * SPACING
            share = weights[b, ..., k] / weights[b, ..., k].sum()
            expected = np.sqrt((share * (off_mm**2).sum(-1)).sum())
            np.testing.assert_allclose(found.spread_mm[b, k], expected, rtol=1e-4)


def test_a_second_spot_makes_the_spread_larger_and_nothing_makes_it_0():
    wide = (40, 40, 30)
    points = jnp.array([[[12.0, 20.0, 15.0], [28.0, 20.0, 15.0]]])
    first, second = jnp.moveaxis(gaussians(points, wide, SPACING, SIGMA), -1, 0)[..., None]
    logits = [jnp.log(h + 1e-30) for h in (first, first + 0.25 * second)]
    one, two = (decoded(h, softmax=True).spread_mm[0, 0] for h in logits)
    assert one == pytest.approx(np.sqrt(3) * SIGMA, rel=1e-2)
    # A fifth of the probability is 16 mm away.
    assert two == pytest.approx(np.sqrt(3 * SIGMA**2 + 0.2 * 16**2), rel=1e-2)
    assert decoded(first + 0.9 * second).spread_mm > 1.5 * decoded(first).spread_mm
    assert decoded(jnp.full((1, *SHAPE, 1), -1.0)).spread_mm == 0
