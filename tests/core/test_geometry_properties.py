"""Laws that hold for any map, grid and orientation: of geometry, resampling and transform files."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from jaxmark.core.geometry import (
    apply_affine,
    compose_affine,
    fit_rigid,
    rotation_angle_degrees,
    rotation_from_quaternion,
)
from jaxmark.data.resampling import covered, resample
from jaxmark.data.scans import Scan, from_image, read_scan, to_image, write_scan
from jaxmark.data.transforms import matrix_of, read_transform

SEEDS = st.integers(0, 2**32 - 1)
SHIFTS = st.tuples(*[st.floats(-1e4, 1e4)] * 3).map(np.array)
# Rotations about any axis by any angle, no turn and half turns among them.
QUATERNIONS = (
    st.tuples(*[st.floats(-1, 1)] * 4).map(np.array).filter(lambda q: np.linalg.norm(q) > 0.01)
)
ROTATIONS = QUATERNIONS.map(rotation_from_quaternion)
SPACINGS = st.tuples(*[st.floats(0.01, 50)] * 3).map(np.array)
ORDERS = st.permutations(range(3))
FLIPS = st.tuples(*[st.booleans()] * 3)


@st.composite
def right_angled(draw):
    """Places of scans: turned, mirrored or not, of any spacing."""
    columns = draw(ROTATIONS)[:, draw(ORDERS)] * draw(SPACINGS)
    return compose_affine(columns * np.where(draw(FLIPS), -1, 1), draw(SHIFTS))


@st.composite
def affine(draw):
    """Maps with an inverse; sheared, too."""
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = draw(st.tuples(*[st.floats(-2, 2)] * 3))
    return draw(right_angled()) @ compose_affine(shear, np.zeros(3))


def points_of(seed, count=12):
    return np.random.default_rng(seed).normal(0, 40, (count, 3))


def close(found, expected, scale):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * (1 + scale))


@given(affine(), SEEDS)
def test_there_and_back(matrix, seed):
    points = points_of(seed)
    there = apply_affine(matrix, points)
    inverse = np.linalg.inv(matrix)
    amplified = np.abs(inverse[:3, :3]).sum() * np.abs(there).max()
    close(apply_affine(inverse, there), points, amplified)


@given(affine(), affine(), SEEDS)
def test_a_product_is_one_after_the_other(first, second, seed):
    points = points_of(seed)
    expected = apply_affine(second, apply_affine(first, points))
    scale = np.abs(second[:3, :3]).sum() * np.abs(apply_affine(first, points)).max() + 1e4
    close(apply_affine(second @ first, points), expected, scale)


@given(QUATERNIONS)
def test_a_quaternion_is_a_rotation_by_its_angle(quaternion):
    rotation = rotation_from_quaternion(quaternion)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation_from_quaternion(-3 * quaternion), rotation, atol=1e-12)
    sine = np.linalg.norm(quaternion[1:])
    angle = np.degrees(2 * np.arctan2(sine, abs(quaternion[0])))
    assert rotation_angle_degrees(rotation) == pytest.approx(angle, abs=1e-6)


@given(ROTATIONS, SHIFTS, st.floats(0.1, 10), st.booleans(), SEEDS)
def test_a_fit_finds_what_moved_the_points(rotation, shift, size, scaled, seed):
    truth = compose_affine(rotation * (size if scaled else 1.0), shift)
    points = points_of(seed, 5)
    fit = fit_rigid(points, apply_affine(truth, points), scale=scaled)
    np.testing.assert_allclose(fit, truth, atol=1e-7)


def scan_of(seed, place, shape=(7, 6, 5)):
    voxels = np.random.default_rng(seed).normal(size=shape)
    return Scan(voxels.astype(np.float32), place)


def stored_otherwise(scan, order, flips):
    """The same scan with its axes in another order, some of them the other way round."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3)[:, order]
    voxels = scan.voxels.transpose(order)
    for axis in np.flatnonzero(flips):
        end = np.eye(4)
        end[axis, axis], end[axis, 3] = -1, voxels.shape[axis] - 1
        matrix = matrix @ end
        voxels = np.flip(voxels, axis)
    return Scan(voxels, scan.ijk_to_lps @ matrix)


@given(right_angled(), ORDERS, FLIPS, SEEDS)
def test_every_voxel_keeps_its_place_however_it_is_stored(place, order, flips, seed):
    scan = scan_of(seed, place)
    other = stored_otherwise(scan, order, flips)
    for index in itertools.product((0, 2), (0, 3), (0, 1)):
        lps = apply_affine(other.ijk_to_lps, np.array(index, float))
        ijk = apply_affine(np.linalg.inv(scan.ijk_to_lps), lps)
        assert np.abs(ijk - np.round(ijk)).max() < 1e-5
        assert scan.voxels[tuple(np.round(ijk).astype(int))] == other.voxels[index]


@given(right_angled(), ORDERS, FLIPS, SEEDS)
def test_resampling_does_not_depend_on_how_a_scan_is_stored(place, order, flips, seed):
    # Of odd size: the background is a percentile of every second voxel, and so they are the same.
    scan = scan_of(seed, place, (7, 5, 9))
    other = stored_otherwise(scan, order, flips)
    # A grid about the same middle: turned, finer or coarser, reaching beyond.
    rng = np.random.default_rng(seed)
    axes = rotation_from_quaternion(rng.normal(size=4)) * rng.uniform(0.4, 1.5, 3)
    shape = (6, 7, 8)
    middle = np.array([3.0, 2, 4]) - axes @ ((np.array(shape) - 1) / 2)
    grid = place @ compose_affine(axes, middle)
    found = [resample(s, shape, grid) for s in (scan, other)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-4)
    np.testing.assert_array_equal(covered(scan, shape, grid), covered(other, shape, grid))
    assert covered(scan, shape, grid).any()


@given(right_angled(), SEEDS)
def test_on_its_own_grid_a_scan_is_itself(place, seed):
    scan = scan_of(seed, place)
    found = resample(scan, scan.voxels.shape, place)
    np.testing.assert_allclose(found, scan.voxels, atol=1e-4)


@given(right_angled(), SHIFTS, SEEDS)
def test_what_is_linear_stays_so_between_voxels(place, slope, seed):
    slope = slope / 1e4
    voxels = (np.indices((7, 6, 5)).T @ slope).T.astype(np.float32)
    rng = np.random.default_rng(seed)
    turn = rotation_from_quaternion(rng.normal(size=4))
    # Inside, and no coarser than the scan.
    local = compose_affine(turn * 0.3, np.array([3.0, 2.5, 2.0]) - turn @ np.full(3, 0.45))
    found = resample(Scan(voxels, place), (4, 4, 4), place @ local)
    expected = apply_affine(local, np.indices((4, 4, 4)).T.astype(float)) @ slope
    np.testing.assert_allclose(found, expected.T, atol=1e-4)


@given(right_angled(), SEEDS)
def test_an_image_of_itk_lies_where_the_scan_lies(place, seed):
    scan = scan_of(seed, place)
    image = to_image(scan.voxels, scan.ijk_to_lps)
    for index in ((0, 0, 0), (6, 5, 4), (1, 0, 3)):
        there = apply_affine(place, np.array(index, float))
        close(image.TransformIndexToPhysicalPoint(index), there, np.abs(there).max())
    back = from_image(image)
    close(back.ijk_to_lps, place, np.abs(place).max())
    np.testing.assert_array_equal(back.voxels, scan.voxels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("extension", [".mha", ".nrrd", ".nii"])
@given(place=right_angled(), seed=SEEDS)
def test_a_file_keeps_the_place(folder, extension, place, seed):
    scan = scan_of(seed, place)
    write_scan(folder / f"a{extension}", scan.voxels, place)
    back = read_scan(folder / f"a{extension}")
    np.testing.assert_array_equal(back.voxels, scan.voxels)
    # NIfTI keeps float32.
    tolerance = 1e-5 if extension == ".nii" else 1e-9
    np.testing.assert_allclose(back.ijk_to_lps, place, atol=tolerance * np.abs(place).max())


@pytest.mark.parametrize("extension", [".tfm", ".txt", ".mat"])
@given(matrix=affine().filter(lambda matrix: abs(np.linalg.det(matrix)) > 1e-3), centre=SHIFTS)
def test_a_transform_file_is_its_matrix(folder, extension, matrix, centre):
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation((matrix[:3, 3] - centre + matrix[:3, :3] @ centre).tolist())
    # Turned about a point, as ANTs and elastix do.
    transform.SetCenter(centre.tolist())
    sitk.WriteTransform(transform, str(folder / f"a{extension}"))
    scale = np.abs(matrix[:3, :3]).sum() * (np.abs(centre).max() + 1e4)
    for found in (matrix_of(transform), read_transform(folder / f"a{extension}")):
        close(found, matrix, scale)


@given(ROTATIONS, SHIFTS, st.floats(0.1, 10), SEEDS)
def test_any_kind_of_linear_transform_is_a_matrix(rotation, shift, size, seed):
    similarity = sitk.Similarity3DTransform()
    similarity.SetMatrix((size * rotation).ravel().tolist())
    similarity.SetTranslation(shift.tolist())
    similarity.SetCenter((shift / 7).tolist())
    both = sitk.CompositeTransform([similarity, sitk.TranslationTransform(3, (1.0, 2.0, 3.0))])
    points = points_of(seed)
    for transform in (similarity, both):
        there = [transform.TransformPoint(point) for point in points.tolist()]
        close(apply_affine(matrix_of(transform), points), there, 1e5)
