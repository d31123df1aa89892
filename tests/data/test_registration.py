"""Registration recovers planted maps of analytic scans; resampling agrees with plain float64."""

import csv
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import random_rotation

from jaxmark.core.geometry import (
    apply_affine,
    compose_affine,
    fit_rigid,
    rotation_angle_degrees,
)
from jaxmark.data import registration
from jaxmark.data.registration import Kind, Registration, register, smaller
from jaxmark.data.resampling import resample
from jaxmark.data.scans import Scan, read_scan

# Centre (mm), radius (mm) and brightness of blobs that have no symmetry.
_BLOBS = [
    ((0, 0, 0), 10, 0.5),
    ((12, 2, -3), 4, 1.0),
    ((-4, 13, 4), 5, 0.8),
    ((3, -9, 10), 3, 1.2),
    ((-8, -4, -12), 4, 0.9),
    ((6, 8, 14), 3, 0.7),
]
_SPACING_MM = 2.0


def _scan(world_to_template: np.ndarray, ijk_to_lps: np.ndarray, side: int = 24) -> Scan:
    """The blobs, drawn exactly where an affine puts them."""
    ijk = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1)
    points = apply_affine(world_to_template @ ijk_to_lps, ijk)
    voxels = np.zeros((side, side, side))
    for center, radius, brightness in _BLOBS:
        squared = ((points - np.array(center)) ** 2).sum(-1)
        voxels += brightness * np.exp(-squared / (2 * radius**2))
    return Scan((100 * voxels).astype(np.float32), ijk_to_lps)


def _centred_grid(center_mm: np.ndarray, axes: np.ndarray, side: int = 24) -> np.ndarray:
    linear = axes * _SPACING_MM
    return compose_affine(linear, center_mm - linear @ np.full(3, (side - 1) / 2))


_FIXED = _scan(np.eye(4), _centred_grid(np.zeros(3), np.eye(3)))


def _moved(fixed_to_moving: np.ndarray, rng: np.random.Generator) -> Scan:
    """The template after a map, on a grid that is turned yet otherwise and not quite centred."""
    center = fixed_to_moving[:3, 3] + rng.uniform(-3, 3, 3)
    return _scan(np.linalg.inv(fixed_to_moving), _centred_grid(center, random_rotation(rng)))


def _turn(degrees: float, axis: np.ndarray) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _worst_mm(result: Registration, truth: np.ndarray) -> float:
    centers = np.array([center for center, _, _ in _BLOBS], float)
    found = apply_affine(result.fixed_to_moving, centers)
    return float(np.linalg.norm(found - apply_affine(truth, centers), axis=1).max())


@pytest.mark.parametrize(
    ("kind", "linear"),
    [
        ("rigid", np.eye(3)),
        ("similarity", 0.9 * np.eye(3)),
        ("affine", np.array([[1.1, 0.08, 0], [0, 0.92, 0], [0.05, 0, 1.0]])),
    ],
)
def test_recovers_a_turn_of_120_degrees(kind: Kind, linear: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    truth = compose_affine(_turn(120, np.array([1.0, -2, 0.5])) @ linear, np.array([40.0, -25, 60]))
    result = register(_FIXED, _moved(truth, rng), kind)
    assert _worst_mm(result, truth) < 0.15 * _SPACING_MM
    assert result.quality > 0.9
    assert result.lead > 0.01
    if kind != "affine":
        scale = np.cbrt(np.linalg.det(linear))
        gram = result.fixed_to_moving[:3, :3].T @ result.fixed_to_moving[:3, :3]
        np.testing.assert_allclose(gram, scale**2 * np.eye(3), atol=0.01)


@pytest.mark.parametrize("seed", range(3))
def test_recovers_any_rotation(seed: int) -> None:
    rng = np.random.default_rng(10 + seed)
    truth = compose_affine(random_rotation(rng), rng.uniform(-50, 50, 3))
    assert _worst_mm(register(_FIXED, _moved(truth, rng)), truth) < 0.1 * _SPACING_MM


def test_a_large_scan_is_made_smaller_by_means_that_stay_where_they_were(monkeypatch):
    monkeypatch.setattr(registration, "_MIN_SIDE", 8)
    rng = np.random.default_rng(0)
    voxels = np.asfortranarray(rng.integers(-500, 500, (17, 24, 9)).astype(np.int16))
    place = compose_affine(random_rotation(rng) * [0.5, 0.6, 0.7], np.array([3.0, -4, 5]))
    found = smaller(Scan(voxels, place))
    assert found.voxels.shape == (8, 8, 9) and found.voxels.dtype == np.float32
    np.testing.assert_allclose(found.voxels[3, 2, 4], voxels[6:8, 6:9, 4].mean(), rtol=1e-5)
    centre = found.ijk_to_lps @ [3, 2, 4, 1]
    np.testing.assert_allclose(centre, place @ [6.5, 7, 4, 1])


def test_a_linear_change_of_intensities_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    scan = _moved(compose_affine(random_rotation(rng), np.ones(3)), rng)
    other = Scan(7 * scan.voxels - 1000, scan.ijk_to_lps)
    np.testing.assert_allclose(
        register(_FIXED, other).fixed_to_moving,
        register(_FIXED, scan).fixed_to_moving,
        atol=1e-3,
    )


def test_a_scan_that_shows_a_part_is_found_with_lower_quality() -> None:
    rng = np.random.default_rng(2)
    truth = compose_affine(random_rotation(rng), np.array([5.0, 6, 7]))
    whole = _moved(truth, rng)
    part = Scan(
        whole.voxels[:, 7:], whole.ijk_to_lps @ compose_affine(np.eye(3), np.array([0, 7, 0]))
    )
    result = register(_FIXED, part)
    assert _worst_mm(result, truth) < 0.2 * _SPACING_MM
    assert result.quality < register(_FIXED, whole).quality


def test_a_near_search_stays_near() -> None:
    rng = np.random.default_rng(3)
    near = compose_affine(_turn(20, np.array([0.0, 1, 1])), np.array([4.0, 0, -3]))
    assert _worst_mm(register(_FIXED, _moved(near, rng), "rigid", 30.0), near) < 0.2
    far = compose_affine(_turn(170, np.array([0.0, 1, 1])), np.zeros(3))
    found = register(_FIXED, _moved(far, rng), "rigid", 30.0)
    assert rotation_angle_degrees(found.fixed_to_moving[:3, :3]) < 120
    assert found.quality < 0.95


def test_none_is_the_identity_and_center_a_translation() -> None:
    shift = np.array([30.0, -12, 7])
    scan = _scan(compose_affine(np.eye(3), -shift), _centred_grid(shift, np.eye(3)))
    np.testing.assert_array_equal(register(_FIXED, scan, "none").fixed_to_moving, np.eye(4))
    center = register(_FIXED, scan, "center")
    np.testing.assert_allclose(center.fixed_to_moving, compose_affine(np.eye(3), shift), atol=0.01)
    assert center.quality == pytest.approx(1, abs=1e-4)
    assert center.lead == np.inf


def test_same_scans_same_result() -> None:
    rng = np.random.default_rng(4)
    scan = _moved(compose_affine(random_rotation(rng), np.zeros(3)), rng)
    first, second = (register(_FIXED, scan, "affine") for _ in range(2))
    np.testing.assert_array_equal(first.fixed_to_moving, second.fixed_to_moving)
    assert (first.quality, first.lead) == (second.quality, second.lead)


def test_refuses_what_cannot_be_registered() -> None:
    flat = Scan(np.full((8, 8, 8), 3, np.float32), np.eye(4))
    with pytest.raises(ValueError, match="contrast"):
        register(_FIXED, flat)
    with pytest.raises(ValueError, match="unknown registration"):
        register(_FIXED, _FIXED, "elastic")  # type: ignore[arg-type]


def _plain_trilinear(voxels: np.ndarray, ijk: np.ndarray, outside: float) -> np.ndarray:
    """Eight corners, one by one, in float64; a corner outside of the volume is `outside`."""
    padded = np.pad(voxels.astype(np.float64), 1, constant_values=outside)
    ijk = np.clip(ijk + 1, 0, np.array(padded.shape) - 1 - 1e-9)
    base = np.floor(ijk).astype(int)
    total = np.zeros(ijk.shape[:-1])
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.abs(1 - np.array(corner) - (ijk - base)).prod(-1)
        total += weight * padded[tuple(np.moveaxis(base + corner, -1, 0))]
    return total


@pytest.mark.parametrize("order", ["C", "F"])
def test_resample_agrees_with_plain_trilinear_interpolation(order: str) -> None:
    rng = np.random.default_rng(5)
    voxels = np.array(rng.normal(size=(11, 9, 13)), np.float32, order=order)  # type: ignore[call-overload]
    axes = random_rotation(rng) @ np.diag([1.0, 1.5, 0.8])
    scan = Scan(voxels, compose_affine(axes, np.array([100.0, -50, 20])))
    shape = (14, 10, 12)
    middle = apply_affine(scan.ijk_to_lps, np.array([5.0, 4, 6]))
    grid = random_rotation(rng) * 0.7
    grid_to_lps = compose_affine(grid, middle - grid @ [6.5, 4.5, 5.5])

    sampled = resample(scan, shape, grid_to_lps)
    ijk = np.moveaxis(np.indices(shape), 0, -1)
    expected = _plain_trilinear(
        voxels,
        apply_affine(np.linalg.inv(scan.ijk_to_lps) @ grid_to_lps, ijk),
        float(np.percentile(voxels[::2, ::2, ::2], 0.5)),
    )
    assert sampled.dtype == np.float32
    assert sampled.shape == shape
    np.testing.assert_allclose(sampled, expected, atol=1e-5)


def test_resample_to_its_own_grid_changes_nothing() -> None:
    rng = np.random.default_rng(6)
    voxels = rng.normal(size=(7, 8, 9)).astype(np.float32)
    scan = Scan(voxels, compose_affine(random_rotation(rng) * 0.3, rng.normal(size=3) * 100))
    np.testing.assert_allclose(resample(scan, (7, 8, 9), scan.ijk_to_lps), voxels, atol=1e-5)


def test_resample_to_a_coarser_grid_averages_instead_of_skipping() -> None:
    # A pattern finer than the grid can carry: skipping voxels would show 0 or 1, or waves.
    voxels = (np.indices((40, 40, 40)).sum(0) % 2).astype(np.float32)
    scan = Scan(voxels, np.diag([0.5, 0.5, 0.5, 1]))
    coarse = resample(scan, (8, 8, 8), compose_affine(1.6 * np.eye(3), np.full(3, 3.0)))
    np.testing.assert_allclose(coarse, 0.5, atol=0.02)


def test_resample_keeps_positions_and_fills_with_background() -> None:
    grid_to_lps = compose_affine(3.1 * np.eye(3), np.full(3, -60.0))
    sampled = resample(_FIXED, (40, 40, 40), grid_to_lps)
    background = np.percentile(_FIXED.voxels[::2, ::2, ::2], 0.5)
    assert sampled[0, 0, 0] == pytest.approx(background)
    smooth_center = _mass_center(Scan(sampled - background, grid_to_lps))
    true_center = _mass_center(Scan(_FIXED.voxels - background, _FIXED.ijk_to_lps))
    np.testing.assert_allclose(smooth_center, true_center, atol=0.1)


def test_resample_far_outside_is_all_background() -> None:
    sampled = resample(_FIXED, (4, 4, 4), compose_affine(np.eye(3), np.full(3, 1e4)))
    assert np.ptp(sampled) == 0


def _mass_center(scan: Scan) -> np.ndarray:
    ijk = np.moveaxis(np.indices(scan.voxels.shape), 0, -1)
    points = apply_affine(scan.ijk_to_lps, ijk)
    return (scan.voxels[..., None] * points).sum((0, 1, 2)) / scan.voxels.sum()


@pytest.mark.real_data
@pytest.mark.parametrize("kind", ["rigid", "similarity", "affine"])
def test_real_heads_carry_landmarks_over(kind: Kind) -> None:
    """Micro-CT mouse heads turned by 101 degrees to each other."""
    if "JAXMARK_DATA" not in os.environ:
        pytest.skip("JAXMARK_DATA names no folder")
    folder = Path(os.environ["JAXMARK_DATA"]) / "mouse_ct"
    if not folder.is_dir():
        pytest.skip("JAXMARK_DATA holds no mouse_ct")
    names = ("129X1_SVJ_", "B6D2F1_J_")
    landmarks: dict[str, list[list[float]]] = {name: [] for name in names}
    with (folder / "landmarks.csv").open() as file:
        for row in csv.DictReader(file):
            if row["case"] in names:
                mm = [float(row[f"{axis}_lps_mm"]) for axis in "xyz"]
                landmarks[row["case"]].append(mm)
    fixed, moving = (read_scan(folder / "images" / f"{name}.nii.gz") for name in names)
    fixed_mm, moving_mm = (np.array(landmarks[name]) for name in names)
    assert rotation_angle_degrees(fit_rigid(fixed_mm, moving_mm)[:3, :3]) > 90

    result = register(fixed, moving, kind)
    errors_mm = np.linalg.norm(apply_affine(result.fixed_to_moving, fixed_mm) - moving_mm, axis=1)
    assert errors_mm.mean() < 1
    assert result.lead > 0.05
