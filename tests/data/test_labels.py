"""Landmark files of a cohort together: frames, units, names, several files a case, and notes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused
from test_cohort import AFFINE, SHAPE, A, B, C, make, states
from test_landmarks import markup, save

from experiments.cow import get_config
from jaxmark import workflow
from jaxmark.config import Data
from jaxmark.data.cohort import Cohort, check_inside, read_cohort
from jaxmark.data.landmarks import Landmarks, write_fcsv, write_mrk_json, write_table
from jaxmark.data.notes import Note, summed_up
from jaxmark.data.prepare import identity
from jaxmark.data.scans import read_scan, write_scan
from jaxmark.data.unpaired import read_unpaired
from jaxmark.system.errors import InputError

FCSV = "# columns = id,x,y,z,label\n1,{x},{y},{z},a\n"


def with_landmarks(root: Path, files: dict[str, Any], **fields: Any) -> Data:
    """A cohort whose folder `landmarks/` holds these texts or trees."""
    cases = {name.split(".")[0] for name in files if "/" not in name}
    data = make(root, dict.fromkeys(sorted(cases)))
    (root / "landmarks").mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        save(root / "landmarks" / name, text)
    return dataclasses.replace(data, **fields)


def one(*labels: str | None, **fields: Any) -> dict[str, Any]:
    points = [{"position": [i, 2, 3]} for i in range(len(labels))]
    for point, label in zip(points, labels, strict=True):
        if label is not None:
            point["label"] = label
    return {"markups": [markup(points, **fields)]}


def place(cohort: Cohort, case: str) -> list[float]:
    return cohort.cases[case].landmarks_mm[0].tolist()


# Notes


def test_notes_of_a_kind_are_one_line_with_five_names() -> None:
    notes = [Note(f"{i}.csv", "strange") for i in range(8)] * 2 + [Note("a\nb", "stranger")]
    assert summed_up(notes) == (
        "0.csv, 1.csv, 2.csv, 3.csv, 4.csv and 3 more: strange",
        "a\\nb: stranger",
    )
    assert summed_up([]) == ()


def test_a_cohort_that_leaves_nothing_open_has_no_notes(tmp_path: Path) -> None:
    assert read_cohort(make(tmp_path, {"one": {"a": A}, "two": {"a": B}})).notes == ()


# Frames


def test_the_configs_frame_is_for_files_that_state_none(tmp_path: Path) -> None:
    files = {
        "one.fcsv": "# CoordinateSystem = LPS\n" + FCSV.format(x=1, y=2, z=3),
        "two.fcsv": FCSV.format(x=-1, y=-2, z=3),
        "three.mrk.json": one("a"),
    }
    data = with_landmarks(tmp_path, files)
    refused(
        lambda: read_cohort(data),
        tmp_path / "landmarks" / "two.fcsv",
        "states no coordinate frame",
        "--config.data.frame=LPS or RAS (2 others state LPS)",
    )
    cohort = read_cohort(dataclasses.replace(data, frame="RAS"))
    assert place(cohort, "one") == place(cohort, "two") == [1, 2, 3]
    assert cohort.notes == (
        "two.fcsv: no frame stated: RAS, as config.data.frame says; 2 others state LPS",
    )


def test_a_frame_that_no_file_needs_and_all_contradict_is_refused(tmp_path: Path) -> None:
    data = dataclasses.replace(make(tmp_path, {"one": {"a": A}, "two": {"a": A}}), frame="RAS")
    refused(lambda: read_cohort(data), "states the frame LPS, but config.data.frame is RAS")


# Voxels


def with_scans(root: Path, folder: str = "images", suffix: str = "") -> np.ndarray:
    """Two scans that lie askew; (4, 4) where."""
    c, s = np.cos(0.4), np.sin(0.4)
    at = AFFINE.copy()
    at[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, -1]]) @ AFFINE[:3, :3]
    voxels = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    (root / folder).mkdir(exist_ok=True)
    for case in ("one", "two"):
        write_scan(root / folder / f"{case}{suffix}.nii.gz", voxels, at)
    return read_scan(root / folder / f"one{suffix}.nii.gz").ijk_to_lps


INDICES = np.array([[5.0, 0.0, 1.5], [0.0, 4.0, 3.0]])


@pytest.mark.parametrize("form", ["table", "voxel columns", "ijk", "fcsv"])
def test_voxel_indices_become_millimetres_of_the_case_s_own_scan(tmp_path: Path, form: str) -> None:
    at = with_scans(tmp_path)
    axes = {"voxel columns": "x_vox,y_vox,z_vox", "ijk": "i,j,k"}.get(form, "x,y,z")
    rows = ",a,5,0,1.5\n{c},b,0,4,3\n"
    table = "".join(f"{c}{rows.format(c=c)}" for c in ("one", "two"))
    if form == "fcsv":
        (tmp_path / "landmarks").mkdir()
        for case in ("one", "two"):
            text = "# columns = id,x,y,z,label\n1,5,0,1.5,a\n2,0,4,3,b\n"
            save(tmp_path / "landmarks" / f"{case}.fcsv", text)
    else:
        save(tmp_path / "landmarks.csv", f"case,landmark,{axes}\n{table}one,c,,,\n")
    units = "voxels" if form in ("table", "fcsv") else "mm"
    data = Data(root=str(tmp_path), units=units, cache=str(tmp_path / "cache"))
    data = dataclasses.replace(data, landmarks=("a", "b", "c"))
    cohort = read_cohort(data)
    expected = INDICES @ at[:3, :3].T + at[:3, 3]
    for case in cohort.cases.values():
        np.testing.assert_allclose(case.landmarks_mm[:2], expected, atol=1e-12)
        check_inside(case, read_scan(case.scan))
    assert states(cohort.cases["one"]) == ("ppu" if form == "fcsv" else "ppa")
    said = ("landmarks.csv: positions are voxel indices of the images, counted from 0",)
    assert cohort.notes == (said if units == "mm" else ())
    # Where the scan lies is found once, and again when its file is another.
    before = identity(cohort.cases["one"])
    assert len(list((tmp_path / "cache" / "places").iterdir())) == 2
    moved = at.copy()
    moved[:3, 3] += 7
    write_scan(
        tmp_path / "images" / "one.nii.gz", np.arange(120.0, dtype=np.float32).reshape(SHAPE), moved
    )
    again = read_cohort(data)
    np.testing.assert_allclose(again.cases["one"].landmarks_mm[:2], expected + 7, atol=1e-5)
    np.testing.assert_array_equal(again.cases["two"].landmarks_mm, cohort.cases["two"].landmarks_mm)
    assert identity(again.cases["one"])["landmarks"] != before["landmarks"]


def test_a_damaged_place_in_the_cache_is_found_anew(tmp_path: Path) -> None:
    with_scans(tmp_path)
    save(tmp_path / "landmarks.csv", "case,landmark,i,j,k\none,a,1,2,3\ntwo,a,1,2,3\n")
    data = Data(root=str(tmp_path), cache=str(tmp_path / "cache"))
    first = read_cohort(data).cases["one"].landmarks_mm
    for file in (tmp_path / "cache" / "places").iterdir():
        file.write_bytes(file.read_bytes().replace(b"2", b"3"))
    np.testing.assert_array_equal(read_cohort(data).cases["one"].landmarks_mm, first)


def test_files_in_millimetres_contradict_voxels(tmp_path: Path) -> None:
    with_scans(tmp_path)
    data = Data(root=str(tmp_path), units="voxels", cache=str(tmp_path / "cache"))
    save(tmp_path / "landmarks.csv", "case,landmark,x_lps,y_lps,z_lps\none,a,1,2,3\n")
    refused(lambda: read_cohort(data), "states the frame LPS, but config.data.units is voxels")
    save(tmp_path / "landmarks.csv", "case,landmark,x_mm,y_mm,z_mm\none,a,1,2,3\n")
    refused(lambda: read_cohort(data), "states millimetres, but config.data.units is voxels")
    (tmp_path / "landmarks.csv").unlink()
    write_mrk_json(tmp_path / "landmarks" / "one.mrk.json", {"a": A})
    save(tmp_path / "landmarks" / "two.csv", "landmark,x,y,z\na,1,2,3\n")
    cohort = read_cohort(data)
    assert place(cohort, "one") == A.tolist() and place(cohort, "two") != [1, 2, 3]
    assert cohort.notes == (
        "two.csv: neither frame nor unit stated: voxels, as config.data.units says",
    )


def test_nnlandmarks_file_of_all_cases(tmp_path: Path) -> None:
    at = with_scans(tmp_path, "imagesTr", "_0000")
    tree = {"one": {"a": [5, 0, 1.5], "b": [0, 4, 3]}, "two": {"a": [5, 0, 1.5], "b": None}}
    file = save(tmp_path / "all_landmarks_voxel.json", json.dumps(tree))
    data = Data(root=str(tmp_path), cache=str(tmp_path / "cache"))
    cohort = read_cohort(data)
    expected = INDICES @ at[:3, :3].T + at[:3, 3]
    np.testing.assert_allclose(cohort.cases["one"].landmarks_mm, expected, atol=1e-12)
    assert states(cohort.cases["two"]) == "pa"
    assert cohort.notes == (
        "all_landmarks_voxel.json: positions are voxel indices of the images, counted from 0",
    )
    refused(
        lambda: read_unpaired(dataclasses.replace(data, unpaired=str(file)), ("a", "b")),
        file,
        "holds voxel indices, but there are no images here",
    )
    write_table(tmp_path / "landmarks.csv", {"one": {"a": A}})
    refused(lambda: read_cohort(data), "two places, landmarks.csv and all_landmarks_voxel.json")


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ([], "is not an object like"),
        ({"one": [1, 2, 3]}, "case 'one' is not an object of landmarks"),
        ({"one": {"a": [1, 2]}}, "case 'one': landmark 'a' is not a list of three numbers"),
        ({"one": {"a": [1, 2, float("nan")]}}, "case 'one': landmark 'a' is not finite"),
        ({"one": {"a": 1}}, "case 'one': landmark 'a' is not a list"),
        ({"one": {"": [1, 2, 3]}}, "case 'one': the landmark's name is empty"),
        ({"../one": {"a": [1, 2, 3]}}, "the case's name is '../one'"),
        ({"one": {}}, "has no landmarks"),
        ({}, "has no landmarks"),
        ({"uno": {"a": [1, 2, 3]}}, "case 'uno' has landmarks but no image"),
        ({"one": {"a": [1, 2, 3]}, "two": {}}, "case 'two' lacks 'a', unlike case 'one'"),
    ],
)
def test_wrong_files_of_voxels(tmp_path: Path, tree: Any, problem: str) -> None:
    with_scans(tmp_path)
    file = save(tmp_path / "all_landmarks_voxel.json", json.dumps(tree))
    data = Data(root=str(tmp_path), cache=str(tmp_path / "cache"))
    refused(lambda: read_cohort(data), file, problem)


def test_the_spacings_beside_voxels_are_compared_with_the_images(tmp_path: Path) -> None:
    x, y, z = 0.5, 1.5, 4.0
    c, s = np.cos(0.4), np.sin(0.4)
    at = np.eye(4)
    at[:3, :3] = np.array([[0, c, -s], [0, s, c], [-1, 0, 0]]) * [x, y, z]
    (tmp_path / "imagesTr").mkdir()
    for case in ("one", "two"):
        voxels = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
        write_scan(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", voxels, at)
    tree = {"one": {"a": [5, 0, 1.5]}, "two": {"a": [0, 4, 3]}}
    save(tmp_path / "all_landmarks_voxel.json", json.dumps(tree))
    data = Data(root=str(tmp_path), cache=str(tmp_path / "cache"))
    # As NIfTI's header has them, rounded, of any subset of the cases, and of others.
    header = sitk.ReadImage(str(tmp_path / "imagesTr" / "one_0000.nii.gz")).GetSpacing()
    for good in (
        {"one": {"image_spacing": list(header), "annotation_spacing": None}},
        {"one": {"image_spacing": None, "annotation_spacing": [1.009 * x, y, 0.991 * z]}},
        {"two": [x, y, z], "three": {"image_spacing": [9, 9, 9]}, "one": {}},
        {},
    ):
        file = save(tmp_path / "spacing.json", json.dumps(good))
        found = read_cohort(data).cases["one"].landmarks_mm
        np.testing.assert_allclose(found, [at[:3, :3] @ [5, 0, 1.5]], atol=1e-5)
    own = "but its image's voxels have 0.5 x 1.5 x 4 mm"
    for bad, problem in (
        ({"image_spacing": [x, y, 1.02 * z]}, f"image_spacing is 0.5 x 1.5 x 4.08 mm, {own}"),
        ({"annotation_spacing": 1.5}, f"annotation_spacing is 1.5 x 1.5 x 1.5 mm, {own}"),
        (
            {"image_spacing": list(header), "annotation_spacing": [2 * x, y, z]},
            f"annotation_spacing is 1 x 1.5 x 4 mm, {own}",
        ),
        ({"image_spacing": [z, y, x]}, "stated as z, y, x? Then the landmarks may be, too"),
        ([1, 1, 1], f"image_spacing is 1 x 1 x 1 mm, {own}"),
    ):
        save(tmp_path / "spacing.json", json.dumps({"one": bad}))
        refused(lambda: read_cohort(data), file, "case 'one': ", problem)
    save(tmp_path / "spacing.json", json.dumps({"one": [9, 9, 9], "two": {"image_spacing": 9}}))
    refused(lambda: read_cohort(data), "case 'one' (and 1 more): image_spacing is 9 x 9 x 9")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an object like"),
        ('{"one": 1}', "case 'one' is not an object of spacings"),
        ('{"one": {"image_spacing": [1, 2]}}', "case 'one': image_spacing is not a list of three"),
        ('{"one": {"image_spacing": "1"}}', "case 'one': image_spacing is not a list of three"),
        ('{"one": {"annotation_spacing": [1, 0, 1]}}', "annotation_spacing is not positive"),
        ('{"one": {"annotation_spacing": [1, 1, Infinity]}}', "annotation_spacing is not finite"),
    ],
)
def test_wrong_files_of_spacings(tmp_path: Path, text: str, problem: str) -> None:
    with_scans(tmp_path)
    save(tmp_path / "all_landmarks_voxel.json", json.dumps({"one": {"a": [1, 2, 3]}}))
    file = save(tmp_path / "spacing.json", text)
    data = Data(root=str(tmp_path), cache=str(tmp_path / "cache"))
    refused(lambda: read_cohort(data), file, problem)


# Names


def test_some_of_the_files_landmarks_may_be_chosen(tmp_path: Path) -> None:
    given: Landmarks = {"a": A, "M1/M2 R": B, "c": C, **{f"x{i}": A for i in range(6)}}
    data = make(tmp_path, {"one": given, "two": {"c": C, "M1/M2 R": A, "y": B}})
    cohort = read_cohort(dataclasses.replace(data, landmarks=("M1/M2 R", "a")))
    assert cohort.names == ("M1/M2 R", "a")
    assert states(cohort.cases["one"]) == "pp" and states(cohort.cases["two"]) == "pu"
    assert cohort.notes == (
        "'c', 'x0', 'x1', 'x2', 'x3' and 3 more: not in config.data.landmarks, and left out of "
        "all files",
    )
    wrong = dataclasses.replace(data, landmarks=("M1/M2 R", "aa"))
    refused(
        lambda: read_cohort(wrong),
        "case 'one': landmark 'a' is not in config.data.landmarks; the nearest name is 'aa', which "
        "no file has",
    )


def test_people_without_scans_may_have_more_landmarks_too(tmp_path: Path) -> None:
    write_table(tmp_path / "u.csv", {"p": {"a": A, "b": B}, "q": {"b": B}})
    said: list[str] = []
    _, sets = read_unpaired(Data(unpaired=str(tmp_path / "u.csv")), ("b",), said)
    np.testing.assert_array_equal(sets["p"], [B])
    assert said == ["'a': not in config.data.landmarks, and left out of all files"]


@pytest.mark.parametrize(
    ("forms", "said"),
    [
        (("{c}-{n}", "{c}-{n}"), True),
        (("F-{n}", "F_{n}"), True),
        (("F-{n}", "MarkupsFiducial_{n}"), True),
        (("F_1-{n}", "F-{n}"), True),
        (("{n}", "F-{n}"), True),
        (("F-{n}", "F-{n}"), False),
        (("F-0{n}", "F-0{n}"), False),
    ],
)
def test_names_of_slicers_lists_are_no_names_of_landmarks(
    tmp_path: Path, forms: tuple[str, str], said: bool
) -> None:
    files = {
        f"{case}.mrk.json": one(*(form.format(c=case, n=n) for n in (1, 2)))
        for case, form in zip(("one", "two"), forms, strict=True)
    }
    data = with_landmarks(tmp_path, files)
    cohort = read_cohort(data)
    assert cohort.names == (("1", "2") if said else tuple(forms[0].format(n=n) for n in (1, 2)))
    assert place(cohort, "one") == place(cohort, "two") == [0, 2, 3]
    assert any("their numbers are the names" in note for note in cohort.notes) == said
    # As one of the files writes it.
    chosen = (forms[0].format(c="one", n=2),)
    assert read_cohort(dataclasses.replace(data, landmarks=chosen)).cases["two"].present.all()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["T-1", "T-2"], ["L-1", "L-2"]),
        (["F-1", "AC"], ["F_1", "AC"]),
        (["F-1", "G-2"], ["F-1", "F-2"]),
        (["F-1", "F_1"], ["F-1", "F-2"]),
        (["M1", "M2"], ["F1", "F2"]),
    ],
)
def test_other_names_that_differ_are_at_odds(
    tmp_path: Path, first: list[str], second: list[str]
) -> None:
    files = {"one.mrk.json": one(*first), "two.mrk.json": one(*second)}
    refused(lambda: read_cohort(with_landmarks(tmp_path, files)), "unlike case 'one'")


@pytest.mark.parametrize("label", [None, "", " "])
def test_points_without_labels_are_numbered_where_all_are(tmp_path: Path, label: str) -> None:
    files = {"one.mrk.json": one(label, label), "two.mrk.json": one("1", " 2 ")}
    cohort = read_cohort(with_landmarks(tmp_path, files))
    assert cohort.names == ("1", "2") and place(cohort, "two") == [0, 2, 3]
    assert cohort.notes == (
        "one.mrk.json: points without labels are called by their numbers, from 1",
    )
    data = with_landmarks(tmp_path, {"one.mrk.json": one("1", label)})
    where = f"{tmp_path / 'landmarks' / 'one.mrk.json'}: markups[0].controlPoints[1]"
    refused(lambda: read_cohort(data), where, "label is missing" if label is None else "is empty")


def test_a_defined_point_without_a_position_was_not_annotated(tmp_path: Path) -> None:
    points = [{"label": "a", "position": [1, 2, 3]}, {"label": "b", "positionStatus": "defined"}]
    cohort = read_cohort(with_landmarks(tmp_path, {"one.mrk.json": {"markups": [markup(points)]}}))
    assert states(cohort.cases["one"]) == "pu"
    assert cohort.notes == (
        "one.mrk.json, point 'b': 'defined' without a position: taken as not annotated",
    )


# Files in the folder


def test_a_json_file_is_read_if_it_holds_markups(tmp_path: Path) -> None:
    files = {
        "one.mrk.json": one("a"),
        "two.json": one("a"),
        "three.mkp.json": one("a"),
        "about.json": {"who": "me"},
        "broken.json": '{"markups": [',
        "notes.txt": "",
        ".hidden": "",
    }
    (tmp_path / "landmarks" / "batch").mkdir(parents=True)
    cohort = read_cohort(with_landmarks(tmp_path, files))
    assert all(cohort.cases[case].present.all() for case in ("one", "two", "three"))
    assert cohort.notes == (
        "about.json (is not a markups file of 3D Slicer), batch, broken.json (is not JSON (line 1: "
        "Expecting value)), notes.txt: not read in landmarks/",
    )


def predicted(folder: Path, case: str, points: Landmarks, presence: dict[str, float]) -> None:
    """The files that prediction writes of a case."""
    words = {name: f"presence {share:.2f}, score 0.500" for name, share in presence.items()}
    hidden = [name for name, share in presence.items() if share < 0.5]
    write_mrk_json(folder / f"{case}.mrk.json", points, descriptions=words, hidden=hidden)
    write_fcsv(folder / f"{case}.fcsv", points, descriptions=words, hidden=hidden)
    columns = {"score": {case: dict.fromkeys(points, 0.5)}, "presence": {case: presence}}
    write_table(folder / f"{case}.csv", {case: points}, {**columns, "radius_mm": {}})
    (folder / f"{case}.png").touch()


def test_a_folder_a_case_is_no_landmark_file(tmp_path: Path) -> None:
    data = make(tmp_path, dict.fromkeys(["one", "two"]))
    for case in ("one", "two"):
        folder = tmp_path / "landmarks" / case
        folder.mkdir(parents=True)
        save(folder / "F.mrk.json", json.dumps(one("a")))
    problem = "holds no file <case>.mrk.json, <case>.fcsv or <case>.csv, but one, two"
    refused(lambda: read_cohort(data), tmp_path / "landmarks", problem)


def test_the_output_of_prediction_is_read_and_corrections_count(tmp_path: Path) -> None:
    data = make(tmp_path, dict.fromkeys(["one", "two", "three"]))
    folder = tmp_path / "landmarks"
    for case in ("one", "two", "three"):
        predicted(folder, case, {"a": A, "b": B}, {"a": 0.9, "b": 0.2})
    write_table(folder / "batch" / "landmarks.csv", {"one": {"a": A}})
    # In 3D Slicer one point of `two` was moved, and one of `three` shown: it is there.
    file = folder / "two.mrk.json"
    file.write_text(file.read_text().replace("14.0", "20.0", 1).replace("12.0", "15.0", 1))
    file = folder / "three.mrk.json"
    file.write_text(file.read_text().replace('"visibility": false', '"visibility": true'))
    cohort = read_cohort(data)
    assert states(cohort.cases["one"]) == "pa" and states(cohort.cases["three"]) == "pp"
    assert place(cohort, "two") == [15, 22, -27]
    assert cohort.notes == (
        "one.mrk.json, three.mrk.json: taken; other landmark files of the case say the same",
        "two.mrk.json (up to 6 mm): taken; jaxmark's predictions beside it differ",
        "batch, one.png, three.png, two.png: not read in landmarks/",
        "'b' of one, 'b' of two: predicted as probably absent: taken as absent",
    )
    said: list[str] = []
    _, sets = read_unpaired(Data(unpaired=str(folder)), ("a", "b"), said)
    assert list(sets) == ["one", "three", "two"] and said == list(cohort.notes)
    assert np.isnan(sets["one"][1]).all() and np.isfinite(sets["three"]).all()


def test_a_table_of_predictions_says_what_is_absent(tmp_path: Path) -> None:
    predicted(tmp_path, "one", {"a": A, "b": B}, {"a": 0.9, "b": 0.2})
    _, sets = read_unpaired(Data(unpaired=str(tmp_path / "one.csv")), ("a", "b"))
    assert np.isnan(sets["one"]).all(-1).tolist() == [False, True]
    # In the folder of a split's predictions a table of all is beside the cases.
    (tmp_path / "one.csv").rename(tmp_path / "landmarks_subvoxel.csv")
    said: list[str] = []
    _, sets = read_unpaired(Data(unpaired=str(tmp_path)), ("a", "b"), said)
    assert list(sets) == ["one"]
    assert any("landmarks_subvoxel.csv (a table of predictions)" in line for line in said)


def test_a_point_that_a_person_hides_stays(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": None})
    words = {"a": "presence of mind, score 1"}
    write_mrk_json(
        tmp_path / "landmarks" / "one.mrk.json", {"a": A}, hidden="a", descriptions=words
    )
    assert states(read_cohort(data).cases["one"]) == "p"


def test_files_that_differ_and_are_no_predictions_are_refused(tmp_path: Path) -> None:
    data = make(tmp_path, {"one": {"a": A}})
    folder = tmp_path / "landmarks"
    write_fcsv(folder / "one.fcsv", {"a": A + 0.001})
    assert read_cohort(data).notes == (
        "one.mrk.json: taken; other landmark files of the case say the same",
    )
    for other in ({"a": A + 1}, {"a": None}, {"a": A, "b": B}, {"b": A}):
        write_fcsv(folder / "one.fcsv", other)
        refused(lambda: read_cohort(data), "one.mrk.json: case 'one' has a second file, one.fcsv")
    save(folder / "one.fcsv", "damaged")
    refused(lambda: read_cohort(data), "case 'one' has a second file")
    # The same in the other frame.
    x, y, z = A * [-1, -1, 1]
    save(folder / "one.fcsv", "# CoordinateSystem = RAS\n" + FCSV.format(x=x, y=y, z=z))
    assert place(read_cohort(data), "one") == A.tolist()


def test_the_notes_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = with_landmarks(tmp_path, {"one.json": one("a"), "notes.txt": ""})
    (tmp_path / "images" / "notes.nii.gz").unlink()

    def stop(*_: object) -> None:
        raise InputError("here", "is enough")

    monkeypatch.setattr(workflow, "prepare_cohort", stop)
    experiment = dataclasses.replace(get_config("tiny"), data=data)
    refused(lambda: workflow.prepare(experiment, tmp_path / "work"), "here: is enough")
    assert "note: notes.txt: not read in landmarks/\n" in capsys.readouterr().out
