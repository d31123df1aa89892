"""The arterial trees of synthetic people: what they join, how they run, what they resemble."""

import time
from collections import Counter

import numpy as np
import pytest

from jaxmark.core.anatomy import COW19
from jaxmark.core.geometry import rotation_from_quaternion
from jaxmark.data.phantoms.cow.anatomy import Anatomy
from jaxmark.data.phantoms.cow.vessels import draw_vessels

# Mean positions and (reduced) spread on the left, mm.
HEAD = {
    "C4/C5": ((9.7, -10.5, -8.1), (0.8, 0.9, 0.9)),
    "ICA/OA": ((9.1, -9.0, -3.1), (1.0, 1.0, 0.8)),
    "ICA/PCoA": ((10.7, -0.8, 0.5), (1.0, 0.8, 0.8)),
    "ICA terminus": ((15.0, 0.0, 3.5), (1.4, 1.0, 1.0)),
    "M1/M2": ((28.6, -7.0, 3.6), (3.4, 1.9, 1.3)),
    "A1/A2": ((1.6, -6.0, 5.6), (0.4, 1.4, 1.1)),
    "A2/A3": ((2.3, -24.0, 21.6), (0.4, 1.8, 2.1)),
    "P1/P2A": ((6.8, 9.7, 1.8), (1.2, 1.3, 1.3)),
    "P2A/P2P": ((17.8, 23.2, 6.3), (1.5, 1.5, 1.2)),
    "BA tip": ((0.0, 11.8, 0.3), (1.2, 1.3, 1.6)),
}
# Missing segments, and whether the right and left PCA are fetal.
VARIANTS = {
    "complete": ((), (False, False)),
    "no ACoA": (("ACoA",), (False, False)),
    "no PCoA": (("PCoA R", "PCoA L"), (False, False)),
    "no right A1": (("A1 R",), (False, False)),
    "no left A1": (("A1 L",), (False, False)),
    "fetal, thin P1": ((), (True, False)),
    "fetal, no right P1": (("P1 R",), (True, False)),
    "fetal, no left P1": (("P1 L", "PCoA R"), (False, True)),
    "right P1 fetal and alone": (("P1 L",), (True, True)),
    "no P1": (("P1 R", "P1 L"), (True, True)),
}


def side(name):
    return {" R": -1.0, " L": 1.0}.get(name[-2:], 0.0)


def sideless(name):
    return name.removesuffix(" R").removesuffix(" L")


def person(rng, variant="complete", noise=1.0):
    missing, fetal = VARIANTS[variant]
    points = []
    for name in COW19.landmarks:
        mean, sd = HEAD[sideless(name)]
        drawn = np.array(mean) + noise * rng.normal(0, sd)
        points.append(drawn * (side(name) or 1.0, 1, 1))
    present = np.array([segment.name not in missing for segment in COW19.segments])
    return Anatomy(
        np.array(points), np.array([0, 14.4, -24.1]), present, np.array(fetal), np.eye(3)
    )


def draw(seed, variant="complete", noise=1.0, **settings):
    """A person and that person's vessels by name."""
    rng = np.random.default_rng([5, seed])
    anatomy = person(rng, variant, noise)
    vessels = draw_vessels(rng, anatomy, **settings)
    return anatomy, {vessel.name: vessel for vessel in vessels}


@pytest.fixture(scope="module")
def trees():
    """100 people whose landmarks lie at the mean positions."""
    return [draw(seed, noise=0.0)[1] for seed in range(100)]


@pytest.fixture(scope="module")
def variants():
    """(variant, anatomy, vessels) of 20 people a variant."""
    return [(v, *draw(seed, v)) for v in VARIANTS for seed in range(20)]


def lengths(points):
    return np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])


def angle(a, b):
    return np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))


def direction_from(vessel, point):
    """The tangent at that end of a vessel that lies at `point`, into the vessel."""
    points = vessel.points_mm
    ends = np.linalg.norm(points[[0, -1]] - point, axis=1)
    p = points[:4] if ends[0] < ends[1] else points[:-5:-1]
    return -11 * p[0] + 18 * p[1] - 9 * p[2] + 2 * p[3]  # third-order difference


def test_a_tree_is_a_function_of_the_generator_and_the_anatomy():
    anatomy = person(np.random.default_rng(0))
    a, b, c = (
        draw_vessels(np.random.default_rng(seed), anatomy, pathology=True) for seed in (1, 1, 2)
    )
    assert [v.name for v in a] == [v.name for v in b]
    for v, w in zip(a, b, strict=True):
        for field in ("points_mm", "radii_mm", "travelled_mm"):
            np.testing.assert_array_equal(getattr(v, field), getattr(w, field))
    assert a[0].points_mm.shape != c[0].points_mm.shape or (a[0].points_mm != c[0].points_mm).any()


def test_each_present_segment_is_one_vessel_between_its_landmarks(variants):
    for _, anatomy, tree in variants:
        scheme = [v for v in tree.values() if v.segment >= 0]
        assert sorted(v.segment for v in scheme) == list(np.flatnonzero(anatomy.segment_present))
        for v in scheme:
            segment = COW19.segments[v.segment]
            assert v.name == segment.name
            ends = [anatomy.landmarks_mm[COW19.landmark(name)] for name in segment.ends]
            ends = [anatomy.vertebral_mm, *ends] if v.name == "BA" else ends
            drawn = v.points_mm[[0, -1]]
            if np.linalg.norm(drawn[0] - ends[0]) > 1e-9:  # the ACoA can run either way
                assert v.name == "ACoA"
                drawn = drawn[::-1]
            np.testing.assert_allclose(drawn, ends, atol=1e-9)


def test_where_two_vessels_meet_there_is_no_kink(variants):
    joints = Counter()
    for variant, anatomy, tree in variants:
        for k, name in enumerate(COW19.landmarks):
            point = anatomy.landmarks_mm[k]
            meeting = [
                v
                for v in tree.values()
                if np.linalg.norm(v.points_mm[[0, -1]] - point, axis=1).min() < 1e-9
            ]
            # A branch that just happens to start there makes a fork, which the scheme ignores.
            trunk = [
                v for v in meeting if v.segment >= 0 or v.name[:3] in ("ICA", "M2 ", "A3 ", "P2P")
            ]
            if len(trunk) == 2:
                bend = 180 - angle(*(direction_from(v, point) for v in trunk))
                assert bend < 15, (variant, name, [v.name for v in trunk], bend)
                joints[sideless(name)] += 1
            elif len(trunk) == 1:
                assert name == "BA tip" and variant == "no P1"
    assert set(joints) == set(HEAD) - {"M1/M2"}  # always a fork: M1 and two trunks


def test_points_are_dense_and_radii_smooth(variants):
    for _, _, tree in variants:
        for v in tree.values():
            along = lengths(v.points_mm)
            assert np.diff(along).max() <= 0.5
            assert v.radii_mm.min() >= 0.35 and v.radii_mm.max() < 3.5
            assert np.abs(np.diff(v.radii_mm) / np.diff(along)).max() < 0.3
            np.testing.assert_allclose(np.diff(v.travelled_mm), np.diff(along), atol=0.03)


def test_blood_runs_on_from_the_neck(variants):
    for _, _, tree in variants:
        drawn = []
        for v in tree.values():
            entry = v.points_mm[0]
            if v.name[:3] in ("ICA", "VA "):
                assert v.travelled_mm[0] == 0 and entry[2] < -50
            else:
                gaps = [np.linalg.norm(w.points_mm - entry, axis=1) for w in drawn]
                touching = [
                    w.travelled_mm[gap.argmin()]
                    for w, gap in zip(drawn, gaps, strict=True)
                    if gap.min() < 1e-9
                ]
                assert pytest.approx(v.travelled_mm[0]) in touching, v.name
            drawn.append(v)


def test_carotid_radius_is_continuous_and_falls(trees):
    for tree in trees:
        for letter in "RL":
            c5, c6, c7 = (tree[f"{name} {letter}"].radii_mm for name in ("C5", "C6", "C7"))
            assert c5[-1] == pytest.approx(c6[0]) and c6[-1] == pytest.approx(c7[0])
    for thick, thin in (("C5 R", "C7 R"), ("C7 R", "M1 R"), ("M1 R", "A1 R"), ("BA", "P1 R")):
        means = [np.mean([tree[name].radii_mm.mean() for tree in trees]) for name in (thick, thin)]
        assert means[0] > 1.1 * means[1]


def test_flow_divides_by_murrays_law_at_the_middle_cerebral_artery(trees):
    for tree in trees:
        trunks = [
            v for v in tree.values() if (v.points_mm[0] == tree["M2 superior R"].points_mm[0]).all()
        ]
        assert len(trunks) in (2, 3)
        flow = sum(v.radii_mm[0] ** 3 for v in trunks)
        assert flow == pytest.approx(tree["M1 R"].radii_mm[-1] ** 3, rel=0.05)


def test_the_siphon_is_an_s(trees):
    for tree in trees:
        parts = [tree[f"{name} L"].points_mm for name in ("ICA", "C5", "C6", "C7")]
        parts[0] = parts[0][lengths(parts[0]) > lengths(parts[0])[-1] - 28]  # from the lacerum up
        line = np.concatenate([parts[0], *(p[1:] for p in parts[1:])])
        heading = np.unwrap(np.arctan2(*np.diff(line[:, 1:], axis=0).T))  # in the sagittal plane
        turns = np.diff(heading)
        assert np.degrees(np.abs(turns).sum()) > 240
        forwards, back = turns[turns < 0].sum(), turns[turns > 0].sum()
        assert np.degrees(min(-forwards, back)) > 50


def test_vessels_lie_on_their_side_and_mirror_each_other_on_average(trees):
    def mean(name):
        drawn = [tree[name] for tree in trees if name in tree]
        picks = [np.linspace(0, len(v.radii_mm) - 1, 20).round().astype(int) for v in drawn]
        tubes = [
            np.column_stack([v.points_mm, v.radii_mm])[i] for v, i in zip(drawn, picks, strict=True)
        ]
        return np.mean(tubes, 0)

    left = sorted({name for tree in trees for name in tree if name.endswith(" L")})
    assert len(left) > 25
    for name in left:
        tube, mirrored = mean(name), mean(f"{name[:-1]}R") * (-1, 1, 1, 1)
        assert tube[:, 0].mean() > 0 and mirrored[:, 0].mean() > 0
        limit = 1.0 if name in [segment.name for segment in COW19.segments] else 3.0
        assert np.linalg.norm((tube - mirrored)[:, :3], axis=1).max() < limit, name
        np.testing.assert_allclose(tube[:, 3], mirrored[:, 3], rtol=0.15)


@pytest.mark.parametrize(
    "landmark, least", [("M1/M2 L", 0.8), ("A2/A3 L", 0.6), ("P2A/P2P L", 0.4), ("BA tip", 0.9)]
)
def test_forks_near_landmarks_can_be_taken_for_them(trees, landmark, least):
    mean = HEAD[sideless(landmark)][0]
    found = 0
    for tree in trees:
        same_side = [v for v in tree.values() if v.segment < 0 and v.name[-1] == "L"]
        away = np.linalg.norm([v.points_mm[0] - mean for v in same_side], axis=1)
        found += ((away > 1) & (away < 12)).any()
    assert found >= least * len(trees)


def test_variants_of_the_middle_cerebral_artery_are_as_frequent_as_in_people(trees):
    def begins(tree, name, other):
        return name in tree and (tree[name].points_mm[0] == tree[other].points_mm[0]).all()

    sides = [(tree, letter) for tree in trees for letter in "RL"]
    three = np.mean([begins(t, f"M2 middle {s}", f"M2 superior {s}") for t, s in sides])
    early = np.mean([f"anterior temporal {s}" in t for t, s in sides])
    assert 0.05 < three < 0.2 and 0.4 < early < 0.6
    for tree, letter in sides:
        if f"anterior temporal {letter}" in tree:
            start = tree[f"anterior temporal {letter}"].points_mm[0]
            m1 = tree[f"M1 {letter}"]
            i = np.linalg.norm(m1.points_mm - start, axis=1).argmin()
            assert 4.5 < m1.travelled_mm[-1] - m1.travelled_mm[i] < 12.5


def test_most_vessels_end_outside_a_crop(trees):
    ends, inside = 0, 0
    for tree in trees:
        for v in tree.values():
            others = (w.points_mm for w in tree.values() if w is not v)
            if min(np.linalg.norm(w - v.points_mm[-1], axis=1).min() for w in others) > 1e-9:
                ends += 1
                inside += (np.abs(v.points_mm[-1]) < (49, 41, 45)).all()
    assert inside < 0.15 * ends


def test_a_fetal_artery_is_thick_and_a_single_a1_feeds_both_sides():
    for seed in range(20):
        _, tree = draw(seed, ("fetal, thin P1", "right P1 fetal and alone")[seed % 2])
        assert tree["PCoA R"].radii_mm.mean() > 0.9 * tree["P2A R"].radii_mm.mean()
        assert np.median(tree["P1 R"].radii_mm) < 0.9 * np.median(tree["PCoA R"].radii_mm)
        assert tree["P2A R"].travelled_mm[0] == tree["PCoA R"].travelled_mm[-1]
        for letter, other in ("RL", "LR"):
            _, tree = draw(seed, {"R": "no right A1", "L": "no left A1"}[letter])
            np.testing.assert_allclose(
                tree["ACoA"].points_mm[[0, -1]],
                [tree[f"A2 {side}"].points_mm[0] for side in (other, letter)],
                atol=1e-9,
            )
            assert tree[f"A2 {letter}"].travelled_mm[0] == tree["ACoA"].travelled_mm[-1]


def test_a_basilar_artery_without_p1_ends_in_the_superior_cerebellar_arteries():
    _, tree = draw(0, "no P1")
    for letter in "RL":
        np.testing.assert_array_equal(tree[f"SCA {letter}"].points_mm[0], tree["BA"].points_mm[-1])


@pytest.mark.parametrize("missing", [("A1 R", "ACoA"), ("A1 R", "A1 L"), ("P1 L", "PCoA L")])
def test_an_artery_that_nothing_feeds_is_refused(missing):
    anatomy = person(np.random.default_rng(0))
    for name in missing:
        anatomy.segment_present[COW19.segment(name)] = False
    with pytest.raises(ValueError, match="nothing feeds (A2|P2A)"):
        draw_vessels(np.random.default_rng(0), anatomy)


def test_the_tree_turns_and_moves_with_the_head():
    anatomy = person(np.random.default_rng(0))
    turn, shift = rotation_from_quaternion(np.array([1.0, 0.2, -0.3, 0.4])), np.array([7.0, -9, 3])
    moved = Anatomy(
        anatomy.landmarks_mm @ turn.T + shift,
        anatomy.vertebral_mm @ turn.T + shift,
        anatomy.segment_present,
        anatomy.fetal,
        turn,
    )
    before, after = (draw_vessels(np.random.default_rng(1), a) for a in (anatomy, moved))
    for v, w in zip(before, after, strict=True):
        np.testing.assert_allclose(v.points_mm @ turn.T + shift, w.points_mm, atol=1e-6)
        np.testing.assert_allclose(v.radii_mm, w.radii_mm)


def test_pathology_narrows_one_or_two_vessels_and_adds_aneurysms():
    narrowed, aneurysms = Counter(), 0
    for seed in range(60):
        _, healthy = draw(seed)
        _, ill = draw(seed, pathology=True)
        sick = [n for n in healthy if (healthy[n].radii_mm != ill[n].radii_mm).any()]
        assert len(sick) in (1, 2)
        for name in sick:
            v, w = healthy[name], ill[name]
            np.testing.assert_array_equal(v.points_mm, w.points_mm)
            ratio = w.radii_mm / v.radii_mm
            assert ratio.max() <= 1 and ratio[[0, -1]] == pytest.approx(1, abs=0.05)
            assert 0.29 < ratio.min() < 0.7
            assert np.ptp(v.travelled_mm[ratio < 1 - 1e-9]) < 8
            narrowed[name[:-2]] += 1
        if "aneurysm" in ill:
            aneurysms += 1
            sac = ill["aneurysm"]
            assert sac.segment == -1 and 1.4 < sac.radii_mm.max() <= 4
            assert sac.radii_mm.argmax() not in (0, len(sac.radii_mm) - 1)
            gaps = [
                np.linalg.norm(v.points_mm - sac.points_mm[0], axis=1).min()
                for v in healthy.values()
            ]
            assert min(gaps) < 1e-9
    assert 18 <= aneurysms <= 42
    assert len(narrowed) >= 4


def test_a_tree_takes_less_than_60_milliseconds():
    anatomy, seconds = person(np.random.default_rng(0)), []
    for seed in range(5):
        start = time.process_time()
        draw_vessels(np.random.default_rng(seed), anatomy)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.06
