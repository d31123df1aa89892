"""Scans sampled on other grids: affine grids as a whole or in parts, and bent grids.

Names of matrices (4, 4) state the frames that they map from and to: `ijk` are voxel indices, `lps`
LPS millimetres.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from jaxmark.core.alignment import Transform
from jaxmark.core.geometry import apply_affine
from jaxmark.data.scans import Scan

# The percentile of a scan's voxels that stands for its background.
BACKGROUND_PERCENTILE = 0.5
# In voxels of the scan: axes are parallel if a step along one moves less than this across, and a
# node this near to a voxel lies on it. Headers round more.
_PARALLEL, _ON_A_VOXEL = 1e-6, 1e-4


def resample(scan: Scan, shape: tuple[int, int, int], grid_to_lps: np.ndarray) -> np.ndarray:
    """Samples a scan on any affine grid: trilinear, smoothed first where the grid is coarser.

    The smoothing is Gaussian, with a standard deviation along each axis of the scan of
    `0.5 * sqrt(ratio**2 - 1)` voxels, where `ratio` is the extent of a grid cell along that axis:
    a cell then averages about the part that it covers, and a grid as fine as the scan is not
    smoothed. Nodes outside of the scan get its background, the 0.5th percentile of its voxels.

    Args:
        shape: of the grid.
        grid_to_lps: (4, 4), ijk of the grid -> LPS mm of the scan. After a registration this is
            `fixed_to_moving @ ijk_to_lps` for a grid in the template's world.

    Returns:
        (X, Y, Z) float32 of that shape.
    """
    return Sampling.of(scan, grid_to_lps).interpolated((0, 0, 0), shape)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """A scan and an affine grid to sample it on, part by part; see `resample`."""

    voxels: np.ndarray  # (X, Y, Z) of any type of numbers
    grid_to_ijk: np.ndarray  # (4, 4): ijk of the grid -> those of the scan
    sigma: np.ndarray  # (3,) of the smoothing, in voxels of the scan
    outside: float

    @classmethod
    def of(cls, scan: Scan, grid_to_lps: np.ndarray) -> "Sampling":
        """The sampling of a scan on the grid with this map (4, 4)."""
        grid_to_ijk = np.linalg.inv(scan.ijk_to_lps) @ grid_to_lps
        return cls(scan.voxels, grid_to_ijk, _smoothing(grid_to_ijk), background(scan))

    def every(self, step: int) -> "Sampling":
        """Every `step`-th node only, smoothed as for the whole grid."""
        thinner = self.grid_to_ijk @ np.diag([step, step, step, 1.0])
        return dataclasses.replace(self, grid_to_ijk=thinner)

    def interpolated(self, first: tuple[int, int, int], shape: tuple[int, int, int]) -> np.ndarray:
        """(X, Y, Z) float32: `shape` nodes from `first` on, by trilinear interpolation."""
        part, matrix, offset = self._seen(first, shape)
        return ndimage.affine_transform(
            part,
            matrix,
            offset,
            output_shape=shape,
            order=1,
            # Blends into `outside` over one voxel: a node that rounding puts just over the edge
            # keeps its value.
            mode="grid-constant",
            cval=self.outside,
            prefilter=False,
        )

    def sampled(self, first: tuple[int, int, int], shape: tuple[int, int, int]) -> np.ndarray:
        """As `interpolated` up to rounding; faster where axes of grid and scan are parallel.

        For parallel axes it interpolates axis by axis.
        """
        matrix = self.grid_to_ijk[:3, :3]
        # The scan's axis for each axis of the grid.
        order = np.abs(matrix).argmax(0)
        across = matrix.copy()
        across[order, range(3)] = 0
        if sorted(order) != [0, 1, 2] or np.abs(across).max() > _PARALLEL:
            return self.interpolated(first, shape)
        part, matrix, offset = self._seen(first, shape)
        # With 0 outside of the scan, weights of taps there need no special case.
        part = part - np.float32(self.outside)
        for axis in (2, 1, 0):
            source = order[axis]
            nodes = matrix[source, axis] * np.arange(shape[axis]) + offset[source]
            part = _along(part, source, nodes)
        return part.transpose(order) + np.float32(self.outside)

    def _seen(
        self, first: tuple[int, int, int], shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The part of the scan that these nodes need, smoothed; the map (3, 3), (3,) to it."""
        # Smooth only the part that these nodes and the smoothing kernel reach.
        matrix, sigma = self.grid_to_ijk[:3, :3], self.sigma
        offset = matrix @ np.array(first) + self.grid_to_ijk[:3, 3]
        size = np.array(self.voxels.shape)
        corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(shape) - 1)
        seen = corners @ matrix.T + offset
        low = np.clip(np.floor(seen.min(0) - 3 * sigma) - 1, 0, size - 1).astype(int)
        high = np.clip(np.ceil(seen.max(0) + 3 * sigma) + 2, low + 1, size).astype(int)
        part = self.voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        part = part.astype(np.float32, copy=False)
        if sigma.any():
            part = ndimage.gaussian_filter(part, sigma, mode="nearest", truncate=3.0)
        return part, matrix, offset - low


def _along(values: np.ndarray, axis: int, nodes: np.ndarray) -> np.ndarray:
    """Linear interpolation along an axis at the indices `nodes`; 0 outside."""
    nearest = np.rint(nodes)
    nodes = np.where(np.abs(nodes - nearest) < _ON_A_VOXEL, nearest, nodes)
    low = np.floor(nodes).astype(int)
    share = nodes - low
    found: np.ndarray | None = None
    for index, weight in ((low, 1 - share), (low + 1, share)):
        inside = (index >= 0) & (index < values.shape[axis])
        if not (weight * inside).any():
            continue
        tap = _rows(values, axis, np.clip(index, 0, values.shape[axis] - 1))
        if not (weight * inside == 1).all():
            column = [1, 1, 1]
            column[axis] = -1
            tap = tap * (weight * inside).astype(np.float32).reshape(column)
        found = tap if found is None else found + tap
    if found is None:
        found = np.zeros(values.shape[:axis] + low.shape + values.shape[axis + 1 :], np.float32)
    return found


def _rows(values: np.ndarray, axis: int, index: np.ndarray) -> np.ndarray:
    """As `np.take`; without a copy if the rows are consecutive, forwards or backwards."""
    steps = np.diff(index)
    for step in (1, -1):
        if (steps == step).all():
            rows: list[slice] = [slice(None)] * 3
            end = int(index[-1]) + step
            rows[axis] = slice(int(index[0]), None if end < 0 else end, step)
            return values[tuple(rows)]
    return np.moveaxis(np.moveaxis(values, axis, 0)[index], 0, axis)


def warp(
    scan: Scan, shape: tuple[int, int, int], grid_to_lps: np.ndarray, transform: Transform
) -> np.ndarray:
    """As `resample`, on an affine grid in another world, which `transform` maps to the scan's.

    For a bent transform the smoothing is that of its affine part.

    Args:
        grid_to_lps: (4, 4), ijk of the grid -> LPS mm of the transform's fixed scan.
    """
    if transform.is_linear:
        return resample(scan, shape, transform.matrix @ grid_to_lps)
    lps_to_ijk = np.linalg.inv(scan.ijk_to_lps)
    sigma = _smoothing(lps_to_ijk @ transform.matrix @ grid_to_lps)
    smooth = ndimage.gaussian_filter(scan.voxels, sigma, mode="nearest", truncate=3.0)
    warped, outside = np.empty(shape, np.float32), background(scan)
    for k, points in enumerate(slices_of(shape, grid_to_lps)):
        ijk = apply_affine(lps_to_ijk, transform(points))
        warped[..., k] = ndimage.map_coordinates(
            smooth,
            np.moveaxis(ijk, -1, 0),
            order=1,
            mode="grid-constant",
            cval=outside,
            prefilter=False,
        )
    return warped


def slices_of(shape: tuple[int, int, int], grid_to_lps: np.ndarray) -> Iterator[np.ndarray]:
    """(X, Y, 3) mm of the nodes of an affine grid, slice after slice along its last axis."""
    x, y = np.indices(shape[:2], np.float64)
    for k in range(shape[2]):
        yield apply_affine(grid_to_lps, np.stack([x, y, np.full_like(x, k)], -1))


def _smoothing(grid_to_ijk: np.ndarray) -> np.ndarray:
    """(3,) standard deviations in voxels, as `resample` states them."""
    ratio = np.linalg.norm(grid_to_ijk[:3, :3], axis=1)
    return 0.5 * np.sqrt(np.maximum(ratio**2 - 1, 0))


def background(scan: Scan) -> float:
    """The value that nodes outside of a scan get."""
    # In the order of memory: in another order a large scan takes seconds to copy.
    return float(np.percentile(scan.voxels[::2, ::2, ::2].ravel(order="K"), BACKGROUND_PERCENTILE))


def covered(scan: Scan, shape: tuple[int, int, int], grid_to_lps: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool: the nodes of an affine grid (see `resample`) that lie in the scan."""
    grid_to_ijk = np.linalg.inv(scan.ijk_to_lps) @ grid_to_lps
    nodes = np.ogrid[tuple(slice(n) for n in shape)]
    inside = np.ones(shape, bool)
    for row, size in zip(grid_to_ijk, scan.voxels.shape, strict=False):
        # With parallel axes one grid axis counts, so the index is a line, not a volume.
        counting = [step * node for step, node in zip(row[:3], nodes, strict=True) if step]
        index = sum(counting, np.zeros((1, 1, 1))) + row[3]
        inside &= (index >= -0.5) & (index <= size - 0.5)
    return inside
