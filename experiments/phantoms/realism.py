"""How like real people the phantom's people are: its shapes and vessels against real cohorts.

python -m experiments.phantoms.realism --landmarks=cow_landmarks.npz --segments=cow_segments.csv

The landmarks are described in `real_landmarks.py`; the segments are a table with `vessel`,
`length_mm` and `mean_radius_mm` of the same people. Real and synthetic landmarks are turned onto a
common mean in the same way.
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from absl import app, flags
from scipy.stats import ks_2samp
from tqdm import tqdm

from experiments.phantoms.real_landmarks import mirrored_names, read_real
from jaxmark.core.anatomy import COW19
from jaxmark.core.shapes import align_shapes
from jaxmark.data.phantoms.cow.anatomy import Anatomy
from jaxmark.data.phantoms.cow.cohort import CirclePhantom, make_case
from jaxmark.data.phantoms.cow.shape import VERTEBRAL, draw_anatomy
from jaxmark.data.phantoms.cow.vessels import draw_vessels
from jaxmark.data.phantoms.lumen import Vessel

_LANDMARKS = flags.DEFINE_string("landmarks", None, "Real landmarks (.npz).", required=True)
_SEGMENTS = flags.DEFINE_string("segments", None, "Real lengths and radii (.csv).", required=True)
_PEOPLE = flags.DEFINE_integer("people", 500, "Synthetic people.")
_SCANS = flags.DEFINE_integer("scans", 5, "Synthetic scans of each modality, at full size.")

_DISTANCES = (
    *(("ICA/OA", "ICA/PCoA"), ("ICA/PCoA", "ICA terminus"), ("ICA terminus", "M1/M2")),
    *(("ICA terminus", "A1/A2"), ("ICA/PCoA", "P1/P2A"), ("BA tip", "P1/P2A")),
    *(("ICA terminus", "BA tip"), ("M1/M2", "BA tip"), (VERTEBRAL, "BA tip")),
)
# The data's vessels that are segments of the scheme, too.
_SEGMENTS_OF = {"M1": "M1", "A1": "A1", "AComm": "ACoA", "BA": "BA", "P1": "P1", "PComm": "PCoA"}


def main(_: list[str]) -> None:
    """Print all tables, in Markdown."""
    shapes, names = read_real(Path(_LANDMARKS.value))
    people = [draw_anatomy(np.random.default_rng([0, i])) for i in range(_PEOPLE.value)]
    real, _maps = align_shapes(shapes, mirrored_names(names))
    drawn, _maps = align_shapes(
        np.stack([pick(person, names) for person in people]), mirrored_names(names)
    )
    print_positions(names, real, drawn)
    print_distances(names, real, drawn)
    trees = [draw_vessels(np.random.default_rng([1, i]), p) for i, p in enumerate(tqdm(people))]
    print_vessels(read_segments(Path(_SEGMENTS.value)), trees)
    print_intensities(_SCANS.value)


def pick(person: Anatomy, names: list[str]) -> np.ndarray:
    """(14, 3) mm in the data's order; NaN at landmarks whose segments the person lacks.

    The data has no landmark where there is no bifurcation.
    """
    seen = COW19.landmark_attributes(person.segment_present)
    points = np.where(seen[:, None], person.landmarks_mm, np.nan)
    known = dict(zip(COW19.landmarks, points, strict=True)) | {VERTEBRAL: person.vertebral_mm}
    return np.stack([known[name] for name in names])


def print_positions(names: list[str], real: np.ndarray, drawn: np.ndarray) -> None:
    """Means and spreads per landmark: medians and half of the central 68 %, against outliers."""
    print("| landmark | mean, real (mm) | mean, phantom | SD, real (mm) | SD, phantom |")
    print("|---|---|---|---|---|")
    for k, name in enumerate(names):
        if name.endswith(" R"):
            continue
        cells = []
        for shapes in (real, drawn):
            low, middle, high = np.nanpercentile(shapes[:, k], [16, 50, 84], axis=0)
            cells.append((middle, (high - low) / 2))
        (m1, s1), (m2, s2) = cells
        print(f"| {name} | {triple(m1)} | {triple(m2)} | {triple(s1)} | {triple(s2)} |")


def print_distances(names: list[str], real: np.ndarray, drawn: np.ndarray) -> None:
    """Distances between landmarks, which no alignment touches."""
    print("\n| distance (mm), both sides | real: 10, 50, 90 % | phantom | Kolmogorov-Smirnov |")
    print("|---|---|---|---|")
    across = [(name, name) for name in ("ICA terminus", "A1/A2", "M1/M2", "P1/P2A")]
    for a, b in (*_DISTANCES, *across):
        values = [distances(names, shapes, a, b) for shapes in (real, drawn)]
        statistic = ks_2samp(values[0], values[1]).statistic
        label = f"{a} R to L" if a == b else f"{a} to {b}"
        print(f"| {label} | {spread(values[0])} | {spread(values[1])} | {statistic:.2f} |")


def distances(names: list[str], shapes: np.ndarray, a: str, b: str) -> np.ndarray:
    """All people's, right and left; across the midline if `a` is `b`."""
    found = []
    for side, other in (("R", "L"),) if a == b else (("R", "R"), ("L", "L")):
        first, second = (
            shapes[:, names.index(n if n in names else f"{n} {s}")]
            for n, s in ((a, side), (b, other))
        )
        found.append(np.linalg.norm(first - second, axis=-1))
    values = np.concatenate(found)
    return values[~np.isnan(values)]


def print_vessels(real: dict[str, list[tuple[float, float]]], trees: list[list[Vessel]]) -> None:
    """Lengths along the centreline and mean radii of the scheme's segments."""
    drawn = defaultdict(list)
    for tree in trees:
        for vessel in tree:
            if vessel.segment >= 0:
                steps = np.linalg.norm(np.diff(vessel.points_mm, axis=0), axis=1)
                name = COW19.segments[vessel.segment].name.split(" ")[0]
                drawn[name].append((steps.sum(), vessel.radii_mm.mean()))
    print("\n| vessel | length (mm), real: 10, 50, 90 % | phantom | radius (mm), real | phantom |")
    print("|---|---|---|---|---|")
    for theirs, ours in _SEGMENTS_OF.items():
        a, b = np.array(real[theirs]), np.array(drawn[ours])
        columns = (spread(a[:, 0]), spread(b[:, 0]), spread(a[:, 1], 2), spread(b[:, 1], 2))
        print(f"| {ours} | {' | '.join(columns)} |")


def print_intensities(scans: int) -> None:
    """What the voxels of the vessels and of the rest look like, at the paper's size."""
    print("\n| modality | vessels over 1.3 mm radius | under 0.8 mm | background | ratio |")
    print("|---|---|---|---|---|")
    for modality in ("MRA", "CTA"):
        wide, thin, rest = [], [], []
        for number in tqdm(range(scans), desc=modality):
            case = make_case(CirclePhantom(modality=modality), number)
            inverse = np.linalg.inv(case.ijk_to_lps)
            for vessel in case.vessels:
                ijk = np.rint(vessel.points_mm @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
                inside = np.all((ijk >= 0) & (ijk < case.voxels.shape), axis=1)
                values = case.voxels[tuple(ijk[inside].T)]
                wide.append(values[vessel.radii_mm[inside] > 1.3])
                thin.append(values[vessel.radii_mm[inside] < 0.8])
            rest.append(case.voxels[::4, ::4, ::4][case.lumen.segment[::4, ::4, ::4] == 0])
        a, b, c = (np.concatenate(part) for part in (wide, thin, rest))
        print(
            f"| {modality} | {spread(a, 0)} | {spread(b, 0)} | {spread(c, 0)} | "
            f"{np.median(a) / np.median(c):.1f} |"
        )


def read_segments(file: Path) -> dict[str, list[tuple[float, float]]]:
    """Vessel without its side -> (length, mean radius) in mm."""
    found = defaultdict(list)
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            name = row["vessel"].removesuffix("_R").removesuffix("_L")
            found[name].append((float(row["length_mm"]), float(row["mean_radius_mm"])))
    return found


def spread(values: np.ndarray, digits: int = 1) -> str:
    """10, 50 and 90 %."""
    return ", ".join(f"{v:.{digits}f}" for v in np.percentile(values, [10, 50, 90]))


def triple(values: np.ndarray) -> str:
    """x, y, z."""
    return ", ".join(f"{v:.1f}" for v in values)


if __name__ == "__main__":
    app.run(main)
