"""`.fcsv`, 3D Slicer's older format for points."""

import csv
import io
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from jaxmark.data.landmark_files.content import (
    STATUSES,
    Content,
    Landmarks,
    add,
    finite,
    frame_of,
    is_predicted,
    placed,
    says_absent,
    short,
    status_of,
    unnamed,
    written,
)
from jaxmark.data.landmark_files.rows import comments, listed, numbers, rows
from jaxmark.system.errors import InputError
from jaxmark.system.files import write_text_atomic

_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID".split(",")


def read(path: Path) -> Content:
    """The points of a file, in order; see `landmarks.read_landmarks`."""
    found = rows(path)
    # Slicer heeds a header line wherever it is.
    stated = comments(path, [row for _, row in found if row[0].startswith("#")])
    columns = [c.strip() for c in stated.get("columns", "").split(",")]
    missing = [c for c in ("label", "x", "y", "z") if c not in columns]
    if missing:
        raise InputError(path, f"line '# columns =' does not name {', '.join(missing)}")
    frame = frame_of(path, stated.get("coordinatesystem", ""))
    label, *axes = (columns.index(c) for c in ("label", "x", "y", "z"))
    points = [(f"line {line}", cells) for line, cells in found if not cells[0].startswith("#")]
    for where, cells in points:
        # Newer Slicers put two cells behind the columns that they name; the first is the status.
        if not max(label, *axes) < len(cells) <= len(columns) + 2:
            named = listed(columns)
            raise InputError(path, f"{where} has {len(cells)} cells; the columns are {named}")
    numbered = len(points) > 1 and not any(cells[label] for _, cells in points)
    landmarks: Landmarks = {}
    descriptions: list[str] = []
    unlikely = set()
    for number, (where, cells) in enumerate(points, start=1):
        name = str(number) if numbered else cells[label]
        status = _status(path, where, cells[len(columns) :])
        position = [cells[a] for a in axes]
        xyz = numbers(path, where, position, ["x", "y", "z"]) if status == "defined" else []
        add(path, where, landmarks, name, placed(xyz, status))
        known = dict(zip(columns, cells, strict=False))
        descriptions.append(known.get("desc", ""))
        if known.get("vis") == "0" and says_absent(descriptions[-1]):
            unlikely.add(name)
    if not landmarks:
        raise InputError(path, "has no landmarks")
    return Content(
        path,
        landmarks,
        frame=frame,
        predicted=is_predicted(descriptions),
        unlikely=frozenset(unlikely),
        notes=(unnamed(path),) if numbered else (),
    )


def write(
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
    text.write(f"# columns = {','.join(_COLUMNS)}\n")
    writer = csv.writer(text, lineterminator="\n")
    for number, (name, xyz) in enumerate(landmarks.items(), start=1):
        description = (descriptions or {}).get(name, "")
        # Slicer reads line by line, quotes or not.
        if not description.isprintable():
            raise ValueError(f"cannot write the description {description!r} in one line")
        status = status_of(xyz)
        # Slicer wants numbers here, of points without a position too.
        place = [repr(v) for v in finite(xyz)] if status == "defined" else ["0", "0", "0"]
        orientation = ["0", "0", "0", "1"]
        flags = ["0" if name in hidden else "1", "1", "0"]
        cells = [str(number), *place, *orientation, *flags, written(name), description, ""]
        writer.writerow([*cells, str(STATUSES.index(status)), "0"])
    write_text_atomic(path, text.getvalue())


def _status(path: Path, where: str, extra: list[str]) -> str:
    """The position's status of a row with these cells behind the named columns."""
    code = extra[0] if extra else ""
    codes = {"": "defined", **{str(i): status for i, status in enumerate(STATUSES)}}
    if code not in codes:
        raise InputError(
            path,
            f"{where}: the position's status, behind the named columns, is {short(code)}, not 0, "
            "1, 2 or 3 (a text with a comma needs quotes)",
        )
    return codes[code]
