"""Measures of label maps, against slow loops, and shapes whose answers are known."""

import numpy as np
import pytest

from jaxmark.core import segmentation


def tube(shape, start, step, radius, length):
    """Voxels within `radius` of a straight line; all in voxels."""
    away = np.stack(np.indices(shape), -1) - np.asarray(start, float)
    step = np.asarray(step, float) / np.linalg.norm(step)
    along = away @ step
    return (np.linalg.norm(away - along[..., None] * step, axis=-1) < radius) & (
        np.abs(along) <= length / 2
    )


def test_dice_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, (2, 6, 7, 8)).astype(np.uint8)
    expected = []
    for label in range(1, 5):
        a = {tuple(v) for v in np.argwhere(truth == label)}
        b = {tuple(v) for v in np.argwhere(predicted == label)}
        expected.append(2 * len(a & b) / (len(a) + len(b)))
    np.testing.assert_allclose(segmentation.dice(truth, predicted, 4), expected, rtol=1e-12)


def test_dice_of_what_one_map_or_none_has():
    truth, predicted = np.zeros((2, 3, 3, 3), np.uint8)
    truth[0, 0, 0] = 1
    predicted[1, 1, 1] = 2
    np.testing.assert_array_equal(
        segmentation.dice(truth, predicted, 3), [0, 0, np.nan], strict=True
    )


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("shift", range(5))
def test_centreline_dice_of_shifted_tubes_is_one_until_the_axis_leaves_the_tube(axis, shift):
    # Five voxels wide: the axis of one stays in the other up to a shift of two, where the overlap
    # of the masks has long fallen.
    step = np.eye(3)[axis]
    across = np.eye(3, dtype=int)[(axis + 1) % 3]
    a = tube((41, 41, 41), (20, 20, 20), step, 2.9, 30)
    b = tube((41, 41, 41), 20 + shift * across, step, 2.9, 30)
    found = segmentation.centreline_dice(a, b)
    assert found == (1.0 if shift <= 2 else 0.0)
    (overlap,) = segmentation.dice(a.astype(np.uint8), b.astype(np.uint8), 1)
    assert overlap == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_centreline_dice_is_the_harmonic_mean_of_precision_and_sensitivity():
    truth = tube((60, 21, 21), (30, 10, 10), (1, 0, 0), 2.4, 50)
    predicted = truth.copy()
    predicted[30:] = False
    # Half of the true axis is covered; all of the predicted one lies in the truth.
    axis = segmentation.skeleton(truth)
    sensitivity = (axis & predicted).sum() / axis.sum()
    assert 0.4 < sensitivity < 0.6
    expected = 2 * sensitivity / (1 + sensitivity)
    assert segmentation.centreline_dice(truth, predicted) == pytest.approx(expected)
    assert segmentation.centreline_dice(predicted, truth) == pytest.approx(expected)


def test_centreline_dice_of_nothing():
    empty, full = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    assert np.isnan(segmentation.centreline_dice(empty, empty))
    assert segmentation.centreline_dice(empty, full) == 0
    assert segmentation.centreline_dice(full, empty) == 0


def test_a_skeleton_has_a_part_of_every_piece():
    # A block of an even width is all eaten up by thinning, where it stands beside others, too.
    mask = np.zeros((30, 30, 30), bool)
    mask[2:4, 2:4, 2:11] = mask[10:15, 10:15, 2:25] = mask[20:24, 20:24, 20:24] = True
    thin = segmentation.skeleton(mask)
    assert not (thin & ~mask).any()
    assert segmentation.betti0(thin) == 3
    assert thin[10:15, 10:15].sum() < 30
    assert not segmentation.skeleton(np.zeros((4, 4, 4), bool)).any()


def test_pieces_that_share_a_corner_are_one():
    mask = np.zeros((5, 5, 5), bool)
    assert segmentation.betti0(mask) == 0
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert segmentation.betti0(mask) == 1
    mask[3, 3, 3] = True
    assert segmentation.betti0(mask) == 2
    # A ring is one piece, whatever hole it has.
    ring = np.ones((5, 5, 1), bool)
    ring[1:4, 1:4] = False
    assert segmentation.betti0(ring) == 1


def test_agreement_of_maps_made_by_hand():
    truth = np.zeros((40, 20, 20), np.uint8)
    truth[2:20, 8:11, 8:11] = 1
    truth[20:38, 8:11, 8:11] = 2
    predicted = truth.copy()
    predicted[9:12] = 0  # a gap in the first segment
    predicted[2:5, 15:18, 15:18] = 3  # a segment that is not there
    found = segmentation.agreement(truth, predicted, 4)
    np.testing.assert_allclose(found.dice, [2 * 15 / 33, 1, 0, np.nan])
    np.testing.assert_array_equal(found.betti0_error, [1, 0, 1, np.nan])
    assert found.cldice[1] == 1 and found.cldice[2] == 0 and np.isnan(found.cldice[3])
    assert 0 < found.cldice[0] < 1
    # Of the tree one piece became three.
    assert found.tree_betti0_error == 2
    assert found.tree_dice == pytest.approx(2 * 33 / (36 + 36))
    # Which map is the truth makes no difference to any of them.
    other = segmentation.agreement(predicted, truth, 4)
    for name, value in vars(found).items():
        np.testing.assert_allclose(getattr(other, name), value)


def test_agreement_is_that_of_whole_masks():
    # The measures look at boxes around the segments; these do not.
    rng = np.random.default_rng(1)
    truth, predicted = np.zeros((2, 30, 28, 26), np.uint8)
    for label in (1, 2, 3):
        for labels in (truth, predicted):
            line = tube(labels.shape, rng.uniform(8, 20, 3), rng.standard_normal(3), 2.2, 18)
            labels[line] = label
    found = segmentation.agreement(truth, predicted, 3)
    for label in (1, 2, 3):
        a, b = truth == label, predicted == label
        assert found.cldice[label - 1] == segmentation.centreline_dice(a, b)
        pieces = abs(segmentation.betti0(a) - segmentation.betti0(b))
        assert found.betti0_error[label - 1] == pieces
    assert found.tree_cldice == segmentation.centreline_dice(truth > 0, predicted > 0)


def test_maps_that_fit_neither_each_other_nor_the_segments_are_refused():
    labels = np.zeros((3, 4, 5), np.uint8)
    with pytest.raises(ValueError, match="shapes"):
        segmentation.agreement(labels, labels[1:], 1)
    with pytest.raises(ValueError, match="label 2, of 1 segments"):
        segmentation.agreement(labels, labels + np.uint8(2), 1)
    with pytest.raises(ValueError, match="type float64"):
        segmentation.sizes(labels.astype(float), 1, np.ones(3))


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (0.4, 0.5, 0.8)])
@pytest.mark.parametrize("radius_mm", [0.8, 1.5, 2.5])
def test_the_radius_of_a_tube_at_any_angle(spacing_mm, radius_mm):
    rng = np.random.default_rng(2)
    spacing = np.array(spacing_mm)
    shape = np.ceil(24 / spacing).astype(int)
    for _ in range(4):
        step = rng.standard_normal(3)
        step /= np.linalg.norm(step)
        away = np.stack(np.indices(shape), -1) * spacing - 12 - rng.uniform(-1, 1, 3)
        along = away @ step
        distance = np.linalg.norm(away - along[..., None] * step, axis=-1)
        labels = ((distance < radius_mm) & (np.abs(along) < 8)).astype(np.uint8)
        # The next segment goes on where this one ends: that is no wall.
        labels[(distance < radius_mm) & (along >= 8)] = 2
        found = segmentation.sizes(labels, 3, spacing)
        voxel = spacing.mean()
        assert -0.45 * voxel < found.mean_radius_mm[0] - radius_mm < 0.15 * voxel
        volume = np.pi * radius_mm**2 * 16
        assert found.volume_mm3[0] == pytest.approx(volume, rel=0.1)
        assert found.volume_mm3[2] == 0 and np.isnan(found.mean_radius_mm[2])


def test_ends_of_a_scan_are_no_walls():
    labels = np.zeros((15, 15, 9), np.uint8)
    labels[5:10, 5:10] = 1
    # From the middle of five voxels to the centre of the first one outside.
    assert segmentation.sizes(labels, 1, np.ones(3)).mean_radius_mm[0] == 3
    assert np.isnan(segmentation.sizes(np.ones_like(labels), 1, np.ones(3)).mean_radius_mm[0])


def test_voxels_are_counted():
    labels = np.zeros((6, 5, 4), np.uint8)
    assert segmentation.voxels(labels, 2).tolist() == [0, 0]
    labels[1:3, 2:4, 1:3] = 2
    labels[5, 4, 3] = 1
    assert segmentation.voxels(labels, 3).tolist() == [1, 8, 0]
