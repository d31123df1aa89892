"""Landmarks that contradict the other cases', and good ones that do not."""

import numpy as np
import pytest

from jaxmark.core.geometry import rotation_from_quaternion
from jaxmark.core.plausibility import contradictions, quantile_of_others

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
    # Without tails: among hundreds of cases some would be far off.
    return SHAPE + spread_mm * np.clip(rng.standard_normal((size, *SHAPE.shape)), -2, 2)


def found(points, mirrored=MIRRORED):
    return contradictions(points, points * NEGATION, mirrored)


def test_good_cases_are_not_doubted():
    counts = [len(found(cohort(size, seed))) for size in (5, 8, 20) for seed in range(12)]
    assert sum(counts) <= 1


@pytest.mark.parametrize("size", [5, 10, 45, 320])
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
    assert 20 < one.off_mm < 30 and 4 < one.then_mm < one.off_mm

    points = cohort(size)
    points[4, [1, 9]] = points[4, [9, 1]]
    (case, one), = found(points).items()  # fmt: skip
    assert (case, one.kind, one.landmarks) == (4, "exchanged", (1, 9))


@pytest.mark.parametrize("degrees", [5, 60])
def test_mistakes_in_pictures_that_are_turned(degrees):
    """A picture turned over fits its mirror image: it must not be turned over."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        points = cohort(12, seed) * [1, 1, 0]
        angle = np.radians(rng.uniform(-degrees, degrees, 12))
        turn = rotation_from_quaternion(
            np.stack([np.cos(angle / 2), 0 * angle, 0 * angle, np.sin(angle / 2)], -1)
        )
        points = points @ turn.swapaxes(-1, -2)
        assert not found(points)
        swapped, far = points.copy(), points.copy()
        swapped[2] = swapped[2][MIRRORED]
        far[3, 5] += [0, 25, 0]
        assert {case: one.kind for case, one in found(swapped).items()} == {2: "sides"}
        one = found(far)[3]
        assert (one.kind, one.landmarks) == ("far", (5,))


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


@pytest.mark.parametrize("size", [6, 30, 260])
def test_a_case_has_no_say_in_how_far_off_others_usually_are(size):
    """A whole case that fits nothing is found among few cases and among many."""
    points = cohort(size, spread_mm=0.5)
    rng = np.random.default_rng(3)
    points[size // 2] = SHAPE[rng.permutation(len(SHAPE))] + rng.normal(0, 20, SHAPE.shape)
    known = {case: one.kind for case, one in found(points).items()}
    assert known.keys() == {size // 2} and known[size // 2] == "far"


def test_what_would_be_usual_is_less_than_what_is_doubted():
    """Also where the same landmark is far off in two cases: neither is what the other should be."""
    points = cohort(12, spread_mm=0.5)
    points[[2, 7], 5] += [[0, 21, 0], [0, 20, 0]]
    for case, one in found(points).items():
        assert case in (2, 7) and one.landmarks == (5,)
        assert one.then_mm < 10 < 19 < one.off_mm
    assert len(found(points)) == 2


def test_the_quantile_of_the_others_is_that_of_numpy():
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = rng.integers(0, 6, (rng.integers(1, 9), rng.integers(1, 5))).astype(float)
        values[rng.random(values.shape) < 0.2] = np.nan
        case, share = rng.integers(len(values)), rng.choice([0.0, 0.5, 0.98, 1.0])
        others = np.delete(values, case, 0)
        others = others[np.isfinite(others)]
        expected = np.quantile(others, share) if others.size else np.nan
        ordered = np.sort(values[np.isfinite(values)])
        np.testing.assert_allclose(quantile_of_others(ordered, values[case], share), expected)


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
