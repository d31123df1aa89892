"""What tissues look like in balanced steady-state free precession; a slice that is painted.

Fat's signal is negative: at the usual echo time, half of the repetition time, fat is in opposite
phase to water, so that a pixel with both is dark. That is the black line around muscle in fat.
"""

from dataclasses import dataclass

import numpy as np

from jaxmark.data.phantoms.cine.plane import Plane
from jaxmark.data.phantoms.solids import ellipsoid, paint


@dataclass(frozen=True)
class Contrast:
    """Signals, as shares of blood's; fat's is its size."""

    blood: float
    muscle: float  # of the heart
    skeletal: float
    fat: float
    liver: float
    spleen: float
    marrow: float
    lung: float


def draw_contrast(rng: np.random.Generator, scanner: str) -> Contrast:
    """The two scanners differ in flip angle and field: B shows less contrast, and brighter fat."""
    weak = scanner == "B"
    return Contrast(
        blood=1.0,
        muscle=rng.uniform(0.32, 0.46) if weak else rng.uniform(0.22, 0.34),
        skeletal=rng.uniform(0.28, 0.4) if weak else rng.uniform(0.2, 0.32),
        fat=rng.uniform(0.9, 1.3) if weak else rng.uniform(0.65, 0.95),
        liver=rng.uniform(0.35, 0.6) if weak else rng.uniform(0.24, 0.46),
        spleen=rng.uniform(0.4, 0.7) if weak else rng.uniform(0.3, 0.5),
        marrow=rng.uniform(0.3, 0.45),
        lung=rng.uniform(0.04, 0.14),
    )


@dataclass(frozen=True)
class Canvas:
    """A slice that is painted: signed signals (X, Y), and the width of all edges (mm)."""

    signal: np.ndarray
    plane: Plane
    edge_mm: float

    def fill(self, value: float | np.ndarray, distance: np.ndarray) -> None:
        """Lay a value where the distance (mm) is negative."""
        paint(self.signal, value, distance, self.edge_mm)

    def blob(
        self,
        value: float,
        centre: np.ndarray | tuple[float, float],
        axes: tuple[float, float],
        degrees: float = 0.0,
    ) -> None:
        """Lay an ellipse with these half axes (mm), turned clockwise, at a place of the frame."""
        reach = max(axes) + 8.0
        middle = np.asarray(centre) @ self.plane.turn.T + self.plane.centre
        box = tuple(
            slice(*np.searchsorted(axis, (at - reach, at + reach)))
            for axis, at in zip(self.plane.grid.axes_mm[:2], middle, strict=True)
        )
        x, y = self.plane.x[box] - np.float32(centre[0]), self.plane.y[box] - np.float32(centre[1])
        if not x.size:
            return
        cos, sin = np.float32(np.cos(np.deg2rad(degrees))), np.float32(np.sin(np.deg2rad(degrees)))
        turned = (cos * x + sin * y, cos * y - sin * x)
        paint(self.signal[box], value, ellipsoid(turned, (0, 0), axes), self.edge_mm)


def blank(plane: Plane, edge_mm: float) -> Canvas:
    """Air."""
    return Canvas(np.zeros(plane.x.shape, np.float32), plane, edge_mm)
