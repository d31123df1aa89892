"""One JSON file of all cases: case -> landmark -> [x, y, z], voxel indices of the case's image.

nnLandmark calls it `all_landmarks_voxel.json`; indices count from 0, x fastest.
"""

from pathlib import Path

import numpy as np

from jaxmark.data.landmark_files.content import (
    Content,
    Landmarks,
    add,
    check_case,
    json_tree,
    three_numbers,
)
from jaxmark.data.notes import Note
from jaxmark.system.errors import InputError

_FORM = 'an object like {"case": {"landmark": [x, y, z]}}'


def read(path: Path) -> dict[str, Content]:
    """Case -> landmarks in voxels; null in place of a position is an absent landmark.

    Raises:
      InputError: the file cannot be read or is not of this form; a name or a number is one that
        other landmark files may not have either.
    """
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
            notes=(Note(path.name, "positions are voxel indices of the images, counted from 0"),),
        )
    if not any(content.points for content in cases.values()):
        raise InputError(path, "has no landmarks")
    return cases
