"""A four-chamber slice: LV and RV, both atria, the mitral valve's hinges, apex and base."""

from dataclasses import dataclass

import numpy as np

from jaxmark.data.phantoms.cine.heart import (
    APEX_WALL,
    RV_WALL_MM,
    WIDEST,
    Moment,
    cavity_width,
)
from jaxmark.data.phantoms.cine.plane import Plane
from jaxmark.data.phantoms.cine.tissue import Canvas, Contrast
from jaxmark.data.phantoms.solids import common, ellipsoid, rod, union

# The LV's axis points to the right of the picture and up.
_AXIS_DEGREES, _AXIS_SD_DEGREES = -48.0, 12.0
# The frame's origin: a share of the way from the mitral plane to the apex.
_ORIGIN = 0.4
_TRICUSPID_MM = 6.0  # nearer to the apex than the mitral valve
_RV_LENGTH = 0.84  # share of the LV's
_RV_TAPER = 2.2  # 1: the RV is a triangle
_STEP_MM = 0.25  # of tables along the axis


@dataclass(frozen=True)
class Axis:
    """The LV's axis in the frame of a slice, and its mitral plane at a moment."""

    moment: Moment
    along: np.ndarray  # (2,) to the apex
    across: np.ndarray  # (2,) to the RV
    tilt: float  # of the mitral plane: mm along the axis a mm across

    @property
    def degrees(self) -> float:
        """Of its direction to the apex, clockwise from the right of the picture."""
        return float(np.rad2deg(np.arctan2(self.along[1], self.along[0])))

    def place(self, t: float, b: float) -> np.ndarray:
        """(2,) mm of the frame: `t` mm from the mitral plane to the apex, `b` to the RV."""
        heart = self.moment.heart
        s = t + self.moment.plane + self.tilt * b - _ORIGIN * heart.length
        return s * self.along + b * self.across

    def coordinates(self, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        """t and b of all pixels."""
        x, y = plane.places
        (ax, ay), (bx, by) = self.along.astype(np.float32), self.across.astype(np.float32)
        b = x * bx + y * by
        s = x * ax + y * ay + np.float32(_ORIGIN * self.moment.heart.length)
        return s - np.float32(self.moment.plane) - np.float32(self.tilt) * b, b

    @property
    def points(self) -> np.ndarray:
        """(4, 2) mm of the frame: mitral hinge at the septum, at the free wall, apex, base."""
        half = self.moment.annulus / 2
        places = ((0.0, half), (0.0, -half), (self.moment.length, 0.0), (0.0, 0.0))
        return np.stack([self.place(t, b) for t, b in places])


def draw_axis(rng: np.random.Generator, moment: Moment) -> Axis:
    """How the heart lies in the slice; it doesn't depend on the moment."""
    angle = np.deg2rad(rng.normal(_AXIS_DEGREES, _AXIS_SD_DEGREES))
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([along[1], -along[0]])
    return Axis(moment, along, across, float(rng.normal(0.0, 0.07)))


def paint_heart(rng: np.random.Generator, canvas: Canvas, contrast: Contrast, axis: Axis) -> None:
    """Fat, both atria, both ventricles and the valves, over what is there."""
    moment, heart = axis.moment, axis.moment.heart
    t, b = axis.coordinates(canvas.plane)
    septum, free_wall = moment.wall * heart.septum * 0.95, moment.wall
    inner = _chamber(t, b, moment.length, moment.annulus / 2, moment.radius)
    outer = common(
        np.where(b > 0, _around(t, b, moment, septum), _around(t, b, moment, free_wall)), -t - 2
    )
    from_septum = moment.annulus / 2 + septum  # of the RV's base
    free = _rv_free_wall(t, b, moment, septum)
    rv_base = np.float32(_TRICUSPID_MM) - t
    atria = _atria(rng, t, b, moment, from_septum)
    beyond = t - np.float32(moment.length + APEX_WALL * moment.wall)
    rv_wall = common(free - np.float32(RV_WALL_MM), rv_base - 2, -b, beyond)
    outline = union(outer, rv_wall, *(atrium - 2 for atrium in atria))
    swell = np.clip(t / np.float32(moment.length), 0, 1.2)
    fat = np.float32(heart.fat) * (np.float32(0.3) + swell)
    canvas.fill(contrast.skeletal, outline - fat - 1.2)
    canvas.fill(-contrast.fat * 0.8, outline - fat)
    groove = axis.place(-3.0, -(moment.annulus / 2 + free_wall * 0.8))
    canvas.blob(-contrast.fat * 0.8, groove, (8, 6), rng.uniform(0, 180))
    right = axis.place(_TRICUSPID_MM - 4, from_septum + moment.rv + 3)
    canvas.blob(-contrast.fat * 0.8, right, (10, 7), rng.uniform(0, 180))
    for place in (groove, right):
        canvas.blob(contrast.blood * 0.8, place, (1.8, 1.8))
    for atrium in atria:
        canvas.fill(contrast.muscle, atrium - 2)
    canvas.fill(contrast.muscle, rv_wall)
    canvas.fill(contrast.blood * rng.uniform(0.82, 1.0), common(free, -outer, rv_base, -b))
    _paint_rv_muscle(rng, canvas, contrast, axis, septum)
    canvas.fill(contrast.muscle, outer)
    for atrium in atria:
        canvas.fill(contrast.blood * rng.uniform(0.85, 1.0), atrium)
    # Blood from the atria on both sides of the valves.
    canvas.fill(contrast.blood * 0.95, common(np.abs(b) - moment.annulus / 2, t, -6 - t))
    canvas.fill(contrast.blood, common(inner, -t))
    _paint_papillary_muscle(rng, canvas, contrast, axis)
    _paint_valves(rng, canvas, contrast, axis, (t, b), from_septum)


def _chamber(t: np.ndarray, b: np.ndarray, length: float, base: float, widest: float) -> np.ndarray:
    """Signed distances (mm) from a ventricle's contour: `heart.cavity_width`, around the axis."""
    at = np.arange(0, WIDEST * length + 1, _STEP_MM)
    widths = cavity_width(at, length, base, widest)
    slopes = 1 / np.sqrt(1 + np.gradient(widths, _STEP_MM) ** 2)
    index = np.clip(np.rint(t / np.float32(_STEP_MM)), 0, len(at) - 1).astype(np.int32)
    beside = (np.abs(b) - widths.astype(np.float32)[index]) * slopes.astype(np.float32)[index]
    middle = WIDEST * length
    tip = ellipsoid((t, b), (middle, 0.0), (length - middle, widest))
    return np.where(t < middle, beside, tip)


def _around(t: np.ndarray, b: np.ndarray, moment: Moment, wall: float) -> np.ndarray:
    """The epicardium of one side, whose wall is so thick."""
    length = moment.length + APEX_WALL * moment.wall
    return _chamber(t, b, length, moment.annulus / 2 + 0.8 * wall, moment.radius + wall)


def _rv_free_wall(t: np.ndarray, b: np.ndarray, moment: Moment, septum: float) -> np.ndarray:
    """Signed distances (mm) from the inside of the RV's free wall; it meets the septum near the
    apex."""
    at = np.arange(0, moment.length + 40, _STEP_MM)
    length = moment.length + APEX_WALL * moment.wall
    base, widest = moment.annulus / 2 + 0.8 * septum, moment.radius + septum
    u = np.clip((at - _TRICUSPID_MM) / (_RV_LENGTH * moment.length), 0, None)
    bulge = np.where(u < 1, moment.rv * (1 - np.minimum(u, 1) ** _RV_TAPER), -4.0)
    widths = cavity_width(at, length, base, widest) + bulge
    slopes = 1 / np.sqrt(1 + np.clip(np.gradient(widths, _STEP_MM), -3, 3) ** 2)
    index = np.clip(np.rint(t / np.float32(_STEP_MM)), 0, len(at) - 1).astype(np.int32)
    return (b - widths.astype(np.float32)[index]) * slopes.astype(np.float32)[index]


def _atria(
    rng: np.random.Generator, t: np.ndarray, b: np.ndarray, moment: Moment, from_septum: float
) -> list[np.ndarray]:
    """Left and right; their roofs keep still, so that they are longest at end-systole.

    However large they are, a septum is left between them.
    """
    found = []
    right, septum = from_septum + 0.45 * moment.rv, moment.annulus / 2 + 3.5
    sides = ((-1.0, 0.0, b - (septum - 1.5)), (right, _TRICUSPID_MM, septum + 1.5 - b))
    for middle, base, beyond in sides:
        half = moment.left_atrium / 2 * rng.normal(1.0, 0.06)
        long = half * rng.uniform(1.15, 1.4) + moment.plane / 2
        whole = ellipsoid((t, b), (base - 0.72 * long, middle), (long, half))
        found.append(common(whole, beyond))
    return found


def _paint_papillary_muscle(
    rng: np.random.Generator, canvas: Canvas, contrast: Contrast, axis: Axis
) -> None:
    """The anterolateral one, in the slices that cut it; trabeculae at the apex."""
    cut, level, thick = rng.random() < 0.5, rng.uniform(0.5, 0.68), rng.uniform(2.5, 4.5)
    moment = axis.moment
    if cut:
        place = axis.place(level * moment.length, -0.66 * moment.inner_radius(level))
        canvas.blob(contrast.muscle, place, (2.6 * thick, thick), axis.degrees)
    for _ in range(5):
        side, level = rng.choice([-1, 1]), rng.uniform(0.7, 0.95)
        place = axis.place(level * moment.length, 0.92 * side * moment.inner_radius(level))
        canvas.blob(contrast.muscle, place, (rng.uniform(2, 5), 1.4), axis.degrees + 25 * side)


def _paint_rv_muscle(
    rng: np.random.Generator, canvas: Canvas, contrast: Contrast, axis: Axis, septum: float
) -> None:
    """The moderator band and trabeculae, towards the apex."""
    moment = axis.moment
    for _ in range(8):
        u, share = rng.uniform(0.35, 0.85), rng.uniform(0.3, 1.0)
        thick, turn = rng.uniform(1.0, 2.4), rng.normal(0, 35)
        t = _TRICUSPID_MM + u * _RV_LENGTH * moment.length
        at = moment.inner_radius(min(t / moment.length, 0.98)) + septum
        place = axis.place(t, at + share * moment.rv * (1 - u**_RV_TAPER))
        canvas.blob(contrast.muscle * 1.2, place, (2.5 * thick, thick), axis.degrees + turn)


def _paint_valves(
    rng: np.random.Generator,
    canvas: Canvas,
    contrast: Contrast,
    axis: Axis,
    places: tuple[np.ndarray, np.ndarray],
    from_septum: float,
) -> None:
    """Thin leaflets from the hinges: they meet in systole, and may still be open before it."""
    moment = axis.moment
    still_open, tent, off = rng.random() < 0.6, rng.uniform(4, 9), rng.normal(0, 2)
    is_open = still_open and moment.contraction < 0.05
    t, b = places
    right = from_septum + moment.rv / 2
    for middle, half, base in (
        (0.0, moment.annulus / 2, 0.0),
        (right, 0.45 * moment.rv, _TRICUSPID_MM),
    ):
        for side in (-1, 1):
            hinge = (base, middle + side * half, 0.0)
            tip = (base + tent, middle + off, 0.0)
            if is_open:
                tip = (base + 1.1 * half, middle + 0.55 * side * half, 0.0)
            leaf = rod((t, b, np.zeros(1, np.float32)), hinge, tip, 0.6)
            canvas.fill(contrast.muscle, leaf)
