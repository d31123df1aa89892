"""Grids of voxels in the world, and labels that move from one to another."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Voxels at a time: their indices take 24 bytes each.
_SLAB_VOXELS = 2**18
# Share of a voxel by which rounding may move a place halfway between two voxels.
_TIE = 1e-6


@dataclass(frozen=True)
class Grid:
    """Voxels (X, Y, Z) and their place, `ijk_to_lps` (4, 4): voxel indices to LPS mm."""

    shape: tuple[int, int, int]
    ijk_to_lps: np.ndarray


def centred(shape: tuple[int, int, int], spacing_mm: Sequence[float]) -> Grid:
    """The grid of this shape whose middle is the origin, with axes along the world's."""
    ijk_to_lps = np.diag([*spacing_mm, 1.0])
    ijk_to_lps[:3, 3] = -(np.array(shape) - 1) / 2 * np.asarray(spacing_mm)
    return Grid(shape, ijk_to_lps)


def blocks(
    shape: Sequence[int], side: int
) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """First voxel and shape of each cube of `side` voxels in a volume; smaller at its end."""
    for x, y, z in itertools.product(*(range(0, n, side) for n in shape)):
        yield (x, y, z), (min(side, shape[0] - x), min(side, shape[1] - y), min(side, shape[2] - z))


def box(first: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The index of the box with this shape whose first voxel is `first`."""
    return tuple(slice(low, low + size) for low, size in zip(first, shape, strict=True))


def nearest_labels(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Labels (X, Y, Z) resampled from the grid `source` to `target`: nearest voxel, 0 outside.

    A voxel reaches half an index beyond its centre; halfway between two voxels the higher index
    counts, as in ITK. Any two affine grids will do. Beside the result it needs memory for a slab.

    Returns:
      An array of `target`'s shape and the labels' type.

    Raises:
      ValueError: the labels have another shape than `source`.
    """
    if labels.shape != tuple(source.shape):
        raise ValueError(f"labels {labels.shape} on a grid of {tuple(source.shape)} voxels")
    matrix = np.linalg.inv(source.ijk_to_lps) @ target.ijk_to_lps
    nx, ny, nz = target.shape
    found = np.zeros(target.shape, labels.dtype)
    planes = max(1, _SLAB_VOXELS // (ny * nz))
    y, z = np.arange(ny)[:, None], np.arange(nz)
    for start in range(0, nx, planes):
        x = np.arange(start, min(start + planes, nx))[:, None, None]
        inside = np.ones((len(x), ny, nz), bool)
        nearest = []
        for (a, b, c, offset), size in zip(matrix[:3], source.shape, strict=True):
            index = np.floor((a * x + (offset + 0.5 + _TIE)) + b * y + c * z)
            inside &= (index >= 0) & (index < size)
            nearest.append(index)
        i, j, k = (index[inside].astype(np.intp) for index in nearest)
        found[start : start + planes][inside] = labels[i, j, k]
    return found


@dataclass(frozen=True)
class Plane:
    """The world of a picture: the unit of its points, and the size of a pixel."""

    unit: str
    # mm between columns and between rows; None: unknown, and the unit is the pixel.
    pixel_mm: tuple[float, float] | None

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) in pixels, from points (..., 3) of this world."""
        return np.asarray(points)[..., :2] / self._per_pixel

    def points(self, pixels: np.ndarray) -> np.ndarray:
        """(..., 3), the inverse of `pixels`."""
        flat = np.asarray(pixels, np.float64) * self._per_pixel
        return np.concatenate([flat, np.zeros((*flat.shape[:-1], 1))], -1)

    @property
    def _per_pixel(self) -> np.ndarray:
        mm = self.pixel_mm if self.unit == "mm" else None
        return np.array(mm or (1.0, 1.0))
