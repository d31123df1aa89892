"""Solid shapes as signed distances: mm, negative inside."""

from collections.abc import Sequence

import numpy as np

# The x, y and z of places: (3, a, b, c), or three arrays that broadcast.
Places = np.ndarray | Sequence[np.ndarray]
Place = np.ndarray | Sequence[float]


def ball(q: Places, centre: Sequence[float], axes: Sequence[float]) -> np.ndarray:
    """An ellipsoid with these half axes; distances are exact only at its surface."""
    x, y, z = (((p - c) / a) ** 2 for p, c, a in zip(q, centre, axes, strict=True))
    return (np.sqrt(x + y + z) - 1) * np.float32(min(axes))


def ellipsoid(q: Places, centre: Sequence[float], axes: Sequence[float]) -> np.ndarray:
    """As `ball`, but right to first order near the surface, however long the ellipsoid is."""
    parts = [(p - np.float32(c)) / np.float32(a) for p, c, a in zip(q, centre, axes, strict=True)]
    near = np.sqrt(sum(part * part for part in parts))
    steep = np.sqrt(sum((part / np.float32(a)) ** 2 for part, a in zip(parts, axes, strict=True)))
    return near * (near - 1) / np.maximum(steep, np.float32(1e-6))


def rod(q: Places, start: Place, end: Place, radius: float) -> np.ndarray:
    """A straight line with round ends."""
    step = [b - a for a, b in zip(start, end, strict=True)]
    x, y, z = (p - a for p, a in zip(q, start, strict=True))
    length2 = sum(s * s for s in step)
    t = np.clip((x * step[0] + y * step[1] + z * step[2]) / length2, 0, 1)
    square = (x - t * step[0]) ** 2 + (y - t * step[1]) ** 2 + (z - t * step[2]) ** 2
    return np.sqrt(square) - np.float32(radius)


def union(*shapes: np.ndarray) -> np.ndarray:
    """The union of shapes."""
    return np.minimum.reduce(shapes)


def common(*shapes: np.ndarray) -> np.ndarray:
    """The intersection of shapes."""
    return np.maximum.reduce(shapes)


def smooth_union(width_mm: float, *shapes: np.ndarray) -> np.ndarray:
    """A union whose grooves are filled where both shapes are nearer than about `width_mm`.

    The polynomial smooth minimum, shape by shape.
    """
    joined = shapes[0]
    for shape in shapes[1:]:
        overlap = np.maximum(np.float32(width_mm) - np.abs(joined - shape), 0)
        joined = np.minimum(joined, shape) - overlap * overlap / np.float32(4 * width_mm)
    return joined


def tube(
    axes: Sequence[np.ndarray], points: np.ndarray, radii: np.ndarray, reach: float
) -> np.ndarray:
    """A tube around a line through points (N, 3) with radii (N,), on the lattice of three axes.

    Returns:
      (a, b, c) float32: distances as far as `reach`, and `reach` beyond.
    """
    field = np.full([len(axis) for axis in axes], reach, np.float32)
    for i in range(len(points) - 1):
        ends = points[i : i + 2]
        margin = radii[i : i + 2].max() + reach
        box = tuple(
            slice(*np.searchsorted(axis, (low - margin, high + margin)))
            for axis, low, high in zip(axes, ends.min(0), ends.max(0), strict=True)
        )
        q = [
            np.expand_dims(axis[part] - x, [k for k in range(3) if k != a]).astype(np.float32)
            for a, (axis, part, x) in enumerate(zip(axes, box, ends[0], strict=True))
        ]
        step = ends[1] - ends[0]
        x, y, z = (np.float32(part) for part in step)
        t = np.clip((q[0] * x + q[1] * y + q[2] * z) / np.float32(max(step @ step, 1e-9)), 0, 1)
        square = (q[0] - t * x) ** 2 + (q[1] - t * y) ** 2 + (q[2] - t * z) ** 2
        radius = np.float32(radii[i]) + t * np.float32(radii[i + 1] - radii[i])
        np.minimum(field[box], np.sqrt(square) - radius, out=field[box])
    return field


def paint(image: np.ndarray, value: float | np.ndarray, distance: np.ndarray, edge: float) -> None:
    """Lay `value` over the image where the distance (mm) is negative, with an edge this wide."""
    image += np.clip(np.float32(0.5) - distance / np.float32(edge), 0, 1) * (value - image)
