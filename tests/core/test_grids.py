"""Labels on other grids, against SimpleITK's nearest neighbour."""

import numpy as np
import pytest
import SimpleITK as sitk

from jaxmark.core import grids
from jaxmark.core.geometry import compose_affine, rotation_from_quaternion
from jaxmark.core.grids import Grid, nearest_labels


def place(rng, spacing_mm, turned=True):
    turn = rotation_from_quaternion(rng.normal(size=4)) if turned else np.eye(3)
    return compose_affine(turn * spacing_mm, rng.normal(0, 3, 3))


def image(labels, grid):
    """As SimpleITK has it; written for this test."""
    found = sitk.GetImageFromArray(labels.transpose(2, 1, 0))
    spacing = np.linalg.norm(grid.ijk_to_lps[:3, :3], axis=0)
    found.SetSpacing(spacing.tolist())
    found.SetDirection((grid.ijk_to_lps[:3, :3] / spacing).ravel().tolist())
    found.SetOrigin(grid.ijk_to_lps[:3, 3].tolist())
    return found


def resampled(labels, source, target):
    empty = image(np.zeros(target.shape, labels.dtype), target)
    found = sitk.Resample(
        image(labels, source), empty, sitk.Transform(), sitk.sitkNearestNeighbor, 0
    )
    return sitk.GetArrayFromImage(found).transpose(2, 1, 0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_oblique_grids_are_as_in_itk(seed, dtype, monkeypatch):
    rng = np.random.default_rng(seed)
    # Several slabs, the last one thinner.
    monkeypatch.setattr(grids, "_SLAB_VOXELS", 700)
    labels = rng.integers(0, 200, (12, 15, 9)).astype(dtype)
    source = Grid(labels.shape, place(rng, [1.0, 0.8, 1.7]))
    target = Grid((17, 13, 14), place(rng, [0.7, 1.1, 0.9]))
    # Their middles together.
    middle = source.ijk_to_lps @ [5.5, 7, 4, 1] - target.ijk_to_lps @ [8, 6, 6.5, 1]
    target.ijk_to_lps[:3, 3] += middle[:3]
    found = nearest_labels(labels, source, target)
    expected = resampled(labels, source, target)
    assert found.dtype == dtype and 0.3 < (found > 0).mean() < 0.95
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("axis", range(3))
def test_a_flipped_grid_holds_the_labels_the_other_way_round(axis):
    rng = np.random.default_rng(axis)
    labels = rng.integers(0, 9, (6, 5, 7)).astype(np.uint8)
    source = Grid(labels.shape, place(rng, [1.0, 2.0, 0.5]))
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, labels.shape[axis] - 1
    target = Grid(labels.shape, source.ijk_to_lps @ flip)
    found = nearest_labels(labels, source, target)
    np.testing.assert_array_equal(found, np.flip(labels, axis))
    np.testing.assert_array_equal(found, resampled(labels, source, target))
    # And back, on the same grid.
    np.testing.assert_array_equal(nearest_labels(found, target, source), labels)
    np.testing.assert_array_equal(nearest_labels(labels, source, source), labels)


@pytest.mark.parametrize("step", [2.0, 0.5])
def test_halfway_between_two_voxels_the_higher_index_counts_as_in_itk(step):
    labels = np.random.default_rng(0).integers(1, 99, (8, 6, 4)).astype(np.uint8)
    source = Grid(labels.shape, np.eye(4))
    # Half a voxel off, with the rounding of places in decimals.
    target = Grid((5, 4, 3), compose_affine(np.eye(3) * step, np.array([-0.5, 0.5, 0.1 + 0.4])))
    found = nearest_labels(labels, source, target)
    np.testing.assert_array_equal(found, resampled(labels, source, target))
    assert found[0].any()


def test_outside_is_nothing_and_an_affine_map_is_followed():
    labels = np.arange(1, 28, dtype=np.uint8).reshape(3, 3, 3)
    source = Grid((3, 3, 3), np.eye(4))
    sheared = np.eye(4)
    sheared[0, 1] = 1.0
    found = nearest_labels(labels, source, Grid((3, 3, 1), sheared))
    np.testing.assert_array_equal(found[..., 0], [[1, 13, 25], [10, 22, 0], [19, 0, 0]])
    with pytest.raises(ValueError, match=r"\(3, 3, 2\) on a grid of \(3, 3, 3\)"):
        nearest_labels(labels[..., :2], source, source)
