"""Annotation files of the LV landmark detection challenge (STACOM 2012), as text: points in pixels.

```
[RV_INSERTS]
101.5 88.0 series/IM-0003-0001.dcm
98.0 131.0 series/IM-0003-0001.dcm
[BASE_CENTRAL_AXIS]
120.2 110.7 series/IM-0003-0001.dcm
```

A line is x, y and a picture's file, which may have blanks in its name. Pixels count from 0, x to
the right and y down. A section may come several times, and a file may be of one patient or of many.
Lines that begin with "#" or ";" are comments.

Two lines of one picture under `[RV_INSERTS]` or `[MITRAL_VALVES]` are its two points. Nothing in
the file says which is which: the first line is point 1, the second point 2. Where most pictures
have point 1 above point 2 (or left of it, whichever differs more) and some have not, a note names
these.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from jaxmark.data.landmark_files import columns
from jaxmark.data.landmark_files.content import Content, Landmarks, add, check_case, short
from jaxmark.data.landmark_files.rows import lines, numbers
from jaxmark.data.notes import Note
from jaxmark.system.errors import InputError

EXTENSION = ".txt"
# Line number and position (2,) of each point, in the order of the file.
_Found = Sequence[tuple[int, np.ndarray]]
# Section -> names of the points that a picture has under it, in the order of its lines.
SECTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "RV_INSERTS": ("RV insert 1", "RV insert 2"),
        "MITRAL_VALVES": ("mitral valve 1", "mitral valve 2"),
        "BASE_CENTRAL_AXIS": ("base central axis",),
        "APEX_CENTRAL_AXIS": ("apex central axis",),
    }
)
_HEADER = re.compile(r"\[\s*(.*?)\s*\]")
_FORM = "is not 'x y file'"


def is_one(path: Path) -> bool:
    """Whether a text file has one of the sections; False for what cannot be read."""
    try:
        headers = (_HEADER.fullmatch(line) for _, line in _told(path))
        return any(header and header[1].upper() in SECTIONS for header in headers)
    except InputError:
        return False


def read(path: Path, known: Collection[str] = ()) -> dict[str, Content]:
    """Case -> its landmarks, voxel indices (x, y, 0); a case is a picture.

    Args:
      known: the cases that have images: they decide whether a case is called by its file's name, or
        by that and its folders'.

    Raises:
      InputError: the file cannot be read; a line is not of the form above, or stands before the
        first section; a section is not known; a picture has fewer points in a section than it
        needs, or more; there are no points.
    """
    points = _points(path, known)
    if not points:
        raise InputError(path, "has no landmarks")
    cases: dict[str, Landmarks] = {}
    for (case, section), found in points.items():
        names = SECTIONS[section]
        if len(found) != len(names):
            line, _ = found[min(len(names), len(found) - 1)]
            needs = f"picture {short(case)} has {len(found)} in [{section}], not {len(names)}"
            raise InputError(path, f"line {line}: {needs}")
        for name, (line, xy) in zip(names, found, strict=True):
            add(path, f"line {line}", cases.setdefault(case, {}), name, np.append(xy, 0.0))
    notes = (
        Note(path.name, "positions are pixels of the pictures, counted from 0"),
        *_order_notes(path, points),
    )
    return {
        case: Content(path, landmarks, unit="voxels", notes=notes)
        for case, landmarks in cases.items()
    }


def _told(path: Path) -> list[tuple[int, str]]:
    """Numbers and texts of the lines that say something."""
    stripped = ((number, line.strip()) for number, line in enumerate(lines(path), start=1))
    return [(number, line) for number, line in stripped if line and line[0] not in "#;"]


def _points(path: Path, known: Collection[str]) -> Mapping[tuple[str, str], _Found]:
    """Case and section -> what is under it, in the order of the file."""
    section = ""
    found: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = {}
    for number, line in _told(path):
        where = f"line {number}"
        if header := _HEADER.fullmatch(line):
            section = header[1].upper()
            if section not in SECTIONS:
                listed = ", ".join(f"[{name}]" for name in SECTIONS)
                raise InputError(path, f"{where}: section {short(header[1])} is none of {listed}")
            continue
        if not section:
            raise InputError(path, f"{where}: {short(line)} stands before the first section")
        words = line.split(maxsplit=2)
        if len(words) != 3:
            raise InputError(path, f"{where}: {short(line)} {_FORM}")
        xy = np.array(numbers(path, where, words[:2], ["x", "y"]))
        case = _case(words[2].strip('"'), known)
        check_case(path, case, where)
        found.setdefault((case, section), []).append((number, xy))
    return found


def _case(file: str, known: Collection[str]) -> str:
    """The case that a picture's file is, by its name or, if that is known, by its folders' too."""
    name = columns.case_of(file)
    parents = [part for part in re.split(r"[/\\]", file)[:-1] if part not in ("", ".", "..")]
    forms = [name, *("-".join([*parents[k:], name]) for k in reversed(range(len(parents))))]
    return next((form for form in forms if form in known), name)


def _order_notes(path: Path, points: Mapping[tuple[str, str], _Found]) -> list[Note]:
    """Which point is which was decided by the lines' order, and whose order differs."""
    notes = []
    for section, names in SECTIONS.items():
        pairs = {case: found for (case, of), found in points.items() if of == section}
        if len(names) < 2 or not pairs:
            continue
        what = f"{names[0]!r} is the first line of a picture, {names[1]!r} the second"
        notes.append(Note(path.name, what))
        along = np.array([second - first for (_, first), (_, second) in pairs.values()])
        axis = int(np.abs(along).mean(0).argmax())
        forward = along[:, axis] > 0
        if forward.all() or not forward.any():
            continue
        usual = forward.mean() >= 0.5
        side = ("left of", "above")[axis] if usual else ("right of", "below")[axis]
        what = f"{names[0]!r} is not {side} {names[1]!r}, as in most pictures: check their order"
        notes += [
            Note(f"{path.name}, {case}", what)
            for case, is_forward in zip(pairs, forward, strict=True)
            if is_forward != usual
        ]
    return notes
