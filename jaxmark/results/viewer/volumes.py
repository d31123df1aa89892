"""A scan for the viewer of a page: small, 8 bits a voxel, in a NIfTI file."""

import gzip
import math
import struct
from dataclasses import dataclass

import numpy as np

from jaxmark.core.geometry import compose_affine
from jaxmark.data.multiscale import coarse
from jaxmark.results.figures.pictures import box_of_scan

# Larger volumes are shown coarsely: a page holds several, and people mail it.
MOST_VOXELS = 8_000_000
# Percentiles that are black and white at first. Vessels fill less than 1 % of a scan.
_WINDOW_PERCENT = (1.0, 99.8)
# Brighter voxels are cut off: a few of them would take most of the levels.
_BRIGHTEST_PERCENT = 99.99
_WHITE = 255


@dataclass(frozen=True)
class ViewedVolume:
    """A volume (X, Y, Z) uint8 along the prepared grid: x to the left, y back, z to the head."""

    voxels: np.ndarray
    ijk_to_lps: np.ndarray  # (4, 4): these voxels -> LPS mm of the scan
    window: tuple[int, int]  # levels that are black and white at first
    labels: np.ndarray | None = None  # (X, Y, Z) uint8: a label map on the same grid

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) mm between voxels."""
        return np.linalg.norm(self.ijk_to_lps[:3, :3], axis=0)


def viewed_volume(
    image: np.ndarray,
    ijk_to_lps: np.ndarray,
    points_ijk: np.ndarray,
    labels: np.ndarray | None = None,
) -> ViewedVolume:
    """The part of a prepared image (X, Y, Z) that holds the scan and the points (K, 3).

    More than `MOST_VOXELS` are averaged over cubes; `labels` are those in the cubes' middles. A
    point of NaN does not count.
    """
    box = box_of_scan(image, points_ijk)
    sides = [side.stop - side.start for side in box]
    factor = 1
    while math.prod(sides) / factor**3 > MOST_VOXELS:
        factor += 1
    first = np.array([side.start for side in box])
    # An incomplete cube at the end is cut off.
    box = tuple(
        slice(int(low), int(low) + side // factor * factor)
        for low, side in zip(first, sides, strict=True)
    )
    seen = coarse(image[box], factor) if factor > 1 else image[box]
    if labels is not None:
        labels = labels[box][(slice(factor // 2, None, factor),) * 3]
    to_prepared = compose_affine(np.eye(3) * factor, first + (factor - 1) / 2)
    voxels, window = _levels(np.nan_to_num(np.asarray(seen, np.float32)))
    return ViewedVolume(voxels, ijk_to_lps @ to_prepared, window, labels)


def nifti(voxels: np.ndarray, spacing_mm: np.ndarray) -> bytes:
    """A gzipped NIfTI-1 file of (X, Y, Z) uint8 along the prepared grid.

    Its first voxel, the rightmost, rearmost and lowest, lies at 0 mm: the file states directions,
    but not the place of the scan.
    """
    x, y, z = map(float, spacing_mm)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *voxels.shape, 1, 1, 1, 1)
    # Type uint8 of 8 bits.
    struct.pack_into("<2h", header, 70, 2, 8)
    struct.pack_into("<4f", header, 76, 1, x, y, z)
    # Offset of the voxels, slope; then mm.
    struct.pack_into("<2f", header, 108, 352, 1)
    struct.pack_into("<b", header, 123, 2)
    # sform is valid: the rows of voxels -> RAS mm.
    struct.pack_into("<2h", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, x, 0, 0, 0, 0, y, 0, 0, 0, 0, z, 0)
    header[344:348] = b"n+1\0"
    body = voxels[::-1, ::-1].tobytes(order="F")
    return gzip.compress(bytes(header) + body, mtime=0)


def _levels(image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as uint8, and the window of its first look."""
    # The image is constant around the scan.
    seen = image[image != image[0, 0, 0]]
    if not seen.size:
        return np.zeros(image.shape, np.uint8), (0, _WHITE)
    black, white, brightest = np.percentile(seen, [*_WINDOW_PERCENT, _BRIGHTEST_PERCENT])
    darkest = float(image.min())
    scale = _WHITE / max(brightest - darkest, 1e-6)
    voxels = np.clip((image - darkest) * scale + 0.5, 0, _WHITE).astype(np.uint8)
    low, high = (int(np.clip(round((v - darkest) * scale), 0, _WHITE)) for v in (black, white))
    return voxels, (low, high) if high > low else (0, _WHITE)
