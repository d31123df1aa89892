"""CT angiograms of synthetic people's aortas: settings, a case, and its scan."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxmark.bounds import LENGTHS, SHARE, VOXELS, at_least, setting
from jaxmark.core.anatomy import Scheme
from jaxmark.data.phantoms.grids import Grid, centred_grid
from jaxmark.data.phantoms.lumen import coverage
from jaxmark.data.phantoms.scanner import scan
from jaxmark.data.phantoms.vessels.branches import AORTA9, Aorta, draw_aorta
from jaxmark.data.phantoms.vessels.folder import VesselCase, write_cohort
from jaxmark.data.phantoms.vessels.painting import Plaque, fill, paint_plaque, paint_tissues
from jaxmark.data.phantoms.vessels.trunk import draw_aorta_contrast, draw_trunk

# Streams of random numbers of one seed; a person's anatomy doesn't depend on the image made of it.
_ANATOMY, _IMAGE, _NOISE = range(3)
# Middle of the field of view in the frame of `draw_aorta`.
_CENTRE_MM = np.array([4.0, -22.0, 72.0])


@dataclass
class AortaPhantom:
    """Settings of a synthetic cohort of CT angiograms of the aorta."""

    train: int = setting(25, at_least(1))
    val: int = setting(8, at_least(0))
    test: int = setting(23, at_least(0))
    seed: int = 0
    # The paper's spacing, and a volume around the aorta: its scans were cropped by hand.
    spacing_mm: tuple[float, float, float] = setting((0.71, 0.71, 0.81), LENGTHS)
    shape: tuple[int, int, int] = setting((288, 256, 704), VOXELS)
    # Standard deviation of the place of the aorta in the volume, along each axis.
    translation_sd_mm: float = setting(8.0, at_least(0))
    # Shares of people with an aneurysm below the kidneys' arteries, and with calcified plaques.
    aneurysms: float = setting(0.1, SHARE)
    plaques: float = setting(0.7, SHARE)

    scheme: ClassVar[Scheme] = AORTA9
    # Part of the name of a cached cohort: a change of what is drawn must not reuse an older one.
    recipe_version: ClassVar[int] = 2

    def write(self, folder: Path, workers: int = 0) -> None:
        """Writes the cohort's files that are missing; see `folder.write_cohort`."""
        write_cohort(folder, self, make_case, workers)


def draw_person(phantom: AortaPhantom, number: int) -> Aorta:
    """The aorta of person `number`, a function of the seed, the number and the shares alone."""
    rng = np.random.default_rng([phantom.seed, _ANATOMY, number])
    return draw_aorta(rng, phantom.aneurysms)


def make_case(phantom: AortaPhantom, number: int) -> VesselCase:
    """Case `number` of a cohort: a function of the settings' values and the number alone."""
    aorta = draw_person(phantom, number)
    rng = np.random.default_rng([phantom.seed, _IMAGE, number])
    centre = _CENTRE_MM + rng.normal(0, 1, 3) * phantom.translation_sd_mm
    grid = centred_grid(phantom.shape, phantom.spacing_mm, centre)
    contrast = draw_aorta_contrast(rng)
    noise_hu = float(rng.uniform(14, 26))
    ill = bool(rng.random() < phantom.plaques)
    plaques = _draw_plaques(rng, aorta) if ill else []
    trunk = draw_trunk(rng, grid.axes_mm, aorta, contrast)

    def body(part: Grid) -> np.ndarray:
        image = paint_tissues(trunk, part)
        for plaque in plaques:
            paint_plaque(image, part, plaque, float(part.spacing_mm.mean()))
        fill(image, coverage(aorta.vessels, part), contrast.artery)
        return image

    voxels = scan(grid, body, [phantom.seed, _NOISE, number], noise_hu, blur_mm=0.4)
    # As for the heart, the frame's origin is the middle of the volume.
    place = grid.ijk_to_lps.copy()
    place[:3, 3] -= centre
    moved = tuple(replace(v, points_mm=v.points_mm - centre) for v in aorta.vessels)
    return VesselCase(
        voxels=voxels,
        ijk_to_lps=place,
        landmarks_mm=aorta.landmarks_mm - centre,
        segment_present=aorta.segment_present,
        vessels=moved,
        facts={"arch": aorta.arch, "aneurysm": aorta.aneurysm is not None},
    )


def _draw_plaques(rng: np.random.Generator, aorta: Aorta) -> list[Plaque]:
    """Calcium in the aorta's wall, most of it low down, and where branches leave."""
    main = [vessel for vessel in aorta.vessels if "aorta" in vessel.name]
    weights = np.array([0.2, 0.25, 0.55])
    plaques = []
    for _ in range(3 + rng.poisson(14)):
        vessel = main[int(rng.choice(3, p=weights))]
        at = int(rng.integers(len(vessel.points_mm)))
        across = np.cross(vessel.tangents[at], rng.normal(0, 1, 3))
        across /= np.linalg.norm(across)
        place = vessel.points_mm[at] + (vessel.radii_mm[at] + 0.6) * across
        # Flat along the wall.
        half_axes = rng.uniform(0.8, 3.0, 3) * (1 - 0.7 * np.abs(across))
        plaques.append(Plaque(place, half_axes, rng.uniform(450, 1100)))
    return plaques
