"""Transform files that are written here, as ITK reads and uses them."""

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import random_rotation

from jaxmark.core.alignment import Transform, fit_thin_plate
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.resampling import warp
from jaxmark.data.scans import Scan, from_image, to_image
from jaxmark.data.transforms import read_transform, write_displacements, write_transform

SHAPE = (23, 17, 14)


def oblique(rng, spacing=(1.5, -2.0, 2.5)):
    """Voxels -> LPS mm: turned, one axis flipped, unequal voxels."""
    axes = random_rotation(rng) @ np.diag(spacing)
    return compose_affine(axes, rng.normal(0, 20, 3) - axes @ (np.array(SHAPE) / 2))


def spline(rng, grid):
    """Landmarks within the grid, moved by some millimetres."""
    fixed = apply_affine(grid, rng.uniform(2, np.array(SHAPE) - 3, (9, 3)))
    return fit_thin_plate(fixed, fixed + rng.normal(0, 2, (9, 3)) + [5, 0, -3], np.zeros(9))


def points_in(rng, grid, count=50):
    return apply_affine(grid, rng.uniform(0, np.array(SHAPE) - 1, (count, 3)))


def by_itk(transform, points):
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def test_an_affine_map_is_read_back_by_itk_and_here(tmp_path):
    rng = np.random.default_rng(0)
    matrix = compose_affine(
        random_rotation(rng) @ (np.eye(3) + rng.normal(0, 0.2, (3, 3))), rng.normal(0, 100, 3)
    )
    file = tmp_path / "map.tfm"
    write_transform(file, matrix)
    points = rng.normal(0, 50, (20, 3))
    mapped = by_itk(sitk.ReadTransform(str(file)), points)
    np.testing.assert_allclose(mapped, apply_affine(matrix, points), rtol=0, atol=1e-12)
    np.testing.assert_allclose(read_transform(file), matrix, rtol=0, atol=1e-12)


def test_displacements_take_fixed_points_to_moving_ones_in_itk(tmp_path):
    rng = np.random.default_rng(1)
    grid = oblique(rng)
    transform = spline(rng, grid)
    file = tmp_path / "field.mha"
    write_displacements(file, transform, SHAPE, grid)
    image = sitk.ReadImage(str(file), sitk.sitkVectorFloat64)
    assert image.GetSize() == SHAPE
    itk = sitk.DisplacementFieldTransform(image)
    nodes = apply_affine(grid, rng.integers(0, SHAPE, (40, 3)).astype(float))
    np.testing.assert_allclose(by_itk(itk, nodes), transform(nodes), rtol=0, atol=1e-4)
    # Between nodes it is interpolated.
    between = points_in(rng, grid)
    apart = np.linalg.norm(by_itk(itk, between) - transform(between), axis=1)
    assert 1e-4 < apart.max() < 0.5


@pytest.mark.parametrize("kind", ["shift", "affine", "spline"])
def test_a_scan_is_warped_as_itk_does_with_the_file(kind, tmp_path):
    rng = np.random.default_rng(2)
    grid, place = oblique(rng), oblique(rng, (-3.0, 3.0, 3.0))
    # The moving scan covers the fixed one, in voxels that are larger: nothing is smoothed.
    size = (30, 30, 30)
    place[:3, 3] = apply_affine(grid, np.array(SHAPE) / 2) - place[:3, :3] @ (np.array(size) / 2)
    smooth = sum(
        np.sin(i * step + phase)
        for i, step, phase in zip(np.indices(size), (0.3, 0.4, 0.2), (0, 1, 2), strict=True)
    )
    scan = Scan(np.asarray(smooth, np.float32), place)
    if kind == "spline":
        transform = spline(rng, grid)
        write_displacements(tmp_path / "t.mha", transform, SHAPE, grid)
        itk = sitk.DisplacementFieldTransform(
            sitk.ReadImage(str(tmp_path / "t.mha"), sitk.sitkVectorFloat64)
        )
    else:
        linear = np.eye(3) + rng.normal(0, 0.05, (3, 3)) * (kind == "affine")
        transform = Transform(compose_affine(linear, np.array([3.0, -2, 4])))
        write_transform(tmp_path / "t.tfm", transform.matrix)
        itk = sitk.ReadTransform(str(tmp_path / "t.tfm"))
    ours = warp(scan, SHAPE, grid, transform)
    reference = to_image(np.zeros(SHAPE, np.float32), grid)
    theirs = from_image(
        sitk.Resample(to_image(scan.voxels, place), reference, itk, sitk.sitkLinear, -9.0)
    ).voxels
    inside = theirs > -9
    assert inside.mean() > 0.9
    np.testing.assert_allclose(ours[inside], theirs[inside], rtol=0, atol=2e-3)


def test_a_shift_by_whole_voxels_moves_every_voxel():
    rng = np.random.default_rng(3)
    grid = np.diag([1.5, 2.0, 2.5, 1.0])
    scan = Scan(rng.normal(0, 1, SHAPE).astype(np.float32), grid)
    shift = Transform(compose_affine(np.eye(3), np.array([1.5, -4.0, 0.0])))
    moved = warp(scan, SHAPE, grid, shift)
    # What the fixed point p shows lies at p + shift in the moving scan.
    np.testing.assert_allclose(moved[:-1, 2:], scan.voxels[1:, :-2], rtol=0, atol=1e-5)


def test_a_spline_that_bends_nothing_warps_as_its_matrix():
    rng = np.random.default_rng(4)
    grid = oblique(rng)
    scan = Scan(rng.normal(0, 1, SHAPE).astype(np.float32), grid)
    # Coarser than the scan: smoothed alike.
    coarse = grid @ np.diag([2.0, 2.0, 2.0, 1.0])
    matrix = compose_affine(np.eye(3), np.array([0.7, -0.3, 0.2]))
    straight = Transform(matrix, rng.normal(0, 10, (5, 3)), np.zeros((5, 3)))
    shape = (11, 8, 7)
    found = warp(scan, shape, coarse, straight)
    np.testing.assert_allclose(found, warp(scan, shape, coarse, Transform(matrix)), atol=1e-4)
