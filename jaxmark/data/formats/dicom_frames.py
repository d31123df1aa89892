"""Enhanced multi-frame DICOM: one file holds a volume, and states the place of each frame.

GDCM takes the frames in the order in which they are stored, the first frame's place for where they
begin and the first one's scale for all. Places and scales are read here, from the functional groups
(PS3.3, C.7.6.16), and only the voxels are taken from GDCM.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.core.geometry import compose_affine
from jaxmark.data.formats import dicom_series
from jaxmark.data.formats.dicom_elements import DataSet, Tag, read_elements
from jaxmark.data.formats.dicom_stack import check_steps, right_angled, stacked
from jaxmark.data.formats.safeguards import (
    DAMAGED,
    ITK_ERRORS,
    MAX_INFLATION,
    check_place,
    check_shape,
    check_spacing,
    itk_header,
    named,
)
from jaxmark.system.errors import InputError

_SHARED, _EACH = (0x5200, 0x9229), (0x5200, 0x9230)
# Functional groups, each with the elements that are read of it.
_CONTENT, _STACK = (0x20, 0x9111), (0x20, 0x9056)
_PLACE, _POSITION = (0x20, 0x9113), (0x20, 0x32)
_TURN, _ORIENTATION = (0x20, 0x9116), (0x20, 0x37)
_MEASURES, _SPACING = (0x28, 0x9110), (0x28, 0x30)
_SCALE, _INTERCEPT, _SLOPE = (0x28, 0x9145), (0x28, 0x1052), (0x28, 0x1053)
_CONCATENATION, _PARTS = (0x20, 0x9161), (0x20, 0x9163)
_SAMPLES, _ROWS, _COLUMNS, _BITS = (0x28, 0x2), (0x28, 0x10), (0x28, 0x11), (0x28, 0x100)
_WANTED = frozenset(
    (
        *(_SHARED, _EACH, _CONTENT, _STACK, _PLACE, _POSITION, _TURN, _ORIENTATION, _MEASURES),
        *(_SPACING, _SCALE, _INTERCEPT, _SLOPE, _CONCATENATION, _PARTS, _SAMPLES, _ROWS, _COLUMNS),
        *(_BITS, dicom_series.SOP_CLASS, dicom_series.FRAMES, dicom_series.MODALITY),
    )
)
# Directions of frames that are parallel; positions are rounded.
_SAME_DIRECTION, _SAME_PLACE_MM = 1e-3, 1e-2


def read(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Voxels (X, Y, Z) float32, x fastest in memory, ijk_to_lps (4, 4), and notes.

    Raises:
      InputError: the file is damaged, no image, a single slice, or its frames are not one evenly
        stacked volume.
    """
    data, available = read_elements(path, _WANTED)
    _check_kind(path, data)
    origins, x, y, spacing = _places(path, data)
    order = np.argsort(origins @ np.cross(x, y), kind="stable")
    shape = (data.whole(*_COLUMNS), data.whole(*_ROWS), len(origins))
    _check_size(path, data, shape, available)
    step = _check_stack(path, data, origins[order], np.cross(x, y))
    scales = _scales(path, data)
    voxels = _scaled(_frames(path, shape), *scales)
    voxels = np.asfortranarray(voxels[:, :, order])
    first = compose_affine(
        np.column_stack([x * spacing[1], y * spacing[0], np.cross(x, y)]), origins[order[0]]
    )
    mean = (origins[order[-1]] - origins[order[0]]) / (len(origins) - 1)
    if step is not None:
        return right_angled(path, voxels, stacked(first, mean))
    place = stacked(first, np.dot(mean, np.cross(x, y)) * np.cross(x, y))
    check_place(path, shape, place)
    return voxels, place, ()


def _check_kind(path: Path, data: DataSet) -> None:
    """Refuses what is no image, no multi-frame image, or one without places."""
    if what := dicom_series.no_image(data):
        raise InputError(path, f"is no scan but {what} (DICOM)")
    frames = dicom_series.frame_count(data)
    if frames == 0:
        raise InputError(path, f"states {data.text(*dicom_series.FRAMES)[:64]!r} frames")
    if frames == 1:
        raise InputError(path, dicom_series.one_slice(path))
    if data.text(*dicom_series.SOP_CLASS) not in dicom_series.VOLUMES:
        raise InputError(
            path,
            "is multi-frame DICOM of a class whose frames are no slices of a volume "
            f"({data.text(*dicom_series.SOP_CLASS)[:64] or 'none'}); convert it to NIfTI or "
            "MetaImage",
        )
    if data.text(*_CONCATENATION):
        parts = data.whole(*_PARTS)
        if parts != 1:
            of = f" of {parts}" if parts > 0 else ""
            raise InputError(
                path,
                f"is multi-frame DICOM, one part{of} of a volume in several files (a "
                "concatenation); convert it to NIfTI or MetaImage",
            )
    stated = len(data.items(_EACH))
    if stated != frames:
        raise InputError(
            path, f"is multi-frame DICOM of {frames} frames, but states places of {stated}"
        )


def _places(
    path: Path, data: DataSet
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[float]]:
    """Positions (N, 3), directions (3,) of a row and a column, spacing of rows and of columns."""
    positions = _of_each(path, data, _PLACE, _POSITION, 3, "image position")
    turns = _of_each(path, data, _TURN, _ORIENTATION, 6, "image orientation")
    spacings = _of_each(path, data, _MEASURES, _SPACING, 2, "pixel spacing")
    for spacing in np.unique(spacings, axis=0):
        check_spacing(path, spacing)
    turned = np.abs(turns - turns[0]).max(1) > _SAME_DIRECTION
    scaled = np.abs(spacings - spacings[0]).max(1) > _SAME_DIRECTION
    for differ, what in ((turned, "direction"), (scaled, "pixel spacing")):
        if differ.any():
            raise InputError(
                path,
                f"holds several stacks: frame {int(differ.argmax()) + 1} has another {what} than "
                "the first",
            )
    x, y = turns[0, :3], turns[0, 3:]
    lengths = np.array([np.linalg.norm(x), np.linalg.norm(y)])
    if np.abs(lengths - 1).max() > 0.01:
        raise InputError(path, f"states an image orientation of length {lengths.tolist()}, not 1")
    return positions, x / lengths[0], y / lengths[1], spacings[0].tolist()


def _of_each(path: Path, data: DataSet, group: Tag, tag: Tag, count: int, name: str) -> np.ndarray:
    """(N, count): numbers that each frame states, or that all share."""
    shared = data.first(_SHARED, group).numbers(*tag)
    rows = []
    for n, frame in enumerate(data.items(_EACH), 1):
        row = frame.first(group).numbers(*tag) or shared
        if len(row) != count or not np.isfinite(row).all():
            stated = f"{len(row)} numbers as" if row else "no"
            where = f"{stated} {name} ({tag[0]:04x},{tag[1]:04x}) of frame {n}"
            raise InputError(path, f"is multi-frame DICOM that states {where}")
        rows.append(row)
    return np.array(rows)


def _check_size(path: Path, data: DataSet, shape: tuple[int, int, int], available: float) -> None:
    """Refuses what has not the voxels that it states."""
    samples = data.whole(*_SAMPLES)
    check_shape(path, shape, 1 if samples == -1 else samples)
    if not available >= math.prod(shape) * data.whole(*_BITS) // 8 > 0:
        raise InputError(path, f"{DAMAGED}: less pixel data than its frames need")
    # No memory for what cannot be there, whatever the compression.
    if math.prod(shape) > MAX_INFLATION * path.stat().st_size:
        raise InputError(path, DAMAGED)


def _check_stack(
    path: Path, data: DataSet, origins: np.ndarray, normal: np.ndarray
) -> np.ndarray | None:
    """`check_steps` of frames in order; refuses several stacks, phases or echoes first."""
    names = sorted({frame.first(_CONTENT).text(*_STACK) for frame in data.items(_EACH)})
    if len(names) > 1:
        raise InputError(
            path, f"holds {len(names)} stacks of frames ({named(names)}), need one volume"
        )
    places = 1 + int((np.diff(origins @ normal) > _SAME_PLACE_MM).sum())
    if places < len(origins):
        raise InputError(
            path,
            f"holds {len(origins)} frames at {places} places (several phases, echoes or stacks), "
            "need one volume",
        )
    return check_steps(path, origins, normal)


def _frames(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """(X, Y, N) float32 as they are stored, with the scale that GDCM gives them."""
    try:
        reader = itk_header(path, "GDCMImageIO")
        size = reader.GetSize()
        if size != shape or reader.GetNumberOfComponents() != 1:
            raise InputError(path, f"{DAMAGED}: GDCM finds {size} voxels, stated are {shape}")
        reader.SetOutputPixelType(sitk.sitkFloat32)
        return sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
    except ITK_ERRORS:
        raise InputError(path, f"{DAMAGED}, or not a DICOM image") from None


def _scales(path: Path, data: DataSet) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of each frame (N, 2), and those (2,) that GDCM gives to all."""
    shared = data.first(_SHARED, _SCALE)
    frames = [frame.first(_SCALE) for frame in data.items(_EACH)]
    given = _scale(path, shared if shared.values else frames[0])
    own = [_scale(path, frame if frame.values else shared) for frame in frames]
    return np.array(own), np.array(given)


def _scaled(voxels: np.ndarray, own: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Voxels (X, Y, N) with the scales of their frames, in place of the one given to all."""
    if (own == given).all():
        return voxels
    factor = own[:, 0] / given[0]
    return (voxels * factor + (own[:, 1] - factor * given[1])).astype(np.float32)


def _scale(path: Path, group: DataSet) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where none are stated."""
    slope = group.numbers(*_SLOPE) or [1.0]
    intercept = group.numbers(*_INTERCEPT) or [0.0]
    if not (len(slope) == len(intercept) == 1 and np.isfinite([*slope, *intercept]).all()):
        raise InputError(path, "states a rescale slope or intercept of a frame that is no number")
    if slope[0] == 0:
        raise InputError(path, "states a rescale slope of 0")
    return slope[0], intercept[0]
