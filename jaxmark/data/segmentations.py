"""The segments in a cohort's files: label maps, the table of their labels, and attributes.

Only methods that learn from segments read them.

```
root/segmentations/<case>.nii.gz   or as `layouts` says
root/segmentations/labels.csv      or another table of `label_tables`
root/attributes.csv                which segments each person has; optional, see `attributes`
```
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmark.config import Data
from jaxmark.core.anatomy import COW19, Segment
from jaxmark.core.grids import Grid
from jaxmark.data.attributes import read_attributes
from jaxmark.data.cohort import SPLITS, Cohort
from jaxmark.data.formats.safeguards import Content, distances_mm, rounded
from jaxmark.data.label_tables import Label, find_label_tables, read_label_tables
from jaxmark.data.labels import nearest
from jaxmark.data.layouts import find_label_maps
from jaxmark.data.notes import Note, first_few, summed_up
from jaxmark.data.scans import read_voxels
from jaxmark.system.errors import InputError
from jaxmark.system.messages import counted

# Corners of a scan and its label map may be this share of a voxel apart: headers round.
_MAX_APART = 0.1
_MAX_NAMED = 5
_PLACES = "segmentations/<case>.nii.gz, nnU-Net's labelsTr/, BIDS' derivatives/**/*_dseg.nii.gz"
_NO_TABLE = (
    "write segmentations/labels.csv (columns label, name, and optionally ends and may_be_missing), "
    "or nnU-Net's dataset.json"
)


@dataclass(frozen=True)
class RawSegments:
    """One case's label map and attributes; S segments in the order of the cohort's."""

    label_map: Path | None
    # (S,) int8: stated to be present (1), absent (-1), or not stated (0). None: no attributes.
    stated: np.ndarray | None


@dataclass(frozen=True)
class CohortSegments:
    """The S segments of a cohort, and each case's label map and attributes."""

    segments: tuple[Segment, ...]
    # (S,) the value of each segment in label maps; empty where there are no maps.
    values: tuple[int, ...]
    # Other values that label maps may have, taken as background.
    background: tuple[int, ...]
    # The cases of all splits.
    cases: dict[str, RawSegments]
    # What was guessed or left out, one line for each kind.
    notes: tuple[str, ...] = ()


def read_segments(cohort: Cohort, data: Data, *, maps: bool) -> CohortSegments:
    """Reads the label table and attributes of a cohort's folder; label maps are found, not read.

    If the table names all segments of `COW19`, these are the segments, in its order, and other
    names are background. Else the segments are the table's, in the order of their values. Where the
    table does not state ends or may_be_missing, a segment with a name of `COW19` gets them from
    there. `data.segments` chooses among the segments; the others are background.

    Args:
      maps: every training case needs a label map; else a label map or attributes.

    Raises:
      InputError: a training case lacks what it needs; label maps have no table; a file belongs to
        no case, or its case has two; an end is no landmark; see also `find_label_maps`,
        `read_label_tables` and `read_attributes`.
    """
    root = Path(data.root).expanduser()
    label_maps, passed_over = find_label_maps(root, cohort.cases)
    for case, path in label_maps.items():
        if case not in cohort.cases:
            problem = f"case {case!r} has a label map but no image{nearest(case, cohort.cases)}"
            raise InputError(path, problem)
    attributes = root / "attributes.csv"
    given = attributes.exists()
    if not label_maps and (maps or not given):
        why = "which" if maps else "and no attributes.csv: one of them"
        raise InputError(root, f"has no label maps ({_PLACES}), {why} the method learns from")
    notes: list[Note] = []
    segments, values, background = _segments(root, cohort.names, bool(label_maps), notes)
    stated: dict[str, np.ndarray] = {}
    if given:
        names = [segment.name for segment in segments]
        stated, said = read_attributes(attributes, names, cohort.cases)
        notes += said
    elif not any(segment.may_be_missing for segment in segments):
        what = (
            "says of no segment that it may be missing, so one without voxels counts as not known"
        )
        remedy = "labels.csv has a column may_be_missing; or write attributes.csv"
        notes.append(Note("label table", f"{what} ({remedy})"))
    else:
        what = "a segment that may be missing and has no voxels counts as absent"
        notes.append(Note("no attributes.csv", what))
    order = _chosen(data.segments, segments)
    background += tuple(v for number, v in enumerate(values) if number not in order)
    segments = tuple(segments[number] for number in order)
    values = tuple(values[number] for number in order) if values else ()
    stated = {name: states[order] for name, states in stated.items()}
    cases = {
        name: RawSegments(label_maps.get(name), stated.get(name))
        for split in SPLITS
        for name in cohort.splits[split]
    }
    _check_training(root, {name: cases[name] for name in cohort.splits["train"]}, maps)
    return CohortSegments(segments, values, background, cases, (*passed_over, *summed_up(notes)))


def _segments(
    root: Path, landmarks: Sequence[str], maps: bool, notes: list[Note]
) -> tuple[tuple[Segment, ...], tuple[int, ...], tuple[int, ...]]:
    """The segments, their values in label maps, and the values that are background."""
    tables = find_label_tables(root)
    if not tables and not maps and tuple(landmarks) == COW19.landmarks:
        return COW19.segments, (), ()
    if not tables:
        has = "label maps" if maps else "attributes.csv"
        raise InputError(root, f"has {has}, but no table of the segments: {_NO_TABLE}")
    table = tables[0]
    given = read_label_tables(tables)
    labels = {label.name: label for label in given if not label.is_background}
    known = {segment.name: segment for segment in COW19.segments}
    lacking = [name for name in known if name not in labels]
    chosen = [labels[name] for name in known] if not lacking else [*labels.values()]
    if 0 < len(lacking) < len(known) and tuple(landmarks) == COW19.landmarks:
        few = ", ".join(map(repr, lacking[:_MAX_NAMED])) + " and more" * (len(lacking) > _MAX_NAMED)
        what = "segments are the table's, which lacks some of the Circle of Willis"
        notes.append(Note(f"{table.name} (no {few})", what))
    others = [label for label in given if label not in chosen and label.value]
    what = "no segments, taken as background in label maps"
    notes += [Note(f"{label.name!r} of {table.name}", what) for label in others]
    segments = tuple(_segment(table, label, known, landmarks) for label in chosen)
    values = tuple(label.value for label in chosen)
    return segments, values if maps else (), tuple(label.value for label in others)


def _chosen(names: Sequence[str], segments: Sequence[Segment]) -> list[int]:
    """The indices of the segments with these names; all indices without names."""
    known = {segment.name: number for number, segment in enumerate(segments)}
    for name in names:
        if name not in known:
            problem = f"{name!r} is no segment of the label table{nearest(name, known)}"
            raise InputError("config.data.segments", problem)
        if names.count(name) > 1:
            raise InputError("config.data.segments", f"names {name!r} {names.count(name)} times")
    return [known[name] for name in names or known]


def _segment(
    table: Path, label: Label, known: dict[str, Segment], landmarks: Sequence[str]
) -> Segment:
    like = known.get(label.name, Segment(label.name, ()))
    for end in label.ends or ():
        if end not in landmarks:
            problem = f"label {label.value} ({label.name!r}) ends at {end!r}, which is no landmark"
            raise InputError(table, problem + nearest(end, landmarks))
    ends = label.ends
    if ends is None:
        ends = tuple(end for end in like.ends if end in landmarks)
    missing = like.may_be_missing if label.may_be_missing is None else label.may_be_missing
    return Segment(label.name, ends, missing)


def _check_training(root: Path, train: dict[str, RawSegments], maps: bool) -> None:
    """Raises InputError if training cases have no targets: nothing is learned from them."""
    lacking = [
        name
        for name, case in train.items()
        if case.label_map is None and (maps or case.stated is None or not case.stated.any())
    ]
    if not lacking:
        return
    missing = "label map" if maps else "label map and no known attribute"
    count = f"{len(lacking)} of the {len(train)} training cases"
    raise InputError(
        root,
        f"{count} {'has' if len(lacking) == 1 else 'have'} no {missing}: {first_few(lacking)}; add "
        "them, or leave these cases out of train in splits.json",
    )


# Label maps


def read_label_map(
    path: Path, scan: Path, grid: Grid, cohort: CohortSegments
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(X, Y, Z) uint8 on the scan's grid: 0, or 1 + index of the segment; and each one's voxels.

    Args:
      scan, grid: the case's scan and its voxels.

    Raises:
      InputError: the map is on another grid than the scan; a voxel is not a whole number, or a
        value that the table does not have; see also `read_voxels`.
    """
    content = read_voxels(path)
    check_grid(path, f"its scan {scan.name}", content, grid)
    voxels = _whole(path, content.voxels)
    counts = _count(path, voxels, {0, *cohort.values, *cohort.background})
    index = np.zeros(max(0, *cohort.values, *cohort.background) + 1, np.uint8)
    index[list(cohort.values)] = 1 + np.arange(len(cohort.values))
    return index[voxels], tuple(counts.get(value, 0) for value in cohort.values)


def check_grid(path: Path, scan: str, content: Content, wanted: Grid) -> None:
    """Raises InputError if `content` of `path` is not on the scan's grid; `scan` names the scan."""
    found, apart_mm = Grid(content.voxels.shape, content.ijk_to_lps), 0.0
    if found.shape == wanted.shape:
        _, apart_mm = distances_mm(wanted.shape, found.ijk_to_lps, wanted.ijk_to_lps)
        if apart_mm <= _MAX_APART * np.linalg.norm(wanted.ijk_to_lps[:3, :3], axis=0).min():
            return
    apart = f"; their corners lie up to {apart_mm:.2f} mm apart" * (apart_mm > 0)
    both = f"{_described(found)}, the scan has {_described(wanted)}"
    problem = f"is on another grid than {scan}: it has {both}{apart}"
    raise InputError(path, problem)


def _described(grid: Grid) -> str:
    size = " x ".join(map(str, grid.shape))
    spacing = " x ".join(f"{v:.3g}" for v in np.linalg.norm(grid.ijk_to_lps[:3, :3], axis=0))
    return f"{size} voxels of {spacing} mm from LPS {rounded(grid.ijk_to_lps[:3, 3])} mm"


def _whole(path: Path, voxels: np.ndarray) -> np.ndarray:
    """The voxels as integers; InputError for other numbers, which come from interpolation."""
    if voxels.dtype.kind in "iu":
        return voxels
    fine = np.isfinite(voxels) & (np.rint(voxels) == voxels) & (np.abs(voxels) < 2**31)
    if not fine.all():
        first = tuple(int(i) for i in np.argwhere(~fine)[0])
        count = int((~fine).sum())
        raise InputError(
            path,
            f"{count} voxels are no labels: the first, {voxels[first]:g} at {first}, is not a "
            "whole number (label maps are to be resampled by nearest neighbour)",
        )
    return voxels.astype(np.int64)


def _count(path: Path, voxels: np.ndarray, known: Collection[int]) -> dict[int, int]:
    """Value -> number of its voxels; InputError for values that are not in `known`."""
    values, counts = np.unique(voxels, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    strange = [
        f"{value} ({counted(found[value], 'voxel')})" for value in found if value not in known
    ]
    if strange:
        more = f" and {len(strange) - _MAX_NAMED} more" * (len(strange) > _MAX_NAMED)
        what = "the value" if len(strange) == 1 else "values"
        listed = ", ".join(strange[:_MAX_NAMED])
        problem = f"holds {what} {listed}{more}, which no label table names"
        raise InputError(path, problem)
    return found
