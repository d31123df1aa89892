"""Vessels on a grid of voxels: how much of each voxel they fill, and which vessel it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmark.data.phantoms.grids import Grid

_BLOCK = 60_000  # pairs of voxel and piece of centreline at a time: what stays in a cache


@dataclass(frozen=True)
class Vessel:
    """A tube around a centreline of N points, in the direction of the blood's flow."""

    name: str
    # Index into the scheme's segments; -1: a vessel beyond the scheme.
    segment: int
    # (N, 3) LPS mm, at most 0.5 mm from point to point; neighbouring tubes share end points.
    points_mm: np.ndarray
    # (N,) mm
    radii_mm: np.ndarray
    # (N,) mm along the vessels from where the blood enters the phantom.
    travelled_mm: np.ndarray

    @property
    def tangents(self) -> np.ndarray:
        """(N, 3): unit vectors along the flow."""
        along = np.gradient(self.points_mm, axis=0)
        return along / np.linalg.norm(along, axis=1, keepdims=True)


@dataclass(frozen=True)
class Lumen:
    """Vessels on a grid; where tubes overlap, the nearest in units of its own radius wins."""

    # (X, Y, Z) float32: share of the voxel that lies in a vessel.
    coverage: np.ndarray
    # (X, Y, Z) uint8: where the voxel's centre is in a vessel, its segment + 1, or `beyond` where
    # the vessel is beyond the scheme; else 0.
    segment: np.ndarray
    # (X, Y, Z) float32, of the nearest point of a centreline where coverage is positive, else 0.
    travelled_mm: np.ndarray
    radius_mm: np.ndarray
    # (X, Y, Z, 3) float16: unit vector along the flow where `segment` is not 0, else 0.
    tangent: np.ndarray


class _Pieces(NamedTuple):
    """M short straight pieces of centrelines, each from `start` along `step` (M, 3)."""

    start: np.ndarray
    step: np.ndarray
    radius: np.ndarray  # (M, 2) at the two ends, float32
    travelled: np.ndarray  # (M, 2), float32
    label: np.ndarray  # (M,)

    def reach(self, grid: Grid) -> np.ndarray:
        """(M, 3) how far from its middle a piece can cover a voxel along each axis, mm."""
        across = self.radius.max(1) + grid.spacing_mm.max()
        return across[:, None] + np.abs(self.step) / 2


def rasterize(vessels: Sequence[Vessel], grid: Grid, beyond: int) -> Lumen:
    """Draw the tubes, with round ends, on the grid.

    The edge falls over about a voxel, and the sum of coverage over a cross-section is the tube's
    own at any radius, so that a vessel much thinner than a voxel is dim but right on average.
    """
    size = int(np.prod(grid.shape))
    nearest = np.full(size, np.inf, np.float32)  # distance to the centreline in radii
    coverage, travelled, radius = (np.zeros(size, np.float32) for _ in range(3))
    segment = np.zeros(size, np.uint8)
    tangent = np.zeros((size, 3), np.float16)
    for block in _blocks(_cut(vessels, grid, beyond), grid):
        voxel, piece, t, distance, width = _around(block, grid)
        r = block.radius[piece, 0] + t * (block.radius[piece, 1] - block.radius[piece, 0])
        share, score = _coverage(distance, r, width), distance / r
        np.maximum.at(coverage, voxel, share)
        np.minimum.at(nearest, voxel, score)
        won = np.flatnonzero((score == nearest[voxel]) & (share > 0))
        voxel, piece, t, inside = voxel[won], piece[won], t[won], score[won] < 1
        first, last = block.travelled[piece].T
        travelled[voxel] = first + t * (last - first)
        radius[voxel] = r[won]
        segment[voxel] = np.where(inside, block.label[piece], 0)
        unit = block.step / np.linalg.norm(block.step, axis=1, keepdims=True)
        tangent[voxel] = unit[piece] * inside[:, None]
    return Lumen(
        coverage.reshape(grid.shape),
        segment.reshape(grid.shape),
        travelled.reshape(grid.shape),
        radius.reshape(grid.shape),
        tangent.reshape(*grid.shape, 3),
    )


def coverage(vessels: Sequence[Vessel], grid: Grid) -> np.ndarray:
    """(X, Y, Z) float32: `Lumen.coverage` alone."""
    filled = np.zeros(int(np.prod(grid.shape)), np.float32)
    for block in _blocks(_cut(vessels, grid, 0), grid):
        voxel, piece, t, distance, width = _around(block, grid)
        r = block.radius[piece, 0] + t * (block.radius[piece, 1] - block.radius[piece, 0])
        np.maximum.at(filled, voxel, _coverage(distance, r, width))
    return filled.reshape(grid.shape)


def _coverage(distance: np.ndarray, radius: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Share of a voxel of this width that lies in a tube, by distance from its axis; all mm.

    A ramp of one width around radius e holds pi (e^2 + width^2 / 12), so e is the radius less
    that. Where e would be under width / 2 the ramp is a cone, and lower instead of narrower.
    """
    edge = np.sqrt(np.maximum(radius**2 - width**2 / 12, width**2 / 4))
    height = np.minimum(1, 3 * (radius / width) ** 2)
    return height * np.clip(0.5 + (edge - distance) / width, 0, 1)


def _cut(vessels: Sequence[Vessel], grid: Grid, beyond: int) -> _Pieces:
    """All vessels in straight pieces of a millimetre, or a voxel if that is more."""
    length = max(1.0, float(grid.spacing_mm.mean()))
    rows, labels = [np.zeros((0, 2, 5))], [np.zeros(0, int)]
    for vessel in vessels:
        arc = np.linalg.norm(np.diff(vessel.points_mm, axis=0), axis=1).cumsum()
        stops = np.linspace(0, arc[-1], int(np.ceil(arc[-1] / length)) + 1)
        table = np.column_stack([vessel.points_mm, vessel.radii_mm, vessel.travelled_mm])
        table = np.stack([np.interp(stops, np.append(0, arc), column) for column in table.T], 1)
        rows.append(np.stack([table[:-1], table[1:]], 1))
        label = vessel.segment + 1 if vessel.segment >= 0 else beyond
        labels.append(np.full(len(stops) - 1, label))
    ends = np.concatenate(rows)  # (M, 2, 5)
    step = ends[:, 1, :3] - ends[:, 0, :3]
    radius, travelled = np.moveaxis(ends[..., 3:].astype(np.float32), 2, 0)
    radius = np.maximum(radius, 1e-3)  # distances are divided by it
    return _Pieces(ends[:, 0, :3], step, radius, travelled, np.concatenate(labels))


def _blocks(pieces: _Pieces, grid: Grid) -> Iterator[_Pieces]:
    """The pieces near the grid, those of like reach together."""
    low, high = np.array([(axis[0], axis[-1]) for axis in grid.axes_mm]).T
    reach = pieces.reach(grid)
    middle = pieces.start + pieces.step / 2
    near = np.flatnonzero(((middle + reach > low) & (middle - reach < high)).all(1))
    near = near[np.argsort(reach[near].max(1), kind="stable")]
    while len(near):
        count = max(1, int(_BLOCK / np.prod(2 * reach[near[0]] / grid.spacing_mm + 1)))
        yield _Pieces(*(field[near[:count]] for field in pieces))
        near = near[count:]


def _around(pieces: _Pieces, grid: Grid) -> tuple[np.ndarray, ...]:
    """All pairs (voxel, piece) with the voxel near the piece.

    Returns:
        For each pair: flat index of the voxel, index of the piece, t in 0..1 along the piece and
        distance (mm) of its point nearest to the voxel, width (mm) of a voxel across the piece.
    """
    spacing, origin = grid.spacing_mm, grid.ijk_to_lps[:3, 3]
    reach = pieces.reach(grid)
    first = np.ceil((pieces.start + pieces.step / 2 - reach - origin) / spacing).astype(int)
    indices, alongs, squares = [], [], []  # what each axis adds, for a box around each piece
    for axis, count in enumerate(grid.shape):
        index = first[:, axis, None] + np.arange(int(2 * reach[:, axis].max() / spacing[axis]) + 1)
        offset = origin[axis] + spacing[axis] * index - pieces.start[:, axis, None]
        outside = (index < 0) | (index >= count)
        indices.append(index)
        alongs.append((offset * pieces.step[:, axis, None]).astype(np.float32))
        squares.append(np.where(outside, np.inf, offset**2).astype(np.float32))
    along, square = _outer_sum(alongs), _outer_sum(squares)
    length2 = (pieces.step**2).sum(1).astype(np.float32)
    t = np.clip(along / length2[:, None, None, None], 0, 1)
    square -= t * (2 * along - t * length2[:, None, None, None])
    # Mean square extent of a voxel over the directions across the piece.
    width = np.sqrt((1 - pieces.step**2 / length2[:, None]) @ spacing**2 / 2).astype(np.float32)
    farthest = (pieces.radius.max(1) + width) ** 2
    near = np.flatnonzero(square < farthest[:, None, None, None])
    piece, *box = np.unravel_index(near, square.shape)
    ijk = [index[piece, inner] for index, inner in zip(indices, box, strict=True)]
    distance = np.sqrt(np.maximum(square.reshape(-1)[near], 0))
    voxel = (ijk[0] * grid.shape[1] + ijk[1]) * grid.shape[2] + ijk[2]
    return voxel, piece, t.reshape(-1)[near], distance, width[piece]


def _outer_sum(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(M, a), (M, b), (M, c) -> (M, a, b, c)"""
    x, y, z = parts
    return x[:, :, None, None] + (y[:, :, None] + z[:, None])[:, None]
