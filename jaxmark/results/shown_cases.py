"""Which cases a report shows, and what is drawn of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmark.core.geometry import apply_affine
from jaxmark.core.grids import Grid, nearest_labels
from jaxmark.data.cases import PreparedCase
from jaxmark.data.label_map_files import label_map_file
from jaxmark.results.measures.points import Points
from jaxmark.results.measures.segmentation import Maps, predicted_labels, true_labels


@dataclass(frozen=True)
class OverlayCase:
    """A prepared case to be shown with its landmarks; arrays as `pictures.overlay` takes them."""

    name: str
    image: np.ndarray
    spacing_mm: Sequence[float]
    truth_ijk: np.ndarray
    predicted_ijk: np.ndarray
    origin_mm: np.ndarray | None = None


@dataclass(frozen=True)
class LabelCase:
    """A prepared case to be shown with its label maps, true and predicted, both on its grid."""

    title: str
    image: np.ndarray
    spacing_mm: Sequence[float]
    truth: np.ndarray  # (X, Y, Z) uint8: 0, or 1 + index into the segments' names
    predicted: np.ndarray
    segments: tuple[str, ...]


def choose_cases(points: Points) -> list[tuple[str, str]]:
    """Labels and names of the best, the median and the worst case by mean error; no case twice.

    Cases without a present landmark are left out, so there may be none.
    """
    rows = zip(points.error_mm(), points.cases, strict=True)
    return _best_to_worst((np.nanmean(r), case) for r, case in rows if np.isfinite(r).any())


def _best_to_worst(scored: Iterable[tuple[float, str]]) -> list[tuple[str, str]]:
    """Of numbers that are small for good cases, and the cases' names."""
    ranked = [case for _, case in sorted(scored)]
    if len(ranked) < 2:
        return [("only", case) for case in ranked]
    chosen = [("best", ranked[0]), ("worst", ranked[-1])]
    if len(ranked) > 2:
        chosen.insert(1, ("median", ranked[(len(ranked) - 1) // 2]))
    return chosen


def overlay_cases(points: Points, cases: Sequence[PreparedCase]) -> list[OverlayCase]:
    """Pictures for the cases of `choose_cases`, from their prepared images."""
    by_name = {case.name: case for case in cases}
    overlays = []
    for _, name in choose_cases(points):
        case, row = by_name[name], points.cases.index(name)
        image, place = case.volume.overview()
        to_ijk = np.linalg.inv(place)
        overlays.append(
            OverlayCase(
                name=name,
                image=image,
                spacing_mm=np.linalg.norm(place[:3, :3], axis=0).tolist(),
                truth_ijk=apply_affine(to_ijk, case.landmarks_mm),
                # What has no truth is not shown beside it.
                predicted_ijk=np.where(
                    case.present[:, None], apply_affine(to_ijk, points.predicted_mm[row]), np.nan
                ),
                origin_mm=place[:3, 3],
            )
        )
    return overlays


def label_cases(maps: Maps, cases: Sequence[PreparedCase], predictions: Path) -> list[LabelCase]:
    """The worst, the median and the best case by mean Dice, with label maps of their scans.

    Raises:
      InputError: a label map is missing or damaged.
    """
    by_name = {case.name: case for case in cases}
    dice = maps.of_present("dice")
    scored = [
        (-float(np.nanmean(row)), case)
        for row, case in zip(dice, maps.cases, strict=True)
        if np.isfinite(row).any()
    ]
    found = []
    for label, name in reversed(_best_to_worst(scored)):
        case, mean = by_name[name], -dict((case, score) for score, case in scored)[name]
        segments = case.segments
        if segments is None:
            continue
        image = case.image()
        prepared = Grid(image.shape, case.ijk_to_lps)
        file = label_map_file(predictions, name)
        truth = true_labels(segments)
        predicted = predicted_labels(file, segments.grid, len(maps.segments))
        found.append(
            LabelCase(
                title=f"{label[:1].upper()}{label[1:]} case: {name}, mean Dice {mean:.3f}",
                image=image,
                spacing_mm=np.linalg.norm(case.ijk_to_lps[:3, :3], axis=0).tolist(),
                truth=nearest_labels(truth, segments.grid, prepared),
                predicted=nearest_labels(predicted, segments.grid, prepared),
                segments=maps.segments,
            )
        )
    return found
