"""DICOM: a folder with one series, a file a slice, which ITK reads by way of GDCM.

GDCM leaves out slices that it cannot parse and makes up places that are not stated, and ITK takes
any slices for evenly stacked ones: all of this is refused first.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.core.errors import InputError
from jaxmark.data.formats.safeguards import (
    DAMAGED,
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
    try:
        files = _series(folder)
        _check_slices(folder, files)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(file) for file in files])
        # Else all would have the type of the first, and lose what it cannot hold.
        reader.SetOutputPixelType(sitk.sitkFloat32)
        image = reader.Execute()
    except RuntimeError:
        raise InputError(folder, "its DICOM slices cannot be read as one volume") from None
    check_place(folder, image.GetSize(), place_of(image))
    return voxels_and_place(image)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() == ".dcm":
        return True
    with readable(path), open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _series(folder: Path) -> list[Path]:
    """The files of the only series in a folder, in the order of their places."""
    files = slice_files(folder)
    if not files:
        raise InputError(folder, "holds no DICOM files")
    for path in entries(folder):
        # GDCM would list no further.
        if not (path.is_file() or path.is_dir()):
            raise InputError(path, "is neither a file nor a folder")
    listed = {
        series: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
    # GDCM leaves out what it cannot parse: a damaged slice would be missing silently.
    known = {Path(name).name for names in listed.values() for name in names}
    for file in files:
        if file.name not in known:
            raise InputError(file, f"{DAMAGED}, or not a DICOM image")
    if len(listed) > 1:
        counts = ", ".join(f"{series} ({len(names)} slices)" for series, names in listed.items())
        raise InputError(folder, f"holds {len(listed)} DICOM series, need one: {counts}")
    (names,) = listed.values()
    return [Path(name) for name in names]


def _check_slices(folder: Path, files: Sequence[Path]) -> None:
    """Refuses what is not one evenly stacked volume."""
    slices = [_slice_header(file) for file in files]
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
    header = itk_header(path, "GDCMImageIO")
    if header.GetSize()[2] > 1:
        raise InputError(path, "is multi-frame DICOM; convert it to NIfTI or MetaImage")
    for tag, name in _PLACE_TAGS.items():
        if not header.HasMetaDataKey(tag):
            raise InputError(path, f"states no {name} ({tag.replace('|', ',')})")
    spacing = header.GetMetaData("0028|0030").split("\\")
    if len(spacing) != 2:
        raise InputError(path, f"states {len(spacing)} numbers as pixel spacing, not 2")
    check_spacing(path, floats(" ".join(spacing)))
    bits = int(header.GetMetaData("0028|0002")) * int(header.GetMetaData("0028|0100"))
    if _pixel_bytes(path) < math.prod(header.GetSize()[:2]) * bits // 8:
        raise InputError(path, f"{DAMAGED}: less pixel data than its rows and columns need")
    return header


def _pixel_bytes(path: Path) -> float:
    """Length of the pixel data of a DICOM file, infinite where it is compressed.

    GDCM takes what lies behind shorter ones.
    """
    element = rb"\xe0\x7f\x10\x00(?:O[BW]\0\0)?(.{4})"
    found = re.findall(element, path.read_bytes(), re.DOTALL)
    lengths = [int.from_bytes(length, "little") for length in found]
    # Icons have pixel data too; of other byte orders none are found.
    return max(lengths, default=math.inf)


def _check_steps(folder: Path, slices: Sequence[sitk.ImageFileReader]) -> None:
    """ITK takes any slices for evenly stacked ones along their normal: refuses others."""
    origins = np.array([header.GetOrigin()[:3] for header in slices])
    normal = np.reshape(slices[0].GetDirection(), (3, 3))[:, 2]
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
