"""A cohort on disk: its scans, their landmarks, and which case is in which split.

`layouts` describes where scans and landmarks are. Beside them may be

```
root/splits.json        {"train": ["case", ...], "val": [...], "test": [...]}
root/unpaired.csv       landmarks of people without scans, see `unpaired`
root/patients.csv       the patient of each case, see `folds`
```
"""

import contextlib
import json
import math
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine
from jaxmark.data.folds import divide, drawn, patients_of, shared_patients
from jaxmark.data.labels import Labels, choose_names, common_names, natural, nearest, read_labels
from jaxmark.data.layouts import Layout, find_layout
from jaxmark.data.notes import Note, first_few, summed_up
from jaxmark.data.scans import Scan
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_bytes

SPLITS = ("train", "val", "test")

# In voxels: files round positions to float32 or to some decimals.
_EDGE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class RawCase:
    """One case as it lies on disk; K landmarks in the order of the cohort."""

    name: str
    # An image file, or a folder of DICOM slices.
    scan: Path
    # (K, 3) float64 LPS mm, NaN where not present.
    landmarks_mm: np.ndarray
    # (K,) bool: has a position.
    present: np.ndarray
    # (K,) bool: the file states that this person lacks it. A landmark that is neither present nor
    # absent was not annotated.
    absent: np.ndarray
    # None: the case has no landmarks (it can be predicted, not evaluated).
    landmark_file: Path | None
    landmark_names: tuple[str, ...]
    # mm, of a picture, as the landmark table or the config states it; 0: neither does.
    pixel_size_mm: float = 0.0


@dataclass(frozen=True)
class Cohort:
    """All cases, and the splits they are in; a case without landmarks may be in none."""

    # The K landmarks' names.
    names: tuple[str, ...]
    cases: dict[str, RawCase]
    # Case names of "train", "val" and "test"; some may be empty.
    splits: dict[str, tuple[str, ...]]
    # What was guessed, repaired or left out, one line for each kind.
    notes: tuple[str, ...] = ()


def read_cohort(data: Data) -> Cohort:
    """Reads the landmarks and splits of the folder `data.root`; scans are found, not read.

    With `data.landmarks`, these are the landmarks: a case may lack some, and files may have others.
    Without, all files must have the same names; their order is that of the first case, or numeric
    where all names are numbers. Positions in voxels become millimetres by the case's scan.

    Without a `splits.json` splits are drawn; the layout's test cases with landmarks, if any, are
    then the test split. With `data.folds`, all cases but the test split's are divided into folds,
    and no test split is drawn.

    Raises:
      InputError: folders, files or cases are missing, doubled or contradict each other; a name is
        unknown; a case of train or val has no landmarks; no case of train has a landmark with a
        position, or val has cases but none of them has one; see also `find_layout`,
        `read_landmarks` and `read_labels`.
    """
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
        raise InputError("config.data.root", f"there is no folder {data.root!r}")
    layout = find_layout(root, data.suffix, data.series, planar=data.planar)
    scans = layout.images
    found = read_labels(layout.labels, data, scans)
    labels, notes = found.cases, [*layout.notes, *found.notes]
    if data.landmarks:
        names = choose_names(data.landmarks, labels, notes)
    else:
        names = common_names(root, labels)
    cases = {case: _case(case, scans[case], labels.get(case), names, data) for case in scans}
    splits_file = root / "splits.json"
    stated = _read_splits(splits_file, cases) if splits_file.exists() else None
    if data.folds:
        splits = _folded(root, data, cases, layout, stated, notes)
    elif stated is not None:
        splits = stated
    else:
        splits = _draw_splits(data, cases, layout.test)
        _note_patients(root, layout, splits, cases, notes)
    keep = math.ceil(data.train_fraction * len(splits["train"]))
    kept = set(sorted(splits["train"], key=partial(drawn, data.split_seed))[:keep])
    splits["train"] = tuple(case for case in splits["train"] if case in kept)
    _check_annotated(root, cases, splits)
    return Cohort(names, cases, splits, (*layout.passed_over, *summed_up(notes)))


def _check_annotated(
    root: Path, cases: dict[str, RawCase], splits: dict[str, tuple[str, ...]]
) -> None:
    """Refuses a train or val split without a single position, before anything is computed."""
    advice = {
        "train": 'place the landmarks (in 3D Slicer their status is then "defined")',
        "val": "place some, or name other cases in splits.json; without any case in val, training "
        "goes without validation",
    }
    for split, remedy in advice.items():
        members = [cases[name] for name in splits[split]]
        if not members or any(case.present.any() for case in members):
            continue
        missing = sum(int(case.absent.sum()) for case in members)
        points = sum(len(case.absent) for case in members)
        raise InputError(
            root,
            f"none of the {len(members)} cases of {split} has a landmark with a position: of "
            f"{points}, {missing} are stated to be missing and {points - missing} are preview, "
            f"undefined or not listed; {remedy}",
        )


def check_inside(case: RawCase, scan: Scan, unit: str = "mm") -> None:
    """Raises InputError for the first landmark that lies outside the voxels of its scan.

    The message has a hint if the point would be inside with x and y negated, or as voxel indices:
    then the file is probably in another frame, or in voxels. `unit` is that of the scan's world.
    """
    shape = np.array(scan.voxels.shape)
    for name, xyz, present in zip(
        case.landmark_names, case.landmarks_mm, case.present, strict=True
    ):
        if not present or is_inside(xyz, scan):
            continue
        corners = np.array(list(np.ndindex(2, 2, 2))) * shape - 0.5
        corners_mm = corners @ scan.ijk_to_lps[:3, :3].T + scan.ijk_to_lps[:3, 3]
        shown = slice(0, 2 if scan.planar else 3)
        extent = ", ".join(
            f"{axis} {low:.1f} to {high:.1f}"
            for axis, low, high in zip("xyz", corners_mm.min(0), corners_mm.max(0), strict=True)
            if axis in "xyz"[shown]
        )
        hint = ""
        if is_inside(xyz * [-1, -1, 1], scan):
            hint = "; with x and y negated it is inside: are these positions RAS, not LPS?"
        elif is_inside(apply_affine(scan.ijk_to_lps, xyz), scan):
            hint = "; as voxel indices it is inside: are these positions voxels, not millimetres?"
        # A picture's plane is z = 0: points placed in a scanner's world are not on it.
        off_plane = scan.planar and abs(xyz[2]) > 0.5
        if off_plane:
            hint = "; its z is not 0: where a slice lies in a scanner is not read"
        point = ", ".join(f"{v:.1f}" for v in (xyz if off_plane else xyz[shown]))
        place, what = ("", "picture") if scan.planar else ("LPS ", "scan")
        raise InputError(
            case.landmark_file or case.scan,
            f"case {case.name!r}: landmark {name!r} at {place}({point}) {unit} is outside of its "
            f"{what}, which extends over {extent} {unit}{hint}",
        )


def is_inside(xyz: np.ndarray, scan: Scan) -> bool:
    """Whether the point is in a voxel; a voxel reaches half an index beyond its centre."""
    ijk = np.linalg.solve(scan.ijk_to_lps[:3, :3], xyz - scan.ijk_to_lps[:3, 3])
    edge = 0.5 + _EDGE_TOLERANCE
    return bool(np.all((ijk >= -edge) & (ijk <= np.array(scan.voxels.shape) - 1 + edge)))


def _case(
    name: str, scan: Path, labels: Labels | None, names: tuple[str, ...], data: Data
) -> RawCase:
    given = labels.landmarks if labels else {}
    landmarks_mm = np.full((len(names), 3), np.nan)
    absent = np.zeros(len(names), bool)
    for k, landmark in enumerate(names):
        xyz = given.get(landmark)
        if xyz is not None:
            landmarks_mm[k] = xyz
        absent[k] = landmark in given and xyz is None
    present = np.isfinite(landmarks_mm).all(-1)
    file = labels.file if labels else None
    size_mm = labels.pixel_size_mm if labels else data.pixel_size_mm
    return RawCase(name, scan, landmarks_mm, present, absent, file, names, size_mm)


def _read_splits(file: Path, cases: dict[str, RawCase]) -> dict[str, tuple[str, ...]]:
    try:
        tree = json.loads(read_bytes(file))
    except (ValueError, RecursionError):
        raise InputError(file, "is not JSON") from None
    if not isinstance(tree, dict):
        raise InputError(
            file, 'is not an object like {"train": [...], "val": [...], "test": [...]}'
        )
    home: dict[str, str] = {}
    for split, members in tree.items():
        if split not in SPLITS:
            raise InputError(file, f"{reprlib.repr(split)} is not one of {', '.join(SPLITS)}")
        if not isinstance(members, list) or not all(isinstance(m, str) for m in members):
            raise InputError(file, f"{split} is not a list of case names")
        for case in members:
            if case not in cases:
                raise InputError(
                    file, f"{split}: case {reprlib.repr(case)} has no image{nearest(case, cases)}"
                )
            if case in home:
                raise InputError(file, f"case {case!r} is in {home[case]} and again in {split}")
            if split != "test" and cases[case].landmark_file is None:
                raise InputError(file, f"{split}: case {case!r} has no landmarks")
            home[case] = split
    if not home:
        raise InputError(file, "names no cases")
    return {split: tuple(tree.get(split, ())) for split in SPLITS}


def _folded(
    root: Path,
    data: Data,
    cases: dict[str, RawCase],
    layout: Layout,
    stated: dict[str, tuple[str, ...]] | None,
    notes: list[Note],
) -> dict[str, tuple[str, ...]]:
    """Splits of a cross-validation: one of the folds is val, the others are train.

    The test split is that of `splits.json` (`stated`), or else of the layout.
    """
    if stated is None:
        labelled = _labelled(cases)
        test = [case for case in labelled if case in layout.test]
        pool = [case for case in labelled if case not in layout.test]
    else:
        test, pool = [*stated["test"]], [*stated["train"], *stated["val"]]
    patients, sources = patients_of(root, layout.labels, cases)
    notes += sources
    both = shared_patients(patients, {"test": test, "folds": pool})
    what = "has cases in the test split and in the folds: errors on the test split are too small"
    notes += [Note(f"patient {patient!r}", what) for patient in both]
    folds = divide({case: patients[case] for case in pool}, data.folds, data.split_seed, root)
    others = [case for k, fold in enumerate(folds) if k != data.fold for case in fold]
    parts = {"train": others, "val": folds[data.fold], "test": test}
    return {split: tuple(sorted(parts[split], key=natural)) for split in SPLITS}


def _note_patients(
    root: Path,
    layout: Layout,
    splits: dict[str, tuple[str, ...]],
    cases: dict[str, RawCase],
    notes: list[Note],
) -> None:
    """Adds a note where drawn splits divide a patient's cases: old runs need these splits."""
    # The splits do not depend on the table of patients, so an error in it is no error here.
    with contextlib.suppress(InputError):
        patients, _ = patients_of(root, layout.labels, cases)
        if shared := shared_patients(patients, splits):
            what = (
                "cases in several of the drawn splits: errors may be too small (a splits.json, or "
                "--mode=crossval, keeps them together)"
            )
            notes.append(Note(f"patients {first_few(map(repr, shared))}", what))


def _labelled(cases: dict[str, RawCase]) -> list[str]:
    """Names of the cases with a landmark that is present or absent; the others teach nothing."""
    return [name for name, case in cases.items() if (case.present | case.absent).any()]


def _draw_splits(
    data: Data, cases: dict[str, RawCase], kept: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Seeded splits of the cases with landmarks; of three or more, at least one is for validation.

    The cases in `kept` are the test split; if none has landmarks, a test split is drawn too.
    """
    fractions = data.val_fraction, data.test_fraction
    if not (min(fractions) >= 0 and sum(fractions) < 1):
        raise InputError(
            "config.data", f"val_fraction and test_fraction are {fractions}: not >= 0 and sum < 1"
        )
    labelled = _labelled(cases)
    tested = [name for name in labelled if name in kept]
    order = sorted(set(labelled) - set(tested), key=partial(drawn, data.split_seed))
    if not order:
        others = " beside those for testing" if tested else ""
        empty = sum(case.landmark_file is not None for case in cases.values())
        unplaced = f": all points of its {empty} landmark files are preview or undefined" * bool(
            empty and not tested
        )
        raise InputError(
            "config.data.root", f"no case of {data.root}{others} has landmarks{unplaced}"
        )

    val = max(round(data.val_fraction * len(order)), int(len(order) >= 3))
    # Rounding up twice must not leave training without a case.
    val = min(val, len(order) - 1)
    test = 0 if tested else min(round(data.test_fraction * len(order)), len(order) - 1 - val)
    parts = {
        "val": order[:val],
        "test": tested + order[val : val + test],
        "train": order[val + test :],
    }
    return {split: tuple(sorted(parts[split], key=natural)) for split in SPLITS}
