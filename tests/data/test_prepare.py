"""From raw scans to prepared cases: positions, the cache, and what bad files do."""

import dataclasses
import json
import os

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from jaxmark.config import Data, Phantom
from jaxmark.core.errors import InputError
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cases import load_case
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmarks import write_mrk_json
from jaxmark.data.phantom.cohort import write_cohort
from jaxmark.data.prepare import load_frame, prepare, prepare_scan, save_frame
from jaxmark.data.scans import read_scan, write_scan


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "own"
    spacing_mm, shape = (2.5, 2.5, 2.5), (44, 36, 36)
    write_cohort(root, Phantom(3, 1, 1, 4, spacing_mm=spacing_mm, shape=shape, unpaired=0))
    return Data(
        root=str(root),
        cache=str(tmp_path / "cache"),
        spacing_mm=(2.0, 2.0, 2.0),
        crop=(24, 20, 16),
        margin=2,
        workers=1,
    )


def prepare_all(data):
    return prepare(read_cohort(data), data)


def write_case(data, name, voxels, ijk_to_lps, points):
    from pathlib import Path

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
    write_scan(second.scan, np.where(scan.voxels > 400, np.nan, scan.voxels), scan.ijk_to_lps)
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
    scan = read_scan(read_cohort(data).cases[case.name].scan)
    image, ijk_to_lps = prepare_scan(scan, frame)
    np.testing.assert_array_equal(image.astype(np.float16), case.image())
    np.testing.assert_array_equal(ijk_to_lps, case.ijk_to_lps)


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


def test_a_template_must_be_a_training_case(data):
    settings = dataclasses.replace(data, register="rigid", template="nobody")
    with pytest.raises(InputError, match="config.data.template: 'nobody'"):
        prepare_all(settings)


def test_a_small_crop_is_warned_about(data):
    prepared = prepare_all(dataclasses.replace(data, crop=(8, 8, 8), margin=0))
    assert len(prepared.warnings()) == 1 and "outside the prepared volume" in prepared.warnings()[0]
    assert prepare_all(dataclasses.replace(data, crop=(44, 36, 36))).warnings() == []


def test_a_damaged_case_is_made_anew(data):
    case = prepare_all(data).split("train")[0]
    (case.folder / "case.json").write_text("{")
    again = prepare_all(data).cases[case.name]
    np.testing.assert_array_equal(again.landmarks_mm, case.landmarks_mm)
    (case.folder / "image.npy").unlink()
    assert prepare_all(data).cases[case.name].image().shape == (28, 24, 20)


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
