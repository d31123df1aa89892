"""A cohort of synthetic people on disk: raw scans with landmarks, segments and anatomy.

```
root/images/<case>.nii.gz         int16: MRA intensities, or HU
root/landmarks/<case>.mrk.json    the landmarks of `COW19`, LPS mm
root/segmentations/<case>.nii.gz  uint8: 1 + index of the segment, 21 a vessel beyond the scheme
root/segmentations/dataset.json   names of these, as nnU-Net has them
root/attributes.csv               which segments each person has
root/anatomy/<case>.json          segments and bifurcations that exist; centrelines, tangents, radii
root/unpaired.csv                 landmarks of people without a scan
root/phantom.json                 the settings, and the source of the shapes
root/splits.json                  written last
```
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxmark.bounds import LENGTHS, VOXELS, at_least, each_of, one_of, setting
from jaxmark.core.anatomy import COW19, Scheme
from jaxmark.core.geometry import apply_affine
from jaxmark.data.attributes import write_attributes
from jaxmark.data.cases import HostBatch
from jaxmark.data.landmarks import Landmarks, write_mrk_json, write_table
from jaxmark.data.phantoms.cow.anatomy import BEYOND, Anatomy
from jaxmark.data.phantoms.cow.images import render_cta, render_mra
from jaxmark.data.phantoms.cow.labels import draw_labels
from jaxmark.data.phantoms.cow.shape import attribution, draw_anatomy
from jaxmark.data.phantoms.cow.vessels import draw_vessels
from jaxmark.data.phantoms.folders import make_cases, name_cases, unfinished
from jaxmark.data.phantoms.grids import Grid, centred_grid
from jaxmark.data.phantoms.lumen import Lumen, Vessel, rasterize
from jaxmark.data.scans import write_scan
from jaxmark.system.files import write_json, write_text_atomic

# Centre of the field of view, in the frame of `draw_anatomy`: the middle of the mean landmarks.
_CENTRE_MM = np.array([0.0, 0.0, 6.5])
# Streams of random numbers of one seed; a person's anatomy doesn't depend on the image made of it.
# `labels` goes on after these.
_ANATOMY, _IMAGE, _UNPAIRED, _SHAPE, _VIEW = 0, 1, 2, 5, 6
# Of `CirclePhantom.views`: a slab's thickness; a box, about as public challenges cut them, at its
# least; how far their middle is from the landmarks', share of their size at most.
_SLAB_MM, _BOX_MM, _SHIFT = (40.0, 80.0), np.array([40.0, 37.0, 20.0]), 0.15
_LEAST_VOXELS = 8
# The number of people whose landmarks define the typical shape.
_SHAPE_PEOPLE = 200
# Folder -> ending of its files' names.
_FILES = {
    "images": ".nii.gz",
    "landmarks": ".mrk.json",
    "segmentations": ".nii.gz",
    "anatomy": ".json",
}
_LABELS, _ATTRIBUTES = "segmentations/dataset.json", "attributes.csv"


@dataclass
class CirclePhantom:
    """Settings of a synthetic Circle-of-Willis cohort."""

    train: int = setting(70, at_least(1))
    val: int = setting(10, at_least(0))
    test: int = setting(32, at_least(0))
    seed: int = 0
    # "MRA" (time of flight), "CTA" or "both": every other case is a CTA.
    modality: str = setting("MRA", one_of("MRA", "CTA", "both"))
    spacing_mm: tuple[float, float, float] = setting((0.513, 0.513, 0.8), LENGTHS)
    # Voxels of a scan.
    shape: tuple[int, int, int] = setting((208, 176, 112), VOXELS)
    # The part of each scan that is kept, in turn over the cases: "whole", "slab" (40 to 80 mm along
    # z) or "box" (40 x 37 x 20 to 60 x 56 x 30 mm); slabs and boxes lie about the landmarks.
    views: tuple[str, ...] = setting(("whole",), each_of("whole", "slab", "box"))
    # Standard deviations of heads' poses about and along each axis, as after a registration.
    rotation_sd_degrees: float = setting(3.0, at_least(0))
    translation_sd_mm: float = setting(2.0, at_least(0))
    # Share of people with stenoses and aneurysms.
    pathology: float = setting(0.0, at_least(0))
    # On: landmarks are annotated even where a segment that meets there is missing, as in the
    # papers. Off: the files state that these landmarks are absent.
    annotate_missing: bool = True
    # Landmark sets of further people, without scans: the papers' unpaired second modality.
    unpaired: int = setting(500, at_least(0))

    scheme: ClassVar[Scheme] = COW19
    # Part of the name of a cached cohort: a change of what is drawn must not reuse an older one.
    recipe_version: ClassVar[int] = 2
    # Newer settings, which are no part of that name while they have their defaults.
    later: ClassVar[tuple[str, ...]] = ("views",)
    # Version of the drawn label maps: a run must not continue with others.
    label_recipe_version: ClassVar[int] = 1

    def write(self, folder: Path, workers: int = 0) -> None:
        """Writes the cohort's files that are missing; see `write_cohort`."""
        write_cohort(folder, self, workers)

    def shape_mm(self) -> np.ndarray:
        """(19, 3) the landmarks' typical shape, about the centre of what `drawing` draws."""
        return np.median(self.shapes_mm(), axis=0)

    def shapes_mm(self) -> np.ndarray:
        """(N, 19, 3) landmarks of people who lie alike, as `shape_mm`."""
        people = (
            draw_anatomy(np.random.default_rng([self.seed, _SHAPE, number]), 0.0, 0.0)
            for number in range(_SHAPE_PEOPLE)
        )
        return np.stack([person.landmarks_mm for person in people]) - _CENTRE_MM

    def drawing(
        self,
        shape: tuple[int, int, int],
        spacing_mm: tuple[float, float, float],
        rotation_sd_degrees: float | None = None,
        translation_sd_mm: float | None = None,
    ) -> Callable[[int], HostBatch]:
        """A function that draws the label maps of the person with a number; see `draw_labels`.

        These people are never in the cohort.

        Args:
          shape, spacing_mm: of the grid, about the centre of the cohort's scans.
          rotation_sd_degrees, translation_sd_mm: None: those of the settings.
        """
        turn, move = rotation_sd_degrees, translation_sd_mm
        return functools.partial(
            draw_labels,
            centred_grid(shape, spacing_mm, _CENTRE_MM),
            self.seed,
            rotation_sd_degrees=self.rotation_sd_degrees if turn is None else turn,
            translation_sd_mm=self.translation_sd_mm if move is None else move,
            pathology=self.pathology,
        )


@dataclass(frozen=True)
class PhantomCase:
    """A synthetic scan and its labels."""

    anatomy: Anatomy
    vessels: list[Vessel]
    # (X, Y, Z) int16
    voxels: np.ndarray
    # Its `segment` is what the cohort's segmentations are, its `tangent` the orientation field.
    lumen: Lumen
    # (4, 4) voxels -> LPS mm
    ijk_to_lps: np.ndarray
    # (19,) bool: those that a landmark file gives a position, and those it says are absent
    annotated: np.ndarray
    absent: np.ndarray


def make_case(phantom: CirclePhantom, number: int) -> PhantomCase:
    """Case `number` of a cohort: a function of the settings' values and the number alone."""
    rng = np.random.default_rng([phantom.seed, _ANATOMY, number])
    anatomy = _draw_person(phantom, rng)
    vessels = draw_vessels(rng, anatomy, pathology=_is_ill(phantom, rng))
    grid = view_grid(phantom, number, anatomy.landmarks_mm)
    lumen = rasterize(vessels, grid, BEYOND)
    render = render_cta if is_cta(phantom, number) else render_mra
    annotated, absent = _annotated(phantom, anatomy, grid)
    rng = np.random.default_rng([phantom.seed, _IMAGE, number])
    return PhantomCase(
        anatomy=anatomy,
        vessels=vessels,
        voxels=render(rng, lumen, grid, anatomy),
        lumen=lumen,
        ijk_to_lps=grid.ijk_to_lps,
        annotated=annotated,
        absent=absent,
    )


def has_pathology(phantom: CirclePhantom, number: int) -> bool:
    """Whether the person of case `number` has stenoses, and maybe an aneurysm."""
    rng = np.random.default_rng([phantom.seed, _ANATOMY, number])
    _draw_person(phantom, rng)
    return _is_ill(phantom, rng)


def draw_unpaired(phantom: CirclePhantom) -> dict[str, Landmarks]:
    """Case -> landmarks of `phantom.unpaired` people who have no scan in the cohort."""
    grid = place_grid(phantom)
    people = {}
    for number in range(phantom.unpaired):
        anatomy = _draw_person(phantom, np.random.default_rng([phantom.seed, _UNPAIRED, number]))
        people[f"unpaired-{number:03d}"] = _named(anatomy, *_annotated(phantom, anatomy, grid))
    return people


def is_cta(phantom: CirclePhantom, number: int) -> bool:
    """Whether case `number` is a CTA."""
    return phantom.modality == "CTA" or (phantom.modality == "both" and number % 2 == 1)


def place_grid(phantom: CirclePhantom) -> Grid:
    """The voxels of every scan of a cohort that is not cut."""
    return centred_grid(phantom.shape, phantom.spacing_mm, _CENTRE_MM)


def view_grid(phantom: CirclePhantom, number: int, landmarks_mm: np.ndarray) -> Grid:
    """The voxels of case `number`, whose landmarks (19, 3) lie there; see `CirclePhantom.views`."""
    whole, view = place_grid(phantom), phantom.views[number % len(phantom.views)]
    if view == "whole":
        return whole
    rng = np.random.default_rng([phantom.seed, _VIEW, number])
    size_mm = np.array([np.inf, np.inf, rng.uniform(*_SLAB_MM)])
    if view == "box":
        size_mm = _BOX_MM * rng.uniform(1.0, 1.5, 3)
    shift_mm = np.where(np.isfinite(size_mm), size_mm, 0.0) * rng.uniform(-_SHIFT, _SHIFT, 3)
    middle_mm = landmarks_mm.mean(0) + shift_mm
    first, last = (
        apply_affine(np.linalg.inv(whole.ijk_to_lps), middle_mm + side * np.minimum(size_mm, 1e4))
        for side in (-0.5, 0.5)
    )
    most = np.array(whole.shape) - _LEAST_VOXELS
    start = np.clip(np.rint(first), 0, most).astype(int)
    stop = np.clip(np.rint(last), start + _LEAST_VOXELS, whole.shape).astype(int)
    ijk_to_lps = whole.ijk_to_lps.copy()
    ijk_to_lps[:3, 3] = apply_affine(whole.ijk_to_lps, start.astype(float))
    x, y, z = (int(n) for n in stop - start)
    return Grid((x, y, z), ijk_to_lps)


def write_cohort(root: Path, phantom: CirclePhantom, workers: int = 0) -> None:
    """Writes the files of a cohort that are missing in `root`.

    `workers` processes share the work; 0: one for each CPU core. Their number changes no byte.
    """
    counts = {"train": phantom.train, "val": phantom.val, "test": phantom.test}
    splits = name_cases(counts)
    names = [name for cases in splits.values() for name in cases]
    todo = [(phantom, number, name, root) for number, name in unfinished(root, names, _FILES)]
    # Cohorts of earlier versions lack these two files, and nothing else.
    if not all((root / name).exists() for name in (_LABELS, _ATTRIBUTES)):
        _write_names(root, phantom, names)
    if not todo and (root / "splits.json").exists():
        return
    make_cases(_write_case, todo, phantom.shape, workers)
    write_table(root / "unpaired.csv", draw_unpaired(phantom))
    settings = {"recipe": phantom.recipe_version, **dataclasses.asdict(phantom)}
    write_json(
        root / "phantom.json",
        {"schema_version": 1, "scheme": COW19.name, "phantom": settings, "shape": attribution()},
    )
    write_text_atomic(root / "splits.json", json.dumps(splits, indent=1))


def _write_names(root: Path, phantom: CirclePhantom, names: Sequence[str]) -> None:
    """Write what the segmentations' labels are, and which segments everybody has."""
    segments = [segment.name for segment in COW19.segments]
    labels = ["background", *segments, "other vessel"]
    tree = {"labels": {name: value for value, name in enumerate(labels)}, "file_ending": ".nii.gz"}
    write_json(root / _LABELS, tree)
    present = {}
    for number, name in enumerate(names):
        rng = np.random.default_rng([phantom.seed, _ANATOMY, number])
        present[name] = _draw_person(phantom, rng).segment_present
    write_attributes(root / _ATTRIBUTES, segments, present)


def _draw_person(phantom: CirclePhantom, rng: np.random.Generator) -> Anatomy:
    return draw_anatomy(rng, phantom.rotation_sd_degrees, phantom.translation_sd_mm)


def _is_ill(phantom: CirclePhantom, rng: np.random.Generator) -> bool:
    return bool(rng.random() < phantom.pathology)


def _annotated(
    phantom: CirclePhantom, anatomy: Anatomy, grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """(19,) bool: annotated, and stated to be absent; neither outside of the field of view."""
    ijk = apply_affine(np.linalg.inv(grid.ijk_to_lps), anatomy.landmarks_mm)
    inside = np.all((ijk >= 0) & (ijk <= np.array(grid.shape) - 1), axis=1)
    there = COW19.landmark_attributes(anatomy.segment_present) | phantom.annotate_missing
    return inside & there, inside & ~there


def _named(anatomy: Anatomy, annotated: np.ndarray, absent: np.ndarray) -> Landmarks:
    rows = zip(COW19.landmarks, anatomy.landmarks_mm, annotated, absent, strict=True)
    return {name: xyz if there else None for name, xyz, there, gone in rows if there or gone}


def _write_case(job: tuple[CirclePhantom, int, str, Path]) -> None:
    """Write the files of one case, `anatomy/` last: where it is, the others are."""
    phantom, number, name, root = job
    case = make_case(phantom, number)
    write_scan(root / "images" / f"{name}.nii.gz", case.voxels, case.ijk_to_lps)
    write_scan(root / "segmentations" / f"{name}.nii.gz", case.lumen.segment, case.ijk_to_lps)
    points = _named(case.anatomy, case.annotated, case.absent)
    write_mrk_json(root / "landmarks" / f"{name}.mrk.json", points)
    write_text_atomic(root / "anatomy" / f"{name}.json", json.dumps(_describe(case)))


def _describe(case: PhantomCase) -> dict[str, Any]:
    """A synthetic person's anatomy, as JSON types."""
    present = case.anatomy.segment_present
    bifurcations = COW19.landmark_attributes(present)
    return {
        "schema_version": 1,
        "scheme": COW19.name,
        "segment_present": {
            s.name: bool(there) for s, there in zip(COW19.segments, present, strict=True)
        },
        "landmark_is_bifurcation": {
            name: bool(is_one) for name, is_one in zip(COW19.landmarks, bifurcations, strict=True)
        },
        "fetal": {"R": bool(case.anatomy.fetal[0]), "L": bool(case.anatomy.fetal[1])},
        "centrelines": [
            {
                "name": vessel.name,
                "segment": COW19.segments[vessel.segment].name if vessel.segment >= 0 else None,
                "points_lps_mm": np.round(vessel.points_mm, 3).tolist(),
                "tangents": np.round(vessel.tangents, 3).tolist(),
                "radii_mm": np.round(vessel.radii_mm, 3).tolist(),
            }
            for vessel in case.vessels
        ],
    }
