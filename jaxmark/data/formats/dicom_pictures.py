"""DICOM pictures: X-rays, single slices, and the frames of a cine series or of a multi-frame file.

GDCM turns X-rays in which white is 0 (MONOCHROME1) round when it reads them. A picture's place in
the scanner is not read: points on it are those of its own plane.
"""

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.data.formats import dicom_series
from jaxmark.data.formats.dicom_elements import DataSet, Tag, read_elements, read_head
from jaxmark.data.formats.raster import Picture, check_size, in_grey
from jaxmark.data.formats.safeguards import (
    DAMAGED,
    ITK_ERRORS,
    MAX_INFLATION,
    check_spacing,
    itk_header,
)
from jaxmark.system.errors import InputError
from jaxmark.system.fingerprints import FRAME_OF_FILE

_UID, _NUMBER, _INSTANCE = (0x20, 0xE), (0x20, 0x11), (0x20, 0x13)
_SAMPLES, _PHOTOMETRIC, _BITS = (0x28, 0x2), (0x28, 0x4), (0x28, 0x100)
_ROWS, _COLUMNS = (0x28, 0x10), (0x28, 0x11)
# Between rows and columns: in the patient, and at the detector, which is farther from the tube.
_SPACING, _AT_DETECTOR, _CALIBRATED = (0x28, 0x30), (0x18, 0x1164), (0x28, 0xA02)
_SHARED, _EACH, _MEASURES = (0x5200, 0x9229), (0x5200, 0x9230), (0x28, 0x9110)
_WANTED = frozenset(
    (
        *(_UID, _NUMBER, _INSTANCE, _SAMPLES, _PHOTOMETRIC, _BITS, _ROWS, _COLUMNS, _SPACING),
        *(_AT_DETECTOR, _CALIBRATED, _SHARED, _EACH, _MEASURES),
        *(dicom_series.SOP_CLASS, dicom_series.FRAMES, dicom_series.MODALITY),
    )
)
_SAME = 1e-3


class Cine:
    """Files of one series in a folder, a frame each, in the order of their instance numbers."""

    def __init__(self, series: dicom_series.Series, heads: Sequence[tuple[Path, DataSet]]):
        self.series = series
        order = sorted(heads, key=lambda item: (_instance(item[1]), item[0].name))
        self.files = tuple(file for file, _ in order)
        self._sizes = [(head.whole(*_COLUMNS), head.whole(*_ROWS)) for _, head in order]

    def check(self) -> None:
        """InputError where the size changes: then its frames are not of one series of pictures."""
        first = self._sizes[0]
        for file, size in zip(self.files, self._sizes, strict=True):
            if size != first:
                raise InputError(
                    file,
                    f"has {size[0]} x {size[1]} pixels, but the first frame of its series "
                    f"({self.files[0].name}) {first[0]} x {first[1]}: a cine has one size",
                )


def cines(folder: Path) -> list[Cine]:
    """The series of the pictures in a folder that are a file each; what is no picture is left out.

    Raises:
      InputError: a file is damaged.
    """
    found = dicom_series.contents(dicom_series.slice_files(folder))
    for file in found.unknown:
        # Its own words for what is wrong with it come first.
        read_elements(file, _WANTED)
        raise InputError(file, "states no series (0020,000e), unlike others in its folder")
    return [
        Cine(series, [(file, read_head(file, _WANTED)) for file in series.files])
        for series in found.series
        if not series.multi_frame
    ]


def frame_path(file: Path, number: int) -> Path:
    """What stands for one frame, counted from 1, of a multi-frame file: no file has this name."""
    return file / f"{FRAME_OF_FILE}{number}"


def is_frame_path(path: Path) -> bool:
    """Whether `frame_path` made it."""
    return path.name.startswith(FRAME_OF_FILE) and path.parent.is_file()


def frame_count(file: Path) -> int:
    """Frames that a DICOM file states; 0 for what is no image, 1 for one that is damaged."""
    try:
        head = read_head(file, _WANTED)
    except InputError:
        # Reading says so.
        return 1
    return 0 if dicom_series.no_image(head) else max(dicom_series.frame_count(head), 1)


def read(path: Path) -> Picture:
    """The picture in a file, or the frame of it that `frame_path` names.

    The pixel size is that in the patient (pixel spacing), or, with a note, that at the detector.

    Raises:
      InputError: the file is damaged, no image, or has several frames of which none is named.
    """
    if not is_frame_path(path):
        pictures = _frames(path, path.stat().st_mtime_ns)
        if len(pictures) > 1:
            raise InputError(
                path, f"has {len(pictures)} frames; name one, {frame_path(path, 1)}, or its folder"
            )
        return pictures[0]
    file, number = path.parent, int(re.sub("[^0-9]", "", path.name) or 0)
    pictures = _frames(file, file.stat().st_mtime_ns)
    if not 1 <= number <= len(pictures):
        raise InputError(file, f"has {len(pictures)} frames, and no {path.name}")
    return pictures[number - 1]


# The frames of one file are mostly asked for one after the other.
@functools.lru_cache(maxsize=1)
def _frames(path: Path, changed: int) -> list[Picture]:
    """All frames of a file as it was `changed` last."""
    head, available = read_elements(path, _WANTED)
    if what := dicom_series.no_image(head):
        raise InputError(path, f"is no picture but {what} (DICOM)")
    count = dicom_series.frame_count(head)
    width, height, samples = (head.whole(*tag) for tag in (_COLUMNS, _ROWS, _SAMPLES))
    if min(width, height) < 0:
        raise InputError(path, f"{DAMAGED}: it states no rows or columns")
    check_size(path, width, height)
    size = width * height * max(count, 1) * (3 if samples == 3 else 1)
    if not available >= size * head.whole(*_BITS) // 8 > 0:
        raise InputError(path, f"{DAMAGED}: less pixel data than its rows and columns need")
    # No memory for what cannot be there, whatever the compression.
    if size > MAX_INFLATION * path.stat().st_size:
        raise InputError(path, DAMAGED)
    try:
        reader = itk_header(path, "GDCMImageIO")
        if reader.GetSize() != (width, height, count):
            raise InputError(path, f"{DAMAGED}: GDCM finds {reader.GetSize()} pixels")
        stored = sitk.GetArrayFromImage(reader.Execute())
    except ITK_ERRORS:
        raise InputError(path, f"{DAMAGED}, or not a DICOM image") from None
    notes: tuple[str, ...] = ()
    if head.text(*_PHOTOMETRIC) == "MONOCHROME1":
        notes = ("is stored with white as 0 (MONOCHROME1): inverted",)
    frames = []
    for frame in stored:
        pixels, said = in_grey(path, frame)
        frames.append(np.asfortranarray(pixels.T))
        notes += tuple(line for line in said if line not in notes)
    pixel_mm, size_note = _pixel_size(path, head)
    return [Picture(pixels, pixel_mm, notes, size_note) for pixels in frames]


def _pixel_size(path: Path, head: DataSet) -> tuple[tuple[float, float] | None, str]:
    """Between columns and between rows, mm, and the note about it, if any."""
    shared, first = head.first(_SHARED, _MEASURES), head.first(_EACH).first(_MEASURES)
    for source in (head, shared, first):
        if source.text(*_SPACING):
            rows, columns = _two(path, source, _SPACING, "pixel spacing")
            at_detector = head.text(*_AT_DETECTOR)
            if at_detector and not head.text(*_CALIBRATED):
                detector = _two(path, head, _AT_DETECTOR, "imager pixel spacing")
                if math.dist(detector, (rows, columns)) < _SAME * rows:
                    return (columns, rows), (
                        f"its pixel size, {rows:g} mm, is that at the detector: what is measured "
                        "is larger than in the patient"
                    )
            return (columns, rows), ""
    if head.text(*_AT_DETECTOR):
        rows, columns = _two(path, head, _AT_DETECTOR, "imager pixel spacing")
        return (columns, rows), (
            f"states its pixel size at the detector alone, {rows:g} mm: what is measured is larger "
            "than in the patient"
        )
    return None, ""


def _two(path: Path, data: DataSet, tag: Tag, name: str) -> tuple[float, float]:
    stated = data.numbers(*tag)
    if len(stated) != 2:
        raise InputError(path, f"states {len(stated)} numbers as {name}, not 2")
    check_spacing(path, stated)
    return stated[0], stated[1]


def _instance(head: DataSet) -> int:
    stated = head.text(*_INSTANCE)
    return int(stated) if re.fullmatch("[0-9]{1,9}", stated) else 0
