"""Where the voxels of a synthetic scan lie."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Voxels of an axis-aligned scan: shape (X, Y, Z), and ijk_to_lps (4, 4) to LPS mm."""

    shape: tuple[int, int, int]
    ijk_to_lps: np.ndarray

    def __post_init__(self) -> None:
        linear = self.ijk_to_lps[:3, :3]
        if (np.diag(linear) <= 0).any() or (linear != np.diag(np.diag(linear))).any():
            raise ValueError(f"a grid needs a diagonal matrix with positive spacing, not {linear}")

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,)"""
        return np.diag(self.ijk_to_lps)[:3]

    @property
    def axes_mm(self) -> list[np.ndarray]:
        """The coordinates of the voxel centres along x (X,), y (Y,), z (Z,)."""
        origin = self.ijk_to_lps[:3, 3]
        return [origin[a] + self.spacing_mm[a] * np.arange(self.shape[a]) for a in range(3)]

    def slices(self, first: int, last: int) -> "Grid":
        """The grid's slices from one to before another."""
        ijk_to_lps = self.ijk_to_lps.copy()
        ijk_to_lps[2, 3] += first * ijk_to_lps[2, 2]
        return Grid((*self.shape[:2], last - first), ijk_to_lps)


def centred_grid(
    shape: Sequence[int], spacing_mm: Sequence[float], centre_mm: Sequence[float] | np.ndarray
) -> Grid:
    """The grid of this shape and spacing whose middle is at `centre_mm` (LPS)."""
    spacing = np.array(spacing_mm)
    ijk_to_lps = np.diag([*spacing, 1.0])
    ijk_to_lps[:3, 3] = np.asarray(centre_mm) - (np.array(shape) - 1) / 2 * spacing
    x, y, z = shape
    return Grid((x, y, z), ijk_to_lps)
