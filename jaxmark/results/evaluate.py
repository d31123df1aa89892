"""Predictions against the truth: tables of measurements, and figures in `summary.json`."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.anatomy import Scheme
from jaxmark.data.cases import PreparedCase
from jaxmark.methods.method import SEGMENTATION
from jaxmark.results.measures import attributes, segmentation
from jaxmark.results.measures.points import (
    Points,
    figures,
    floors_of,
    points_of,
    write_points,
)
from jaxmark.results.measures.units import from_unit, in_unit
from jaxmark.system.files import read_json, write_json
from jaxmark.system.messages import counted

SCHEMA_VERSION = 2
SUMMARY = "summary.json"


def evaluate(
    points: Points,
    *,
    thresholds_mm: Sequence[float],
    floors: Mapping[str, np.ndarray],
    folder: Path,
    promised: float | None = None,
    more: Mapping[str, Any] | None = None,
    other_thresholds: Sequence[float] = (),
) -> dict[str, Any]:
    """Score predictions and the baselines `floors`; write both to `folder`, return the summary.

    `floors`: name, such as "mean_position", -> positions that need no network, (N, K, 3) or (K, 3)
    LPS mm. A method whose errors are not far below them has learned nothing.

    `points.csv` has one row for each point: the columns of `Points`, then one `error_<floor>_mm`
    for each floor. `summary.json` has the figures of `metrics.summarize`, and the same for each
    floor under `floors`; then `coverage` and `presence` of that module, None unless `promised`, the
    coverage of the radii, is given; then `more` figures by name. For pictures it also has `unit`
    and, under `also`, the main figures in the other unit, with `other_thresholds`. If the unit is
    the pixel, names in files end in _px.

    Raises ValueError for a position that is not finite at a present landmark.
    """
    positions = {
        name: np.broadcast_to(floor, points.truth_mm.shape) for name, floor in floors.items()
    }
    summary = {
        "schema_version": SCHEMA_VERSION,
        **figures(points, thresholds_mm, positions, promised, other_thresholds),
        **(more or {}),
    }
    write_points(points, positions, folder)
    write_json(folder / SUMMARY, in_unit(summary, points.unit))
    return summary


def evaluate_cases(
    train: Sequence[PreparedCase],
    cases: Sequence[PreparedCase],
    *,
    landmarks: Sequence[str],
    thresholds_mm: Sequence[float],
    predictions: Path,
    folder: Path,
    promised: float | None = None,
    scheme: Scheme | None = None,
    tells: Collection[str] = (),
    workers: int = 1,
    unit: str = "",
    other_thresholds: Sequence[float] = (),
) -> dict[str, Any]:
    """Score the table `predictions` of prepared cases against their landmarks; see `evaluate`.

    The floors are those of `floors_of`. `tells` names predictions of segments of the `scheme`
    (`Method.tells`); their files beside the table are scored as well, see `measures`, by `workers`
    processes (0: one for each CPU core). `unit` is that of points on pictures; "" for scans.

    Raises InputError for predictions that lack a case, and for cases without any landmark.
    """
    points = points_of(cases, landmarks, predictions, unit)
    more = {}
    if scheme is not None and tells:
        more = evaluate_segments(cases, scheme, tells, predictions.parent, folder, workers)
    return evaluate(
        points,
        thresholds_mm=thresholds_mm,
        floors=floors_of(train, cases),
        folder=folder,
        promised=promised,
        more=more,
        other_thresholds=other_thresholds,
    )


def evaluate_segments(
    cases: Sequence[PreparedCase],
    scheme: Scheme,
    tells: Collection[str],
    predictions: Path,
    folder: Path,
    workers: int,
) -> dict[str, Any]:
    """Figures of segments, and their tables; None for what has no prediction or no truth."""
    maps = None
    if SEGMENTATION in tells:
        maps = segmentation.measure(cases, scheme, predictions, workers)
    if maps is not None:
        segmentation.write_maps(maps, folder)
    told = attributes.measure(cases, scheme, predictions)
    if told:
        attributes.write_attributes(told, folder)
    return {
        "segmentation": segmentation.figures(maps) if maps else None,
        "attributes": attributes.figures(told, scheme) if told else None,
    }


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one line, for a terminal."""
    floors = ", ".join(
        f"{name.replace('_', ' ')} {floor['mre_mm']:.3f}"
        for name, floor in summary["floors"].items()
    )
    promise = ""
    if summary["coverage"] is not None:
        kept = summary["coverage"]
        promise = (
            f"; {100 * kept['share']:.1f} % within the radii stated for {100 * kept['nominal']:g} %"
        )
    seen = f"{counted(summary['n_points'], 'point')} of {counted(summary['n_scans'], 'scan')}"
    unit, also = unit_of(summary), summary.get("also")
    other = f", {also['mre']:.3f} {also['unit']} ({also['median']:.3f})" if also else ""
    return (
        f"MRE {summary['mre_mm']:.3f} {unit} (median {summary['median_mm']:.3f}){other} over "
        f"{seen}; floors: {floors} {unit}{promise}"
    )


def segments_headline(summary: Mapping[str, Any]) -> str:
    """The figures of segments in one line."""
    parts = []
    if (maps := summary["segmentation"]) is not None:
        overlap, tree = maps["dice"]["mean"], maps["tree"]["cldice"]["mean"]
        if overlap is not None:
            parts.append(f"Dice {overlap:.3f} over {counted(maps['n_present'], 'segment')}")
        if tree is not None:
            parts.append(f"clDice of all segments together {tree:.3f}")
    told = summary["attributes"] or {}
    for kind, what in (("segments", "segments"), ("landmarks", "bifurcations")):
        if (found := told.get(kind)) and (share := found["all"]["accuracy"]["share"]) is not None:
            parts.append(f"{what} told rightly {100 * share:.1f} %")
    return "; ".join(parts) or "no case has a label map or attributes to compare with"


def read_summary(folder: Path) -> dict[str, Any]:
    """The figures that `evaluate` wrote. Raises InputError for a missing or damaged file."""
    summary = read_json(folder / SUMMARY, SCHEMA_VERSION)
    return from_unit(summary, unit_of(summary))


def unit_of(summary: Mapping[str, Any]) -> str:
    """The unit of the lengths in a summary."""
    return str(summary.get("unit", "mm"))
