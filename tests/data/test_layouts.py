"""Folders as nnU-Net and BIDS have them; of images only the names matter here."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import refused

from jaxmark.config import Data
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmarks import write_fcsv, write_mrk_json, write_table
from jaxmark.data.layouts import find_layout

POINT = {"a": np.array([1.0, 2.0, 3.0])}


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def labelled(root: Path, *files: str) -> Path:
    for file in files:
        (write_fcsv if file.endswith(".fcsv") else write_mrk_json)(root / file, POINT)
    return root


def dataset(root: Path, **fields: object) -> None:
    (root / "dataset.json").write_text(json.dumps(fields))


# jaxmark's own


def test_own_folders_go_first(tmp_path: Path) -> None:
    touch(tmp_path, "images/b.nii.gz", "images/a.mha", "sub-1/anat/sub-1_T1w.nii.gz")
    layout = find_layout(tmp_path)
    assert layout.images == {
        "a": tmp_path / "images" / "a.mha",
        "b": tmp_path / "images" / "b.nii.gz",
    }
    assert layout.labels == {} and not layout.test
    refused(lambda: find_layout(tmp_path, "T1w"), "config.data.suffix: 'T1w'", tmp_path / "images")


def test_folders_of_no_layout(tmp_path: Path) -> None:
    refused(lambda: find_layout(tmp_path), f"{tmp_path}: has no folder images/, imagesTr/")
    touch(tmp_path, "inner/images/a.nii.gz")
    refused(lambda: find_layout(tmp_path), f"{tmp_path / 'inner'} has one")
    shutil.rmtree(tmp_path / "inner")
    touch(tmp_path, "scan.nii.gz", "sub-1/func/sub-1_bold.nii.gz")
    refused(lambda: find_layout(tmp_path), "it holds scan.nii.gz, sub-1/: move them to images/")
    touch(tmp_path, "dataset_description.json")
    refused(lambda: find_layout(tmp_path), f"{tmp_path}: holds no scans")
    (tmp_path / "imagesTr").mkdir()
    refused(lambda: find_layout(tmp_path), f"{tmp_path}: holds no scans")


# nnU-Net


@pytest.mark.parametrize(
    "fields",
    [
        {"channel_names": {"0": "CTA"}, "labels": {"background": 0}, "file_ending": ".nii.gz"},
        {"modality": {"0": "CT"}, "labels": {"0": "background"}, "tensorImageSize": "4D"},
        None,
    ],
)
def test_nnunet_of_both_versions(tmp_path: Path, fields: dict[str, object] | None) -> None:
    touch(tmp_path, "imagesTr/la_003_0000.nii.gz", "imagesTr/la_10_0000.nii.gz")
    touch(tmp_path, "imagesTs/x_0000.nii.gz", "labelsTr/la_003.nii.gz", "imagesTr/notes.txt")
    labelled(tmp_path, "labelsTr/la_003.mrk.json", "labelsTr/la_10.fcsv")
    if fields is not None:
        dataset(tmp_path, **fields)
    cohort = read_cohort(Data(root=str(tmp_path)))
    assert {name: case.scan for name, case in cohort.cases.items()} == {
        "la_003": tmp_path / "imagesTr" / "la_003_0000.nii.gz",
        "la_10": tmp_path / "imagesTr" / "la_10_0000.nii.gz",
        "x": tmp_path / "imagesTs" / "x_0000.nii.gz",
    }
    assert cohort.cases["la_10"].landmark_file == tmp_path / "labelsTr" / "la_10.fcsv"
    np.testing.assert_array_equal(cohort.cases["la_003"].landmarks_mm, [POINT["a"]])
    assert cohort.cases["x"].landmark_file is None
    assert sorted(cohort.splits["train"]) == ["la_003", "la_10"]


@pytest.mark.parametrize("place", ["landmarks", "landmarks.csv", "labelsTr"])
def test_labelled_cases_of_imagests_are_the_test_split(tmp_path: Path, place: str) -> None:
    train, test = [f"t{i}" for i in range(10)], ["x1", "x2"]
    touch(tmp_path, *(f"imagesTr/{case}_0000.nii.gz" for case in train))
    touch(tmp_path, *(f"imagesTs/{case}_0000.nii.gz" for case in [*test, "bare"]))
    if place == "landmarks.csv":
        write_table(tmp_path / place, dict.fromkeys([*train, *test], POINT))
    else:
        labelled(tmp_path, *(f"{place}/{case}.mrk.json" for case in train))
        other = "labelsTs" if place == "labelsTr" else place
        labelled(tmp_path, *(f"{other}/{case}.mrk.json" for case in test))
    data = Data(root=str(tmp_path), val_fraction=0.2, test_fraction=0.5)
    splits = read_cohort(data).splits
    assert splits["test"] == ("x1", "x2")
    assert len(splits["val"]) == 2 and sorted(splits["val"] + splits["train"]) == train
    (tmp_path / "splits.json").write_text('{"train": ["x1", "t1"], "test": ["t0"]}')
    assert read_cohort(data).splits == {"train": ("x1", "t1"), "val": (), "test": ("t0",)}


def test_a_folder_of_nnunet_with_nothing_to_train_on(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/t_0000.nii.gz", "imagesTs/x_0000.nii.gz")
    labelled(tmp_path, "labelsTs/x.mrk.json")
    refused(lambda: read_cohort(Data(root=str(tmp_path))), "no case of", "beside those for testing")


def test_one_channel_is_read(tmp_path: Path) -> None:
    for case in ("p", "q"):
        touch(tmp_path, f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz")
    dataset(tmp_path, channel_names={"0": "T2", "1": "ADC"}, file_ending=".nii.gz")
    refused(
        lambda: find_layout(tmp_path),
        f"{tmp_path}: holds the images 0000 (T2), 0001 (ADC); one a case is read",
        "--config.data.suffix=0000",
    )
    images = find_layout(tmp_path, "0001").images
    assert [path.name for path in images.values()] == ["p_0001.nii.gz", "q_0001.nii.gz"]
    refused(lambda: find_layout(tmp_path, "0002"), "config.data.suffix", "'0002'", "0001 (ADC)")
    refused(lambda: find_layout(tmp_path, "1"), "config.data.suffix")
    data = Data(root=str(tmp_path), suffix="0000", landmarks=("a",))
    labelled(tmp_path, "labelsTr/p.mrk.json")
    assert read_cohort(data).splits["train"] == ("p",)
    refused(lambda: read_cohort(dataclasses.replace(data, suffix="")), "0000 (T2), 0001 (ADC)")


@pytest.mark.parametrize(
    ("files", "where", "problem"),
    [
        (["imagesTr/a.nii.gz"], "imagesTr/a.nii.gz", "does not end in a channel"),
        (["imagesTr/a_000.nii.gz"], "imagesTr/a_000.nii.gz", "does not end in a channel"),
        (["imagesTr/_0000.nii.gz"], "imagesTr/_0000.nii.gz", "does not end in a channel"),
        (
            ["imagesTr/a_0000.nii.gz", "imagesTs/a_0000.nii.gz"],
            "imagesTs/a_0000.nii.gz",
            "case 'a' has a second image",
        ),
        (
            ["imagesTr/a_0000.nii.gz", "labelsTr/a.fcsv", "labelsTr/a.mrk.json"],
            "labelsTr/a.mrk.json",
            "case 'a' has a second file, a.fcsv",
        ),
        (
            ["imagesTr/a_0000.nii.gz", "labelsTr/a.fcsv", "landmarks/a.mrk.json"],
            "",
            "has landmarks in two places, landmarks and labelsTr/a.fcsv",
        ),
        (["imagesTr/.._0000.nii.gz"], "", "holds no scans"),
    ],
)
def test_wrong_files_of_nnunet(tmp_path: Path, files: list[str], where: str, problem: str) -> None:
    touch(tmp_path, *files)
    refused(lambda: find_layout(tmp_path), f"{tmp_path / where}: ", problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"channel_names": ["CT"]}', "channel_names is not an object"),
        ('{"modality": {"0": 1}}', "modality is not an object"),
        ('{"file_ending": ".png"}', "file_ending is '.png'; jaxmark reads .nii,"),
        ('{"file_ending": 1}', "file_ending is 1"),
    ],
)
def test_wrong_dataset_json(tmp_path: Path, text: str, problem: str) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(text)
    refused(lambda: find_layout(tmp_path), f"{tmp_path / 'dataset.json'}: ", problem)


def test_images_end_as_dataset_json_says(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.mha")
    dataset(tmp_path, channel_names={"0": "CT"}, file_ending=".nii.gz")
    refused(lambda: find_layout(tmp_path), tmp_path / "imagesTr" / "b_0000.mha", "file_ending")


# BIDS


def test_bids_with_and_without_sessions(tmp_path: Path) -> None:
    touch(tmp_path, "dataset_description.json", "participants.tsv", "sub-01/anat/sub-01_T1w.json")
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/func/sub-01_task-x_bold.nii.gz")
    touch(tmp_path, "sub-02/ses-pre/anat/sub-02_ses-pre_acq-hi_T1w.nii.gz")
    touch(tmp_path, "sub-02/ses-post/anat/sub-02_ses-post_T1w.nii.gz", "derivatives/group.csv")
    one = labelled(tmp_path, "sub-01/anat/sub-01_desc-points_markups.mrk.json")
    labelled(tmp_path, "derivatives/afids/sub-02/ses-pre/sub-02_ses-pre_desc-x_afids.fcsv")
    labelled(tmp_path, "derivatives/sub-02_ses-post.mrk.json", "derivatives/tpl-MNI_afids.fcsv")
    cohort = read_cohort(Data(root=str(tmp_path)))
    assert {case: source.scan.name for case, source in cohort.cases.items()} == {
        "sub-01": "sub-01_T1w.nii.gz",
        "sub-02_ses-post": "sub-02_ses-post_T1w.nii.gz",
        "sub-02_ses-pre": "sub-02_ses-pre_acq-hi_T1w.nii.gz",
    }
    files = [source.landmark_file for source in cohort.cases.values()]
    assert files[0] == one / "sub-01/anat/sub-01_desc-points_markups.mrk.json"
    assert [file.name for file in files if file] == [
        "sub-01_desc-points_markups.mrk.json",
        "sub-02_ses-post.mrk.json",
        "sub-02_ses-pre_desc-x_afids.fcsv",
    ]


@pytest.mark.parametrize("place", ["landmarks", "landmarks.csv"])
def test_bids_with_landmarks_in_the_root(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_cta.nii", "sub-11/anat/sub-11_cta.nii.gz")
    if place == "landmarks.csv":
        write_table(tmp_path / place, {"sub-1": POINT, "sub-11": POINT})
    else:
        labelled(tmp_path, "landmarks/sub-1.mrk.json", "landmarks/sub-11.fcsv")
    cohort = read_cohort(Data(root=str(tmp_path)))
    assert sorted(cohort.splits["train"]) == ["sub-1", "sub-11"]


def test_a_name_that_begins_another_is_another_case(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii", "sub-11/anat/sub-11_T1w.nii")
    labelled(tmp_path, "derivatives/sub-11_a.fcsv", "derivatives/sub-1_a.fcsv")
    labels = find_layout(tmp_path).labels
    assert isinstance(labels, dict)
    assert {case: file.name for case, file in labels.items()} == {
        "sub-1": "sub-1_a.fcsv",
        "sub-11": "sub-11_a.fcsv",
    }


def test_a_session_of_a_person_with_and_without_sessions(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii", "sub-1/ses-2/anat/sub-1_ses-2_T1w.nii")
    touch(tmp_path, "sub-3/anat/sub-3_T1w.nii")
    labelled(tmp_path, "derivatives/sub-1_ses-2_a.fcsv", "derivatives/sub-1_a.fcsv")
    labelled(tmp_path, "derivatives/sub-3_ses-1_a.fcsv")
    labels = find_layout(tmp_path).labels
    assert isinstance(labels, dict)
    assert {case: file.name for case, file in labels.items()} == {
        "sub-1": "sub-1_a.fcsv",
        "sub-1_ses-2": "sub-1_ses-2_a.fcsv",
        "sub-3": "sub-3_ses-1_a.fcsv",
    }


def test_the_suffix_chooses_the_image(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_angio.nii")
    touch(tmp_path, "sub-2/anat/sub-2_angio.nii", "sub-3/anat/sub-3_T1w.nii")
    refused(
        lambda: find_layout(tmp_path),
        f"{tmp_path}: holds the images T1w, angio; one a case is read",
        "--config.data.suffix=T1w",
    )
    images = find_layout(tmp_path, "angio").images
    assert [path.name for path in images.values()] == ["sub-1_angio.nii", "sub-2_angio.nii"]
    refused(lambda: find_layout(tmp_path, "cta"), "config.data.suffix", "'cta'", "T1w, angio")
    refused(lambda: find_layout(tmp_path, "gio"), "config.data.suffix", "'gio'")
    labelled(tmp_path, "derivatives/sub-3_a.fcsv")
    data = Data(root=str(tmp_path), suffix="angio")
    refused(lambda: read_cohort(data), "case 'sub-3' has landmarks but no image")


def test_one_kind_of_image_for_all(tmp_path: Path) -> None:
    # One image each, but of two modalities: nobody asked for that mixture.
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii", "sub-2/anat/sub-2_angio.nii")
    refused(lambda: find_layout(tmp_path), "T1w, angio")


def test_two_runs_of_one_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_run-1_T1w.nii", "sub-1/anat/sub-1_run-2_T1w.nii")
    refused(
        lambda: find_layout(tmp_path, "T1w"),
        tmp_path / "sub-1" / "anat" / "sub-1_run-2_T1w.nii",
        "case 'sub-1' has a second image, sub-1_run-1_T1w.nii",
    )
    images = find_layout(tmp_path, "run-2_T1w").images
    assert images["sub-1"].name == "sub-1_run-2_T1w.nii"


@pytest.mark.parametrize(
    ("files", "where", "problem"),
    [
        (["sub-1/anat/sub-2_T1w.nii"], "sub-1/anat/sub-2_T1w.nii", "does not begin with sub-1_"),
        (["sub-1/anat/sub-1.nii"], "sub-1/anat/sub-1.nii", "does not begin with sub-1_"),
        (
            ["sub-1/ses-1/anat/sub-1_T1w.nii"],
            "sub-1/ses-1/anat/sub-1_T1w.nii",
            "does not begin with sub-1_ses-1_",
        ),
        (
            ["sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_a.fcsv", "derivatives/x/sub-1_b.csv"],
            "derivatives/x/sub-1_b.csv",
            "case 'sub-1' has a second landmark file, ",
        ),
        (
            ["sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_a.fcsv", "landmarks.csv"],
            "",
            "two places, landmarks.csv and sub-1/anat/sub-1_a.fcsv",
        ),
    ],
)
def test_wrong_files_of_bids(tmp_path: Path, files: list[str], where: str, problem: str) -> None:
    touch(tmp_path, *files)
    refused(lambda: find_layout(tmp_path), f"{tmp_path / where}: ", problem)
    if problem.startswith("case"):
        refused(lambda: find_layout(tmp_path), tmp_path / files[1], tmp_path / files[2])


def test_landmarks_of_nobody(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii")
    file = labelled(tmp_path, "derivatives/sub-01_a.fcsv") / "derivatives" / "sub-01_a.fcsv"
    data = Data(root=str(tmp_path))
    refused(lambda: read_cohort(data), file, "case 'sub-01' has landmarks but no image")
    file.rename(file.with_name("sub-01_ses-2_a.fcsv"))
    refused(lambda: read_cohort(data), "case 'sub-01_ses-2' has landmarks but no image")


def test_a_csv_file_of_one_case_names_the_case(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii")
    write_table(tmp_path / "derivatives" / "sub-1_points.csv", {"sub-1": POINT})
    data = Data(root=str(tmp_path))
    np.testing.assert_array_equal(read_cohort(data).cases["sub-1"].landmarks_mm, [POINT["a"]])
    write_table(tmp_path / "derivatives" / "sub-1_points.csv", {"sub-2": POINT})
    refused(lambda: read_cohort(data), "sub-1_points.csv", "names 'sub-2', not 'sub-1'")


@pytest.mark.real_data
def test_real_fiducials_in_bids(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "afids" / "hcp").glob("*.fcsv"))
    folder = tmp_path / "derivatives" / "afids"
    folder.mkdir(parents=True)
    for file in files:
        case = file.name.split("_")[0]
        touch(tmp_path, f"{case}/anat/{case}_T1w.nii.gz")
        (folder / file.name).write_bytes(file.read_bytes())
    cohort = read_cohort(Data(root=str(tmp_path)))
    assert len(cohort.cases) == len(files) == 30
    assert cohort.names == tuple(str(i) for i in range(1, 33))
    assert all(case.present.all() for case in cohort.cases.values())
    assert sum(map(len, cohort.splits.values())) == 30


# Formats that earlier versions passed over


def test_formats_read_since_change_no_folder_of_nnunet_or_bids(tmp_path):
    for layout, kept, added in (
        ("nnunet", "imagesTr/a_0000.nii.gz", ("imagesTr/a.mgz", "imagesTr/mask.nhdr")),
        ("bids", "sub-1/anat/sub-1_T1w.nii.gz", ("sub-1/anat/brain.mgz", "sub-1/anat/x.png")),
    ):
        root = tmp_path / layout
        for name in (kept, *added):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        found = find_layout(root)
        assert list(found.images.values()) == [root / kept]
        (line,) = found.passed_over
        folder = (root / kept).parent
        names = ", ".join(sorted(Path(name).name for name in added))
        assert line.startswith(f"{folder}: 2 files look like images and are not read: {names} (")


def test_nnunet_with_a_file_ending_that_is_read_since(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "dataset.json").write_text('{"file_ending": ".mgz"}')
    (tmp_path / "imagesTr" / "a_0000.mgz").touch()
    assert list(find_layout(tmp_path).images) == ["a"]


def test_folders_with_files_passed_over_are_counted(tmp_path):
    for number in range(7):
        folder = tmp_path / f"sub-{number}" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{number}_T1w.nii.gz").touch()
        (folder / "preview.png").touch()
    notes = find_layout(tmp_path).passed_over
    assert len(notes) == 6 and notes[-1] == "2 more folders hold such files"
