"""Chooses among several landmark files of one case, as prediction writes them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxmark.data.landmarks import ALL_EXTENSIONS, Content, extension_of, in_lps, read_content
from jaxmark.data.notes import Note
from jaxmark.system.errors import InputError

# Formats keep positions with some decimals.
_SAME_MM = 0.01
_MARKUPS = (".mrk.json", ".mkp.json", ".json")


def choose(
    files: Sequence[Path], case: str, kind: str = "file", *, planar: bool = False
) -> tuple[Path, list[Note]]:
    """The file of a case to read, and notes about the others.

    Of files with equal landmarks any is taken. Beside a `.mrk.json`, other files that jaxmark's
    prediction wrote are older: users correct points in 3D Slicer, which saves the `.mrk.json`.

    Args:
      kind: the name of the files in the message.
      planar: their points lie on a picture.

    Raises:
      InputError: the files differ, or one of them cannot be read.
    """
    first, *others = sorted(files, key=lambda file: ALL_EXTENSIONS.index(extension_of(file)))
    notes = []
    for other in others:
        away = _difference(first, other, case, planar)
        if away is None:
            one, two = sorted([first, other])
            raise InputError(two, f"case {case!r} has a second {kind}, {one.name}")
        if away <= _SAME_MM:
            what = "taken; other landmark files of the case say the same"
            notes.append(Note(first.name, what))
        else:
            how = f" (up to {away:.3g} mm)" if np.isfinite(away) else " (other landmarks)"
            what = "taken; jaxmark's predictions beside it differ"
            notes.append(Note(first.name + how, what))
    return first, notes


def _difference(first: Path, other: Path, case: str, planar: bool) -> float | None:
    """The largest distance between the files, in mm; None: it cannot be told which is right."""
    try:
        one, two = (read_content(file, case, planar=planar) for file in (first, other))
        if planar:
            # Markups state millimetres, of which a picture without a pixel size has one a pixel.
            one, two = (
                replace(content, points=content.also_mm or content.points, frame="", unit="")
                for content in (one, two)
            )
    except InputError:
        return None
    away = _apart(one, two)
    older = two.predicted and extension_of(first) in _MARKUPS
    return away if away <= _SAME_MM or older else None


def _apart(one: Content, two: Content) -> float:
    """The largest distance of two landmarks of one name; infinite where their states differ."""
    if (bool(one.frame), one.unit == "voxels") != (bool(two.frame), two.unit == "voxels"):
        return np.inf
    left, right = (in_lps(content) if content.frame else content.points for content in (one, two))
    unplaced = np.full(3, np.nan)
    largest = 0.0
    for name in {**left, **right}:
        # What a file leaves out was not annotated.
        a, b = left.get(name, unplaced), right.get(name, unplaced)
        if a is None or b is None:
            away = 0.0 if a is b else np.inf
        elif np.isnan(a).all() and np.isnan(b).all():
            away = 0.0
        else:
            away = math.dist(a, b)
        largest = max(largest, np.inf if np.isnan(away) else away)
    return largest
