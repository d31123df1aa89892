"""Smooth curves through points, in millimetres."""

import numpy as np
from scipy.interpolate import CubicSpline


def spline(knots: np.ndarray) -> tuple[CubicSpline, np.ndarray]:
    """A smooth curve through knots (n, 3), and the parameter (n,) of each: mm along the chords."""
    u = arc_lengths(knots)
    return CubicSpline(u, knots, bc_type="natural"), u


def resample(curve: CubicSpline, begin: float, end: float, spacing_mm: float) -> np.ndarray:
    """(N, 3): points of the curve from one parameter to the other, at most this far apart."""
    u = np.linspace(begin, end, 200)
    lengths = arc_lengths(curve(u))
    count = int(np.ceil(lengths[-1] / spacing_mm)) + 1
    return curve(np.interp(np.linspace(0, lengths[-1], count), lengths, u))


def arc_lengths(points: np.ndarray) -> np.ndarray:
    """(N, 3) -> (N,): the length of the way from the first point."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])
