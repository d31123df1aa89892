"""Landmark files that are wrong in some way: each gives one line, which names file and place."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import refused

from jaxmark.config import Data
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmarks import (
    EXTENSIONS,
    check_case,
    read_landmarks,
    read_table,
    write_fcsv,
    write_mrk_json,
    write_table,
)
from jaxmark.system.errors import InputError

P = {"label": "a", "position": [1, 2, 3]}


def node(*points: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": list(points), **fields}


def markups(*nodes: Any) -> str:
    return json.dumps({"markups": list(nodes)})


def points(*some: Any) -> str:
    return markups(node(*some))


AT = "markups[0].controlPoints[0]"

MRK_JSON = {
    "empty file": ("", "is not JSON (line 1"),
    "blanks": (" \n\t\n", "is not JSON (line 3"),
    "empty object": ("{}", "markups is missing"),
    "empty list": ("[]", "the file is not a JSON object"),
    "null": ("null", "the file is not a JSON object"),
    "a number": ("1e999", "the file is not a JSON object"),
    "markups an object": ('{"markups": {"0": 1}}', "markups is not a list"),
    "markups null": ('{"markups": null}', "markups is not a list"),
    "a markup a list": (markups([]), "markups[0] is not a JSON object"),
    "type a number": (markups(node(P, type=1)), "markups[0].type is not a text"),
    "a curve": (markups(node(P, type="Curve")), "markups[0].type is 'Curve'"),
    "points an object": (markups(node(controlPoints={})), "markups[0].controlPoints is not a list"),
    "a point a text": (points("a"), f"{AT} is not a JSON object"),
    "a point null": (points(None), f"{AT} is not a JSON object"),
    "no label": (points({"position": [1, 2, 3]}), f"{AT}.label is missing"),
    "no position": (points({"label": "a"}), f"{AT}.position is missing"),
    "two numbers": (points({**P, "position": [1, 2]}), f"{AT}.position is not a list of three"),
    "four numbers": (points({**P, "position": [1, 2, 3, 4]}), f"{AT}.position is not a list of"),
    "nested": (points({**P, "position": [[1, 2, 3]]}), f"{AT}.position is not a list of three"),
    "texts": (points({**P, "position": ["1", "2", "3"]}), f"{AT}.position is not a list of three"),
    "booleans": (points({**P, "position": [True, 2, 3]}), f"{AT}.position is not a list of three"),
    "nulls": (points({**P, "position": [None, 2, 3]}), f"{AT}.position is not a list of three"),
    "position an object": (points({**P, "position": {"x": 1}}), f"{AT}.position is not a list"),
    "a huge integer": (points({**P, "position": [10**400, 2, 3]}), f"{AT}.position is not finite"),
    "digits without end": (f'{{"markups": [{"1" * 10_000}]}}', "is not JSON that can be read"),
    "a huge float": (points(P).replace("[1,", "[1e999,"), f"{AT}.position is not finite"),
    "NaN": (points(P).replace("[1,", "[NaN,"), f"{AT}.position is not finite"),
    "Infinity": (points(P).replace("[1,", "[-Infinity,"), f"{AT}.position is not finite"),
    "truncated": (points(P)[:-20], "is not JSON (line 1"),
    "two documents": (points(P) * 2, "is not JSON (line 1: Extra data"),
    "nested deeply": ("[" * 100_000, "is not JSON that can be read"),
    "nested deeply inside": (
        points({**P, "position": 0}).replace("0}", "[" * 100_000),
        "is not JSON that can be read",
    ),
    "a label twice": (points(P, {**P, "position": [4, 5, 6]}), "landmark 'a' comes a second time"),
    "a label twice, with blanks": (points(P, {**P, "label": " a"}), "'a' comes a second time"),
    "in two lists": (markups(node(P), node(P)), "markups[1].controlPoints[0]: landmark 'a' comes"),
    "a key twice": (
        points(P).replace('"pos', '"position": [4, 5, 6], "pos'),
        "has 'position' twice",
    ),
    "no name": (points({**P, "label": ""}), f"{AT}: the landmark's name is empty"),
    "a line break": (points({**P, "label": "a\nb"}), f"{AT}: the landmark's name has a character"),
    "an escape": (points({**P, "label": "\x1b[31m"}), "(U+001B)"),
    "a NUL": (points({**P, "label": "a\0"}), "(U+0000)"),
    "right to left": (points({**P, "label": "a\u202eb"}), "(U+202E)"),
    "half a character": (points({**P, "label": "\ud800"}), "(U+D800)"),
    "a long name": (points({**P, "label": "n" * 201}), f"{AT}: the landmark's name has 201 char"),
    "a very long name": (points({**P, "label": "n" * 10**6}), "has 1000000 characters, more than"),
    "a name a number": (points({**P, "label": 7}), f"{AT}.label is not a text"),
    "a status": (points({**P, "positionStatus": "lost"}), f"{AT}.positionStatus is 'lost', not"),
    "a status in capitals": (points({**P, "positionStatus": "Defined"}), f"{AT}.positionStatus is"),
    "a status a list": (points({**P, "positionStatus": []}), f"{AT}.positionStatus is not a text"),
    "no frame": (markups(node(P, coordinateSystem="")), "states no coordinate frame"),
    "a frame": (markups(node(P, coordinateSystem="IJK")), "states the coordinate frame 'IJK'"),
    "a frame a number": (
        markups(node(P, coordinateSystem=0)),
        "[0].coordinateSystem is not a text",
    ),
    "a long frame": (markups(node(P, coordinateSystem="L" * 10**6)), "the coordinate frame 'LLL"),
    "inches": (markups(node(P, coordinateUnits="in")), "markups[0].coordinateUnits is 'in'"),
    "inches in code": (
        markups(node(P, coordinateUnits=["[in_i]", "UCUM", "inch"])),
        "markups[0].coordinateUnits is ['[in_i]', 'UCUM', 'inch']; only mm",
    ),
    "a unit null": (markups(node(P, coordinateUnits=None)), "markups[0].coordinateUnits is None"),
    "two frames": (
        markups(node(P), node({**P, "label": "b"}, coordinateSystem="RAS")),
        "markups[1].coordinateSystem is RAS, that of markups[0] LPS",
    ),
    "no points": (points(), "has no landmarks"),
    "no lists": (markups(), "has no landmarks"),
}

COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
HEADER = f"# Markups fiducial file version = 5.6\n# CoordinateSystem = LPS\n{COLUMNS}"
ROW = "1,1.5,2,3,0,0,0,1,1,1,0,a,,,2,0\n"

FCSV = {
    "empty file": ("", "line '# columns =' does not name label, x, y, z"),
    "no columns": (HEADER.replace(COLUMNS, "") + ROW, "line '# columns =' does not name label"),
    "a column less": (HEADER.replace(",label", "") + ROW, "does not name label"),
    "a short row": (HEADER + "1,1.5,2,3\n", "line 4 has 4 cells"),
    "a row cut off": (HEADER + ROW + ROW[:7], "line 5 has 3 cells"),
    "no rows": (HEADER, "has no landmarks"),
    "no frame": (COLUMNS + ROW, "states no coordinate frame"),
    "a frame": (HEADER.replace("LPS", "XYZ") + ROW, "states the coordinate frame 'XYZ'"),
    "another frame below": (
        HEADER + ROW + HEADER.replace("LPS", "RAS") + ROW.replace("a", "b"),
        "has two lines '# coordinatesystem =', 'LPS' and 'RAS'",
    ),
    "a text": (HEADER + ROW.replace("1.5", "one"), "line 4: x is 'one', not a number"),
    "a comma for a point": (HEADER + ROW.replace("1.5", "1,5"), "line 4 has 17 cells; the columns"),
    "nan": (HEADER + ROW.replace("1.5", "nan"), "line 4: x is 'nan', not a finite number"),
    "inf": (HEADER + ROW.replace("1.5", "-inf"), "line 4: x is '-inf', not a finite number"),
    "too large": (HEADER + ROW.replace("1.5", "9" * 400), "line 4: x is '99"),
    "nothing": (HEADER + ROW.replace("1.5,2,3", ",,"), "line 4: x is '', not a number"),
    "a status": (HEADER + ROW.replace(",2,0\n", ",4,0\n"), "line 4: the position's status"),
    "a status of digits": (HEADER + ROW.replace(",2,0\n", f",{'2' * 9999},0\n"), "line 4: the pos"),
    "no name": (HEADER + ROW.replace("a", ""), "line 4: the landmark's name is empty"),
    "a name twice": (HEADER + ROW + ROW, "line 5: landmark 'a' comes a second time"),
    "a long name": (HEADER + ROW.replace("a", "n" * 201), "line 4: the landmark's name has 201"),
    "a NUL": (HEADER + ROW.replace("a", "a\0b"), "line 4: the landmark's name has a character"),
    "a bell": (HEADER + ROW.replace("a", "a\7b"), "(U+0007)"),
    "a line break": (HEADER + ROW.replace("a", '"a\nb"'), "line 5: the landmark's name"),
    "an open quote": (HEADER + ROW.replace("a", '"a'), "line 4: unexpected end of data"),
    "a long cell": (HEADER + ROW.replace("a", "n" * 200_000), "line 4: field larger than"),
}

TABLE = "case,landmark,x_lps_mm,y_lps_mm,z_lps_mm\n"

CSV = {
    "empty file": ("", "has no header line"),
    "comments alone": ("# frame: LPS\n", "has no header line"),
    "no header": ("a,a,1,2,3\n", "has no column 'landmark'; its columns are a, a, 1, 2, 3"),
    "a long header": ("a," * 10**5, "has no column 'landmark'"),
    "header alone": (TABLE, "has no landmarks"),
    "colons": (TABLE.replace(",", ":") + "a:a:1:2:3\n", "(separated by commas?)"),
    "no x": ("case,landmark,y_lps,z_lps\n", "has no column x"),
    "both frames": (TABLE.replace("y_lps", "y_ras") + "a,a,1,2,3\n", "columns in different frames"),
    "half a frame": (TABLE.replace("y_lps_mm", "y") + "a,a,1,2,3\n", "columns in different frames"),
    "x in both frames": ("landmark,x_lps,x_ras,y_lps,z_lps\n", "has two columns for x"),
    "two cases": ("case,case,landmark,x_lps,y_lps,z_lps\na,a,a,1,2,3\n", "has two columns 'case'"),
    "two names": ("name,name,x_lps,y_lps,z_lps\na,a,1,2,3\n", "has two columns 'name'"),
    "no frame": ("landmark,x,y,z\na,1,2,3\n", "states no coordinate frame"),
    "another frame above": (
        f"# frame: RAS\n{TABLE}a,a,1,2,3\n",
        "states frame RAS and has columns",
    ),
    "two frames above": (
        "# frame: RAS\n# frame: LPS\nlandmark,x,y,z\na,1,2,3\n",
        "has two lines '# frame =', 'RAS' and 'LPS'",
    ),
    "a frame": ("# frame: voxels\nlandmark,x,y,z\na,1,2,3\n", "the coordinate frame 'voxels'"),
    "inches": (TABLE.replace("mm", "in") + "a,a,1,2,3\n", "column 'x_lps_in': cannot tell"),
    "a text": (TABLE + "a,a,1,2,three\n", "line 2: z_lps_mm is 'three', not a number"),
    "a date": (TABLE + "a,a,2024-01-01,2,3\n", "line 2: x_lps_mm is '2024-01-01', not a number"),
    "inf": (TABLE + "a,a,1,inf,3\n", "line 2: y_lps_mm is 'inf', not a finite number"),
    "nan": (TABLE + "a,a,NaN,2,3\n", "line 2: x_lps_mm is 'NaN', not a finite number"),
    "half a point": (TABLE + "a,a,1,,3\n", "line 2: y_lps_mm is '', not a number"),
    "a NUL in a number": (TABLE + "a,a,1\0,2,3\n", "line 2: x_lps_mm is '1\\x00', not a number"),
    "a NUL in a name": (TABLE + "a,a\0b,1,2,3\n", "line 2: the landmark's name has a character"),
    "a NUL in a case": (TABLE + "a\0b,a,1,2,3\n", "line 2: the case's name has a character"),
    "a short row": (TABLE + "a,a,1,2\n", "line 2 has 4 cells, the header 5"),
    "a long row": (TABLE + "a,a,1,2,3,4\n", "line 2 has 6 cells, the header 5"),
    "no case": (TABLE + ",a,1,2,3\n", "line 2: the case's name is empty"),
    "a path": (TABLE + "../../etc/x,a,1,2,3\n", "line 2: the case's name is '../../etc/x'; it"),
    "a path of Windows": (TABLE + "a\\b,a,1,2,3\n", "line 2: the case's name is"),
    "the folder above": (TABLE + "..,a,1,2,3\n", "line 2: the case's name is '..'; it becomes"),
    "this folder": (TABLE + ".,a,1,2,3\n", "line 2: the case's name is '.'; it becomes"),
    "a long case": (TABLE + f"{'c' * 201},a,1,2,3\n", "line 2: the case's name has 201 characters"),
    "an escape in a case": (TABLE + "a\x1b[2Jb,a,1,2,3\n", "line 2: the case's name has a char"),
    "no name": (TABLE + "a,,1,2,3\n", "line 2: the landmark's name is empty"),
    "a name twice": (TABLE + "a,p,1,2,3\na,p,1,2,3\n", "line 3: landmark 'p' comes a second time"),
    "an open quote": (TABLE + 'a,"p,1,2,3\n', "line 2: unexpected end of data"),
    "a quote too many": (TABLE + 'a,"p"q,1,2,3\n', "line 2: "),
}

ANY = {
    "garbage": (random.Random(0).randbytes(4096), "is not UTF-8 text (byte "),
    "UTF-16": (points(P).encode("utf-16"), "is not UTF-8 text (byte 0)"),
    "UTF-16 without its mark": ("landmark,x_lps,y_lps,z_lps\n".encode("utf-16-le"), ""),
    "Latin-1": ("größe".encode("latin-1"), "is not UTF-8 text (byte 2)"),
    "zeros": (bytes(4096), ""),
    "blanks": (b" " * 300_000, ""),
    "NULs among letters": (b"a\0b\0,\0", ""),
}


def cases() -> list[Any]:
    tables = {".mrk.json": MRK_JSON, ".fcsv": FCSV, ".csv": CSV}
    return [
        pytest.param(extension, content, problem, id=f"{extension[1:]}: {name}")
        for extension, table in tables.items()
        for name, (content, problem) in {**table, **ANY}.items()
    ]


@pytest.mark.parametrize(("extension", "content", "problem"), cases())
def test_bad_files(tmp_path: Path, extension: str, content: str | bytes, problem: str) -> None:
    path = tmp_path / f"a{extension}"
    # A lone surrogate is in JSON as \ud800, never in the bytes.
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: read_landmarks(path), f"{path}: ", problem)
    line = message(path)
    # Whatever is in the file, what is said of it is short and can be shown.
    assert len(line) < 1000 + len(str(path)) and line.isprintable()
    if extension == ".csv":
        refused(lambda: read_table(path), f"{path}: ")


def message(path: Path) -> str:
    try:
        read_landmarks(path)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_huge_files_are_not_read(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{extension}"
    with open(path, "wb") as file:
        # A file with a hole: it takes no place on disk.
        file.truncate(64 * 2**20 + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("was read"))
    refused(lambda: read_landmarks(path), f"{path}: has 67108865 bytes", "67108864 at most")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_fifty_megabytes_of_blanks(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    path.write_bytes(b" " * (50 << 20))
    refused(lambda: read_landmarks(path), f"{path}: ")
    path.unlink()


def test_a_table_of_millions_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a," * (20 << 20))
    refused(lambda: read_landmarks(path), path, "line 1 has 41943040 characters")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_what_is_no_file(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a{extension}"
    refused(lambda: read_landmarks(path), f"{path}: cannot be read: No such file")
    path.symlink_to(path)
    refused(lambda: read_landmarks(path), f"{path}: cannot be read: ")
    path.unlink()
    path.mkdir()
    refused(lambda: read_landmarks(path), f"{path}: cannot be read: Is a directory")


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_read_or_refused(tmp_path: Path, extension: str, seed: int) -> None:
    """Bytes changed, cut out and doubled at random: an InputError or landmarks, nothing else."""
    rng = np.random.default_rng(seed)
    path = tmp_path / f"a{extension}"
    given = {f"p{i}": rng.normal(0, 50, 3) for i in range(4)} | {"gone": None}
    if extension == ".csv":
        write_table(path, {"a": given})
    else:
        (write_fcsv if extension == ".fcsv" else write_mrk_json)(path, given)
    whole = path.read_bytes()
    refusals = 0
    for _ in range(150):
        start, stop = sorted(rng.integers(0, len(whole) + 1, 2).tolist())
        kind = rng.integers(3)
        damaged = bytearray(whole)
        if kind == 0:
            damaged[start % len(whole)] = rng.integers(256)
        elif kind == 1:
            del damaged[start:stop]
        else:
            damaged[start:start] = damaged[start:stop]
        path.write_bytes(damaged)
        try:
            landmarks = read_landmarks(path)
        except InputError as error:
            line = str(error)
            assert line.isprintable() and line.startswith(f"{path}: ")
            refusals += 1
        else:
            for xyz in landmarks.values():
                assert xyz is None or (xyz.shape == (3,) and not np.isinf(xyz).any())
    assert 20 < refusals < 150


def test_a_bad_file_among_good_ones_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for case in ("one", "two"):
        (tmp_path / "images" / f"{case}.nii.gz").touch()
        write_mrk_json(tmp_path / "landmarks" / f"{case}.mrk.json", {"a": np.zeros(3)})
    bad = tmp_path / "landmarks" / "two.mrk.json"
    bad.write_text(points({**P, "position": [1, 2]}))
    refused(lambda: read_cohort(Data(root=str(tmp_path))), f"{bad}: {AT}.position")


BAD_CASES = [
    "",
    ".",
    "..",
    "a/b",
    "/",
    "a\\b",
    "a\tb",
    "a\0",
    "a\nb",
    " a",
    "a ",
    "c" * 181,
    "ü" * 91,
]
DEVICES = ["CON", "nul", "com1.x", "lpt9"]
FORMULAS = ["=1+1", "+a", "-2+3|cmd", "@SUM(1)", "＝1+1", '=HYPERLINK("http://a")']


@pytest.mark.parametrize("name", [*BAD_CASES, *DEVICES, *FORMULAS])
def test_names_that_no_case_can_have(name: str) -> None:
    refused(lambda: check_case(Path("x.csv"), name, "line 3"), "x.csv: line 3: the case's name ")


@pytest.mark.parametrize(
    "name",
    ["a", "...", ".a", "a b", "sub-01_ses-1", "ü" * 90, "-", "-1.5", "CON1", "icon", "c" * 180],
)
def test_names_that_a_case_can_have(name: str) -> None:
    check_case(Path("x.csv"), name)


def test_a_landmark_that_a_spreadsheet_would_compute(tmp_path: Path) -> None:
    path = tmp_path / "a.mrk.json"
    path.write_text(points({**P, "label": '=HYPERLINK("http://a")'}))
    refused(lambda: read_landmarks(path), path, f"{AT}: the landmark's name is", "for a formula")
    with pytest.raises(ValueError, match="for a formula"):
        write_table(tmp_path / "a.csv", {"a": {"=1+1": np.zeros(3)}})
