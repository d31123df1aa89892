"""NIfTI-1 in one file, plain or in gzip. ITK says where it lies; its voxels are read here, once."""

import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from jaxmark.data.formats.safeguards import (
    UNREADABLE,
    at_right_angles,
    check_origin,
    check_place,
    check_shape,
    check_spacing,
    inflated,
    itk_header,
    place_of,
    read_voxels,
    rounded,
)
from jaxmark.system.errors import InputError

_HEADER_BYTES = 348
_NIFTI_2_HEADER_BYTES = 540
# There is room for whole documents between the header and the voxels.
_MIN_OFFSET = _HEADER_BYTES + 4
_MAX_OFFSET = 1 << 24

# The fields of the header that say where its voxels are and what they mean.
_FIELDS = {
    "dim": ("8i2", 40),
    "datatype": ("i2", 70),
    "pixdim": ("8f4", 76),
    "vox_offset": ("f4", 108),
    "scl_slope": ("f4", 112),
    "scl_inter": ("f4", 116),
    "xyzt_units": ("u1", 123),
    "qform_code": ("i2", 252),
    "sform_code": ("i2", 254),
    "quatern": ("3f4", 256),
    "qoffset": ("3f4", 268),
    "srow": ("(3,4)f4", 280),
}
_Order = Literal["little", "big"]
_ORDERS: tuple[_Order, ...] = ("little", "big")
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
# Metres, and micrometres; any other code is taken for millimetres.
_MM = {1: 1e3, 3: 1e-3}


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z), x fastest in memory, and ijk_to_lps (4, 4)."""
    header, order = _header(path)
    _check_numbers(path, header)
    _check_stated_place(path, header)
    shape = _shape(header)
    check_shape(path, shape)
    ijk_to_lps = place_of(itk_header(path, "NiftiImageIO"))
    check_place(path, shape, ijk_to_lps)
    dtype = np.dtype(_TYPES[int(header["datatype"])]).newbyteorder(order)
    stream = 0 if _is_compressed(path) else None
    voxels = read_voxels(path, shape[:3], dtype, int(header["vox_offset"]), stream)
    return _scaled(voxels, float(header["scl_slope"]), float(header["scl_inter"])), ijk_to_lps


def check_written(path: Path, voxel_bytes: int) -> None:
    """EOFError or zlib.error where ITK wrote less, of which it says nothing: the disk was full."""
    if _is_compressed(path):
        size = sum(map(len, inflated(path, 0)))
    else:
        size = path.stat().st_size
    if size < _HEADER_BYTES + voxel_bytes:
        raise EOFError


def _header(path: Path) -> tuple[np.void, _Order]:
    """Its `_FIELDS`, and its byte order."""
    content = _beginning(path, _HEADER_BYTES)
    # The header begins with its own length, which tells the order.
    sizes = {int.from_bytes(content[:4], order): order for order in _ORDERS}
    if _NIFTI_2_HEADER_BYTES in sizes:
        raise InputError(path, "is NIfTI-2, which ITK does not read: save it as NIfTI-1")
    if len(content) < _HEADER_BYTES or _HEADER_BYTES not in sizes or content[344:] != b"n+1\0":
        raise InputError(path, UNREADABLE)
    order = sizes[_HEADER_BYTES]
    formats, offsets = zip(*_FIELDS.values(), strict=True)
    dtype = np.dtype({"names": [*_FIELDS], "formats": formats, "offsets": offsets})
    return np.frombuffer(content, dtype.newbyteorder(order), 1)[0], order


def _beginning(path: Path, length: int) -> bytes:
    """The first bytes of the file, inflated; fewer where it has no more."""
    if not _is_compressed(path):
        with open(path, "rb") as file:
            return file.read(length)
    content = b""
    try:
        for piece in inflated(path, 0):
            content += piece[:length]
            if len(content) >= length:
                break
    except (EOFError, zlib.error):
        raise InputError(path, UNREADABLE) from None
    return content[:length]


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _shape(header: np.void) -> list[int]:
    """As stated; axes of one voxel behind the third say nothing."""
    count, *sizes = header["dim"].tolist()
    axes = max((i for i in range(1, count + 1) if i <= 3 or sizes[i - 1] > 1), default=0)
    return sizes[:axes]


def _check_numbers(path: Path, header: np.void) -> None:
    """Refuses axes, types, offsets and scales of which no voxels can be made."""
    if not 1 <= header["dim"][0] <= 7:
        raise InputError(path, f"states dim[0] = {header['dim'][0]}, not 1 to 7")
    kind = int(header["datatype"])
    if kind not in _TYPES:
        raise InputError(path, f"has voxels of type {kind} (colour, complex or unknown)")
    offset = header["vox_offset"]
    if not _MIN_OFFSET <= offset <= _MAX_OFFSET:
        stated = f"states vox_offset = {offset:g}"
        raise InputError(path, f"{stated}, not {_MIN_OFFSET} to {_MAX_OFFSET}")
    slope, intercept = header["scl_slope"], header["scl_inter"]
    if np.isinf(slope) or (_is_scale(slope) and not np.isfinite(intercept)):
        raise InputError(path, f"states scl_slope = {slope:g} and scl_inter = {intercept:g}")


def _check_stated_place(path: Path, header: np.void) -> None:
    """Refuses what ITK takes for 1 mm, for 0 or for another spacing than the one stated."""
    unit = _MM.get(int(header["xyzt_units"]) & 7, 1.0)
    pixdim = header["pixdim"].astype(np.float64)
    check_spacing(path, pixdim[1:4] * unit)
    if header["qform_code"] > 0:
        quaternion = header["quatern"].astype(np.float64)
        if not (np.isfinite(pixdim[0]) and np.linalg.norm(quaternion) < 1.01):
            raise InputError(path, f"states a qform that is no rotation, {rounded(quaternion)}")
        check_origin(path, header["qoffset"] * unit)
    if header["sform_code"] > 0:
        columns = header["srow"][:, :3].astype(np.float64)
        if not np.isfinite(columns).all():
            raise InputError(path, "states an sform that is not finite")
        check_origin(path, header["srow"][:, 3] * unit)
        if header["sform_code"] == 1 or not header["qform_code"] > 0:
            _check_sform_spacing(path, columns, pixdim[1:4])


def _check_sform_spacing(path: Path, columns: np.ndarray, pixdim: np.ndarray) -> None:
    spacing = np.linalg.norm(columns, axis=0)
    # ITK refuses a sheared sform itself, or takes the qform.
    if at_right_angles(columns) and not np.allclose(spacing, pixdim, rtol=1e-3):
        stated = f"states a voxel spacing of {rounded(pixdim)} as pixdim"
        raise InputError(path, f"{stated}, but of {rounded(spacing)} in its sform")


def _scaled(voxels: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """By way of float32, then float64, as ITK does it."""
    if not _is_scale(slope) or (slope, intercept) == (1, 0):
        return voxels
    if voxels.dtype.kind in "iu":
        voxels = voxels.astype(np.float32)
    scaled = voxels.astype(np.float64)
    scaled *= slope
    scaled += intercept
    return scaled


def _is_scale(slope: float) -> bool:
    """A slope of 0 or NaN means none."""
    return not (slope == 0 or math.isnan(slope))
