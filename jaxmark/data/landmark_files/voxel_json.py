"""One JSON file of all cases: case -> landmark -> [x, y, z], voxel indices of the case's image.

nnLandmark calls it `all_landmarks_voxel.json`; indices count from 0, x fastest. Beside it lies
`spacing.json`, by which nnLandmark makes millimetres of them, and which jaxmark compares with the
images: case -> {"image_spacing": [x, y, z], "annotation_spacing": [x, y, z]}, either of them null;
a number is that of all three axes. (MIC-DKFZ/nnLandmark, readme.md and
evaluate_landmark_predictions.py.)
"""

from pathlib import Path

import numpy as np

from jaxmark.data.landmark_files.content import (
    Content,
    Landmarks,
    add,
    check_case,
    json_tree,
    short,
    three_numbers,
)
from jaxmark.data.notes import Note
from jaxmark.system.errors import InputError

_FORM = 'an object like {"case": {"landmark": [x, y, z]}}'
SPACING = "spacing.json"
_SPACINGS = ("image_spacing", "annotation_spacing")
_SPACING_FORM = 'an object like {"case": {"image_spacing": [x, y, z]}}'


def read(path: Path) -> dict[str, Content]:
    """Case -> landmarks in voxels; null in place of a position is an absent landmark.

    Raises:
      InputError: the file or its `spacing.json` cannot be read or is not of this form; a name or a
        number is one that other landmark files may not have either.
    """
    spacings = _spacings(path.parent / SPACING)
    tree = json_tree(path)
    if not isinstance(tree, dict):
        raise InputError(path, f"is not {_FORM}")
    cases = {}
    for case, points in tree.items():
        check_case(path, case)
        if not isinstance(points, dict):
            raise InputError(path, f"case {case!r} is not an object of landmarks: need {_FORM}")
        landmarks: Landmarks = {}
        for name, values in points.items():
            where = f"case {case!r}"
            place = None
            if values is not None:
                field = f"{where}: landmark {name[:100]!r}"
                place = np.array(three_numbers(path, field, values), np.float64)
            add(path, where, landmarks, name.strip(), place)
        cases[case] = Content(
            path,
            landmarks,
            unit="voxels",
            spacings_mm=spacings.get(case, {}),
            notes=(Note(path.name, "positions are voxel indices of the images, counted from 0"),),
        )
    if not any(content.points for content in cases.values()):
        raise InputError(path, "has no landmarks")
    return cases


def _spacings(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Case -> what `spacing.json` states of it, by its words; nothing without the file."""
    if not path.exists():
        return {}
    tree = json_tree(path)
    if not isinstance(tree, dict):
        raise InputError(path, f"is not {_SPACING_FORM}")
    cases: dict[str, dict[str, np.ndarray]] = {}
    for case, stated in tree.items():
        where = f"case {short(case)}"
        if isinstance(stated, list):
            stated = {_SPACINGS[0]: stated}
        if not isinstance(stated, dict):
            raise InputError(path, f"{where} is not an object of spacings: need {_SPACING_FORM}")
        cases[case] = {}
        for key in _SPACINGS:
            if (values := stated.get(key)) is None:
                continue
            values = values if isinstance(values, list) else [values] * 3
            spacing = np.array(three_numbers(path, f"{where}: {key}", values), np.float64)
            if not (spacing > 0).all():
                raise InputError(path, f"{where}: {key} is not positive")
            cases[case][key] = spacing
    return cases
