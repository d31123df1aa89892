"""Scans on disk: NIfTI, MetaImage, NRRD and DICOM, read into arrays with their place in space.

ITK fills up what a truncated NIfTI lacks with zeros, takes damaged compressed voxels as they come
out, skips DICOM slices that it cannot parse, and replaces NaN by 0 and impossible spacings by 1 mm.
A scan that went through one of these looks like a good one, so the files themselves are checked.
"""

import gzip
import itertools
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import SimpleITK as sitk

from jaxmark.core.errors import InputError
from jaxmark.core.files import replacing

_READERS = {
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
}
EXTENSIONS = tuple(_READERS)

_MIN_VOXELS = 4
_CHUNK_BYTES = 1 << 20
_DAMAGED = "truncated or damaged"
_UNREADABLE = "cannot be read: truncated, damaged, or not the format that its name says"
_SHEARED = "states axes that are not at right angles (a sheared direction matrix)"
_WRITABLE_TYPES = (np.float32, np.uint8, np.int16)
_WRITABLE_EXTENSIONS = (".nii", ".nii.gz", ".mha", ".nrrd")

# What is wrong with a file is said by an InputError, once.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@dataclass(frozen=True)
class Scan:
    """A volume and its place in space."""

    # (X, Y, Z) float32, x fastest in memory as in the file.
    voxels: np.ndarray
    # (4, 4) float64: voxel indices (centres at integers) -> LPS mm.
    ijk_to_lps: np.ndarray

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) float64: distance of neighbouring voxel centres along i, j and k."""
        return np.linalg.norm(self.ijk_to_lps[:3, :3], axis=0)


def find_scans(folder: Path) -> dict[str, Path]:
    """Case name -> image file, or folder that holds a DICOM series; sorted by name.

    The name is the file's without its extension, or the folder's. Hidden and other files are
    ignored, so are folders without DICOM files.

    Raises:
      InputError: no such folder, a name with control characters, two scans of one name.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = case_name(path)
        if not name:
            continue
        if not name.isprintable():
            raise InputError(path, "the case name has control characters")
        if name in found:
            raise InputError(path, f"case {name!r} has a second image, {found[name].name}")
        found[name] = path
    return dict(sorted(found.items()))


def read_scan(path: Path) -> Scan:
    """Reads one volume: a file with one of `EXTENSIONS`, or a folder with one DICOM series.

    Raises:
      InputError: the file is missing, truncated, damaged or of an unknown format; it is not one
        three-dimensional volume of numbers with at least 4 voxels along each axis; its spacing
        or direction is impossible or sheared; its voxels are not finite or all the same;
        a DICOM folder holds several series or not all slices of one.
    """
    if path.is_dir():
        image = _read_series(path)
    else:
        image = _read_file(path)
    # float64 voxels may overflow to infinity, which is refused with the other ones.
    with np.errstate(over="ignore"):
        scan = from_image(image)
    _check_finite(path, scan.voxels)
    if scan.voxels.min() == scan.voxels.max():
        raise InputError(path, f"all voxels are {scan.voxels.flat[0]:g}: an empty scan")
    return scan


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
    if not _at_right_angles(ijk_to_lps[:3, :3]):
        raise ValueError("cannot write axes that are not at right angles")
    image = to_image(voxels, ijk_to_lps)
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=path.suffix != ".nii")
        except RuntimeError as error:
            raise OSError(f"{path}: cannot be written") from error


def to_image(voxels: np.ndarray, ijk_to_lps: np.ndarray) -> sitk.Image:
    """A SimpleITK image (a copy) of voxels (X, Y, Z) of any type and their place (4, 4)."""
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    spacing_mm = np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection((ijk_to_lps[:3, :3] / spacing_mm).ravel().tolist())
    image.SetOrigin(ijk_to_lps[:3, 3].tolist())
    return image


def from_image(image: sitk.Image) -> Scan:
    """A three-dimensional scalar SimpleITK image as a scan (a copy); voxels become float32."""
    # SimpleITK's arrays are (z, y, x); the transposed view keeps x fastest.
    voxels = sitk.GetArrayFromImage(image).astype(np.float32, copy=False).transpose(2, 1, 0)
    ijk_to_lps = np.eye(4)
    ijk_to_lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    ijk_to_lps[:3, 3] = image.GetOrigin()
    return Scan(voxels, ijk_to_lps)


def _at_right_angles(columns: np.ndarray) -> bool:
    axes = columns / np.linalg.norm(columns, axis=0)
    return np.allclose(axes.T @ axes, np.eye(3), atol=1e-4)


def _extension(path: Path) -> str:
    """The longest of `EXTENSIONS` that the name ends with, or ""."""
    name = path.name.lower()
    return max((e for e in EXTENSIONS if name.endswith(e)), key=len, default="")


def case_name(path: Path) -> str:
    """The name of the scan at `path`, empty for what is no scan.

    A link that leads nowhere counts: reading it says so.
    """
    if path.name.startswith("."):
        return ""
    if path.is_dir():
        return path.name if _dicom_files(path) else ""
    extension = _extension(path)
    return path.name[: -len(extension)] if extension else ""


def _read_file(path: Path) -> sitk.Image:
    if not path.is_file():
        raise InputError(path, "no such file")
    if not _extension(path):
        raise InputError(path, f"not an image format jaxmark reads: {', '.join(EXTENSIONS)}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_READERS[_extension(path)])
    try:
        # Of headers that it cannot parse, ITK would complain on stderr.
        if _is_nifti(path):
            _nifti_header(path)
        elif _is_metaimage(path):
            _metaimage_header(path)
        reader.ReadImageInformation()
        _check_header(path, reader)
        _check_data(path, reader)
        image = reader.Execute()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise InputError(path, _SHEARED) from None
        raise InputError(path, _UNREADABLE) from None
    except gzip.BadGzipFile:
        raise InputError(path, _UNREADABLE) from None
    except (EOFError, zlib.error):
        raise InputError(path, _DAMAGED) from None
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    return image[..., 0] if image.GetDimension() == 4 else image


def _check_header(path: Path, header: sitk.ImageFileReader, slices: int = 1) -> None:
    """Refuses what is not one volume of numbers in space; `slices` are the files it is in."""
    size = header.GetSize()
    if len(size) != 3 and not (len(size) == 4 and size[3] == 1):
        raise InputError(path, f"has {len(size)} dimensions, {size}; a volume has 3")
    if header.GetNumberOfComponents() != 1:
        components = header.GetNumberOfComponents()
        raise InputError(path, f"has {components} numbers a voxel (colour or vector), not one")
    shape = (size[0], size[1], size[2] * slices)
    if min(shape) < _MIN_VOXELS:
        raise InputError(path, f"has {shape} voxels; each axis needs at least {_MIN_VOXELS}")
    spacing = (*header.GetSpacing()[:3], *_stated_spacing(path))
    if not all(math.isfinite(s) and s != 0 for s in spacing):
        raise InputError(path, "states a voxel spacing that is zero or not finite")
    direction = np.reshape(header.GetDirection(), (len(size), len(size)))[:3, :3]
    if not abs(np.linalg.det(direction)) > 1e-6:
        raise InputError(path, "states axes that do not span space (a singular direction matrix)")
    if not _at_right_angles(direction):
        raise InputError(path, _SHEARED)


def _stated_spacing(path: Path) -> tuple[float, ...]:
    """Spacings as the file has them where ITK puts 1 mm in place of bad ones."""
    if _is_nifti(path):
        return _nifti_header(path)[1]
    if _extension(path) == ".nrrd":
        fields, _ = _nrrd_header(path)
        stated = fields.get("space directions", "") + fields.get("spacings", "")
        return (math.nan,) if "nan" in stated or "inf" in stated else ()
    return ()


def _nifti_header(path: Path) -> tuple[str, tuple[float, ...]]:
    """Byte order ("<" or ">") and spacing; its first field, its own size, tells them apart."""
    with _open_nifti(path) as file:
        header = file.read(540)
    if len(header) < 348:
        raise InputError(path, _UNREADABLE)
    for order in "<>":
        (size,) = struct.unpack_from(order + "i", header)
        if size == 348:
            return order, struct.unpack_from(order + "3f", header, 80)
        if size == 540:
            return order, struct.unpack_from(order + "3d", header, 112)
    raise InputError(path, _UNREADABLE)


def _check_data(path: Path, header: sitk.ImageFileReader) -> None:
    """Refuses files that ITK would read in part or in error."""
    if _is_nifti(path):
        _check_nifti_data(path, header)
    elif _is_metaimage(path):
        bytes_a_voxel = sitk.Image([1, 1, 1], header.GetPixelID()).GetSizeOfPixelComponent()
        _check_metaimage_data(path, math.prod(header.GetSize()) * bytes_a_voxel)
    else:
        _check_nrrd_data(path)


def _check_nifti_data(path: Path, header: sitk.ImageFileReader) -> None:
    """ITK puts 0 in place of voxels that are missing, NaN or infinite."""
    with _open_nifti(path) as file:
        # To the end, for there gzip has its checksum.
        content = file.read()
    offset = int(float(header.GetMetaData("vox_offset")))
    shape = header.GetSize()[:3]
    if len(content) < offset + math.prod(shape) * int(header.GetMetaData("bitpix")) // 8:
        raise InputError(path, _DAMAGED)
    real = {"16": "f4", "64": "f8"}.get(header.GetMetaData("datatype"))
    if real:
        dtype = _nifti_header(path)[0] + real
        voxels = np.frombuffer(content, dtype, math.prod(shape), offset)
        _check_finite(path, voxels.reshape(shape, order="F"))


def _check_metaimage_data(path: Path, needed: int) -> None:
    """Files whose slices are in many data files (a list or a pattern) are left to ITK."""
    fields, begin = _metaimage_header(path)
    name = fields["elementdatafile"]
    if "%" in name or name.lower().startswith("list"):
        return
    if name.lower() == "local":
        data = path
    else:
        data, begin = path.parent / name, 0
    if not data.is_file():
        raise InputError(path, f"its data file {name} is missing")
    if fields.get("compresseddata", "").lower() in ("true", "1"):
        size = _inflated_size(data, begin)
    else:
        size = data.stat().st_size - begin
    if size < needed:
        raise InputError(path, _DAMAGED)


def _metaimage_header(path: Path) -> tuple[dict[str, str], int]:
    """Its fields, keys in lower case, and where it ends: the last one is ElementDataFile."""
    fields = {}
    with open(path, "rb") as file:
        for line in file:
            key, _, value = os.fsdecode(line).partition("=")
            fields[key.strip().lower()] = value.strip()
            if key.strip().lower() == "elementdatafile":
                return fields, file.tell()
    raise InputError(path, _UNREADABLE)


def _check_nrrd_data(path: Path) -> None:
    """ITK checks the size of NRRD's data, not the checksum of compressed ones."""
    fields, begin = _nrrd_header(path)
    attached = "data file" not in fields and "datafile" not in fields
    if attached and fields.get("encoding") in ("gzip", "gz"):
        _inflated_size(path, begin)


def _nrrd_header(path: Path) -> tuple[dict[str, str], int]:
    """Its fields, all in lower case, and where it ends: at the first empty line."""
    with open(path, "rb") as file:
        lines = [line.decode("latin-1") for line in itertools.takewhile(bytes.strip, file)]
        pairs = (line.lower().partition(":")[::2] for line in lines)
        return {key.strip(): value.strip() for key, value in pairs}, file.tell()


def _inflated_size(path: Path, begin: int) -> int:
    """How many bytes the zlib or gzip stream from byte `begin` on holds; checks its checksum.

    Raises:
      EOFError, zlib.error: it is truncated or damaged.
    """
    size = 0
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    with open(path, "rb") as file:
        file.seek(begin)
        while not stream.eof:
            chunk = file.read(_CHUNK_BYTES)
            if not chunk:
                raise EOFError
            size += len(stream.decompress(chunk))
    return size


def _is_metaimage(path: Path) -> bool:
    return _extension(path) in (".mha", ".mhd")


def _is_nifti(path: Path) -> bool:
    return _extension(path) in (".nii", ".nii.gz")


def _open_nifti(path: Path) -> BinaryIO:
    opened = gzip.open(path) if _extension(path) == ".nii.gz" else open(path, "rb")
    return cast(BinaryIO, opened)


def _dicom_files(folder: Path) -> list[Path]:
    """The files of a folder that are DICOM by extension or by what they begin with."""
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith("."))
    return [p for p in files if p.name != "DICOMDIR" and _is_dicom(p)]


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() == ".dcm":
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read_series(folder: Path) -> sitk.Image:
    files = _dicom_files(folder)
    if not files:
        raise InputError(folder, "holds no DICOM files")
    listed = {
        series: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    }
    # GDCM leaves out what it cannot parse: a damaged slice would be missing silently.
    known = {Path(name).name for names in listed.values() for name in names}
    for file in files:
        if file.name not in known:
            raise InputError(file, f"{_DAMAGED}, or not a DICOM image")
    if len(listed) > 1:
        counts = ", ".join(f"{series} ({len(names)} slices)" for series, names in listed.items())
        raise InputError(folder, f"holds {len(listed)} DICOM series, need one: {counts}")
    (names,) = listed.values()
    try:
        headers = [_slice_header(name) for name in names]
        if headers[0].GetSize()[2] > 1:
            raise InputError(folder, "holds multi-frame DICOM; convert it to NIfTI or MetaImage")
        _check_header(folder, headers[0], slices=len(names))
        _check_steps(folder, headers)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        return reader.Execute()
    except RuntimeError:
        raise InputError(folder, "its DICOM slices cannot be read as one volume") from None


def _slice_header(name: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.ReadImageInformation()
    return reader


def _check_steps(folder: Path, headers: list[sitk.ImageFileReader]) -> None:
    """ITK takes any slices for evenly stacked ones along their normal: refuses others."""
    origins = np.array([header.GetOrigin()[:3] for header in headers])
    normal = np.reshape(headers[0].GetDirection(), (3, 3))[:, 2]
    steps = np.diff(origins, axis=0)
    expected = np.median(steps @ normal) * normal
    off = np.linalg.norm(steps - expected, axis=1)
    worst = int(off.argmax())
    # Positions in DICOM are decimal text, often with two or three digits after the point.
    size = np.linalg.norm(expected)
    if not (size > 0 and off[worst] <= 0.01 * size + 0.01):
        raise InputError(
            folder,
            f"the step from slice {worst + 1} to {worst + 2} is {_rounded(steps[worst])} mm, "
            f"elsewhere {_rounded(expected)}: a slice is missing or doubled, or the slices are "
            "uneven or tilted",
        )


def _rounded(vector: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in vector]


def _check_finite(path: Path, voxels: np.ndarray) -> None:
    bad = ~np.isfinite(voxels)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(path, f"{bad.sum()} voxels are NaN or infinite, the first at {first}")
