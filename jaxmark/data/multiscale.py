"""A volume's coarse image, and patches of it at full resolution."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from jaxmark.core.geometry import apply_affine

# At most about this many voxels are averaged at a time.
_MAX_VOXELS_AT_ONCE = 2**24


def coarse(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over cubes of `factor` voxels of an image (X, Y, Z), float16; sides are multiples.

    A memory-mapped image is never in memory as a whole.
    """
    shape = tuple(n // factor for n in image.shape)
    found = np.empty(shape, np.float16)
    planes = max(1, _MAX_VOXELS_AT_ONCE // (factor * image.shape[1] * image.shape[2]))
    for first in range(0, shape[0], planes):
        slab = np.asarray(image[factor * first : factor * (first + planes)], np.float32)
        # Axis by axis is faster than a mean over three axes at once.
        sums = slab.reshape(-1, factor, *slab.shape[1:]).sum(1)
        sums = sums.reshape(len(sums), -1, factor, slab.shape[2]).sum(2)
        sums = sums.reshape(*sums.shape[:2], -1, factor).sum(3)
        found[first : first + planes] = sums / factor**3
    return found


def patch(image: np.ndarray, first: Sequence[int] | np.ndarray, side: int) -> np.ndarray:
    """The cube of `side` voxels from voxel `first` on, of an image (X, Y, Z); 0 outside."""
    found = np.zeros((side,) * 3, np.float16)
    low = np.maximum(first, 0)
    high = np.minimum(np.asarray(first) + side, image.shape)
    if (high > low).all():
        inner = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
        found[inner] = image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return found


def first_voxels(centres_ijk: np.ndarray, side: int) -> np.ndarray:
    """(..., 3) int: first voxels of cubes whose middles are within half a voxel of the centres."""
    return np.floor(centres_ijk - (side - 1) / 2 + 0.5).astype(np.int64)


def covering(shape: Sequence[int], side: int) -> np.ndarray:
    """(N, 3) first voxels of cubes of `side` voxels that cover a volume side by side.

    Where `side` does not divide an axis, its last cubes overlap the ones before. Where the axis is
    shorter than `side`, the cubes reach beyond the volume.
    """
    axes = [np.minimum(np.arange(0, n, side), max(n - side, 0)) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def sampled(
    cut: Callable[[np.ndarray, int], np.ndarray],
    grid_to_ijk: np.ndarray,
    shape: tuple[int, int, int],
) -> np.ndarray:
    """(X, Y, Z) float32: an image at the nodes of an affine grid, trilinear.

    Args:
      cut: `patch` of the image.
      grid_to_ijk: (4, 4) indices of the grid -> indices of the image.
    """
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(shape) - 1)
    seen = apply_affine(grid_to_ijk, corners)
    first = np.floor(seen.min(0)).astype(np.int64)
    side = int((np.ceil(seen.max(0)) - first).max()) + 1
    return ndimage.affine_transform(
        cut(first, side).astype(np.float32),
        grid_to_ijk[:3, :3],
        grid_to_ijk[:3, 3] - first,
        output_shape=shape,
        order=1,
        prefilter=False,
    )
