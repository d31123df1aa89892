"""Scans on disk: NIfTI, MetaImage, NRRD, MGH and DICOM, as arrays with their place in space.

ITK fills a truncated NIfTI with zeros, skips DICOM slices that it cannot parse, accepts damaged
compressed voxels, replaces NaN by 0 and impossible spacings by 1 mm, allocates all the memory that
a header claims, and crashes on some headers. A scan read that way looks like a good one, so headers
are checked before ITK reads the file: each format in its module of `formats`, with common checks in
`formats/safeguards`.
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
# Extensions that earlier versions ignored: folders that hold such files too must still work.
LATER_EXTENSIONS = (".nhdr", ".hdr", ".mgz", ".mgh")
# The folder of label maps, and the ending of 3D Slicer's segmentations: these are no scans.
LABEL_MAPS_FOLDER = "segmentations"
SLICER_SEGMENTATION = ".seg.nrrd"
# Endings of other files that users may take for readable images.
_OTHER_IMAGE_ENDINGS = (
    (".img", ".img.gz", ".hdr.gz", ".dcm", ".ima", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
    + (".v", ".mnc", ".minc", ".par", ".rec", ".head", ".brik", ".brik.gz", ".gipl", ".gipl.gz")
    + (".vti", ".npy", ".npz", ".nii.zip", ".nii.bz2", ".nii.xz", ".nii.zst", ".nrrd.gz")
)
# A message names this many files and counts the others.
_MAX_NAMED = 5
# Endings of headers whose voxels are in another file.
_HEADER_ENDINGS = (".mhd", ".nhdr", ".hdr")
# Other endings of DICOM files' names; many have none, or end in a number.
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_WRITABLE_EXTENSIONS = (".nii", ".nii.gz", ".mha", ".nrrd")
_WRITABLE_TYPES = (np.float32, np.uint8, np.int16)
# The share of a scan's voxels that may be NaN.
_MAX_NAN_SHARE = 0.9
# A disk with fewer free bytes counts as full.
_FULL_DISK_BYTES = 1 << 20


@dataclass(frozen=True)
class Scan:
    """A volume and its place in space; a picture has one voxel along z, see `pictures`."""

    # (X, Y, Z) float32, or the file's type (`as_stored`); x fastest in memory as in the file.
    voxels: np.ndarray
    # (4, 4) float64: voxel indices (centres at integers) -> LPS mm.
    ijk_to_lps: np.ndarray
    # What the reader guessed or repaired, a line each.
    notes: tuple[str, ...] = ()
    # For a picture: mm between columns and between rows; None where it is not stated.
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
    """Scans below a folder, and the DICOM folders that were left out."""

    scans: dict[str, Path]
    # Folders of DICOM files without a volume -> what their files are.
    left_out: dict[Path, str]
    # Folders whose DICOM volumes are all of other series than the chosen one -> those series.
    other_series: dict[Path, str]


def find_scans(folder: Path) -> dict[str, Path]:
    """Case name -> image file, or folder that holds a DICOM series; sorted by name.

    The name is the file's without its extension, or the folder's. Hidden and other files are
    ignored, and so are folders without DICOM files. Two names that a file system may take for the
    same (it may ignore case, or the coding of accents) are refused: results could be one file.

    Raises:
      InputError: no such folder, one that cannot be read, two scans of one name.
    """
    return by_name(_scans_among(entries(folder)))


def search_below(folder: Path, series: str = "") -> Found:
    """As `find_scans`, in the folder and in all folders below it.

    Scans with the same name get their paths from `folder` on as names, joined by "-". A folder
    that holds one DICOM volume is one scan. In a folder with several, each series and each
    multi-frame file is a scan, named by the folder and the description or number of the series; its
    path is one that `read_scan` understands. Links to folders are not followed, so there are no
    loops, and nothing is found twice. Links to files are followed, as in `find_scans`. Folders
    called segmentations, and files that end in .seg.nrrd, hold label maps and are left out.

    Args:
      series: finds only DICOM volumes that this names (`dicom_series.called`), and does not change
        their names; "": all. Scans in other formats have no series: all are found.

    Raises:
      InputError: as `find_scans`.
    """
    # Names, paths, and the folders that are put before a name if it is not unique.
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
                # A damaged file may belong to the chosen series: reading it raises the error.
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
    """A line about files whose names look like images and which are none of the scans.

    Empty where there are none. Parts of scans (slices, files of voxels) do not count.

    Args:
      scans: the scans found in the folder, or below it.
      readable_ones: the endings that the line lists as readable.
    """
    whole = set(scans)
    folders = whole | {path.parent for path in scans if dicom_series.is_series_path(path)}
    # A header's file of voxels has its name.
    parts = {path.with_suffix("") for path in scans if path.suffix.lower() in _HEADER_ENDINGS}
    found = [
        path
        for paths in ((paths for _, paths in folders_below(folder)) if below else [entries(folder)])
        for path in paths
        if path not in whole
        and path.name.lower().endswith(EXTENSIONS + _OTHER_IMAGE_ENDINGS)
        and not (path.name.lower().endswith((".img", ".img.gz")) and _stem(path) in parts)
        and not (path.parent in folders and path.suffix.lower() in (".dcm", ".ima"))
        and path.is_file()
    ]
    if not found:
        return ""
    names = ", ".join(str(path.relative_to(folder)) for path in found[:_MAX_NAMED])
    more = f" and {len(found) - _MAX_NAMED} more" * (len(found) > _MAX_NAMED)
    look = "looks like an image and is" if len(found) == 1 else "look like images and are"
    files = "1 file" if len(found) == 1 else f"{len(found)} files"
    known = ", ".join(readable_ones)
    return f"{files} {look} not read: {names}{more} (jaxmark reads {known} and DICOM series)"


def _stem(path: Path) -> Path:
    return path.with_name(path.name[: path.name.lower().rindex(".img")])


def folders_below(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """The folder and all below it, each with its files and folders.

    Links to folders are left out, and so are label maps, such as earlier predictions.
    """
    folders = [folder]
    # The loop appends to the list that it runs over.
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
    """Names and paths of the scans among a folder's files and subfolders."""
    return _without_copies((name, path) for path in paths if (name := case_name(path)))


def _images(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Names and paths of a folder's files with one of `EXTENSIONS`."""
    files = (path for path in paths if not path.is_dir())
    return _without_copies((name, path) for path in files if (name := _image_name(path)))


def _without_copies(named: Iterable[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Drops a file in `LATER_EXTENSIONS` beside one of the same name: FreeSurfer's original."""
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
    # Damaged files are not left out: reading them raises the error.
    return [(name, folder)] if volumes or contents.unknown else []


def case_name(path: Path) -> str:
    """The name of the scan at `path`; empty if it is no scan.

    A broken link counts as a scan: reading it raises the error.
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
        # A header without its file of voxels is another program's.
        return ""
    return path.name[: -len(extension)] if extension else ""


def _dicom_name(path: Path) -> str:
    """The name of a DICOM file that is a whole scan; empty for others."""
    ending = path.suffix.lower()
    if ending[1:].isdecimal():
        # The end of a UID, as "1.2.840", not an extension.
        ending = ""
    # Files with other endings are not opened.
    if ending not in ("", *_DICOM_ENDINGS) or file_flaw(path) != "":
        return ""
    return path.name[: -len(ending)] if ending else path.name


def file_flaw(path: Path) -> str | None:
    """Why a DICOM file is no whole scan; "": it is one; None: it is not DICOM."""
    if not path.is_file() or path.name == "DICOMDIR" or not dicom_series.is_dicom(path):
        return None
    return dicom_series.file_flaw(path)


def read_scan(path: Path, *, as_stored: bool = False) -> Scan:
    """Reads one volume: a file with one of `EXTENSIONS`, or a multi-frame DICOM file, or a folder
    with one DICOM volume, or a series that `search_below` has found in a folder with several.

    Of the two maps to the world that a NIfTI file may state, ITK's choice counts: 3D Slicer, where
    landmarks come from, uses it too. The scan's `notes` state what was guessed or repaired: NaN
    voxels get the smallest value, and axes that are nearly at right angles are straightened.

    Args:
      as_stored: voxels keep the file's type where it is no larger than float32: a CT of 512^3
        voxels takes 0.27 GB in memory, not 0.54.

    Raises:
      InputError: the file is missing, truncated, damaged or of an unknown format; it is not one
        three-dimensional volume of numbers with at least 4 voxels along each axis and at most
        2 ** 31 in all; its spacing is not stated or not in 0.001 to 100 mm, it extends over more
        than 10 m, it lies farther than 1e7 mm from the origin, or its axes are sheared; voxels are
        infinite, mostly NaN or all the same; they are in a file of another folder, or in several; a
        DICOM folder holds several volumes or not all slices of one.
    """
    # Values that overflow are refused later, with a clearer message than NumPy's warning.
    with readable(path), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        content = _read(path)
        voxels = content.values_in_float32(as_stored=as_stored)
        return mended(path, Scan(voxels, content.ijk_to_lps, content.notes))


def read_voxels(path: Path) -> Content:
    """As `read_scan`, for label maps: voxels keep the file's type and values.

    NaN, and voxels that are all the same, are neither refused nor mended.

    Raises:
      InputError: as `read_scan`, except for values of voxels.
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
    # ITK would silently write the nearest right-angled axes to NIfTI.
    if not at_right_angles(ijk_to_lps[:3, :3]):
        raise ValueError("cannot write axes that are not at right angles")
    write_image(path, to_image(voxels, ijk_to_lps))


def write_image(path: Path, image: sitk.Image) -> None:
    """Writes any SimpleITK image whole or not at all; compressed unless it is `.nii`.

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
            # ITK's errors do not state the cause.
            full = shutil.disk_usage(path.parent).free < _FULL_DISK_BYTES
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
    """A scan from arrays in memory, checked as a file is; InputErrors are about `where`."""
    check_shape(Path(where), voxels.shape)
    if ijk_to_lps.shape != (4, 4) or not np.isfinite(ijk_to_lps).all():
        raise InputError(where, "its affine is not (4, 4) finite numbers")
    check_place(Path(where), voxels.shape, ijk_to_lps)
    return mended(Path(where), _scan(voxels, np.asarray(ijk_to_lps, np.float64)))


def _scan(voxels: np.ndarray, ijk_to_lps: np.ndarray) -> Scan:
    return Scan(voxels.astype(np.float32, copy=False), ijk_to_lps)


def _extension(path: Path) -> str:
    """The one of `EXTENSIONS` that the name ends in, or ""."""
    name = path.name.lower()
    return next((e for e in EXTENSIONS if name.endswith(e)), "")


def by_name(scans: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Name -> path, sorted by name; InputError for two scans with one name, see `as_a_file`."""
    found: dict[str, tuple[str, Path]] = {}
    for name, path in scans:
        if (key := as_a_file(name)) in found:
            other = found[key][1].name
            raise InputError(path, f"case {name!r} has a second image, {other}")
        found[key] = name, path
    return dict(sorted(found.values()))


def as_a_file(name: str) -> str:
    """A key that is equal for names that may be the same file on macOS or Windows."""
    return unicodedata.normalize("NFC", name).casefold()


def _read(path: Path) -> Content:
    is_series = path.is_dir() or dicom_series.is_series_path(path)
    if is_series or (not _extension(path) and file_flaw(path) is not None):
        return Content(*dicom.read(path))
    return _read_file(path)


def _read_file(path: Path) -> Content:
    if not path.is_file():
        # Reading a pipe would wait forever.
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
    """The scan with NaN filled and axes straightened, and notes; InputError for other flaws."""
    voxels, filled = _without_nan(path, scan.voxels)
    if voxels.min() == voxels.max():
        raise InputError(path, f"all voxels are {voxels.flat[0]:g}: an empty scan")
    place, turned = straightened(voxels.shape, scan.ijk_to_lps)
    notes = (*scan.notes, *turned, *filled)
    return replace(scan, voxels=voxels, ijk_to_lps=place, notes=notes)


def _without_nan(path: Path, voxels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The voxels with their smallest value in place of NaN, and notes; `voxels` is not changed.

    SPM and ANTs write NaN outside of the field of view.
    """
    # Whole numbers cannot be NaN: not allocating this array saves memory for a large scan.
    bad = np.zeros(0, bool) if voxels.dtype.kind in "iu" else ~np.isfinite(voxels)
    if not bad.any():
        return voxels, ()
    share = bad.mean()
    if share > _MAX_NAN_SHARE or np.isinf(voxels).any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(path, f"{bad.sum()} voxels are NaN or infinite, the first at {first}")
    least = voxels[~bad].min()
    filled = voxels.copy(order="K")
    filled[bad] = least
    percent = f"{100 * share:.1f} %" if share >= 0.001 else "under 0.1 %"
    return filled, (f"{percent} of its voxels are NaN: filled with its smallest value, {least:g}",)
