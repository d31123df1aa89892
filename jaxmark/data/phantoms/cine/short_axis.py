"""A short-axis slice: ring of the LV, crescent of the RV, and where the RV inserts."""

from dataclasses import dataclass

import numpy as np

from jaxmark.data.phantoms.cine import plane as planar
from jaxmark.data.phantoms.cine.heart import RV_WALL_MM, Moment
from jaxmark.data.phantoms.cine.tissue import Canvas, Contrast
from jaxmark.data.phantoms.solids import common

# From the LV's centre to the RV's middle: left in the picture, a little down.
_RV_DEGREES, _RV_SD_DEGREES = 168.0, 15.0
# Beside the insertion points the RV's contour lies so far inside the LV's wall.
_SUNK_MM = 3.0


@dataclass(frozen=True)
class Ring:
    """Contours as tables of `plane.angles`, mm from the LV's centre, and landmarks (3, 2)."""

    inner: np.ndarray
    outer: np.ndarray
    # The inside of the RV's free wall.
    free: np.ndarray
    rv_degrees: float
    # RV insertion anterior and inferior, LV centre.
    points: np.ndarray

    @property
    def lower_edge_mm(self) -> float:
        """How far the LV's wall reaches downwards in the picture."""
        return float((self.outer * np.sin(planar.angles())).max())


def draw_ring(rng: np.random.Generator, moment: Moment, level: float) -> Ring:
    """The contours at a level, 0 (mitral plane) to 1 (the cavity's apex).

    What is drawn at random doesn't depend on the moment: all frames show one person.
    """
    heart = moment.heart
    radius = moment.inner_radius(level)
    middle = rng.normal(_RV_DEGREES, _RV_SD_DEGREES)
    shape = planar.waves(rng, (2, 3, 4), 0.055)
    rough = planar.waves(rng, (7, 9, 10, 12, 15), 0.16) * min(1.0, 0.4 + level)
    smooth = radius * (1 + shape)
    thick = moment.wall * (1 - 0.15 * level) * (1 + planar.waves(rng, (1, 2, 3), 0.06))
    thick *= 1 + (heart.septum - 1) * planar.bump(middle, 55)
    direction, half, left = heart.scar
    if half:
        thick *= 1 - (1 - left) * planar.bump(middle + 180 + direction, half)
    outer = smooth + thick
    arc = heart.rv_arc * (1.06 - 0.3 * level) * (1 + 0.04 * moment.contraction)
    lower, upper = middle - arc / 2, middle + arc / 2
    skew, blunt = rng.uniform(0.85, 1.2), rng.uniform(0.55, 0.8)
    u = np.rad2deg(planar.angles()) - lower
    u = (u % 360) / arc
    bulge = moment.rv * (1 - 0.9 * level**1.6)
    profile = np.sin(np.pi * np.clip(u, 0, 1) ** skew) ** blunt
    free = outer + np.where(u <= 1, bulge * profile, -_SUNK_MM)
    ends = np.deg2rad([upper, lower])
    reach = np.interp(ends, planar.angles(), outer, period=2 * np.pi)
    inserts = reach[:, None] * np.stack([np.cos(ends), np.sin(ends)], axis=1)
    # Papillary muscles and trabeculae count as cavity, as readers draw it.
    centre = planar.centroid(smooth)
    inner = smooth * (1 + rough * 0.35)
    return Ring(inner, outer, free, middle, np.vstack([inserts, centre]))


def paint_heart(
    rng: np.random.Generator,
    canvas: Canvas,
    contrast: Contrast,
    moment: Moment,
    ring: Ring,
    level: float,
) -> None:
    """Fat, both ventricles, papillary muscles and trabeculae, over what is there."""
    rays = planar.rays(canvas.plane)
    outer, free = rays.inside(ring.outer), rays.inside(ring.free)
    wall_mm = RV_WALL_MM * (1 + 0.4 * moment.contraction)
    outline = planar.smoothed(np.maximum(ring.outer, ring.free + wall_mm), 5.0)
    ends = np.rad2deg(np.arctan2(ring.points[:2, 1], ring.points[:2, 0]))
    # Fat lies in the grooves between the ventricles, and over the RV.
    depth = 0.2 + planar.bump(ring.rv_degrees, 50) + sum(planar.bump(end, 14) for end in ends)
    depth = moment.heart.fat * np.maximum(depth + planar.waves(rng, (2, 3, 5, 7), 1.0), 0.05)
    canvas.fill(contrast.skeletal, rays.inside(outline + depth + 1.2))
    canvas.fill(-contrast.fat * 0.8, rays.inside(outline + depth))
    canvas.fill(contrast.muscle, rays.inside(planar.smoothed(ring.free + wall_mm, 2.0)))
    crescent = common(free, -outer)
    canvas.fill(contrast.blood * rng.uniform(0.8, 1.0), crescent)
    _paint_rv_muscle(rng, canvas, contrast, ring)
    canvas.fill(contrast.muscle, outer)
    canvas.fill(contrast.blood, rays.inside(ring.inner))
    _paint_trabeculae(rng, canvas, contrast, ring)
    _paint_papillary_muscles(rng, canvas, contrast, moment, ring, level)


def _paint_papillary_muscles(
    rng: np.random.Generator,
    canvas: Canvas,
    contrast: Contrast,
    moment: Moment,
    ring: Ring,
    level: float,
) -> None:
    """Two, opposite to the RV, from the middle of the ventricle to near its apex."""
    share = float(np.clip(min(level - 0.22, 0.95 - level) / 0.12, 0, 1))
    for side in (-1, 1):
        angle = np.deg2rad(ring.rv_degrees + 180 + side * rng.uniform(40, 75))
        far, size = rng.uniform(0.6, 0.78), rng.uniform(0.13, 0.2)
        heads = rng.integers(1, 3)
        inner = planar.radius_at(ring.inner, angle)
        thick = size * moment.heart.lv_diameter / 2 * share
        for _ in range(heads):
            place = (far + rng.normal(0, 0.05)) * inner * np.array([np.cos(angle), np.sin(angle)])
            place += rng.normal(0, 1.5, 2)
            turn, fits = rng.uniform(0, 180), min(thick, 0.3 * inner)
            if fits > 0.8:
                canvas.blob(contrast.muscle, place, (fits, fits * 0.8), turn)


def _paint_trabeculae(
    rng: np.random.Generator, canvas: Canvas, contrast: Contrast, ring: Ring
) -> None:
    """Along the inside of the LV's wall, but for the septum, which is smooth."""
    for _ in range(rng.integers(4, 14)):
        angle = np.deg2rad(ring.rv_degrees + 180 + rng.uniform(-120, 120))
        inner = planar.radius_at(ring.inner, angle)
        place = rng.uniform(0.86, 1.0) * inner * np.array([np.cos(angle), np.sin(angle)])
        thick, turn = min(rng.uniform(0.8, 2.4), 0.15 * inner), rng.uniform(0, 180)
        canvas.blob(contrast.muscle * 1.3, place, (1.6 * thick, thick), turn)


def _paint_rv_muscle(
    rng: np.random.Generator, canvas: Canvas, contrast: Contrast, ring: Ring
) -> None:
    """Trabeculae along the RV's free wall."""
    for _ in range(16):
        angle = np.deg2rad(ring.rv_degrees + rng.uniform(-45, 45))
        near, far = (planar.radius_at(radii, angle) for radii in (ring.outer, ring.free))
        depth = rng.beta(4, 1.2)
        thick, value = rng.uniform(0.7, 1.9), rng.uniform(1.1, 2.2)
        long = thick * rng.uniform(1, 2.5)
        if far - near < 5:
            continue
        place = (near + depth * (far - near)) * np.array([np.cos(angle), np.sin(angle)])
        canvas.blob(contrast.muscle * value, place, (long, thick), np.rad2deg(angle) + 90)
