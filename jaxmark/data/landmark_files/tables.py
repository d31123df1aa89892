"""CSV tables of one case or of many, with one row for each landmark or each case."""

import csv
import dataclasses
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxmark.core.grids import Plane
from jaxmark.data.landmark_files import columns
from jaxmark.data.landmark_files.content import (
    Content,
    Landmarks,
    add,
    check_case,
    finite,
    frame_of,
    placed,
    short,
    status_of,
    unnamed,
    written,
)
from jaxmark.data.landmark_files.rows import comments, lines, listed, numbers, rows
from jaxmark.data.notes import Note
from jaxmark.system.errors import InputError
from jaxmark.system.files import write_text_atomic

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# What Excel heeds, and writes for some.
_SEPARATOR = re.compile('"?sep=(.)"?[;,\\s"]*', re.IGNORECASE)
# Columns that prediction writes.
_LONGEST_LIST = 300
_PREDICTED = ("score", "presence")
_RADIUS = ("radius_mm", "radius_px")
_NO = ("0", "false", "no")


@dataclass(frozen=True)
class Table:
    """A table's header and rows."""

    path: Path
    header: list[str]
    # Line numbers and as many cells as the header has.
    rows: list[tuple[int, list[str]]]
    delimiter: str
    # The frame of a comment.
    frame: str
    notes: list[Note] = field(default_factory=list)

    def note(self, what: str) -> None:
        note = Note(self.path.name, what)
        if note not in self.notes:
            self.notes.append(note)

    def column(self, index: int) -> list[str]:
        return [cells[index] for _, cells in self.rows]


def read_case(path: Path, *, planar: bool = False) -> dict[str, Content]:
    """Case -> landmarks of a file that should be of one; the case is "" without a column `case`.

    Columns that may name the case, but are called otherwise, are not heeded: the file's name does.

    Args:
      planar: the points lie on a picture, see `read_cases`.
    """
    table = _read(path)
    named = columns.CASE in map(columns.key, table.header)
    cases = table.column(columns.case_columns(path, table.header)[0]) if named else None
    return (_planar_contents if planar else _contents)(table, cases)


def read_cases(
    path: Path, known: Collection[str] = (), *, planar: bool = False
) -> dict[str, Content]:
    """Case -> landmarks of a table of many.

    Args:
      known: the cases that have images: they decide between columns, and between a name and it with
        its ending.
      planar: the points lie on pictures: columns x_px and y_px, or x and y in mm, or both (then
        pixels are `points` and millimetres `also_mm`), and maybe pixel_size_mm.
    """
    table = _read(path)
    cases = read_case_column(table, known)[1]
    return (_planar_contents if planar else _contents)(table, cases)


def _planar_contents(table: Table, cases: Sequence[str] | None) -> dict[str, Content]:
    """As `_contents`, of points with z = 0."""
    path, header = table.path, table.header
    at = columns.planar_axes(path, header)
    found: list[dict[str, Content]] = []
    for place, frame, unit in ((at.pixels, "", "voxels"), (at.mm, at.frame, at.unit)):
        if place is None:
            continue
        rows = [
            (line, [*row, "0" if any(row[i] for i in place) else ""]) for line, row in table.rows
        ]
        with_z = dataclasses.replace(table, header=[*header, "z"], rows=rows)
        axes = columns.Axes((*place, len(header)), frame, unit)
        found.append(_contents(with_z, cases, axes, "pixels of the pictures"))
    sizes = _pixel_sizes(table, cases, at.pixel_size)
    contents = found[0]
    for case, content in contents.items():
        also = found[-1][case].points if len(found) > 1 else {}
        size = sizes.get(case, 0.0)
        contents[case] = dataclasses.replace(content, also_mm=also, pixel_size_mm=size)
    return contents


def _pixel_sizes(table: Table, cases: Sequence[str] | None, column: int | None) -> dict[str, float]:
    """Case -> mm, of those that state it; InputError where a case states two."""
    sizes: dict[str, float] = {}
    if column is None:
        return sizes
    for number, (line, cells) in enumerate(table.rows):
        if not cells[column]:
            continue
        (size,) = numbers(table.path, f"line {line}", [cells[column]], [columns.PIXEL_SIZE])
        case = "" if cases is None else cases[number]
        if size <= 0 or sizes.setdefault(case, size) != size:
            what = "not positive" if size <= 0 else f"and {sizes[case]:g} above"
            problem = f"line {line}: {columns.PIXEL_SIZE} is {size:g}, {what}"
            raise InputError(table.path, problem)
    return sizes


def is_predicted(path: Path) -> bool:
    """Whether jaxmark's prediction wrote the table; False for what cannot be read."""
    try:
        return _is_predicted(_read(path).header)
    except InputError:
        return False


def write(
    path: Path,
    cases: Mapping[str, Mapping[str, np.ndarray | None]],
    columns: Mapping[str, Mapping[str, Mapping[str, float | str | None]]] | None = None,
    planes: Mapping[str, Plane] | None = None,
) -> None:
    """Writes CSV that `read_table` gives back exactly, but for landmarks that are not annotated.

    Args:
      path: ends in `.csv`.
      cases: case -> landmark -> (3,) LPS mm, or None for absent; three NaN have no row.
      columns: further columns behind x, y and z, in this order: name -> case -> landmark -> number
        or text. None or nothing there is an empty cell.
      planes: case -> the picture that its points lie on: these have x_px and y_px, and before them
        x_mm and y_mm where the world is in mm.

    Raises:
      ValueError: a coordinate or number is not finite; a landmark's name is one that `read_table`
        would refuse.
      OSError: the file cannot be written.
    """
    columns = columns or {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    axes = ["x_lps_mm", "y_lps_mm", "z_lps_mm"]
    if planes:
        in_mm = next(iter(planes.values())).unit == "mm"
        axes = [*["x_mm", "y_mm"] * in_mm, "x_px", "y_px"]
    writer.writerow(["case", "landmark", *axes, *columns])
    for case, landmarks in cases.items():
        for name, xyz in landmarks.items():
            if status_of(xyz) == "undefined":
                continue
            values = [""] * len(axes)
            if xyz is not None:
                shown = xyz if not planes else [*xyz[:2], *planes[case].pixels(xyz)][-len(axes) :]
                values = [repr(v) for v in finite(shown)]
            values += [_cell(column.get(case, {}).get(name)) for column in columns.values()]
            writer.writerow([case, written(name), *values])
    write_text_atomic(path, text.getvalue())


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return repr(*finite(value))


# Lines and cells


def read_cells(path: Path) -> Table:
    """The cells of a table, with whatever separates them.

    Raises:
      InputError: it has no header, or a row with another number of cells; see also `rows`.
    """
    delimiter, skip = _delimiter(path)
    found = rows(path, delimiter, skip)
    start = next((i for i, (_, row) in enumerate(found) if row[0][:1] != "#"), len(found))
    stated = comments(path, [_filled(row) for _, row in found[:start]])
    if start == len(found):
        raise InputError(path, "has no header line")
    header = found[start][1]
    table = Table(path, header, [], delimiter, frame_of(path, stated.get("frame", "")))
    for line, row in found[start + 1 :]:
        # Spreadsheets write as many cells as their widest line has, or leave out empty ones.
        cells = row if any(row[len(header) :]) else row[: len(header)]
        cells += [""] * (len(header) - len(row) if not any(header[len(row) :]) else 0)
        if len(cells) != len(header):
            problem = f"line {line} has {len(row)} cells, the header {len(header)}"
            raise InputError(path, problem)
        table.rows.append((line, cells))
    if delimiter != ",":
        table.note(f"cells are taken as separated by {_DELIMITERS[delimiter]}")
    return table


def _read(path: Path) -> Table:
    """A table of landmarks: coordinates are in columns of their own."""
    table = read_cells(path)
    together = None if columns.has_axes(table.header) else columns.together(table.header)
    return table if together is None else _apart(table, together)


def _apart(table: Table, column: int) -> Table:
    """With three columns in place of one that holds lists of three numbers."""
    title = table.header[column]
    split: list[tuple[int, list[str]]] = []
    for line, cells in table.rows:
        words = re.findall(r"[^\s,;()\[\]]+", cells[column][:_LONGEST_LIST])
        if len(words) not in (0, 3):
            problem = f"line {line}: {title} is {short(cells[column])}, not three numbers"
            raise InputError(table.path, problem)
        split.append((line, [*cells[:column], *cells[column + 1 :], *(words or [""] * 3)]))
    header = [*table.header[:column], *table.header[column + 1 :]]
    stated = re.sub("xyz", "", title, flags=re.IGNORECASE)
    header += [f"{axis} {stated}" for axis in "xyz"]
    table.note(f"column {title!r} is taken as x, y and z")
    return dataclasses.replace(table, header=header, rows=split)


def _filled(row: list[str]) -> list[str]:
    """Without the empty cells at its end."""
    last = max((i for i, cell in enumerate(row) if cell), default=-1)
    return row[: last + 1]


def _delimiter(path: Path) -> tuple[str, int]:
    """What separates cells, as a line `sep=` or the header shows, and how many lines to skip."""
    for number, line in enumerate(lines(path)):
        if number == 0 and (stated := _SEPARATOR.fullmatch(line.rstrip("\r\n"))):
            if stated[1] not in _DELIMITERS:
                known = ", ".join(_DELIMITERS.values())
                raise InputError(
                    path, f"line 1 states the separator {stated[1]!r}, none of {known}"
                )
            return stated[1], 1
        bare = line.strip().strip("".join(_DELIMITERS) + '"')
        if bare and not bare.startswith("#"):
            return max(_DELIMITERS, key=lambda delimiter: _fitness(line, delimiter)), 0
    return ",", 0


def _fitness(header: str, delimiter: str) -> tuple[int, int]:
    """How many coordinates and cells a header has, if this separates them."""
    try:
        cells = next(csv.reader([header], delimiter=delimiter))
    except (csv.Error, StopIteration):
        return 0, 0
    # Of a header with many cells the first tell enough.
    return sum(map(columns.looks_like_axis, cells[:1000])), len(cells)


# Cases


def read_case_column(table: Table, known: Collection[str]) -> tuple[int, list[str]]:
    """The column that names the case, and whose each row is.

    Args:
      known: as in `read_cases`.

    Raises:
      InputError: no column names the case, or two do, differently.
    """
    path, header = table.path, table.header
    weak = () if columns.has_axes(header) else ("name", "label")
    candidates = {i: table.column(i) for i in columns.case_columns(path, header, weak)}
    exact = [i for i in candidates if columns.key(header[i]) == columns.CASE]
    if not exact:
        candidates = {i: list(map(columns.case_of, cells)) for i, cells in candidates.items()}
    if known:
        candidates = {i: _as_known(cells, known) for i, cells in candidates.items()}
        matching = {i: cells for i, cells in candidates.items() if set(cells) <= {*known}}
        if not exact and not matching:
            # Whatever it is called: its cells are the names of images.
            others = set(range(len(header))) - {columns.landmark_column(path, header)}
            every = {i: _as_known(table.column(i), known) for i in sorted(others)}
            matching = {i: cells for i, cells in every.items() if set(cells) <= {*known}}
        candidates = (table.rows and matching) or candidates
    if not candidates:
        problem = f"has no column 'case' (or subject, patient, image ...); it has {listed(header)}"
        raise InputError(path, problem)
    (first, cells), *others_ = candidates.items()
    for other, theirs in others_:
        if theirs != cells:
            both = f"{header[first]!r} and {header[other]!r}"
            raise InputError(path, f"columns {both} may both name the case; call one 'case'")
    changed = ", without the endings of files" * (cells != table.column(first))
    if changed or not exact:
        table.note(f"column {header[first]!r} is taken as the case{changed}")
    return first, cells


def _as_known(cells: list[str], known: Collection[str]) -> list[str]:
    """The cells; of those that are no known case the part that is: of scan_0000.nii.gz scan."""

    def found(cell: str) -> str:
        name = columns.case_of(cell)
        forms = (cell, name, re.sub("_[0-9]{4}$", "", name))
        return next((form for form in forms if form in known), cell)

    return list(map(found, cells))


# Landmarks


class _Numbers:
    """Reads coordinates: with decimal points, or all with commas where these separate no cells."""

    def __init__(self, table: Table):
        self._table = table
        self._points = False
        self.commas = False

    def __call__(self, where: str, cells: list[str], names: list[str]) -> list[float]:
        if self._table.delimiter != ",":
            self.commas |= any("," in cell for cell in cells)
            self._points |= any("." in cell for cell in cells)
            if self.commas and self._points:
                both = f"{where}: numbers have decimal commas here, and decimal points there"
                raise InputError(self._table.path, f"{both}; write them alike")
            cells = [cell.replace(",", ".", 1) for cell in cells]
        return numbers(self._table.path, where, cells, names)


def _contents(
    table: Table,
    cases: Sequence[str] | None,
    layout: columns.Wide | columns.Axes | None = None,
    what: str = "voxel indices of the images",
) -> dict[str, Content]:
    """Case -> its landmarks; the one case is "" where no column names it.

    Args:
      layout: where they are; None: as the columns' names say.
      what: positions in voxels are called in a note.
    """
    path, header = table.path, table.header
    name_column = columns.landmark_column(path, header)
    # Beside one row a case a column "name" is the case's.
    if (
        layout is None
        and not columns.has_axes(header)
        and (name_column is None or columns.key(header[name_column]) == "name")
    ):
        layout = columns.wide(path, header)
    if name_column is None and not isinstance(layout, columns.Wide):
        lower = [column.lower() for column in header]
        raise InputError(path, f"has no column 'landmark'; its columns are {listed(lower)}")
    layout = layout or columns.axes(path, header)
    stated = table.frame or layout.frame
    if layout.frame and stated != layout.frame:
        raise InputError(path, f"states frame {stated} and has columns in {layout.frame}")
    if layout.unit == "voxels" and stated:
        raise InputError(path, f"states the frame {stated} and has columns in voxels")
    if layout.unit == "voxels":
        table.note(f"positions are {what}, counted from 0")
    if not table.rows:
        raise InputError(path, "has no landmarks")
    read = _Numbers(table)
    unlikely: dict[str, set[str]] = {}
    if isinstance(layout, columns.Wide):
        found = _one_row_a_case(table, cases, layout, read)
    else:
        assert name_column is not None
        found, unlikely = _one_row_a_landmark(table, cases, name_column, layout, read)
    if read.commas:
        table.note("numbers have decimal commas")
    return {
        case: Content(
            path,
            landmarks,
            frame=stated,
            unit=layout.unit,
            predicted=_is_predicted(header),
            unlikely=frozenset(unlikely.get(case, ())),
            notes=tuple(table.notes),
        )
        for case, landmarks in found.items()
    }


def _one_row_a_landmark(
    table: Table,
    cases: Sequence[str] | None,
    name_column: int,
    axes: columns.Axes,
    read: _Numbers,
) -> tuple[dict[str, Landmarks], dict[str, set[str]]]:
    """Case -> landmarks, and case -> those that a prediction calls probably absent."""
    path, header = table.path, table.header
    keys = [columns.key(column) for column in header]
    named = columns.key(header[name_column]) in columns.LANDMARK
    if not named:
        table.note(f"column {header[name_column]!r} is taken as the landmark")
    numbered = cases is None and len(table.rows) > 1 and not any(table.column(name_column))
    if numbered:
        table.notes.append(unnamed(path))
    # Of 3D Slicer's tables: 0 stands beside the position of a point that was never placed.
    defined = keys.index("defined") if "defined" in keys else None
    presence = keys.index("presence") if _is_predicted(header) else None
    found: dict[str, Landmarks] = {}
    unlikely: dict[str, set[str]] = {}
    for number, (line, cells) in enumerate(table.rows, start=1):
        where = f"line {line}"
        case = _case(table, cases, number - 1)
        name = str(number) if numbered else cells[name_column]
        position = [cells[i] for i in axes.columns]
        status = "defined" if any(position) else "missing"
        if defined is not None and cells[defined].lower() in _NO:
            status = "undefined"
        names = [header[i].lower() for i in axes.columns]
        xyz = read(where, position, names) if status == "defined" else []
        add(path, where, found.setdefault(case, {}), name, placed(xyz, status))
        if presence is not None and _below_half(cells[presence]):
            unlikely.setdefault(case, set()).add(name)
    return found, unlikely


def _one_row_a_case(
    table: Table, cases: Sequence[str] | None, wide: columns.Wide, read: _Numbers
) -> dict[str, Landmarks]:
    """Case -> landmarks; of empty cells nobody knows what they mean: not annotated."""
    path, header = table.path, table.header
    example = header[next(iter(wide.landmarks.values()))[0]]
    table.note(f"read as one row a case, with columns such as {example!r}")
    found: dict[str, Landmarks] = {}
    for number, (line, cells) in enumerate(table.rows):
        where, case = f"line {line}", _case(table, cases, number)
        if case in found:
            again = f": case {case!r} comes a second time" if case else " is of a second case"
            raise InputError(path, f"{where}{again}")
        landmarks = found.setdefault(case, {})
        for name, places in wide.landmarks.items():
            position = [cells[i] for i in places]
            status = "defined" if any(position) else "undefined"
            if status == "undefined":
                table.note("empty cells are taken as landmarks that were not annotated")
            names = [header[i] for i in places]
            xyz = read(where, position, names) if status == "defined" else []
            add(path, where, landmarks, name, placed(xyz, status))
    return found


def _case(table: Table, cases: Sequence[str] | None, row: int) -> str:
    if cases is None:
        return ""
    check_case(table.path, cases[row], f"line {table.rows[row][0]}")
    return cases[row]


def _is_predicted(header: Sequence[str]) -> bool:
    keys = set(map(columns.key, header))
    return set(_PREDICTED) <= keys and not keys.isdisjoint(_RADIUS)


def _below_half(cell: str) -> bool:
    """Of a presence; an empty one is not known."""
    try:
        return float(cell) < 0.5
    except ValueError:
        return False
