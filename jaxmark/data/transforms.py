"""Transform files of ITK, which ANTs, elastix, 3D Slicer and SimpleITK write."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.core.errors import InputError
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.formats.safeguards import readable

# Far apart, so that what is not affine shows.
_PROBES_MM = np.random.default_rng(0).uniform(-200, 200, (20, 3))


def read_transform(path: Path) -> np.ndarray:
    """The affine map (4, 4) of a transform file: LPS mm of its fixed to those of its moving scan.

    Raises:
      InputError: the file is missing, no transform, or one that no matrix describes (a warp).
    """
    with readable(path):
        path.stat()
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError:
        raise InputError(
            path, "is not a transform file that ITK reads (.tfm, .txt, .mat)"
        ) from None
    if transform.GetDimension() != 3:
        raise InputError(path, f"transforms {transform.GetDimension()} dimensions, not 3")
    matrix = matrix_of(transform)
    there = np.array([transform.TransformPoint(point) for point in _PROBES_MM.tolist()])
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-6:
        raise InputError(path, "is a transform without an inverse")
    if not np.allclose(apply_affine(matrix, _PROBES_MM), there, atol=1e-3):
        raise InputError(path, "is a warp; only linear transforms are read")
    return matrix


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """(4, 4) of any affine transform, whatever its parameters."""
    origin, *ends = (
        np.array(transform.TransformPoint(point))
        for point in ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    )
    return compose_affine(np.stack(ends, 1) - origin[:, None], origin)
