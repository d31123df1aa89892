"""How like real ones the cine phantom's hearts and slices are.

python -m experiments.phantoms.cine --slices=FOLDER

prints the sizes of healthy people beside published ones, and the time that a slice takes. FOLDER
holds real short-axis slices, as `experiments/cardiac_sax.py` reads them, which are then measured in
the same way as the phantom's: grey values, edges, and where the landmarks lie.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine
from jaxmark.data.cohort import read_cohort
from jaxmark.data.phantoms.cine.cohort import CinePhantom, make_case
from jaxmark.data.phantoms.cine.heart import at_contraction, draw_heart
from jaxmark.data.pictures import read_picture

_SLICES = flags.DEFINE_string("slices", None, "Folder of real short-axis slices.")
_PEOPLE = 1000
_MEASURED = 200  # slices of each kind
_POINTS = ("RVI anterior", "RVI inferior", "LV centre")
# Mean and SD in mm, see `data/phantoms/cine/heart.py`.
PUBLISHED = {
    "LV diameter, end-diastole": "47.6 (4)",
    "LV wall, end-diastole": "6 to 10",
    "mitral plane moves": "12 to 16",
    "RV diameter, end-diastole": "33 (4)",
    "mitral annulus wider, end-systole": "4",
}
FIGURES = (
    *(f"grey value, percentile {p}" for p in (25, 50, 75, 90)),
    *("edges, mean", "edges, percentile 99", "insertion points apart, px"),
    *("angle between them, degrees", "LV from the picture's middle, px"),
)


def sizes() -> dict[str, np.ndarray]:
    """Millimetres of healthy people of scanner A, by the names of `PUBLISHED`."""
    drawn = [draw_heart(np.random.default_rng([0, k]), "A") for k in range(_PEOPLE)]
    hearts = [heart for heart in drawn if heart.group == "healthy"]
    begin, end = ([at_contraction(heart, c) for heart in hearts] for c in (0.0, 1.0))
    return {
        "LV diameter, end-diastole": np.array([2 * m.radius for m in begin]),
        "LV wall, end-diastole": np.array([m.wall for m in begin]),
        "mitral plane moves": np.array([m.plane for m in end]),
        "RV diameter, end-diastole": np.array([m.rv for m in begin]),
        "mitral annulus wider, end-systole": np.array(
            [e.annulus - b.annulus for b, e in zip(begin, end, strict=True)]
        ),
    }


def measured(picture: np.ndarray, points: np.ndarray) -> list[float]:
    """`FIGURES` of a slice (X, Y) and its landmarks (3, 2) in pixels."""
    low, high = np.percentile(picture, (0.5, 99.5))
    grey = np.clip((picture - low) / (high - low), 0, 1)
    steep = np.hypot(*np.gradient(grey))
    first, second = (points[k] - points[2] for k in (0, 1))
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    away = points[2] - (np.array(picture.shape) - 1) / 2
    return [
        *np.percentile(grey, (25, 50, 75, 90)).tolist(),
        float(steep.mean()),
        float(np.percentile(steep, 99)),
        float(np.linalg.norm(points[0] - points[1])),
        float(np.rad2deg(np.arccos(cosine))),
        float(np.linalg.norm(away)),
    ]


def phantoms(scanner: str) -> np.ndarray:
    """(N, F) `FIGURES` of synthetic slices, at both ends of the beat."""
    phantom = CinePhantom(view="short axis", scanner=scanner, frames=2)
    rows = []
    for number in range(_MEASURED):
        case = make_case(phantom, number)
        ijk = apply_affine(np.linalg.inv(case.ijk_to_lps), case.landmarks_mm)
        rows.append(measured(case.voxels[:, :, 0].astype(float), ijk[:, :2]))
    return np.array(rows)


def real(folder: Path) -> np.ndarray:
    """(N, F) `FIGURES` of real slices, evenly from all."""
    data = Data(
        root=str(folder),
        landmarks=_POINTS,
        unit="px",
        grid="native",
        spacing_mm=(1.0, 1.0, 1.0),
        crop=(256, 256, 1),
    )
    cases = list(read_cohort(data).cases.values())
    rows = []
    for case in cases[:: max(1, len(cases) // _MEASURED)]:
        picture = read_picture(case.scan, "px").voxels[:, :, 0].astype(float)
        rows.append(measured(picture, case.landmarks_mm[:, :2]))
    return np.array(rows)


def main(_: Sequence[str]) -> None:
    """Two tables, and the time of a slice."""
    print("healthy, mm | phantom, mean (SD) | published\n--- | --- | ---")
    for name, values in sizes().items():
        print(f"{name} | {values.mean():.1f} ({values.std():.1f}) | {PUBLISHED[name]}")
    begin = time.process_time()
    columns = {scanner: phantoms(scanner) for scanner in "AB"}
    each_ms = 1e3 * (time.process_time() - begin) / (2 * _MEASURED)
    if _SLICES.value:
        columns["real"] = real(Path(_SLICES.value))
    print(f"\nmedian (10 %, 90 %) | {' | '.join(columns)}\n--- {'| --- ' * len(columns)}")
    for k, name in enumerate(FIGURES):
        cells = [np.percentile(table[:, k], (50, 10, 90)) for table in columns.values()]
        shown = (f"{middle:.3g} ({low:.3g}, {high:.3g})" for middle, low, high in cells)
        print(f"{name} | {' | '.join(shown)}")
    print(f"\nCPU time of a slice, measured: {each_ms:.0f} ms")


if __name__ == "__main__":
    app.run(main)
