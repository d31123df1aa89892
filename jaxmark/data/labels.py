"""Landmarks of many cases as one set: one frame, one unit, common names.

`landmark_files.content.Content` holds what a file states. This module decides what it leaves open:
the config's fields count for files that state nothing, and a file's own statement counts first.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine
from jaxmark.data.landmark_files import stacom, voxel_json
from jaxmark.data.landmarks import Content, Landmarks, in_lps, read_content, read_tables
from jaxmark.data.layouts import landmark_files
from jaxmark.data.notes import Note, first_few
from jaxmark.data.picture_points import points_on_pictures
from jaxmark.data.places import scan_places
from jaxmark.system.errors import InputError

_MAX_NAME = 200
# Two spacings of one image may differ by this share: some files round to two digits.
_SAME_SPACING = 0.01
# The names that 3D Slicer gives to lists; it may add a number: F_1.
_SLICER_LISTS = (
    "f",
    "fiducial",
    "fiducials",
    "markups",
    "markupsfiducial",
    "pointlist",
    "point",
    "points",
)
_NUMBERED = re.compile(r"(?P<head>(?:(?P<list>.*?)[-_ ])?)0*(?P<number>[0-9]+)")


class Labels(NamedTuple):
    """Landmarks of one case, in LPS millimetres or on its picture, and where they were read."""

    file: Path
    landmarks: Landmarks
    # Of its picture, as the table or the config states it; 0: neither does, or it is a volume.
    pixel_size_mm: float = 0.0


@dataclass(frozen=True)
class LabelSet:
    """Landmarks of all cases that have some, and notes on guesses made to read them."""

    cases: dict[str, Labels]
    notes: tuple[Note, ...] = ()


def read_labels(
    place: Path | Mapping[str, Path],
    data: Data,
    scans: Mapping[str, Path] | None = None,
    strays: dict[str, Path] | None = None,
) -> LabelSet:
    """Reads the landmarks of all cases.

    Args:
      place: a table of all cases, a folder of files, or case -> file.
      data: supplies frame, units and cache.
      scans: case -> its scan; None where people have no scans.
      strays: gets the cases without a scan and their landmark files; None: they are refused.

    Raises:
      InputError: a file is not readable; all files contradict the config's frame or unit; neither
        file nor config states the frame; a case has no scan; an image's voxels have another size
        than is stated beside its landmarks.
    """
    contents, notes = _read(place, scans or {}, data)
    if strays is not None and scans is not None:
        strays |= {case: content.file for case, content in contents.items() if case not in scans}
        contents = {case: content for case, content in contents.items() if case in scans}
    for case, content in contents.items():
        if scans is not None and case not in scans:
            problem = f"case {case!r} has landmarks but no image{nearest(case, scans)}"
            raise InputError(content.file, problem)
        notes += content.notes
    if data.planar:
        landmarks = points_on_pictures(contents, scans, data, notes)
    else:
        landmarks = _in_space(contents, scans, data, notes)
    labels = {}
    for case, content in contents.items():
        given = landmarks[case]
        for name in given:
            # A corrected prediction: the corrector left this point hidden, so it is absent.
            if name in content.unlikely and given[name] is not None:
                given[name] = None
                what = "predicted as probably absent: taken as absent"
                notes.append(Note(f"{name!r} of {case}", what))
        size_mm = content.pixel_size_mm or data.pixel_size_mm
        labels[case] = Labels(content.file, given, size_mm)
    return LabelSet(_without_list_names(labels, data.landmarks, notes), tuple(notes))


def _in_space(
    contents: Mapping[str, Content],
    scans: Mapping[str, Path] | None,
    data: Data,
    notes: list[Note],
) -> dict[str, Landmarks]:
    """Case -> landmarks of a volume in LPS mm."""
    in_voxels = _in_voxels(contents, data, notes)
    if in_voxels and scans is None:
        first = contents[in_voxels[0]].file
        raise InputError(
            first, "holds voxel indices, but there are no images here: write millimetres"
        )
    places = scan_places({case: (scans or {})[case] for case in in_voxels}, data)
    _check_spacings(contents, places)
    in_mm = {case: content for case, content in contents.items() if case not in places}
    landmarks = _all_in_lps(in_mm, data.frame, notes)
    landmarks |= {case: _from_voxels(contents[case].points, at) for case, at in places.items()}
    return landmarks


def choose_names(
    names: Sequence[str], labels: Mapping[str, Labels], notes: list[Note]
) -> tuple[str, ...]:
    """The names that a config asks for: all or some of those in the files.

    Raises:
      InputError: a name comes twice; a name is in no file while files have unknown names: then it
        is probably misspelled.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError("config.data.landmarks", f"names {name!r} {count} times")
    known = {name for given in labels.values() for name in given.landmarks}
    strange = [name for name in names if name not in known]
    others: dict[str, None] = {}
    for case, (file, given, _) in labels.items():
        unknown = [name for name in given if name not in names]
        others |= dict.fromkeys(unknown)
        if unknown and strange:
            like = nearest(unknown[0], strange)
            raise InputError(
                file,
                f"case {case!r}: landmark {unknown[0]!r} is not in config.data.landmarks{like}, "
                "which no file has",
            )
    what = "not in config.data.landmarks, and left out of all files"
    notes += [Note(repr(name), what) for name in others]
    return tuple(names)


def common_names(root: Path, labels: Mapping[str, Labels]) -> tuple[str, ...]:
    """The names that all files have.

    Raises:
      InputError: there are no files, or one of them has other names than the first.
    """
    if not labels:
        problem = "has no landmarks: no landmarks/ nor landmarks.csv (see docs/own_data.md)"
        raise InputError(root, problem)
    first, *others = sorted(labels, key=natural)
    names = list(labels[first].landmarks)
    for case in others:
        file, given, _ = labels[case]
        missing = [name for name in names if name not in given]
        extra = [name for name in given if name not in names]
        if missing or extra:
            differences = " and ".join(
                f"{verb} {', '.join(map(repr, some))}"
                for verb, some in (("lacks", missing), ("also has", extra))
                if some
            )
            raise InputError(
                file,
                f"case {case!r} {differences}, unlike case {first!r}; if some may be absent, name "
                "all in --config.data.landmarks",
            )
    return tuple(sorted(names, key=int) if all(map(str.isdecimal, names)) else names)


def nearest(name: str, known: Collection[str]) -> str:
    """A hint for a message: the known name nearest to a wrong one, or "" if no name is known."""
    numbers = natural(name[:_MAX_NAME])
    padded = [other for other in known if other != name and natural(other) == numbers]
    if len(padded) == 1:
        return f"; did it lose leading zeros, as in spreadsheets? There is {padded[0]!r}"
    # Comparing takes time with the square of the length.
    found = difflib.get_close_matches(name[:_MAX_NAME], list(known), n=1, cutoff=0.0)
    if not found:
        return ""
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", found[0])
    # An accent has two codings that look the same.
    return f"; the nearest name is {found[0]!r}" + f", coded {ascii(found[0])}" * same


def natural(name: str) -> list[tuple[int, str]]:
    """A key for sorting that puts "case-2" before "case-10"."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name)
    return [(int(digits), "") if digits else (-1, text) for digits, text in parts]


def _read(
    place: Path | Mapping[str, Path], scans: Collection[str], data: Data
) -> tuple[dict[str, Content], list[Note]]:
    if isinstance(place, Path) and not place.is_dir():
        return read_tables(place, scans, planar=data.planar), []
    notes: list[Note] = []
    if isinstance(place, Path):
        found = landmark_files(place, planar=data.planar)
        if found.unread and not found.files:
            names = first_few(note.where for note in found.unread)
            problem = f"holds no file <case>.mrk.json, <case>.fcsv or <case>.csv, but {names}"
            raise InputError(place, problem)
        place, notes = found.files, [*found.chosen, *found.unread]
    contents: dict[str, Content] = {}
    for name, file in place.items():
        has_many = file.suffix.lower() == stacom.EXTENSION
        found_in = (
            read_tables(file, scans)
            if has_many
            else {name: read_content(file, name, planar=data.planar)}
        )
        for case, content in found_in.items():
            if case in contents:
                problem = f"case {case!r} has landmarks in {contents[case].file.name}, too"
                raise InputError(file, problem)
            contents[case] = content
    return contents, notes


# Frames and units


def _in_voxels(contents: Mapping[str, Content], data: Data, notes: list[Note]) -> list[str]:
    """Cases in voxel indices: their files say so, or are silent and `data.units` is voxels."""
    silent = [case for case, content in contents.items() if not content.says_unit]
    if data.units == "voxels" and contents:
        if not silent and all(content.says_unit == "mm" for content in contents.values()):
            first = next(iter(contents.values()))
            stated = f"the frame {first.frame}" if first.frame else "millimetres"
            raise InputError(
                first.file, f"states {stated}, but config.data.units is voxels; leave it at mm"
            )
        if len(silent) < len(contents):
            what = "neither frame nor unit stated: voxels, as config.data.units says"
            notes += [Note(contents[case].file.name, what) for case in silent]
    asked = silent if data.units == "voxels" else []
    return [case for case, content in contents.items() if content.unit == "voxels" or case in asked]


def _check_spacings(contents: Mapping[str, Content], places: Mapping[str, np.ndarray]) -> None:
    """Refuses images whose voxels have another size than is stated beside the landmarks.

    One of the two is wrong, and with it all millimetres of the case.
    """
    wrong = []
    for case, at in places.items():
        own = np.linalg.norm(at[:3, :3], axis=0)
        for key, stated in contents[case].spacings_mm.items():
            if (np.abs(stated / own - 1) > _SAME_SPACING).any():
                wrong.append((case, key, stated, own))
    if not wrong:
        return
    case, key, stated, own = wrong[0]
    file = contents[case].file.with_name(voxel_json.SPACING)
    cases = len({case for case, *_ in wrong})
    more = f" (and {cases - 1} more)" * (cases > 1)
    turned = np.allclose(stated[::-1], own, rtol=_SAME_SPACING)
    raise InputError(
        file,
        f"case {case!r}{more}: {key} is {_by(stated)} mm, but its image's voxels have {_by(own)} mm"
        + "; stated as z, y, x? Then the landmarks may be, too" * turned
        + "; one of them is wrong: mend the image's header, or this entry (null: not known)",
    )


def _by(spacing_mm: np.ndarray) -> str:
    return " x ".join(f"{length:.4g}" for length in spacing_mm)


def _from_voxels(points: Landmarks, ijk_to_lps: np.ndarray) -> Landmarks:
    return {
        name: None if ijk is None else apply_affine(ijk_to_lps, ijk) for name, ijk in points.items()
    }


def _all_in_lps(
    contents: Mapping[str, Content], frame: str, notes: list[Note]
) -> dict[str, Landmarks]:
    """Landmarks in LPS; `frame` is for files that state none.

    If some files state a frame, it counts. If all state another one than `frame`, either may be
    wrong: InputError.
    """
    stated = Counter(content.frame for content in contents.values() if content.frame)
    mixed = 0 < sum(stated.values()) < len(contents)
    others = " and ".join(f"{count} others state {name}" for name, count in stated.items())
    landmarks = {}
    for case, content in contents.items():
        wanted = "" if mixed and content.frame else frame
        landmarks[case] = in_lps(content, wanted, f" ({others})" if others else "")
        if mixed and not content.frame:
            what = f"no frame stated: {frame}, as config.data.frame says; {others}"
            notes.append(Note(content.file.name, what))
    return landmarks


# Names that 3D Slicer gave


def _without_list_names(
    labels: dict[str, Labels], chosen: Sequence[str], notes: list[Note]
) -> dict[str, Labels]:
    """Numbers in place of labels like F-1, where the lists' names differ from file to file.

    Only if the lists have 3D Slicer's default names, or their case's: "T-1" in one file and "L-1"
    in another are two vertebrae.
    """
    parts = {
        case: {name: _NUMBERED.fullmatch(name) for name in given.landmarks}
        for case, given in labels.items()
    }
    heads: set[str] = set()
    for case, names in parts.items():
        matches = [match for match in names.values() if match]
        lists = {match["list"] or "" for match in matches}
        numbers = {match["number"] for match in matches}
        # All labels of a file must be of one list, each with another number.
        if (
            len(numbers) < len(names)
            or len(lists) > 1
            or not _is_list_name(next(iter(lists), ""), case)
        ):
            return labels
        heads |= {match["head"] for match in matches}
    if len(heads) < 2:
        return labels
    # The config may spell the names as one of the files does.
    wanted = {match["number"]: name for name in chosen if (match := _NUMBERED.fullmatch(name))}
    renamed = {}
    for case, (_, given, _) in labels.items():
        number = {name: match["number"] for name, match in parts[case].items() if match}
        new = {wanted.get(number[name], number[name]): xyz for name, xyz in given.items()}
        renamed[case] = labels[case]._replace(landmarks=new)
    what = "labels differ from file to file in the list's name alone; their numbers are the names"
    notes += [Note(repr(f"{head}1"), what) for head in sorted(heads)]
    return renamed


def _is_list_name(head: str, case: str) -> bool:
    """Whether a label's beginning is the name of a list; "" counts: the label is a number."""
    plain = re.sub("_[0-9]+$", "", head.strip().lower())
    return not head or head.lower() == case.lower() or plain in _SLICER_LISTS
