import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import refused

from jaxmark.data.landmarks import (
    Landmarks,
    read_landmarks,
    read_table,
    write_fcsv,
    write_mrk_json,
    write_table,
)
from jaxmark.system.errors import InputError

UNPLACED = np.full(3, np.nan)
POINTS: Landmarks = {
    "AC": np.array([1 / 3, -math.pi, 1e-17]),
    'left "M1", bend': np.array([0.1 + 0.2, 12345.678901234567, -0.0]),
    "absent": None,
    "listed, not placed": UNPLACED,
    "ünï": np.array([-1.0, 2.0, 3.0]),
}


def same(a: Mapping[str, np.ndarray | None], b: Mapping[str, np.ndarray | None]) -> None:
    """Equal to the last bit, in the same order."""
    assert list(a) == list(b)
    for name in a:
        left, right = a[name], b[name]
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            assert left.dtype == right.dtype == np.float64
            assert left.tobytes() == right.tobytes()


def save(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def markup(points: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    points = [{"label": "a", "position": [1.0, 2.0, 3.0]}] if points is None else points
    return {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": points, **fields}


def save_markups(path: Path, *markups: Any) -> Path:
    return save(path, json.dumps({"markups": list(markups)}))


FCSV = """# Markups fiducial file version = 4.10
# CoordinateSystem = {frame}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
n_1,1.5,2.5,3.5,0,0,0,1,1,1,0,1,AC,vtkMRMLScalarVolumeNode1
n_2,-4,5,6,0,0,0,1,1,1,0,2,"PC, the other",
"""


# Round trips


@pytest.mark.parametrize(
    ("write", "extension"), [(write_mrk_json, ".mrk.json"), (write_fcsv, ".fcsv")]
)
def test_slicer_files_round_trip_is_exact(
    tmp_path: Path, write: Callable[..., None], extension: str
) -> None:
    path = tmp_path / "new" / f"a{extension}"
    write(path, POINTS, descriptions={"AC": 'score 0.9, "good"'}, hidden=("AC",))
    same(read_landmarks(path), POINTS)
    assert list(path.parent.iterdir()) == [path]


def test_table_round_trip_is_exact(tmp_path: Path) -> None:
    cases: dict[str, Landmarks] = {"case 1": POINTS, "b,2": {"AC": np.array([0.1, 0.2, 0.3])}}
    path = tmp_path / "a.csv"
    for columns in (None, {"score": {"case 1": {"AC": 1 / 3, "absent": 0.5}}, "n": {}}):
        write_table(path, cases, columns)
        back = read_table(path)
        assert list(back) == list(cases)
        for case in cases:
            # A table has no word for what is listed and not annotated.
            known = {n: xyz for n, xyz in cases[case].items() if n != "listed, not placed"}
            same(back[case], known)
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert list(rows[0]) == ["case", "landmark", "x_lps_mm", "y_lps_mm", "z_lps_mm", "score", "n"]
    assert float(rows[0]["score"]) == 1 / 3 and rows[0]["n"] == ""
    assert rows[2]["landmark"] == "absent" and rows[2]["x_lps_mm"] == ""
    assert rows[2]["score"] == "0.5" and rows[1]["score"] == ""


def test_columns_keep_their_order_and_empty_cells(tmp_path: Path) -> None:
    columns: dict[str, dict[str, dict[str, float | None]]] = {
        "b": {"c": {"p": None, "q": 2.0}},
        "a": {"c": {"p": 1e-300}},
    }
    write_table(tmp_path / "a.csv", {"c": {"p": np.zeros(3), "q": None}}, columns)
    assert (tmp_path / "a.csv").read_text() == (
        "case,landmark,x_lps_mm,y_lps_mm,z_lps_mm,b,a\nc,p,0.0,0.0,0.0,,1e-300\nc,q,,,,2.0,\n"
    )


AWKWARD = [
    "M1/M2",
    "<b>&amp;</b>",
    "..",
    "-",
    "#1",
    "a;b|c",
    '"',
    '""',
    "'",
    ",",
    ",,",
    '",\\"',
    "\\n",
    "NaN",
    "None",
    "1e5",
    "x",
    "case",
    "a  b",
    "ß 漢字 🧠",
    "é",
    "e\u0301",
    "n" * 200,
]


@pytest.mark.parametrize("seed", range(5))
def test_awkward_names_and_doubles_come_back(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    landmarks: Landmarks = {}
    for name in rng.permutation(AWKWARD).tolist():
        # Any finite double below 1e300 in size, subnormal ones too.
        xyz = rng.integers(0, 2**64, 3, dtype=np.uint64, endpoint=False).view(np.float64)
        xyz = np.where(np.abs(xyz) < 1e300, xyz, rng.choice([0.0, -0.0, 5e-324], 3))
        states = [xyz, xyz, np.array(rng.normal(0, 100, 3)), None, UNPLACED]
        landmarks[name] = states[rng.integers(5)]
    descriptions = dict(zip(AWKWARD, reversed(AWKWARD), strict=True))
    for extension, write in ((".mrk.json", write_mrk_json), (".fcsv", write_fcsv)):
        write(tmp_path / f"a{extension}", landmarks, descriptions=descriptions)
        same(read_landmarks(tmp_path / f"a{extension}"), landmarks)
    known = {n: xyz for n, xyz in landmarks.items() if xyz is None or np.isfinite(xyz).all()}
    cases = {"#a": known, "-": known, 'c "d", e': known}
    write_table(tmp_path / "a.csv", cases)
    back = read_table(tmp_path / "a.csv")
    assert list(back) == list(cases)
    for case in cases:
        same(back[case], known)


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\tb", "\x00", "\ud800", "n" * 201])
def test_writers_refuse_names_that_would_not_come_back(tmp_path: Path, name: str) -> None:
    for write in (write_mrk_json, write_fcsv):
        with pytest.raises(ValueError, match="cannot write a landmark"):
            write(tmp_path / "a", {name: None})
    with pytest.raises(ValueError, match="cannot write a landmark"):
        write_table(tmp_path / "a.csv", {"c": {name: None}})
    assert not list(tmp_path.iterdir())


def test_mrk_json_is_what_slicer_expects(tmp_path: Path) -> None:
    write_mrk_json(
        tmp_path / "a.mrk.json",
        POINTS,
        descriptions={"AC": "front"},
        hidden=["ünï"],
        color=(0.0, 1.0, 0.5),
    )
    tree = json.loads((tmp_path / "a.mrk.json").read_text(encoding="utf-8"))
    assert tree["@schema"].endswith("/Markups/Resources/Schema/markups-schema-v1.0.3.json#")
    (node,) = tree["markups"]
    assert (node["type"], node["coordinateSystem"]) == ("Fiducial", "LPS")
    assert node["coordinateUnits"] == "mm"
    first, _, absent, unplaced, last = node["controlPoints"]
    assert (first["id"], first["label"], first["description"]) == ("1", "AC", "front")
    assert first["positionStatus"] == "defined" and first["visibility"] is True
    assert first["selected"] is True and first["locked"] is False
    assert np.linalg.det(np.reshape(first["orientation"], (3, 3))) == 1
    assert absent["positionStatus"] == "missing" and "position" not in absent
    assert unplaced["positionStatus"] == "undefined" and "position" not in unplaced
    assert last["visibility"] is False and last["position"] == [-1.0, 2.0, 3.0]
    display = node["display"]
    assert display["color"] == display["selectedColor"] == [0.0, 1.0, 0.5]
    assert display["visibility"] is True and display["glyphType"] == "Sphere3D"
    assert display["glyphScale"] > 0 and display["textScale"] > 0


def test_a_list_that_slicer_hides_in_slicers_own_colour(tmp_path: Path) -> None:
    write_mrk_json(tmp_path / "a.mrk.json", POINTS, visible=False)
    (node,) = json.loads((tmp_path / "a.mrk.json").read_text(encoding="utf-8"))["markups"]
    assert node["display"]["visibility"] is False
    assert not {"color", "selectedColor"} & set(node["display"])
    # So that they appear when the list is switched on.
    assert all(point["visibility"] for point in node["controlPoints"])


def test_fcsv_is_what_slicer_expects(tmp_path: Path) -> None:
    landmarks: Landmarks = {
        "AC": np.array([1.5, -2.0, 1e-17]),
        'a, "b"': np.array([1.0, 2.0, 3.0]),
        "gone": None,
        "later": UNPLACED,
    }
    write_fcsv(tmp_path / "a.fcsv", landmarks, descriptions={"gone": "it, 1"}, hidden={"AC"})
    lines = (tmp_path / "a.fcsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# Markups fiducial file version = ")
    assert lines[1:] == [
        "# CoordinateSystem = LPS",
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID",
        "1,1.5,-2.0,1e-17,0,0,0,1,0,1,0,AC,,,2,0",
        '2,1.0,2.0,3.0,0,0,0,1,1,1,0,"a, ""b""",,,2,0',
        '3,0,0,0,0,0,0,1,1,1,0,gone,"it, 1",,3,0',
        "4,0,0,0,0,0,0,1,1,1,0,later,,,0,0",
    ]
    with pytest.raises(ValueError, match="cannot write the description"):
        write_fcsv(tmp_path / "b.fcsv", landmarks, descriptions={"AC": "two\nlines"})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_writers_refuse_what_is_not_finite(tmp_path: Path, value: float) -> None:
    wrong: Landmarks = {"a": np.array([0.0, value, 0.0])}
    for write in (write_mrk_json, write_fcsv):
        with pytest.raises(ValueError, match="not finite"):
            write(tmp_path / "a", wrong)
    with pytest.raises(ValueError, match="not finite"):
        write_table(tmp_path / "a.csv", {"c": wrong})
    with pytest.raises(ValueError, match="not finite"):
        write_table(tmp_path / "a.csv", {"c": {"a": None}}, {"score": {"c": {"a": value}}})
    assert not list(tmp_path.iterdir())


# Frames


@pytest.mark.parametrize("frame", ["0", "RAS", "ras"])
def test_ras_is_turned_into_lps(tmp_path: Path, frame: str) -> None:
    markups = save_markups(tmp_path / "a.mrk.json", markup(coordinateSystem=frame))
    same(read_landmarks(markups), {"a": np.array([-1.0, -2.0, 3.0])})
    fcsv = save(tmp_path / "a.fcsv", FCSV.format(frame=frame))
    expected = {"1": np.array([-1.5, -2.5, 3.5]), "2": np.array([4.0, -5.0, 6.0])}
    same(read_landmarks(fcsv), expected)


@pytest.mark.parametrize("frame", ["1", "LPS"])
def test_lps_is_kept(tmp_path: Path, frame: str) -> None:
    markups = save_markups(tmp_path / "a.mrk.json", markup(coordinateSystem=frame))
    same(read_landmarks(markups), {"a": np.array([1.0, 2.0, 3.0])})
    fcsv = save(tmp_path / "a.fcsv", FCSV.format(frame=frame))
    same(read_landmarks(fcsv), {"1": np.array([1.5, 2.5, 3.5]), "2": np.array([-4.0, 5.0, 6.0])})


@pytest.mark.parametrize(
    ("header", "sign"),
    [
        ("landmark,x_lps_mm,y_lps_mm,z_lps_mm", 1),
        ("label,x_ras,y_ras,z_ras", -1),
        ("Name,X_LPS,Y_LPS,Z_LPS", 1),
        ("landmark,x (RAS; mm),y (RAS; mm),z (RAS; mm)", -1),
        ("# frame: LPS\nlandmark,x,y,z", 1),
        ("# a comment, with a comma\n\n#frame=ras\nlandmark,x_mm,y_mm,z_mm", -1),
        ("# frame: RAS\nlandmark,x_ras,y_ras,z_ras", -1),
    ],
)
def test_csv_headers(tmp_path: Path, header: str, sign: int) -> None:
    path = save(tmp_path / "a.csv", f"\ufeff{header}\r\n a , 1,2, 3 \r\n\r\nb,,,\r\n")
    same(read_landmarks(path), {"a": np.array([1.0 * sign, 2.0 * sign, 3.0]), "b": None})


def test_columns_may_come_in_any_order_among_others(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", "score,z_lps,label,y_lps,note,x_lps\n0.5,3,a,2,,1\n")
    same(read_landmarks(path), {"a": np.array([1.0, 2.0, 3.0])})


def without_frame(tmp_path: Path, extension: str) -> Path:
    path = tmp_path / f"a{extension}"
    if extension == ".mrk.json":
        node = markup()
        del node["coordinateSystem"]
        return save_markups(path, node)
    if extension == ".fcsv":
        lines = FCSV.format(frame="").splitlines(keepends=True)
        return save(path, "".join(line for line in lines if "CoordinateSystem" not in line))
    return save(path, "landmark,x,y,z\na,1,2,3\n")


@pytest.mark.parametrize("extension", [".mrk.json", ".fcsv", ".csv"])
def test_the_configured_frame_is_for_files_without_one(tmp_path: Path, extension: str) -> None:
    path = without_frame(tmp_path, extension)
    refused(
        lambda: read_landmarks(path),
        path,
        "states no coordinate frame",
        "--config.data.frame=LPS or RAS",
    )
    lps, ras = read_landmarks(path, "LPS"), read_landmarks(path, "RAS")
    for name, xyz in lps.items():
        assert xyz is not None and xyz[0] != 0
        np.testing.assert_array_equal(ras[name], xyz * [-1, -1, 1])


def test_frames_that_contradict(tmp_path: Path) -> None:
    path = save(tmp_path / "a.fcsv", FCSV.format(frame=0))
    refused(
        lambda: read_landmarks(path, "LPS"),
        path,
        "states the frame RAS, but config.data.frame is LPS",
        "leave config.data.frame empty",
    )
    assert read_landmarks(path, "RAS")
    refused(lambda: read_landmarks(path, "lps"), "config.data.frame: 'lps'")
    path = save(tmp_path / "a.csv", "# frame: RAS\nlandmark,x_lps,y_lps,z_lps\na,1,2,3\n")
    refused(lambda: read_landmarks(path), path, "states frame RAS and has columns in LPS")


# Slicer's files


def test_what_was_never_placed_is_not_annotated(tmp_path: Path) -> None:
    points = [
        {"label": "undefined", "positionStatus": "undefined", "position": ""},
        {"label": "missing", "positionStatus": "missing"},
        {"label": "preview", "positionStatus": "preview", "position": [1, 2, 3]},
        {"label": " defined ", "positionStatus": "defined", "position": [1, 2, 3]},
    ]
    path = save_markups(tmp_path / "a.mrk.json", markup(points))
    expected: Landmarks = {"undefined": UNPLACED, "missing": None, "preview": UNPLACED}
    same(read_landmarks(path), {**expected, "defined": np.array([1.0, 2.0, 3.0])})


def test_several_markups_are_one_list(tmp_path: Path) -> None:
    second = markup([{"label": "b", "position": [1, 2, 3]}], coordinateSystem="RAS")
    first = markup(coordinateSystem="0", coordinateUnits=["mm", "UCUM", "millimeter"])
    path = save_markups(tmp_path / "a.mrk.json", first, second)
    expected = np.array([-1.0, -2.0, 3.0])
    same(read_landmarks(path), {"a": expected, "b": expected})


def test_the_status_column_of_newer_fcsv(tmp_path: Path) -> None:
    rows = "".join(f"{i},1,2,3,0,0,0,1,1,1,0,{i},,,{i},0\n" for i in range(4))
    rows += "4,,,,0,0,0,1,1,1,0,4,,,0,0\n5,1,2,3,0,0,0,1,1,1,0,5,,,\n"
    header = "".join(FCSV.format(frame="LPS").splitlines(keepends=True)[:3])
    placed = np.array([1.0, 2.0, 3.0])
    expected: Landmarks = {"0": UNPLACED, "1": UNPLACED, "2": placed, "3": None, "4": UNPLACED}
    same(
        read_landmarks(save(tmp_path / "a.fcsv", header + rows)),
        {**expected, "5": placed},
    )


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ([], "the file is not a JSON object"),
        ({}, "markups is missing"),
        ({"markups": {}}, "markups is not a list"),
        ({"markups": [3]}, "markups[0] is not a JSON object"),
        ({"markups": []}, "has no landmarks"),
        ({"markups": [markup([])]}, "has no landmarks"),
        ({"markups": [{"controlPoints": []}]}, "markups[0].type is missing"),
        ({"markups": [markup(type="Curve")]}, "markups[0].type is 'Curve'"),
        ({"markups": [markup(coordinateSystem=1)]}, "markups[0].coordinateSystem is not a text"),
        ({"markups": [markup(coordinateSystem="IJK")]}, "coordinate frame 'IJK'"),
        ({"markups": [markup(coordinateUnits="um")]}, "markups[0].coordinateUnits is 'um'"),
        (
            {"markups": [markup(coordinateUnits=["cm", "UCUM", "centimeter"])]},
            "markups[0].coordinateUnits",
        ),
        ({"markups": [markup(controlPoints=None)]}, "markups[0].controlPoints is not a list"),
    ],
)
def test_wrong_shapes_of_mrk_json(tmp_path: Path, tree: Any, problem: str) -> None:
    path = save(tmp_path / "a.mrk.json", json.dumps(tree))
    refused(lambda: read_landmarks(path), f"{path}: ", problem)


@pytest.mark.parametrize(
    ("point", "problem"),
    [
        (3, " is not a JSON object"),
        ({"position": [1, 2, 3]}, ".label is missing"),
        ({"label": 7, "position": [1, 2, 3]}, ".label is not a text"),
        ({"label": " ", "position": [1, 2, 3]}, ": the landmark's name is empty"),
        ({"label": "a", "position": [1, 2, 3]}, ": landmark 'a' comes a second time"),
        ({"label": "b"}, ".position is missing"),
        ({"label": "b", "position": ""}, ".position is not a list"),
        ({"label": "b", "position": [1, 2]}, ".position is not a list of three numbers"),
        ({"label": "b", "position": [1, 2, "3"]}, ".position is not a list of three numbers"),
        ({"label": "b", "position": [1, 2, True]}, ".position is not a list of three numbers"),
        ({"label": "b", "position": [1, 2, math.nan]}, ".position is not finite"),
        ({"label": "b", "position": [1, 2, -math.inf]}, ".position is not finite"),
        ({"label": "b", "position": [1, 2, 10**400]}, ".position is not finite"),
        ({"label": "b", "positionStatus": "lost"}, ".positionStatus is 'lost', not one of"),
    ],
)
def test_wrong_control_points(tmp_path: Path, point: Any, problem: str) -> None:
    good = {"label": "a", "position": [1, 2, 3]}
    path = save_markups(tmp_path / "a.mrk.json", markup([good, point]))
    refused(lambda: read_landmarks(path), f"{path}: markups[0].controlPoints[1]{problem}")


@pytest.mark.parametrize("extension", [".mrk.json", ".fcsv", ".csv"])
def test_files_that_cannot_be_read(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    refused(lambda: read_landmarks(path), f"{path}: cannot be read: No such file")
    save(path, b"# \xff\xfe")
    refused(lambda: read_landmarks(path), f"{path}: is not UTF-8 text (byte 2)")
    save(path, b"")
    refused(lambda: read_landmarks(path), path)
    refused(lambda: read_landmarks(tmp_path / "a.txt"), "not a landmark format", ".mrk.json")


def test_files_that_are_not_json(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mrk.json", '{\n "markups": [,]}')
    refused(lambda: read_landmarks(path), f"{path}: is not JSON (line 2: ")
    save(path, "[" * 100_000)
    refused(lambda: read_landmarks(path), f"{path}: is not JSON")
    save(path, f"[{'1' * 5000}]")
    refused(lambda: read_landmarks(path), f"{path}: is not JSON")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("# columns = id,x", "# columns = id,r", "line '# columns =' does not name x"),
        ("# columns", "# kolumns", "does not name label, x, y, z"),
        ("CoordinateSystem = 1", "CoordinateSystem = 2", "coordinate frame '2'"),
        ("1.5", "one", "line 4: x is 'one', not a number"),
        ("1.5", "nan", "line 4: x is 'nan', not a finite number"),
        (",6,", ",,", "line 5: z is '', not a number"),
        (',2,"PC', ',,"PC', "line 5: the landmark's name is empty"),
        (',2,"PC', ',1,"PC', "line 5: landmark '1' comes a second time"),
        ("0,1,1,1,0,1,AC,vtkMRMLScalarVolumeNode1", "0", "line 4 has 7 cells"),
        (', the other"', "", "unexpected end of data"),
    ],
)
def test_wrong_fcsv(tmp_path: Path, old: str, new: str, problem: str) -> None:
    text = FCSV.format(frame=1)
    assert old in text
    path = save(tmp_path / "a.fcsv", text.replace(old, new, 1))
    refused(lambda: read_landmarks(path), f"{path}: ", problem)


def test_fcsv_without_points(tmp_path: Path) -> None:
    path = save(tmp_path / "a.fcsv", FCSV.format(frame=1).split("n_1")[0])
    refused(lambda: read_landmarks(path), f"{path}: has no landmarks")


# Tables


def test_a_table_holds_many_cases(tmp_path: Path) -> None:
    text = "case,landmark,x_lps_mm,y_lps_mm,z_lps_mm\nb,1,1,2,3\na,1,4,5,6\nb,2,,,\n"
    tables = read_table(save(tmp_path / "a.csv", text))
    assert list(tables) == ["b", "a"]
    same(tables["b"], {"1": np.array([1.0, 2.0, 3.0]), "2": None})
    same(tables["a"], {"1": np.array([4.0, 5.0, 6.0])})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no header line"),
        ("# frame: LPS\n", "has no header line"),
        ("case,landmark,x_lps,y_lps,z_lps\n", "has no landmarks"),
        ("landmark,x_lps,y_lps,z_lps\na,1,2,3\n", "has no column 'case'"),
        ("case,thing,x_lps,y_lps,z_lps\nc,a,1,2,3\n", "has no column 'landmark'"),
        ("case:landmark:x:y:z\nc:a:1:2:3\n", "case:landmark:x:y:z (separated by commas?)"),
        ("case,landmark,x_lps,z_lps\nc,a,1,3\n", "has no column y; its columns are case,"),
        ("case,landmark,x_lps,x_ras,y_lps,z_lps\nc,a,1,1,2,3\n", "has two columns for x"),
        ("case,landmark,x_lps,y_ras,z_lps\nc,a,1,2,3\n", "columns in different frames"),
        ("case,landmark,x_cm,y_cm,z_cm\nc,a,1,2,3\n", "column 'x_cm': cannot tell"),
        ("case,landmark,x_px,y_px,z_px\nc,a,1,2,3\n", "column 'x_px': cannot tell"),
        ("# frame: MNI\ncase,landmark,x,y,z\nc,a,1,2,3\n", "coordinate frame 'MNI'"),
        ("case,landmark,x_lps,y_lps,z_lps\nc,a,1,2\n", "line 2 has 4 cells, the header 5"),
        ("case,landmark,x_lps,y_lps,z_lps\nc,a,1,2,3,4\n", "line 2 has 6 cells, the header 5"),
        ("case,landmark,x_lps,y_lps,z_lps\n\n,a,1,2,3\n", "line 3: the case's name is empty"),
        ("case,landmark,x_lps,y_lps,z_lps\nc,,1,2,3\n", "line 2: the landmark's name is empty"),
        ("case,landmark,x_lps,y_lps,z_lps\nc,a,1,2,mm\n", "line 2: z_lps is 'mm', not a number"),
        ("case,landmark,x_lps,y_lps,z_lps\nc,a,1_0,2,3\n", "line 2: x_lps is '1_0', not a number"),
        ("case,landmark,x_lps,y_lps,z_lps\nc,a,1,,3\n", "line 2: y_lps is '', not a number"),
        ("case,landmark,x_lps,y_lps,z_lps\nc,a,1,NaN,3\n", "line 2: y_lps is 'NaN', not a finite"),
        ("case,landmark,x_lps,y_lps,z_lps\nc,a,1,inf,3\n", "line 2: y_lps is 'inf', not a finite"),
        (
            "case,landmark,x_lps,y_lps,z_lps\nc,a,1,2,3\nd,a,1,2,3\nc,a,4,5,6\n",
            "line 4: landmark 'a' comes a second time",
        ),
        ('case,landmark,x_lps,y_lps,z_lps\nc,"a" b,1,2,3\n', "line 2: "),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, problem: str) -> None:
    path = save(tmp_path / "a.csv", text)
    refused(lambda: read_table(path), f"{path}: ", problem)


def test_a_table_of_one_case_says_which(tmp_path: Path) -> None:
    header = "case,landmark,x_lps,y_lps,z_lps\n"
    path = save(tmp_path / "a.csv", f"{header}a,1,1,2,3\n")
    same(read_landmarks(path), {"1": np.array([1.0, 2.0, 3.0])})
    save(path, f"{header}b,1,1,2,3\n")
    refused(lambda: read_landmarks(path), path, "column case names 'b', not 'a'")
    save(path, f"{header}a,1,1,2,3\nb,1,1,2,3\n")
    refused(lambda: read_landmarks(path), path, "column case names 2 cases")
    save(path, f"{header}b,1,1,2,3\n")
    assert read_landmarks(path, case="b")
    refused(lambda: read_landmarks(path, case="c"), path, "column case names 'b', not 'c'")


def test_names_from_files_do_not_reach_the_terminal(tmp_path: Path) -> None:
    points = [{"label": "\x1b[31m\nx", "position": [1, 2]}, {"label": "a\nb", "position": 0}]
    path = save_markups(tmp_path / "a.mrk.json", markup([*points, *points]))
    with pytest.raises(InputError) as caught:
        read_landmarks(path)
    assert str(caught.value).isprintable()


def test_neither_jax_nor_simpleitk_is_needed() -> None:
    code = (
        "import sys; import jaxmark.data.landmarks; sys.exit(any(m in sys.modules "
        "for m in ('jax', 'SimpleITK')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.real_data
def test_real_fcsv(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "afids").glob("*/*.fcsv"))
    assert len(files) >= 31
    for file in files:
        landmarks = read_landmarks(file)
        assert list(landmarks) == [str(i) for i in range(1, 33)]
        anterior, posterior = landmarks["1"], landmarks["2"]
        assert anterior is not None and posterior is not None
        # The commissures are about 25 mm apart; in LPS y grows to the back.
        assert 20 < posterior[1] - anterior[1] < 35
        # By another reader: the files are RAS.
        numbers = np.loadtxt(file, delimiter=",", comments="#", usecols=(1, 2, 3))
        np.testing.assert_array_equal(list(landmarks.values()), numbers * [-1, -1, 1])
        for extension, write in ((".mrk.json", write_mrk_json), (".fcsv", write_fcsv)):
            write(tmp_path / f"a{extension}", landmarks)
            same(read_landmarks(tmp_path / f"a{extension}"), landmarks)


@pytest.mark.real_data
def test_real_table(real_data: Path, tmp_path: Path) -> None:
    tables = read_table(real_data / "mouse_ct" / "landmarks.csv")
    assert {len(landmarks) for landmarks in tables.values()} == {45}
    write_table(tmp_path / "a.csv", tables)
    for case, landmarks in read_table(tmp_path / "a.csv").items():
        same(landmarks, tables[case])
