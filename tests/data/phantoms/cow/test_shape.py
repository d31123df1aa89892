"""The shapes and variants of synthetic people against what they were fitted to."""

import json

import numpy as np
import pytest

from jaxmark.core.anatomy import COW19
from jaxmark.core.geometry import rotation_angle_degrees
from jaxmark.core.shapes import mirror
from jaxmark.data.phantoms.cow import shape
from jaxmark.data.phantoms.cow.shape import draw_anatomy, draw_variants


@pytest.fixture(scope="module")
def people():
    return [draw_anatomy(np.random.default_rng([7, number])) for number in range(3000)]


def complete(people):
    """Landmarks (N, 19, 3) of those who lack no segment."""
    return np.stack([p.landmarks_mm for p in people if p.segment_present.all()])


def test_a_person_is_a_function_of_the_seed():
    a, b, c = (draw_anatomy(np.random.default_rng(seed), 3, 2) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.landmarks_mm, b.landmarks_mm)
    assert not np.allclose(a.landmarks_mm, c.landmarks_mm)


def test_positions_have_the_mean_and_spread_of_the_model(people):
    model = json.loads(shape.MODEL_FILE.read_text())
    drawn = complete(people)
    sd = np.sqrt(np.diag(model["covariance_mm2"])).reshape(-1, 3)
    for k, name in enumerate(model["landmarks"]):
        if name == shape.VERTEBRAL:
            continue
        found = drawn[:, COW19.landmark(name)]
        np.testing.assert_allclose(found.mean(0), model["mean_mm"][k], atol=0.4)
        np.testing.assert_allclose(found.std(0), sd[k], rtol=0.1)


def test_people_are_as_symmetric_as_the_data(people):
    drawn = complete(people)
    other = mirror(drawn, COW19.mirrored)
    np.testing.assert_allclose(drawn.mean(0), other.mean(0), atol=0.5)
    np.testing.assert_allclose(drawn.std(0), other.std(0), rtol=0.1)
    # Each on its own side, not only on average.
    right, left = ([COW19.landmark(pair[i]) for pair in COW19.symmetric_pairs] for i in (0, 1))
    assert (drawn[:, left, 0] > drawn[:, right, 0]).mean() > 0.99


def test_variants_have_the_frequencies_of_the_studies(people):
    present = np.stack([p.segment_present for p in people])
    fetal = np.stack([p.fetal for p in people]).sum(1)
    missing = {s.name: 1 - present[:, i].mean() for i, s in enumerate(COW19.segments)}
    pcoa = present[:, [COW19.segment("PCoA R"), COW19.segment("PCoA L")]].sum(1)
    found = {
        "one PCoA": (pcoa == 1).mean(),
        "both PCoA": (pcoa == 0).mean(),
        "ACoA": missing["ACoA"],
        "an A1": missing["A1 R"] + missing["A1 L"],
        "one fetal": (fetal == 1).mean(),
        "both fetal": (fetal == 2).mean(),
    }
    expected = {
        "one PCoA": 0.195,
        "both PCoA": 0.228,
        "ACoA": 0.157,
        "an A1": 0.0565,
        "one fetal": 0.136,
        "both fetal": 0.023,
    }
    for name, share in expected.items():
        assert found[name] == pytest.approx(share, abs=3 * np.sqrt(share / len(people))), name
    assert all(missing[s.name] == 0 for s in COW19.segments if not s.may_be_missing)


def test_no_vessel_is_left_without_a_feeder():
    rng = np.random.default_rng(0)
    segment = COW19.segment
    for _ in range(3000):
        present, fetal = draw_variants(rng)
        for side, other, index in (("R", "L", 0), ("L", "R", 1)):
            assert present[segment(f"P1 {side}")] or present[segment(f"PCoA {side}")]
            assert present[segment(f"A1 {side}")] or (
                present[segment("ACoA")] and present[segment(f"A1 {other}")]
            )
            assert present[segment(f"PCoA {side}")] or not fetal[index]


def test_a_missing_segment_straightens_its_ends():
    rng = np.random.default_rng(3)
    landmarks, vertebral = shape._draw_landmarks(rng)
    present = np.ones(20, bool)
    np.testing.assert_array_equal(shape._straighten(landmarks, vertebral, present), landmarks)
    present[COW19.segment("PCoA L")] = False
    moved = shape._straighten(landmarks, vertebral, present)

    def bend(points, a, b, c):
        a, b, c = (points[COW19.landmark(f"{name} L")] for name in (a, b, c))
        u, v = b - a, c - b
        return np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))

    for way in (("ICA/OA", "ICA/PCoA", "ICA terminus"),):
        assert bend(moved, *way) < bend(landmarks, *way)
    changed = np.flatnonzero((moved != landmarks).any(1))
    assert {COW19.landmarks[k] for k in changed} == {"ICA/PCoA L", "P1/P2A L"}


def test_heads_lie_as_asked():
    still = [draw_anatomy(np.random.default_rng(i)) for i in range(300)]
    turned = [draw_anatomy(np.random.default_rng(i), 5.0, 3.0) for i in range(300)]
    for a, b in zip(still, turned, strict=True):
        np.testing.assert_allclose(
            np.linalg.norm(a.landmarks_mm - a.landmarks_mm[10], axis=1),
            np.linalg.norm(b.landmarks_mm - b.landmarks_mm[10], axis=1),
            atol=1e-9,
        )
    angles = rotation_angle_degrees(np.stack([p.rotation for p in turned]))
    # The angle about a random axis: sqrt(3) times the deviation about each.
    assert np.sqrt((angles**2).mean()) == pytest.approx(5 * np.sqrt(3), rel=0.15)
    shifts = np.stack([t.landmarks_mm - s.landmarks_mm @ t.rotation.T
                       for s, t in zip(still, turned, strict=True)])  # fmt: skip
    np.testing.assert_allclose(shifts.std((0, 1)), 3.0, rtol=0.15)
