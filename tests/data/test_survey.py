"""What is read of a cohort before anything is planned, against files whose content is known."""

import json
from functools import partial

import numpy as np
import pytest
from conftest import refused
from pictures import png, xray
from small_cohorts import NAMES, write_small_cohort

from jaxmark.config import Data
from jaxmark.data.annotated import read_annotated
from jaxmark.data.cohort import RawCase
from jaxmark.data.landmarks import write_table
from jaxmark.data.scans import write_scan
from jaxmark.data.survey import (
    MOST_SCANS,
    common_landmarks,
    evenly,
    is_planar,
    scan_facts,
    spread,
    survey_cohort,
    unit_of_pictures,
)

GREY = (np.arange(12 * 10).reshape(12, 10) * 2).astype(np.uint8)


def case_of(path, points):
    points = np.asarray(points, float)
    seen = np.isfinite(points).all(-1)
    names = tuple(f"p{k}" for k in range(len(points)))
    return RawCase("c", path, points, seen, ~seen, path, names)


def test_facts_of_a_scan_whose_axes_are_the_world_s_in_another_order(tmp_path):
    shape, spacing = (10, 12, 14), (1.0, 2.0, 3.0)
    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    # i goes along z, j along -x, k along y.
    at = np.array([[0, -2.0, 0, 5], [0, 0, 3.0, -7], [1.0, 0, 0, 2], [0, 0, 0, 1]])
    write_scan(tmp_path / "a.mha", voxels, at)
    middle = (np.array(shape) - 1) / 2
    centre = at[:3, :3] @ middle + at[:3, 3]
    facts = scan_facts((case_of(tmp_path / "a.mha", [centre, [np.nan] * 3]), ""))
    assert facts.shape == shape and facts.spacing == spacing
    assert facts.orientation == "SRP"
    np.testing.assert_allclose(facts.world_spacing, [2, 3, 1])
    np.testing.assert_allclose(facts.world_extent, [24, 42, 10])
    np.testing.assert_allclose(facts.middle, centre)
    np.testing.assert_allclose(facts.values, np.percentile(voxels, [0.5, 50, 99.5]))
    i, j, k = np.rint(middle).astype(int)
    about = voxels[i - 4 : i + 5, j - 4 : j + 5, k - 4 : k + 5]
    np.testing.assert_allclose(facts.near, np.percentile(about, [2, 99.5]))


def test_without_landmarks_nothing_is_known_of_intensities_near_them(tmp_path):
    write_scan(tmp_path / "a.nii", np.random.rand(8, 8, 8).astype(np.float32), np.eye(4))
    facts = scan_facts((case_of(tmp_path / "a.nii", [[np.nan] * 3]), ""))
    assert np.isnan(facts.near).all()


def test_a_landmark_outside_of_its_scan_is_refused_with_the_landmarks_file(tmp_path):
    root = tmp_path / "root"
    tables = write_small_cohort(root)
    tables["case1"] = {name: xyz * [-1, -1, 1] for name, xyz in tables["case1"].items()}
    write_table(root / "landmarks.csv", tables)
    (root / "splits.json").write_text(json.dumps({"train": sorted(tables)}))
    data = Data(root=str(root), workers=1, crop=(16, 16, 16))
    refused(
        partial(survey_cohort, data),
        root / "landmarks.csv",
        "'case1'",
        "outside of its scan",
        "RAS",
    )


def test_voxels_taken_for_millimetres_are_refused_with_what_they_may_be(tmp_path):
    at = np.array([[0.5, 0, 0, 100], [0, 0.5, 0, 50], [0, 0, 0.5, -20], [0, 0, 0, 1]], float)
    write_scan(tmp_path / "a.mha", np.random.rand(20, 20, 20).astype(np.float32), at)
    case = case_of(tmp_path / "a.mha", [[12, 13, 14]])
    refused(partial(scan_facts, (case, "")), "case 'c'", "are these positions voxels, not mill")


def test_the_survey_of_a_written_cohort(tmp_path):
    write_small_cohort(tmp_path / "root")
    write_scan(
        tmp_path / "root" / "images" / "new.nii.gz",
        np.random.rand(9, 9, 9).astype(np.float32),
        np.eye(4),
    )
    survey = survey_cohort(Data(root=str(tmp_path / "root"), workers=1, crop=(16, 16, 16)))
    assert survey.names == NAMES and survey.unit == "mm" and not survey.planar
    assert (survey.labelled, survey.unlabelled) == (5, 1)
    assert survey.points.shape == (len(survey.train), 5, 3) and np.isfinite(survey.points).all()
    assert set(survey.facts) == {case.name for case in survey.train}
    np.testing.assert_array_equal(survey.median_of("shape"), [20, 20, 16])


@pytest.mark.parametrize("train", [[], ["case0"]])
def test_training_cases_without_a_landmark_in_common_are_refused(tmp_path, train):
    write_small_cohort(tmp_path / "root")
    splits = {"train": train, "val": ["case1"], "test": ["case2"]}
    (tmp_path / "root" / "splits.json").write_text(json.dumps(splits))
    data = Data(root=str(tmp_path / "root"), workers=1, crop=(16, 16, 16))
    refused(
        partial(survey_cohort, data),
        f"{tmp_path / 'root'}: of {len(train)} cases in the split train no two have a landmark in "
        "common: a plan needs to see how cases differ",
    )


def test_spread_is_the_error_of_the_mean_of_the_other_cases():
    rng = np.random.default_rng(1)
    points = rng.standard_normal((6, 4, 3))
    points[rng.random((6, 4)) < 0.3] = np.nan
    points[1:, 3] = np.nan
    points[0, 3] = 0.0
    errors = []
    for i in range(6):
        for k in range(4):
            others = [points[j, k] for j in range(6) if j != i and np.isfinite(points[j, k]).all()]
            if np.isfinite(points[i, k]).all() and others:
                errors.append(np.linalg.norm(points[i, k] - np.mean(others, axis=0)))
    assert np.isclose(spread(points), np.mean(errors))
    assert np.isnan(spread(points[:1])) and np.isnan(spread(points[:0]))


def test_landmarks_that_few_cases_have_are_left_out_and_counted(tmp_path):
    root = tmp_path / "root"
    tables = write_small_cohort(root, 6)
    tables["case0"]["typo"] = tables["case0"].pop("tip")
    for case in ("case1", "case2", "case3", "case4"):
        del tables[case]["deep"]
    write_table(root / "landmarks.csv", tables)
    kept, rare = common_landmarks(read_annotated(Data(root=str(root))))
    assert set(kept) == {"tip", "eye R", "eye L", "jaw"}
    assert rare == {"typo": 1, "deep": 2}


def test_what_all_of_two_cases_have_is_common(tmp_path):
    write_small_cohort(tmp_path / "root", 2)
    kept, rare = common_landmarks(read_annotated(Data(root=str(tmp_path / "root"))))
    assert kept == NAMES and not rare


@pytest.mark.parametrize("count", [0, 1, 39, 40, 41, 200])
def test_at_most_so_many_cases_evenly(count):
    some = evenly(list(range(count)), MOST_SCANS)
    assert min(count, MOST_SCANS // 2) <= len(some) <= MOST_SCANS
    assert len({b - a for a, b in zip(some, some[1:], strict=False)}) <= 1


def folder_with(root, name, content):
    (root / "images").mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        (root / "images" / name).write_bytes(content)
    else:
        write_scan(root / "images" / name, content, np.eye(4))
    return Data(root=str(root))


def test_pictures_are_told_from_volumes_by_the_images(tmp_path):
    thin = np.random.rand(9, 8, 1).astype(np.float32)
    assert is_planar(folder_with(tmp_path / "png", "a.PNG", png(GREY)))
    assert is_planar(folder_with(tmp_path / "slice", "a.nii.gz", thin))
    assert is_planar(folder_with(tmp_path / "xray", "a.dcm", xray(GREY.astype(np.uint16))))
    assert not is_planar(
        folder_with(tmp_path / "volume", "a.nii", np.random.rand(9, 8, 7).astype(np.float32))
    )
    # What cannot be read is refused later, by its name.
    assert not is_planar(folder_with(tmp_path / "broken", "a.nii.gz", b"no scan"))


def test_pictures_beside_volumes_are_refused(tmp_path):
    folder_with(tmp_path, "b.nii", np.random.rand(9, 8, 7).astype(np.float32))
    data = folder_with(tmp_path, "a.png", png(GREY))
    refused(
        partial(is_planar, data),
        f"{tmp_path / 'images'}: holds pictures (a.png) and volumes (b.nii): keep one kind",
    )


def test_pictures_are_in_mm_where_all_their_pixels_sizes_are_known(tmp_path):
    def unit(root, lines, **fields):
        (root / "landmarks.csv").write_text("\n".join(["case,landmark,x_px,y_px", *lines]))
        return unit_of_pictures(Data(root=str(root), crop=(16, 16, 1), workers=1, **fields))

    points = ["a,p,3,4", "b,p,4,4"]
    plain = tmp_path / "plain"
    for name in "ab":
        folder_with(plain, f"{name}.png", png(GREY))
    assert unit(plain, points) == "px"
    assert unit(plain, points, pixel_size_mm=0.5) == "mm"
    stated = tmp_path / "stated"
    for name in "ab":
        folder_with(stated, f"{name}.dcm", xray(GREY.astype(np.uint16), spacing=(0.2, 0.2)))
    assert unit(stated, points) == "mm"
    folder_with(stated, "b.dcm", xray(GREY.astype(np.uint16)))
    assert unit(stated, points) == "px"
