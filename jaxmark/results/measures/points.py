"""Predicted landmarks against the true ones: every point in `points.csv`, and figures."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core import metrics
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cases import PreparedCase
from jaxmark.data.landmarks import read_predicted, read_table
from jaxmark.results.measures.units import from_unit, in_unit
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_bytes, write_text_atomic

POINTS = "points.csv"

_PREDICTED = tuple(f"{axis}_predicted_lps_mm" for axis in "xyz")
_TRUE = tuple(f"{axis}_true_lps_mm" for axis in "xyz")
_STATED = ("score", "presence", "radius_mm", "state")
_COLUMNS = ("case", "landmark", *_PREDICTED, *_TRUE, "error_mm", *_STATED)


@dataclass(frozen=True)
class Points:
    """Predicted and true positions of K landmarks in N cases, LPS millimetres of each scanner.

    `truth_mm`, `predicted_mm` (N, K, 3); `present` (N, K) bool: annotated; `absent` (N, K) bool:
    known to be absent; `score` (N, K) of the method; `presence` (N, K) the stated probability, NaN
    for none; `radius_mm` (N, K) the stated radius, infinite for none. Truth is meaningless where
    not present. Raises ValueError for other shapes, for no points, and for a case or a landmark
    named twice.
    """

    cases: tuple[str, ...]
    landmarks: tuple[str, ...]
    truth_mm: np.ndarray
    predicted_mm: np.ndarray
    present: np.ndarray
    absent: np.ndarray
    score: np.ndarray
    presence: np.ndarray
    radius_mm: np.ndarray
    # Unit of all lengths here; "px" for pictures without a pixel size.
    unit: str = "mm"
    # (N, 2) size of pictures' pixels, between columns and between rows; None if one is unknown.
    pixel_mm: np.ndarray | None = None

    def __post_init__(self) -> None:
        table = (len(self.cases), len(self.landmarks))
        if 0 in table:
            raise ValueError("no cases or no landmarks to evaluate")
        for name, shape in (
            ("truth_mm", (*table, 3)),
            ("predicted_mm", (*table, 3)),
            *((name, table) for name in ("present", "absent", "score", "presence", "radius_mm")),
        ):
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} has shape {np.shape(getattr(self, name))}, not {shape}")
        for names in (self.cases, self.landmarks):
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if twice:
                raise ValueError(f"named more than once: {', '.join(twice)}")

    def error_mm(self) -> np.ndarray:
        """Radial error (N, K) mm, NaN where absent."""
        return metrics.radial_error_mm(self.truth_mm, self.predicted_mm, self.present)


def points_of(
    cases: Sequence[PreparedCase],
    landmarks: Sequence[str],
    predictions: Path,
    unit: str = "",
) -> Points:
    """The points of the table `predictions` with the landmarks of prepared cases.

    `unit` is that of points on pictures, "mm" or "px"; "" for scans.

    Raises InputError for predictions that lack a case, and for cases without any landmark.
    """
    if not any(case.present.any() for case in cases):
        raise InputError(predictions, "no case has landmarks to compare with: nothing to evaluate")
    table = read_predicted(predictions, unit) if unit else read_table(predictions)
    stated = read_stated(predictions, unit)
    sizes = [case.pixel_mm for case in cases]
    predicted = np.full((len(cases), len(landmarks), 3), np.nan)
    for row, case in zip(predicted, cases, strict=True):
        for k, name in enumerate(landmarks):
            position = table.get(case.name, {}).get(name)
            if position is None:
                problem = f"has no position of {name!r} in case {case.name!r}: run --mode=predict"
                raise InputError(predictions, problem)
            row[k] = position
    return Points(
        cases=tuple(case.name for case in cases),
        landmarks=tuple(landmarks),
        truth_mm=np.stack([case.landmarks_mm for case in cases]),
        predicted_mm=predicted,
        present=np.stack([case.present for case in cases]),
        unit=unit or "mm",
        pixel_mm=None if None in sizes else np.array(sizes),
        absent=np.stack([case.absent for case in cases]),
        **{
            column: np.array([[values[c.name, name] for name in landmarks] for c in cases])
            for column, values in stated.items()
        },
    )


def floors_of(
    train: Sequence[PreparedCase], cases: Sequence[PreparedCase]
) -> dict[str, np.ndarray]:
    """Baseline positions of prepared cases: the mean positions in the training cases `train`.

    "mean_position" is the mean in millimetres of the scanner. If cases were registered,
    "mean_position_registered" is the mean in the prepared grid, mapped to each scan by its
    registration.
    """
    mean_mm = _mean_position([case.landmarks_mm for case in train])
    mean_ijk = _mean_position([case.landmarks_ijk for case in train])
    registered = np.stack([apply_affine(case.ijk_to_lps, mean_ijk) for case in cases])
    floors = {"mean_position": mean_mm}
    if any(np.isfinite(case.quality) for case in cases):
        floors["mean_position_registered"] = registered
    return floors


def figures(
    points: Points,
    thresholds_mm: Sequence[float],
    floors: Mapping[str, np.ndarray],
    promised: float | None,
    other_thresholds: Sequence[float] = (),
) -> dict[str, Any]:
    """All figures of predictions, as `evaluate.evaluate` writes them; `floors` (N, K, 3).

    `thresholds` are in the points' unit, `other_thresholds` in the other unit of pictures.
    """

    def of(predicted_mm: np.ndarray) -> dict[str, Any]:
        return metrics.summarize(
            points.truth_mm, predicted_mm, points.present, thresholds_mm, points.landmarks
        )

    found = {
        **of(points.predicted_mm),
        "floors": {name: of(floor) for name, floor in floors.items()},
        "coverage": None,
        "presence": None,
    }
    if points.unit != "mm" or points.pixel_mm is not None:
        found["unit"] = points.unit
        found["also"] = _also(points, other_thresholds)
    if promised is not None and np.isfinite(points.radius_mm).any():
        kept = metrics.coverage(points.error_mm(), points.radius_mm, seed=0)
        found["coverage"] = {"nominal": promised, **kept}
    if promised is not None and np.isfinite(points.presence).any():
        found["presence"] = metrics.presence(points.presence, points.present, points.absent)
    return found


def _also(points: Points, thresholds: Sequence[float]) -> dict[str, Any] | None:
    """The main figures of pictures in their other unit; None if the pixel size is unknown."""
    if points.pixel_mm is None:
        return None
    unit = "px" if points.unit == "mm" else "mm"
    per_pixel = np.concatenate([points.pixel_mm, np.ones((len(points.cases), 1))], 1)[:, None]
    scale = 1 / per_pixel if unit == "px" else per_pixel
    errors = metrics.radial_error_mm(
        points.truth_mm * scale, points.predicted_mm * scale, points.present
    )
    known = errors[np.isfinite(errors)]
    return {
        "unit": unit,
        "mre": float(known.mean()) if known.size else None,
        "median": float(np.median(known)) if known.size else None,
        "sdr": metrics.success_rates(errors, thresholds),
    }


def write_points(points: Points, floors: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write `points.csv`: a row for each point, ending with `error_<floor>_mm` for each floor."""
    floor_errors = {
        name: metrics.radial_error_mm(points.truth_mm, floor, points.present)
        for name, floor in floors.items()
    }
    write_text_atomic(folder / POINTS, _to_csv(points, floor_errors))


# Column of a table of predictions -> value of an empty cell.
_EMPTY = {"score": np.nan, "presence": np.nan, "radius_mm": np.inf}


def read_stated(path: Path, unit: str = "") -> dict[str, dict[tuple[str, str], float]]:
    """Column -> (case, landmark) -> number, from a table that `read_table` has accepted."""
    with path.open(newline="", encoding="utf-8") as file:
        try:
            rows = list(csv.DictReader(file))
            return {
                column: {
                    (r["case"], r["landmark"]): float(r[name]) if r[name] else empty
                    for r in rows
                    for name in [in_unit(column, unit)]
                }
                for column, empty in _EMPTY.items()
            }
        except (KeyError, ValueError) as error:
            problem = f"a column is missing or no number ({error}); run --mode=predict again"
            raise InputError(path, problem) from error


def _mean_position(positions: Sequence[np.ndarray]) -> np.ndarray:
    """(K, 3) mean over cases; a landmark that no case has gets the middle of the others."""
    stacked = np.stack(positions)
    seen = ~np.isnan(stacked[..., :1])
    mean = np.where(seen, stacked, 0).sum(0) / np.maximum(seen.sum(0), 1)
    known = seen.any((0, 2))
    return np.where(known[:, None], mean, mean[known].mean(0))


def read_points(folder: Path) -> Points:
    """The points of `points.csv`, bit for bit; truth is NaN where a landmark is absent.

    Raises InputError for a missing or damaged file.
    """
    return _read_table(folder / POINTS)[0]


def read_floor_errors(folder: Path) -> dict[str, np.ndarray]:
    """Radial errors (N, K) mm of each floor that was written, NaN where absent.

    Raises InputError for a missing or damaged file.
    """
    return _read_table(folder / POINTS)[1]


def _to_csv(points: Points, floor_errors: Mapping[str, np.ndarray]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [*_COLUMNS, *(f"error_{name}_mm" for name in floor_errors)]
    writer.writerow([_named(column, points.unit) for column in columns])
    error = points.error_mm()
    for n, case in enumerate(points.cases):
        for k, landmark in enumerate(points.landmarks):
            here = points.present[n, k]
            # Python floats are written with the fewest digits that give the same float back.
            row = [case, landmark, *points.predicted_mm[n, k].tolist()]
            row += points.truth_mm[n, k].tolist() if here else [""] * 3
            row += [float(error[n, k]) if here else ""]
            stated = (points.score[n, k], points.presence[n, k], points.radius_mm[n, k])
            row += [float(value) if np.isfinite(value) else "" for value in stated]
            row += ["present" if here else "absent" if points.absent[n, k] else ""]
            row += [float(floor[n, k]) if here else "" for floor in floor_errors.values()]
            writer.writerow(row)
    return text.getvalue()


def _read_table(path: Path) -> tuple[Points, dict[str, np.ndarray]]:
    try:
        text = read_bytes(path).decode()
        header, *rows = [*csv.reader(io.StringIO(text, newline=""), strict=True)] or [[]]
        for unit in ("mm", "px"):
            known = [_named(column, unit) for column in _COLUMNS]
            if header[: len(known)] == known:
                points, floors = _parse([from_unit(column, unit) for column in header], rows)
                return replace(points, unit=unit), floors
        raise ValueError("its columns are not those of an evaluation")
    except InputError:
        raise
    except (ValueError, csv.Error) as error:
        raise InputError(path, f"is damaged: {error}") from error


def _named(column: str, unit: str) -> str:
    """A column's name for points in this unit."""
    return in_unit(column, unit).replace("_lps_px", "_px")


def _parse(header: list[str], rows: list[list[str]]) -> tuple[Points, dict[str, np.ndarray]]:
    """A table's rows as arrays; raises ValueError unless they are a full grid of points."""
    cases = tuple(dict.fromkeys(row[0] for row in rows if row))
    landmarks = tuple(dict.fromkeys(row[1] for row in rows if len(row) > 1))
    expected = [(case, landmark) for case in cases for landmark in landmarks]
    if [tuple(row[:2]) for row in rows] != expected:
        raise ValueError("not every case has a row for every landmark")
    if any(len(row) != len(header) for row in rows):
        raise ValueError("a row is not as long as the header")
    shape = (len(cases), len(landmarks))
    states = np.array([row[_COLUMNS.index("state")] for row in rows]).reshape(shape)
    if not np.isin(states, ("present", "absent", "")).all():
        raise ValueError("a state is not 'present', 'absent' or empty")
    # All columns behind the names are numbers, except this one.
    del (header := [*header])[_COLUMNS.index("state")]
    rows = [[*row[: _COLUMNS.index("state")], *row[_COLUMNS.index("state") + 1 :]] for row in rows]
    numbers = np.array([[float(cell) if cell else np.nan for cell in row[2:]] for row in rows])
    numbers = numbers.reshape(*shape, len(header) - 2)
    points = Points(
        cases=cases,
        landmarks=landmarks,
        predicted_mm=numbers[..., :3],
        truth_mm=numbers[..., 3:6],
        present=states == "present",
        absent=states == "absent",
        score=numbers[..., 7],
        presence=numbers[..., 8],
        radius_mm=np.where(np.isnan(numbers[..., 9]), np.inf, numbers[..., 9]),
    )
    floors = {
        name.removeprefix("error_").removesuffix("_mm"): numbers[..., column]
        for column, name in enumerate(header[2:])
        if column >= len(_COLUMNS) - 3
    }
    return points, floors
