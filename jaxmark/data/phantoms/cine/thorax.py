"""What surrounds the heart on a slice: chest wall, lungs, liver, bowel, spine and great vessels.

Frames have their origin in the middle of the LV. Sizes are ours, read off real slices.
"""

from dataclasses import dataclass

import numpy as np

from jaxmark.data.phantoms.cine.tissue import Canvas, Contrast
from jaxmark.data.phantoms.solids import common, ellipsoid

_RIBS = 23.0  # around the chest


@dataclass(frozen=True)
class Build:
    """A person's figure; mm and degrees."""

    size: float  # factor
    fat: float  # under the skin
    lean: float  # of the chest in a short-axis slice
    shift: np.ndarray  # (2,) of the heart in the chest


def draw_build(rng: np.random.Generator) -> Build:
    """Fat from the lean to the obese."""
    return Build(
        size=float(rng.normal(1.0, 0.06)),
        fat=float(np.clip(rng.gamma(3.0, 5.0), 4, 42)),
        lean=float(rng.normal(-8, 7)),
        shift=rng.normal(0, 6, 2),
    )


def paint_short_axis(
    rng: np.random.Generator, canvas: Canvas, build: Build, contrast: Contrast, heart_mm: float
) -> None:
    """The chest around a short-axis slice: front on the left, head up; the heart is not in it.

    Args:
      heart_mm: from the LV's centre to the lower edge of the heart, which lies on the diaphragm.
    """
    x, y = canvas.plane.places
    lean = np.deg2rad(build.lean)
    cos, sin = np.float32(np.cos(lean)), np.float32(np.sin(lean))
    turned = (cos * x + sin * y, cos * y - sin * x)
    centre = np.array([27.0, 12.0]) + build.shift
    half = (103 * build.size, 165 * build.size)
    chest = ellipsoid(turned, centre.tolist(), half)
    behind = np.clip(x / np.float32(90.0), 0, 1)
    _paint_wall(rng, canvas, build, contrast, chest, 9 + 52 * behind)
    hilum = np.array([40.0, -40.0]) + rng.normal(0, 10, 2)
    _paint_lung_vessels(rng, canvas, contrast, hilum, 26.0, 26)
    slope, bend, rest = rng.normal(0.1, 0.12), rng.uniform(0.0005, 0.0025), heart_mm + 2
    dome = np.float32(rest) + np.float32(slope) * x + np.float32(bend) * (x + 10) ** 2
    abdomen = common(dome - y, chest)
    canvas.fill(-contrast.fat * 0.85, abdomen)

    def is_inside(place: np.ndarray) -> bool:
        return bool((((place - centre) / half) ** 2).sum() < 0.8)

    # Bowel, stomach, spleen and kidney lie in fat, behind and below the liver.
    for k in range(10):
        place = np.array([rng.uniform(0, 105), rest + 20 + 15 * k + rng.normal(0, 7)])
        content = rng.choice([0.1, contrast.liver, contrast.spleen, 0.6, 0.8])
        axes, turn = (rng.uniform(12, 40), rng.uniform(9, 20)), rng.uniform(-50, 50)
        if is_inside(place):
            canvas.blob(contrast.skeletal, place, (axes[0] + 1.5, axes[1] + 1.5), turn)
            canvas.blob(float(content), place, axes, turn)
    middle = np.array([rng.normal(-42, 14), rest + rng.normal(58, 10)])
    liver = ellipsoid(
        canvas.plane.places, middle.tolist(), (rng.uniform(62, 92), rng.uniform(60, 85))
    )
    canvas.fill(contrast.liver, common(liver, abdomen))
    for _ in range(14):
        place = middle + rng.normal(0, 28, 2)
        axes, turn = (rng.uniform(1.5, 8), rng.uniform(1, 2.5)), rng.uniform(0, 180)
        if is_inside(place) and place[1] > rest + 8:
            canvas.blob(contrast.liver + 0.35, place, axes, turn)
    aorta = np.array([rng.normal(58, 7), rng.normal(38, 10)])
    canvas.blob(contrast.skeletal, aorta, (13.5, 15.5))
    canvas.blob(contrast.blood * rng.uniform(0.85, 1.1), aorta, (11.5, rng.uniform(11.5, 20)))


def paint_long_axis(
    rng: np.random.Generator, canvas: Canvas, build: Build, contrast: Contrast
) -> None:
    """The chest around a four-chamber slice: front up, the person's right on the left."""
    x, y = canvas.plane.places
    centre = np.array([-26.0, 14.0]) + build.shift
    half = (138 * build.size, 92 * build.size)
    chest = ellipsoid((x, y), centre.tolist(), half)
    behind = np.clip((y - np.float32(centre[1])) / np.float32(60.0), 0, 1)
    _paint_wall(rng, canvas, build, contrast, chest, 9 + 24 * behind)
    for side in (-1, 1):
        hilum = np.array([-30.0 + side * 55, 25.0]) + rng.normal(0, 8, 2)
        _paint_lung_vessels(rng, canvas, contrast, hilum, 24.0, 16)
    # The liver's dome, in slices that are tilted enough.
    dome = rng.uniform(0, 1)
    place = centre + np.array([-half[0] * 0.62, rng.normal(2, 8)])
    if dome < 0.5:
        canvas.blob(contrast.liver, place, (rng.uniform(20, 48), rng.uniform(28, 50)), 15)
    spine = centre + np.array([rng.normal(-8, 4), half[1] - rng.uniform(10, 16)])
    canvas.blob(contrast.skeletal * 0.4, spine, (20, 17))
    canvas.blob(contrast.marrow, spine, (18, 15))
    canal = spine + np.array([0.0, 24.0])
    canvas.blob(-contrast.fat * 0.6, canal, (11, 9))
    canvas.blob(contrast.blood * 1.1, canal, (8, 6))
    aorta = spine + np.array([rng.normal(22, 3), rng.normal(-14, 3)])
    canvas.blob(contrast.skeletal, aorta, (13.5, 13.5))
    canvas.blob(contrast.blood * rng.uniform(0.8, 1.1), aorta, (11.5, 11.5))


def _paint_wall(
    rng: np.random.Generator,
    canvas: Canvas,
    build: Build,
    contrast: Contrast,
    chest: np.ndarray,
    muscle_mm: np.ndarray,
) -> None:
    """Skin, fat, muscle and ribs around the inside of the chest, which is filled with lung."""
    x, y = canvas.plane.places
    around = np.arctan2(y - np.float32(build.shift[1]), x - np.float32(build.shift[0]))
    a, b, c = rng.uniform(0, 2 * np.pi, 3).astype(np.float32)
    fat = build.fat * (1 + 0.3 * np.cos(around - a) + 0.2 * np.cos(2 * around - b))
    body = chest - muscle_mm - fat
    canvas.fill(contrast.skeletal, body)
    canvas.fill(-contrast.fat, body + 2)
    canvas.fill(contrast.skeletal, chest - muscle_mm)
    # Fat between layers of muscle, and marrow in the ribs.
    seam = np.abs(chest - muscle_mm * (0.62 + 0.12 * np.cos(5 * around + c))) - 1.0
    canvas.fill(-contrast.fat * 0.6, seam)
    ribs = np.abs(chest - 4) - 3 * np.cos(_RIBS / 2 * around - c)
    canvas.fill(contrast.marrow * 1.2, ribs)
    canvas.fill(-contrast.fat * 0.5, np.abs(chest - 0.5) - 0.8)
    canvas.fill(contrast.lung, chest)


def _paint_lung_vessels(
    rng: np.random.Generator,
    canvas: Canvas,
    contrast: Contrast,
    hilum: np.ndarray,
    spread_mm: float,
    count: int,
) -> None:
    for _ in range(count):
        place = hilum + rng.normal(0, spread_mm, 2)
        away = float(np.linalg.norm(place - hilum)) / spread_mm
        thick = rng.uniform(0.8, 3.2) / (1 + away)
        long = thick * rng.uniform(1, 4)
        canvas.blob(
            contrast.blood * rng.uniform(0.3, 0.9), place, (long, thick), rng.uniform(0, 180)
        )
