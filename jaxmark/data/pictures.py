"""Pictures on disk: X-rays, photographs, single slices and the frames of a cine, as scans of Z = 1.

A picture's world is its plane: x to the right, y downwards, z = 0, the origin at the centre of the
first pixel. `config.data.unit` is its unit: "mm", which needs the size of a pixel, or "px"; then
names in `mm` below are in pixels.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxmark.data.formats import dicom_pictures, dicom_series, nifti, raster
from jaxmark.data.formats.safeguards import (
    DAMAGED,
    check_spacing,
    entries,
    named,
    readable,
)
from jaxmark.data.scans import Found, Scan, as_a_file, by_name, folders_below, mended
from jaxmark.system.errors import InputError

_SLICES = (".nii", ".nii.gz")
EXTENSIONS = (*raster.EXTENSIONS, *_SLICES)
# Two pixel sizes of one picture may differ by this share: some files round to two digits.
SAME_SIZE = 0.01
NO_SIZE = (
    "states no pixel size: set config.data.pixel_size_mm, give the landmark table a column "
    "pixel_size_mm, or count in pixels (config.data.unit=px)"
)


def read_picture(path: Path, unit: str = "mm", pixel_size_mm: float = 0.0) -> Scan:
    """Reads one picture: a file with one of `EXTENSIONS`, a DICOM file, or a frame of one.

    Colour becomes brightness, and X-rays with white as 0 are inverted; `notes` states both.
    Resolutions in PNG, JPEG and TIFF are for printing, and are not read.

    Args:
      unit: of the picture's world: "mm", or "px".
      pixel_size_mm: for a picture that does not state it; 0: unknown.

    Returns:
      A scan (X, Y, 1); see the module.

    Raises:
      InputError: the file is missing, truncated, damaged, of an unknown format or no picture; the
        unit is mm and the pixel size is unknown; two statements of it differ; all pixels are equal.
    """
    with readable(path), np.errstate(over="ignore", invalid="ignore"):
        found = _read(path)
    pixel_mm, notes = _pixel_size(path, found, pixel_size_mm)
    if pixel_mm is None and unit == "mm":
        raise InputError(path, NO_SIZE)
    return _scan(path, found.pixels, unit, pixel_mm, notes)


def picture_in_memory(
    pixels: np.ndarray, unit: str, pixel_mm: tuple[float, float] | None, where: str
) -> Scan:
    """A picture (X, Y), or (X, Y, 3) in colour, as `read_picture` has it; x to the right.

    Raises:
      InputError: about `where`, as `read_picture`.
    """
    path = Path(where)
    if pixels.ndim not in (2, 3):
        raise InputError(where, f"has {pixels.ndim} axes; a picture is (X, Y) or (X, Y, 3)")
    if pixels.dtype.kind not in "buif":
        raise InputError(
            where, f"holds {pixels.dtype}; the brightness of a picture is a real number"
        )
    raster.check_size(path, *pixels.shape[:2])
    grey, notes = raster.in_grey(path, np.asarray(pixels))
    if pixel_mm is None and unit == "mm":
        raise InputError(where, NO_SIZE)
    return _scan(path, grey, unit, pixel_mm, notes)


def _scan(
    path: Path,
    pixels: np.ndarray,
    unit: str,
    pixel_mm: tuple[float, float] | None,
    notes: tuple[str, ...],
) -> Scan:
    x, y = pixel_mm if unit == "mm" and pixel_mm is not None else (1.0, 1.0)
    voxels = np.asfortranarray(pixels[..., None], np.float32)
    return mended(path, Scan(voxels, np.diag([x, y, 1.0, 1.0]), notes, pixel_mm))


def states_pixel_size(path: Path) -> bool:
    """Whether files with this extension can state the size of a pixel."""
    return not path.name.lower().endswith(raster.EXTENSIONS)


def _read(path: Path) -> raster.Picture:
    if dicom_pictures.is_frame_path(path):
        return dicom_pictures.read(path)
    if not path.is_file():
        raise InputError(path, "is not a picture's file" if path.exists() else "no such file")
    name = path.name.lower()
    if name.endswith(raster.EXTENSIONS):
        return raster.read(path)
    if name.endswith(_SLICES):
        try:
            return nifti.read_slice(path)
        except EOFError:
            raise InputError(path, DAMAGED) from None
    if dicom_series.is_dicom(path):
        return dicom_pictures.read(path)
    known = ", ".join(EXTENSIONS)
    raise InputError(
        path, f"not a picture format jaxmark reads: {known}, DICOM (config.data.crop has Z = 1)"
    )


def _pixel_size(
    path: Path, found: raster.Picture, stated_mm: float
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """The pixel size from the file or the user, and notes; InputError where they contradict."""
    if not stated_mm:
        return found.pixel_mm, (*found.notes, *filter(None, [found.size_note]))
    check_spacing(path, (stated_mm,))
    if found.pixel_mm is None:
        return (stated_mm, stated_mm), found.notes
    if found.size_note:
        # The file's size is that at the detector; the user's is measured, so it counts.
        own = f"its pixel size is {stated_mm:g} mm as stated, not the {found.pixel_mm[0]:g} mm"
        return (stated_mm, stated_mm), (*found.notes, f"{own} at the detector")
    if any(abs(own / stated_mm - 1) > SAME_SIZE for own in found.pixel_mm):
        x, y = found.pixel_mm
        raise InputError(
            path,
            f"states pixels of {x:g} x {y:g} mm, but {stated_mm:g} mm is stated for it "
            "(config.data.pixel_size_mm, or column pixel_size_mm); leave it out, or mend the file",
        )
    return found.pixel_mm, found.notes


# Folders


def find_pictures(folder: Path, series: str = "") -> dict[str, Path]:
    """Case name -> picture, sorted by name.

    A file's picture has the file's name without extension. A subfolder of DICOM files is a cine;
    its frames are `<folder>-<n>`, counted from 1 in the order of their instance numbers. A DICOM
    file with several frames gives `<file>-<n>`.

    Args:
      series: the DICOM series to take from subfolders that hold several: its description, number,
        UID or the end of the UID.

    Raises:
      InputError: no such folder; two pictures have one name; a cine's size changes, or its folder
        holds several series and none is chosen.
    """
    paths = entries(folder)
    found = list(_files(paths))
    for path in paths:
        with readable(path):
            if path.is_dir():
                found += _cine(path, series)
    return by_name(found)


def search_pictures_below(folder: Path, series: str = "") -> Found:
    """As `find_pictures`, in the folder and in all folders below it.

    Pictures with the same name get their paths from `folder` on as names, joined by "-". A folder
    whose DICOM files are no cine is left out and listed in `left_out`.
    """
    pictures: list[tuple[str, Path, tuple[str, ...]]] = []
    left_out: dict[Path, str] = {}
    for parent, paths in folders_below(folder):
        above = parent.relative_to(folder).parts
        pictures += [
            (name, path, above)
            for name, path in _files(paths)
            # DICOM files in a subfolder are a cine.
            if parent == folder or path.name.lower().endswith(EXTENSIONS)
        ]
        if parent == folder:
            continue
        try:
            pictures += [(name, path, above[:-1]) for name, path in _cine(parent, series)]
        except InputError as error:
            left_out[parent] = str(error)
    count = Counter(as_a_file(name) for name, _, _ in pictures)
    return Found(
        by_name(
            (name if count[as_a_file(name)] == 1 else "-".join((*above, name)), path)
            for name, path, above in pictures
        ),
        left_out,
        {},
    )


def pictures_in(file: Path) -> dict[str, Path]:
    """Name -> picture for one file: the file or its frames; empty if it is no picture."""
    return dict(_files([file]))


def picture_name(path: Path) -> str:
    """The name of the picture in a file; empty if it is no picture."""
    if path.name.startswith("."):
        return ""
    name = path.name.lower()
    extension = next((e for e in EXTENSIONS if name.endswith(e)), "")
    if extension:
        return path.name[: -len(extension)]
    if not path.is_file() or path.name == "DICOMDIR" or not dicom_series.is_dicom(path):
        return ""
    ending = path.suffix.lower()
    return path.name[: -len(ending)] if ending in (".dcm", ".dicom", ".ima") else path.name


def _files(paths: Iterable[Path]) -> Iterable[tuple[str, Path]]:
    """Names and paths of the pictures among a folder's files; a frame is a picture."""
    for path in paths:
        if path.is_dir() or not (name := picture_name(path)):
            continue
        if path.name.lower().endswith(EXTENSIONS):
            yield name, path
        elif (count := dicom_pictures.frame_count(path)) == 1:
            yield name, path
        else:
            yield from _numbered(
                name, [dicom_pictures.frame_path(path, n + 1) for n in range(count)]
            )


def _cine(folder: Path, series: str) -> list[tuple[str, Path]]:
    """The frames of a folder's DICOM files; `series` chooses among several series."""
    found = dicom_pictures.cines(folder)
    meant = found
    if series and found:
        called = dicom_series.called(series, [cine.series for cine in found])
        meant = [cine for cine in found if cine.series in called]
    if found and len(meant) != 1:
        listed = named([str(cine.series) for cine in found])
        which = f"and {len(meant)} of them are {series!r}" if series else "need one"
        raise InputError(
            folder,
            f"holds {len(found)} DICOM series, {which} (config.data.series: description, number or "
            f"UID): {listed}",
        )
    frames: list[tuple[str, Path]] = []
    for cine in meant:
        cine.check()
        files = [*cine.files]
        frames += [(folder.name, files[0])] if len(files) == 1 else _numbered(folder.name, files)
    for path in dicom_series.slice_files(folder):
        if (count := dicom_pictures.frame_count(path)) > 1:
            paths = [dicom_pictures.frame_path(path, n + 1) for n in range(count)]
            frames += _numbered(f"{folder.name}-{picture_name(path)}", paths)
    return frames


def _numbered(name: str, paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Names with numbers of equal length, so that they sort in the order of the frames."""
    digits = max(3, len(str(len(paths))))
    return [(f"{name}-{number:0{digits}d}", path) for number, path in enumerate(paths, start=1)]
