"""Landmark files: 3D Slicer's `.mrk.json` and `.fcsv`, and CSV tables.

In memory a landmark is in LPS millimetres, the frame of DICOM and ITK: x grows to the patient's
left, y to the back, z to the head. RAS files have x and y the other way round.
"""

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.errors import InputError
from jaxmark.core.files import write_json, write_text_atomic

# Name -> (3,) float64 LPS mm, or None where the file states that the landmark is absent.
Landmarks = dict[str, np.ndarray | None]

EXTENSIONS = (".mrk.json", ".fcsv", ".csv")

_FRAMES = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}
_TO_LPS = {"LPS": np.array([1.0, 1.0, 1.0]), "RAS": np.array([-1.0, -1.0, 1.0])}
_STATUSES = ("undefined", "preview", "defined", "missing")
_NAME_COLUMNS = ("landmark", "label", "name")
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/"
    "Schema/markups-schema-v1.0.3.json#"
)


def read_landmarks(path: Path, frame: str = "") -> Landmarks:
    """Reads the landmarks of one case, in the order of the file.

    A landmark's name is its label in 3D Slicer (some files number the labels and keep the name in
    the description, which is not read), or the CSV column `landmark`, `label` or `name`.

    Args:
      path: a `.mrk.json`, `.fcsv` or `.csv` file.
      frame: "LPS" or "RAS", for a file that does not state its own; "": it must.

    Raises:
      InputError: the file cannot be read; it states no frame, or another than `frame`; a name is
        empty or comes twice; a coordinate is no finite number; its unit is not the millimetre;
        there are no landmarks, or (CSV) those of another case than the file's name.
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
    ((case, landmarks),) = cases.items()
    if case not in ("", path.name[: -len(".csv")]):
        raise InputError(path, f"column case names {case!r}, not the case of the file's name")
    return landmarks


def read_table(path: Path, frame: str = "") -> dict[str, Landmarks]:
    """Reads one CSV file with the landmarks of many cases: columns `case`, `landmark`, x, y, z.

    The coordinates' columns may name the frame and the unit, `x_lps_mm`; so may a line
    `# frame: LPS` above the header. A landmark with no coordinates is absent.

    Raises:
      InputError: as `read_landmarks`, or there is no column `case`.
    """
    cases = _read_csv(path, frame)
    if "" in cases:
        raise InputError(path, "has no column 'case'")
    return cases


def write_mrk_json(
    path: Path,
    landmarks: Mapping[str, np.ndarray | None],
    *,
    descriptions: Mapping[str, str] | None = None,
    visible: bool = True,
) -> None:
    """Writes a point list that 3D Slicer opens; `read_landmarks` gives back the same numbers.

    Args:
      path: ends in `.mrk.json`.
      landmarks: name -> (3,) LPS mm, or None for absent (Slicer: "missing").
      descriptions: name -> text that Slicer shows beside the label.
      visible: whether Slicer shows the points when it opens the file.

    Raises:
      ValueError: a coordinate is not finite.
      OSError: the file cannot be written.
    """
    descriptions = descriptions or {}
    points = [
        _control_point(number, name, xyz, descriptions.get(name, ""), visible)
        for number, (name, xyz) in enumerate(landmarks.items(), start=1)
    ]
    markup = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(points),
        "controlPoints": points,
    }
    write_json(path, {"@schema": _SCHEMA, "markups": [markup]})


def write_table(
    path: Path,
    cases: Mapping[str, Mapping[str, np.ndarray | None]],
    scores: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Writes CSV that `read_table` gives back exactly.

    Args:
      path: ends in `.csv`.
      cases: case -> landmark -> (3,) LPS mm, or None for absent.
      scores: case -> landmark -> score; with it there is a column `score`.

    Raises:
      ValueError: a coordinate or score is not finite.
      OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["case", "landmark", "x_lps_mm", "y_lps_mm", "z_lps_mm"]
    writer.writerow(header if scores is None else [*header, "score"])
    for case, landmarks in cases.items():
        for name, xyz in landmarks.items():
            cells = ["", "", ""] if xyz is None else [repr(v) for v in _finite(xyz)]
            if scores is not None:
                score = scores.get(case, {}).get(name)
                cells.append("" if score is None else repr(*_finite(score)))
            writer.writerow([case, name, *cells])
    write_text_atomic(path, text.getvalue())


def _control_point(
    number: int, name: str, xyz: np.ndarray | None, description: str, visible: bool
) -> dict[str, Any]:
    position = {} if xyz is None else {"position": _finite(xyz)}
    return {
        "id": str(number),
        "label": name,
        "description": description,
        "associatedNodeID": "",
        **position,
        # What Slicer writes for a point that is not turned: its own axes are RAS.
        "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
        "selected": True,
        "locked": False,
        "visibility": visible,
        "positionStatus": "missing" if xyz is None else "defined",
    }


def _finite(values: np.ndarray | float) -> list[float]:
    numbers: list[float] = np.atleast_1d(np.asarray(values, np.float64)).tolist()
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"not finite: {numbers}")
    return numbers


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
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
        raise InputError(path, f"states the coordinate frame {stated!r}; need LPS or RAS")
    if configured and frame != configured:
        # Either may be the wrong one, and the mistake mirrors every landmark.
        raise InputError(
            path,
            f"states the frame {frame}, but config.data.frame is {configured}; leave "
            "config.data.frame empty where the files state their frame",
        )
    return _TO_LPS[frame]


def _add(path: Path, where: str, landmarks: Landmarks, name: str, xyz: np.ndarray | None) -> None:
    if not name:
        raise InputError(path, f"{where}: the landmark's name is empty")
    if name in landmarks:
        raise InputError(path, f"{where}: landmark {name!r} comes a second time")
    landmarks[name] = xyz


# 3D Slicer's .mrk.json


def _read_markups(path: Path, frame: str) -> Landmarks:
    text = _text(path)
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"is not JSON (line {error.lineno}: {error.msg})"
        raise InputError(path, problem) from None
    except (ValueError, RecursionError):
        raise InputError(path, "is not JSON that can be read") from None
    landmarks: Landmarks = {}
    for i, markup in enumerate(_member(path, tree, "", "markups", list)):
        where = f"markups[{i}]"
        kind = _member(path, markup, where, "type", str)
        if kind != "Fiducial":
            raise InputError(path, f"{where}.type is {kind!r}; only Fiducial (points) is read")
        _check_unit(path, markup, where)
        stated = _member(path, markup, where, "coordinateSystem", str, default="")
        to_lps = _to_lps(path, stated, frame)
        for j, point in enumerate(_member(path, markup, where, "controlPoints", list)):
            field = f"{where}.controlPoints[{j}]"
            name = _member(path, point, field, "label", str).strip()
            position = _position(path, point, field)
            _add(path, field, landmarks, name, None if position is None else position * to_lps)
    if not landmarks:
        raise InputError(path, "has no landmarks")
    return landmarks


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
        raise InputError(path, f"{where}.coordinateUnits is {unit!r}; only mm is read")


def _position(path: Path, point: dict[str, Any], where: str) -> np.ndarray | None:
    status = _member(path, point, where, "positionStatus", str, default="defined")
    if status not in _STATUSES:
        known = ", ".join(_STATUSES)
        raise InputError(path, f"{where}.positionStatus is {status!r}, not one of {known}")
    if status != "defined":
        return None
    values = _member(path, point, where, "position", list)
    # JSON's true is an int in Python.
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(values) != 3 or len(numbers) != 3:
        raise InputError(path, f"{where}.position is not a list of three numbers")
    # Integers have no bounds in JSON.
    if not all(abs(v) < 1e300 for v in numbers):
        raise InputError(path, f"{where}.position is not finite")
    return np.array(numbers, np.float64)


# Tables


def _read_fcsv(path: Path, frame: str) -> Landmarks:
    rows = _rows(path)
    comments = _comments(rows)
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
        if len(cells) <= max(label, *axes):
            raise InputError(path, f"{where} has {len(cells)} cells; the columns are {columns}")
        xyz = _coordinates(path, where, [cells[a] for a in axes], ["x", "y", "z"])
        # Newer Slicers add the position's status behind the columns that they name.
        status = cells[len(columns)] if len(cells) > len(columns) else ""
        if status.isdecimal() and int(status) != _STATUSES.index("defined"):
            xyz = None
        _add(path, where, landmarks, cells[label], None if xyz is None else xyz * to_lps)
    if not landmarks:
        raise InputError(path, "has no landmarks")
    return landmarks


def _read_csv(path: Path, frame: str) -> dict[str, Landmarks]:
    """Case -> landmarks; the one case of a table without a column `case` is ""."""
    rows = _rows(path)
    comments = _comments(rows)
    rows = rows[next((i for i, (_, row) in enumerate(rows) if row[0][:1] != "#"), len(rows)) :]
    if not rows:
        raise InputError(path, "has no header line")
    header = [column.lower() for column in rows[0][1]]
    name_column = next((c for c in _NAME_COLUMNS if c in header), None)
    if name_column is None:
        raise InputError(path, f"has no column 'landmark'; its columns are {_listed(header)}")
    axes, stated = _axis_columns(path, header)
    if stated and comments.get("frame", stated).upper() != stated:
        raise InputError(path, f"states frame {comments['frame']} and has columns in {stated}")
    to_lps = _to_lps(path, stated or comments.get("frame", ""), frame)
    cases: dict[str, Landmarks] = {}
    for line, row in rows[1:]:
        where = f"line {line}"
        if len(row) != len(header):
            raise InputError(path, f"{where} has {len(row)} cells, the header {len(header)}")
        cells = dict(zip(header, row, strict=True))
        if cells.get("case") == "":
            raise InputError(path, f"{where}: the case's name is empty")
        xyz = _coordinates(path, where, [row[a] for a in axes], [header[a] for a in axes])
        landmarks = cases.setdefault(cells.get("case", ""), {})
        _add(path, where, landmarks, cells[name_column], None if xyz is None else xyz * to_lps)
    if not cases:
        raise InputError(path, "has no landmarks")
    return cases


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers (of a row's last line) and stripped cells; blank rows are left out."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(path, f"line {reader.line_num}: {error}") from None
    return [(line, row) for line, row in rows if any(row)]


def _comments(rows: list[tuple[int, list[str]]]) -> dict[str, str]:
    """The `# key = value` (or `key: value`) lines above the table; keys in lower case."""
    comments = {}
    for _, row in rows:
        if not row[0].startswith("#"):
            break
        # A line of columns has commas of its own.
        key, *value = re.split("[=:]", ",".join(row).strip("# "), maxsplit=1)
        comments[key.strip().lower()] = "".join(value).strip(" ,")
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
    return ", ".join(header) + (" (separated by commas?)" if len(header) == 1 else "")


def _coordinates(path: Path, where: str, cells: list[str], columns: list[str]) -> np.ndarray | None:
    if not any(cells):
        return None
    values = []
    for cell, column in zip(cells, columns, strict=True):
        try:
            # Python reads 1_5 as 15; here it is a mistake.
            value = float(cell.replace("_", "?"))
        except ValueError:
            raise InputError(path, f"{where}: {column} is {cell!r}, not a number") from None
        if not math.isfinite(value):
            raise InputError(path, f"{where}: {column} is {cell!r}, not a finite number")
        values.append(value)
    return np.array(values, np.float64)
