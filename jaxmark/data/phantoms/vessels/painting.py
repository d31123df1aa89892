"""Bodies of tissues, arteries and plaques on a grid of voxels."""

from typing import NamedTuple

import numpy as np

from jaxmark.data.phantoms.fields import interpolate, node_weights
from jaxmark.data.phantoms.grids import Grid
from jaxmark.data.phantoms.solids import ball, paint


class Tissues(NamedTuple):
    """Tissues at nodes, whose coordinates (LPS mm) are `axes`."""

    axes: list[np.ndarray]
    soft: np.ndarray  # HU of what is not listed here: muscle, fat, liver
    # Signed distances (mm) and HU, in the order in which they lie over each other.
    layers: list[tuple[np.ndarray, np.ndarray | float]]
    streaks: np.ndarray  # HU that the scanner adds


class Plaque(NamedTuple):
    """Calcium in the wall of an artery: an ellipsoid (LPS mm)."""

    place: np.ndarray
    half_axes: np.ndarray
    hu: float


def paint_tissues(tissues: Tissues, grid: Grid) -> np.ndarray:
    """(X, Y, n) float32 HU: the body without what is thinner than its nodes are apart."""
    weights = [
        node_weights(axis, nodes) for axis, nodes in zip(grid.axes_mm, tissues.axes, strict=True)
    ]
    used = np.flatnonzero(weights[2].any(0))
    near = slice(used[0], used[-1] + 1)
    weights[2] = weights[2][:, near]

    def on_grid(values: np.ndarray) -> np.ndarray:
        return interpolate(values[:, :, near], weights)

    image = on_grid(tissues.soft)
    edge = float(grid.spacing_mm.mean())
    for solid, hu in tissues.layers:
        paint(image, on_grid(hu) if isinstance(hu, np.ndarray) else hu, on_grid(solid), edge)
    image += on_grid(tissues.streaks)
    return image


def box_around(grid: Grid, centre: np.ndarray, reach: np.ndarray) -> tuple[slice, ...]:
    """The part of the grid that lies within a distance of a place along each axis."""
    return tuple(
        slice(*np.searchsorted(axis, (x - r, x + r)))
        for axis, x, r in zip(grid.axes_mm, centre, reach, strict=True)
    )


def fill(image: np.ndarray, share: np.ndarray, hu: float) -> None:
    """Lay `hu` over the image with the given share of each voxel."""
    image += share * (np.float32(hu) - image)


def paint_plaque(image: np.ndarray, grid: Grid, plaque: Plaque, edge: float) -> None:
    """Lay a plaque over the image, with an edge this wide (mm)."""
    box = box_around(grid, plaque.place, plaque.half_axes + edge)
    q = np.meshgrid(
        *(axis[part] for axis, part in zip(grid.axes_mm, box, strict=True)),
        indexing="ij",
        sparse=True,
    )
    if all(part.size for part in q):
        distance = ball(q, plaque.place.tolist(), plaque.half_axes.tolist())
        # Smaller than a voxel it is less bright, not larger.
        share = min(1.0, float(np.prod(2 * plaque.half_axes / edge)))
        where = image[box]
        paint(where, where + share * (plaque.hu - where), distance, edge)
