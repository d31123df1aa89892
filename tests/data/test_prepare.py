"""From raw scans to prepared cases: positions, the cache, and what bad files do."""

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused
from scipy.ndimage import map_coordinates

from jaxmark.config import Data
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.geometry import apply_affine, compose_affine, rotation_from_quaternion
from jaxmark.data.cases import load_case
from jaxmark.data.chunks import Chunks
from jaxmark.data.cohort import read_cohort
from jaxmark.data.frame import Frame, load_frame, prepare_scan, save_frame
from jaxmark.data.landmarks import write_mrk_json
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, write_cohort
from jaxmark.data.prepare import prepare_cohort, quality_limit
from jaxmark.data.scans import Scan, read_scan, write_scan
from jaxmark.data.transforms import read_transform
from jaxmark.system.errors import InputError
from jaxmark.system.files import sealed


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    spacing_mm, shape = (2.5, 2.5, 2.5), (44, 36, 36)
    write_cohort(folder, CirclePhantom(3, 1, 1, 4, spacing_mm=spacing_mm, shape=shape, unpaired=0))
    return folder


@pytest.fixture
def data(cohort_folder, tmp_path):
    root = shutil.copytree(cohort_folder, tmp_path / "own")
    return Data(
        root=str(root),
        cache=str(tmp_path / "cache"),
        spacing_mm=(2.0, 2.0, 2.0),
        crop=(24, 20, 16),
        margin=2,
        workers=1,
    )


def prepare_all(data):
    return prepare_cohort(read_cohort(data), data)


def test_images_in_chunks_are_those_in_memory_and_damaged_ones_are_made_anew(data):
    whole = prepare_all(data)
    chunked = prepare_cohort(read_cohort(data), data, chunks=Chunks(2))
    assert chunked.frame.chunks == Chunks(2) and whole.frame.chunks is None
    folders = [case.folder for case in (*whole.cases.values(), *chunked.cases.values())]
    assert len(set(folders)) == 10
    for name, case in chunked.cases.items():
        assert sorted(path.name for path in case.folder.iterdir()) == [
            "case.json",
            "chunks.npy",
            "coarse.npy",
        ]
        other = whole.cases[name]
        np.testing.assert_array_equal(case.ijk_to_lps, other.ijk_to_lps)
        np.testing.assert_allclose(case.image(), other.image(), rtol=2e-3, atol=2e-3)
        assert (case.quality, case.overlap) == (other.quality, other.overlap)
    hurt = next(iter(chunked.cases.values()))
    path = hurt.folder / "chunks.npy"
    path.write_bytes(path.read_bytes()[:-7])
    mended = prepare_cohort(read_cohort(data), data, chunks=Chunks(2))
    assert len(mended.mended) == 1 and str(path) in mended.mended[0]
    np.testing.assert_array_equal(mended.cases[hurt.name].image(), hurt.image())
    # Another factor is another image.
    other = prepare_cohort(read_cohort(data), data, chunks=Chunks(4))
    assert other.cases[hurt.name].volume.coarse(4).shape == (7, 6, 5)


def write_case(data, name, voxels, ijk_to_lps, points):
    root = Path(data.root)
    write_scan(root / "images" / f"{name}.nii.gz", voxels, ijk_to_lps)
    write_mrk_json(root / "landmarks" / f"{name}.mrk.json", points)


def test_cases_have_the_shape_and_landmarks_come_back_to_the_scan(data):
    prepared = prepare_all(data)
    assert {name: len(cases) for name, cases in prepared.splits.items()} == {
        "train": 3,
        "val": 1,
        "test": 1,
    }
    cohort = read_cohort(data)
    for case in prepared.cases.values():
        image = case.image()
        assert image.shape == (28, 24, 20) and image.dtype == np.float16
        np.testing.assert_allclose(
            apply_affine(case.ijk_to_lps, case.landmarks_ijk), cohort.cases[case.name].landmarks_mm
        )


def test_voxels_lie_where_the_affine_says(data):
    prepared = prepare_all(data)
    case = prepared.split("train")[0]
    scan = read_scan(read_cohort(data).cases[case.name].scan)
    # Nothing was turned: each prepared voxel is the scan's at the same place in the world.
    ijk = np.argwhere(np.ones(case.image().shape))
    there = apply_affine(np.linalg.inv(scan.ijk_to_lps) @ case.ijk_to_lps, ijk.astype(float))
    inside = np.all((there >= 0) & (there <= np.array(scan.voxels.shape) - 1), axis=1)
    expected = map_coordinates(scan.voxels, there[inside].T, order=1)
    found = case.image().reshape(-1)[inside]
    assert inside.mean() > 0.5 and np.corrcoef(found, expected)[0, 1] > 0.99


def test_the_mean_training_landmarks_are_centred_in_the_crop(data):
    prepared = prepare_all(data)
    mean = np.mean([case.landmarks_ijk for case in prepared.split("train")], axis=0)
    middle = (mean.min(0) + mean.max(0)) / 2
    np.testing.assert_allclose(middle, (np.array([28, 24, 20]) - 1) / 2, atol=1e-6)


def test_a_second_start_reads_the_cache_and_a_changed_setting_does_not(data):
    first = prepare_all(data)
    stamps = {n: (c.folder / "image.npy").stat().st_mtime_ns for n, c in first.cases.items()}
    again = prepare_all(data)
    assert {
        n: (c.folder / "image.npy").stat().st_mtime_ns for n, c in again.cases.items()
    } == stamps
    other = prepare_all(dataclasses.replace(data, spacing_mm=(2.5, 2.0, 2.0)))
    assert all(other.cases[name].folder != case.folder for name, case in first.cases.items())


def test_what_another_run_has_made_meanwhile_is_kept(data, monkeypatch):
    first = prepare_all(data)
    stamps = {n: (c.folder / "image.npy").stat().st_mtime_ns for n, c in first.cases.items()}
    damaged = next(iter(first.cases))
    (first.cases[damaged].folder / "image.npy").write_bytes(b"")
    # This run looked before there was anything.
    monkeypatch.setattr("jaxmark.data.prepare.in_cache", lambda read, places: ({}, []))
    again = prepare_all(data)
    made = {n: (c.folder / "image.npy").stat().st_mtime_ns for n, c in again.cases.items()}
    assert [n for n in stamps if made[n] != stamps[n]] == [damaged]
    again.cases[damaged].check_image()


def test_a_changed_landmark_file_makes_its_case_anew(data):
    first = prepare_all(data)
    cohort = read_cohort(data)
    source = cohort.cases[first.splits["val"][0]]
    points = dict(zip(cohort.names, source.landmarks_mm + 1.0, strict=True))
    write_mrk_json(source.landmark_file, points)
    second = prepare_all(data)
    changed = [n for n in first.cases if first.cases[n].folder != second.cases[n].folder]
    assert changed == [source.name]
    np.testing.assert_allclose(
        second.cases[source.name].landmarks_mm, first.cases[source.name].landmarks_mm + 1
    )


def test_processes_give_the_same_bits_as_one(data, tmp_path):
    one = prepare_all(data)
    two = prepare_all(dataclasses.replace(data, workers=2, cache=str(tmp_path / "other")))
    for name, case in one.cases.items():
        np.testing.assert_array_equal(case.image(), two.cases[name].image())


def test_every_bad_file_is_named_and_nothing_is_written(data, tmp_path):
    cohort = read_cohort(data)
    first, second = list(cohort.cases.values())[:2]
    first.scan.write_bytes(first.scan.read_bytes()[:2000])
    scan = read_scan(second.scan)
    write_scan(second.scan, np.where(scan.voxels > 400, np.inf, scan.voxels), scan.ijk_to_lps)
    with pytest.raises(ExceptionGroup) as caught:
        prepare_all(data)
    messages = [str(error) for error in caught.value.exceptions]
    assert first.scan.name in messages[0] and second.scan.name in messages[1]
    assert all("\n" not in message for message in messages)
    assert not list((tmp_path / "cache").rglob("image.npy"))


def test_a_landmark_outside_its_volume_is_named(data):
    cohort = read_cohort(data)
    source = next(iter(cohort.cases.values()))
    points = dict(zip(cohort.names, source.landmarks_mm.copy(), strict=True))
    points["BA tip"] = np.array([0.0, 0.0, 900.0])
    write_mrk_json(source.landmark_file, points)
    with pytest.raises(InputError, match=r"mrk\.json: .*'BA tip'.*900"):
        prepare_all(data)


def test_the_frame_of_a_model_prepares_a_scan_never_seen(data, tmp_path):
    prepared = prepare_all(data)
    save_frame(prepared.frame, prepared.landmarks, tmp_path / "frame")
    frame, landmarks = load_frame(tmp_path / "frame")
    assert landmarks == prepared.landmarks
    case = prepared.split("test")[0]
    scan = prepare_scan(read_cohort(data).cases[case.name].scan, frame)
    np.testing.assert_array_equal(scan.image, case.image())
    np.testing.assert_array_equal(scan.ijk_to_lps, case.ijk_to_lps)
    assert scan.overlap == case.overlap


def test_registered_cases_overlap_although_their_worlds_differ(data, tmp_path):
    # The same anatomy, turned by 90 degrees and moved: registration has to undo it.
    cohort = read_cohort(data)
    source = cohort.cases[cohort.splits["train"][0]]
    scan = read_scan(source.scan)
    turn = np.array([[0, -1, 0, 30], [1, 0, 0, -20], [0, 0, 1, 5], [0, 0, 0, 1.0]])
    points = dict(zip(cohort.names, apply_affine(turn, source.landmarks_mm), strict=True))
    target = cohort.splits["val"][0]
    write_case(data, target, scan.voxels.astype(np.int16), turn @ scan.ijk_to_lps, points)
    settings = dataclasses.replace(data, register="rigid", template=source.name)
    prepared = prepare_all(settings)
    found, wanted = prepared.cases[target], prepared.cases[source.name]
    np.testing.assert_allclose(found.landmarks_ijk, wanted.landmarks_ijk, atol=0.5)
    assert np.corrcoef(found.image().ravel(), wanted.image().ravel())[0, 1] > 0.95
    assert found.quality > 0.9


def test_a_template_must_be_a_training_case_or_a_file(data, tmp_path):
    settings = dataclasses.replace(data, register="center", template="nobody")
    refused(lambda: prepare_all(settings), "config.data.template", "'nobody' is neither")
    cohort = read_cohort(data)
    case = cohort.splits["train"][1]
    # The same scan by either name gives the same cases.
    by_name = prepare_all(dataclasses.replace(settings, template=case))
    file = str(shutil.copy(cohort.cases[case].scan, tmp_path / "template.nii.gz"))
    by_file = prepare_all(dataclasses.replace(settings, template=file))
    for name in by_name.cases:
        np.testing.assert_array_equal(by_name.cases[name].image(), by_file.cases[name].image())


def test_what_was_aligned_before_a_stop_is_not_aligned_again(data, monkeypatch):
    settings = dataclasses.replace(data, register="center")
    prepared = prepare_all(settings)
    shutil.rmtree(prepared.split("train")[0].folder.parent)
    lost = next(prepared.split("val")[0].folder.parents[1].glob("alignments/*"))
    lost.write_text("half a fi")
    aligned = []
    align = Frame.align
    monkeypatch.setattr(Frame, "align", lambda *a: aligned.append(a) or align(*a))
    again = prepare_all(settings)
    assert len(aligned) == 1
    for name, case in prepared.cases.items():
        np.testing.assert_array_equal(again.cases[name].ijk_to_lps, case.ijk_to_lps)


TURN = np.array([[0, -1, 0, 30], [1, 0, 0, -20], [0, 0, 1, 5], [0, 0, 0, 1.0]])


def test_a_transform_brings_the_template_into_a_shared_frame(data, tmp_path):
    plain = prepare_all(dataclasses.replace(data, register="center"))
    file = tmp_path / "shared_to_template.tfm"
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(TURN[:3, :3].ravel().tolist())
    transform.SetTranslation(TURN[:3, 3].tolist())
    sitk.WriteTransform(transform, str(file))
    settings = dataclasses.replace(data, register="center", template_transform=str(file))
    turned = prepare_all(settings)
    # The scans have not moved, the frame has: the same landmarks, turned back.
    back = np.linalg.inv(TURN)
    for name, case in turned.cases.items():
        common = apply_affine(turned.frame.grid_to_common, case.landmarks_ijk)
        before = apply_affine(plain.frame.grid_to_common, plain.cases[name].landmarks_ijk)
        np.testing.assert_allclose(common, apply_affine(back, before), atol=1e-6)
    # And it goes with the model.
    save_frame(turned.frame, turned.landmarks, tmp_path / "frame")
    frame, _ = load_frame(tmp_path / "frame")
    case = turned.split("test")[0]
    scan = prepare_scan(read_cohort(data).cases[case.name].scan, frame)
    np.testing.assert_allclose(scan.ijk_to_lps, case.ijk_to_lps, atol=1e-9)


def test_masks_bring_the_template_into_a_shared_frame(data, tmp_path):
    root = Path(data.root)
    cohort = read_cohort(data)
    template = cohort.splits["train"][0]
    mask = read_scan(root / "segmentations" / f"{template}.nii.gz")
    vessels = (mask.voxels > 0).astype(np.uint8)
    write_scan(tmp_path / "own.nii.gz", vessels, mask.ijk_to_lps)
    # In the shared frame this person lies turned by a quarter.
    write_scan(tmp_path / "shared.nii.gz", vessels, np.linalg.inv(TURN) @ mask.ijk_to_lps)
    settings = dataclasses.replace(
        data,
        register="center",
        template=template,
        template_mask=str(tmp_path / "own.nii.gz"),
        shared_mask=str(tmp_path / "shared.nii.gz"),
    )
    found = prepare_all(settings).frame.common_to_template
    points = np.random.default_rng(0).uniform(-30, 30, (50, 3))
    error = apply_affine(found, points) - apply_affine(TURN, points)
    assert np.linalg.norm(error, axis=1).max() < 1.0


def test_a_transform_that_is_none_or_a_warp_is_named(data, tmp_path):
    settings = dataclasses.replace(data, register="center")
    for name, write, problem in (
        ("none.tfm", lambda path: None, "No such file"),
        ("text.tfm", lambda path: path.write_text("hello"), "is not a transform file"),
        ("flat.tfm", flat, "without an inverse"),
        ("plane.tfm", plane, "transforms 2 dimensions"),
        ("warp.tfm", warp, "is a warp"),
        ("affine.h5", turn, "not a transform format jaxmark reads: .tfm, .txt, .mat; save it as"),
        ("huge.mat", huge, "is not a transform file"),
        ("latin.tfm", latin, "is not a transform file"),
    ):
        path = tmp_path / name
        write(path)
        wrong = dataclasses.replace(settings, template_transform=str(path))
        refused(lambda wrong=wrong: prepare_all(wrong), path, problem)


def flat(path):
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(np.diag([1.0, 1.0, 1e-9]).ravel().tolist())
    sitk.WriteTransform(transform, str(path))


def turn(path):
    sitk.WriteTransform(sitk.AffineTransform(3), str(path))


def huge(path):
    # ITK would ask for 13 GiB.
    turn(path)
    assert np.array_equal(read_transform(path), np.eye(4))
    content = path.read_bytes()
    path.write_bytes(content[:4] + (1_700_000_000).to_bytes(4, "little") + content[8:])


def latin(path):
    # ITK says what it did not understand, in bytes that are no UTF-8.
    turn(path)
    path.write_bytes(path.read_bytes().replace(b"Affine", b"Aff\xefne"))


def plane(path):
    sitk.WriteTransform(sitk.AffineTransform(2), str(path))


def warp(path):
    transform = sitk.BSplineTransform(3, 3)
    transform.SetTransformDomainPhysicalDimensions([100.0] * 3)
    transform.SetTransformDomainMeshSize([2] * 3)
    rng = np.random.default_rng(0)
    transform.SetParameters(rng.normal(size=len(transform.GetParameters())).tolist())
    sitk.WriteTransform(transform, str(path))


def test_intensities_do_not_depend_on_how_much_a_scan_shows(data, tmp_path):
    prepared = prepare_all(data)
    case = prepared.split("test")[0]
    scan = read_scan(read_cohort(data).cases[case.name].scan)
    # Far more background around, as other scanners save it.
    wide = np.pad(scan.voxels, 12, constant_values=float(np.percentile(scan.voxels, 0.5)))
    moved = scan.ijk_to_lps.copy()
    moved[:3, 3] -= 12 * scan.ijk_to_lps[:3, :3].sum(1)
    write_scan(tmp_path / "wide.nii.gz", wide, moved)
    found = prepare_scan(tmp_path / "wide.nii.gz", prepared.frame)
    np.testing.assert_allclose(found.image, case.image(), atol=0.01)


def test_a_window_is_the_same_for_every_scan(data):
    settings = dataclasses.replace(data, intensity="window", intensity_window=(100.0, 300.0))
    case = prepare_all(settings).split("train")[0]
    scan = read_scan(read_cohort(data).cases[case.name].scan)
    centre = np.array(case.image().shape) // 2
    voxel = case.image()[tuple(centre)]
    ijk = apply_affine(np.linalg.inv(scan.ijk_to_lps) @ case.ijk_to_lps, centre.astype(float))
    value = map_coordinates(scan.voxels, ijk[:, None], order=1)[0]
    assert voxel == pytest.approx(np.clip((value - 100) / 200, 0, 1), abs=0.15)
    assert case.image().min() == 0 and case.image().max() == 1


def test_doubts_are_said_of_each_case_and_in_the_table(data):
    prepared = prepare_all(data)
    names = list(prepared.cases)
    cases = dict(prepared.cases)
    cases[names[0]] = dataclasses.replace(cases[names[0]], quality=0.2, lead=0.5)
    cases[names[1]] = dataclasses.replace(cases[names[1]], quality=0.9, lead=0.001)
    cases[names[2]] = dataclasses.replace(cases[names[2]], quality=0.9, overlap=0.3)
    frame = dataclasses.replace(prepared.frame, quality_limit=0.8)
    doubted = dataclasses.replace(prepared, cases=cases, frame=frame)
    assert list(doubted.doubts()) == names[:3]
    lines = doubted.warnings()
    assert lines[0].startswith(f"{names[0]}: registration quality 0.200, under the 0.800")
    assert "another rotation" in lines[1] and "only 30 %" in lines[2]
    rows = list(csv.DictReader(doubted.table().splitlines()))
    assert [row["case"] for row in rows if row["doubts"]] == names[:3]
    assert {row["split"] for row in rows} == {"train", "val", "test"}


def with_nan(data, *names):
    """The cohort with NaN around the voxels of these cases."""
    for name in names:
        path = Path(data.root) / "images" / f"{name}.nii.gz"
        scan = read_scan(path)
        voxels = scan.voxels.copy()
        voxels[:4] = np.nan
        write_scan(path, voxels, scan.ijk_to_lps)


def test_notes_of_scans_survive_in_the_cache_and_stand_in_the_table(data):
    with_nan(data, "phantom-001")
    for prepared in (prepare_all(data), prepare_all(data)):
        noted = {name: case.notes for name, case in prepared.cases.items() if case.notes}
        (note,) = noted.pop("phantom-001")
        assert not noted and note.startswith(
            "9.1 % of its voxels are NaN: filled with its smallest"
        )
        assert prepared.notes() == [f"phantom-001: {note}"]
        # They are no doubts.
        assert "phantom-001" not in prepared.doubts()
        assert not any("NaN" in line for line in prepared.warnings())
        rows = list(csv.DictReader(prepared.table().splitlines()))
        assert [row["case"] for row in rows if row["notes"]] == ["phantom-001"]
        assert list(rows[0])[-1] == "notes"
    case = prepared.cases["phantom-000"]
    # What earlier versions wrote has no such field.
    assert "notes" not in json.loads((case.folder / "case.json").read_text())


def test_notes_of_many_are_counted(data):
    prepared = prepare_all(data)
    one = prepared.split("train")[0]
    cases = {
        name: dataclasses.replace(one, name=name, notes=("states no place", "is not compressed"))
        for name in "abcdefgh"
    }
    lines = dataclasses.replace(prepared, cases=cases).notes()
    assert len(lines) == 6
    assert lines[0] == "a: states no place; is not compressed"
    assert lines[-1] == "3 more cases have notes, 8 of 8 in all: see preparation/cases.csv"


def test_notes_of_a_template_of_its_own_are_said(data, tmp_path):
    with_nan(data, "phantom-001")
    source = Path(data.root) / "images" / "phantom-001.nii.gz"
    template = shutil.copy(source, tmp_path / "template.nii.gz")
    centred = dataclasses.replace(data, register="center", template=str(template))
    case, own = prepare_all(centred).notes()
    assert case.startswith("phantom-001: 9.1 %") and own.startswith("config.data.template: 9.1 %")
    # One of the cases is said once.
    assert len(prepare_all(dataclasses.replace(centred, template="phantom-001")).notes()) == 1


@pytest.mark.parametrize("notes", ["a line", [1], {"a": 1}, None])
def test_notes_in_the_cache_that_are_no_lines_are_damage(data, notes):
    case = prepare_all(data).cases["phantom-000"]
    path = case.folder / "case.json"
    tree = json.loads(path.read_text())
    tree.pop("crc32")
    path.write_text(json.dumps(sealed({**tree, "notes": notes})))
    refused(lambda: load_case(case.folder), path, "damaged prepared case")


def test_what_was_passed_over_in_the_folder_is_said_of_the_cohort(data):
    assert read_cohort(data).notes == ()
    images = Path(data.root) / "images"
    (images / "phantom-007.v").touch()
    (images / "overview.png").touch()
    (line,) = read_cohort(data).notes
    assert line.startswith(
        f"{images}: 2 files look like images and are not read: overview.png, phantom-007.v (jaxmark"
    )
    for path in images.glob("*.nii.gz"):
        path.unlink()
    refused(lambda: read_cohort(data), images, "holds no scans", "not read: overview.png")


@pytest.fixture
def eight(tmp_path):
    folder = tmp_path / "eight"
    write_cohort(
        folder, CirclePhantom(8, 0, 0, 2, spacing_mm=(4, 4, 4), shape=(28, 24, 24), unpaired=0)
    )
    return Data(
        root=str(folder),
        cache=str(tmp_path / "cache"),
        spacing_mm=(4.0, 4.0, 4.0),
        crop=(16, 16, 12),
        margin=1,
        workers=1,
    )


def change(cohort, name, points):
    case = cohort.cases[name]
    write_mrk_json(case.landmark_file, dict(zip(cohort.names, points, strict=True)))


def test_annotations_that_contradict_the_others_are_doubted_by_name(eight, tmp_path):
    assert not prepare_all(eight).annotation_doubts
    cohort = read_cohort(eight)
    change(cohort, "phantom-002", cohort.cases["phantom-002"].landmarks_mm * [-1, -1, 1])
    mirrored = scheme_of(cohort.names).mirrored
    change(cohort, "phantom-005", cohort.cases["phantom-005"].landmarks_mm[mirrored])
    prepared = prepare_all(eight)
    found = prepared.annotation_doubts
    assert list(found) == ["phantom-002", "phantom-005"]
    assert "another frame (RAS, LPS)" in found["phantom-002"]
    assert found["phantom-005"].startswith("right and left seem to be exchanged: ")
    lines = [line for line in prepared.warnings() if line.startswith("phantom-")]
    assert lines == [f"{name}: {doubt}" for name, doubt in found.items()]
    rows = {row["case"]: row["doubts"] for row in csv.DictReader(prepared.table().splitlines())}
    assert {name: doubts for name, doubts in rows.items() if doubts} == found
    # A table that stays the same would leave an older picture.
    assert prepared.table() != prepare_all(dataclasses.replace(eight, margin=2)).table()


def test_five_contradictory_cases_are_named_and_the_others_counted(eight):
    prepared = prepare_all(eight)
    vars(prepared)["annotation_doubts"] = {name: "is odd" for name in prepared.cases}
    lines = [line for line in prepared.warnings() if "odd" in line or "contradict" in line]
    assert len(lines) == 6 and lines[-1].startswith("landmarks of 3 more cases contradict")


def test_what_will_not_be_evaluated_is_said_before_training(eight):
    prepared = prepare_all(eight)
    (line,) = prepared.warnings()[-1:]
    assert line.startswith("there are no validation and no test cases")
    cohort = read_cohort(eight)
    blank = np.full((len(cohort.names), 3), np.nan)
    change(cohort, "phantom-007", blank)
    names = list(cohort.cases)
    splits = {"train": names[:6], "val": names[6:7], "test": names[7:]}
    (Path(eight.root) / "splits.json").write_text(json.dumps(splits))
    prepared = prepare_all(eight)
    assert prepared.warnings()[-1].startswith("none of the 1 cases of test has a landmark")
    assert [row.name for row in prepared.left_out] == ["phantom-007"]
    assert prepared.frame.untrained == ()


def test_presence_is_the_share_of_what_is_known(data):
    cohort = read_cohort(data)
    assert prepare_all(data).presence == pytest.approx(58 / 59)
    for name in cohort.splits["train"]:
        source = cohort.cases[name]
        points = dict(zip(cohort.names, source.landmarks_mm, strict=True))
        # One is stated to be absent, of another nothing is said.
        points["BA tip"] = None
        del points["M1/M2 R"]
        write_mrk_json(source.landmark_file, points)
    chosen = dataclasses.replace(data, landmarks=cohort.names)
    assert prepare_all(chosen).presence == pytest.approx((51 + 1) / (54 + 2))


def test_the_limit_of_quality_follows_the_cohort():
    assert quality_limit([np.nan, np.nan]) == -np.inf
    # An even cohort: a tenth under the median is still no failure.
    assert quality_limit([0.9, 0.9, 0.901]) == pytest.approx(0.81)
    spread = [0.5, 0.6, 0.7, 0.8, 0.9]
    assert quality_limit(spread) == pytest.approx(0.7 - 3 * 1.4826 * 0.1)


def test_a_scan_elsewhere_is_named(data, tmp_path):
    prepared = prepare_all(data)
    scan = read_scan(read_cohort(data).cases["phantom-000"].scan)
    away = scan.ijk_to_lps.copy()
    away[:3, 3] += 1000
    write_scan(tmp_path / "away.nii.gz", scan.voxels, away)
    refused(
        lambda: prepare_scan(tmp_path / "away.nii.gz", prepared.frame),
        tmp_path / "away.nii.gz",
        "lies outside of the volume that the model looks at",
    )
    # Constant where the model looks, not elsewhere.
    blank = np.zeros_like(scan.voxels)
    blank[0, 0, 0] = 1
    write_scan(tmp_path / "blank.nii.gz", blank, scan.ijk_to_lps)
    refused(
        lambda: prepare_scan(tmp_path / "blank.nii.gz", prepared.frame), "is 0 everywhere in the"
    )


def test_mutual_information_is_a_choice(data):
    settings = dataclasses.replace(
        data, register="rigid", metric="mutual_information", search_degrees=20
    )
    cohort = read_cohort(data)
    frame = dataclasses.replace(
        prepare_all(data).frame,
        register="rigid",
        metric=settings.metric,
        search_degrees=20,
        template=read_scan(cohort.cases["phantom-000"].scan),
    )
    turn = compose_affine(rotation_from_quaternion(np.array([1.0, 0.03, -0.05, 0.06])), [9, -6, 4])
    moving = frame.template
    # Inverted contrast, which correlation takes for the worst match.
    inverted = Scan(moving.voxels.max() - moving.voxels, turn @ moving.ijk_to_lps)
    points = cohort.cases["phantom-000"].landmarks_mm
    found = apply_affine(frame.align(inverted).matrix, points)
    assert np.linalg.norm(found - apply_affine(turn, points), axis=1).max() < 1.0


def test_a_small_crop_is_warned_about(data):
    prepared = prepare_all(dataclasses.replace(data, crop=(8, 8, 8), margin=0))
    assert len(prepared.warnings()) == 1 and "outside the prepared volume" in prepared.warnings()[0]
    assert prepare_all(dataclasses.replace(data, crop=(44, 36, 36))).warnings() == []


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    {
        "cut": lambda case: os.truncate(case / "image.npy", 3000),
        "a voxel": lambda case: flip(case / "image.npy", 5000),
        # Of a digit another digit.
        "a number": lambda case: flip(
            case / "case.json", (case / "case.json").read_text().find("2.0")
        ),
        "half deleted": lambda case: (case / "image.npy").unlink(),
        "not JSON": lambda case: (case / "case.json").write_bytes(b"\xff{"),
        "other JSON": lambda case: (case / "case.json").write_text("[[]]"),
        "an earlier version": lambda case: (case / "case.json").write_text('{"schema_version": 2}'),
        "a folder for a file": lambda case: [
            (case / "image.npy").unlink(),
            (case / "image.npy").mkdir(),
        ],
        "an alignment": lambda case: flip(
            case.parents[1] / "alignments" / f"{case.name}.json", -10
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_damaged_in_the_cache_is_made_anew_and_said(data, damage):
    before = prepare_all(data)
    case = before.split("train")[0]
    image = case.image()
    damage[1](case.folder)
    again = prepare_all(data)
    (line,) = [line for line in again.warnings() if "made anew" in line]
    assert line.startswith("1 files in the cache") and str(case.folder.parents[1]) in line
    np.testing.assert_array_equal(again.cases[case.name].image(), image)
    np.testing.assert_array_equal(again.cases[case.name].landmarks_mm, case.landmarks_mm)
    assert prepare_all(data).mended == ()


def test_a_damaged_case_is_an_error_that_names_its_file(data):
    case = prepare_all(data).split("train")[0]
    (case.folder / "image.npy").write_bytes(b"not an array")
    with pytest.raises(InputError, match=r"image\.npy: damaged"):
        case.image()
    tree = json.loads((case.folder / "case.json").read_text())
    (case.folder / "case.json").write_text(json.dumps({**tree, "schema_version": 99}))
    with pytest.raises(InputError, match=r"case\.json: .*schema version 99"):
        load_case(case.folder)


def test_a_failed_write_leaves_no_half_case(data, monkeypatch, tmp_path):
    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        prepare_all(data)
    assert not list((tmp_path / "cache").rglob("*.npy"))
