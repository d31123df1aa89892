"""Angiograms of the aorta: landmarks lie on what they name, people are as published."""

import dataclasses
import hashlib

import numpy as np
import pytest

from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cohort import check_inside, read_cohort
from jaxmark.data.phantoms.curves import arc_lengths
from jaxmark.data.phantoms.vessels.aorta import AortaPhantom, draw_person, make_case
from jaxmark.data.phantoms.vessels.branches import AORTA9
from jaxmark.data.scans import read_scan

SMALL = AortaPhantom(train=2, val=0, test=1, seed=4, spacing_mm=(6.0, 6.0, 6.0), shape=(34, 30, 95))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    SMALL.write(root, workers=1)
    return root


@pytest.fixture(scope="module")
def people():
    return [draw_person(SMALL, number) for number in range(200)]


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_pipeline_reads_it(root):
    cohort = read_cohort(Data(root=str(root), landmarks=AORTA9.landmarks))
    assert {split: len(cases) for split, cases in cohort.splits.items() if cases} == {
        "train": 2,
        "test": 1,
    }
    for case in cohort.cases.values():
        check_inside(case, read_scan(case.scan))


def test_a_case_is_a_function_of_settings_and_number(root):
    case = make_case(SMALL, 1)
    scan = read_scan(root / "images" / "phantom-001.nii.gz")
    np.testing.assert_array_equal(scan.voxels, case.voxels)
    assert np.mean(case.voxels != make_case(SMALL, 2).voxels) > 0.5


def test_the_number_of_processes_changes_no_byte(root, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmark.data.phantoms.folders._VOXELS_WORTH_PROCESSES", 0)
    SMALL.write(tmp_path, workers=2)
    assert digests(tmp_path) == digests(root)


def test_branches_leave_the_aorta_s_wall_where_their_landmarks_are(people):
    for aorta in people[:60]:
        found = dict(zip(AORTA9.landmarks, aorta.landmarks_mm, strict=True))
        vessels = {vessel.name: vessel for vessel in aorta.vessels}
        main = [vessel for vessel in aorta.vessels if "aorta" in vessel.name]
        points = np.vstack([vessel.points_mm for vessel in main])
        radii = np.concatenate([vessel.radii_mm for vessel in main])
        for name in AORTA9.landmarks[:8]:
            place = found[name]
            if np.isnan(place).any():
                assert name not in vessels
                continue
            on_line = np.linalg.norm(vessels[name].points_mm - place, axis=1).min()
            assert on_line < 1e-6, name
            stem = points, radii
            if name.startswith("left common carotid") and not aorta.arch.startswith("usual"):
                trunk = vessels["brachiocephalic trunk"]
                stem = trunk.points_mm, trunk.radii_mm
            outside = (np.linalg.norm(stem[0] - place, axis=1) - stem[1]).min()
            # The first point of the branch's line that is outside.
            assert 0 <= outside < 1.0, name
        end = found["aortic bifurcation"]
        np.testing.assert_array_equal(end, vessels["abdominal aorta"].points_mm[-1])
        for side in ("right", "left"):
            np.testing.assert_allclose(vessels[f"{side} common iliac artery"].points_mm[0], end)
        # From above to below, the arch's branches from right to left.
        heights = [found[name][2] for name in AORTA9.landmarks if not np.isnan(found[name][0])]
        assert min(heights[:3]) > max(heights[3:]) and heights[-1] == min(heights)
        assert found["right renal artery"][0] < found["left renal artery"][0]
        assert found["brachiocephalic trunk"][0] < found["left subclavian artery"][0]


def test_people_are_as_published(people):
    """Means within a third of the published spread, spreads within a factor of 1.6."""
    drawn: dict[str, list[float]] = {}

    def note(name, value):
        drawn.setdefault(name, []).append(float(value))

    for aorta in people:
        vessels = {vessel.name: vessel for vessel in aorta.vessels}
        main = vessels["abdominal aorta"]

        def height(name, main=main, vessels=vessels):
            start = vessels[name].points_mm[0]
            return main.travelled_mm[np.linalg.norm(main.points_mm - start, axis=1).argmin()]

        coeliac, superior = height("coeliac trunk"), height("superior mesenteric artery")
        note("coeliac to superior mesenteric", superior - coeliac)
        note("coeliac to bifurcation", main.travelled_mm[-1] - coeliac)
        note("superior mesenteric to left renal", height("left renal artery") - superior)
        at_renal = np.searchsorted(main.travelled_mm, height("left renal artery"))
        note("aorta at the left renal artery", 2 * main.radii_mm[at_renal])
        for name in ("coeliac trunk", "superior mesenteric artery"):
            note(f"{name}, diameter", 2 * vessels[name].radii_mm[0])
        if "inferior mesenteric artery" in vessels:
            inferior = height("inferior mesenteric artery")
            note("superior to inferior mesenteric", inferior - superior)
            note("inferior mesenteric to bifurcation", main.travelled_mm[-1] - inferior)
            diameter = 2 * vessels["inferior mesenteric artery"].radii_mm[0]
            note("inferior mesenteric artery, diameter", diameter)
        arch = ("brachiocephalic trunk", "left common carotid artery", "left subclavian artery")
        iliac = ("right common iliac artery", "left common iliac artery")
        for name in (*arch, *iliac):
            note(f"{name}, diameter", 2 * vessels[name].radii_mm[0])
        note("ascending aorta", 2 * vessels["ascending aorta and arch"].radii_mm[66])

    # Mean and spread between people; sources stand in `branches`.
    published = {
        "coeliac to superior mesenteric": (14.3, 2.7),
        "superior to inferior mesenteric": (57.8, 8.0),
        "inferior mesenteric to bifurcation": (35.2, 7.4),
        "coeliac to bifurcation": (107.2, 11.5),
        "superior mesenteric to left renal": (16.9, 4.0),  # 0.84 of 20.1; no spread is given
        "aorta at the left renal artery": (20.1, 2.9),
        "coeliac trunk, diameter": (6.4, 1.6),
        "superior mesenteric artery, diameter": (7.4, 1.7),
        "inferior mesenteric artery, diameter": (3.6, 0.7),
        "ascending aorta": (32.6, 4.1),
        "brachiocephalic trunk, diameter": (12.5, 1.95),
        "left common carotid artery, diameter": (8.28, 1.51),
        "left subclavian artery, diameter": (10.41, 2.2),
        # Both sexes: 0.6 of 9.77 and 9.65, 0.4 of 8.59 and 8.45.
        "right common iliac artery, diameter": (9.3, 1.6),
        "left common iliac artery, diameter": (9.2, 1.6),
    }
    assert drawn.keys() == published.keys()
    for name, (mean, spread) in published.items():
        values = np.array(drawn[name])
        assert abs(values.mean() - mean) < spread / 3, (name, values.mean())
        assert spread / 1.6 < values.std() < 1.6 * spread, (name, values.std())


def test_variants_are_as_frequent_as_published(people):
    def near(share, expected):
        return abs(share - expected) < 3 * np.sqrt(expected * (1 - expected) / len(people))

    names = [{vessel.name for vessel in aorta.vessels} for aorta in people]
    assert near(np.mean([not aorta.arch.startswith("usual") for aorta in people]), 0.195)
    assert near(np.mean(["vertebral" in aorta.arch for aorta in people]), 0.04)
    further = [any(name.startswith("further") for name in found) for found in names]
    assert near(np.mean(further), 0.168)
    # A setting.
    assert near(np.mean([aorta.aneurysm is not None for aorta in people]), 0.1)
    closed = [aorta for aorta in people if not aorta.segment_present.all()]
    assert all(aorta.aneurysm is not None for aorta in closed)


def test_an_aneurysm_swells_below_the_kidneys_and_holds_thrombus():
    ill = dataclasses.replace(SMALL, aneurysms=1.0)
    for number in range(20):
        aorta = draw_person(ill, number)
        assert aorta.aneurysm is not None
        vessels = {vessel.name: vessel for vessel in aorta.vessels}
        main = vessels["abdominal aorta"]
        outer = aorta.aneurysm.radii_mm[-len(main.radii_mm) :]
        widest = int(np.argmax(outer - main.radii_mm))
        # Wider than the lumen, and than the aorta above.
        assert outer[widest] > main.radii_mm[widest] and outer.max() > main.radii_mm[0]
        renal = max(vessels[f"{side} renal artery"].points_mm[0, 2] for side in ("left", "right"))
        assert main.points_mm[widest, 2] < renal


def test_the_scan_shows_bright_arteries_and_the_tissues_of_a_trunk():
    case = make_case(dataclasses.replace(SMALL, spacing_mm=(4.0, 4.0, 8.0), shape=(52, 46, 72)), 0)
    main = {vessel.name: vessel for vessel in case.vessels}["thoracic aorta"]
    ijk = apply_affine(np.linalg.inv(case.ijk_to_lps), main.points_mm[::10])
    line = case.voxels[tuple(np.rint(ijk).astype(int).T)]
    assert 200 < np.median(line) < 560
    assert np.mean(case.voxels < -700) > 0.05  # lungs
    assert np.mean((case.voxels > -140) & (case.voxels < -60)) > 0.05  # fat
    assert np.mean((case.voxels > 20) & (case.voxels < 110)) > 0.1  # muscle and organs
    assert np.mean(case.voxels > 250) > 0.01  # bone and blood


def test_slabs_show_what_the_whole_shows(monkeypatch):
    whole = make_case(SMALL, 0).voxels.astype(int)
    monkeypatch.setattr("jaxmark.data.phantoms.scanner._SLAB_VOXELS", 1)
    slabs = make_case(SMALL, 0).voxels.astype(int)
    # Sums in another order round otherwise.
    assert np.abs(whole - slabs).max() <= 1 and np.mean(whole != slabs) < 1e-3


def test_the_carotid_of_a_common_trunk_leaves_it_and_not_the_arch(people):
    shared = [aorta for aorta in people if not aorta.arch.startswith("usual")]
    assert len(shared) > 20
    for aorta in shared:
        vessels = {vessel.name: vessel for vessel in aorta.vessels}
        carotid = vessels["left common carotid artery"]
        trunk = vessels["brachiocephalic trunk"]
        on_trunk = np.linalg.norm(trunk.points_mm - carotid.points_mm[0], axis=1)
        assert on_trunk.min() == 0
        assert arc_lengths(trunk.points_mm)[on_trunk.argmin()] > 10
