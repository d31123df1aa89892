"""The scans of two modalities: what time-of-flight MRA and CTA show of a head and its arteries.

Numbers without a source are chosen by eye and anatomy.
"""

from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline

from jaxmark.core.anatomy import COW19
from jaxmark.data.phantoms.cow.anatomy import BEYOND, Anatomy
from jaxmark.data.phantoms.cow.head import NODE_MM, Head, draw_head
from jaxmark.data.phantoms.fields import interpolate, node_weights, random_field
from jaxmark.data.phantoms.grids import Grid
from jaxmark.data.phantoms.lumen import Lumen, Vessel, rasterize
from jaxmark.data.phantoms.scanner import blur
from jaxmark.data.phantoms.solids import ball, paint

_MRA, _CTA = 0, 1
# (MRA, CTA in HU). MRA is relative to a brain of 100: CSF 0.3-0.5 of it, fat 1.5-2.5, cortical
# bone and air near 0. HU of brain: plain CT and a little contrast in its capillaries.
_TISSUES = {
    "white": (104, 36),
    "grey": (97, 43),
    "muscle": (78, 58),
    "fat": (180, -90),
    "sinus": (95, 140),  # cavernous: veins are saturated in TOF, mildly enhanced in arterial CTA
    "csf": (42, 10),
    "bone": (16, 1080),  # cortical
    "marrow": (70, 720),
    "air": (0, -1000),
}


def render_mra(rng: np.random.Generator, lumen: Lumen, grid: Grid, anatomy: Anatomy) -> np.ndarray:
    """A time-of-flight MRA at 3 T, (X, Y, Z) int16: brain about 100, proximal arteries 600-700.

    Inflowing blood is bright; it fades with the way it has come, and in thin vessels, where it
    is slow and takes more pulses on that way.
    """
    head = draw_head(rng, grid, anatomy)
    axes = [axis - middle for axis, middle in zip(grid.axes_mm, head.centre, strict=True)]
    bias = np.clip(1 + np.float32(0.075) * random_field(rng, 50.0, axes), 0.85, 1.15)
    inflow, fade_mm, snr = rng.uniform((5.6, 80, 12), (6.4, 120, 18))

    image = _render_tissue(head, grid, _MRA, texture=3.5)
    there = lumen.coverage > 0
    radius = lumen.radius_mm[there]
    fresh_mm = 80.0  # of the way: as far as the siphon
    late = np.maximum(lumen.travelled_mm[there] - fresh_mm, 0) / fade_mm
    contrast = inflow * radius / (radius + 0.25) * np.exp(-late * 1.3 / np.clip(radius, 0.5, 2))
    _fill(image, lumen, 100 + 100 * contrast)
    image, _ = blur(image, grid, 0.25)
    image *= bias

    sigma = np.float32(100 / snr)  # of each of the two channels; the magnitude of both is Rician
    image += sigma * rng.standard_normal(grid.shape, dtype=np.float32)
    quadrature = sigma * rng.standard_normal(grid.shape, dtype=np.float32)
    return np.rint(np.hypot(image, quadrature)).astype(np.int16)


def render_cta(rng: np.random.Generator, lumen: Lumen, grid: Grid, anatomy: Anatomy) -> np.ndarray:
    """A CT angiogram, (X, Y, Z) int16 HU."""
    head = draw_head(rng, grid, anatomy)
    # Contrast differs between protocols: 321 +- 47 HU at 100 kVp, 436 +- 50 at 70 kVp (Korean J
    # Radiol, kjr.2025.1520), so the whole range; MCA over ICA 0.88 (tomography7040059).
    artery, fall, vein, sigma = rng.uniform((255, 0.0, 100, 11.5), (570, 0.12, 180, 13.5))
    calcified = rng.random() < 0.7  # 50 % of people at 41-60 years, 90 % at 61-80 years
    plaques = [_draw_plaque(rng, anatomy) for _ in range(5)]

    image = _render_tissue(head, grid, _CTA, texture=3.0)
    veins = rasterize(_veins(head.centre, anatomy), grid, BEYOND)
    _fill(image, veins, vein)
    for plaque in plaques if calcified else ():
        _paint_plaque(image, lumen, grid, plaque)
    way = np.minimum(lumen.travelled_mm[lumen.coverage > 0] / 150, 1)
    _fill(image, lumen, artery * (1 - fall * way))

    # Reconstruction blurs the noise too, to a grain: so more of it goes in, for sigma to come out.
    image, _ = blur(image, grid, 0.35)
    noise, left = blur(rng.standard_normal(grid.shape, dtype=np.float32), grid, 0.35)
    image += np.float32(sigma / left) * noise
    return np.rint(np.clip(image, -1024, 3071)).astype(np.int16)


def _render_tissue(head: Head, grid: Grid, modality: int, texture: float) -> np.ndarray:
    """(X, Y, Z) float32: the head without its arteries; `texture` is the SD of parenchyma."""
    value = {name: float(pair[modality]) for name, pair in _TISSUES.items()}
    soft = value["white"] + np.float32(texture) * (0.6 * head.fine + 0.8 * head.coarse)
    for name in ("grey", "muscle", "fat", "sinus"):
        paint(soft, value[name], head.tissue[name], NODE_MM)
    # Diploe: marrow under a table of bone, broken up by trabeculae.
    marrow = np.clip(-head.tissue["bone"] - 0.8, 0, 1) + 0.35 * head.fine
    bone = value["bone"] + (value["marrow"] - value["bone"]) * np.clip(marrow, -0.8, 1.3)

    axes = [axis - middle for axis, middle in zip(grid.axes_mm, head.centre, strict=True)]
    weights = [node_weights(axis, nodes) for axis, nodes in zip(axes, head.axes, strict=True)]
    image = interpolate(soft, weights)
    edge = float(grid.spacing_mm.mean())
    paint(image, value["csf"], interpolate(head.tissue["csf"], weights), edge)
    bone = interpolate(bone, weights)
    paint(image, bone, interpolate(head.tissue["bone"], weights), edge)
    paint(image, value["air"], interpolate(head.tissue["air"], weights), edge)
    return image


def _fill(image: np.ndarray, lumen: Lumen, signal: np.ndarray | float) -> None:
    """Lay the lumen over the image; `signal` is one, or (N,) where `lumen.coverage` is positive."""
    there = lumen.coverage > 0
    image[there] += lumen.coverage[there] * (signal - image[there])


class _Plaque(NamedTuple):
    """Calcium in the wall of an artery: an ellipsoid on the wall nearest to a place (LPS mm)."""

    place: np.ndarray
    half_axes: np.ndarray  # mm
    hu: float


def _draw_plaque(rng: np.random.Generator, anatomy: Anatomy) -> _Plaque:
    """On the siphons, or more rarely where the vertebral arteries end."""
    names = ("C4/C5 R", "C4/C5 L", "ICA/OA R", "ICA/OA L")
    sites = [*(anatomy.landmarks_mm[COW19.landmark(n)] for n in names), anatomy.vertebral_mm]
    place = sites[rng.integers(len(sites))] + rng.normal(0, 4, 3)
    return _Plaque(place, rng.uniform(0.6, 1.8, 3), rng.uniform(600, 1200))


def _paint_plaque(image: np.ndarray, lumen: Lumen, grid: Grid, plaque: _Plaque) -> None:
    """Nothing where no wall is within a centimetre; what juts into the lumen is painted over."""
    box = tuple(
        slice(*np.searchsorted(axis, (x - 10, x + 10)))
        for axis, x in zip(grid.axes_mm, plaque.place, strict=True)
    )
    q = np.meshgrid(
        *(axis[part] for axis, part in zip(grid.axes_mm, box, strict=True)),
        indexing="ij",
        sparse=True,
    )
    wall = np.abs(lumen.coverage[box] - 0.5) < 0.3
    if wall.any():
        x, y, z = (part - at for part, at in zip(q, plaque.place, strict=True))
        nearest = np.where(wall, x**2 + y**2 + z**2, np.inf).argmin()
        index = np.unravel_index(nearest, wall.shape)
        centre = [float(part.reshape(-1)[i]) for part, i in zip(q, index, strict=True)]
        distance = ball(q, centre, [float(a) for a in plaque.half_axes])
        paint(image[box], plaque.hu, distance, float(grid.spacing_mm.mean()))


# Deep veins beside the arteries, in the standard head: radius and points (mm), the left of two.
_VEINS_MM = (
    (0.9, ((16, -3, 8), (14, 8, 1), (20, 20, 5), (13, 32, 12), (2, 39, 16))),  # basal
    (0.9, ((2, -8, 22), (2, 8, 22), (2, 25, 19), (1, 37, 16))),  # internal cerebral
    (1.8, ((0, 36, 15), (0, 43, 18), (0, 52, 26))),  # great, straight sinus
)


def _veins(centre: np.ndarray, anatomy: Anatomy) -> list[Vessel]:
    """Tubes for the veins of both sides."""
    veins = []
    for radius, points in _VEINS_MM:
        for side in (-1, 1):
            course = CubicSpline(np.arange(len(points)), np.array(points) * (side, 1, 1))
            at = centre + course(np.linspace(0, len(points) - 1, 60)) @ anatomy.rotation.T
            veins.append(Vessel("vein", -1, at, np.full(60, radius), np.zeros(60)))
    return veins
