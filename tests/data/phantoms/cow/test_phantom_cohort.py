"""Synthetic cohorts: what their files say must be in their voxels, whoever wrote them."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from jaxmark.config import Data
from jaxmark.core.anatomy import COW19
from jaxmark.core.geometry import apply_affine
from jaxmark.data.attributes import read_attributes
from jaxmark.data.cohort import check_inside, read_cohort
from jaxmark.data.landmarks import read_table
from jaxmark.data.phantoms.cow import cohort as phantoms
from jaxmark.data.phantoms.cow.cohort import (
    CirclePhantom,
    draw_unpaired,
    has_pathology,
    make_case,
    write_cohort,
)
from jaxmark.data.scans import read_scan

SMALL = CirclePhantom(
    train=3, val=1, test=1, seed=5, spacing_mm=(2.0, 2.0, 2.0), shape=(52, 46, 44), unpaired=6
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    write_cohort(root, SMALL, workers=1)
    return root


def digests(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_pipeline_reads_it(root):
    cohort = read_cohort(Data(root=str(root), landmarks=COW19.landmarks))
    assert {split: len(cases) for split, cases in cohort.splits.items()} == {
        "train": 3,
        "val": 1,
        "test": 1,
    }
    for case in cohort.cases.values():
        check_inside(case, read_scan(case.scan))
        assert case.present.all()


def test_cases_are_cut_in_turn():
    views = ("whole", "slab", "box")
    settings = dataclasses.replace(SMALL, modality="both", views=views, shape=(62, 62, 60))
    for number in range(6):
        case = make_case(settings, number)
        sides_mm = 2.0 * np.array(case.voxels.shape)
        least, most = {
            "whole": ((124, 124, 120), (124, 124, 120)),
            "slab": ((124, 124, 38), (124, 124, 82)),
            "box": ((38, 35, 18), (62, 58, 32)),
        }[views[number % 3]]
        assert (sides_mm >= least).all() and (sides_mm <= most).all()
        # Annotated is what lies within: there the arteries are.
        ijk = apply_affine(np.linalg.inv(case.ijk_to_lps), case.anatomy.landmarks_mm)
        inside = ((ijk >= 0) & (ijk <= np.array(case.voxels.shape) - 1)).all(1)
        assert (case.annotated == inside).all() and case.annotated.sum() >= 5
        # Air is -1000 HU, and bone is bright; in MRA nothing is below 0 but noise.
        assert (np.percentile(case.voxels, 99.9) > 900) == (number % 2 == 1)
        # The same voxels lie in the same places, whatever is cut away.
        whole = make_case(dataclasses.replace(settings, views=("whole",)), number)
        first = np.rint((case.ijk_to_lps - whole.ijk_to_lps)[:3, 3] / 2.0).astype(int)
        part = tuple(slice(a, a + n) for a, n in zip(first, case.voxels.shape, strict=True))
        np.testing.assert_array_equal(whole.lumen.segment[part] > 0, case.lumen.segment > 0)


def test_files_and_case_agree(root):
    case = make_case(SMALL, 4)
    scan = read_scan(root / "images" / "phantom-004.nii.gz")
    np.testing.assert_array_equal(scan.voxels, case.voxels)
    np.testing.assert_allclose(scan.ijk_to_lps, case.ijk_to_lps, atol=1e-5)
    labels = read_scan(root / "segmentations" / "phantom-004.nii.gz")
    np.testing.assert_array_equal(labels.voxels, case.lumen.segment)
    known = json.loads((root / "anatomy" / "phantom-004.json").read_text())
    assert list(known["segment_present"].values()) == case.anatomy.segment_present.tolist()
    assert (
        list(known["landmark_is_bifurcation"].values())
        == COW19.landmark_attributes(case.anatomy.segment_present).tolist()
    )
    for line in known["centrelines"]:
        lengths = np.linalg.norm(line["tangents"], axis=1)
        np.testing.assert_allclose(lengths, 1, atol=2e-3)
        assert len(line["points_lps_mm"]) == len(line["radii_mm"]) == len(lengths)


def test_landmarks_lie_where_their_segments_meet():
    fine = dataclasses.replace(SMALL, spacing_mm=(0.9, 0.9, 0.9), shape=(112, 100, 96))
    for number in range(3):
        case = make_case(fine, number)
        present = case.anatomy.segment_present
        ijk = apply_affine(np.linalg.inv(case.ijk_to_lps), case.anatomy.landmarks_mm)
        for k, centre in enumerate(np.rint(ijk).astype(int)):
            nearby = case.lumen.segment[tuple(slice(c - 1, c + 2) for c in centre)]
            ours = np.flatnonzero(COW19.incidence[:, k] & present) + 1
            assert np.isin(nearby, ours).any(), COW19.landmarks[k]


def test_the_number_of_processes_changes_no_byte(root, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmark.data.phantoms.folders._VOXELS_WORTH_PROCESSES", 0)
    write_cohort(tmp_path, SMALL, workers=2)
    assert digests(tmp_path) == digests(root)


def test_an_interrupted_cohort_is_finished(root, tmp_path):
    write_cohort(tmp_path, SMALL, workers=1)
    whole = digests(tmp_path)
    kept = (tmp_path / "images" / "phantom-000.nii.gz").stat().st_mtime_ns
    (tmp_path / "splits.json").unlink()
    for lost in (tmp_path / "anatomy" / "phantom-002.json", tmp_path / "unpaired.csv"):
        lost.unlink()
    write_cohort(tmp_path, SMALL, workers=1)
    assert digests(tmp_path) == whole
    assert (tmp_path / "images" / "phantom-000.nii.gz").stat().st_mtime_ns == kept


def test_a_cohort_of_an_earlier_version_gets_what_it_lacks(root, tmp_path):
    write_cohort(tmp_path, SMALL, workers=1)
    whole = digests(tmp_path)
    added = [tmp_path / "attributes.csv", tmp_path / "segmentations" / "dataset.json"]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for path in added:
        path.unlink()
    write_cohort(tmp_path, SMALL, workers=1)
    assert digests(tmp_path) == whole
    # Nothing else is written again.
    assert [p for p in times if p.stat().st_mtime_ns != times[p] and p not in added] == []


def test_labels_and_attributes_are_what_segmentations_and_people_have(root):
    known = json.loads((root / "segmentations" / "dataset.json").read_text())["labels"]
    assert list(known) == ["background", *(s.name for s in COW19.segments), "other vessel"]
    assert list(known.values()) == list(range(22))
    names = [segment.name for segment in COW19.segments]
    cases = [f"phantom-{number:03d}" for number in range(5)]
    states, notes = read_attributes(root / "attributes.csv", names, cases)
    assert list(states) == cases and notes == ()
    for number, case in enumerate(cases):
        present = make_case(SMALL, number).anatomy.segment_present
        np.testing.assert_array_equal(states[case], np.where(present, 1, -1))


def test_modality_resolution_and_pathology_leave_the_anatomy_alone():
    first = make_case(SMALL, 2)
    for changes in ({"modality": "CTA"}, {"spacing_mm": (3.0, 3.0, 3.0), "shape": (36, 32, 30)}):
        other = make_case(dataclasses.replace(SMALL, **changes), 2)
        np.testing.assert_array_equal(first.anatomy.landmarks_mm, other.anatomy.landmarks_mm)
        for a, b in zip(first.vessels, other.vessels, strict=True):
            np.testing.assert_array_equal(a.points_mm, b.points_mm)
        assert first.voxels.shape != other.voxels.shape or (first.voxels != other.voxels).any()
    ill = make_case(dataclasses.replace(SMALL, pathology=1.0), 2)
    np.testing.assert_array_equal(first.anatomy.landmarks_mm, ill.anatomy.landmarks_mm)


def test_unpaired_people_are_others(root):
    table = read_table(root / "unpaired.csv")
    drawn = draw_unpaired(SMALL)
    assert list(table) == list(drawn) and len(table) == 6
    scanned = [make_case(SMALL, number).anatomy.landmarks_mm[0] for number in range(5)]
    for name, points in drawn.items():
        assert set(points) <= set(COW19.landmarks)
        for landmark, xyz in points.items():
            np.testing.assert_array_equal(table[name][landmark], xyz)
        assert not any(np.allclose(points["C4/C5 R"], other) for other in scanned)


def test_landmarks_may_be_left_out_where_a_segment_is_missing():
    strict = dataclasses.replace(SMALL, annotate_missing=False)
    seen = 0
    for number in range(20):
        case = make_case(strict, number)
        expected = COW19.landmark_attributes(case.anatomy.segment_present)
        np.testing.assert_array_equal(case.annotated, expected)
        seen += (~expected).sum()
    assert seen > 10


def test_landmarks_beyond_the_field_of_view_are_absent():
    low = make_case(dataclasses.replace(SMALL, shape=(52, 46, 12)), 0)
    z = low.anatomy.landmarks_mm[:, 2]
    bottom, top = low.ijk_to_lps[2, 3], low.ijk_to_lps[2, 3] + 11 * 2.0
    # In x and y all lie within.
    np.testing.assert_array_equal(low.annotated, (z >= bottom) & (z <= top))
    assert 0 < low.annotated.sum() < 19


def test_who_has_pathology_is_known_without_drawing_vessels(monkeypatch):
    phantom = dataclasses.replace(SMALL, pathology=0.5)
    asked = []
    draw = phantoms.draw_vessels

    def keep(rng, anatomy, *, pathology):
        asked.append(pathology)
        return draw(rng, anatomy, pathology=pathology)

    monkeypatch.setattr(phantoms, "draw_vessels", keep)
    for number in range(6):
        make_case(phantom, number)
    assert asked == [has_pathology(phantom, number) for number in range(6)]
    assert set(asked) == {True, False}
