"""The cases that a report shows, with their images."""

from collections.abc import Iterable, Mapping, Sequence
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
    """A prepared case to show with its landmarks; arrays as for `pictures.overlay`."""

    name: str
    image: np.ndarray
    spacing_mm: Sequence[float]
    truth_ijk: np.ndarray
    predicted_ijk: np.ndarray
    origin_mm: np.ndarray | None = None
    label: str = ""  # such as "best"
    doubts: tuple[str, ...] = ()  # one line each
    ijk_to_lps: np.ndarray | None = None  # (4, 4): voxels of `image` -> LPS mm of the scan
    # (X, Y, Z) uint8: the predicted label map, 0, or 1 + index into the segments' names
    labels: np.ndarray | None = None
    segments: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelCase:
    """A prepared case to show with its true and predicted label maps, both on its grid."""

    title: str
    image: np.ndarray
    spacing_mm: Sequence[float]
    truth: np.ndarray  # (X, Y, Z) uint8: 0, or 1 + index into the segments' names
    predicted: np.ndarray
    segments: tuple[str, ...]


def choose_cases(points: Points) -> list[tuple[str, str]]:
    """Labels and names of the best, the median and the worst case by mean error; no case twice.

    Cases without a present landmark are left out; the list may be empty.
    """
    rows = zip(points.error_mm(), points.cases, strict=True)
    return _best_to_worst((np.nanmean(r), case) for r, case in rows if np.isfinite(r).any())


# Number of further cases that are shown because they are doubtful.
_MOST_DOUBTFUL = 2


def doubtful_cases(
    points: Points, doubts: Mapping[str, Sequence[str]], others: Sequence[str]
) -> list[tuple[str, tuple[str, ...]]]:
    """At most two cases beside the `others`, with what is doubtful about each.

    Cases with `doubts` of their preparation come first, then cases with the largest mean radius; if
    no radius is stated, with the lowest mean score. They may have no annotated landmark.
    """
    large = {
        case: float(row[np.isfinite(row)].mean())
        for case, row in zip(points.cases, points.radius_mm, strict=True)
        if np.isfinite(row).any()
    }
    low = {
        case: float(row.mean())
        for case, row in zip(points.cases, points.score, strict=True)
        if np.isfinite(row).all()
    }
    unsure = [
        (case, f"large stated radii: mean {large[case]:.2f} {points.unit}")
        for case in sorted(large, key=lambda case: -large[case])
    ] or [
        (case, f"low scores: mean {low[case]:.3g}")
        for case in sorted(low, key=lambda case: low[case])
    ]
    found: dict[str, tuple[str, ...]] = {c: tuple(doubts[c]) for c in points.cases if c in doubts}
    for case, why in unsure:
        found.setdefault(case, (why,))
    return [(case, why) for case, why in found.items() if case not in others][:_MOST_DOUBTFUL]


def _best_to_worst(scored: Iterable[tuple[float, str]]) -> list[tuple[str, str]]:
    """Labels and names, from pairs of a number that is small for good cases, and a name."""
    ranked = [case for _, case in sorted(scored)]
    if len(ranked) < 2:
        return [("only", case) for case in ranked]
    chosen = [("best", ranked[0]), ("worst", ranked[-1])]
    if len(ranked) > 2:
        chosen.insert(1, ("median", ranked[(len(ranked) - 1) // 2]))
    return chosen


def overlay_cases(
    points: Points,
    cases: Sequence[PreparedCase],
    doubts: Mapping[str, Sequence[str]],
    predictions: Path | None = None,
    segments: Sequence[str] = (),
) -> list[OverlayCase]:
    """The cases of `choose_cases` and of `doubtful_cases`, with their prepared images.

    `predictions`: a folder with label maps of these `segments`, to show as well.

    Raises:
      InputError: a prepared image or a label map is missing or damaged.
    """
    by_name = {case.name: case for case in cases}
    chosen = [(label, name, tuple(doubts.get(name, ()))) for label, name in choose_cases(points)]
    others = [name for _, name, _ in chosen]
    chosen += [("doubtful", name, why) for name, why in doubtful_cases(points, doubts, others)]
    overlays = []
    for label, name, why in chosen:
        case, row = by_name[name], points.cases.index(name)
        image, place = case.volume.overview()
        to_ijk = np.linalg.inv(place)
        labels, own = None, case.segments
        if predictions is not None and own is not None:
            file = label_map_file(predictions, name)
            predicted = predicted_labels(file, own.grid, len(segments))
            labels = nearest_labels(predicted, own.grid, Grid(image.shape, place))
        overlays.append(
            OverlayCase(
                name=name,
                image=image,
                spacing_mm=np.linalg.norm(place[:3, :3], axis=0).tolist(),
                truth_ijk=apply_affine(to_ijk, case.landmarks_mm),
                # Predictions without a true position are not drawn.
                predicted_ijk=np.where(
                    case.present[:, None], apply_affine(to_ijk, points.predicted_mm[row]), np.nan
                ),
                origin_mm=place[:3, 3],
                label=label,
                doubts=why,
                ijk_to_lps=place,
                labels=labels,
                segments=tuple(segments),
            )
        )
    return overlays


def title_of(case: OverlayCase, points: Points) -> str:
    """A shown case's label, name and mean error."""
    label = f"{case.label[:1].upper()}{case.label[1:]} case: " if case.label else ""
    title = label + case.name
    row = points.error_mm()[points.cases.index(case.name)]
    if np.isfinite(row).any():
        title += f", mean error {np.nanmean(row):.2f} {points.unit}"
    return title


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
