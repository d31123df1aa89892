"""DICOM: a folder with one series, a file a slice, which ITK reads by way of GDCM.

GDCM believes lengths, leaves out slices that it cannot parse and makes up places that are not
stated, and ITK takes any slices for evenly stacked ones: all of this is refused first.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.data.formats.dicom_elements import pixel_bytes
from jaxmark.data.formats.safeguards import (
    DAMAGED,
    ITK_ERRORS,
    MAX_INFLATION,
    check_place,
    check_shape,
    check_spacing,
    entries,
    floats,
    itk_header,
    place_of,
    readable,
    rounded,
    voxels_and_place,
)
from jaxmark.system.errors import InputError

_SERIES = "0020|000e"
# Without these GDCM would make up a place.
_PLACE_TAGS = {
    "0028|0030": "pixel spacing",
    "0020|0032": "image position",
    "0020|0037": "image orientation",
}


def slice_files(folder: Path) -> list[Path]:
    """The files of a folder that are DICOM by extension or by what they begin with."""
    with readable(folder):
        files = [path for path in entries(folder) if path.is_file() and path.name != "DICOMDIR"]
    return [path for path in files if _is_dicom(path)]


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z) float32, x fastest in memory, and ijk_to_lps (4, 4)."""
    headers = {file: _slice_header(file) for file in slice_files(folder)}
    if not headers:
        raise InputError(folder, "holds no DICOM files")
    _check_series(folder, list(headers.values()))
    files = _in_order(headers)
    _check_slices(folder, files, [headers[file] for file in files])
    try:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(file) for file in files])
        # Else all would have the type of the first, and lose what it cannot hold.
        reader.SetOutputPixelType(sitk.sitkFloat32)
        image = reader.Execute()
    except ITK_ERRORS:
        raise InputError(folder, "its DICOM slices cannot be read as one volume") from None
    check_place(folder, image.GetSize(), place_of(image))
    return voxels_and_place(image)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() == ".dcm":
        return True
    with readable(path), open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _check_series(folder: Path, headers: Sequence[sitk.ImageFileReader]) -> None:
    series = Counter(_stated(header, _SERIES) for header in headers)
    if len(series) > 1:
        counts = ", ".join(f"{name} ({count} slices)" for name, count in sorted(series.items()))
        raise InputError(folder, f"holds {len(series)} DICOM series, need one: {counts}")


def _in_order(headers: dict[Path, sitk.ImageFileReader]) -> list[Path]:
    """The files along the normal of the first one's slice."""
    normal = _normal(next(iter(headers.values())))
    return sorted(headers, key=lambda file: np.dot(headers[file].GetOrigin()[:3], normal))


def _normal(header: sitk.ImageFileReader) -> np.ndarray:
    return np.reshape(header.GetDirection(), (3, 3))[:, 2]


def _check_slices(
    folder: Path, files: Sequence[Path], slices: Sequence[sitk.ImageFileReader]
) -> None:
    """Refuses what is not one evenly stacked volume."""
    first = slices[0]
    shape = (*first.GetSize()[:2], len(slices))
    check_shape(folder, shape, first.GetNumberOfComponents())
    in_plane = place_of(first)[:3, :2]
    for file, other in zip(files, slices, strict=True):
        if other.GetSize() != first.GetSize():
            sizes = f"{other.GetSize()[:2]} voxels, the first slice {first.GetSize()[:2]}"
            raise InputError(file, f"has {sizes}")
        if not np.allclose(place_of(other)[:3, :2], in_plane, atol=1e-3):
            raise InputError(file, "has another spacing or direction than the first slice")
    # No memory for what cannot be there, whatever the compression.
    if math.prod(shape) > MAX_INFLATION * sum(file.stat().st_size for file in files):
        raise InputError(folder, f"its slices are {DAMAGED}")
    _check_steps(folder, slices)


def _slice_header(path: Path) -> sitk.ImageFileReader:
    available = pixel_bytes(path)
    try:
        header = itk_header(path, "GDCMImageIO")
    except ITK_ERRORS:
        raise InputError(path, f"{DAMAGED}, or not a DICOM image") from None
    if header.GetSize()[2] > 1:
        raise InputError(path, "is multi-frame DICOM; convert it to NIfTI or MetaImage")
    for tag, name in _PLACE_TAGS.items():
        if not _stated(header, tag):
            raise InputError(path, f"states no {name} ({tag.replace('|', ',')})")
    spacing = _stated(header, "0028|0030").split("\\")
    if len(spacing) != 2:
        raise InputError(path, f"states {len(spacing)} numbers as pixel spacing, not 2")
    check_spacing(path, floats(" ".join(spacing)))
    # Samples a voxel, which GDCM takes for one where it is not stated, and their bits.
    numbers = _stated(header, "0028|0002") or "1", _stated(header, "0028|0100") or "nan"
    bits = math.prod(floats(" ".join(numbers)))
    # GDCM takes what lies behind shorter ones.
    if not available >= math.prod(header.GetSize()[:2]) * bits // 8:
        raise InputError(path, f"{DAMAGED}: less pixel data than its rows and columns need")
    return header


def _stated(header: sitk.ImageFileReader, tag: str) -> str:
    """The text of an element, empty where there is none that can be read."""
    try:
        return header.GetMetaData(tag).strip("\0 ")
    except ITK_ERRORS:
        return ""


def _check_steps(folder: Path, slices: Sequence[sitk.ImageFileReader]) -> None:
    """ITK takes any slices for evenly stacked ones along their normal: refuses others."""
    origins = np.array([header.GetOrigin()[:3] for header in slices])
    normal = _normal(slices[0])
    steps = np.diff(origins, axis=0)
    expected = np.median(steps @ normal) * normal
    off = np.linalg.norm(steps - expected, axis=1)
    worst = int(off.argmax())
    # Positions in DICOM are decimal text, often with two or three digits after the point.
    size = np.linalg.norm(expected)
    if not (size > 0 and off[worst] <= 0.01 * size + 0.01):
        raise InputError(
            folder,
            f"the step from slice {worst + 1} to {worst + 2} is {rounded(steps[worst])} mm, "
            f"elsewhere {rounded(expected)}: a slice is missing or doubled, or the slices are "
            "uneven or tilted",
        )
