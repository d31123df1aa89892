"""Files of predictions: points and segments for 3D Slicer, tables, and learned numbers."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmark.core.anatomy import Scheme
from jaxmark.core.grids import Plane
from jaxmark.data.label_map_files import (
    label_map_file,
    slicer_file,
    write_dataset,
    write_slicer_segmentation,
)
from jaxmark.data.landmarks import write_fcsv, write_mrk_json, write_table
from jaxmark.data.scans import LABEL_MAPS_FOLDER, write_scan
from jaxmark.inference.calibration import Calibration
from jaxmark.inference.model import COLUMNS, UNTRAINED, ScanLandmarks
from jaxmark.inference.predictor import Found
from jaxmark.inference.segments import ScanSegments
from jaxmark.methods.method import SEGMENTATION, Method, Params
from jaxmark.results.figures.pictures import segment_colors
from jaxmark.results.measures.tables import write_rows
from jaxmark.results.measures.units import in_unit
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json, write_json

# File in the folder of a split's predictions.
LEARNED = "learned.json"
# The last columns of a table of predictions; they hold words.
HIDDEN, DOUBTS = "hidden", "doubts"
ATTRIBUTES_VERSION = 1
# The table of all cases.
ATTRIBUTES = "attributes.csv"
# Colour of the points in 3D Slicer: visible on bright vessels and on dark brain.
COLOR = (0.30, 1.0, 0.42)


def write_markups(case: ScanLandmarks, folder: Path, *, fcsv: bool) -> None:
    """Write `<case>.mrk.json` and, with `fcsv`, `<case>.fcsv`, which 3D Slicer opens."""
    points, words, hidden = case.points(), case.descriptions(), case.hidden
    markups = folder / f"{case.name}.mrk.json"
    write_mrk_json(markups, points, descriptions=words, hidden=hidden, color=COLOR)
    if fcsv:
        write_fcsv(folder / f"{case.name}.fcsv", points, descriptions=words, hidden=hidden)


def attributes_file(folder: Path, case: str) -> Path:
    """The file that says which segments a case has."""
    return folder / f"{case}.attributes.json"


def segment_files(folder: Path, case: str, tells: Collection[str]) -> tuple[Path, ...]:
    """All files that `write_segments` writes for a method that tells this (`Method.tells`)."""
    if not tells:
        return ()
    maps = (slicer_file(folder, case), label_map_file(folder, case))
    return (*(maps if SEGMENTATION in tells else ()), attributes_file(folder, case))


def write_segments(
    case: str, segments: ScanSegments, folder: Path, doubts: Sequence[str] = ()
) -> None:
    """Write a case's label map on its scan's own grid, and its attributes; see `segment_files`.

    The map has two files: one with names and colours for 3D Slicer; one that nnU-Net, other tools
    and jaxmark itself read.
    """
    names = [segment.name for segment in segments.scheme.segments]
    labels, grid = segments.labels, segments.grid
    if labels is not None:
        colors = segment_colors(len(names))
        write_slicer_segmentation(slicer_file(folder, case), labels, grid, names, colors)
        write_scan(label_map_file(folder, case), labels, grid.ijk_to_lps)
    write_json(attributes_file(folder, case), attributes_of(case, segments, doubts))


def attributes_of(case: str, segments: ScanSegments, doubts: Sequence[str]) -> dict[str, Any]:
    """Probabilities of a case's segments and of forks at its landmarks, as JSON types.

    null for what the method does not predict.
    """
    scheme, sizes = segments.scheme, segments.sizes
    present, forks = _shortest(segments.present), _shortest(segments.forks)
    return {
        "schema_version": ATTRIBUTES_VERSION,
        "case": case,
        "variant": segments.variant,
        "doubts": list(doubts),
        "segments": {
            segment.name: {
                "label": 1 + s,
                "present": present and present[s],
                "volume_mm3": None if sizes is None else float(sizes.volume_mm3[s]),
                "mean_radius_mm": None if sizes is None else _finite(sizes.mean_radius_mm[s]),
            }
            for s, segment in enumerate(scheme.segments)
        },
        "landmarks": {
            name: {"fork": forks and forks[k]} for k, name in enumerate(scheme.landmarks)
        },
    }


def write_split_segments(
    cases: Sequence[str], scheme: Scheme, tells: Collection[str], folder: Path
) -> None:
    """Write the table of `write_segments_table` for a split, beside its label maps.

    It is not beside the landmarks, whose folder may become another cohort's input.
    """
    write_segments_table(cases, scheme, tells, folder, folder / LABEL_MAPS_FOLDER / ATTRIBUTES)


def write_segments_table(
    cases: Sequence[str], scheme: Scheme, tells: Collection[str], folder: Path, table: Path
) -> None:
    """Collect the attributes that `write_segments` wrote into `folder` in one table.

    It has one row for each case: the variant in words, and each segment's probability. For methods
    with label maps also write `dataset.json`, which names the labels.
    """
    names = [segment.name for segment in scheme.segments]
    rows = []
    for case in cases:
        stated = read_predicted_attributes(attributes_file(folder, case), scheme)
        words = [stated.variant, "; ".join(stated.doubts)]
        present = [""] * len(names) if stated.present is None else stated.present.tolist()
        rows.append([case, *words, *present])
    write_rows(table, ["case", "variant", DOUBTS, *names], rows)
    if SEGMENTATION in tells:
        write_dataset(folder, names, len(cases))


def _shortest(probabilities: np.ndarray | None) -> list[float] | None:
    """The numbers with the fewest digits that keep the network's precision."""
    return None if probabilities is None else [float(str(share)) for share in probabilities]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class StatedAttributes(NamedTuple):
    """The content of a file of attributes; None for what the method did not predict."""

    present: np.ndarray | None  # (S,) probability of each segment
    forks: np.ndarray | None  # (K,) probability that arteries fork at each landmark
    variant: str
    doubts: tuple[str, ...]


def read_predicted_attributes(path: Path, scheme: Scheme) -> StatedAttributes:
    """A case's attributes as `write_segments` wrote them.

    Raises:
      InputError: the file is missing, damaged, or of another scheme.
    """
    tree = read_json(path, ATTRIBUTES_VERSION)
    try:
        parts = (
            ("segments", [segment.name for segment in scheme.segments], "present"),
            ("landmarks", list(scheme.landmarks), "fork"),
        )
        found: list[np.ndarray | None] = []
        for part, names, key in parts:
            if list(tree[part]) != names:
                raise ValueError(f"other {part}")
            stated = [tree[part][name][key] for name in names]
            if all(value is None for value in stated):
                found.append(None)
                continue
            values = np.array([float(value) for value in stated])
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"{part}: {key} is no probability")
            found.append(values)
        words = [tree["variant"], *tree["doubts"]]
        if not all(isinstance(word, str) for word in words):
            raise ValueError("a value that is no text")
        return StatedAttributes(found[0], found[1], words[0], tuple(words[1:]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error


def write_predictions(path: Path, cases: Iterable[ScanLandmarks]) -> None:
    """Write one table of any number of cases."""
    listed = list(cases)
    unit = listed[0].unit if listed else "mm"
    columns = {
        in_unit(column, unit): {case.name: case.columns()[column] for case in listed}
        for column in (listed[0].columns() if listed else COLUMNS)
    }
    words = {
        case.name: doubts_by_landmark(case.landmarks, case.doubts, case.untrained)
        for case in listed
    }
    hidden: dict[str, dict[str, str | None]] = {
        case.name: {**dict.fromkeys(case.landmarks), **case.why_hidden()} for case in listed
    }
    table: dict[str, Mapping[str, Mapping[str, Any]]] = {
        **columns,
        HIDDEN: hidden,
        DOUBTS: words,
    }
    planes = {case.name: case.plane for case in listed if case.plane is not None}
    write_table(path, {case.name: case.points() for case in listed}, table, planes)


def doubts_by_landmark(
    landmarks: Sequence[str], doubts: Sequence[str], untrained: Sequence[str]
) -> dict[str, str | None]:
    """Landmark -> its doubts: those of the scan, and that no training case has the landmark."""
    return {
        name: "; ".join([*[UNTRAINED] * (name in untrained), *doubts]) or None for name in landmarks
    }


def write_learned(method: Method, params: Params, landmarks: Sequence[str], folder: Path) -> str:
    """Write numbers that the method learned of each landmark to `learned.json`; return a summary.

    Without such numbers there is no file, and the summary is empty.
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
    """Number -> landmark -> value, as `write_learned` wrote it; empty if there is no file.

    Raises InputError if it is damaged or of other landmarks.
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
    planes: Mapping[str, Plane] | None = None,
) -> None:
    """Write the predictions of a cohort's split, by all decoders with a calibration.

    `planes`: case -> plane of its picture. `untrained` landmarks are hidden. See `write_cases`.
    """
    cases = {
        name: cases_of(found, landmarks, name, calibration, untrained, planes)
        for name, calibration in calibrations.items()
    }
    write_cases(cases, decoder, folder)


def cases_of(
    found: Sequence[Found],
    landmarks: Sequence[str],
    decoder: str,
    calibration: Calibration,
    untrained: Sequence[str] = (),
    planes: Mapping[str, Plane] | None = None,
) -> list[ScanLandmarks]:
    """Predictions of prepared cases with their calibration."""
    known = planes or {}
    return [
        ScanLandmarks.of(
            f, landmarks, decoder, calibration, untrained=untrained, plane=known.get(f.name)
        )
        for f in found
    ]


def write_cases(cases: Mapping[str, Sequence[ScanLandmarks]], decoder: str, folder: Path) -> None:
    """Write landmarks of prepared cases, decoder -> cases.

    Each case gets `<case>.mrk.json` by `decoder`; every decoder gets one table,
    `landmarks_<decoder>.csv`.
    """
    for name, listed in cases.items():
        if name == decoder:
            for case in listed:
                write_markups(case, folder, fcsv=False)
        write_predictions(folder / f"landmarks_{name}.csv", listed)
