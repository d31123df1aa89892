"""Attributes: which segments each person has, from the user's table.

```
case,A1 R,A1 L           one row for each case, one column for each segment
case,segment,present     or one row for each case and segment
```

Cells are yes or no, true or false, 1 or 0, present or absent; an empty cell is unknown.
"""

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxmark.data.labels import nearest
from jaxmark.data.landmark_files import columns
from jaxmark.data.landmark_files.content import short
from jaxmark.data.landmark_files.tables import Table, read_case_column, read_cells
from jaxmark.data.notes import Note
from jaxmark.system.errors import InputError
from jaxmark.system.files import write_text_atomic

_VALUES = {
    **dict.fromkeys(("yes", "true", "1", "1.0", "present"), 1),
    **dict.fromkeys(("no", "false", "0", "0.0", "absent"), -1),
    **dict.fromkeys(("", "unknown", "?", "n/a", "nan"), 0),
}


def read_attributes(
    path: Path, segments: Sequence[str], cases: Collection[str]
) -> tuple[dict[str, np.ndarray], tuple[Note, ...]]:
    """Case -> (S,) int8: 1 for a segment that is present, -1 for an absent one, 0 for unknown.

    Args:
      segments: the names of all segments, in the order of the result.
      cases: the cases with images.

    Raises:
      InputError: a case or segment is unknown or comes twice; a cell has another value.
    """
    table = read_cells(path)
    case_column, names = read_case_column(table, cases)
    for (line, _), case in zip(table.rows, names, strict=True):
        if case not in cases:
            problem = f"line {line}: case {short(case)} has no image{nearest(case, cases)}"
            raise InputError(path, problem)
    keys = [columns.key(column) for column in table.header]
    read = _one_row_a_segment if "segment" in keys else _one_row_a_case
    return read(table, case_column, names, segments), tuple(table.notes)


def write_attributes(
    path: Path, segments: Sequence[str], present: Mapping[str, Sequence[bool] | np.ndarray]
) -> None:
    """Writes one row for each case; `present`: case -> (S,) bool for each segment."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *segments])
    for case, there in present.items():
        writer.writerow([case, *("yes" if value else "no" for value in there)])
    write_text_atomic(path, text.getvalue())


def _one_row_a_case(
    table: Table, case_column: int, names: Sequence[str], segments: Sequence[str]
) -> dict[str, np.ndarray]:
    places: dict[int, int] = {}
    for i, column in enumerate(table.header):
        if i == case_column or not (column or any(table.column(i))):
            continue
        where = f"column {short(column)}"
        place = _segment(table.path, where, column, segments)
        if place in places.values():
            raise InputError(table.path, f"has two columns {short(column)}")
        places[i] = place
    found: dict[str, np.ndarray] = {}
    for (line, cells), case in zip(table.rows, names, strict=True):
        if case in found:
            raise InputError(table.path, f"line {line}: case {short(case)} comes a second time")
        found[case] = np.zeros(len(segments), np.int8)
        for i, place in places.items():
            where = f"line {line}: {table.header[i]}"
            found[case][place] = _state(table.path, where, cells[i])
    return found


def _one_row_a_segment(
    table: Table, case_column: int, names: Sequence[str], segments: Sequence[str]
) -> dict[str, np.ndarray]:
    keys = [columns.key(column) for column in table.header]
    if "present" not in keys:
        raise InputError(table.path, "has a column 'segment', but no column 'present'")
    segment, value = keys.index("segment"), keys.index("present")
    found: dict[str, np.ndarray] = {}
    seen = set()
    for (line, cells), case in zip(table.rows, names, strict=True):
        where = f"line {line}"
        place = _segment(
            table.path, f"{where}: segment {short(cells[segment])}", cells[segment], segments
        )
        if (case, place) in seen:
            problem = f"{where}: segment {short(cells[segment])} of {short(case)} comes twice"
            raise InputError(table.path, problem)
        seen.add((case, place))
        states = found.setdefault(case, np.zeros(len(segments), np.int8))
        states[place] = _state(table.path, f"{where}: present", cells[value])
    return found


def _segment(path: Path, where: str, name: str, segments: Sequence[str]) -> int:
    if name not in segments:
        raise InputError(path, f"{where} is no segment{nearest(name, segments)}")
    return segments.index(name)


def _state(path: Path, where: str, cell: str) -> int:
    if cell.lower() not in _VALUES:
        raise InputError(path, f"{where} is {short(cell)}, not yes, no or empty")
    return _VALUES[cell.lower()]
