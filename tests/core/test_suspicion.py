"""Suspicions of points alone: each mistake is named, and good cohorts are left in peace."""

import numpy as np
import pytest
from spotted import NAMES, SHAPE_MM, heads

from jaxmark.core.anatomy import scheme_of
from jaxmark.core.consensus import consensus, pairs_of
from jaxmark.core.suspicion import (
    LINE,
    MOST,
    Predictions,
    both_log10_p,
    distance_suspicions,
    log10_p,
    point_suspicions,
    predicted_log10_p,
    predicted_suspicions,
    shapes_of,
)
from jaxmark.data.annotation_check import check_points

TWINS = scheme_of(NAMES).mirrored


def above(points):
    return [row for row in check_points(points, NAMES) if row.suspicion >= LINE]


@pytest.mark.parametrize("seed", range(4))
def test_good_cases_show_nothing_above_the_line(seed):
    assert above(heads(16, seed)) == []


def test_mirrored_cases_are_seen_at_any_rotation():
    points = heads(16)
    points[3] = points[3][TWINS]
    points[5] = points[5] * [-1, 1, 1]
    assert {(row.case, row.kind) for row in above(points)} == {(3, "mirrored"), (5, "mirrored")}


def test_exchanged_names_of_neighbours_and_of_sides():
    points = heads(16)
    points[2, [0, 1]] = points[2, [1, 0]]
    points[9, [5, 6]] = points[9, [6, 5]]
    rows = above(points)
    assert {(row.case, row.landmarks, row.kind) for row in rows} == {
        (2, (0, 1), "exchanged"),
        (9, (5, 6), "exchanged"),
    }
    # Each is expected where the other is.
    assert np.linalg.norm(rows[0].expected_mm - points[rows[0].case, rows[0].landmarks[1]]) < 3


def test_one_point_far_off_is_named_and_its_place_is_told():
    points = heads(16)
    true = points[7, 4].copy()
    points[7, 4] += [0, 8, 0]
    (row,) = above(points)
    assert (row.case, row.landmarks, row.kind) == (7, (4,), "far")
    assert np.linalg.norm(row.expected_mm - true) < 2
    assert 6 < row.off_mm < 10


def test_other_units_another_shape_and_the_same_points_twice():
    points = heads(16)
    points[1] *= 7
    points[4] = points[4][::-1]
    points[8] = points[9] + 0.01 * np.random.default_rng(0).standard_normal(points[9].shape)
    rows = above(points)
    assert {(row.case, row.kind) for row in rows} >= {(1, "size"), (4, "shape")}
    assert [(row.other, row.case) for row in rows if row.kind == "doubled landmarks"] == [(8, 9)]
    assert "7" in next(row.detail for row in rows if row.kind == "size")


def test_a_case_in_another_frame_where_all_lie_alike():
    rng = np.random.default_rng(0)
    points = SHAPE_MM + 0.4 * rng.standard_normal((16, *SHAPE_MM.shape)) + 100
    points[6] *= [-1, -1, 1]
    (row,) = above(points)
    assert (row.case, row.kind, row.detail) == (6, "frame", "180")


def test_missing_points_are_no_obstacle():
    points = heads(16)
    points[2, 3] = points[4, 7] = np.nan
    points[11, 2] += [9, 0, 0]
    assert [(row.case, row.landmarks) for row in above(points)] == [(11, (2,))]


def test_few_points_are_judged_by_their_distances():
    points = heads(20)[:, :2]
    assert consensus(points) is None
    points[3, 1] += 3 * (points[3, 1] - points[3, 0])
    rows = check_points(points, NAMES[:2])
    assert (rows[0].case, rows[0].landmarks, rows[0].kind) == (3, (0, 1), "distance")
    assert rows[0].suspicion >= LINE > max([0, *(row.suspicion for row in rows[1:])])
    assert distance_suspicions(heads(20)[:, :2], LINE) == []


def test_pairs_are_found_without_names():
    assert np.array_equal(pairs_of(SHAPE_MM), TWINS)
    lopsided = SHAPE_MM + 8 * np.random.default_rng(1).standard_normal(SHAPE_MM.shape)
    assert np.array_equal(pairs_of(lopsided), np.arange(len(NAMES)))


def test_pictures_are_turned_in_their_plane_alone():
    flat = heads(16) * 0
    rng = np.random.default_rng(0)
    flat[..., :2] = SHAPE_MM[:, :2] + 0.3 * rng.standard_normal((16, 9, 2))
    assert above(flat) == []
    flat[5, :, 0] *= -1
    assert [(row.case, row.kind) for row in above(flat)] == [(5, "mirrored")]


def test_predictions_far_beyond_their_radius_add_to_the_suspicion():
    points = heads(16)
    shapes = shapes_of(points, TWINS)
    rng = np.random.default_rng(1)
    predicted = points + 0.5 * rng.standard_normal(points.shape)
    predicted[6, 2] += [0, 9, 0]
    predictions = Predictions(predicted, np.full(points.shape[:2], 2.0))
    everyone = np.ones(16, bool)
    first, *others = sorted(
        point_suspicions(shapes, None, everyone, predictions, 0.0), key=lambda row: -row.suspicion
    )
    assert (first.case, first.landmarks, first.kind) == (6, (2,), "far")
    assert first.suspicion >= LINE
    assert all(row.suspicion < LINE for row in others)
    # The expected place lies between what the others say and what was predicted.
    assert 3 < np.linalg.norm(first.expected_mm - points[6, 2]) < 6
    (alone,) = predicted_suspicions(points, predictions, LINE)
    assert (alone.case, alone.landmarks) == (6, (2,))
    assert np.isnan(
        predicted_log10_p(points, Predictions(predicted * np.nan, np.ones((16, 9))))
    ).all()


def test_probabilities():
    values = np.random.default_rng(0).exponential(size=2000)
    # The tail of an exponential law is its own.
    assert log10_p(np.array([5.0, 10.0]), values) == pytest.approx([-2.17, -4.34], abs=0.25)
    assert -0.1 < log10_p(np.array([0.1]), values) <= 0
    assert both_log10_p(np.array([-3.0]), np.array([np.nan])) == [-3]
    assert both_log10_p(np.array([-3.0]), np.array([-3.0]))[0] == pytest.approx(-4.83, abs=0.01)
    assert MOST > LINE
