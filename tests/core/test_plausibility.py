"""Landmarks that contradict the other cases', and good ones that do not."""

import numpy as np
import pytest

from jaxmark.core.geometry import rotation_from_quaternion
from jaxmark.core.plausibility import contradictions

NEGATION = np.array([-1.0, -1.0, 1.0])
# Three in the middle, then pairs of right (x < 0) and left.
SIDES = ((30, 5, 0), (15, -20, 12), (22, 30, -9), (8, 12, 25))
SHAPE = np.array(
    [[0, 0, 0], [0, 20, 5], [2, -30, 10], *([s * x, y, z] for x, y, z in SIDES for s in (-1, 1))],
    float,
)
MIRRORED = np.array([0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9])


def cohort(size=10, seed=0, spread_mm=1.5):
    rng = np.random.default_rng(seed)
    return SHAPE + rng.normal(0, spread_mm, (size, *SHAPE.shape))


def found(points, mirrored=MIRRORED):
    return contradictions(points, points * NEGATION, mirrored)


def test_good_cases_are_not_doubted():
    counts = [len(found(cohort(size, seed))) for size in (5, 8, 20) for seed in range(12)]
    assert sum(counts) <= 1


@pytest.mark.parametrize("size", [5, 10, 45])
def test_every_mistake_is_named_for_what_it_is(size):
    points = cohort(size)
    points[1] = points[1] * NEGATION
    (case, one), = found(points).items()  # fmt: skip
    assert (case, one.kind, one.landmarks) == (1, "negated", ())
    assert one.off_mm > 5 * one.then_mm

    points = cohort(size)
    points[2] = points[2][MIRRORED]
    (case, one), = found(points).items()  # fmt: skip
    assert (case, one.kind) == (2, "sides")

    points = cohort(size)
    points[3, 5] += [0, 25, 0]
    (case, one), = found(points).items()  # fmt: skip
    assert (case, one.kind, one.landmarks) == (3, "far", (5,))
    assert 20 < one.off_mm < 30 and one.then_mm < 8

    points = cohort(size)
    points[4, [1, 9]] = points[4, [9, 1]]
    (case, one), = found(points).items()  # fmt: skip
    assert (case, one.kind, one.landmarks) == (4, "exchanged", (1, 9))


def test_heads_that_lie_elsewhere_are_no_contradiction():
    rng = np.random.default_rng(1)
    points = cohort(10)
    points[3, 5] += [0, 30, 0]
    turned = [
        p @ rotation_from_quaternion(rng.standard_normal(4)).T + rng.normal(0, 80, 3)
        for p in points
    ]
    # Nor do they hide a point that is far off.
    assert {case: one.kind for case, one in found(np.stack(turned)).items()} == {3: "far"}


def test_missing_landmarks_and_small_cohorts_say_nothing():
    points = cohort(10)
    points[:, 2] = np.nan
    points[0] = np.nan
    points[np.arange(10), np.arange(10) % 8 + 3] = np.nan
    # Of this one too few cases tell where it should be.
    points[4:, 1] = np.nan
    points[2, 1] += 300
    assert found(points) == {}
    bad = cohort(4)
    bad[0] *= NEGATION
    assert found(bad) == {}
    assert found(np.full((8, 11, 3), np.nan)) == {}
    assert found(np.zeros((8, 11, 3))) == {}
    assert found(cohort(8)[:, :1], MIRRORED[:1]) == {}
