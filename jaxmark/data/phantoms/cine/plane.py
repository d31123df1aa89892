"""Shapes on the plane of a slice, in millimetres: x to the right of the picture, y down."""

from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter1d, map_coordinates

from jaxmark.data.phantoms.grids import Grid

_ANGLES = 2048
_WARP_SIGMA_MM, _WARP_MM = 18.0, 1.6
# Beyond this slope, mm a radian by mm, a contour is nearly along the ray: it is held there.
_STEEPEST = 3.0


@dataclass(frozen=True)
class Plane:
    """Places of pixels in a heart's frame: turned about its centre, and a little warped.

    No person is an ellipse: a smooth random displacement bends all shapes, and the landmarks with
    them.
    """

    x: np.ndarray  # (X, Y)
    y: np.ndarray  # (X, Y)
    pixel_mm: float
    turn: np.ndarray  # (2, 2): frame to picture
    centre: np.ndarray  # (2,) of the frame, in the picture
    warp: np.ndarray  # (2, X, Y): displacement of each pixel, mm of the frame
    grid: Grid

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """As `solids` take them."""
        return self.x, self.y

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) mm of the frame -> (N, 2) mm of the picture, through the warp."""
        unwarped = points.copy()
        for _ in range(6):
            picture = unwarped @ self.turn.T + self.centre
            index = (picture - self.grid.ijk_to_lps[:2, 3]) / self.grid.spacing_mm[:2]
            moved = [map_coordinates(part, index.T, order=1, mode="nearest") for part in self.warp]
            unwarped = points - np.stack(moved, axis=1)
        result: np.ndarray = unwarped @ self.turn.T + self.centre
        return result


def draw_plane(rng: np.random.Generator, grid: Grid, centre: np.ndarray, degrees: float) -> Plane:
    """A frame at `centre` (mm) of a slice, turned by this angle; clockwise in the picture."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    axes = [axis.astype(np.float32) for axis in grid.axes_mm[:2]]
    middle = centre.astype(np.float32)
    across, down = axes[0][:, None] - middle[0], axes[1][None, :] - middle[1]
    warp = np.float32(_WARP_MM) * smooth_fields(rng, grid, (_WARP_SIGMA_MM, _WARP_SIGMA_MM))
    inverse = turn.T.astype(np.float32)
    x = inverse[0, 0] * across + inverse[0, 1] * down + warp[0]
    y = inverse[1, 0] * across + inverse[1, 1] * down + warp[1]
    return Plane(x, y, float(grid.spacing_mm[0]), turn, centre, warp, grid)


def smooth_fields(rng: np.random.Generator, grid: Grid, sigmas_mm: tuple[float, ...]) -> np.ndarray:
    """(N, X, Y) random fields of mean 0 and SD 1: white noise blurred by a Gaussian each.

    They are blurred in k-space, and repeat beyond the slice. `fields.random_field` has matrix
    products, which for fields as small as a slice's wait for threads longer than they compute.
    """
    shape = grid.shape[:2]
    fx, fy = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    pixels = np.array(sigmas_mm)[:, None, None] / grid.spacing_mm[0]
    gain = np.exp(-2 * np.pi**2 * pixels**2 * (fx**2 + fy**2)).astype(np.float32)
    white = rng.standard_normal((len(sigmas_mm), *shape), dtype=np.float32)
    fields = irfft2(rfft2(white) * gain, s=shape)
    # Of the variance of white noise a Gaussian leaves 1 / (4 pi sigma^2).
    return fields * (np.sqrt(4 * np.pi) * np.maximum(pixels, 0.3)).astype(np.float32)


@dataclass(frozen=True)
class Rays:
    """Distance and direction of all places from the middle of the frame."""

    radius: np.ndarray  # (X, Y) mm
    index: np.ndarray  # (X, Y) into tables of `angles`

    def inside(self, radii: np.ndarray) -> np.ndarray:
        """Signed distances (mm) from a closed contour with these radii, a table of `angles`.

        Right to first order near the contour.
        """
        slope = np.gradient(radii, 2 * np.pi / _ANGLES) / np.maximum(radii, 1.0)
        steep = np.sqrt(1 + np.minimum(np.abs(slope), _STEEPEST) ** 2)
        table, by = radii.astype(np.float32), (1 / steep).astype(np.float32)
        result: np.ndarray = (self.radius - table[self.index]) * by[self.index]
        return result


def angles() -> np.ndarray:
    """(N,) radians at which contours are tabled, from 0; growing is clockwise in the picture."""
    return np.arange(_ANGLES) * (2 * np.pi / _ANGLES)


def radius_at(radii: np.ndarray, angle: float) -> float:
    """Of a contour, a table of `angles`, at any angle in radians."""
    return float(np.interp(angle % (2 * np.pi), angles(), radii))


def rays(plane: Plane) -> Rays:
    """See `Rays`."""
    around = np.arctan2(plane.y, plane.x) * np.float32(_ANGLES / (2 * np.pi))
    return Rays(np.hypot(plane.x, plane.y), np.rint(around).astype(np.int32) % _ANGLES)


def waves(rng: np.random.Generator, orders: tuple[int, ...], sd: float) -> np.ndarray:
    """(N,) a random function of `angles` with mean 0: harmonics that fall with their order."""
    at = angles()
    total = np.zeros_like(at)
    for order in orders:
        a, b = rng.normal(0, sd / order, 2)
        total += a * np.cos(order * at) + b * np.sin(order * at)
    return total


def smoothed(radii: np.ndarray, degrees: float) -> np.ndarray:
    """A contour without corners: averaged over a Gaussian of this SD."""
    return gaussian_filter1d(radii, degrees / 360 * _ANGLES, mode="wrap")


def bump(middle_degrees: float, half_width_degrees: float) -> np.ndarray:
    """(N,) a smooth function of `angles`: 1 in the middle, 0 beyond twice the half width."""
    away = np.rad2deg(np.angle(np.exp(1j * (angles() - np.deg2rad(middle_degrees)))))
    return np.cos(np.pi / 4 * np.clip(away / half_width_degrees, -2, 2)) ** 2


def centroid(radii: np.ndarray) -> np.ndarray:
    """(2,) mm: centre of the area inside a contour with these radii at `angles`."""
    at = angles()
    area = (radii**2).sum() / 2
    return np.array([(radii**3 * np.cos(at)).sum(), (radii**3 * np.sin(at)).sum()]) / (3 * area)
