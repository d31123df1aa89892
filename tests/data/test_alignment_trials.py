"""Trials of registrations: of blobs that are turned, and of poses that are known."""

import numpy as np
import pytest
from small_cohorts import NAMES, SHAPE_MM, head, survey_of, turn

from jaxmark.core.geometry import apply_affine
from jaxmark.data.alignment_trials import as_they_are, by_middles, poses, registered, tried_cases
from jaxmark.data.cohort import Cohort, RawCase
from jaxmark.data.scans import write_scan
from jaxmark.data.survey import Survey, scan_facts, spread


@pytest.fixture(scope="module")
def turned(tmp_path_factory) -> Survey:
    """Three heads that are turned by up to 40 degrees and shifted, in scans of 32 voxels a side."""
    folder = tmp_path_factory.mktemp("turned")
    grid = np.diag([1.0, 1.0, 1.0, 1.0])
    grid[:3, 3] = -15.5
    moves = [turn(0), turn(25, (1, 2, 3), (2, -1, 1)), turn(40, (0, 1, -1), (-1, 2, 0))]
    cases = []
    for number, move in enumerate(moves):
        points = apply_affine(move, SHAPE_MM)
        path = folder / f"{number}.nii"
        write_scan(path, head(points, grid), grid)
        seen = np.ones(len(points), bool)
        cases.append(RawCase(str(number), path, points, seen, ~seen, path, NAMES))
    facts = {case.name: scan_facts((case, "")) for case in cases}
    named = {case.name: case for case in cases}
    points = np.stack([case.landmarks_mm for case in cases])
    cohort = Cohort(NAMES, named, {"train": tuple(named), "val": (), "test": ()})
    return Survey(cohort, {}, points, tuple(cases), facts, 3, 0, False, "mm")


def test_registration_brings_the_landmarks_of_turned_heads_together(turned):
    cases = tried_cases(turned)
    assert len(cases) == 3
    plain = as_they_are(turned, cases)
    assert plain.spread == spread(np.stack([case.landmarks_mm for case in cases])) > 3
    trial = registered(turned, cases, "rigid", search_degrees=60.0, workers=1)
    assert trial.spread < 0.5 and trial.seconds > 0
    np.testing.assert_array_equal(trial.points[0], cases[0].landmarks_mm)
    assert (trial.words, plain.words) == ("rigid", "none")


def test_turns_and_sizes_are_found_from_landmarks():
    degrees, sizes = [0, 10, 35, 170], [1.0, 1.1, 0.8, 1.25]
    points = np.stack(
        [
            apply_affine(turn(d, (1, -2, 0.5), (d, 3, -4)), s * SHAPE_MM)
            for d, s in zip(degrees, sizes, strict=True)
        ]
    )
    found = poses(points)
    np.testing.assert_allclose(found.degrees, degrees, atol=1e-4)
    np.testing.assert_allclose(found.scales, 1 / np.array(sizes))
    np.testing.assert_allclose(found.points, np.tile(points[0], (4, 1, 1)), atol=1e-9)
    assert found.spread < 1e-9


def test_turns_and_sizes_of_pictures_are_within_the_plane():
    flat = SHAPE_MM * [1, 1, 0]
    points = np.stack(
        [flat, apply_affine(turn(30, shift=(5, 6, 0)), 1.2 * flat), flat * [-1, 1, 1]]
    )
    found = poses(points)
    np.testing.assert_allclose(found.degrees[:2], [0, 30], atol=1e-4)
    np.testing.assert_allclose(found.scales[:2], [1, 1 / 1.2])
    np.testing.assert_allclose(found.points[1], flat, atol=1e-9)
    # A mirror image is no turn.
    assert np.linalg.norm(found.points[2] - flat, axis=1).max() > 1
    assert np.ptp(found.points[..., 2]) == 0


def test_too_few_landmarks_do_not_say_how_a_case_is_turned():
    assert poses(np.tile(SHAPE_MM[:2], (4, 1, 1))) is None
    assert poses(np.tile(SHAPE_MM[:3], (4, 1, 1))) is not None
    assert poses(np.tile(SHAPE_MM[:1] * [1, 1, 0], (4, 1, 1))) is None
    assert poses(np.tile(SHAPE_MM[:2] * [1, 1, 0], (4, 1, 1))) is not None


def test_cases_are_compared_with_the_one_that_has_most_landmarks():
    points = np.tile(SHAPE_MM, (4, 1, 1))
    points[0, 2:] = np.nan
    found = poses(points)
    assert len(found.degrees) == 3
    np.testing.assert_allclose(found.degrees, 0, atol=1e-4)


def test_middles_of_pictures_are_brought_together():
    points = np.tile(SHAPE_MM[:, None].mean(1) * [1, 1, 0], (3, 1, 1))
    survey = survey_of(points, shape=(21, 31, 1), planar=True, unit="px")
    moved = by_middles(survey, survey.train).points
    np.testing.assert_allclose(moved, points - [10, 15, 0])


def test_the_template_and_ten_others_with_landmarks_are_tried():
    rng = np.random.default_rng(0)
    points = SHAPE_MM + rng.standard_normal((40, 1, 3)) + 0.3 * rng.standard_normal((40, 5, 3))
    points[::3] = np.nan
    survey = survey_of(points)
    cases = tried_cases(survey)
    assert 6 <= len(cases) <= 11 and len({case.name for case in cases}) == len(cases)
    assert all(case.present.any() for case in cases)
