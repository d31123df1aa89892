"""Tables as people have them: 3D Slicer's, spreadsheets, one row a landmark or a case."""

from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st
from test_landmarks import UNPLACED, same, save

from jaxmark.data.landmarks import read_content, read_landmarks, read_table, read_tables
from jaxmark.data.notes import summed_up
from jaxmark.system.errors import InputError

ONE = np.array([1.0, 2.0, 3.0])
HALVES = np.array([10.5, -3.25, 7.0])


def notes(path: Path) -> str:
    return "; ".join(note.what for note in read_content(path).notes)


# 3D Slicer's table of control points


@pytest.mark.parametrize(("axes", "sign"), [("l,p,s", 1), ("r,a,s", -1), ('"R","A","S"', -1)])
def test_a_table_of_slicer_states_its_frame_by_its_columns(
    tmp_path: Path, axes: str, sign: int
) -> None:
    header = f"label,{axes},defined,selected,visible,locked,description\n"
    rows = 'A,1,2,3,1,1,1,0,\n"B, b",1,2,3,true,1,0,0,"of, one"\nC,0,0,0,0,1,1,0,\n'
    path = save(tmp_path / "a.csv", header + rows)
    expected = ONE * [sign, sign, 1]
    # The third was never placed; Slicer writes zeros.
    same(read_landmarks(path), {"A": expected, "B, b": expected, "C": UNPLACED})
    refused(lambda: read_landmarks(path, "RAS" if sign > 0 else "LPS"), path, "states the frame")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("label,l,a,s", "columns in different frames"),
        ("label,r,p,s", "columns in different frames"),
        ("label,l,p,s,r", "columns in different frames"),
        ("label,l,p", "has no column s"),
        ("label,s", "has no column x, y, z"),
        ("label,l_ras,p_ras,s_ras", "columns in different frames"),
    ],
)
def test_axes_of_two_frames_are_refused(tmp_path: Path, header: str, problem: str) -> None:
    path = save(tmp_path / "a.csv", f"{header}\n{'A' + ',1' * header.count(',')}\n")
    refused(lambda: read_landmarks(path), path, problem)


# Spreadsheets


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("landmark;x_lps_mm;y_lps_mm;z_lps_mm\nA;10,5;-3,25;7\n", "semicolons; numbers have dec"),
        ("landmark;x_lps_mm;y_lps_mm;z_lps_mm\nA;10.5;-3.25;7\n", "semicolons"),
        ("landmark\tx_lps\ty_lps\tz_lps\nA\t10,5\t-3,25\t7\n", "tabs; numbers have decimal commas"),
        ("sep=,\nlandmark,x_lps,y_lps,z_lps\nA,10.5,-3.25,7\n", ""),
        ("sep=;\nlandmark;x_lps;y_lps;z_lps\nA;10,5;-3,25;7,0\n", "semicolons; numbers have dec"),
        ('"sep=;"\nlandmark;x_lps;y_lps;z_lps\nA;10,5;-3,25;7,0\n', "semicolons; numbers have dec"),
        ("# frame: LPS;;;;\nlandmark;x;y;z;\nA;10,5;-3,25;7;\n;;;;\n", "semicolons; numbers have"),
        ("landmark,x_lps,y_lps,z_lps,,\nA,10.5,-3.25,7\n,,,,,\n,,,,,,,\n", ""),
        ("landmark,x_lps,y_lps,z_lps\nA,10.5,-3.25,7,,,\n", ""),
        ("landmark|x_lps|y_lps|z_lps\nA|10.5|-3.25|7\n", "bars"),
        ("landmark;x (LPS, mm);y (LPS, mm);z (LPS, mm)\nA;10,5;-3,25;7\n", "semicolons"),
    ],
)
def test_what_spreadsheets_write(tmp_path: Path, text: str, said: str) -> None:
    for content in (text, "\ufeff" + text, text.replace("\n", "\r\n")):
        path = save(tmp_path / "a.csv", content)
        same(read_landmarks(path), {"A": HALVES})
        assert said in notes(path) and bool(said) == bool(notes(path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        # Whose comma is it?
        ("landmark,x_lps,y_lps,z_lps\nA,1,5,2,5,3\n", "line 2 has 6 cells, the header 4"),
        ('landmark,x_lps,y_lps,z_lps\nA,"1,5",2,3\n', "line 2: x_lps is '1,5', not a number"),
        ("landmark;x_lps;y_lps;z_lps\nA;1.234,5;2;3\n", "line 2: numbers have decimal commas"),
        ("landmark;x_lps;y_lps;z_lps\nA;1,5;2;3\nB;1.5;2;3\n", "line 3: numbers have decimal"),
        ("landmark;x_lps;y_lps;z_lps\nA;1,234,5;2;3\n", "line 2: x_lps is '1.234,5', not a number"),
        ("landmark;x_lps;y_lps;z_lps\nA;1;2\n", "line 2 has 3 cells, the header 4"),
        ("landmark;x_lps;y_lps;z_lps;\nA;1;2;3;4;5\n", "line 2 has 6 cells, the header 5"),
        ("sep=:\nlandmark:x_lps:y_lps:z_lps\nA:1:2:3\n", "line 1 states the separator ':'"),
        ("sep=;\n", "has no header line"),
        ("sep=;\nlandmark;x_lps;y_lps;z_lps\nA;1;x;3\n", "line 3: y_lps is 'x'"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = save(tmp_path / "a.csv", text)
    refused(lambda: read_landmarks(path), path, problem)


NUMBERS = st.integers(-(10**6), 10**6).map(lambda n: n / 1000)


@given(
    points=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=5),
    form=st.sampled_from([(",", "."), (";", "."), (";", ","), ("\t", ","), ("|", ".")]),
    blanks=st.integers(0, 3),
)
def test_separators_decimals_and_blank_cells_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    points: list[tuple[float, float, float]],
    form: tuple[str, str],
    blanks: int,
) -> None:
    delimiter, decimal = form
    rows = [["landmark", "x_lps", "y_lps", "z_lps"]]
    rows += [[f"p{i}", *(repr(v).replace(".", decimal) for v in p)] for i, p in enumerate(points)]
    rows.append([""] * 4)
    text = "".join(delimiter.join([*row, *[""] * blanks]) + "\r\n" for row in rows)
    path = save(tmp_path_factory.getbasetemp() / "spreadsheet.csv", text)
    same(read_landmarks(path), {f"p{i}": np.array(p) for i, p in enumerate(points)})


# Columns under other names


@pytest.mark.parametrize(
    "column",
    ["subject", "Subject ID", "patient", "PatientID", "patient_id", "ID", "scan", "case_id", "pid"],
)
def test_the_case_under_another_name(tmp_path: Path, column: str) -> None:
    path = save(tmp_path / "t.csv", f"{column},landmark,x_lps,y_lps,z_lps\nc1,a,1,2,3\nc2,a,1,2,3")
    table = read_table(path)
    assert list(table) == ["c1", "c2"]
    same(table["c2"], {"a": ONE})
    said = summed_up(read_tables(path)["c1"].notes)
    assert said == (f"t.csv: column {column!r} is taken as the case",)


@pytest.mark.parametrize("name", ["c1.nii.gz", "images/c1.mha", "D:\\scans\\c1.NRRD", "c1"])
def test_a_file_s_name_means_its_case(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "t.csv", f"filename,landmark,x_lps,y_lps,z_lps\n{name},a,1,2,3\n")
    assert list(read_table(path)) == ["c1"]
    (note,) = read_tables(path)["c1"].notes
    assert ("without the endings of files" in note.what) == (name != "c1")
    path = save(tmp_path / "t.csv", "image,landmark,x_lps,y_lps,z_lps\nc1_0000.nii.gz,a,1,2,3\n")
    assert list(read_tables(path, ["c1"])) == ["c1"]


def test_two_columns_that_may_be_the_case(tmp_path: Path) -> None:
    text = "patient,image,landmark,x_lps,y_lps,z_lps\np,i1,a,1,2,3\np,i2,a,1,2,3\n"
    path = save(tmp_path / "t.csv", text)
    refused(lambda: read_table(path), "columns 'patient' and 'image' may both", "call one 'case'")
    # Names of images decide, whatever the column is called.
    assert list(read_tables(path, ["i1", "i2", "i3"])) == ["i1", "i2"]
    path = save(tmp_path / "t.csv", text.replace("image", "MRN"))
    assert list(read_tables(path, ["i1", "i2", "i3"])) == ["i1", "i2"]
    # "case" is the case, whatever else there is.
    path = save(tmp_path / "t.csv", text.replace("patient", "case").replace("i2,a", "i2,b"))
    assert list(read_table(path)) == ["p"]


def test_a_file_of_one_case_heeds_no_other_names_of_the_case(tmp_path: Path) -> None:
    path = save(tmp_path / "a.csv", "id,subject,landmark,x_lps,y_lps,z_lps\n1,s,a,1,2,3\n")
    same(read_landmarks(path), {"a": ONE})


@pytest.mark.parametrize("column", ["point", "Landmark Name", "fiducial", "landmark_id"])
def test_the_landmark_under_another_name(tmp_path: Path, column: str) -> None:
    path = save(tmp_path / "a.csv", f"{column},x_lps,y_lps,z_lps\na,1,2,3\n")
    same(read_landmarks(path), {"a": ONE})
    assert notes(path) == f"column {column!r} is taken as the landmark"


@pytest.mark.parametrize(
    "header",
    [
        "x,y,z",
        "X,Y,Z",
        "x_mm,y_mm,z_mm",
        "x [mm],y [mm],z [mm]",
        "pos_x,pos_y,pos_z",
        "positionX,positionY,positionZ",
        "x_coordinate,y_coordinate,z_coordinate",
        "coord_x_mm,coord_y_mm,coord_z_mm",
    ],
)
def test_coordinates_without_a_frame(tmp_path: Path, header: str) -> None:
    path = save(tmp_path / "a.csv", f"landmark,{header}\na,1,2,3\n")
    refused(lambda: read_landmarks(path), path, "states no coordinate frame")
    same(read_landmarks(path, "LPS"), {"a": ONE})
    same(read_landmarks(path, "RAS"), {"a": ONE * [-1, -1, 1]})


@pytest.mark.parametrize(
    ("header", "cell"),
    [
        ("landmark;position", "[1.0, 2.0, 3.0]"),
        ("landmark;xyz_mm", "(1 2 3)"),
        ("landmark;Coordinates (mm)", "1,2,3"),
    ],
)
def test_a_position_in_one_cell(tmp_path: Path, header: str, cell: str) -> None:
    path = save(tmp_path / "a.csv", f"{header}\na;{cell}\nb;\n")
    same(read_landmarks(path, "LPS"), {"a": ONE, "b": None})
    assert "is taken as x, y and z" in notes(path)
    path = save(tmp_path / "a.csv", "landmark;position_ras\na;-1 -2 3\n")
    same(read_landmarks(path), {"a": ONE})
    path = save(tmp_path / "a.csv", "landmark;position\na;1,5 2,5 3,5\n")
    refused(lambda: read_landmarks(path), path, "line 2: position is '1,5 2,5 3,5', not three num")


# One row a case


@pytest.mark.parametrize(
    "form",
    ["{n}_{a}", "{a}_{n}", "{n} {a}", "{n}.{a}", "{n}_{a}_mm", "{n}_{A}", "{a}_mm_{n}", "{n}-{a}"],
)
def test_one_row_a_case(tmp_path: Path, form: str) -> None:
    names = ["AC", "M1/M2 R", "left eye_2"]
    columns = [form.format(n=n, a=a, A=a.upper()) for n in names for a in "xyz"]
    rows = "c1,30,1,2,3,4,5,6,,,\nc2,40,1,2,3,4,5,6,7,8,9\n"
    path = save(tmp_path / "t.csv", f"case,age,{','.join(columns)}\n{rows}")
    table = read_table(path, "LPS")
    other = np.array([4.0, 5.0, 6.0])
    same(table["c1"], {"AC": ONE, "M1/M2 R": other, "left eye_2": UNPLACED})
    same(table["c2"], {"AC": ONE, "M1/M2 R": other, "left eye_2": np.array([7.0, 8.0, 9.0])})
    said = "; ".join(note.what for note in read_tables(path)["c1"].notes)
    assert f"one row a case, with columns such as {columns[0]!r}" in said
    assert "empty cells are taken as landmarks that were not annotated" in said


def test_one_row_a_case_states_its_frame_and_names_its_case(tmp_path: Path) -> None:
    header = "Name;A_x_ras_mm;A_y_ras_mm;A_z_ras_mm;spacing_x;spacing_y;spacing_z\n"
    path = save(tmp_path / "t.csv", header + "c1;-1,0;-2,0;3;1;1;1\n")
    same(read_table(path)["c1"], {"A": ONE})
    path = save(tmp_path / "c1.csv", "A_x,A_y,A_z\n1,2,3\n")
    same(read_landmarks(path, "LPS"), {"A": ONE})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("case,A_x,A_y\nc,1,2\n", "has no column for z of landmark 'A'"),
        ("case,A_x,A_y,A_z,A x\nc,1,2,3,4\n", "has two columns for x of landmark 'A'"),
        ("case,A_x_lps,A_y_lps,A_z_ras\nc,1,2,3\n", "has columns in different frames"),
        ("case,A_x_mm,A_y_mm,A_z\nc,1,2,3\n", "has columns in different units"),
        ("case,A_x,A_y,A_z\nc,1,2,3\nc,1,2,3\n", "line 3: case 'c' comes a second time"),
        ("case,A_x,A_y,A_z\nc,1,,3\n", "line 2: A_y is '', not a number"),
        ("case,A_x,A_y,A_z\n", "has no landmarks"),
        ("A_x,A_y,A_z\n1,2,3\n", "has no column 'case'"),
        ("case,x_cm,y_cm,z_cm\nc,1,2,3\n", "has no column 'landmark'"),
        ("case,=A_x,=A_y,=A_z\nc,1,2,3\n", "for a formula"),
    ],
)
def test_wrong_rows_of_cases(tmp_path: Path, text: str, problem: str) -> None:
    path = save(tmp_path / "t.csv", text)
    refused(lambda: read_table(path, "LPS"), path, problem)


EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 8), st.binary(max_size=5)),
    min_size=1,
    max_size=4,
)
WHOLE = [
    "sep=;\nPatient;landmark;x_lps;y_lps;z_lps\nc1;A;1,5;-2;3\nc1;B;;;\n",
    "file,A_x_lps,A_y_lps,A_z_lps,x_B,y_B,z_B\nc1.nii.gz,1,2,3,,,\n",
    "label,l,p,s,defined,selected,visible,locked,description\nA,1,2,3,1,1,1,0,\nB,0,0,0,0,1,1,0,\n",
]


@pytest.mark.parametrize("text", WHOLE)
@given(edits=EDITS)
def test_damaged_tables_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str, edits: list[tuple[float, int, bytes]]
) -> None:
    content = text.encode()
    for where, cut, put in edits:
        at = int(where * len(content))
        content = content[:at] + put + content[at + cut :]
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    path.write_bytes(content)
    for read in (read_tables, lambda path: {"": read_content(path)}):
        try:
            found = read(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and str(error).isprintable()
        else:
            for content_ in found.values():
                assert content_.points and all(map(str.isprintable, summed_up(content_.notes)))
