"""Files of predictions: points for 3D Slicer, tables, what a model learned of each landmark."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.data.landmarks import write_fcsv, write_mrk_json, write_table
from jaxmark.inference.calibration import Calibration
from jaxmark.inference.model import COLUMNS, ScanLandmarks
from jaxmark.inference.predictor import Found
from jaxmark.methods.method import Method, Params
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json, write_json

# In the folder of a split's predictions.
LEARNED = "learned.json"
# The last column of a table of predictions: words.
DOUBTS = "doubts"
# Of the points in 3D Slicer: seen on bright vessels and on dark brain.
COLOR = (0.30, 1.0, 0.42)


def write_markups(case: ScanLandmarks, folder: Path, *, fcsv: bool) -> None:
    """`<case>.mrk.json` and, if asked for, `<case>.fcsv`, which 3D Slicer opens."""
    points, words, hidden = case.points(), case.descriptions(), case.hidden
    markups = folder / f"{case.name}.mrk.json"
    write_mrk_json(markups, points, descriptions=words, hidden=hidden, color=COLOR)
    if fcsv:
        write_fcsv(folder / f"{case.name}.fcsv", points, descriptions=words, hidden=hidden)


def write_predictions(path: Path, cases: Iterable[ScanLandmarks]) -> None:
    """One table of any number of cases."""
    listed = list(cases)
    columns = {column: {case.name: case.columns()[column] for case in listed} for column in COLUMNS}
    words = {
        case.name: doubts_by_landmark(case.landmarks, case.doubts, case.untrained)
        for case in listed
    }
    table: dict[str, Mapping[str, Mapping[str, Any]]] = {**columns, DOUBTS: words}
    write_table(path, {case.name: case.points() for case in listed}, table)


def doubts_by_landmark(
    landmarks: Sequence[str], doubts: Sequence[str], untrained: Sequence[str]
) -> dict[str, str | None]:
    """Landmark -> what is doubtful about it: the scan's doubts, and that it was never trained."""
    return {
        name: "; ".join([*["no training case has it"] * (name in untrained), *doubts]) or None
        for name in landmarks
    }


def write_learned(method: Method, params: Params, landmarks: Sequence[str], folder: Path) -> str:
    """What the method has learned of each landmark, as `learned.json`; a line for a person.

    Neither is there for a method that learns no such thing.
    """
    learned = {name: np.asarray(v, float) for name, v in method.learned(params).items()}
    if not learned:
        return ""
    write_json(
        folder / LEARNED,
        {
            "schema_version": 1,
            "landmarks": list(landmarks),
            "learned": {name: values.tolist() for name, values in learned.items()},
        },
    )
    return "learned: " + ", ".join(
        f"{name} {values.min():.3g} ({landmarks[int(values.argmin())]}) to {values.max():.3g} "
        f"({landmarks[int(values.argmax())]})"
        for name, values in learned.items()
    )


def read_learned(folder: Path, landmarks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Number -> landmark -> value, as `write_learned` wrote it; nothing where there is no file.

    Raises InputError where it is damaged or of other landmarks.
    """
    path = folder / LEARNED
    if not path.exists():
        return {}
    tree = read_json(path, 1)
    if tree.get("landmarks") != list(landmarks):
        raise InputError(path, "is of other landmarks: run --mode=predict again")
    try:
        return {
            str(name): dict(zip(landmarks, map(float, values), strict=True))
            for name, values in tree["learned"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error


def write_split(
    found: Sequence[Found],
    landmarks: Sequence[str],
    decoder: str,
    calibrations: Mapping[str, Calibration],
    folder: Path,
    untrained: Sequence[str] = (),
) -> None:
    """Predictions of a cohort's split.

    A `<case>.mrk.json` each, with the decoder asked for, and for every decoder, by which there is a
    calibration, one table, `landmarks_<decoder>.csv`. `untrained` landmarks are hidden.
    """
    for name, calibration in calibrations.items():
        cases = [
            ScanLandmarks.of(f, landmarks, name, calibration, untrained=untrained) for f in found
        ]
        if name == decoder:
            for case in cases:
                write_markups(case, folder, fcsv=False)
        write_predictions(folder / f"landmarks_{name}.csv", cases)
