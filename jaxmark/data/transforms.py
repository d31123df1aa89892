"""Transform files of ITK, which ANTs, elastix, 3D Slicer and SimpleITK write."""

import struct
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.formats.safeguards import ITK_ERRORS
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_bytes

_EXTENSIONS = (".tfm", ".txt", ".mat")
# Far apart, so that what is not affine shows.
_PROBES_MM = np.random.default_rng(0).uniform(-200, 200, (20, 3))


def read_transform(path: Path) -> np.ndarray:
    """The affine map (4, 4) of a transform file: LPS mm of its fixed to those of its moving scan.

    HDF5 is not read: in a damaged file its library loops for ever.

    Raises:
      InputError: the file is missing, no transform, or one that no matrix describes (a warp).
    """
    content = read_bytes(path)
    if path.suffix.lower() not in _EXTENSIONS:
        listed = ", ".join(_EXTENSIONS)
        raise InputError(path, f"not a transform format jaxmark reads: {listed}; save it as .tfm")
    if path.suffix.lower() == ".mat" and not _is_whole_matlab(content):
        raise InputError(path, "is not a transform file that ITK reads")
    try:
        transform = sitk.ReadTransform(str(path))
    except ITK_ERRORS:
        raise InputError(path, "is not a transform file that ITK reads") from None
    if transform.GetDimension() != 3:
        raise InputError(path, f"transforms {transform.GetDimension()} dimensions, not 3")
    there = np.array([transform.TransformPoint(point) for point in _PROBES_MM.tolist()])
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = matrix_of(transform)
        has_inverse = abs(np.linalg.det(matrix[:3, :3])) >= 1e-6
    if not (np.isfinite(matrix).all() and np.isfinite(there).all() and has_inverse):
        raise InputError(path, "is a transform without an inverse")
    if not np.allclose(apply_affine(matrix, _PROBES_MM), there, atol=1e-3):
        raise InputError(path, "is a warp; only linear transforms are read")
    return matrix


def _is_whole_matlab(content: bytes) -> bool:
    """Whether a MATLAB 4 file has the arrays that it states, for which ITK asks for memory."""
    position = 0
    while position < len(content):
        if len(content) - position < 20:
            return False
        kind, rows, columns, _, name = struct.unpack_from("<5i", content, position)
        # Of the kinds little-endian double and float, which ITK writes.
        if kind not in (0, 10) or min(rows, columns, name) < 0:
            return False
        position += 20 + name + rows * columns * (4 if kind else 8)
    return position == len(content)


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """(4, 4) of any affine transform, whatever its parameters."""
    origin, *ends = (
        np.array(transform.TransformPoint(point))
        for point in ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    )
    return compose_affine(np.stack(ends, 1) - origin[:, None], origin)
