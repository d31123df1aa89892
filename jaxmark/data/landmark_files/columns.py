"""What the columns of a landmark table mean, by their names."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxmark.data.landmark_files.rows import listed
from jaxmark.system.errors import InputError

# The first of these columns that a table has is taken.
LANDMARK = ("landmark", "label", "name")
_OTHER_LANDMARK = (
    *("point", "landmark_name", "landmark_id", "landmark_label", "point_name", "point_id"),
    *("fiducial", "keypoint", "marker", "afid"),
)
CASE = "case"
_OTHER_CASE = frozenset(
    [
        f"{what}{part}"
        for what in ("case", "subject", "patient", "participant", "scan", "image", "volume", "file")
        for part in ("", "_id", "id", "_name", "name", "_file", "_path", "_no", "_number")
    ]
) - {CASE}
# They may number rows as well.
_WEAK_CASE = ("id", "pid", "uid", "key")

# Of the picture that a point lies on.
PIXEL_SIZE = "pixel_size_mm"

# Endings of the images that tables name; not all of them are read.
_VOLUMES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".hdr", ".img", ".dcm")
_IMAGES = (*_VOLUMES, ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

_FRAMES = ("lps", "ras")
_MM = ("mm", "millimeter", "millimeters", "millimetre", "millimetres")
_PIXELS = ("px", "pix", "pixel", "pixels")
_VOXELS = ("vox", "voxel", "voxels", "ijk")
_FILLERS = ("position", "pos", "coordinate", "coordinates", "coord", "coords", "location", "point")
_WORDS = {*_FRAMES, *_MM, *_VOXELS, *_FILLERS, "world", "physical", "index"}
# Letters of axes -> axis and frames that have it; only where there are no x, y and z.
_ANATOMICAL = {"l": (0, "LPS"), "p": (1, "LPS"), "r": (0, "RAS"), "a": (1, "RAS"), "s": (2, "")}
_IJK = {"i": (0, ""), "j": (1, ""), "k": (2, "")}
_XYZ = {"x": (0, ""), "y": (1, ""), "z": (2, "")}

_TAIL = r"(?P<tail>(?:[\s_.\-(\[]+(?:mm|lps|ras|vox|voxels?|pos|position|coord)[)\]]*)*)"
_BEHIND = re.compile(rf"(?P<name>.*[^\s_.\-])[\s_.\-]+(?P<axis>[xyz]){_TAIL}", re.IGNORECASE)
_BEFORE = re.compile(rf"(?P<axis>[xyz]){_TAIL}[\s_.\-]+(?P<name>[^\s_.\-].*)", re.IGNORECASE)
_LONGEST = 300
# x_cm is a unit, not a landmark.
_NO_NAMES = {"cm", "m", "um", "in", "inch", "px", "pix", "pixel", "pixels", "mi"} | _WORDS
# Three numbers of an image, of which landmark tables are full.
_OF_IMAGES = {"spacing", "size", "shape", "origin", "dim", "voxel_size", "voxelsize", "resolution"}


class Axes(NamedTuple):
    """Where x, y and z of a landmark are, and what their names state."""

    columns: tuple[int, int, int]
    frame: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Wide:
    """One row a case: landmark -> its three columns."""

    landmarks: dict[str, tuple[int, int, int]]
    frame: str
    unit: str


def key(column: str) -> str:
    """The name in lower case, words joined by "_": "Patient ID" and "patientID" are the same."""
    return "_".join(_words(column))


def looks_like_axis(column: str) -> bool:
    """Whether a column's name is that of coordinates."""
    return _known(_words(column), "xyzlpsraijk") or _landmark_of(column) is not None


def landmark_column(path: Path, header: Sequence[str]) -> int | None:
    """Where the landmarks' names are."""
    keys = [key(column) for column in header]
    found = next((name for name in (*LANDMARK, *_OTHER_LANDMARK) if name in keys), None)
    if found is None:
        return None
    _check_once(path, header, keys, found)
    return keys.index(found)


def case_columns(path: Path, header: Sequence[str], weak: Collection[str] = ()) -> list[int]:
    """Columns that may name the case: the one called `case`, or else all with similar names.

    Args:
      weak: further names, for tables without a better column.
    """
    keys = [key(column) for column in header]
    if CASE in keys:
        _check_once(path, header, keys, CASE)
        return [keys.index(CASE)]
    found = [i for i, name in enumerate(keys) if name in _OTHER_CASE]
    return found or [i for i, name in enumerate(keys) if name in (*_WEAK_CASE, *weak)]


def case_of(cell: str) -> str:
    """The case that a cell means: for a file's name or path, the name without extension."""
    name = re.split(r"[/\\]", cell)[-1]
    extension = next((e for e in _IMAGES if name.lower().endswith(e)), "")
    return name[: len(name) - len(extension)] or cell


def axes(path: Path, header: Sequence[str]) -> Axes:
    """Where a landmark's x, y and z are.

    They are called x, y, z, with or without frame and unit; r, a, s; l, p, s; or i, j, k: voxels.

    Raises:
      InputError: one is missing or there twice; they state different frames or units, or words that
        are neither.
    """
    words = [_words(column) for column in header]
    header = [column.lower() for column in header]
    for column, parts in zip(header, words, strict=True):
        if parts[:1] and parts[0] in tuple("xyz") and not _known(parts, "xyz"):
            raise InputError(
                path, f"column {column!r}: cannot tell its frame (lps, ras) and unit (only mm)"
            )
    for letters, index in (("xyz", _XYZ), ("lpsra", _ANATOMICAL), ("ijk", _IJK)):
        found = [
            (i, letter, parts)
            for i, parts in enumerate(words)
            for letter in parts
            if letter in tuple(letters) and _known(parts, letters)
        ]
        # A single "s" or "i" may be anything.
        if len(found) > (0 if letters == "xyz" else 1):
            return _axes(path, header, found, index)
    raise InputError(path, f"has no column x, y, z; its columns are {listed([*header])}")


class PlanarAxes(NamedTuple):
    """Where x and y of a point on a picture are, in pixels or in mm, and the size of its pixels."""

    # None: there are no such columns.
    pixels: tuple[int, int] | None
    mm: tuple[int, int] | None
    # "LPS", "RAS" or "", and "mm" or "": what the names of `mm` state.
    frame: str
    unit: str
    pixel_size: int | None


def planar_axes(path: Path, header: Sequence[str]) -> PlanarAxes:
    """Where the points of a table of pictures are: x_px and y_px, or x and y, or both.

    Raises:
      InputError: one is missing or there twice.
    """
    places: dict[str, dict[str, int]] = {"pixels": {}, "mm": {}}
    stated = []
    for i, column in enumerate(header):
        words = _words(column)
        plain = [word for word in words if word not in _PIXELS]
        if not _known(plain, "xy"):
            continue
        (axis,) = {*plain} & {"x", "y"}
        kind = "mm" if plain == words and not {*words} & {*_VOXELS} else "pixels"
        if axis in places[kind]:
            raise InputError(path, f"has two columns for {axis}: {listed([*header])}")
        places[kind][axis] = i
        if kind == "mm":
            stated.append(_stated(words))
    both: dict[str, tuple[int, int] | None] = {}
    for kind, at in places.items():
        if len(at) == 1:
            (other,) = {"x", "y"} - {*at}
            problem = f"has no column {other} beside {header[next(iter(at.values()))]!r}"
            raise InputError(path, problem)
        both[kind] = (at["x"], at["y"]) if at else None
    if not any(both.values()):
        problem = f"has no column x_px, y_px (or x, y in mm); its columns are {listed([*header])}"
        raise InputError(path, problem)
    keys = [key(column) for column in header]
    size = keys.index(PIXEL_SIZE) if PIXEL_SIZE in keys else None
    return PlanarAxes(
        both["pixels"], both["mm"], *_agreed(path, header, stated or [("", "")]), size
    )


def has_axes(header: Sequence[str]) -> bool:
    """Whether some columns are called x, y and z, or as `axes` says, and no more."""
    return any(_known(_words(column), "xyz") for column in header) or any(
        sum(_known(_words(column), letters) for column in header) > 2
        for letters in ("lpsra", "ijk")
    )


def together(header: Sequence[str]) -> int | None:
    """The column that holds all three coordinates, as in "position": "[1, 2, 3]"."""
    words = [_words(column) for column in header]
    found = [
        i
        for i, parts in enumerate(words)
        if {*parts} & {*_FILLERS, "xyz"} and {*parts} <= _WORDS | {"xyz"} and parts != ["point"]
    ]
    return found[0] if len(found) == 1 else None


def wide(path: Path, header: Sequence[str]) -> Wide | None:
    """Columns of one row a case, as in AC_x, AC_y, AC_z or x_AC; None where there are none.

    Raises:
      InputError: a landmark lacks one or has one twice; they state different frames or units.
    """
    places: dict[str, dict[int, int]] = {}
    stated = []
    for i, column in enumerate(header):
        found = _landmark_of(column)
        if found is None:
            continue
        name, axis, tail = found
        if places.setdefault(name, {}).setdefault(axis, i) != i:
            raise InputError(path, f"has two columns for {'xyz'[axis]} of landmark {name!r}")
        stated.append(_stated(_words(tail)))
    for name, by_axis in places.items():
        missing = [axis for k, axis in enumerate("xyz") if k not in by_axis]
        if missing:
            problem = f"has no column for {', '.join(missing)} of landmark {name!r}"
            raise InputError(path, problem)
    if not places:
        return None
    frame, unit = _agreed(path, header, stated)
    triples = {name: (at[0], at[1], at[2]) for name, at in places.items()}
    return Wide(triples, frame, unit)


def _axes(
    path: Path,
    header: Sequence[str],
    found: list[tuple[int, str, list[str]]],
    index: Mapping[str, tuple[int, str]],
) -> Axes:
    places: dict[int, int] = {}
    letters_of: dict[int, str] = {}
    stated = []
    for i, letter, parts in found:
        axis, frame = index[letter]
        if axis in places:
            known = index is _ANATOMICAL and index.get(letter) != index.get(letters_of[axis])
            what = "columns in different frames" if known else f"two columns for {letter}"
            raise InputError(path, f"has {what}: {listed([*header])}")
        letters_of[axis] = letter
        places[axis] = i
        own, unit = _stated(parts)
        # l_ras is neither.
        own = "/".join(sorted({own, frame} - {""}))
        if index is _IJK:
            unit = unit or "voxels"
        # "s" is of both frames.
        if letter != "s" or own:
            stated.append((own, unit))
    missing = [letter for letter, (axis, _) in index.items() if axis not in places]
    if missing:
        problem = f"has no column {', '.join(missing)}; its columns are {listed([*header])}"
        raise InputError(path, problem)
    return Axes((places[0], places[1], places[2]), *_agreed(path, header, stated))


def _stated(words: Sequence[str]) -> tuple[str, str]:
    """Frame and unit that the words of a column state, or "" for either."""
    frames = {word.upper() for word in words if word in _FRAMES}
    units = {"mm" for word in words if word in _MM} | {
        "voxels" for word in words if word in _VOXELS
    }
    return "/".join(sorted(frames)), "/".join(sorted(units))


def _agreed(
    path: Path, header: Sequence[str], stated: Sequence[tuple[str, str]]
) -> tuple[str, str]:
    """What all columns state alike."""
    frames, units = ({part[k] for part in stated} for k in (0, 1))
    for what, values in (("frames", frames), ("units", units)):
        if len(values) > 1 or "/" in "".join(values):
            raise InputError(path, f"has columns in different {what}: {listed([*header])}")
    return "".join(frames), "".join(units)


def _landmark_of(column: str) -> tuple[str, int, str] | None:
    """Landmark, axis and the rest of a column as AC_x_mm, "AC x", AC.x or x_AC."""
    if len(column) > _LONGEST:
        return None
    found = _BEHIND.fullmatch(column) or _BEFORE.fullmatch(column)
    if not found or found["name"].lower() in _NO_NAMES | _OF_IMAGES:
        return None
    return found["name"].strip(), "xyz".index(found["axis"].lower()), found["tail"]


def _known(words: Sequence[str], letters: Collection[str]) -> bool:
    """Whether the words are one letter of an axis, and otherwise say frame, unit or nothing."""
    axis = [word for word in words if word in tuple(letters)]
    return len(axis) == 1 and all(word in _WORDS for word in words if word != axis[0])


def _words(column: str) -> list[str]:
    """Words and numbers in lower case; "posX" has two."""
    parts = re.sub("(?<=[a-z])(?=[A-Z])", " ", column[:_LONGEST])
    return re.findall("[^\\W_]+", parts.lower())


def _check_once(path: Path, header: Sequence[str], keys: Sequence[str], name: str) -> None:
    if keys.count(name) > 1:
        raise InputError(path, f"has two columns {name!r}; its columns are {listed([*header])}")
