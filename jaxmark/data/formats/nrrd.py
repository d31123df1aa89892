"""NRRD: a text header, and voxels behind it or in another file. ITK reads it after checks."""

import math
import os
import re
from pathlib import Path

import SimpleITK as sitk

from jaxmark.data.formats.safeguards import (
    MAX_HEADER_BYTES,
    UNREADABLE,
    Content,
    check_origin,
    check_place,
    check_shape,
    check_spacing,
    data_file,
    floats,
    header_lines,
    inflate,
    itk_header,
    place_of,
    voxels_and_place,
)
from jaxmark.system.errors import InputError

# ITK's reader ends the process when it complains of something longer.
_MAX_BYTES = 512


def read(path: Path) -> Content:
    """The volume in a file (.nrrd), or in the one that its header names (.nhdr, .nrrd)."""
    if len(os.fsencode(path)) > _MAX_BYTES:
        raise InputError(path, f"its path has more than {_MAX_BYTES} bytes")
    fields, end = _header(path)
    _check_stated_place(path, fields)
    encoding = fields.get("encoding", "").lower()
    if encoding in ("bzip2", "bz2"):
        problem = "bzip2 compression is not read: write it with gzip, or uncompressed"
        raise InputError(path, problem)
    # ITK opens the data file with the header.
    name = fields.get("data file", fields.get("datafile"))
    data, begin = (path, end) if name is None else (data_file(path, name), 0)
    reader = itk_header(path, "NrrdImageIO")
    shape = reader.GetSize()
    check_shape(path, shape, reader.GetNumberOfComponents())
    check_place(path, shape, place_of(reader))
    bytes_a_voxel = sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    _check_data(data, begin, encoding, math.prod(shape), bytes_a_voxel)
    image = reader.Execute()
    return Content(*voxels_and_place(image[..., 0] if image.GetDimension() == 4 else image))


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Its fields, with keys in lower case, and where it ends: at the first empty line."""
    fields: dict[str, str] = {}
    end = 0
    for line, end in header_lines(path):
        if not (fields or line.startswith(b"NRRD000")):
            raise InputError(path, UNREADABLE)
        if not line.strip():
            return fields, end
        key, _, value = os.fsdecode(line).partition(":")
        free = key == "content" or key.startswith("#") or value.startswith("=")
        if len(line) > _MAX_BYTES and not free:
            raise InputError(path, f"has a field of more than {_MAX_BYTES} bytes: {key[:40]}")
        fields[key.strip().lower()] = value.strip()
    if end in (0, MAX_HEADER_BYTES):
        raise InputError(path, UNREADABLE)
    # Its voxels are in another file.
    return fields, end


def _check_stated_place(path: Path, fields: dict[str, str]) -> None:
    """Refuses values that ITK silently replaces by 1 mm or 0."""
    directions = re.findall(r"\(.*?\)", fields.get("space directions", ""))
    spacing = [math.hypot(*floats(vector)) for vector in directions]
    spacing = spacing or floats(fields.get("spacings", ""))
    if len(spacing) < 3:
        raise InputError(path, "states no voxel spacing for three axes")
    check_spacing(path, spacing)
    check_origin(path, floats(fields.get("space origin", "")))
    units = fields.get("space units", "") + fields.get("units", "")
    if set(re.findall(r'[^\s"]+', units)) - {"mm", "millimeter", "millimeters"}:
        raise InputError(path, f"states the units {units[:80]}, which ITK takes for mm")


def _check_data(data: Path, begin: int, encoding: str, count: int, bytes_a_voxel: int) -> None:
    """Raises EOFError or zlib.error where the file cannot hold so many voxels, or is damaged."""
    if encoding in ("gzip", "gz"):
        # ITK does not look at the checksum.
        inflate(data, begin, count * bytes_a_voxel)
    # As text a voxel takes a byte or more.
    elif data.stat().st_size - begin < count * (bytes_a_voxel if encoding == "raw" else 1):
        raise EOFError
