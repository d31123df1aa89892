"""Label maps of synthetic heads: who is drawn does not depend on the grid, and what is."""

import numpy as np
import pytest

from jaxmark.core.anatomy import COW19
from jaxmark.core.geometry import apply_affine
from jaxmark.core.tissues import TISSUES
from jaxmark.data.phantoms.cow.labels import draw_labels
from jaxmark.data.phantoms.cow.shape import draw_anatomy
from jaxmark.data.phantoms.cow.vessels import draw_vessels
from jaxmark.data.phantoms.grids import centred_grid

CENTRE_MM = (0.0, 0.0, 6.5)
CIRCLE = centred_grid((80, 72, 64), (1.0, 1.0, 1.0), CENTRE_MM)
COARSE = centred_grid((58, 58, 52), (4.0, 4.0, 4.0), CENTRE_MM)


@pytest.fixture(scope="module")
def heads():
    return [draw_labels(COARSE, 3, number) for number in range(3)]


def where_mm(grid, case):
    return apply_affine(grid.ijk_to_lps, case["landmarks_ijk"].astype(float))


def test_a_case_is_a_function_of_seed_and_number():
    for seed, number, same in ((3, 1, True), (3, 2, False), (4, 1, False)):
        one, other = draw_labels(COARSE, 3, 1), draw_labels(COARSE, seed, number)
        assert (one["image"].tobytes() == other["image"].tobytes()) == same
        assert np.array_equal(one["targets"]["tissues"], other["targets"]["tissues"]) == same


def test_a_person_is_the_same_on_every_grid(heads):
    near = draw_labels(CIRCLE, 3, 1)
    both = near["present"] & heads[1]["present"]
    assert both.sum() > 10
    np.testing.assert_allclose(
        where_mm(CIRCLE, near)[both], where_mm(COARSE, heads[1])[both], atol=1e-3
    )
    # What lies in arteries there, in cubic millimetres, lies in the same voxels of both.
    volumes = [
        case["image"][box].sum() / 255 * np.prod(grid.spacing_mm)
        for case, grid, box in (
            (near, CIRCLE, np.s_[8:72, 8:64, 8:56]),
            (heads[1], COARSE, np.s_[21:37, 22:36, 20:32]),
        )
    ]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.1)


def test_landmarks_lie_on_arteries():
    for number in range(3):
        case = draw_labels(CIRCLE, 7, number, pathology=0.5)
        i, j, k = np.rint(case["landmarks_ijk"][case["present"]]).astype(int).T
        assert (case["image"][i, j, k, 0] > 64).all()


def test_where_a_segment_is_missing_its_ends_are_absent():
    states = [draw_labels(COARSE, 3, n) for n in range(12)]
    present, absent = (np.array([case[key] for case in states]) for key in ("present", "absent"))
    assert not (present & absent).any() and (present | absent).all()
    assert absent.any(0)[COW19.may_change].any() and not absent[:, ~COW19.may_change].any()
    for case in states:
        assert not case["landmarks_ijk"][case["absent"]].any()


def test_what_lies_outside_of_the_grid_is_neither_present_nor_absent():
    middle = centred_grid((24, 24, 24), (1.0, 1.0, 1.0), CENTRE_MM)
    case, whole = draw_labels(middle, 3, 1), draw_labels(COARSE, 3, 1)
    ijk = apply_affine(np.linalg.inv(middle.ijk_to_lps), where_mm(COARSE, whole))
    inside = ((ijk >= 0) & (ijk <= 23)).all(1)
    known = whole["present"]
    assert np.array_equal(case["present"][known], inside[known])
    assert 0 < case["present"].sum() < known.sum()
    assert not case["absent"][known].any()


def test_the_pose_moves_the_person_as_far_as_it_says():
    still, turned = (
        [draw_labels(COARSE, 5, n, rotation_sd_degrees=a, translation_sd_mm=t) for n in range(6)]
        for a, t in ((0.0, 0.0), (15.0, 15.0))
    )
    moves = []
    for one, other in zip(still, turned, strict=True):
        both = one["present"] & other["present"]
        a, b = where_mm(COARSE, one)[both], where_mm(COARSE, other)[both]
        moves.append(b.mean(0) - a.mean(0))
        sizes = [np.linalg.norm(p - p.mean(0), axis=1) for p in (a, b)]
        np.testing.assert_allclose(*sizes, atol=1e-2)
    assert 5 < np.std(moves) < 30


def test_tissues_are_about_as_large_as_a_person_s(heads):
    for case in heads:
        tissues = case["targets"]["tissues"]
        assert tissues.dtype == np.uint8 and set(np.unique(tissues)) <= set(range(len(TISSUES)))
        litres = {
            name: (tissues == i).sum() * np.prod(COARSE.spacing_mm) / 1e6
            for i, name in enumerate(TISSUES)
        }
        assert 1.0 < litres["grey"] + litres["white"] < 1.9
        assert 0.5 < litres["grey"] / litres["white"] < 3
        assert 0.05 < litres["csf"] < 0.45
        assert 0.01 < litres["vein"] < 0.1
        # The corners are outside of the head.
        assert (tissues[[0, 0, -1, -1], [0, -1, 0, -1], -1] == 0).all()


def test_skulls_are_as_thick_as_skulls():
    # Columns through the top of the head, at 1 mm.
    top = centred_grid((9, 9, 40), (4.0, 4.0, 1.0), (0.0, 15.0, 92.0))
    bone = (TISSUES.index("bone"), TISSUES.index("marrow"))
    for number in range(3):
        tissues = draw_labels(top, 3, number, rotation_sd_degrees=0.0)["targets"]["tissues"]
        thick_mm = np.isin(tissues, bone).sum(2)
        assert 3 < np.median(thick_mm) < 12
        assert (tissues == TISSUES.index("marrow")).any()


def test_lively_courses_wander_between_the_same_landmarks():
    tortuosity = {False: [], True: []}
    for number in range(12):
        anatomy = draw_anatomy(np.random.default_rng([0, number]))
        for lively, found in tortuosity.items():
            tree = draw_vessels(np.random.default_rng([1, number]), anatomy, lively=lively)
            for vessel in tree:
                if vessel.name[:2] in ("A1", "P1"):
                    steps = np.linalg.norm(np.diff(vessel.points_mm, axis=0), axis=1)
                    ends = vessel.points_mm[[0, -1]]
                    found.append(steps.sum() / np.linalg.norm(ends[1] - ends[0]))
                    names = COW19.segments[vessel.segment].ends
                    wanted = anatomy.landmarks_mm[[COW19.landmark(name) for name in names]]
                    np.testing.assert_allclose(ends, wanted, atol=1e-6)
    # Medians of 560 people are 1.23 and 1.19.
    assert np.median(tortuosity[False]) < 1.1 < np.median(tortuosity[True]) < 1.35
