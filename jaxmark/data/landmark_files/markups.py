"""3D Slicer's `.mrk.json`: lists of control points."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.data.landmark_files.content import (
    STATUSES,
    Content,
    Landmarks,
    add,
    finite,
    frame_of,
    is_predicted,
    json_tree,
    placed,
    says_absent,
    short,
    status_of,
    three_numbers,
    unnamed,
    written,
)
from jaxmark.data.notes import Note
from jaxmark.system.errors import InputError
from jaxmark.system.files import write_json

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/"
    "Schema/markups-schema-v1.0.3.json#"
)


def read(path: Path) -> Content:
    """The points of all lists in a file, in order; see `landmarks.read_landmarks`."""
    tree = json_tree(path)
    landmarks: Landmarks = {}
    frames: list[str] = []
    notes: list[Note] = []
    descriptions: list[str] = []
    unlikely = set()
    lists = [
        (f"markups[{i}]", markup)
        for i, markup in enumerate(_member(path, tree, "", "markups", list))
    ]
    for where, markup in lists:
        kind = _member(path, markup, where, "type", str)
        if kind != "Fiducial":
            raise InputError(path, f"{where}.type is {short(kind)}; only Fiducial (points) is read")
        _check_unit(path, markup, where)
        stated = _member(path, markup, where, "coordinateSystem", str, default="")
        frames.append(frame_of(path, stated))
        if frames[0] != frames[-1]:
            one, other = (frame or "not stated" for frame in (frames[-1], frames[0]))
            raise InputError(path, f"{where}.coordinateSystem is {one}, that of markups[0] {other}")
        _member(path, markup, where, "controlPoints", list)
    points = [
        (f"{where}.controlPoints[{j}]", point)
        for where, markup in lists
        for j, point in enumerate(markup["controlPoints"])
    ]
    numbered = len(points) > 1 and not any(_has_label(point) for _, point in points)
    if numbered:
        notes.append(unnamed(path))
    for number, (field, point) in enumerate(points, start=1):
        name = str(number) if numbered else _member(path, point, field, "label", str).strip()
        xyz, status = _position(path, point, field)
        if status != point.get("positionStatus", "defined"):
            what = "'defined' without a position: taken as not annotated"
            notes.append(Note(f"{path.name}, point {short(name)}", what))
        add(path, field, landmarks, name, placed(xyz, status))
        description = point.get("description")
        descriptions.append(description if isinstance(description, str) else "")
        if point.get("visibility") is False and says_absent(descriptions[-1]):
            unlikely.add(name)
    if not landmarks:
        raise InputError(path, "has no landmarks")
    return Content(
        path,
        landmarks,
        frame=frames[0],
        unit="mm" if any("coordinateUnits" in markup for _, markup in lists) else "",
        predicted=is_predicted(descriptions),
        unlikely=frozenset(unlikely),
        notes=tuple(notes),
    )


def why_not(path: Path) -> str:
    """Why a `.json` file is none of 3D Slicer's markups; "": it is one, good or bad."""
    try:
        tree = json_tree(path)
    except InputError as error:
        return error.arguments[1]
    if isinstance(tree, dict) and isinstance(tree.get("markups"), list):
        return ""
    return "is not a markups file of 3D Slicer"


def write(
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


def _control_point(
    number: int, name: str, xyz: np.ndarray | None, description: str, visible: bool
) -> dict[str, Any]:
    status = status_of(xyz)
    return {
        "id": str(number),
        "label": written(name),
        "description": description,
        "associatedNodeID": "",
        **({"position": finite(xyz)} if status == "defined" else {}),
        # What Slicer writes for a point that is not turned: its own axes are RAS.
        "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
        "selected": True,
        "locked": False,
        "visibility": visible,
        "positionStatus": status,
    }


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


def _has_label(point: Any) -> bool:
    """Whether anything stands there, a name or not."""
    label = point.get("label") if isinstance(point, dict) else point
    return bool(label.strip()) if isinstance(label, str) else label is not None


def _check_unit(path: Path, markup: dict[str, Any], where: str) -> None:
    unit = markup.get("coordinateUnits", "mm")
    # Slicer also writes DICOM's code: ["mm", "UCUM", "millimeter"].
    if unit != "mm" and not (isinstance(unit, list) and unit[:1] == ["mm"]):
        raise InputError(path, f"{where}.coordinateUnits is {short(unit)}; only mm is read")


def _position(path: Path, point: dict[str, Any], where: str) -> tuple[list[float], str]:
    """Three numbers and "defined", or none and another of `STATUSES`."""
    status = _member(path, point, where, "positionStatus", str, default="defined")
    if status not in STATUSES:
        known = ", ".join(STATUSES)
        raise InputError(path, f"{where}.positionStatus is {short(status)}, not one of {known}")
    if status != "defined":
        return [], status
    if "position" not in point and "positionStatus" in point:
        # Slicer reads it as a point that was never placed.
        return [], "undefined"
    values = _member(path, point, where, "position", list)
    return three_numbers(path, f"{where}.position", values), status
