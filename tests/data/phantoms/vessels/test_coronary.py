"""Coronary angiograms: landmarks lie on what they name, people are as published, HU are CT's."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine
from jaxmark.data.attributes import read_attributes
from jaxmark.data.cohort import check_inside, read_cohort
from jaxmark.data.phantoms.curves import arc_lengths
from jaxmark.data.phantoms.vessels.coronaries import CORONARY5
from jaxmark.data.phantoms.vessels.coronary import CoronaryPhantom, draw_person, make_case
from jaxmark.data.phantoms.vessels.heart import chambers
from jaxmark.data.phantoms.vessels.root import LEFT_SINUS, NON_CORONARY_SINUS
from jaxmark.data.scans import read_scan

SMALL = CoronaryPhantom(
    train=2, val=1, test=1, seed=3, spacing_mm=(5.0, 5.0, 5.0), shape=(41, 41, 41)
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    SMALL.write(root, workers=1)
    return root


@pytest.fixture(scope="module")
def people():
    return [draw_person(dataclasses.replace(SMALL, no_left_main=0.1), k) for k in range(200)]


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


# --- the cohort


def test_the_pipeline_reads_it(root):
    cohort = read_cohort(Data(root=str(root), landmarks=CORONARY5.landmarks))
    assert {split: len(cases) for split, cases in cohort.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    for case in cohort.cases.values():
        check_inside(case, read_scan(case.scan))


def test_files_and_case_agree(root):
    case = make_case(SMALL, 2)
    scan = read_scan(root / "images" / "phantom-002.nii.gz")
    np.testing.assert_array_equal(scan.voxels, case.voxels)
    np.testing.assert_allclose(scan.ijk_to_lps, case.ijk_to_lps, atol=1e-5)
    known = json.loads((root / "anatomy" / "phantom-002.json").read_text())
    assert list(known["segment_present"].values()) == case.segment_present.tolist()
    assert [line["name"] for line in known["centrelines"]] == [v.name for v in case.vessels]
    for line, vessel in zip(known["centrelines"], case.vessels, strict=True):
        np.testing.assert_allclose(line["points_lps_mm"], vessel.points_mm, atol=1e-3)
        np.testing.assert_allclose(line["radii_mm"], vessel.radii_mm, atol=1e-3)
    assert json.loads((root / "phantom.json").read_text())["class"] == "CoronaryPhantom"
    names = [segment.name for segment in CORONARY5.segments]
    cases = [f"phantom-{number:03d}" for number in range(4)]
    states, _ = read_attributes(root / "attributes.csv", names, cases)
    np.testing.assert_array_equal(states["phantom-002"], np.where(case.segment_present, 1, -1))


def test_the_number_of_processes_changes_no_byte(root, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmark.data.phantoms.folders._VOXELS_WORTH_PROCESSES", 0)
    SMALL.write(tmp_path, workers=2)
    assert digests(tmp_path) == digests(root)


def test_an_interrupted_cohort_is_finished(root, tmp_path):
    SMALL.write(tmp_path, workers=1)
    kept = (tmp_path / "images" / "phantom-000.nii.gz").stat().st_mtime_ns
    for lost in ("splits.json", "anatomy/phantom-001.json", "attributes.csv"):
        (tmp_path / lost).unlink()
    SMALL.write(tmp_path, workers=1)
    assert digests(tmp_path) == digests(root)
    assert (tmp_path / "images" / "phantom-000.nii.gz").stat().st_mtime_ns == kept


def test_what_the_image_is_like_leaves_the_anatomy_alone():
    first = make_case(SMALL, 1)
    changes = {"motion_mm": 0.0, "plaques": 0.0, "spacing_mm": (6.0, 6.0, 6.0), "padding_hu": -1024}
    other = make_case(dataclasses.replace(SMALL, **changes), 1)
    np.testing.assert_array_equal(first.landmarks_mm, other.landmarks_mm)
    for a, b in zip(first.vessels, other.vessels, strict=True):
        np.testing.assert_array_equal(a.points_mm, b.points_mm)
    assert first.voxels[0, 0, 0] == 0 and other.voxels[0, 0, 0] == -1024


# --- landmarks


def test_landmarks_lie_on_what_they_name(people):
    for heart, arteries in people[:60]:
        found = dict(zip(CORONARY5.landmarks, arteries.landmarks_mm, strict=True))
        standard = heart.to_standard(arteries.landmarks_mm.T).T
        vessels = {vessel.name: vessel for vessel in arteries.vessels}
        first_left = vessels["LM" if arteries.segment_present[0] else "LAD"]
        # An ostium is the first point of a centreline and lies on the root's wall.
        for name, vessel in (("left", first_left), ("right", vessels["RCA"])):
            np.testing.assert_allclose(vessel.points_mm[0], found[f"{name} coronary ostium"])
        on_wall = heart.root.lumen(standard[:3].T)
        np.testing.assert_allclose(on_wall, 0, atol=1e-3)
        # The leaflet's lowest attachment: at the annulus, on the leaflet, in its sinus' middle.
        commissure = standard[2]
        assert heart.root.axis @ commissure == pytest.approx(0, abs=1e-6)
        outward = heart.root.outward(NON_CORONARY_SINUS)
        assert commissure @ outward == pytest.approx(np.linalg.norm(commissure))
        assert heart.root.leaflets(commissure[:, None])[0] == pytest.approx(0, abs=1e-3)
        # The apex: on the left ventricle's surface, and no part of it is further along its axis.
        inside = chambers(heart, standard[4][:, None])
        assert inside["ventricle"][0] == pytest.approx(0, abs=1e-3)
        if arteries.segment_present[0]:
            bifurcation = found["left main bifurcation"]
            np.testing.assert_allclose(vessels["LM"].points_mm[-1], bifurcation)
            for name in ("LAD", "LCX"):
                np.testing.assert_allclose(vessels[name].points_mm[0], bifurcation)
        else:
            assert "LM" not in vessels and np.isnan(found["left main bifurcation"]).all()
            gap = np.linalg.norm(vessels["LAD"].points_mm[0] - vessels["LCX"].points_mm[0])
            assert gap > 3


def test_the_apex_is_the_far_end_of_the_ventricle(people):
    rng = np.random.default_rng(0)
    for heart, arteries in people[:20]:
        places = rng.uniform(-130, 130, (40_000, 3)) + heart.annulus_mm
        wall = chambers(heart, heart.to_standard(places.T))["ventricle"]
        apex = arteries.landmarks_mm[4]
        base = heart.to_lps(np.array([[9.0, 12.3, -13.5]]))[0]
        axis = (apex - base) / np.linalg.norm(apex - base)
        reached = (places[wall < 0] - base) @ axis
        assert 0.85 * np.linalg.norm(apex - base) < reached.max() < np.linalg.norm(apex - base)


def test_arteries_run_outside_the_chambers(people):
    """They lie on the heart: beyond their first centimetres not in blood, and not far from it."""
    for heart, arteries in people[:20]:
        for vessel in arteries.vessels:
            if vessel.name in ("LAD", "RCA", "D1", "OM1", "PDA", "acute marginal"):
                points = vessel.points_mm[arc_lengths(vessel.points_mm) > 20]
                distance = chambers(heart, heart.to_standard(points.T))["heart"]
                assert distance.min() > 0 and distance.max() < 16, vessel.name


# --- people


def test_people_are_as_published(people):
    """Means within a third of the published spread, spreads within a factor of 1.6."""
    drawn: dict[str, list[float]] = {}

    def note(name, value):
        drawn.setdefault(name, []).append(float(value))

    for heart, arteries in people:
        vessels = {vessel.name: vessel for vessel in arteries.vessels}
        root, axis = heart.root, heart.root.axis
        standard = heart.to_standard(arteries.landmarks_mm.T).T
        note("left ostium, height", heart.size * (axis @ standard[0]))
        note("right ostium, height", heart.size * (axis @ standard[1]))
        sinus = root.radius(np.array(root.height / 2), np.array(LEFT_SINUS))
        opposite = root.radius(np.array(root.height / 2), np.array(LEFT_SINUS + np.pi))
        note("sinuses, diameter", heart.size * (sinus + opposite))
        note("ascending aorta, diameter", 2 * heart.size * root.ascending)
        note("LAD, proximal diameter", 2 * vessels["LAD"].radii_mm[0])
        note("LAD, distal diameter", 2 * vessels["LAD"].radii_mm[-1])
        note("LAD, length", arc_lengths(vessels["LAD"].points_mm)[-1])
        if arteries.dominance == "right":
            note("RCA, proximal diameter", 2 * vessels["RCA"].radii_mm[0])
            note("LCX, proximal diameter", 2 * vessels["LCX"].radii_mm[0])
            note("LCX, length", arc_lengths(vessels["LCX"].points_mm)[-1])
        if "LM" not in vessels:
            continue
        note("LM, diameter", 2 * vessels["LM"].radii_mm[0])
        note("LM, length", arc_lengths(vessels["LM"].points_mm)[-1])
        steps = [
            vessels[name].points_mm[11] - vessels[name].points_mm[0] for name in ("LAD", "LCX")
        ]
        cosine = steps[0] @ steps[1] / np.prod(np.linalg.norm(steps, axis=1))
        kind = "with" if "ramus" in vessels else "without"
        note(f"LAD to LCX, angle, {kind} ramus", np.degrees(np.arccos(cosine)))

    # Mean and spread between people; sources stand in `coronaries` and `heart`.
    published = {
        "left ostium, height": (12.6, 2.6),
        "right ostium, height": (13.2, 2.6),
        "sinuses, diameter": (33.4, 3.1),  # both sexes: 0.6 of 34.8, 0.4 of 31.2, 2.6 in either
        "ascending aorta, diameter": (32.6, 4.1),
        "LM, diameter": (4.5, 0.5),
        "LM, length": (10.5, 5.3),
        "LAD, proximal diameter": (3.7, 0.4),
        "LAD, distal diameter": (1.9, 0.4),
        "RCA, proximal diameter": (3.9, 0.6),
        "LCX, proximal diameter": (3.4, 0.5),
        "LAD to LCX, angle, without ramus": (75, 23),
        "LAD to LCX, angle, with ramus": (89, 21),
        "LAD, length": (110, 20),  # most 100 to 120 mm; the spread is wide for a third of it
        "LCX, length": (72.5, 12),  # most 65 to 80 mm
    }
    assert drawn.keys() == published.keys()
    for name, (mean, spread) in published.items():
        values = np.array(drawn[name])
        assert abs(values.mean() - mean) < spread / 3 + spread / np.sqrt(len(values)), (
            name,
            values.mean(),
        )
        assert spread / 1.6 < values.std() < 1.6 * spread, (name, values.std())


def test_variants_are_as_frequent_as_published(people):
    share = np.mean([arteries.dominance == "right" for _, arteries in people])
    assert abs(share - 0.893) < 3 * np.sqrt(0.893 * 0.107 / 200)
    names = [{vessel.name for vessel in arteries.vessels} for _, arteries in people]
    assert abs(np.mean(["ramus" in found for found in names]) - 0.31) < 3 * np.sqrt(
        0.31 * 0.69 / 200
    )
    # A setting, not the published share.
    assert abs(np.mean(["LM" not in found for found in names]) - 0.1) < 3 * np.sqrt(0.1 * 0.9 / 200)
    for (_, arteries), found in zip(people, names, strict=True):
        assert ("posterolateral" in found) == (arteries.dominance != "left")
        assert "PDA" in found


# --- the scan


@pytest.fixture(scope="module")
def fine():
    """A case of 64 voxels a side, without motion and plaques."""
    settings = dataclasses.replace(
        SMALL, spacing_mm=(3.2, 3.2, 3.2), shape=(64, 64, 64), motion_mm=0.0, plaques=0.0
    )
    return make_case(settings, 0), draw_person(settings, 0)


def test_blood_muscle_fat_air_and_bone_have_their_hounsfield_units(fine):
    case, (heart, _) = fine
    first, last = case.facts["scanned_slices"]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in case.voxels.shape), indexing="ij"))
    places = apply_affine(case.ijk_to_lps, grid.reshape(3, -1).T).T.reshape(grid.shape)
    scanned = (grid[2] >= first) & (grid[2] < last)
    inside = chambers(heart, heart.to_standard(places))
    deep = {name: (solid < -6) & scanned for name, solid in inside.items()}
    left = np.median(case.voxels[deep["left ventricle"]])
    assert 270 * 0.9 < left < 560
    atrium = np.median(case.voxels[deep["left atrium"]])
    assert abs(atrium - left) < 40
    right = np.median(case.voxels[deep["right ventricle"]])
    assert 60 < right < left
    wall = scanned & (np.abs(inside["ventricle"] + heart.wall / 2) < 1)
    wall &= (inside["left ventricle"] > 3) & (inside["left atrium"] > 5)
    assert 60 < np.median(case.voxels[wall]) < 150
    voxels = case.voxels[:, :, first:last]
    assert np.mean(voxels < -700) > 0.1  # lungs
    assert 0.02 < np.mean((voxels > -140) & (voxels < -50))  # fat
    assert voxels.min() >= -1024 and voxels.max() <= 3071
    assert (case.voxels[:, :, :first] == 0).all() and (case.voxels[:, :, last:] == 0).all()


def test_all_landmarks_are_scanned(people):
    for number in range(3):
        case = make_case(SMALL, number)
        first, last = case.facts["scanned_slices"]
        k = apply_affine(np.linalg.inv(case.ijk_to_lps), case.landmarks_mm)[:, 2]
        assert first <= np.nanmin(k) and np.nanmax(k) <= last - 1


def test_slabs_show_what_the_whole_shows(monkeypatch):
    whole = make_case(SMALL, 0).voxels.astype(int)
    monkeypatch.setattr("jaxmark.data.phantoms.scanner._SLAB_VOXELS", 1)
    slabs = make_case(SMALL, 0).voxels.astype(int)
    # Sums in another order round otherwise.
    assert np.abs(whole - slabs).max() <= 1 and np.mean(whole != slabs) < 1e-3


def test_motion_blurs_the_right_coronary_artery():
    still = dataclasses.replace(SMALL, spacing_mm=(2.0, 2.0, 2.0), shape=(80, 80, 80), plaques=0.0)
    cases = [make_case(dataclasses.replace(still, motion_mm=motion), 2) for motion in (0.0, 8.0)]
    changed = np.abs(cases[0].voxels.astype(int) - cases[1].voxels) > 40
    vessels = {vessel.name: vessel for vessel in cases[0].vessels}
    share = {}
    for name in ("RCA", "LAD"):
        line = vessels[name].points_mm[arc_lengths(vessels[name].points_mm) > 40]
        ijk = np.rint(apply_affine(np.linalg.inv(cases[0].ijk_to_lps), line)).astype(int)
        ijk = ijk[((ijk >= 0) & (ijk < 80)).all(1)]
        share[name] = changed[tuple(ijk.T)].mean()
    assert share["RCA"] > 0.2 and share["RCA"] > 2 * share["LAD"]
