"""Landmark files: 3D Slicer's `.mrk.json` and `.fcsv`, and tables, by way of `landmark_files`.

In memory a landmark is in LPS millimetres, the frame of DICOM and ITK: x grows to the patient's
left, y to the back, z to the head. In RAS files x and y have the opposite sign.

A landmark has one of three states. Present: it has a position. Absent: the file states that this
person lacks it (Slicer's "missing", a CSV row without coordinates). Not annotated: the file states
neither. A file may list such a landmark (Slicer's "undefined" and "preview": a point that was never
placed) or leave it out.
"""

from collections.abc import Callable, Collection
from pathlib import Path

from jaxmark.data.landmark_files import fcsv, markups, stacom, tables, voxel_json
from jaxmark.data.landmark_files.content import Content, Landmarks, check_case, in_lps
from jaxmark.system.errors import InputError

__all__ = [
    "ALL_EXTENSIONS",
    "EXTENSIONS",
    "Content",
    "Landmarks",
    "check_case",
    "extension_of",
    "in_lps",
    "is_prediction_table",
    "read_content",
    "read_landmarks",
    "read_predicted",
    "read_table",
    "read_tables",
    "write_fcsv",
    "write_mrk_json",
    "write_table",
]

write_mrk_json = markups.write
write_fcsv = fcsv.write
write_table = tables.write

EXTENSIONS = (".mrk.json", ".fcsv", ".csv")
# The extensions above, older ones, and ones that other files have too. A file has the first that
# fits its name; of a case's several files, the one whose extension is first here is preferred.
ALL_EXTENSIONS = (".mrk.json", ".mkp.json", ".json", ".fcsv", ".csv", ".tsv", stacom.EXTENSION)


def read_landmarks(path: Path, frame: str = "", case: str = "") -> Landmarks:
    """Reads the landmarks of one case, in the order of the file.

    A landmark's name is its label in 3D Slicer (some files number the labels and keep the name in
    the description, which is not read), or the CSV column `landmark`, `label`, `name` or `point`.

    Args:
      path: a `.mrk.json`, `.fcsv` or `.csv` file.
      frame: "LPS" or "RAS", for a file that states no frame; "": the file must state one.
      case: the value that a CSV column `case` must have; "": the file's name without extension.

    Raises:
      InputError: the file cannot be read, or has over 64 MiB; it states no frame, another than
        `frame`, or two; a name is empty, comes twice, has over 200 characters or unprintable ones;
        a coordinate is no finite number; the unit is not the millimetre; the file has no landmarks,
        or (CSV) another case's.
    """
    return in_lps(read_content(path, case), frame)


def read_table(path: Path, frame: str = "") -> dict[str, Landmarks]:
    """Reads one CSV file with the landmarks of many cases: columns `case`, `landmark`, x, y, z.

    The coordinates' columns may name the frame and the unit, `x_lps_mm`; so may a line
    `# frame: LPS` above the header. A landmark without coordinates is absent. Other usual column
    names, other separators, and one row for each case are read too: see `landmark_files.tables`.

    Raises:
      InputError: as `read_landmarks` and `check_case`, or there is no column `case`.
    """
    return {case: in_lps(content, frame) for case, content in read_tables(path).items()}


def read_predicted(path: Path, unit: str) -> dict[str, Landmarks]:
    """Reads points on pictures that `write_table` wrote, in the unit of their world: mm or px."""
    return {
        case: content.also_mm if unit == "mm" else content.points
        for case, content in tables.read_cases(path, planar=True).items()
    }


def read_content(path: Path, case: str = "", *, planar: bool = False) -> Content:
    """The content of one case's file, in the file's frame and unit; see `read_landmarks`.

    Args:
      planar: its points lie on a picture; for tables see `read_tables`.
    """
    extension = extension_of(path)
    if extension in _READERS:
        return _READERS[extension](path)
    if extension == stacom.EXTENSION and stacom.is_one(path):
        cases = stacom.read(path)
    elif extension in (".csv", ".tsv"):
        cases = tables.read_case(path, planar=planar)
    else:
        raise InputError(path, f"not a landmark format jaxmark reads: {', '.join(EXTENSIONS)}")
    source = "it" if extension == stacom.EXTENSION else "column case"
    if len(cases) > 1:
        raise InputError(path, f"{source} names {len(cases)} cases; a file of one case has one")
    ((stated, content),) = cases.items()
    wanted = case or path.name[: -len(extension)]
    if stated not in ("", wanted):
        raise InputError(path, f"{source} names {stated!r}, not {wanted!r}")
    return content


def read_tables(
    path: Path, known: Collection[str] = (), *, planar: bool = False
) -> dict[str, Content]:
    """Case -> content, from a file of many cases: CSV, JSON with voxel indices, or the challenge's
    text (`landmark_files.stacom`).

    Args:
      known: names of cases with images, which help to find the column of cases.
      planar: the points lie on pictures: a table has columns x_px and y_px, or x and y in mm, or
        both, and maybe pixel_size_mm.
    """
    extension = extension_of(path)
    if extension == stacom.EXTENSION:
        return stacom.read(path, known)
    if extension == ".json":
        return voxel_json.read(path)
    return tables.read_cases(path, known, planar=planar)


def is_prediction_table(path: Path) -> bool:
    """Whether a file in a folder of landmark files is prediction's table of a whole split."""
    return path.name.startswith("landmarks_") and tables.is_predicted(path)


def extension_of(path: Path) -> str:
    """The one of `ALL_EXTENSIONS` that a file's name ends in, or ""."""
    name = path.name.lower()
    return next((e for e in ALL_EXTENSIONS if name.endswith(e)), "")


_READERS: dict[str, Callable[[Path], Content]] = {
    ".mrk.json": markups.read,
    ".mkp.json": markups.read,
    ".json": markups.read,
    ".fcsv": fcsv.read,
}
