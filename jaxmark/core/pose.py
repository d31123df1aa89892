"""The pose of a structure of known shape, by landmarks of which some are wrong. numpy alone."""

import numpy as np

from jaxmark.core.alignment import fit
from jaxmark.core.geometry import compose_affine, fit_rigid

# The prior pose: upright, in the scan's middle. It enters as six points this far from the shape's
# middle, each with this standard deviation, so that found landmarks outweigh it.
_ARM_MM, _PRIOR_MM = 30.0, 60.0
# No person is smaller or larger than this; a fit beyond follows wrong landmarks.
_LEAST_SCALE, _MOST_SCALE = 0.75, 1.3


def pose_of(
    shape_mm: np.ndarray, points_mm: np.ndarray, doubt_mm: np.ndarray, middle_mm: np.ndarray
) -> np.ndarray:
    """(4, 4) the similarity that takes a typical shape to landmarks found in a scan.

    Args:
      shape_mm: (K, 3), around the origin.
      points_mm: (K, 3) LPS of the scan.
      doubt_mm: (K,) standard deviation of each along each axis, without gross errors.
      middle_mm: (3,) of the scan.
    """
    arms = _ARM_MM * np.concatenate([np.eye(3), -np.eye(3)])
    source = np.concatenate([shape_mm, arms])
    target = np.concatenate([points_mm, arms + middle_mm])
    variance = np.concatenate([doubt_mm, np.full(len(arms), _PRIOR_MM)]) ** 2
    found = fit("similarity", source, target, variance)
    matrix = found.transform.matrix
    size = np.cbrt(np.linalg.det(matrix[:3, :3]))
    if _LEAST_SCALE < size < _MOST_SCALE:
        return matrix
    limited = np.clip(size, _LEAST_SCALE, _MOST_SCALE)
    # The best rotation and translation for a shape of the limited size.
    grown = compose_affine(limited * np.eye(3), np.zeros(3))
    return fit_rigid(limited * source, target, found.weights) @ grown


def true_pose(shape_mm: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """(4, 4) as `pose_of`, to landmarks (K, 3) that are known, or NaN; the identity for under 3."""
    known = np.isfinite(points_mm).all(1)
    try:
        return fit("similarity", shape_mm[known], points_mm[known]).transform.matrix
    except ValueError:
        middle = points_mm[known].mean(0) - shape_mm[known].mean(0) if known.any() else np.zeros(3)
        return compose_affine(np.eye(3), middle)
