"""A volume seen coarsely as a whole, and finely in patches."""

from collections.abc import Sequence

import numpy as np

# Voxels of the fine volume that are averaged at a time.
_AT_ONCE = 2**24


def coarse(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over cubes of `factor` voxels of an image (X, Y, Z), whose sides it divides; float16.

    A memory-mapped image is never in memory as a whole.
    """
    shape = tuple(n // factor for n in image.shape)
    found = np.empty(shape, np.float16)
    planes = max(1, _AT_ONCE // (factor * image.shape[1] * image.shape[2]))
    for first in range(0, shape[0], planes):
        slab = np.asarray(image[factor * first : factor * (first + planes)], np.float32)
        # An axis after the other is faster than a mean over three at once.
        sums = slab.reshape(-1, factor, *slab.shape[1:]).sum(1)
        sums = sums.reshape(len(sums), -1, factor, slab.shape[2]).sum(2)
        sums = sums.reshape(*sums.shape[:2], -1, factor).sum(3)
        found[first : first + planes] = sums / factor**3
    return found


def patch(image: np.ndarray, first: Sequence[int] | np.ndarray, side: int) -> np.ndarray:
    """The cube of `side` voxels whose first one is `first`, of an image (X, Y, Z); 0 outside."""
    found = np.zeros((side,) * 3, np.float16)
    low = np.maximum(first, 0)
    high = np.minimum(np.asarray(first) + side, image.shape)
    if (high > low).all():
        inner = tuple(slice(a, b) for a, b in zip(low - first, high - first, strict=True))
        found[inner] = image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return found


def first_voxels(centres_ijk: np.ndarray, side: int) -> np.ndarray:
    """(..., 3) whole numbers: first voxels of cubes, middles within half a voxel of centres."""
    return np.floor(centres_ijk - (side - 1) / 2 + 0.5).astype(np.int64)
