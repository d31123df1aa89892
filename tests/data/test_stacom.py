"""The landmark challenge's text files: what is read, what is guessed, what is refused."""

import numpy as np
import pytest
from conftest import refused

from jaxmark.config import Data
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmark_files import stacom
from jaxmark.data.landmarks import read_content, read_landmarks, read_tables
from jaxmark.data.notes import summed_up
from jaxmark.data.scans import write_scan

WHOLE = """# patient 1
[RV_INSERTS]
101.5 88 a/IM-01.dcm
98 131.25 a/IM-01.dcm
90 80 a/IM 02.dcm
; the second point of this picture is next
88 120 a/IM 02.dcm

[BASE_CENTRAL_AXIS]
120 110 a/IM-01.dcm
[ mitral_valves ]
10 40 IM-03.dcm
40 44 IM-03.dcm
[APEX_CENTRAL_AXIS]
1 2 IM-04.dcm
"""


def written(folder, text, name="landmarks.txt"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path


def lines_of(contents):
    return summed_up(note for content in contents.values() for note in content.notes)


def test_points_are_pixels_of_their_pictures(tmp_path):
    contents = read_tables(written(tmp_path, WHOLE))
    assert {case: list(content.points) for case, content in contents.items()} == {
        "IM-01": ["RV insert 1", "RV insert 2", "base central axis"],
        "IM 02": ["RV insert 1", "RV insert 2"],
        "IM-03": ["mitral valve 1", "mitral valve 2"],
        "IM-04": ["apex central axis"],
    }
    assert {content.unit for content in contents.values()} == {"voxels"}
    np.testing.assert_array_equal(contents["IM-01"].points["RV insert 2"], [98, 131.25, 0])
    np.testing.assert_array_equal(contents["IM-03"].points["mitral valve 1"], [10, 40, 0])


def test_it_says_that_the_order_of_lines_names_the_points(tmp_path):
    said = lines_of(read_tables(written(tmp_path, WHOLE)))
    assert "landmarks.txt: positions are pixels of the pictures, counted from 0" in said
    what = "'RV insert 1' is the first line of a picture, 'RV insert 2' the second"
    assert f"landmarks.txt: {what}" in said
    assert not any("check their order" in line for line in said)


def test_pictures_whose_points_are_the_other_way_round_are_named(tmp_path):
    rows = [f"{50 + k} {80 - k} p{k}\n{48} {120} p{k}\n" for k in range(5)]
    rows.append("50 121 p5\n51 80 p5\n")
    said = lines_of(read_tables(written(tmp_path, "[RV_INSERTS]\n" + "".join(rows))))
    assert (
        "landmarks.txt, p5: 'RV insert 1' is not above 'RV insert 2', as in most pictures: check "
        "their order" in said
    )
    beside = "".join(f"{x} 50 p{k}\n{90 - x} 52 p{k}\n" for k, x in enumerate((80, 81, 82, 10)))
    said = lines_of(read_tables(written(tmp_path, "[MITRAL_VALVES]\n" + beside)))
    assert any(line.startswith("landmarks.txt, p3: 'mitral valve 1' is not right") for line in said)


def test_known_cases_tell_what_a_path_means(tmp_path):
    text = "[BASE_CENTRAL_AXIS]\n1 2 x/p1/IM1.dcm\n3 4 x/p2/IM1.dcm\n5 6 ./IM2\n"
    path = written(tmp_path, text)
    assert list(stacom.read(path, {"p1-IM1", "p2-IM1", "IM2"})) == ["p1-IM1", "p2-IM1", "IM2"]
    assert list(stacom.read(path, {"x-p1-IM1", "x-p2-IM1"})) == ["x-p1-IM1", "x-p2-IM1", "IM2"]
    refused(lambda: stacom.read(path), "line 3: picture 'IM1' has 2 in [BASE_CENTRAL_AXIS], not 1")


BAD = {
    "empty": ("", "has no landmarks"),
    "sections alone": ("[RV_INSERTS]\n[MITRAL_VALVES]\n", "has no landmarks"),
    "no section": ("1 2 a.dcm\n", "line 1: '1 2 a.dcm' stands before the first section"),
    "another section": ("[LV_INSERTS]\n1 2 a\n", "line 1: section 'LV_INSERTS' is none of [RV_IN"),
    "no file": ("[RV_INSERTS]\n\n1 2\n", "line 3: '1 2' is not 'x y file'"),
    "words": ("[RV_INSERTS]\n1 two a\n", "line 2: y is 'two', not a number"),
    "nan": ("[RV_INSERTS]\nnan 2 a\n", "line 2: x is 'nan', not a finite number"),
    "one of two": ("[RV_INSERTS]\n1 2 a\n", "line 2: picture 'a' has 1 in [RV_INSERTS], not 2"),
    "three": (
        "[MITRAL_VALVES]\n1 2 a\n3 4 a\n1 2 b\n5 6 a\n2 2 b\n",
        "line 5: picture 'a' has 3 in [MITRAL_VALVES], not 2",
    ),
    "twice in two sections": (
        "[APEX_CENTRAL_AXIS]\n1 2 a\n[RV_INSERTS]\n1 1 b\n2 2 b\n[APEX_CENTRAL_AXIS]\n1 2 a\n",
        "line 7: picture 'a' has 2 in [APEX_CENTRAL_AXIS], not 1",
    ),
    "a folder": ("[APEX_CENTRAL_AXIS]\n1 2 a/\n", "line 2: the case's name is"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_with_its_line(tmp_path, name):
    text, problem = BAD[name]
    path = written(tmp_path, text)
    refused(lambda: read_tables(path), f"{path}: {problem}")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "landmarks.txt"
    path.write_bytes(b"[RV_INSERTS]\n\xff\xfe 2 a\n")
    refused(lambda: read_tables(path), f"{path}: is not UTF-8 text (byte 13)")
    assert not stacom.is_one(path)


def test_one_case_of_its_own_file(tmp_path):
    path = written(tmp_path, "[APEX_CENTRAL_AXIS]\n1 2 a.dcm\n", "a.txt")
    np.testing.assert_array_equal(read_content(path).points["apex central axis"], [1, 2, 0])
    refused(lambda: read_landmarks(path), "holds voxel indices")


def cohort_of(root, files, cases):
    place = np.diag([2.0, 3.0, 8.0, 1.0])
    place[:3, 3] = [-10, 5, 0]
    voxels = np.arange(8 * 8 * 4, dtype=np.int16).reshape(8, 8, 4)
    for case in cases:
        write_scan(root / "images" / f"{case}.nii.gz", voxels, place)
    for name, text in files.items():
        written((root / name).parent, text, (root / name).name)
    return Data(root=str(root), landmarks=("RV insert 1", "RV insert 2"), cache=str(root / "cache"))


FIRST = "[RV_INSERTS]\n1 2 p1.dcm\n1 5 p1.dcm\n2 2 p2.dcm\n2 5 p2.dcm\n"
SECOND = "[RV_INSERTS]\n3 2 p3.dcm\n3 5 p3.dcm\n"


@pytest.mark.parametrize(
    "files",
    [
        {"landmarks.txt": FIRST + SECOND},
        {"landmarks/first.txt": FIRST, "landmarks/second.TXT": SECOND},
    ],
)
def test_a_cohort_is_read_in_the_pictures_own_millimetres(tmp_path, files):
    cohort = read_cohort(cohort_of(tmp_path, files, ("p1", "p2", "p3")))
    assert sum(len(cases) for cases in cohort.splits.values()) == 3
    np.testing.assert_allclose(cohort.cases["p3"].landmarks_mm, [[-4, 11, 0], [-4, 20, 0]])


def test_a_case_in_two_files_is_refused(tmp_path):
    files = {"landmarks/first.txt": FIRST, "landmarks/second.txt": FIRST}
    data = cohort_of(tmp_path, files, ("p1", "p2"))
    refused(lambda: read_cohort(data), "second.txt: case 'p1' has landmarks in first.txt, too")


def test_other_text_files_beside_landmarks_are_not_read(tmp_path):
    files = {"landmarks/first.txt": FIRST, "landmarks/README.txt": "how we did it\n"}
    cohort = read_cohort(cohort_of(tmp_path, files, ("p1", "p2")))
    assert any("README.txt: not read in landmarks/" in line for line in cohort.notes)
    assert set(cohort.cases) == {"p1", "p2"}


def test_points_of_pictures_stay_pixels_or_become_millimetres(tmp_path):
    voxels = np.arange(256, dtype=np.int16).reshape(16, 16, 1)
    for case in ("p1", "p2", "p3"):
        path = tmp_path / "images" / f"{case}.nii.gz"
        write_scan(path, voxels, np.diag([1.5, 1.5, 8.0, 1.0]))
    written(tmp_path, FIRST + SECOND)
    names = ("RV insert 1", "RV insert 2")
    data = Data(root=str(tmp_path), landmarks=names, crop=(16, 16, 1), unit="px")
    pixels = read_cohort(data).cases["p3"].landmarks_mm
    np.testing.assert_allclose(pixels, [[3, 2, 0], [3, 5, 0]])
    data.unit = "mm"
    in_mm = read_cohort(data).cases["p3"].landmarks_mm
    np.testing.assert_allclose(in_mm, [[4.5, 3, 0], [4.5, 7.5, 0]])
