"""The annotations of a cohort with their mistakes, for `--mode=check`.

`cohort.read_cohort` refuses cases that cannot be learned from; this module records them.
"""

import dataclasses
from pathlib import Path

import numpy as np

from jaxmark.config import Data
from jaxmark.data.labels import choose_names, natural, read_labels
from jaxmark.data.layouts import find_layout
from jaxmark.data.notes import first_few, summed_up
from jaxmark.system.errors import InputError


@dataclasses.dataclass(frozen=True)
class Annotated:
    """N cases with image and landmark file, K landmarks; and names of cases that lack one."""

    names: tuple[str, ...]
    cases: tuple[str, ...]
    scans: tuple[Path, ...]
    files: tuple[Path, ...]
    # (N, K, 3) LPS mm, or of a picture's world; NaN where there is no position.
    points_mm: np.ndarray
    # (N, K) bool: the file states that this person lacks it.
    absent: np.ndarray
    # (N,) for pictures, as the landmark table or the config states it; 0: neither does.
    pixel_size_mm: np.ndarray
    without_landmarks: tuple[str, ...] = ()
    # Case -> its landmark file.
    without_scan: tuple[tuple[str, Path], ...] = ()
    notes: tuple[str, ...] = ()


def read_annotated(data: Data) -> Annotated:
    """Reads the landmarks of the folder `data.root`; scans are found, not read.

    Names are `data.landmarks`, or else the names in any file: cases may lack some.

    Raises:
      InputError: the folder has no layout, or a landmark file cannot be read: see `find_layout` and
        `read_labels`; no case has both an image and landmarks.
    """
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
        raise InputError("config.data.root", f"there is no folder {data.root!r}")
    layout = find_layout(root, data.suffix, data.series, planar=data.planar)
    strays: dict[str, Path] = {}
    found = read_labels(layout.labels, data, layout.images, strays)
    labels, notes = found.cases, [*layout.notes, *found.notes]
    cases = sorted(labels, key=natural)
    if not cases:
        there = [("images", layout.images), ("landmarks", strays)]
        named = [f"{what}: {first_few(map(repr, some)) or 'none'}" for what, some in there]
        problem = "no case has both an image and landmarks"
        raise InputError(root, "; ".join([problem, *named]))
    if data.landmarks:
        names = choose_names(data.landmarks, labels, notes)
    else:
        names = tuple(dict.fromkeys(name for case in cases for name in labels[case].landmarks))
        names = tuple(sorted(names, key=int)) if all(map(str.isdecimal, names)) else names
    points = np.full((len(cases), len(names), 3), np.nan)
    absent = np.zeros(points.shape[:2], bool)
    for i, case in enumerate(cases):
        given = labels[case].landmarks
        for k, name in enumerate(names):
            if (xyz := given.get(name)) is not None:
                points[i, k] = xyz
            absent[i, k] = name in given and given[name] is None
    return Annotated(
        names=names,
        cases=tuple(cases),
        scans=tuple(layout.images[case] for case in cases),
        files=tuple(labels[case].file for case in cases),
        points_mm=points,
        absent=absent,
        pixel_size_mm=np.array([labels[case].pixel_size_mm for case in cases]),
        without_landmarks=tuple(case for case in layout.images if case not in labels),
        without_scan=tuple(sorted(strays.items())),
        notes=(*layout.passed_over, *summed_up(notes)),
    )
