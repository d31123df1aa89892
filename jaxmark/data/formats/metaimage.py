"""MetaImage: a header in text, and voxels behind it (.mha) or in another file (.mhd).

This module reads it without ITK, which ends the process at some headers.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmark.core.geometry import compose_affine
from jaxmark.data.formats.safeguards import (
    UNREADABLE,
    Content,
    check_place,
    check_shape,
    check_spacing,
    data_file,
    floats,
    header_lines,
    read_voxels,
)
from jaxmark.system.errors import InputError

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read(path: Path) -> Content:
    """The volume in a file, or in the one that its header names."""
    fields, end = _header(path)
    shape = _shape(path, fields)
    ijk_to_lps = _place(path, fields, len(shape))
    check_place(path, shape, ijk_to_lps)
    dtype = _dtype(path, fields)
    compressed = _is_true(fields.get("CompressedData", ""))
    length = None if compressed else math.prod(shape) * dtype.itemsize
    data, begin = _data(path, fields, end, length)
    places = (0, begin) if compressed else (begin, None)
    return Content(read_voxels(data, shape[:3], dtype, *places), ijk_to_lps)


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Its fields, and where it ends: the last one is ElementDataFile."""
    fields: dict[str, str] = {}
    for line, end in header_lines(path):
        key, _, value = os.fsdecode(line).partition("=")
        key = key.strip()
        if key and key in fields:
            raise InputError(path, f"states {key} twice")
        fields[key] = value.strip()
        if key == "ElementDataFile":
            return fields, end
    raise InputError(path, UNREADABLE)


def _shape(path: Path, fields: dict[str, str]) -> list[int]:
    """Three axes, or four of which the last has one voxel."""
    if fields.get("NDims") not in ("3", "4"):
        raise InputError(path, f"states NDims = {fields.get('NDims', 'nothing')}; a volume has 3")
    shape = [int(n) for n in _numbers(path, fields, int(fields["NDims"]), "DimSize")]
    (channels,) = _numbers(path, fields, 1, "ElementNumberOfChannels", default=[1])
    check_shape(path, shape, int(channels))
    return shape


def _place(path: Path, fields: dict[str, str], axes: int) -> np.ndarray:
    """(4, 4) ijk_to_lps. Some fields have older names, which are read too."""
    spacing = _numbers(path, fields, axes, "ElementSpacing", "ElementSize")
    check_spacing(path, spacing)
    names = ("TransformMatrix", "Rotation", "Orientation")
    matrix = _numbers(path, fields, axes**2, *names, default=np.eye(axes).ravel())
    columns = matrix.reshape(axes, axes).T * spacing
    origin = _numbers(path, fields, axes, "Offset", "Position", "Origin", default=np.zeros(axes))
    return compose_affine(columns[:3, :3], origin[:3])


def _dtype(path: Path, fields: dict[str, str]) -> np.dtype:
    kind = fields.get("ElementType", "")
    if kind not in _TYPES:
        raise InputError(path, f"has voxels of the unknown ElementType {kind}")
    if not _is_true(fields.get("BinaryData", "True")):
        raise InputError(path, "has its voxels as text (BinaryData is not True)")
    # Its older name is the second one.
    msb = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", ""))
    return np.dtype((">" if _is_true(msb) else "<") + _TYPES[kind])


def _data(path: Path, fields: dict[str, str], end: int, length: int | None) -> tuple[Path, int]:
    """The file of the voxels, and where they begin in it.

    Args:
      end: where the header ends.
      length: of the voxels in bytes; None where they are compressed.
    """
    (skipped,) = _numbers(path, fields, 1, "HeaderSize", default=[0])
    if fields["ElementDataFile"].upper() == "LOCAL":
        data, begin = path, end
    else:
        data, begin = data_file(path, fields["ElementDataFile"]), int(skipped)
    if begin == -1 and length is not None:
        # The last bytes of the file.
        begin = data.stat().st_size - length
    if begin < 0 or (data == path and skipped > 0):
        raise InputError(path, f"states HeaderSize = {skipped:g}, where no voxels are")
    return data, begin


def _is_true(value: str) -> bool:
    return value[:1] in ("T", "t", "1")


def _numbers(
    path: Path,
    fields: dict[str, str],
    count: int,
    *names: str,
    default: Sequence[float] | np.ndarray = (),
) -> np.ndarray:
    """(count,) float64: the first of the fields that is there."""
    name = next((name for name in names if name in fields), None)
    numbers = np.asarray(default) if name is None else np.array(floats(fields[name]))
    if len(numbers) != count or not np.isfinite(numbers).all():
        stated = fields.get(name or "", "nothing")[:80]
        raise InputError(path, f"states {name or names[0]} = {stated}, not {count} finite numbers")
    return numbers
