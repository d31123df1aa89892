"""Landmarks on pictures: pixels, millimetres, both; sizes from file, table and config."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from pictures import GREY, png, xray

from jaxmark.config import Data
from jaxmark.core.grids import Plane
from jaxmark.data.cohort import check_inside, read_cohort
from jaxmark.data.landmarks import read_predicted, write_fcsv, write_mrk_json, write_table
from jaxmark.data.pictures import read_picture
from jaxmark.data.prepare import prepare_cohort
from jaxmark.data.unpaired import read_unpaired

NAMES = ("a", "b")


def cohort(folder: Path, table: str, *, pictures: int = 2) -> Path:
    """A folder of pictures 7 x 5 with this table."""
    (folder / "images").mkdir(parents=True)
    for n in range(pictures):
        (folder / "images" / f"{n:03}.png").write_bytes(png(GREY + np.uint8(n)))
    (folder / "landmarks.csv").write_text(table)
    (folder / "splits.json").write_text('{"train": ["000"], "val": ["001"]}')
    return folder


def settings(root: Path, **fields) -> Data:
    defaults = {"crop": (8, 8, 1), "spacing_mm": (1.0, 1.0, 1.0), "margin": 0, "workers": 1}
    return Data(root=str(root), cache=str(root.parent / "cache"), **(defaults | fields))


def points(data: Data) -> np.ndarray:
    """(N, K, 3)"""
    return np.stack([case.landmarks_mm for case in read_cohort(data).cases.values()])


PX = "case,landmark,x_px,y_px\n000,a,1,2\n000,b,3.5,4\n001,a,2,2\n001,b,6,0\n"
PIXELS = np.array([[[1, 2, 0], [3.5, 4, 0]], [[2, 2, 0], [6, 0, 0]]])
BOTH = (
    "case,landmark,x,y,x_px,y_px\n000,a,0.4,0.8,1,2\n000,b,1.4,1.6,3.5,4\n"
    "001,a,0.8,0.8,2,2\n001,b,2.4,0,6,0\n"
)
MM = "case,landmark,x_mm,y_mm\n000,a,0.4,0.8\n000,b,1.4,1.6\n001,a,0.8,0.8\n001,b,2.4,0\n"
BARE = MM.replace("_mm", "")
SIZED = PX.replace("y_px", "y_px,pixel_size_mm").replace("\n000,a,1,2", "\n000,a,1,2,0.4")
SIZED = (
    SIZED.replace("3.5,4\n", "3.5,4,\n").replace("2,2\n", "2,2,0.8\n").replace("6,0\n", "6,0,0.8\n")
)


def test_cases_are_text_and_pixels_stay_pixels(tmp_path):
    data = settings(cohort(tmp_path / "root", PX), unit="px")
    found = read_cohort(data)
    assert list(found.cases) == ["000", "001"] and found.names == NAMES
    np.testing.assert_array_equal(points(data), PIXELS)


@pytest.mark.parametrize("table", [PX, BOTH, MM, BARE])
def test_a_size_makes_millimetres_of_pixels_and_pixels_of_millimetres(tmp_path, table):
    root = cohort(tmp_path / "root", table)
    np.testing.assert_allclose(points(settings(root, pixel_size_mm=0.4)), PIXELS * [0.4, 0.4, 1])
    np.testing.assert_allclose(points(settings(root, pixel_size_mm=0.4, unit="px")), PIXELS)


def test_the_table_may_state_the_size_of_each_picture(tmp_path):
    root = cohort(tmp_path / "root", SIZED)
    scale = np.array([[[0.4, 0.4, 1]], [[0.8, 0.8, 1]]])
    np.testing.assert_allclose(points(settings(root)), PIXELS * scale)
    np.testing.assert_allclose(points(settings(root, unit="px")), PIXELS)
    fine = settings(root, spacing_mm=(0.2, 0.2, 1.0))
    prepared = prepare_cohort(read_cohort(fine), fine)
    assert [case.pixel_mm for case in prepared.cases.values()] == [(0.4, 0.4), (0.8, 0.8)]
    refused(
        partial(read_cohort, settings(root, pixel_size_mm=0.4)),
        "landmarks.csv",
        "column pixel_size_mm says 0.8, but config.data.pixel_size_mm 0.4",
    )


@pytest.mark.parametrize(
    ("table", "fields", "parts"),
    [
        (PX, {}, ("000.png", "states no pixel size", "2 of 2 pictures state none")),
        (MM, {"unit": "px"}, ("landmarks.csv", "case '000'", "nobody states", "units=voxels")),
        (BARE, {"unit": "px"}, ("landmarks.csv", "x_px and y_px")),
        (BOTH, {"pixel_size_mm": 0.2}, ("landmarks.csv", "landmark 'a'", "is that size right?")),
        (PX.replace("y_px", "y"), {"unit": "px"}, ("has no column y beside 'x_px'",)),
        (PX.replace("x_px,y_px", "u,v"), {"unit": "px"}, ("has no column x_px, y_px",)),
        (PX.replace("y_px", "x_px"), {"unit": "px"}, ("two columns for x",)),
        (PX.replace("3.5", "left"), {"unit": "px"}, ("line 3", "x_px is 'left', not a number")),
        (PX.replace("6,0", "6,"), {"unit": "px"}, ("line 5", "y_px is ''")),
        (SIZED.replace("0.8", "0"), {}, ("line 4: pixel_size_mm is 0, not positive",)),
        (SIZED.replace("6,0,0.8", "6,0,0.7"), {}, ("line 5: pixel_size_mm is 0.7, and 0.8",)),
    ],
)
def test_what_nobody_can_know_is_refused(tmp_path, table, fields, parts):
    refused(partial(read_cohort, settings(cohort(tmp_path / "root", table), **fields)), *parts)


def test_numbers_without_a_unit_are_pixels_where_the_config_says_so(tmp_path):
    root = cohort(tmp_path / "root", PX.replace("_px", ""))
    data = settings(root, unit="px", units="voxels")
    np.testing.assert_array_equal(points(data), PIXELS)
    assert any("pixels, as config.data.units says" in note for note in read_cohort(data).notes)


def test_a_landmark_that_is_missing_is_absent(tmp_path):
    root = cohort(tmp_path / "root", PX.replace("001,b,6,0", "001,b,,"))
    case = read_cohort(settings(root, unit="px", landmarks=NAMES)).cases["001"]
    assert case.present.tolist() == [True, False] and case.absent.tolist() == [False, True]


@pytest.mark.parametrize("unit", ["px", "mm"])
def test_a_point_outside_of_its_picture_is_refused(tmp_path, unit):
    root = cohort(tmp_path / "root", PX.replace("6,0", "6.6,0"))
    data = settings(root, unit=unit, pixel_size_mm=0.5)
    end = "6.5" if unit == "px" else "3.2"
    refused(
        partial(prepare_cohort, read_cohort(data), data),
        "landmarks.csv",
        "case '001': landmark 'b'",
        f"{unit} is outside of its picture, which extends over x -0.",
        f" to {end}",
    )


def test_sizes_of_dicom_are_those_of_the_files(tmp_path):
    root = cohort(tmp_path / "root", PX)
    for n in range(2):
        (root / "images" / f"{n:03}.png").unlink()
        content = xray(GREY.astype(np.uint16), spacing=(0.3, 0.2), instance=n)
        (root / "images" / f"{n:03}.dcm").write_bytes(content)
    np.testing.assert_allclose(points(settings(root)), PIXELS * [0.2, 0.3, 1])
    np.testing.assert_allclose(points(settings(root, unit="px")), PIXELS)


def test_markups_are_points_on_pictures_too(tmp_path):
    root = cohort(tmp_path / "root", "")
    (root / "landmarks.csv").unlink()
    (root / "landmarks").mkdir()
    for n, write in enumerate((write_mrk_json, write_fcsv)):
        file = root / "landmarks" / f"{n:03}{('.mrk.json', '.fcsv')[n]}"
        write(file, dict(zip(NAMES, PIXELS[n] * [0.4, 0.4, 1], strict=True)))
    scaled = PIXELS * [0.4, 0.4, 1]
    np.testing.assert_allclose(points(settings(root, pixel_size_mm=0.4)), scaled, atol=1e-6)
    # In px their numbers are pixels, as prediction writes them.
    for size in (0.0, 0.4):
        data = settings(root, unit="px", pixel_size_mm=size)
        np.testing.assert_allclose(points(data), scaled, atol=1e-6)
        assert any("taken as pixels" in note for note in read_cohort(data).notes)


def stated_by_dicom(root: Path, size: tuple[float, float]) -> None:
    """The cohort's pictures as DICOM files with this size; rows, columns."""
    for n in range(2):
        (root / "images" / f"{n:03}.png").unlink()
        content = xray(GREY.astype(np.uint16), spacing=size, instance=n)
        (root / "images" / f"{n:03}.dcm").write_bytes(content)


def marked(root: Path, scale: object, words: str = "", z: float = 0.0) -> None:
    """The cohort's landmarks as files of 3D Slicer."""
    (root / "landmarks.csv").unlink()
    (root / "landmarks").mkdir()
    for n in range(2):
        found = dict(zip(NAMES, PIXELS[n] * scale + [0, 0, z], strict=True))
        file = root / "landmarks" / f"{n:03}.mrk.json"
        write_mrk_json(file, found, descriptions=dict.fromkeys(NAMES, words))


def test_markups_on_a_picture_that_states_its_size_are_millimetres(tmp_path):
    root = cohort(tmp_path / "root", "")
    stated_by_dicom(root, (0.3, 0.2))
    marked(root, [0.2, 0.3, 1.0])
    data = settings(root, unit="px")
    np.testing.assert_allclose(points(data), PIXELS, atol=1e-6)
    assert any("become pixels by the 0.2 x 0.3 mm" in note for note in read_cohort(data).notes)


@pytest.mark.parametrize("size", [(0.3, 0.2), (1.0, 1.0)])
def test_a_prediction_in_pixels_is_not_taken_for_millimetres(tmp_path, size):
    root = cohort(tmp_path / "root", "")
    stated_by_dicom(root, size)
    marked(root, 1.0, words="within 1.0 px (60 %), score 0.500")
    data = settings(root, unit="px")
    if size == (1.0, 1.0):
        np.testing.assert_allclose(points(data), PIXELS, atol=1e-6)
    else:
        refused(partial(read_cohort, data), "000.mrk.json", "case '000'", "0.2 x 0.3 mm", "x_px")


def test_a_point_off_the_plane_is_said_with_its_z(tmp_path):
    root = cohort(tmp_path / "root", "")
    stated_by_dicom(root, (0.5, 0.5))
    marked(root, [0.5, 0.5, 1.0], z=-33.0)
    case = read_cohort(settings(root)).cases["000"]
    scan = read_picture(case.scan)
    refused(partial(check_inside, case, scan), "000.mrk.json", "-33.0", "z is not 0")


def test_a_table_that_lost_leading_zeros_is_told_so(tmp_path):
    root = cohort(tmp_path / "root", PX.replace("\n00", "\n"))
    where = "case '0' has landmarks but no image"
    refused(partial(read_cohort, settings(root, unit="px")), where, "leading zeros", "'000'")


@pytest.mark.parametrize("unit", ["px", "mm"])
def test_tables_of_predictions_come_back(tmp_path, unit):
    plane = Plane(unit, (0.2, 0.3) if unit == "mm" else None)
    found = {"a": np.array([1.5, 2.25, 0.0]), "b": np.array([0.1, 0.7, 0.0])}
    file = tmp_path / "landmarks.csv"
    write_table(file, {"000": found}, {"score": {"000": {"a": 0.5}}}, {"000": plane})
    header = file.read_text().splitlines()[0]
    axes = "x_px,y_px" if unit == "px" else "x_mm,y_mm,x_px,y_px"
    assert header == f"case,landmark,{axes},score"
    back = read_predicted(file, unit)["000"]
    for name, xyz in found.items():
        np.testing.assert_array_equal(back[name], xyz)


@pytest.mark.parametrize("unit", ["px", "mm"])
def test_people_without_pictures_have_points_too(tmp_path, unit):
    root = cohort(tmp_path / "root", PX)
    (root / "unpaired.csv").write_text(PX.replace("000", "x").replace("001", "y"))
    data = settings(root, unit=unit, pixel_size_mm=0.4)
    _, sets = read_unpaired(data, NAMES)
    scale = [0.4, 0.4, 1] if unit == "mm" else [1, 1, 1]
    np.testing.assert_allclose(np.stack([sets["x"], sets["y"]]), PIXELS * scale)
