"""How like real arteries the phantom's are: courses, sides and forks, before and after mending.

python -m experiments.phantoms.real_vessels --landmarks=landmarks.npz --segments=segments.csv
python -m experiments.phantoms.real_vessels --label_maps=FOLDER

The first compares with lengths and radii of people (see `realism.py`), the second with label maps
`*labels.nii.gz` of boxes around the circle, whose values are those of the TopCoW challenge: 1 BA,
2 and 3 PCA, 4 and 6 ICA, 5 and 7 MCA, 8 and 9 PCoA, 10 ACoA, 11 and 12 ACA, right and left. The
phantom's label maps are measured as the real ones are. "Scans" is what the cohort's scans show,
"label maps" what `draw_labels` draws, whose vessels are lively.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from scipy.ndimage import distance_transform_edt, gaussian_filter1d
from scipy.stats import ks_2samp
from skimage.graph import MCP_Geometric

from experiments.phantoms.real_landmarks import read_real
from jaxmark.core.anatomy import COW19
from jaxmark.data.phantoms.cow.anatomy import BEYOND
from jaxmark.data.phantoms.cow.shape import VERTEBRAL, draw_anatomy
from jaxmark.data.phantoms.cow.vessels import draw_vessels
from jaxmark.data.phantoms.curves import arc_lengths
from jaxmark.data.phantoms.grids import centred_grid
from jaxmark.data.phantoms.lumen import Vessel, rasterize
from jaxmark.data.scans import read_scan

_LANDMARKS = flags.DEFINE_string("landmarks", None, "Real landmarks (.npz).")
_SEGMENTS = flags.DEFINE_string("segments", None, "Real lengths and radii (.csv).")
_LABEL_MAPS = flags.DEFINE_string("label_maps", None, "Folder of real label maps.")
_PEOPLE = flags.DEFINE_integer("people", 300, "Synthetic people; a tenth of it for label maps.")

Samples = Mapping[str, Sequence[float]]

# The data's vessel -> the scheme's segment, and the landmarks at its ends.
_ENDS = {
    "M1": ("M1", "ICA terminus @", "M1/M2 @"),
    "A1": ("A1", "ICA terminus @", "A1/A2 @"),
    "P1": ("P1", "BA tip", "P1/P2A @"),
    "PComm": ("PCoA", "ICA/PCoA @", "P1/P2A @"),
    "AComm": ("ACoA", "A1/A2 R", "A1/A2 L"),
    "BA": ("BA", VERTEBRAL, "BA tip"),
}
_PAIRED = {"A1": "A1", "M1": "M1", "P1": "P1", "PComm": "PCoA", "VA": "VA", "ICA": "ICA"}
_SHORTEST_MM = 3.0  # of a chord whose tortuosity is looked at

# Value in a real label map -> name; and the phantom's segment of each.
_LABELS = {
    **{1: "BA", 2: "PCA R", 3: "PCA L", 4: "ICA R", 5: "MCA R", 6: "ICA L", 7: "MCA L"},
    **{8: "PCoA R", 9: "PCoA L", 10: "ACoA", 11: "ACA R", 12: "ACA L"},
}
_PARTS = {
    **{"C5": "ICA", "C6": "ICA", "C7": "ICA", "ICA": "ICA", "M1": "MCA", "A1": "ACA", "A2": "ACA"},
    **{"P1": "PCA", "P2A": "PCA", "PCoA": "PCoA", "ACoA": "ACoA", "BA": "BA"},
}
_BOX_MM, _VOXEL_MM = (42.0, 37.0, 22.0), 0.5
_TOUCH_MM, _SIPHON_MM = 2.6, 17.0


def main(_: list[str]) -> None:
    """Print the tables that there is data for, in Markdown, the worst differences first."""
    if _LANDMARKS.value and _SEGMENTS.value:
        real = read_cohort(Path(_LANDMARKS.value), Path(_SEGMENTS.value))
        print_table(real, *(cohort(_PEOPLE.value, lively) for lively in (False, True)))
    if _LABEL_MAPS.value:
        files = sorted(Path(_LABEL_MAPS.value).glob("*labels.nii.gz"))
        real = gathered(measured(*read_map(file)) for file in files)
        drawn = [
            gathered(measured(*draw_map(n, lively)) for n in range(_PEOPLE.value // 10))
            for lively in (False, True)
        ]
        print_table(real, *drawn)


def print_table(real: Samples, scans: Samples, maps: Samples) -> None:
    """10, 50 and 90 % of each measure, and the distances of the distributions from the real one."""
    print("| measure | n | real: 10, 50, 90 % | scans | label maps | KS scans | KS label maps |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for name, values in real.items():
        distances = [float(ks_2samp(values, drawn[name]).statistic) for drawn in (scans, maps)]
        cells = [spread(sample) for sample in (values, scans[name], maps[name])]
        line = f"| {name} | {len(values)} | {' | '.join(cells)} |"
        rows.append((-distances[0], f"{line} {distances[0]:.2f} | {distances[1]:.2f} |"))
    print("\n".join(line for _, line in sorted(rows)), end="\n\n")


def spread(values: Sequence[float]) -> str:
    """10, 50 and 90 %."""
    return ", ".join(f"{v:.2f}" for v in np.percentile(values, [10, 50, 90]))


def gathered(people: Iterable[Samples]) -> Samples:
    """The measures of all people together."""
    found: dict[str, list[float]] = defaultdict(list)
    for person in people:
        for name, values in person.items():
            found[name] += values
    return found


def read_cohort(landmarks: Path, segments: Path) -> Samples:
    """Measures of real people: a table of vessels, and their landmarks."""
    with np.load(landmarks, allow_pickle=False) as arrays:
        keys = list(zip(arrays["cohort"].tolist(), arrays["case"].tolist(), strict=True))
    shapes, names = read_real(landmarks)
    vessels: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    with segments.open(newline="") as lines:
        for row in csv.DictReader(lines):
            numbers = (float(row["length_mm"]), float(row["mean_radius_mm"]))
            vessels[row["cohort"], row["case"]][row["vessel"].replace("_", " ")] = numbers
    return gathered(
        of_person(vessels[key], dict(zip(names, points, strict=True)), "data")
        for key, points in zip(keys, shapes, strict=True)
    )


def cohort(people: int, lively: bool) -> Samples:
    """The same of synthetic people."""
    found = []
    for number in range(people):
        anatomy = draw_anatomy(np.random.default_rng([0, number]))
        seen = COW19.landmark_attributes(anatomy.segment_present)
        points = np.where(seen[:, None], anatomy.landmarks_mm, np.nan)
        ends = dict(zip(COW19.landmarks, points, strict=True)) | {VERTEBRAL: anatomy.vertebral_mm}
        tree = draw_vessels(np.random.default_rng([1, number]), anatomy, lively=lively)
        vessels = {v.name: (arc_lengths(v.points_mm)[-1], v.radii_mm.mean()) for v in tree}
        found.append(of_person(vessels, ends, "scheme"))
    return gathered(found)


def of_person(
    vessels: Mapping[str, tuple[float, float]], ends: Mapping[str, np.ndarray], names: str
) -> dict[str, list[float]]:
    """Arc over chord, radii, and the ratio of both sides' radii.

    Args:
      vessels: name -> length and mean radius, mm.
      ends: landmark -> (3,) mm, NaN where there is none.
      names: whose the vessels' are, the "data" or the "scheme".
    """
    found = defaultdict(list)
    for theirs, (ours, start, end) in _ENDS.items():
        base = theirs if names == "data" else ours
        for side in "RL" if "@" in start + end else " ":
            name = f"{base} {side}".strip()
            a, b = (ends[landmark.replace("@", side)] for landmark in (start, end))
            chord = float(np.linalg.norm(a - b))
            if name in vessels:
                found[f"{ours} radius (mm)"].append(vessels[name][1])
                if chord > _SHORTEST_MM:
                    found[f"{ours} arc over chord"].append(vessels[name][0] / chord)
    for theirs, ours in _PAIRED.items():
        right, left = (f"{theirs if names == 'data' else ours} {side}" for side in "RL")
        if right in vessels and left in vessels:
            ratio = abs(float(np.log(vessels[right][1] / vessels[left][1])))
            found[f"{ours} wider over thinner side"].append(float(np.exp(ratio)))
    return found


def read_map(file: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Masks by name, and the spacing (3,) mm."""
    scan = read_scan(file)
    values = np.asarray(scan.voxels)
    spacing = np.linalg.norm(scan.ijk_to_lps[:3, :3], axis=0)
    return {name: values == value for value, name in _LABELS.items()}, spacing


def draw_map(number: int, lively: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same of a synthetic person, in a box as real ones are."""
    anatomy = draw_anatomy(np.random.default_rng([0, number]))
    tree = draw_vessels(np.random.default_rng([1, number]), anatomy, lively=lively)
    shape = [round(side / _VOXEL_MM) for side in _BOX_MM]
    middle = anatomy.landmarks_mm[
        [COW19.landmark(n) for n in ("ICA terminus R", "ICA terminus L", "BA tip")]
    ]
    grid = centred_grid(shape, (_VOXEL_MM,) * 3, middle.mean(0) + (0, -3, 0))
    masks = {name: np.zeros(grid.shape, bool) for name in _LABELS.values()}
    for part in {(p, s) for p in _PARTS.values() for s in "RL "}:
        name = f"{part[0]} {part[1]}".strip()
        tubes = [v for v in tree if _name(v) == name]
        if name in masks and tubes:
            masks[name] = rasterize(tubes, grid, BEYOND).segment > 0
    return masks, grid.spacing_mm


def _name(vessel: Vessel) -> str:
    base, _, side = vessel.name.partition(" ")
    return f"{_PARTS.get(base, '')} {side}".strip()


def measured(masks: Mapping[str, np.ndarray], spacing: np.ndarray) -> dict[str, list[float]]:
    """Radii by volume and length, the siphon's arc over chord, and the angles of the forks."""
    found = defaultdict(list)
    for side in "RL":
        names = [f"{name} {side}" for name in ("ICA", "MCA", "ACA")]
        fork = meeting([masks[name] for name in names], spacing)
        if fork is not None:
            arms = [course(masks[name], spacing, fork) for name in names]
            for name, points in zip(("ICA", "MCA", "ACA"), arms, strict=True):
                volume = masks[f"{name} {side}"].sum() * spacing.prod()
                length = arc_lengths(points)[-1]
                found[f"{name} radius by volume (mm)"].append(
                    float(np.sqrt(volume / length / np.pi))
                )
            along = arc_lengths(arms[0])
            if along[-1] > _SIPHON_MM:
                end = int(np.searchsorted(along, _SIPHON_MM))
                chord = float(np.linalg.norm(arms[0][end] - arms[0][0]))
                found["last 17 mm of the ICA, arc over chord"].append(float(along[end]) / chord)
            found["angle MCA, ACA (degrees)"].append(angle(arms[1], arms[2]))
            found["angle ICA, ACA (degrees)"].append(angle(arms[0], arms[2]))
            found["angle ICA, MCA (degrees)"].append(angle(arms[0], arms[1]))
    names = ["BA", "PCA R", "PCA L"]
    tip = meeting([masks[name] for name in names], spacing)
    if tip is not None:
        arms = [course(masks[name], spacing, tip) for name in names]
        found["angle PCA R, PCA L (degrees)"].append(angle(arms[1], arms[2]))
        volume = masks["BA"].sum() * spacing.prod()
        length = arc_lengths(arms[0])[-1]
        found["BA radius by volume (mm)"].append(float(np.sqrt(volume / length / np.pi)))
    return found


def meeting(masks: Sequence[np.ndarray], spacing: np.ndarray) -> np.ndarray | None:
    """(3,) mm: the middle of where all masks are near; None where they do not meet."""
    if not all(mask.any() for mask in masks):
        return None
    near = [distance_transform_edt(~mask, sampling=spacing) < _TOUCH_MM for mask in masks]
    together = np.argwhere(np.logical_and.reduce(near) & np.logical_or.reduce(masks))
    return together.mean(0) * spacing if len(together) else None


def course(mask: np.ndarray, spacing: np.ndarray, start: np.ndarray) -> np.ndarray:
    """(N, 3) mm: the way within a mask from near `start` to its farthest end, along its middle."""
    places = np.argwhere(mask)
    first = places[np.linalg.norm(places * spacing - start, axis=1).argmin()]
    steps = tuple(map(float, spacing))
    far, _ = MCP_Geometric(np.where(mask, 1.0, -1.0), sampling=steps).find_costs([first])
    end = np.unravel_index(np.where(np.isfinite(far), far, -1).argmax(), mask.shape)
    inside = distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    cost = np.where(mask, 1 / np.maximum(inside, 0.1) ** 2, -1.0)
    paths = MCP_Geometric(cost, sampling=steps)
    paths.find_costs([first])
    points = np.array(paths.traceback(end)) * spacing
    along = arc_lengths(points)
    at = np.arange(0, max(along[-1], 1.0), 0.25)
    line = np.stack([np.interp(at, along, column) for column in points.T], axis=1)
    smooth: np.ndarray = gaussian_filter1d(line, 4, axis=0, mode="nearest")
    return smooth


def angle(one: np.ndarray, other: np.ndarray) -> float:
    """Degrees between the first 5 mm of two arms that leave a fork, without its very middle."""
    directions = [points[4:20].mean(0) - points[:2].mean(0) for points in (one, other)]
    a, b = (d / max(float(np.linalg.norm(d)), 1e-6) for d in directions)
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


if __name__ == "__main__":
    app.run(main)
