"""Transform files of ITK, which ANTs, elastix, 3D Slicer and SimpleITK read and write.

They map points of the fixed scan to points of the moving scan, in LPS mm, as resampling the moving
scan on the fixed scan's grid needs it. 3D Slicer inverts a loaded transform, so a moving scan under
the transform is shown where the fixed scan is.
"""

import struct
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.core.alignment import Transform
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.formats.safeguards import ITK_ERRORS
from jaxmark.data.resampling import slices_of
from jaxmark.data.scans import to_image, write_image
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_bytes, write_text_atomic

_EXTENSIONS = (".tfm", ".txt", ".mat")
# Points to tell affine maps from warps; far apart, so that a warp shows.
_PROBES_MM = np.random.default_rng(0).uniform(-200, 200, (20, 3))


def read_transform(path: Path) -> np.ndarray:
    """The affine map (4, 4) of a transform file: LPS mm of its fixed -> of its moving scan.

    HDF5 is not read: its library never returns from some damaged files.

    Raises:
      InputError: the file is missing or no transform; the transform is not affine or has no
        inverse.
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
    """Whether a MATLAB 4 file is as long as its headers state; ITK allocates what they state."""
    position = 0
    while position < len(content):
        if len(content) - position < 20:
            return False
        kind, rows, columns, _, name = struct.unpack_from("<5i", content, position)
        # Kinds 0 and 10: little-endian double and float, which ITK writes.
        if kind not in (0, 10) or min(rows, columns, name) < 0:
            return False
        position += 20 + name + rows * columns * (4 if kind else 8)
    return position == len(content)


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """(4, 4) of an affine transform of any class, from four mapped points."""
    origin, *ends = (
        np.array(transform.TransformPoint(point))
        for point in ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    )
    return compose_affine(np.stack(ends, 1) - origin[:, None], origin)


def write_transform(path: Path, matrix: np.ndarray) -> None:
    """Writes an affine map (4, 4) as ITK's text, `.tfm`, without rounding.

    Raises:
      OSError: the file cannot be written.
    """
    parameters = [*matrix[:3, :3].ravel(), *matrix[:3, 3]]
    lines = [
        "#Insight Transform File V1.0",
        "#Transform 0",
        "Transform: AffineTransform_double_3_3",
        f"Parameters: {' '.join(repr(float(number)) for number in parameters)}",
        "FixedParameters: 0 0 0",
        "",
    ]
    write_text_atomic(path, "\n".join(lines))


def write_displacements(
    path: Path, transform: Transform, shape: tuple[int, int, int], grid_to_lps: np.ndarray
) -> None:
    """Writes a transform as an image of displacements in mm on a grid, float32, such as `.mha`.

    ITK interpolates linearly between nodes, and does not move points outside of the grid.

    Args:
      grid_to_lps: (4, 4), with axes at right angles: ijk of the grid -> LPS mm of the fixed scan.

    Raises:
      OSError: the file cannot be written.
    """
    field = np.empty((*shape, 3), np.float32)
    for k, points in enumerate(slices_of(shape, grid_to_lps)):
        field[:, :, k] = transform(points) - points
    write_image(path, to_image(field, grid_to_lps))
