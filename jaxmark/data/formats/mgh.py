"""FreeSurfer's MGH: a big-endian header of 284 bytes, and voxels behind it; .mgz is all in gzip."""

from pathlib import Path

import numpy as np

from jaxmark.core.geometry import compose_affine
from jaxmark.data.formats.safeguards import (
    UNREADABLE,
    Content,
    beginning,
    check_place,
    check_shape,
    check_spacing,
    is_gzip,
    read_voxels,
)
from jaxmark.system.errors import InputError

_HEADER_BYTES = 284
_HEADER = np.dtype(
    {
        "names": ["version", "shape", "type", "has_place", "spacing", "axes", "centre"],
        "formats": [">i4", ">4i4", ">i4", ">i2", ">3f4", "(3,3)>f4", ">3f4"],
        "offsets": [0, 4, 20, 28, 30, 42, 78],
    }
)
_TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(path: Path) -> Content:
    """The volume; its place in the scanner's frame, as `mri_info --vox2ras` says it."""
    packed = is_gzip(path)
    content = beginning(path, _HEADER_BYTES, packed=packed)
    if len(content) < _HEADER_BYTES:
        raise InputError(path, UNREADABLE)
    header = np.frombuffer(content, _HEADER, 1)[0]
    if header["version"] != 1:
        raise InputError(path, UNREADABLE)
    shape = header["shape"].tolist()
    shape = shape if shape[3] > 1 else shape[:3]
    check_shape(path, shape)
    if int(header["type"]) not in _TYPES:
        raise InputError(path, f"has voxels of the unknown type {header['type']}")
    if header["has_place"] <= 0:
        raise InputError(path, "states no place (its goodRASFlag is not 1): convert it to NIfTI")
    check_spacing(path, header["spacing"])
    # A row of the file is an axis of the voxels. What is stated is where the volume's centre is.
    columns = header["axes"].astype(np.float64).T * header["spacing"].astype(np.float64)
    first = header["centre"].astype(np.float64) - columns @ (np.array(shape[:3]) / 2)
    ijk_to_lps = _TO_LPS @ compose_affine(columns, first)
    check_place(path, shape, ijk_to_lps)
    dtype = np.dtype(_TYPES[int(header["type"])])
    voxels = read_voxels(path, shape[:3], dtype, _HEADER_BYTES, 0 if packed else None)
    return Content(voxels, ijk_to_lps)
