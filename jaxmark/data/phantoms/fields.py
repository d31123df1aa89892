"""Values on a lattice of nodes in millimetres, brought onto a grid; smooth random fields.

A seed gives the same field on every grid.
"""

from collections.abc import Sequence

import numpy as np

_PERIOD = 32  # nodes after which a random field repeats


def node_weights(at: np.ndarray, nodes: np.ndarray, cubic: bool = False) -> np.ndarray:
    """(len(at), len(nodes)): basis of linear or cubic B-splines on equally spaced nodes."""
    u = np.abs((at[:, None] - nodes) / (nodes[1] - nodes[0])).astype(np.float32)
    if not cubic:
        return np.maximum(0, 1 - u)
    return np.where(u < 1, 2 / 3 - u**2 + u**3 / 2, np.maximum(0, 2 - u) ** 3 / 6)


def interpolate(values: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Values (a, b, c) at nodes -> (X, Y, Z), with the weights (X, a), (Y, b), (Z, c)."""
    x, y, z = weights
    values = y @ (values @ z.T)
    return (x @ values.reshape(len(values), -1)).reshape(len(x), len(y), len(z))


def nodes_around(axis: np.ndarray, step_mm: float) -> np.ndarray:
    """Multiples of `step_mm`: those that a cubic spline needs along the axis."""
    return step_mm * np.arange(np.floor(axis[0] / step_mm) - 1, np.ceil(axis[-1] / step_mm) + 2)


def random_field(
    rng: np.random.Generator, step_mm: float, axes: Sequence[np.ndarray]
) -> np.ndarray:
    """A smooth field of mean 0 and SD 1 on three axes; a function of place and draw alone."""
    drawn = rng.standard_normal((_PERIOD,) * 3, dtype=np.float32)
    nodes = [nodes_around(axis, step_mm) for axis in axes]
    chosen = drawn[np.ix_(*(np.rint(at / step_mm).astype(int) % _PERIOD for at in nodes))]
    weights = [node_weights(axis, at, cubic=True) for axis, at in zip(axes, nodes, strict=True)]
    # A cubic B-spline leaves 0.479 of the variance of white nodes in each direction.
    return interpolate(chosen / np.float32(0.479**1.5), weights)
