"""Landmarks on pictures: files' pixels or millimetres become points of the picture's world."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxmark.config import Data
from jaxmark.data.landmarks import Content, Landmarks, extension_of, in_lps
from jaxmark.data.notes import Note
from jaxmark.data.pictures import NO_SIZE, SAME_SIZE
from jaxmark.data.places import picture_sizes
from jaxmark.system.errors import InputError

# A point's pixels and millimetres may differ by this many pixels: tables round.
_SAME_PIXELS = 0.5


def points_on_pictures(
    contents: Mapping[str, Content],
    pictures: Mapping[str, Path] | None,
    data: Data,
    notes: list[Note],
) -> dict[str, Landmarks]:
    """Case -> landmarks (x, y, z) in the picture's world (see `pictures`), from pixels or mm.

    Args:
      pictures: case -> its file; None where there are no pictures.

    Raises:
      InputError: the pixel size is needed and unknown, or two statements of it differ; pixels and
        millimetres of one point disagree; see also `in_lps`.
    """
    stated = {case: _stated(content, data) for case, content in contents.items()}
    if pictures is None:
        sizes = {case: (mm, mm) if mm else None for case, mm in stated.items()}
    else:
        sizes = picture_sizes({case: (pictures[case], mm) for case, mm in stated.items()}, data)
    unknown = [case for case, size in sizes.items() if size is None]
    if unknown and data.unit == "mm":
        first = unknown[0]
        where = contents[first].file if pictures is None else pictures[first]
        count = f"{len(unknown)} of {len(sizes)} pictures state none"
        raise InputError(where, f"{NO_SIZE}; {count}")
    shown = _shown_in_slicer(contents, pictures or {}, data)
    return {
        case: _in_the_world(case, content, sizes[case], shown.get(case), data, notes)
        for case, content in contents.items()
    }


def _stated(content: Content, data: Data) -> float:
    """The pixel size in mm from table or config, 0: neither has it; InputError if they differ."""
    own, common = content.pixel_size_mm, data.pixel_size_mm
    if own and common and abs(own / common - 1) > SAME_SIZE:
        problem = f"column pixel_size_mm says {own:g}, but config.data.pixel_size_mm {common:g}"
        raise InputError(content.file, f"{problem}; leave one out")
    return own or common


def _shown_in_slicer(
    contents: Mapping[str, Content], pictures: Mapping[str, Path], data: Data
) -> dict[str, tuple[float, float] | None]:
    """Case -> the pixel size that 3D Slicer takes from its picture; None, or no entry: 1 mm.

    Only for cases in Slicer's files whose points become pixels.
    """
    asked = {
        case: (pictures[case], 0.0)
        for case, content in contents.items()
        if data.unit == "px" and case in pictures and _is_markups(content)
    }
    return picture_sizes(asked, data)


def _is_markups(content: Content) -> bool:
    """Whether its numbers are 3D Slicer's millimetres; Slicer does not write pixels."""
    return extension_of(content.file) not in (".csv", ".tsv") and content.unit != "voxels"


def _in_the_world(
    case: str,
    content: Content,
    size_mm: tuple[float, float] | None,
    shown_mm: tuple[float, float] | None,
    data: Data,
    notes: list[Note],
) -> Landmarks:
    scale = np.array([*(size_mm or (1.0, 1.0)), 1.0])
    silent = data.units == "voxels" and not content.says_unit
    if silent:
        what = "neither frame nor unit stated: pixels, as config.data.units says"
        notes.append(Note(content.file.name, what))
    if silent or content.unit == "voxels":
        if size_mm is not None and content.also_mm:
            _check_agreement(case, content, scale)
        return _scaled(content.points, scale if data.unit == "mm" else np.ones(3))
    # A picture has one frame, so a file need not state it.
    in_mm = in_lps(replace(content, frame=content.frame or "LPS"))
    if data.unit == "px" and _is_markups(content):
        if shown_mm in (None, (1.0, 1.0)):
            # Prediction writes such files, and Slicer shows a picture without a size so.
            what = "positions are taken as pixels (config.data.unit)"
            notes.append(Note(content.file.name, what))
            return in_mm
        assert shown_mm is not None
        size = f"{shown_mm[0]:g} x {shown_mm[1]:g} mm"
        if content.predicted:
            raise InputError(
                content.file,
                f"case {case!r}: a prediction, whose unit may be the pixel, while 3D Slicer shows "
                f"this picture in mm, with its pixels of {size}: write the points into a table "
                "with columns x_px and y_px",
            )
        what = f"positions are mm, and become pixels by the {size} that the picture states"
        notes.append(Note(content.file.name, what))
        return _scaled(in_mm, 1 / np.array([*shown_mm, 1.0]))
    if data.unit == "mm":
        return in_mm
    if size_mm is None:
        raise InputError(
            content.file,
            f"case {case!r}: positions are millimetres, but nobody states the pixel size of its "
            "picture: set config.data.pixel_size_mm or give the table a column pixel_size_mm; if "
            "they are pixels, call the columns x_px and y_px, or set config.data.units=voxels",
        )
    return _scaled(in_mm, 1 / scale)


def _scaled(points: Landmarks, scale: np.ndarray) -> Landmarks:
    return {name: None if xyz is None else xyz * scale for name, xyz in points.items()}


def _check_agreement(case: str, content: Content, scale: np.ndarray) -> None:
    """Raises InputError if a point's pixels and millimetres are different places."""
    for name, pixels in content.points.items():
        mm = content.also_mm.get(name)
        if pixels is None or mm is None or np.isnan([*pixels, *mm]).any():
            continue
        away = float(np.abs(mm / scale - pixels).max())
        if away > _SAME_PIXELS:
            raise InputError(
                content.file,
                f"case {case!r}: landmark {name!r} is at ({pixels[0]:g}, {pixels[1]:g}) px and at "
                f"({mm[0]:g}, {mm[1]:g}) mm, which is {away:.1f} px away with pixels of "
                f"{scale[0]:g} x {scale[1]:g} mm; is that size right?",
            )
