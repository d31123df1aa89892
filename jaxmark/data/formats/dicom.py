"""DICOM: a series of a folder, a file a slice, or one multi-frame file; ITK reads both by GDCM.

GDCM believes lengths, leaves out slices that it cannot parse and makes up places that are not
stated, and ITK takes any slices for evenly stacked ones: all of this is refused first.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.data.formats import dicom_frames, dicom_series
from jaxmark.data.formats.dicom_elements import pixel_bytes
from jaxmark.data.formats.dicom_stack import check_steps, right_angled, stacked
from jaxmark.data.formats.safeguards import (
    DAMAGED,
    ITK_ERRORS,
    MAX_INFLATION,
    check_place,
    check_shape,
    check_spacing,
    floats,
    itk_header,
    named,
    place_of,
    voxels_and_place,
)
from jaxmark.system.errors import InputError

# Without these GDCM would make up a place.
_PLACE_TAGS = {
    "0028|0030": "pixel spacing",
    "0020|0032": "image position",
    "0020|0037": "image orientation",
}
# Whole numbers in less memory than float32.
_SMALL_TYPES = (sitk.sitkInt8, sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkUInt16)


def read(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Voxels (X, Y, Z), x fastest in memory, ijk_to_lps (4, 4), and notes.

    Voxels are float32, or of the slices' own type where all have one of whole numbers.

    Args:
      path: a folder with one series that is a volume, one of `dicom_series.series_path`, or a
        multi-frame file.
    """
    if path.is_file():
        return dicom_frames.read(path)
    part = dicom_series.is_series_path(path)
    folder = path.parent if part else path
    found = dicom_series.contents(dicom_series.slice_files(folder))
    series = dicom_series.series_of(path, found) if part else dicom_series.only_series(path, found)
    for file in found.unknown:
        # Its own words for what is wrong with it come first.
        _slice_header(file)
        raise InputError(file, "states no series (0020,000e), unlike others in its folder")
    assert series is not None, "a folder without series holds files that are refused"
    if series.multi_frame:
        voxels, place, notes = dicom_frames.read(series.files[0])
    else:
        voxels, place, notes = _read_slices(folder, series.files)
    if beside := found.beside(series):
        notes = (*notes, f"not part of this scan: {named(beside)}")
    return voxels, place, notes


def _read_slices(
    folder: Path, files: Sequence[Path]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    headers = {file: _slice_header(file) for file in files}
    files = _in_order(headers)
    slices = [headers[file] for file in files]
    step = _check_slices(folder, files, slices)
    try:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(file) for file in files])
        reader.SetOutputPixelType(_common_type(slices))
        image = reader.Execute()
    except ITK_ERRORS:
        raise InputError(folder, "its DICOM slices cannot be read as one volume") from None
    voxels, place = voxels_and_place(image)
    if step is None:
        check_place(folder, image.GetSize(), place)
        return voxels, place, ()
    voxels = voxels.astype(np.float32, copy=False)
    return right_angled(folder, voxels, stacked(place_of(slices[0]), step))


def _common_type(slices: Sequence[sitk.ImageFileReader]) -> int:
    """SimpleITK's number of a type that holds all slices' values, with their scales.

    By itself ITK takes that of the first, and others lose what it cannot hold.
    """
    (first, *others) = {header.GetPixelID() for header in slices}
    return sitk.sitkFloat32 if others or first not in _SMALL_TYPES else first


def _in_order(headers: dict[Path, sitk.ImageFileReader]) -> list[Path]:
    """The files along the normal of the first one's slice."""
    normal = _normal(next(iter(headers.values())))
    return sorted(headers, key=lambda file: np.dot(headers[file].GetOrigin()[:3], normal))


def _normal(header: sitk.ImageFileReader) -> np.ndarray:
    return np.reshape(header.GetDirection(), (3, 3))[:, 2]


def _check_slices(
    folder: Path, files: Sequence[Path], slices: Sequence[sitk.ImageFileReader]
) -> np.ndarray | None:
    """Refuses what is not one evenly stacked volume; gives `check_steps`."""
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
    origins = np.array([header.GetOrigin()[:3] for header in slices])
    return check_steps(folder, origins, _normal(first))


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
