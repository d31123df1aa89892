"""Grids of voxels in the world."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Voxels (X, Y, Z) and their place, `ijk_to_lps` (4, 4): voxel indices to LPS mm."""

    shape: tuple[int, int, int]
    ijk_to_lps: np.ndarray
