"""A CT scanner's blur and noise."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.ndimage import correlate1d

from jaxmark.data.phantoms.grids import Grid

_LEAST_HU, _MOST_HU = -1024, 3071
_SLAB_VOXELS = 1 << 22


def blur(image: np.ndarray, grid: Grid, sigma_mm: float) -> tuple[np.ndarray, float]:
    """The image blurred by the scanner's point spread, and the share of white noise's SD left.

    Three taps with the variance of the Gaussian. Voxels of real scans suit the resolution, so sigma
    is held between 0.35 and 0.7 voxels.
    """
    left = 1.0
    for axis, sigma in enumerate(np.clip(sigma_mm / grid.spacing_mm, 0.35, 0.7)):
        taps = np.array([sigma**2 / 2, 1 - sigma**2, sigma**2 / 2])
        image = correlate1d(image, taps, axis, output=np.float32, mode="nearest")
        left *= float(np.sqrt((taps**2).sum()))
    return image, left


def scan(
    grid: Grid,
    body: Callable[[Grid], np.ndarray],
    seed: Sequence[int],
    noise_hu: float,
    blur_mm: float,
    rows: int | None = None,
) -> np.ndarray:
    """A CT scan, (X, Y, Z) int16 HU with x fastest in memory, made in slabs along Z.

    Only the result is ever as large as the grid.

    Args:
      body: returns the body on a part of the grid, (X, Y, n) float32 HU, a new array each time.
      seed: of the noise. Each slice has its own, so that slabs of any thickness show the same.
      noise_hu: standard deviation of the noise in the scan.
      blur_mm: standard deviation of the scanner's point spread, see `blur`.
      rows: slices of a slab; None: as many as make a few million voxels.
    """
    x, y, z = grid.shape
    rows = rows or max(8, _SLAB_VOXELS // (x * y))
    voxels = np.empty(grid.shape, np.int16, order="F")
    for first in range(0, z, rows):
        # Blurring needs a slice more on both sides.
        begin, end = max(first - 1, 0), min(first + rows + 1, z)
        part = grid.slices(begin, end)
        image, _ = blur(body(part), part, blur_mm)
        grain = np.stack([_white(seed, k, (x, y)) for k in range(begin, end)], axis=2)
        # Reconstruction blurs the noise too, so more noise goes in than is to be left.
        grain, left = blur(grain, part, blur_mm)
        image += np.float32(noise_hu / left) * grain
        kept = slice(first - begin, min(first + rows, z) - begin)
        np.clip(np.rint(image, out=image), _LEAST_HU, _MOST_HU, out=image)
        voxels[:, :, first : first + rows] = image[:, :, kept]
    return voxels


def _white(seed: Sequence[int], number: int, shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng([*seed, number]).standard_normal(shape, dtype=np.float32)
