"""The aortic root: annulus, three sinuses, where the coronary arteries leave, and the leaflets.

Places are in the standard heart's frame: mm, LPS axes, the origin in the middle of the annulus.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import PchipInterpolator

# Angles around the root's axis: 0 is the middle of the right sinus, in front, and 90 the left.
LEFT_SINUS, NON_CORONARY_SINUS = np.radians(120.0), np.radians(-120.0)
_OUTFLOW_MM = 14.0  # how far the outflow tract is followed below the annulus
_ABOVE_MM = 16.0  # from the sinotubular junction to where the aorta is a tube


@dataclass(frozen=True)
class Root:
    """Sizes of one person's root, mm."""

    # (3,) unit vectors: along the flow; to the middle of the right sinus; to the left of both.
    axis: np.ndarray
    front: np.ndarray
    left: np.ndarray
    annulus: float  # radius
    bulge: float  # of the sinuses beyond the line from annulus to sinotubular junction
    junction: float  # radius at the sinotubular junction
    ascending: float  # radius of the aorta above
    height: float  # from annulus to sinotubular junction

    def radius(self, h: np.ndarray, angle: np.ndarray) -> np.ndarray:
        """The lumen's radius at a height above the annulus and an angle around the axis."""
        plain = self._plain(np.clip(h, -_OUTFLOW_MM, self.height + _ABOVE_MM))
        swell = np.sin(np.pi * np.clip(h / self.height, 0, 1)) ** 0.8
        return plain + self.bulge * swell * np.abs(np.cos(1.5 * angle))

    @cached_property
    def _plain(self) -> PchipInterpolator:
        """The radius by height without the sinuses."""
        heights = (-_OUTFLOW_MM, 0.0, self.height, self.height + _ABOVE_MM)
        radii = (0.95 * self.annulus, self.annulus, self.junction, self.ascending)
        return PchipInterpolator(heights, radii)

    def wall(self, h: float, angle: float) -> np.ndarray:
        """(3,): the place on the wall at a height and an angle."""
        radius = float(self.radius(np.array(h), np.array(angle)))
        return h * self.axis + radius * self.outward(angle)

    def outward(self, angle: float) -> np.ndarray:
        """(3,): the unit vector from the axis at an angle."""
        return np.cos(angle) * self.front + np.sin(angle) * self.left

    def lumen(self, q: np.ndarray) -> np.ndarray:
        """Signed distance from the lumen at places (3, ...), about right near the wall.

        It ends `_OUTFLOW_MM` below the annulus and where the aorta goes on as a tube.
        """
        h, rho, angle = self._cylinder(q)
        ends = np.maximum(-_OUTFLOW_MM - h, h - self.height - _ABOVE_MM)
        return np.maximum(rho - self.radius(h, angle), ends).astype(np.float32)

    def leaflets(self, q: np.ndarray) -> np.ndarray:
        """Distance along the axis from the closed leaflets at places (3, ...).

        Each leaflet is attached along a crown: lowest in the middle of its sinus, at the annulus,
        and up to the sinotubular junction at the commissures. From there it goes straight to where
        all three meet on the axis, at half the height.
        """
        h, rho, angle = self._cylinder(q)
        attached = self.height * (1 - np.abs(np.cos(1.5 * angle)))
        share = np.clip(rho / self.radius(h, angle), 0, 1)
        leaflet = attached * share + 0.5 * self.height * (1 - share)
        return np.abs(h - leaflet).astype(np.float32)

    def _cylinder(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        h, x, y = (np.tensordot(unit, q, 1) for unit in (self.axis, self.front, self.left))
        return h, np.hypot(x, y), np.arctan2(y, x)
