"""Cine MR slices of synthetic people: settings, a case, and its files.

```
root/images/<case>.nii.gz         int16, (X, Y, 1); the header has the size of a pixel
root/landmarks/<case>.csv         the landmarks of the view, LPS mm
root/anatomy/<case>.json          the person's anatomy and the moment of the heart's cycle
root/phantom.json                 the settings
root/splits.json                  by person; written last
```

A slice's frame is the picture's: x to its right, y down, mm from the centre of its first pixel.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxmark.bounds import Bound, at_least, either, one_of, setting
from jaxmark.core.anatomy import Scheme
from jaxmark.data.landmarks import write_table
from jaxmark.data.phantoms.cine import long_axis, short_axis
from jaxmark.data.phantoms.cine.heart import GROUPS, Moment, at_contraction, draw_heart
from jaxmark.data.phantoms.cine.plane import draw_plane
from jaxmark.data.phantoms.cine.scanner import acquire, draw_settings
from jaxmark.data.phantoms.cine.thorax import draw_build, paint_long_axis, paint_short_axis
from jaxmark.data.phantoms.cine.tissue import blank, draw_contrast
from jaxmark.data.phantoms.folders import make_cases, unfinished
from jaxmark.data.phantoms.grids import Grid
from jaxmark.data.scans import write_scan
from jaxmark.system.files import write_json, write_text_atomic

# Streams of random numbers of one seed; a person doesn't depend on the image made of it.
_ANATOMY, _BODY, _IMAGE, _NOISE = range(4)
# In the name of a case, between a person and the number of a frame.
_FRAME = "-frame-"
_ENDINGS = {"images": ".nii.gz", "landmarks": ".csv", "anatomy": ".json"}
_SLICE_MM = 8.0
# Extent of the longer side in mm, and the shorter side as a share of it.
_FIELD_MM, _SHORTER = (300.0, 390.0), (0.78, 1.0)
# Mean and SD of hearts' places, mm from the picture's middle; as in slices of the ACDC challenge.
_HEART_MM, _HEART_SD_MM = (-9.0, -2.0), 16.0
# Share of short-axis slices that are turned by a quarter, with the RV above the LV.
_QUARTER_TURNED = 0.15


class View(NamedTuple):
    """A kind of slice: its range of levels (share of the LV's length), and its landmarks."""

    axis: str  # "short" or "long"
    levels: tuple[float, float]
    landmarks: tuple[str, ...]


_SHORT = ("RVI anterior", "RVI inferior", "LV centre")
_LONG = ("mitral septal", "mitral lateral", "apex", "base")
# The sets of Kanakatte et al., and all landmarks of both axes.
VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "RVI": View("short", (0.08, 0.6), _SHORT[:2]),
        "MV": View("long", (0.0, 0.0), _LONG[:2]),
        "ACA": View("short", (0.74, 0.9), ("apical centre",)),
        "BCA": View("short", (0.05, 0.2), ("basal centre",)),
        "short axis": View("short", (0.08, 0.6), _SHORT),
        "long axis": View("long", (0.0, 0.0), _LONG),
    }
)
_CENTRES = ("ACA", "BCA")

_PAIR = Bound(
    lambda v: len(v) == 2 and 0 < v[0] <= v[1], "{} is not two positive numbers, the larger last"
)


@dataclass
class CinePhantom:
    """Settings of a synthetic cohort of cine MR slices."""

    # People in each split: Kanakatte et al. have 100, 70 : 30, and of the 70 80 : 20.
    train: int = setting(56, at_least(1))
    val: int = setting(14, at_least(0))
    test: int = setting(30, at_least(0))
    seed: int = 0
    # The kind of slice, which has its landmarks: see `VIEWS`.
    view: str = setting("RVI", one_of(*VIEWS))
    # "A" or "B". B has another contrast, coils with less reach, more noise and more ill people.
    scanner: str = setting("A", either(*GROUPS))
    # Slices of a person, evenly from end-diastole to end-systole; one: end-diastole.
    frames: int = setting(6, at_least(1))
    # Ranges of a person's pixel size, and of the number of pixels along the picture's longer side.
    pixel_mm: tuple[float, float] = setting((1.2, 1.8), _PAIR)
    matrix: tuple[int, int] = setting((160, 256), _PAIR)

    # Part of the name of a cached cohort: a change of what is drawn must not reuse an older one.
    recipe_version: ClassVar[int] = 1

    @property
    def scheme(self) -> Scheme:
        """The view's landmarks, without pairs: a heart is not symmetric."""
        return Scheme(f"cine {self.view}", VIEWS[self.view].landmarks, (), ())

    def write(self, folder: Path, workers: int = 0) -> None:
        """Writes the cohort's files that are missing; see `write_cohort`."""
        write_cohort(folder, self, workers)


@dataclass(frozen=True)
class CineCase:
    """A synthetic slice and what is known of it."""

    # (X, Y, 1) int16
    voxels: np.ndarray
    # (4, 4) voxels -> LPS mm
    ijk_to_lps: np.ndarray
    # (K, 3) LPS mm in the scheme's order
    landmarks_mm: np.ndarray
    moment: Moment
    level: float


def make_case(phantom: CinePhantom, number: int) -> CineCase:
    """Case `number` of a cohort: a function of the settings' values and the number alone.

    All frames of a person share anatomy, place and contrast; noise is each one's own.
    """
    person, frame = divmod(number, phantom.frames)
    view, contraction = VIEWS[phantom.view], frame / max(phantom.frames - 1, 1)
    stream = [phantom.seed, list(GROUPS).index(phantom.scanner)]
    anatomy, body, image = (
        np.random.default_rng([*stream, kind, person]) for kind in (_ANATOMY, _BODY, _IMAGE)
    )
    noise = np.random.default_rng([*stream, _NOISE, number])
    moment = at_contraction(draw_heart(anatomy, phantom.scanner), contraction)
    level = float(anatomy.uniform(*view.levels))
    settings = draw_settings(image, phantom.scanner)
    contrast = draw_contrast(image, phantom.scanner)
    grid, degrees = _draw_grid(image, phantom, view)
    middle = (np.array(grid.shape[:2]) - 1) / 2 * grid.spacing_mm[:2]
    plane = draw_plane(image, grid, middle + image.normal(_HEART_MM, _HEART_SD_MM), degrees)
    canvas, build = blank(plane, max(settings.edge_mm, plane.pixel_mm)), draw_build(body)
    if view.axis == "short":
        ring = short_axis.draw_ring(anatomy, moment, level)
        paint_short_axis(body, canvas, build, contrast, ring.lower_edge_mm)
        short_axis.paint_heart(anatomy, canvas, contrast, moment, ring, level)
        points = ring.points[2:] if phantom.view in _CENTRES else ring.points
    else:
        axis = long_axis.draw_axis(anatomy, moment)
        paint_long_axis(body, canvas, build, contrast)
        long_axis.paint_heart(anatomy, canvas, contrast, axis)
        points = axis.points
    found = plane.to_picture(points)[: len(view.landmarks)]
    return CineCase(
        voxels=acquire(image, noise, canvas.signal, plane, view.axis, settings)[:, :, None],
        ijk_to_lps=grid.ijk_to_lps,
        landmarks_mm=np.column_stack([found, np.zeros(len(found))]),
        moment=moment,
        level=level,
    )


def _draw_grid(rng: np.random.Generator, phantom: CinePhantom, view: View) -> tuple[Grid, float]:
    """A person's pixels, and how far the body is turned in the picture."""
    pixel = float(np.round(rng.uniform(*phantom.pixel_mm), 4))
    longer = int(np.clip(round(rng.uniform(*_FIELD_MM) / pixel), *phantom.matrix))
    shorter = int(max(round(longer * rng.uniform(*_SHORTER)), phantom.matrix[0] // 2))
    degrees, turned = rng.normal(0, 7), rng.random() < _QUARTER_TURNED
    tall = view.axis == "short" and not turned
    shape = (shorter, longer, 1) if tall else (longer, shorter, 1)
    degrees += 90.0 * (view.axis == "short" and turned)
    return Grid(shape, np.diag([pixel, pixel, _SLICE_MM, 1.0])), float(degrees)


def name_cases(phantom: CinePhantom) -> dict[str, list[str]]:
    """Split -> its cases; all frames of a person are in one split, and name the person."""
    splits, first = {}, 0
    for split in ("train", "val", "test"):
        people = range(first, first + getattr(phantom, split))
        frames = range(phantom.frames)
        splits[split] = [f"patient-{who:03d}{_FRAME}{k:02d}" for who in people for k in frames]
        first = people.stop
    return splits


def person_of(case: str) -> str:
    """The person whom a case's name (see `name_cases`) names."""
    return case.partition(_FRAME)[0]


def write_cohort(root: Path, phantom: CinePhantom, workers: int = 0) -> None:
    """Write a cohort into `root`, or what of it is not there.

    `workers` processes share the work, 0: one a CPU core; their number changes no byte.
    """
    splits = name_cases(phantom)
    names = [name for cases in splits.values() for name in cases]
    todo = [(phantom, number, name, root) for number, name in unfinished(root, names, _ENDINGS)]
    if not todo and (root / "splits.json").exists():
        return
    make_cases(_write_case, todo, (phantom.matrix[1], phantom.matrix[1]), workers)
    settings = {"recipe": phantom.recipe_version, **dataclasses.asdict(phantom)}
    about = {"schema_version": 1, "class": type(phantom).__name__, "scheme": phantom.scheme.name}
    write_json(root / "phantom.json", {**about, "phantom": settings})
    write_text_atomic(root / "splits.json", json.dumps(splits, indent=1))


def _write_case(job: tuple[CinePhantom, int, str, Path]) -> None:
    """Write the files of one case, `anatomy/` last: where it is, the others are."""
    phantom, number, name, root = job
    case = make_case(phantom, number)
    write_scan(root / "images" / f"{name}.nii.gz", case.voxels, case.ijk_to_lps)
    points = dict(zip(phantom.scheme.landmarks, case.landmarks_mm, strict=True))
    write_table(root / "landmarks" / f"{name}.csv", {name: points})
    write_text_atomic(root / "anatomy" / f"{name}.json", json.dumps(_describe(case)))


def _describe(case: CineCase) -> dict[str, Any]:
    """What is known of a person and a moment, as JSON types; mm."""
    moment = dataclasses.asdict(case.moment)
    return {"schema_version": 1, "level": case.level, **moment}
