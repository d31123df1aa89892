"""Coronary CT angiograms of synthetic people: settings, a case, and its scan.

A scan covers the heart from above the left main artery to below the apex; the rest of its volume is
padding, as in Tan et al. (2019), who padded all scans to a cube of 512 voxels of 0.4 mm.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from jaxmark.bounds import LENGTHS, NOT_NEGATIVE, SHARE, VOXELS, at_least, setting
from jaxmark.core.anatomy import Scheme
from jaxmark.data.phantoms.grids import Grid, centred_grid
from jaxmark.data.phantoms.lumen import Vessel, coverage
from jaxmark.data.phantoms.scanner import scan
from jaxmark.data.phantoms.solids import paint
from jaxmark.data.phantoms.vessels.coronaries import CORONARY5, Coronaries, draw_coronaries
from jaxmark.data.phantoms.vessels.folder import VesselCase, write_cohort
from jaxmark.data.phantoms.vessels.heart import Heart, draw_heart
from jaxmark.data.phantoms.vessels.painting import (
    Plaque,
    box_around,
    fill,
    paint_plaque,
    paint_tissues,
)
from jaxmark.data.phantoms.vessels.thorax import Contrast, draw_chest, draw_contrast

# Streams of random numbers of one seed; a person's anatomy doesn't depend on the image made of it.
_ANATOMY, _IMAGE, _NOISE = range(3)
# From the annulus to the middle of the heart, which technologists centre: mm.
_TO_CENTRE_MM = np.array([10.0, -8.0, -14.0])
_LEAFLET_MM = 0.9  # thickness
_TIMES = 5  # of a blurred beat that are averaged


@dataclass
class CoronaryPhantom:
    """Settings of a synthetic cohort of coronary CT angiograms."""

    train: int = setting(75, at_least(1))
    val: int = setting(15, at_least(0))
    test: int = setting(40, at_least(0))
    seed: int = 0
    spacing_mm: tuple[float, float, float] = setting((0.4, 0.4, 0.4), LENGTHS)
    # Voxels of a volume.
    shape: tuple[int, int, int] = setting((512, 512, 512), VOXELS)
    # Standard deviation of the place of the heart's middle in the volume, along each axis.
    translation_sd_mm: float = setting(6.0, at_least(0))
    # Value of the padding above and below the scanned part; the paper pads with zero.
    padding_hu: int = 0
    # Share of people without a left main artery: LAD and LCX have ostia of their own. Their
    # landmark "left main bifurcation" is absent.
    no_left_main: float = setting(0.02, SHARE)
    # Share of people with calcified plaques and stenoses.
    plaques: float = setting(0.5, SHARE)
    # Mean distance that the middle of the right coronary artery moves while it is scanned.
    motion_mm: float = setting(0.8, NOT_NEGATIVE)

    scheme: ClassVar[Scheme] = CORONARY5
    # Part of the name of a cached cohort: a change of what is drawn must not reuse an older one.
    recipe_version: ClassVar[int] = 1

    def write(self, folder: Path, workers: int = 0) -> None:
        """Writes the cohort's files that are missing; see `folder.write_cohort`."""
        write_cohort(folder, self, make_case, workers)


def draw_person(phantom: CoronaryPhantom, number: int) -> tuple[Heart, Coronaries]:
    """Heart and arteries of person `number`: a function of the seed, number and shares alone."""
    rng = np.random.default_rng([phantom.seed, _ANATOMY, number])
    centre = rng.normal(0, 1, 3) * phantom.translation_sd_mm
    heart = draw_heart(rng, centre - _TO_CENTRE_MM)
    return heart, draw_coronaries(rng, heart, phantom.no_left_main)


def make_case(phantom: CoronaryPhantom, number: int) -> VesselCase:
    """Case `number` of a cohort: a function of the settings' values and the number alone."""
    heart, arteries = draw_person(phantom, number)
    grid = centred_grid(phantom.shape, phantom.spacing_mm, np.zeros(3))
    rng = np.random.default_rng([phantom.seed, _IMAGE, number])
    first, last = _scanned(rng, grid, heart, arteries)
    voxels = np.full(grid.shape, phantom.padding_hu, np.int16, order="F")
    part = grid.slices(first, last)
    voxels[:, :, first:last] = _render(rng, phantom, number, part, heart, arteries)
    return VesselCase(
        voxels=voxels,
        ijk_to_lps=grid.ijk_to_lps,
        landmarks_mm=arteries.landmarks_mm,
        segment_present=arteries.segment_present,
        vessels=arteries.vessels,
        facts={"dominance": arteries.dominance, "scanned_slices": [first, last]},
    )


def _scanned(
    rng: np.random.Generator, grid: Grid, heart: Heart, arteries: Coronaries
) -> tuple[int, int]:
    """The slices that are scanned, from one to before another: all landmarks lie between."""
    low, high = heart.to_lps(heart.apex[None])[0, 2], arteries.landmarks_mm[0, 2]
    low, high = low - rng.uniform(14, 24), high + rng.uniform(28, 44)
    first, last = np.searchsorted(grid.axes_mm[2], (low, high))
    return int(first), int(last)


def _render(
    rng: np.random.Generator,
    phantom: CoronaryPhantom,
    number: int,
    grid: Grid,
    heart: Heart,
    arteries: Coronaries,
) -> np.ndarray:
    """(X, Y, Z) int16 HU of the slices that are scanned."""
    contrast = draw_contrast(rng)
    noise_hu = float(rng.uniform(18, 34))
    ill = bool(rng.random() < phantom.plaques)
    vessels, plaques = _diseased(rng, arteries.vessels) if ill else (arteries.vessels, [])
    moving = _moments(rng, vessels, phantom.motion_mm)
    chest = draw_chest(rng, grid.axes_mm, heart, contrast)

    def body(part: Grid) -> np.ndarray:
        edge = float(part.spacing_mm.mean())
        image = paint_tissues(chest, part)
        _paint_root(image, part, heart, contrast, edge)
        fill(image, coverage(arteries.veins, part), contrast.vein)
        shares = [coverage(moment, part) for moment in moving]
        fill(image, np.mean(shares, axis=0), contrast.artery)
        for plaque in plaques:
            paint_plaque(image, part, plaque, edge)
        return image

    return scan(grid, body, [phantom.seed, _NOISE, number], noise_hu, blur_mm=0.3)


def _paint_root(
    image: np.ndarray, grid: Grid, heart: Heart, contrast: Contrast, edge: float
) -> None:
    """The root's sinuses and leaflets, finer than the nodes are."""
    reach = heart.size * np.array([26.0, 26.0, 36.0])
    box = box_around(grid, heart.annulus_mm + heart.size * 8 * heart.root.axis, reach)
    axes = [axis[part].astype(np.float32) for axis, part in zip(grid.axes_mm, box, strict=True)]
    if not all(len(axis) for axis in axes):
        return
    q = heart.to_standard(np.stack(np.meshgrid(*axes, indexing="ij")))
    lumen = heart.size * heart.root.lumen(q)
    paint(image[box], contrast.artery, lumen, edge)
    sheet = heart.size * heart.root.leaflets(q) - _LEAFLET_MM / 2
    # A sheet thinner than a voxel is less dark, not thicker.
    share = np.clip(np.float32(0.5) - sheet / edge, 0, 1) * min(1.0, _LEAFLET_MM / edge)
    image[box] += share * (lumen < 0) * (contrast.muscle - image[box])


# How much of the right coronary artery's motion others make: the right atrium moves most.
_MOTION = {"RCA": 1.0, "acute marginal": 0.7, "conus": 0.4, "LCX": 0.4, "OM1": 0.4, "OM2": 0.4}
_LITTLE_MOTION = 0.2


def _moments(
    rng: np.random.Generator, vessels: tuple[Vessel, ...], motion_mm: float
) -> list[tuple[Vessel, ...]]:
    """The arteries at moments of the beat that a scan averages; the ostia keep still."""
    direction = rng.normal(0, 1, 3)
    direction /= np.linalg.norm(direction)
    distance = min(rng.exponential(1.0) * motion_mm, 5.0)
    if distance < 0.1:
        return [vessels]

    def moved(vessel: Vessel, time: float) -> Vessel:
        share = _MOTION.get(vessel.name, _LITTLE_MOTION) * np.clip(vessel.travelled_mm / 40, 0, 1)
        return replace(
            vessel, points_mm=vessel.points_mm + (time * distance * share)[:, None] * direction
        )

    return [tuple(moved(v, t) for v in vessels) for t in np.linspace(-0.5, 0.5, _TIMES)]


def _diseased(
    rng: np.random.Generator, vessels: tuple[Vessel, ...]
) -> tuple[tuple[Vessel, ...], list[Plaque]]:
    """Arteries with stenoses, and calcified plaques in their walls, most in their first halves."""
    found = {vessel.name: vessel for vessel in vessels}
    plaques = []
    for _ in range(1 + rng.poisson(3)):
        name = str(rng.choice(["LAD", "LAD", "RCA", "LCX"]))
        vessel = found[name]
        at = int(rng.beta(1.3, 3.0) * (len(vessel.points_mm) - 1))
        along = vessel.tangents[at]
        across = np.cross(along, rng.normal(0, 1, 3))
        across /= np.linalg.norm(across)
        place = vessel.points_mm[at] + vessel.radii_mm[at] * across
        half_axes = rng.uniform(0.4, 1.1) + rng.uniform(0.3, 1.6) * np.abs(along)
        plaques.append(Plaque(place, half_axes, rng.uniform(550, 1200)))
        if rng.random() < 0.4:
            way = _along_from(vessel, at) / rng.uniform(2.5, 6.0)
            narrow = 1 - rng.uniform(0.2, 0.6) * np.exp(-(way**2))
            found[name] = replace(vessel, radii_mm=np.maximum(vessel.radii_mm * narrow, 0.35))
    return tuple(found.values()), plaques


def _along_from(vessel: Vessel, at: int) -> np.ndarray:
    """(N,): how far along the vessel each point is from point `at`, mm."""
    return vessel.travelled_mm - vessel.travelled_mm[at]
