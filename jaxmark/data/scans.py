"""Scans on disk: NIfTI, MetaImage, NRRD, MGH and DICOM, as arrays with their place in space.

ITK fills up what a truncated NIfTI lacks with zeros, skips DICOM slices that it cannot parse, takes
damaged compressed voxels as they come out, replaces NaN by 0 and impossible spacings by 1 mm, asks
for all the memory that a header claims, and does not survive some headers at all. A scan that went
through one of these looks like a good one, so headers are checked before ITK sees them: each format
in its module of `formats`, with what they share in `formats/safeguards`.
"""

import errno
import os
import shutil
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.data.formats import dicom, dicom_series, metaimage, mgh, nifti, nrrd, raster
from jaxmark.data.formats.safeguards import (
    DAMAGED,
    ITK_ERRORS,
    SHEARED,
    UNREADABLE,
    Content,
    at_right_angles,
    check_place,
    check_shape,
    entries,
    named,
    readable,
    straightened,
    voxels_and_place,
)
from jaxmark.system.errors import InputError
from jaxmark.system.files import replacing

_READERS: dict[str, Callable[[Path], Content]] = {
    ".nii": nifti.read,
    ".nii.gz": nifti.read,
    ".mha": metaimage.read,
    ".mhd": metaimage.read,
    ".nrrd": nrrd.read,
    ".nhdr": nrrd.read,
    ".hdr": nifti.read,
    ".mgz": mgh.read,
    ".mgh": mgh.read,
}
EXTENSIONS = tuple(_READERS)
# Those that earlier versions passed over: cohorts that worked then must work now.
LATER_EXTENSIONS = (".nhdr", ".hdr", ".mgz", ".mgh")
# The folder of label maps, and how names of 3D Slicer's segmentations end: these are no scans.
LABEL_MAPS_FOLDER = "segmentations"
SLICER_SEGMENTATION = ".seg.nrrd"
# How names of files end that people take for images, beside `EXTENSIONS`.
_LIKE_IMAGES = (
    (".img", ".img.gz", ".hdr.gz", ".dcm", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
    + (".v", ".mnc", ".minc", ".par", ".rec", ".head", ".brik", ".brik.gz", ".gipl", ".gipl.gz")
    + (".vti", ".npy", ".npz", ".nii.zip", ".nii.bz2", ".nii.xz", ".nii.zst", ".nrrd.gz")
)
# What is said of many is said of so many by name.
_NAMED = 5
# Their voxels are in other files.
_HEADERS = (".mhd", ".nhdr", ".hdr")
# Other endings of DICOM files' names; many have none, or end in a number.
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_WRITABLE_EXTENSIONS = (".nii", ".nii.gz", ".mha", ".nrrd")
_WRITABLE_TYPES = (np.float32, np.uint8, np.int16)
# Of the voxels of a scan that may be NaN.
_MOST_NAN = 0.9
# A disk with less room is full.
_LITTLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Scan:
    """A volume and its place in space; a picture is one with one voxel along z, see `pictures`."""

    # (X, Y, Z) float32, or as `read_scan` was asked; x fastest in memory as in the file.
    voxels: np.ndarray
    # (4, 4) float64: voxel indices (centres at integers) -> LPS mm.
    ijk_to_lps: np.ndarray
    # What a reader guessed or repaired, a line each.
    notes: tuple[str, ...] = ()
    # Of a picture: mm between columns and between rows; None where nobody states it.
    pixel_mm: tuple[float, float] | None = None

    @property
    def planar(self) -> bool:
        """Whether it is a picture."""
        return self.voxels.shape[2] == 1

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) float64: distance of neighbouring voxel centres along i, j and k."""
        return np.linalg.norm(self.ijk_to_lps[:3, :3], axis=0)


@dataclass(frozen=True)
class Found:
    """Scans below a folder, and what is none of them."""

    scans: dict[str, Path]
    # Folders of DICOM files without a volume, and what those files are.
    left_out: dict[Path, str]
    # Folders of DICOM volumes none of which is called as asked for, and what they are.
    other_series: dict[Path, str]


def find_scans(folder: Path) -> dict[str, Path]:
    """Case name -> image file, or folder that holds a DICOM series; sorted by name.

    The name is the file's without its extension, or the folder's. Hidden and other files are
    ignored, so are folders without DICOM files. Names that some file systems take for one (they
    ignore case, or how an accent is coded) are one: their results might be one file.

    Raises:
      InputError: no such folder, one that cannot be read, two scans of one name.
    """
    return by_name(_scans_among(entries(folder)))


def search_below(folder: Path, series: str = "") -> Found:
    """As `find_scans`, of the folder itself and of all folders below it.

    Scans of one name are called by their paths from `folder` on instead, joined by "-". A folder
    that holds one DICOM volume is one scan. Of one that holds several, each series and each
    multi-frame file is one, called by the folder and its own description or number; a path that
    `read_scan` understands stands for a series. What is in subfolders are others. Links to folders
    are not followed: there are no loops, and nothing is found twice or elsewhere. Links to files
    are, as in `find_scans`. What is in folders called segmentations, and in files that end in
    .seg.nrrd, are label maps and no scans.

    Args:
      series: of DICOM volumes those alone that are called so (`dicom_series.called`), by the names
        that they have without it; "": all. Scans in other formats have no series: all are found.

    Raises:
      InputError: as `find_scans`.
    """
    # Names, paths, and the folders that the name is lengthened by.
    scans: list[tuple[str, Path, tuple[str, ...]]] = []
    left_out: dict[Path, str] = {}
    other_series: dict[Path, str] = {}
    not_meant: set[Path] = set()
    for parent, found in folders_below(folder):
        above = parent.relative_to(folder).parts
        scans += [(name, path, above) for name, path in _images(found)]
        contents = dicom_series.contents(dicom_series.slice_files(parent))
        volumes = _dicom_scans(parent, contents)
        scans += [(name, path, above[:-1]) for name, path in volumes]
        if not volumes and (beside := contents.beside(None)):
            left_out[parent] = f"no DICOM volume: {named(beside)}"
        meant = dicom_series.called(series, contents.volumes) if series else contents.volumes
        if contents.volumes and not meant:
            if contents.unknown:
                # What is damaged may be of the series that is meant: reading says so.
                continue
            other_series[parent] = named([str(volume) for volume in contents.volumes])
        pairs = zip(volumes, contents.volumes, strict=False)
        not_meant |= {path for (_, path), volume in pairs if volume not in meant}
    count = Counter(as_a_file(name) for name, _, _ in scans)

    def full_name(name: str, above: tuple[str, ...]) -> str:
        return name if count[as_a_file(name)] == 1 else "-".join((*above, name))

    full = ((full_name(name, above), path) for name, path, above in scans if path not in not_meant)
    return Found(by_name(full), left_out, other_series)


def passed_over(
    folder: Path,
    scans: Collection[Path],
    *,
    below: bool = False,
    readable_ones: Sequence[str] = EXTENSIONS,
) -> str:
    """A line about files that look like images, by their names, and are none of the scans.

    Empty where there are none. Parts of scans (slices, files of voxels) are not meant.

    Args:
      scans: what was found in the folder, or below it.
      readable_ones: how names end of what would be read.
    """
    whole = set(scans)
    folders = whole | {path.parent for path in scans if dicom_series.is_series_path(path)}
    # A header's file of voxels has its name.
    parts = {path.with_suffix("") for path in scans if path.suffix.lower() in _HEADERS}
    found = [
        path
        for paths in ((paths for _, paths in folders_below(folder)) if below else [entries(folder)])
        for path in paths
        if path not in whole
        and path.name.lower().endswith(EXTENSIONS + _LIKE_IMAGES)
        and not (path.name.lower().endswith((".img", ".img.gz")) and _stem(path) in parts)
        and not (path.parent in folders and path.suffix.lower() in (".dcm", ".ima"))
        and path.is_file()
    ]
    if not found:
        return ""
    names = ", ".join(str(path.relative_to(folder)) for path in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" * (len(found) > _NAMED)
    look = "looks like an image and is" if len(found) == 1 else "look like images and are"
    files = "1 file" if len(found) == 1 else f"{len(found)} files"
    known = ", ".join(readable_ones)
    return f"{files} {look} not read: {names}{more} (jaxmark reads {known} and DICOM series)"


def _stem(path: Path) -> Path:
    return path.with_name(path.name[: path.name.lower().rindex(".img")])


def folders_below(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The folder and all below it, each with what is in it.

    Links to folders are left out, and so are label maps, such as earlier predictions.
    """
    folders = [folder]
    # Grows while it is gone through.
    for parent in folders:
        with readable(parent):
            found = [
                path
                for path in entries(parent)
                if not (path.is_dir() and (path.is_symlink() or path.name == LABEL_MAPS_FOLDER))
                and not path.name.lower().endswith(SLICER_SEGMENTATION)
            ]
            folders += [path for path in found if path.is_dir()]
        yield parent, found


def _scans_among(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """The scans among what is in one folder, files and folders of slices, by their names."""
    return _without_copies((name, path) for path in paths if (name := case_name(path)))


def _images(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """The files among what is in one folder that have one of `EXTENSIONS`, by their names."""
    files = (path for path in paths if not path.is_dir())
    return _without_copies((name, path) for path in files if (name := _image_name(path)))


def _without_copies(named: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Of two with one name, one of `LATER_EXTENSIONS` is left out: FreeSurfer's beside its copy."""
    scans = list(named)
    earlier = {as_a_file(n) for n, path in scans if _extension(path) not in LATER_EXTENSIONS}
    return [
        (name, path)
        for name, path in scans
        if _extension(path) not in LATER_EXTENSIONS or as_a_file(name) not in earlier
    ]


def _dicom_scans(folder: Path, contents: dicom_series.Contents) -> list[tuple[str, Path]]:
    """Names and paths of the volumes among a folder's own files, in the order of `contents`."""
    name = folder.resolve().name
    volumes = contents.volumes
    if len(volumes) > 1:
        parts = dicom_series.part_names(volumes)
        paths = [dicom_series.series_path(folder, series) for series in volumes]
        return [(f"{name}-{part}", path) for part, path in zip(parts, paths, strict=True)]
    # What is damaged is not left out: reading says so.
    return [(name, folder)] if volumes or contents.unknown else []


def case_name(path: Path) -> str:
    """The name of the scan at `path`, empty for what is no scan.

    A link that leads nowhere counts: reading it says so.
    """
    if path.name.startswith("."):
        return ""
    with readable(path):
        if path.is_dir():
            return path.name if dicom_series.slice_files(path) else ""
    return _image_name(path) or _dicom_name(path)


def _image_name(path: Path) -> str:
    """The name of a file with one of `EXTENSIONS`, empty for others."""
    extension = "" if path.name.startswith(".") else _extension(path)
    if extension == ".hdr" and nifti.voxels_beside(path) is None:
        # Of a pair, or of another program.
        return ""
    return path.name[: -len(extension)] if extension else ""


def _dicom_name(path: Path) -> str:
    """The name of a DICOM file that is a scan of its own, empty for others."""
    ending = path.suffix.lower()
    if ending[1:].isdecimal():
        # A part of a number, as "1.2.840".
        ending = ""
    # Others are not opened.
    if ending not in ("", *_DICOM_ENDINGS) or file_flaw(path) != "":
        return ""
    return path.name[: -len(ending)] if ending else path.name


def file_flaw(path: Path) -> str | None:
    """Why a DICOM file is no scan of its own, empty for one that is; None: it is not DICOM."""
    if not path.is_file() or path.name == "DICOMDIR" or not dicom_series.is_dicom(path):
        return None
    return dicom_series.file_flaw(path)


def read_scan(path: Path, *, as_stored: bool = False) -> Scan:
    """Reads one volume: a file with one of `EXTENSIONS`, or a multi-frame DICOM file, or a folder
    with one DICOM volume, or a series that `search_below` has found in a folder with several.

    Of the two places that a NIfTI file may state, the one that ITK takes counts, for so does 3D
    Slicer, where landmarks come from. What is guessed or repaired is said in the scan's `notes`:
    NaN voxels are filled with the smallest value, axes that are nearly at right angles made so.

    Args:
      as_stored: voxels keep the file's type where it is no larger than float32: a CT of 512^3
        voxels takes 0.27 GB in memory, not 0.54.

    Raises:
      InputError: the file is missing, truncated, damaged or of an unknown format; it is not one
        three-dimensional volume of numbers with at least 4 voxels along each axis and 2 ** 31 in
        all; its spacing is not stated or not in 0.001 to 100 mm, it extends over more than 10 m, it
        lies farther than 1e7 mm from the origin, or its axes are sheared; its voxels are
        infinite, mostly NaN or all the same; they are in a file of another folder, or in several; a
        DICOM folder holds several volumes or not all slices of one.
    """
    # What overflows is refused, with a better word than NumPy's.
    with readable(path), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        content = _read(path)
        voxels = content.values_in_float32(as_stored=as_stored)
        return mended(path, Scan(voxels, content.ijk_to_lps, content.notes))


def read_voxels(path: Path) -> Content:
    """As `read_scan`, with voxels as they are in the file, of its type: for label maps.

    Neither NaN nor voxels that are all the same are refused or mended.

    Raises:
      InputError: as `read_scan`, but for what voxels may be.
    """
    with readable(path), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        content = _read(path)
        place, turned = straightened(content.voxels.shape, content.ijk_to_lps)
        return Content(content.values(), place, (*content.notes, *turned))


def write_scan(path: Path, voxels: np.ndarray, ijk_to_lps: np.ndarray) -> None:
    """Writes a volume; the extension of `path` says how. The file appears whole or not at all.

    NIfTI keeps the affine in float32, the other formats keep it to about 1e-16.

    Args:
      path: ends in .nii, .nii.gz, .mha or .nrrd (.mhd would be two files).
      voxels: (X, Y, Z) float32, uint8 or int16; the type is kept.
      ijk_to_lps: (4, 4) voxel indices -> LPS mm, with axes at right angles.

    Raises:
      ValueError: an extension, type, shape or affine that cannot be written.
      OSError: the file cannot be written.
    """
    if not path.name.endswith(_WRITABLE_EXTENSIONS):
        raise ValueError(f"cannot write {path.name}: need {_WRITABLE_EXTENSIONS}")
    if voxels.dtype not in _WRITABLE_TYPES:
        raise ValueError(f"cannot write voxels of type {voxels.dtype}")
    # ITK would write the nearest right-angled axes to NIfTI, and say nothing.
    if not at_right_angles(ijk_to_lps[:3, :3]):
        raise ValueError("cannot write axes that are not at right angles")
    write_image(path, to_image(voxels, ijk_to_lps))


def write_image(path: Path, image: sitk.Image) -> None:
    """Writes any image of SimpleITK, compressed but for `.nii`; the file appears whole or not.

    Raises:
      OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=path.suffix != ".nii")
            if _extension(path) in (".nii", ".nii.gz"):
                size = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
                nifti.check_written(temporary, size * image.GetNumberOfComponentsPerPixel())
        except (RuntimeError, EOFError, zlib.error) as error:
            # ITK does not say why.
            full = shutil.disk_usage(path.parent).free < _LITTLE_BYTES
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, os.strerror(code), str(path)) from error


def to_image(voxels: np.ndarray, ijk_to_lps: np.ndarray) -> sitk.Image:
    """A SimpleITK image (a copy) of voxels of any type and their place (4, 4).

    Voxels are numbers (X, Y, Z), or vectors (X, Y, Z, C).
    """
    image = sitk.GetImageFromArray(np.swapaxes(voxels, 0, 2), isVector=voxels.ndim == 4)
    spacing_mm = np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection((ijk_to_lps[:3, :3] / spacing_mm).ravel().tolist())
    image.SetOrigin(ijk_to_lps[:3, 3].tolist())
    return image


def from_image(image: sitk.Image) -> Scan:
    """A three-dimensional scalar SimpleITK image as a scan (a copy); voxels become float32."""
    return _scan(*voxels_and_place(image))


def checked_scan(voxels: np.ndarray, ijk_to_lps: np.ndarray, where: str) -> Scan:
    """A scan that is in memory already; InputError about `where` for what a file may not be."""
    check_shape(Path(where), voxels.shape)
    if ijk_to_lps.shape != (4, 4) or not np.isfinite(ijk_to_lps).all():
        raise InputError(where, "its affine is not (4, 4) finite numbers")
    check_place(Path(where), voxels.shape, ijk_to_lps)
    return mended(Path(where), _scan(voxels, np.asarray(ijk_to_lps, np.float64)))


def _scan(voxels: np.ndarray, ijk_to_lps: np.ndarray) -> Scan:
    return Scan(voxels.astype(np.float32, copy=False), ijk_to_lps)


def _extension(path: Path) -> str:
    """The one of `EXTENSIONS` that the name ends with, or ""."""
    name = path.name.lower()
    return next((e for e in EXTENSIONS if name.endswith(e)), "")


def by_name(scans: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Sorted by name."""
    found: dict[str, tuple[str, Path]] = {}
    for name, path in scans:
        if (key := as_a_file(name)) in found:
            other = found[key][1].name
            raise InputError(path, f"case {name!r} has a second image, {other}")
        found[key] = name, path
    return dict(sorted(found.values()))


def as_a_file(name: str) -> str:
    """The same for names that may be one file: of macOS and Windows they often are."""
    return unicodedata.normalize("NFC", name).casefold()


def _read(path: Path) -> Content:
    is_series = path.is_dir() or dicom_series.is_series_path(path)
    if is_series or (not _extension(path) and file_flaw(path) is not None):
        return Content(*dicom.read(path))
    return _read_file(path)


def _read_file(path: Path) -> Content:
    if not path.is_file():
        # A pipe of that name would be waited for.
        raise InputError(path, "is not a file" if path.exists() else "no such file")
    extension = _extension(path)
    if path.suffix.lower() == ".img":
        raise InputError(path, f"holds voxels alone: name its header, {path.stem}.hdr")
    if not extension:
        raise InputError(
            path,
            f"not an image format jaxmark reads: {', '.join(EXTENSIONS)}"
            + "; pictures are read where config.data.crop has Z = 1"
            * path.name.lower().endswith(raster.EXTENSIONS),
        )
    try:
        return _READERS[extension](path)
    except ITK_ERRORS as error:
        raise InputError(path, SHEARED if "orthonormal" in str(error) else UNREADABLE) from None
    except (EOFError, zlib.error):
        raise InputError(path, DAMAGED) from None


def mended(path: Path, scan: Scan) -> Scan:
    """The scan with what may be repaired, and noted; InputError for what may not."""
    voxels, filled = _without_nan(path, scan.voxels)
    if voxels.min() == voxels.max():
        raise InputError(path, f"all voxels are {voxels.flat[0]:g}: an empty scan")
    place, turned = straightened(voxels.shape, scan.ijk_to_lps)
    notes = (*scan.notes, *turned, *filled)
    return replace(scan, voxels=voxels, ijk_to_lps=place, notes=notes)


def _without_nan(path: Path, voxels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """NaN is what SPM and ANTs write outside of the field of view: the least of the rest instead.

    The array that was given stays as it is.
    """
    # Of whole numbers none is; of a large scan this array counts.
    bad = np.zeros(0, bool) if voxels.dtype.kind in "iu" else ~np.isfinite(voxels)
    if not bad.any():
        return voxels, ()
    share = bad.mean()
    if share > _MOST_NAN or np.isinf(voxels).any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(path, f"{bad.sum()} voxels are NaN or infinite, the first at {first}")
    least = voxels[~bad].min()
    filled = voxels.copy(order="K")
    filled[bad] = least
    percent = f"{100 * share:.1f} %" if share >= 0.001 else "under 0.1 %"
    return filled, (f"{percent} of its voxels are NaN: filled with its smallest value, {least:g}",)
