"""Axes of vessels: against NumPy's eigenvectors, and of tubes whose direction is known."""

import jax
import numpy as np
import pytest

from jaxmark.core.orientation import vessel_axes

SPACING = (0.8, 1.0, 1.5)


def test_agrees_with_the_eigenvectors_of_each_neighbourhood():
    rng = np.random.default_rng(0)
    inside = rng.random((1, 7, 8, 6)) < 0.3
    found = np.asarray(jax.jit(lambda x: vessel_axes(x, SPACING, radius_mm=2.0))(inside))[0]
    voxels = np.argwhere(inside[0])
    reach = [round(2.0 / s) for s in SPACING]
    for voxel in voxels:
        near = voxels[(np.abs(voxels - voxel) <= reach).all(1)] * SPACING
        values, vectors = np.linalg.eigh(np.cov(near.T, bias=True).reshape(3, 3))
        if values[2] > 1.3 * values[1]:
            assert abs(found[tuple(voxel)] @ vectors[:, 2]) > 0.99


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 0, 1), (1, 1, 0), (2, -1, 1)])
def test_a_tube_runs_along_its_axis(direction):
    unit = np.array(direction) / np.linalg.norm(direction)
    shape = (24, 24, 16)
    centre = (np.array(shape) - 1) / 2 * SPACING
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) * SPACING
    off = grid - centre
    across = np.linalg.norm(off - (off @ unit)[..., None] * unit, axis=-1)
    inside = across < 1.6
    found = np.asarray(vessel_axes(inside[None], SPACING, radius_mm=4.0))[0]
    middle = inside & (np.linalg.norm(off, axis=-1) < 5)
    assert middle.sum() > 20
    assert np.degrees(np.arccos(np.abs(found[middle] @ unit).clip(0, 1))).max() < 15
