"""Grids of voxels in the world."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Voxels (X, Y, Z) and their place, `ijk_to_lps` (4, 4): voxel indices to LPS mm."""

    shape: tuple[int, int, int]
    ijk_to_lps: np.ndarray


def nearest_labels(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """A label map on another grid: of each voxel the label of the nearest one, 0 outside.

    `labels` (X, Y, Z) on `source` -> an array of the same type on `target`.
    """
    moved = np.zeros(target.shape, labels.dtype)
    to_source = np.linalg.inv(source.ijk_to_lps) @ target.ijk_to_lps
    found = np.argwhere(labels)
    if not len(found):
        return moved
    # Only where a label can be: the box of the labels, seen from the target.
    ends = np.stack([found.min(0) - 1, found.max(0) + 1])
    corners = np.stack(np.meshgrid(*ends.T, indexing="ij"), -1).reshape(-1, 3)
    back = np.linalg.inv(to_source)
    seen = corners @ back[:3, :3].T + back[:3, 3]
    low = np.clip(np.floor(seen.min(0)).astype(int), 0, target.shape)
    high = np.clip(np.ceil(seen.max(0)).astype(int) + 1, 0, target.shape)
    i, j = np.ogrid[low[0] : high[0], low[1] : high[1]]
    for k in range(low[2], high[2]):
        at = [np.rint(m[0] * i + m[1] * j + m[2] * k + m[3]).astype(int) for m in to_source[:3]]
        inside = np.logical_and.reduce(
            [(x >= 0) & (x < n) for x, n in zip(at, source.shape, strict=True)]
        )
        near = labels[tuple(np.where(inside, x, 0) for x in at)]
        moved[low[0] : high[0], low[1] : high[1], k] = np.where(inside, near, 0)
    return moved
