"""Registration by mutual information recovers planted maps, whatever the contrast."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import random_rotation

from jaxmark.core.geometry import apply_affine, compose_affine, rotation_from_quaternion
from jaxmark.data.mutual_information import register_mutual_information
from jaxmark.data.registration import Kind, Registration, register
from jaxmark.data.scans import Scan

# Centre (mm), half axes (mm) and tissue of ellipsoids without symmetry, painted over each other.
_PARTS = [
    ((0, 0, 0), (21, 17, 19), 1),
    ((9, 3, -4), (6, 8, 5), 2),
    ((-8, 5, 6), (7, 5, 6), 3),
    ((-3, -8, -8), (9, 4, 5), 4),
    ((4, -6, 11), (5, 6, 4), 2),
    ((-10, -5, 0), (4, 4, 6), 0),
]
# Brightness of the tissues in scans of two kinds: no function of one value gives the other's order.
_FIRST, _SECOND = (0, 100, 160, 60, 220), (300, 120, 20, 240, 180)
_SPACING_MM = 2.0
_SIDE = 28


def _scan(
    world_to_template: np.ndarray,
    ijk_to_lps: np.ndarray,
    contrast: tuple[int, ...] = _FIRST,
    shape: tuple[int, int, int] = (_SIDE,) * 3,
) -> Scan:
    """The parts, drawn where an affine puts them: soft edges, a texture and a little noise."""
    ijk = np.moveaxis(np.indices(shape), 0, -1)
    points = apply_affine(world_to_template @ ijk_to_lps, ijk)
    voxels = np.full(shape, contrast[0], float)
    for center, half_axes, tissue in _PARTS:
        depth_mm = (1 - np.linalg.norm((points - center) / half_axes, axis=-1)) * min(half_axes)
        voxels += np.clip(0.5 + depth_mm / _SPACING_MM, 0, 1) * (contrast[tissue] - voxels)
    voxels += np.random.default_rng(sum(contrast)).normal(0, 3, shape)
    return Scan(voxels.astype(np.float32), ijk_to_lps)


def _grid(
    center_mm: np.ndarray, axes: np.ndarray, shape: tuple[int, int, int] = (_SIDE,) * 3
) -> np.ndarray:
    return compose_affine(axes, center_mm - axes @ ((np.array(shape) - 1) / 2))


_FIXED = _scan(np.eye(4), _grid(np.zeros(3), _SPACING_MM * np.eye(3)))


def _moved(truth: np.ndarray, seed: int, contrast: tuple[int, ...] = _FIRST) -> Scan:
    """The template after a map, on a grid that is turned yet otherwise and not quite centred."""
    rng = np.random.default_rng(seed)
    center = truth[:3, 3] + rng.uniform(-3, 3, 3)
    grid = _grid(center, _SPACING_MM * random_rotation(rng))
    return _scan(np.linalg.inv(truth), grid, contrast)


def _motion(seed: int, linear: np.ndarray | None = None) -> np.ndarray:
    """Any rotation after `linear`, and a translation of tens of mm."""
    rng = np.random.default_rng(100 + seed)
    linear = np.eye(3) if linear is None else linear
    return compose_affine(random_rotation(rng) @ linear, rng.uniform(-60, 60, 3))


def _small_motion(seed: int) -> np.ndarray:
    """15 degrees about any axis, and a translation of tens of mm: what `_search` looks for."""
    rng = np.random.default_rng(100 + seed)
    axis = rng.normal(size=3)
    half = np.radians(15) / 2
    turn = np.array([np.cos(half), *np.sin(half) * axis / np.linalg.norm(axis)])
    return compose_affine(rotation_from_quaternion(turn), rng.uniform(-60, 60, 3))


# Few starts: a search over all rotations takes seconds, and two tests of it are enough.
_search = partial(register_mutual_information, _FIXED, search_degrees=25.0)


def _worst_mm(result: Registration, truth: np.ndarray) -> float:
    centers = np.array([center for center, _, _ in _PARTS], float)
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
def test_recovers_a_map_in_another_contrast(kind: Kind, linear: np.ndarray) -> None:
    truth = _motion(0, linear)
    result = register_mutual_information(_FIXED, _moved(truth, 0, _SECOND), kind)
    assert _worst_mm(result, truth) < 0.25 * _SPACING_MM
    assert 0.2 < result.quality <= 1
    assert result.lead > 0.02
    if kind != "affine":
        gram = result.fixed_to_moving[:3, :3].T @ result.fixed_to_moving[:3, :3]
        np.testing.assert_allclose(gram, np.cbrt(np.linalg.det(linear)) ** 2 * np.eye(3), atol=0.02)


def test_works_where_correlation_does_not() -> None:
    truth = _small_motion(1)
    scan = _moved(truth, 1, _SECOND)
    assert _worst_mm(register(_FIXED, scan), truth) > 5
    assert _worst_mm(_search(scan), truth) < 0.25 * _SPACING_MM


def test_inverted_intensities_change_little() -> None:
    truth = _small_motion(2)
    scan = _moved(truth, 2)
    inverted = Scan(1000 - 7 * scan.voxels, scan.ijk_to_lps)
    one, other = (_search(s) for s in (scan, inverted))
    assert _worst_mm(other, truth) < 0.25 * _SPACING_MM
    assert other.quality == pytest.approx(one.quality, abs=0.03)


def test_other_voxels_meet_the_template_at_the_same_resolution() -> None:
    truth = _small_motion(3)
    axes = random_rotation(np.random.default_rng(3)) @ np.diag([1.3, 1.5, 3.0])
    shape = (42, 36, 19)
    scan = _scan(np.linalg.inv(truth), _grid(truth[:3, 3], axes, shape), _SECOND, shape)
    assert _worst_mm(_search(scan), truth) < 0.25 * _SPACING_MM


def test_a_scan_that_shows_a_part_is_found_with_lower_quality() -> None:
    truth = _motion(4)
    whole = _moved(truth, 4, _SECOND)
    shift = compose_affine(np.eye(3), np.array([0.0, 8, 0]))
    part = Scan(whole.voxels[:, 8:], whole.ijk_to_lps @ shift)
    result = register_mutual_information(_FIXED, part)
    assert _worst_mm(result, truth) < 0.5 * _SPACING_MM
    assert result.quality < 0.9 * register_mutual_information(_FIXED, whole).quality


def test_a_near_search_stays_near() -> None:
    half = np.radians([20, 170]) / 2
    near, far = (
        compose_affine(
            rotation_from_quaternion(np.array([np.cos(a), 0, np.sin(a), np.sin(a)])),
            np.array([30.0, 0, -20]),
        )
        for a in half
    )
    right, wrong = _search(_moved(near, 5, _SECOND)), _search(_moved(far, 5, _SECOND))
    assert _worst_mm(right, near) < 0.25 * _SPACING_MM
    assert _worst_mm(wrong, far) > 5
    assert wrong.quality < 0.8 * right.quality


def test_same_scans_same_result_on_any_number_of_cores() -> None:
    result = _search(_moved(_small_motion(6), 6, _SECOND))
    expected = [result.fixed_to_moving.tobytes().hex(), result.quality.hex(), result.lead.hex()]

    # ITK reads how many threads it may use when it starts.
    code = (
        "import test_mutual_information as t\n"
        "r = t._search(t._moved(t._small_motion(6), 6, t._SECOND))\n"
        "print(r.fixed_to_moving.tobytes().hex(), r.quality.hex(), r.lead.hex())"
    )
    folder = Path(__file__).parent
    path = os.pathsep.join([str(folder), str(folder.parent), *sys.path])
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": threads, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout.split(), done.stderr) == (expected, "")


def test_scans_that_are_far_apart_are_no_trouble(capfd: pytest.CaptureFixture[str]) -> None:
    far = Scan(_FIXED.voxels, compose_affine(np.eye(3), np.full(3, 900.0)) @ _FIXED.ijk_to_lps)
    result = _search(far)
    np.testing.assert_allclose(result.fixed_to_moving[:3, 3], 900, atol=0.2)
    # The best there is: the same voxels explain all of the template.
    assert result.quality > 0.95
    assert capfd.readouterr() == ("", "")


def test_refuses_what_cannot_be_registered() -> None:
    flat = Scan(np.full((8, 8, 8), 3, np.float32), np.eye(4))
    for fixed, moving in ((_FIXED, flat), (flat, _FIXED)):
        with pytest.raises(ValueError, match="contrast"):
            register_mutual_information(fixed, moving)
    for kind in ("elastic", "none", "center"):
        with pytest.raises(ValueError, match="unknown registration"):
            register_mutual_information(_FIXED, _FIXED, kind)  # type: ignore[arg-type]
