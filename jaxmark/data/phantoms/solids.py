"""Solid shapes as signed distances: mm, negative inside."""

from collections.abc import Sequence

import numpy as np

# The x, y and z of places: (3, a, b, c), or three arrays that broadcast.
Places = np.ndarray | Sequence[np.ndarray]


def ball(q: Places, centre: Sequence[float], axes: Sequence[float]) -> np.ndarray:
    """An ellipsoid with these half axes; exact at its surface alone."""
    x, y, z = (((p - c) / a) ** 2 for p, c, a in zip(q, centre, axes, strict=True))
    return (np.sqrt(x + y + z) - 1) * np.float32(min(axes))


def rod(q: Places, start: Sequence[float], end: Sequence[float], radius: float) -> np.ndarray:
    """A straight line with round ends."""
    step = [b - a for a, b in zip(start, end, strict=True)]
    x, y, z = (p - a for p, a in zip(q, start, strict=True))
    length2 = sum(s * s for s in step)
    t = np.clip((x * step[0] + y * step[1] + z * step[2]) / length2, 0, 1)
    square = (x - t * step[0]) ** 2 + (y - t * step[1]) ** 2 + (z - t * step[2]) ** 2
    return np.sqrt(square) - np.float32(radius)


def union(*shapes: np.ndarray) -> np.ndarray:
    """What lies in any of them."""
    return np.minimum.reduce(shapes)


def common(*shapes: np.ndarray) -> np.ndarray:
    """What lies in all of them."""
    return np.maximum.reduce(shapes)


def paint(image: np.ndarray, value: float | np.ndarray, distance: np.ndarray, edge: float) -> None:
    """Lay `value` over the image where the distance (mm) is negative, with an edge this wide."""
    image += np.clip(np.float32(0.5) - distance / np.float32(edge), 0, 1) * (value - image)
