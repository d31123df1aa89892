"""Limits, checks and bounded reading for all formats: a header may state anything.

Readers let some errors through, which the caller turns into messages: EOFError and zlib.error where
voxels are missing or damaged, `ITK_ERRORS` where ITK fails.
"""

import contextlib
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.system.errors import InputError

DAMAGED = "truncated or damaged"
UNREADABLE = "cannot be read: truncated, damaged, or not the format that its name says"
SHEARED = "states axes that are not at right angles (a sheared direction matrix)"
MAX_HEADER_BYTES = 1 << 20
# SimpleITK's errors; it raises the second if ITK's message quotes bytes that are no text.
ITK_ERRORS = (RuntimeError, UnicodeDecodeError)
# Deflate turns one byte into at most this many.
MAX_INFLATION = 1032

# Limits of a volume: beyond them a header must be wrong.
MIN_VOXELS = 4  # along each axis
_MAX_VOXELS = 2**31
_SPACING_MM = (0.001, 100.0)
_MAX_EXTENT_MM = 1e4
_MAX_ORIGIN_MM = 1e7
# Largest cosine between axes at right angles, which float32 rounds; and of axes that are mended,
# with a note: numbers with three decimals (directions, or steps of half a millimetre).
_MAX_COSINE = 1e-4
MAX_SKEW = 5e-3

_CHUNK_BYTES = 1 << 20
# A message names this many things and counts the others.
_MAX_NAMED = 5

# An InputError reports what is wrong with a file, so ITK's warnings are off. Set here, because
# worker processes import only what they need, and every reader imports this module.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


class Content(NamedTuple):
    """A volume as a reader found it."""

    # (X, Y, Z), x fastest in memory.
    voxels: np.ndarray
    # (4, 4) float64.
    ijk_to_lps: np.ndarray
    # What was guessed or repaired, a line each, without the file's name.
    notes: tuple[str, ...] = ()
    # Slope and intercept: voxels are to be multiplied by the first, then the second is added.
    scale: tuple[float, float] = (1.0, 0.0)

    def values(self) -> np.ndarray:
        """The voxels with their scale; float64 where there is one."""
        return self.voxels if self.scale == (1, 0) else _scaled(self.voxels, self.scale)

    def values_in_float32(self, *, as_stored: bool = False) -> np.ndarray:
        """As `values`, rounded, plane by plane: no array of float64 is as large as the scan.

        Args:
          as_stored: voxels without a scale keep their type, if it is not larger.
        """
        voxels = self.voxels
        if self.scale == (1, 0):
            small = as_stored and voxels.dtype.itemsize <= 4
            return voxels if small else voxels.astype(np.float32, copy=False)
        found = np.empty_like(voxels, np.float32)
        for k in range(voxels.shape[2]):
            found[..., k] = _scaled(voxels[..., k], self.scale)
        return found


def _scaled(voxels: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """The voxels with their scale, computed in float32 then float64 as in ITK."""
    if voxels.dtype.kind in "iu":
        voxels = voxels.astype(np.float32)
    scaled = voxels.astype(np.float64)
    scaled *= scale[0]
    scaled += scale[1]
    return scaled


# Files and folders


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns an OSError in this block into an InputError about `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None


def entries(folder: Path) -> list[Path]:
    """A folder's files and folders that are not hidden, sorted."""
    with readable(folder):
        if not folder.is_dir():
            raise InputError(folder, "no such folder")
        return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


# Reading by ITK


def itk_header(path: Path, image_io: str) -> sitk.ImageFileReader:
    """A reader that has read the header with the named ITK class."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(image_io)
    reader.ReadImageInformation()
    return reader


def place_of(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """(4, 4) ijk_to_lps of an image, or of the header that a reader has read."""
    axes = len(image.GetSize())
    columns = np.reshape(image.GetDirection(), (axes, axes)) * image.GetSpacing()
    return compose_affine(columns[:3, :3], np.array(image.GetOrigin()[:3]))


def voxels_and_place(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """A copy of the voxels (X, Y, Z), x fastest in memory, and ijk_to_lps (4, 4)."""
    # SimpleITK's arrays are (z, y, x).
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), place_of(image)


# Checks of headers


def check_shape(path: Path, shape: Sequence[int], components: int = 1) -> None:
    """Refuses shapes that are not one volume of numbers; a fourth axis of one voxel is allowed."""
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] == 1):
        raise InputError(path, f"has {len(shape)} dimensions, {tuple(shape)}; a volume has 3")
    if components != 1:
        raise InputError(path, f"has {components} numbers a voxel (colour or vector), not one")
    shape = tuple(shape[:3])
    if min(shape) < MIN_VOXELS:
        picture = "; a picture? config.data.crop with Z = 1 reads it" * (shape[2] == 1)
        raise InputError(
            path, f"has {shape} voxels; each axis needs at least {MIN_VOXELS}{picture}"
        )
    if math.prod(shape) > _MAX_VOXELS:
        raise InputError(path, f"has {shape} voxels, more than {_MAX_VOXELS} in all")


def check_place(path: Path, shape: Sequence[int], ijk_to_lps: np.ndarray) -> None:
    """Refuses an `ijk_to_lps` (4, 4) that no scan has; `shape` is that of the voxels."""
    columns = ijk_to_lps[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    check_spacing(path, spacing)
    extent = max(spacing * shape[:3])
    if extent > _MAX_EXTENT_MM:
        raise InputError(path, f"extends over {extent:g} mm; the limit is {_MAX_EXTENT_MM:g}")
    check_origin(path, ijk_to_lps[:3, 3])
    if not abs(np.linalg.det(columns / spacing)) > 1e-6:
        raise InputError(path, "states axes that do not span space (a singular direction matrix)")
    if not skew(columns) <= MAX_SKEW:
        raise InputError(path, SHEARED)


def check_spacing(path: Path, spacing: Sequence[float] | np.ndarray) -> None:
    """Refuses distances of voxels, in mm, that no scanner has."""
    low, high = _SPACING_MM
    # Units and norms are rounded.
    if not all(low * (1 - 1e-6) <= s <= high * (1 + 1e-6) for s in spacing):
        stated = f"states a voxel spacing of {_listed(spacing)} mm"
        raise InputError(path, f"{stated}, not {low:g} to {high:g}")


def check_origin(path: Path, origin: Sequence[float] | np.ndarray) -> None:
    """Refuses an origin, in mm, that is not finite or too far from 0."""
    if not all(abs(v) <= _MAX_ORIGIN_MM for v in origin):
        stated = f"states the origin {_listed(origin)} mm"
        raise InputError(path, f"{stated}; the limit is {_MAX_ORIGIN_MM:g}")


def skew(columns: np.ndarray) -> float:
    """The largest cosine between two of the columns (3, 3), of any lengths; NaN for none."""
    axes = columns / np.linalg.norm(columns, axis=0)
    return float(abs(axes.T @ axes - np.eye(3)).max())


def at_right_angles(columns: np.ndarray) -> bool:
    """Whether the columns (3, 3), of any lengths, are at right angles but for rounding."""
    return skew(columns) <= _MAX_COSINE


def straightened(
    shape: Sequence[int], ijk_to_lps: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The nearest map with axes at right angles, and a note if it differs.

    `check_place` allows axes rounded to three decimals. Spacing and the volume's centre stay;
    directions become the nearest rotation (by singular values), as in ITK.
    """
    columns = ijk_to_lps[:3, :3]
    if at_right_angles(columns):
        return ijk_to_lps, ()
    spacing = np.linalg.norm(columns, axis=0)
    left, _, right = np.linalg.svd(columns / spacing)
    centre = (np.asarray(shape[:3]) - 1) / 2
    straight = left @ right * spacing
    place = compose_affine(straight, ijk_to_lps[:3, 3] + (columns - straight) @ centre)
    _, moved = distances_mm(shape, place, ijk_to_lps)
    degrees = math.degrees(math.asin(skew(columns)))
    return place, (
        f"its axes are {degrees:.2f} degrees off right angles, as rounded numbers are: made right, "
        f"which moves its corners by up to {moved:.2f} mm",
    )


def distances_mm(shape: Sequence[int], one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Distances between the centres, and the farthest corners, under two maps (4, 4)."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.asarray(shape[:3]) - 1)
    points = [*corners, corners.mean(0)]
    *apart, centre = np.linalg.norm(
        apply_affine(one, np.array(points)) - apply_affine(other, np.array(points)), axis=1
    )
    return float(centre), float(max(apart))


def rounded(vector: np.ndarray) -> list[float]:
    """The numbers rounded to three decimals, for messages."""
    return [round(float(v), 3) for v in vector]


def named(things: Sequence[str]) -> str:
    """The first five, and the number of the others, for messages."""
    more = f"; and {len(things) - _MAX_NAMED} more" if len(things) > _MAX_NAMED else ""
    return "; ".join(things[:_MAX_NAMED]) + more


def _listed(numbers: Sequence[float] | np.ndarray) -> str:
    return f"({', '.join(f'{n:g}' for n in numbers)})"


# Headers in text


def header_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Lines of a text header, up to `MAX_HEADER_BYTES`, each with the offset of its end."""
    end = 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_HEADER_BYTES - end):
            end += len(line)
            yield line, end


def floats(text: str) -> list[float]:
    """The numbers in a text, with or without brackets; NaN for words that are none."""
    numbers = []
    for word in re.findall(r"[^\s,()]+", text):
        try:
            numbers.append(float(word))
        except ValueError:
            numbers.append(math.nan)
    return numbers


def data_file(path: Path, name: str) -> Path:
    """The file of voxels that a header names: one, and in the same folder.

    A header from elsewhere must not choose which files of this machine are read.
    """
    name = name.removeprefix("./")
    data = path.parent / name
    if Path(name).name != name or "\\" in name:
        raise InputError(path, f"its data file {name} is not in the same folder")
    if data == path or not data.is_file():
        raise InputError(path, f"its data file {name} is missing; it must be one file")
    return data


# Voxels


def read_voxels(
    path: Path, shape: Sequence[int], dtype: np.dtype, begin: int, stream: int | None
) -> np.ndarray:
    """Voxels (X, Y, Z) of a file, without scale.

    Args:
      begin: their first byte, in the file or in the inflated stream.
      stream: the first byte of a zlib or gzip stream; None if voxels are not compressed.
    """
    count = math.prod(shape)
    end = begin + count * dtype.itemsize
    if stream is not None:
        voxels = np.frombuffer(inflate(path, stream, end), dtype, count, begin)
    elif end <= path.stat().st_size:
        voxels = np.fromfile(path, dtype, count, offset=begin)
    else:
        raise EOFError
    return voxels.reshape(shape, order="F")


def is_gzip(path: Path) -> bool:
    """Whether the file's first bytes are gzip's; its name does not count."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def beginning(path: Path, length: int, *, packed: bool) -> bytes:
    """The first bytes of the file, or of its inflated content if `packed`; fewer if it is shorter.

    Raises:
      InputError: it cannot be inflated.
    """
    if not packed:
        with open(path, "rb") as file:
            return file.read(length)
    content = b""
    try:
        for piece in inflated(path, 0):
            content += piece[:length]
            if len(content) >= length:
                break
    except (EOFError, zlib.error):
        raise InputError(path, UNREADABLE) from None
    return content[:length]


def inflate(path: Path, begin: int, needed: int) -> np.ndarray:
    """(needed,) uint8: the inflated stream from byte `begin` on; its checksum is checked.

    Raises:
      EOFError, zlib.error: the stream is truncated or damaged.
      InputError: the stream is much longer than `needed`.
    """
    # Checked before memory is allocated.
    if needed > (path.stat().st_size - begin) * MAX_INFLATION:
        raise EOFError
    content = np.empty(needed, np.uint8)
    size = 0
    for chunk in inflated(path, begin):
        room = content[size : size + len(chunk)]
        room[:] = np.frombuffer(chunk, np.uint8, len(room))
        size += len(chunk)
        # Good files may have a few bytes more.
        if size > needed + _CHUNK_BYTES:
            raise InputError(path, "holds more voxels than its header states")
    if size < needed:
        raise EOFError
    return content


def inflated(path: Path, begin: int) -> Iterator[bytes]:
    """Inflated pieces of bounded size, from one or more zlib or gzip streams in a row."""
    with open(path, "rb") as file:
        file.seek(begin)
        packed = file.read(_CHUNK_BYTES // 16)
        while packed:
            stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
            while not stream.eof:
                piece = stream.decompress(packed, _CHUNK_BYTES)
                packed = stream.unconsumed_tail or stream.unused_data
                packed = packed or file.read(_CHUNK_BYTES // 16)
                if not (piece or packed or stream.eof):
                    raise EOFError
                yield piece
            # Some files are padded with zeros.
            packed = packed.lstrip(b"\0")
