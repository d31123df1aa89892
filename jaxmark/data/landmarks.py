"""Landmark files: 3D Slicer's `.mrk.json` and `.fcsv`, and CSV tables.

In memory a landmark is in LPS millimetres, the frame of DICOM and ITK: x grows to the patient's
left, y to the back, z to the head. RAS files have x and y the other way round.

A landmark is in one of three states. It is present: it has a position. It is absent: the file
states that this person lacks it (Slicer's "missing", a CSV row without coordinates). Or it is not
annotated: nobody said. A file may list such a landmark (Slicer's "undefined" and "preview": a point
that was never placed) or leave it out.
"""

import csv
import io
import json
import math
import re
import reprlib
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.system.errors import InputError
from jaxmark.system.files import read_bytes, write_json, write_text_atomic

# Name -> (3,) float64 LPS mm; three NaN for a landmark that is listed but not annotated; None
# where the file states that it is absent.
Landmarks = dict[str, np.ndarray | None]

EXTENSIONS = (".mrk.json", ".fcsv", ".csv")

_MAX_NAME = 200
# Names of files have 255 bytes at most, and what is made of a case has longer ones than the case.
_MAX_CASE_BYTES = 180
# Names of devices on Windows, with whatever extension.
_DEVICES = re.compile("(con|prn|aux|nul|com[1-9]|lpt[1-9])([.].*)?", re.IGNORECASE)
# Names stand in tables, and spreadsheets take such a cell for a formula; a number does no harm.
_FORMULA = re.compile("(?![-+]?[0-9.]+$)[-=+@].")
# No line of a table is so long; one of 64 MiB would be as many cells.
_MAX_LINE = 1 << 20

_FRAMES = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}
_TO_LPS = {"LPS": np.array([1.0, 1.0, 1.0]), "RAS": np.array([-1.0, -1.0, 1.0])}
_STATUSES = ("undefined", "preview", "defined", "missing")
_NAME_COLUMNS = ("landmark", "label", "name")
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID".split(",")
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/"
    "Schema/markups-schema-v1.0.3.json#"
)


def read_landmarks(path: Path, frame: str = "", case: str = "") -> Landmarks:
    """Reads the landmarks of one case, in the order of the file.

    A landmark's name is its label in 3D Slicer (some files number the labels and keep the name in
    the description, which is not read), or the CSV column `landmark`, `label` or `name`.

    Args:
      path: a `.mrk.json`, `.fcsv` or `.csv` file.
      frame: "LPS" or "RAS", for a file that does not state its own; "": it must.
      case: what a CSV column `case` has to say; "": the file's name without its extension.

    Raises:
      InputError: the file cannot be read, or has over 64 MiB; it states no frame, another than
        `frame`, or two; a name is empty, comes twice, has over 200 characters or some that cannot
        be printed; a coordinate is no finite number; its unit is not the millimetre; there are no
        landmarks, or (CSV) those of another case.
    """
    name = path.name.lower()
    if name.endswith(".mrk.json"):
        return _read_markups(path, frame)
    if name.endswith(".fcsv"):
        return _read_fcsv(path, frame)
    if not name.endswith(".csv"):
        raise InputError(path, f"not a landmark format jaxmark reads: {', '.join(EXTENSIONS)}")
    cases = _read_csv(path, frame)
    if len(cases) > 1:
        raise InputError(path, f"column case names {len(cases)} cases; a file of one case has one")
    ((stated, landmarks),) = cases.items()
    wanted = case or path.name[: -len(".csv")]
    if stated not in ("", wanted):
        raise InputError(path, f"column case names {stated!r}, not {wanted!r}")
    return landmarks


def read_table(path: Path, frame: str = "") -> dict[str, Landmarks]:
    """Reads one CSV file with the landmarks of many cases: columns `case`, `landmark`, x, y, z.

    The coordinates' columns may name the frame and the unit, `x_lps_mm`; so may a line
    `# frame: LPS` above the header. A landmark with no coordinates is absent.

    Raises:
      InputError: as `read_landmarks` and `check_case`, or there is no column `case`.
    """
    cases = _read_csv(path, frame)
    if "" in cases:
        raise InputError(path, "has no column 'case'")
    return cases


def check_case(file: Path, case: str, where: str = "") -> None:
    """Refuses the name of a case that cannot be a file's name, for that is what it becomes.

    Args:
      file: what the name is from, for the message.
      where: the place in the file, if it is from inside.

    Raises:
      InputError: the name is empty, "." or "..", begins or ends with a blank, has a path separator,
        over 180 bytes, or characters that cannot be printed; Windows keeps it for a device; it
        begins as a formula does.
    """
    problem = _name_problem(case)
    if not problem and len(case.encode()) > _MAX_CASE_BYTES:
        problem = f"is longer than {_MAX_CASE_BYTES} bytes; it becomes a file's name"
    if not problem and _DEVICES.fullmatch(case):
        problem = f"is {case!r}; on Windows a file of that name is a device"
    if not problem and (case in (".", "..") or "/" in case or "\\" in case):
        problem = f"is {case!r}; it becomes a file's name, so it cannot be a path"
    if not problem and case != case.strip():
        problem = f"is {case!r}, which begins or ends with a blank"
    if problem:
        raise InputError(file, f"{where and f'{where}: '}the case's name {problem}")


def write_mrk_json(
    path: Path,
    landmarks: Mapping[str, np.ndarray | None],
    *,
    descriptions: Mapping[str, str] | None = None,
    hidden: Collection[str] = (),
    visible: bool = True,
    color: tuple[float, float, float] | None = None,
) -> None:
    """Writes a point list that 3D Slicer opens; `read_landmarks` gives back the same numbers.

    Args:
      path: ends in `.mrk.json`.
      landmarks: name -> (3,) LPS mm, three NaN for not annotated (Slicer: "undefined"), or None for
        absent (Slicer: "missing").
      descriptions: name -> text that Slicer shows beside the label.
      hidden: names of points that Slicer does not show; they keep their position.
      visible: whether Slicer shows the list when it opens the file.
      color: red, green and blue of the points, 0 to 1; None leaves it to Slicer.

    Raises:
      ValueError: a coordinate is not finite; a name is one that `read_landmarks` would refuse.
      OSError: the file cannot be written.
    """
    descriptions = descriptions or {}
    points = [
        _control_point(number, name, xyz, descriptions.get(name, ""), name not in hidden)
        for number, (name, xyz) in enumerate(landmarks.items(), start=1)
    ]
    # Slicer draws selected points, which all are, in `selectedColor`.
    colors = {} if color is None else {"color": list(color), "selectedColor": list(color)}
    markup = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(points),
        "controlPoints": points,
        "display": {
            "visibility": visible,
            "opacity": 1.0,
            **colors,
            "pointLabelsVisibility": True,
            "propertiesLabelVisibility": False,
            # Per cent of the view, so that heads of mice and of people both look right.
            "useGlyphScale": True,
            "glyphType": "Sphere3D",
            "glyphScale": 1.5,
            "textScale": 2.5,
        },
    }
    write_json(path, {"@schema": _SCHEMA, "markups": [markup]})


def write_fcsv(
    path: Path,
    landmarks: Mapping[str, np.ndarray | None],
    *,
    descriptions: Mapping[str, str] | None = None,
    hidden: Collection[str] = (),
) -> None:
    """Writes 3D Slicer's older format for points; `read_landmarks` gives back the same numbers.

    Args:
      path: ends in `.fcsv`.
      landmarks, descriptions, hidden: as in `write_mrk_json`; descriptions of one line.

    Raises:
      ValueError: as `write_mrk_json`, or a description has characters that cannot be printed.
      OSError: the file cannot be written.
    """
    text = io.StringIO()
    text.write("# Markups fiducial file version = 5.6\n# CoordinateSystem = LPS\n")
    text.write(f"# columns = {','.join(_FCSV_COLUMNS)}\n")
    writer = csv.writer(text, lineterminator="\n")
    for number, (name, xyz) in enumerate(landmarks.items(), start=1):
        description = (descriptions or {}).get(name, "")
        # Slicer reads line by line, quotes or not.
        if not description.isprintable():
            raise ValueError(f"cannot write the description {description!r} in one line")
        status = _status(xyz)
        # Slicer wants numbers here, of points without a position too.
        place = [repr(v) for v in _finite(xyz)] if status == "defined" else ["0", "0", "0"]
        orientation = ["0", "0", "0", "1"]
        flags = ["0" if name in hidden else "1", "1", "0"]
        cells = [str(number), *place, *orientation, *flags, _written(name), description, ""]
        writer.writerow([*cells, str(_STATUSES.index(status)), "0"])
    write_text_atomic(path, text.getvalue())


def write_table(
    path: Path,
    cases: Mapping[str, Mapping[str, np.ndarray | None]],
    columns: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> None:
    """Writes CSV that `read_table` gives back exactly, but for landmarks that are not annotated.

    Args:
      path: ends in `.csv`.
      cases: case -> landmark -> (3,) LPS mm, or None for absent; three NaN have no row.
      columns: further columns behind x, y and z, in this order: name -> case -> landmark -> number
        or text. None or nothing there is an empty cell.

    Raises:
      ValueError: a coordinate or number is not finite; a landmark's name is one that `read_table`
        would refuse.
      OSError: the file cannot be written.
    """
    columns = columns or {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "landmark", "x_lps_mm", "y_lps_mm", "z_lps_mm", *columns])
    for case, landmarks in cases.items():
        for name, xyz in landmarks.items():
            if _status(xyz) == "undefined":
                continue
            values = ["", "", ""] if xyz is None else [repr(v) for v in _finite(xyz)]
            numbers = [column.get(case, {}).get(name) for column in columns.values()]
            values += [_cell(number) for number in numbers]
            writer.writerow([case, _written(name), *values])
    write_text_atomic(path, text.getvalue())


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return repr(*_finite(value))


def _control_point(
    number: int, name: str, xyz: np.ndarray | None, description: str, visible: bool
) -> dict[str, Any]:
    status = _status(xyz)
    return {
        "id": str(number),
        "label": _written(name),
        "description": description,
        "associatedNodeID": "",
        **({"position": _finite(xyz)} if status == "defined" else {}),
        # What Slicer writes for a point that is not turned: its own axes are RAS.
        "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
        "selected": True,
        "locked": False,
        "visibility": visible,
        "positionStatus": status,
    }


def _status(xyz: np.ndarray | None) -> str:
    """Slicer's word for the state of a landmark."""
    if xyz is None:
        return "missing"
    return "undefined" if np.isnan(xyz).all() else "defined"


def _placed(xyz: Sequence[float], status: str, to_lps: np.ndarray) -> np.ndarray | None:
    """The landmark of a file: LPS mm of a point that is "defined"."""
    if status == "missing":
        return None
    return np.array(xyz, np.float64) * to_lps if status == "defined" else np.full(3, np.nan)


def _finite(values: Any) -> list[float]:
    numbers: list[float] = np.atleast_1d(np.asarray(values, np.float64)).tolist()
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"not finite: {numbers}")
    return numbers


def _written(name: str) -> str:
    """The name, which has to be one that is read back the same."""
    problem = _name_problem(name)
    if problem or name != name.strip():
        raise ValueError(f"cannot write a landmark whose name {problem or f'is {name!r}'}")
    return name


def _name_problem(name: str) -> str:
    """What is wrong with the name of a landmark or a case; "": nothing."""
    if not name:
        return "is empty"
    if not name.isprintable():
        first = next(character for character in name if not character.isprintable())
        return f"has a character that cannot be printed (U+{ord(first):04X})"
    if len(name) > _MAX_NAME:
        return f"has {len(name)} characters, more than {_MAX_NAME}"
    if _FORMULA.match(unicodedata.normalize("NFKC", name)):
        return f"is {name!r}; a spreadsheet would take it for a formula"
    return ""


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, f"is not UTF-8 text (byte {error.start})") from None


def _to_lps(path: Path, stated: str, configured: str) -> np.ndarray:
    """(3,) signs that bring a position into LPS."""
    if configured not in ("", "LPS", "RAS"):
        raise InputError("config.data.frame", f"{configured!r} is not LPS, RAS or empty")
    if not stated and not configured:
        raise InputError(
            path, "states no coordinate frame; find it out and set --config.data.frame=LPS or RAS"
        )
    if not stated:
        return _TO_LPS[configured]
    frame = _FRAMES.get(stated.upper())
    if frame is None:
        raise InputError(path, f"states the coordinate frame {_short(stated)}; need LPS or RAS")
    if configured and frame != configured:
        # Either may be the wrong one, and the mistake mirrors every landmark.
        raise InputError(
            path,
            f"states the frame {frame}, but config.data.frame is {configured}; leave "
            "config.data.frame empty where the files state their frame",
        )
    return _TO_LPS[frame]


def _add(path: Path, where: str, landmarks: Landmarks, name: str, xyz: np.ndarray | None) -> None:
    problem = _name_problem(name)
    if problem:
        raise InputError(path, f"{where}: the landmark's name {problem}")
    if name in landmarks:
        raise InputError(path, f"{where}: landmark {name!r} comes a second time")
    landmarks[name] = xyz


def _short(value: Any) -> str:
    """What a file says, for a message; the file may say a lot."""
    return reprlib.repr(value)


# 3D Slicer's .mrk.json


def _read_markups(path: Path, frame: str) -> Landmarks:
    tree = _json(path)
    landmarks: Landmarks = {}
    frames: list[str] = []
    for i, markup in enumerate(_member(path, tree, "", "markups", list)):
        where = f"markups[{i}]"
        kind = _member(path, markup, where, "type", str)
        if kind != "Fiducial":
            raise InputError(
                path, f"{where}.type is {_short(kind)}; only Fiducial (points) is read"
            )
        _check_unit(path, markup, where)
        stated = _member(path, markup, where, "coordinateSystem", str, default="")
        to_lps = _to_lps(path, stated, frame)
        frames.append(_FRAMES[(stated or frame).upper()])
        if frames[0] != frames[i]:
            raise InputError(
                path, f"{where}.coordinateSystem is {frames[i]}, that of markups[0] {frames[0]}"
            )
        for j, point in enumerate(_member(path, markup, where, "controlPoints", list)):
            field = f"{where}.controlPoints[{j}]"
            name = _member(path, point, field, "label", str).strip()
            xyz, status = _position(path, point, field)
            _add(path, field, landmarks, name, _placed(xyz, status, to_lps))
    if not landmarks:
        raise InputError(path, "has no landmarks")
    return landmarks


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path), object_pairs_hook=partial(_json_object, path))
    except json.JSONDecodeError as error:
        problem = f"is not JSON (line {error.lineno}: {error.msg})"
        raise InputError(path, problem) from None
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError(path, "is not JSON that can be read") from None


def _json_object(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses a key that comes twice: the last would win, and nobody would know."""
    tree = dict(pairs)
    if len(tree) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(path, f"has {_short(twice)} twice in one JSON object")
    return tree


_REQUIRED: Any = object()
_JSON_NAMES: dict[type, str] = {list: "a list", str: "a text"}


def _member(
    path: Path, tree: Any, where: str, key: str, kind: type, default: Any = _REQUIRED
) -> Any:
    """`tree[key]`, which has to be of the type `kind`."""
    if not isinstance(tree, dict):
        raise InputError(path, f"{where or 'the file'} is not a JSON object")
    field = f"{where}.{key}" if where else key
    if key not in tree and default is not _REQUIRED:
        return default
    if key not in tree:
        raise InputError(path, f"{field} is missing")
    if not isinstance(tree[key], kind):
        raise InputError(path, f"{field} is not {_JSON_NAMES[kind]}")
    return tree[key]


def _check_unit(path: Path, markup: dict[str, Any], where: str) -> None:
    unit = markup.get("coordinateUnits", "mm")
    # Slicer also writes DICOM's code: ["mm", "UCUM", "millimeter"].
    if unit != "mm" and not (isinstance(unit, list) and unit[:1] == ["mm"]):
        raise InputError(path, f"{where}.coordinateUnits is {_short(unit)}; only mm is read")


def _position(path: Path, point: dict[str, Any], where: str) -> tuple[list[float], str]:
    """Three numbers and "defined", or none and another of `_STATUSES`."""
    status = _member(path, point, where, "positionStatus", str, default="defined")
    if status not in _STATUSES:
        known = ", ".join(_STATUSES)
        raise InputError(path, f"{where}.positionStatus is {_short(status)}, not one of {known}")
    if status != "defined":
        return [], status
    values = _member(path, point, where, "position", list)
    # JSON's true is an int in Python.
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) != 3 or len(numbers) != 3:
        raise InputError(path, f"{where}.position is not a list of three numbers")
    # Integers have no bounds in JSON.
    if not all(abs(v) < 1e300 for v in numbers):
        raise InputError(path, f"{where}.position is not finite")
    return numbers, status


# Tables


def _read_fcsv(path: Path, frame: str) -> Landmarks:
    rows = _rows(path)
    # Slicer heeds a header line wherever it is.
    comments = _comments(path, [row for _, row in rows if row[0].startswith("#")])
    columns = [c.strip() for c in comments.get("columns", "").split(",")]
    missing = [c for c in ("label", "x", "y", "z") if c not in columns]
    if missing:
        raise InputError(path, f"line '# columns =' does not name {', '.join(missing)}")
    to_lps = _to_lps(path, comments.get("coordinatesystem", ""), frame)
    label, *axes = (columns.index(c) for c in ("label", "x", "y", "z"))
    landmarks: Landmarks = {}
    for line, cells in rows:
        if cells[0].startswith("#"):
            continue
        where = f"line {line}"
        # Newer Slicers put two cells behind the columns that they name; the first is the status.
        if not max(label, *axes) < len(cells) <= len(columns) + 2:
            named = _listed(columns)
            raise InputError(path, f"{where} has {len(cells)} cells; the columns are {named}")
        status = _fcsv_status(path, where, cells[len(columns) :])
        position = [cells[a] for a in axes]
        xyz = _numbers(path, where, position, ["x", "y", "z"]) if status == "defined" else []
        _add(path, where, landmarks, cells[label], _placed(xyz, status, to_lps))
    if not landmarks:
        raise InputError(path, "has no landmarks")
    return landmarks


def _fcsv_status(path: Path, where: str, extra: list[str]) -> str:
    """The position's status of a row with these cells behind the named columns."""
    code = extra[0] if extra else ""
    codes = {"": "defined", **{str(i): status for i, status in enumerate(_STATUSES)}}
    if code not in codes:
        raise InputError(
            path,
            f"{where}: the position's status, behind the named columns, is {_short(code)}, not 0, "
            "1, 2 or 3 (a text with a comma needs quotes)",
        )
    return codes[code]


def _read_csv(path: Path, frame: str) -> dict[str, Landmarks]:
    """Case -> landmarks; the one case of a table without a column `case` is ""."""
    rows = _rows(path)
    start = next((i for i, (_, row) in enumerate(rows) if row[0][:1] != "#"), len(rows))
    comments = _comments(path, [row for _, row in rows[:start]])
    rows = rows[start:]
    if not rows:
        raise InputError(path, "has no header line")
    header = [column.lower() for column in rows[0][1]]
    name_column = next((c for c in _NAME_COLUMNS if c in header), None)
    if name_column is None:
        raise InputError(path, f"has no column 'landmark'; its columns are {_listed(header)}")
    for column in (name_column, "case"):
        if header.count(column) > 1:
            raise InputError(path, f"has two columns {column!r}; its columns are {_listed(header)}")
    axes, stated = _axis_columns(path, header)
    commented = comments.get("frame", stated)
    if stated and commented.upper() != stated:
        raise InputError(path, f"states frame {commented} and has columns in {stated}")
    to_lps = _to_lps(path, stated or commented, frame)
    cases: dict[str, Landmarks] = {}
    for line, row in rows[1:]:
        where = f"line {line}"
        if len(row) != len(header):
            raise InputError(path, f"{where} has {len(row)} cells, the header {len(header)}")
        cells = dict(zip(header, row, strict=True))
        if "case" in cells:
            check_case(path, cells["case"], where)
        position = [row[a] for a in axes]
        status = "defined" if any(position) else "missing"
        columns = [header[a] for a in axes]
        xyz = _numbers(path, where, position, columns) if status == "defined" else []
        landmarks = cases.setdefault(cells.get("case", ""), {})
        _add(path, where, landmarks, cells[name_column], _placed(xyz, status, to_lps))
    if not cases:
        raise InputError(path, "has no landmarks")
    return cases


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers (of a row's last line) and stripped cells; blank rows are left out."""
    reader = csv.reader(_lines(path), strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(path, f"line {reader.line_num}: {error}") from None
    return [(line, row) for line, row in rows if any(row)]


def _lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(io.StringIO(_text(path), newline=""), start=1):
        if len(line) > _MAX_LINE:
            raise InputError(path, f"line {number} has {len(line)} characters")
        yield line


def _comments(path: Path, rows: Iterable[list[str]]) -> dict[str, str]:
    """The lines `# key = value` (or `key: value`); keys in lower case.

    Raises:
      InputError: a key that says how to read the file comes with two values.
    """
    comments: dict[str, str] = {}
    for row in rows:
        # A line of columns has commas of its own.
        key, *values = re.split("[=:]", ",".join(row).strip("# "), maxsplit=1)
        key, value = key.strip().lower(), "".join(values).strip(" ,")
        if comments.get(key, value) != value and key in ("frame", "coordinatesystem", "columns"):
            both = f"{_short(comments[key])} and {_short(value)}"
            raise InputError(path, f"has two lines '# {key} =', {both}")
        comments[key] = value
    return comments


def _axis_columns(path: Path, header: list[str]) -> tuple[list[int], str]:
    """Where x, y and z are in the header, and the frame that their names state, or ""."""
    found: dict[str, int] = {}
    frames = set()
    for index, column in enumerate(header):
        axis, *words = re.findall("[a-z]+", column) or [""]
        if axis not in ("x", "y", "z"):
            continue
        frame = [word for word in words if word in ("lps", "ras")]
        if [word for word in words if word not in ("lps", "ras", "mm")] or len(frame) > 1:
            raise InputError(
                path, f"column {column!r}: cannot tell its frame (lps, ras) and unit (only mm)"
            )
        if axis in found:
            raise InputError(path, f"has two columns for {axis}: {_listed(header)}")
        found[axis] = index
        frames.add("".join(frame).upper())
    missing = [axis for axis in "xyz" if axis not in found]
    if missing:
        problem = f"has no column {', '.join(missing)}; its columns are {_listed(header)}"
        raise InputError(path, problem)
    if len(frames) > 1:
        raise InputError(path, f"has columns in different frames: {_listed(header)}")
    return [found[axis] for axis in "xyz"], frames.pop()


def _listed(header: list[str]) -> str:
    listed = ", ".join(header)
    listed = listed if len(listed) <= _MAX_NAME else listed[:_MAX_NAME] + "..."
    return listed + (" (separated by commas?)" if len(header) == 1 else "")


def _numbers(path: Path, where: str, cells: list[str], columns: list[str]) -> list[float]:
    values = []
    for cell, column in zip(cells, columns, strict=True):
        try:
            # Python reads 1_5 as 15; here it is a mistake.
            value = float(cell.replace("_", "?"))
        except ValueError:
            raise InputError(path, f"{where}: {column} is {_short(cell)}, not a number") from None
        if not math.isfinite(value):
            raise InputError(path, f"{where}: {column} is {_short(cell)}, not a finite number")
        values.append(value)
    return values
