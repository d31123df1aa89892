"""Raster pictures: PNG, JPEG, TIFF and BMP. ITK decodes them after these checks.

None of them states the size of a pixel in the patient: resolutions in PNG (pHYs), JPEG and TIFF are
for printing or a scanner's bed, and are not read. ITK ignores many errors:
truncated JPEG, TIFF and BMP are filled up, a TIFF whose white is 0 stays inverted, several pages
become a volume, and a tag that turns the picture is not heeded or changes the type of the pixels.
"""

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from jaxmark.data.formats.safeguards import (
    DAMAGED,
    ITK_ERRORS,
    MAX_INFLATION,
    UNREADABLE,
    itk_header,
)
from jaxmark.system.errors import InputError

MIN_PIXELS = 4  # along each axis
# A mammogram has 14 million, a scanned film of the whole body 60 million.
_MAX_PIXELS = 2**27
_MAX_BYTES = 2**30
# Weights of red, green and blue in the brightness that is seen (ITU-R BT.601).
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
# Grey values that differ in colours by so little, as a share of the largest, are grey: JPEG rounds.
_COLOURED = 0.02


class Picture(NamedTuple):
    """A picture as a reader found it."""

    # (X, Y) float32, x to the right, y downwards; brightness, large is bright.
    pixels: np.ndarray
    # Between columns and between rows, mm; None: the file does not say.
    pixel_mm: tuple[float, float] | None = None
    # What was guessed or changed, a line each, without the file's name.
    notes: tuple[str, ...] = ()
    # A note if that size is not the size in the patient; then a stated size counts instead.
    size_note: str = ""


class _Header(NamedTuple):
    width: int
    height: int
    bytes_a_pixel: float
    # White is 0.
    inverted: bool = False


def read(path: Path) -> Picture:
    """The picture in a file, by what its name ends with.

    Raises:
      InputError: it is truncated, damaged, not of that format, too small or too large; it has
        several pages, is stored turned or mirrored, or its pixels are of a type that is not read.
    """
    image_io, header_of = _FORMATS[path.suffix.lower()]
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(path, f"has more than {_MAX_BYTES} bytes")
    content = path.read_bytes()
    try:
        header = header_of(path, content)
    except struct.error:
        raise InputError(path, DAMAGED) from None
    check_size(path, header.width, header.height)
    # No memory for what cannot be there, whatever the compression.
    if header.width * header.height * header.bytes_a_pixel > MAX_INFLATION * len(content):
        raise InputError(path, DAMAGED)
    try:
        reader = itk_header(path, image_io)
        if reader.GetSize() != (header.width, header.height):
            raise InputError(path, f"holds {reader.GetSize()} pixels, not one picture")
        image = reader.Execute()
    except ITK_ERRORS:
        raise InputError(path, UNREADABLE) from None
    pixels, notes = in_grey(path, sitk.GetArrayFromImage(image))
    if header.inverted:
        pixels = pixels.max() + pixels.min() - pixels
        notes = (*notes, "is stored with white as 0: inverted")
    return Picture(np.asfortranarray(pixels.T), None, notes)


def check_size(path: Path, width: int, height: int) -> None:
    """Refuses pictures that are too small or too large."""
    if min(width, height) < MIN_PIXELS:
        stated = f"has {width} x {height} pixels"
        raise InputError(path, f"{stated}; each axis needs at least {MIN_PIXELS}")
    if width * height > _MAX_PIXELS:
        raise InputError(path, f"has {width} x {height} pixels, more than {_MAX_PIXELS} in all")


def in_grey(path: Path, pixels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pixels (H, W) or (H, W, channels) as brightness (H, W) float32, and a note where it changes.

    Raises:
      InputError: there are other channels than grey, or red, green, blue and transparency.
    """
    if pixels.ndim == 2:
        return pixels.astype(np.float32), ()
    channels = pixels.shape[-1]
    if channels not in (3, 4):
        raise InputError(path, f"has {channels} channels a pixel; grey has 1, colour 3 or 4")
    colours = pixels[..., :3].astype(np.float32)
    notes: tuple[str, ...] = ()
    if np.ptp(colours, axis=-1).max() > _COLOURED * max(float(np.abs(colours).max()), 1e-9):
        notes = ("is in colour: its brightness is taken (0.299 R + 0.587 G + 0.114 B)",)
    if channels == 4 and np.ptp(pixels[..., 3]) > 0:
        notes += ("its transparency is left out",)
    return colours @ _LUMINANCE, notes


# Headers


_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _png(path: Path, content: bytes) -> _Header:
    """Every chunk is there, and its checksum is right."""
    begin = 8
    kinds: list[bytes] = []
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        raise InputError(path, UNREADABLE)
    while begin < len(content) and kinds[-1:] != [b"IEND"]:
        (length,) = struct.unpack_from(">I", content, begin)
        end = begin + 8 + length
        (checksum,) = struct.unpack_from(">I", content, end)
        if zlib.crc32(memoryview(content)[begin + 4 : end]) != checksum:
            raise InputError(path, DAMAGED)
        kinds.append(content[begin + 4 : begin + 8])
        begin = end + 4
    if kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND":
        raise InputError(path, DAMAGED)
    width, height, bits, colour = struct.unpack_from(">IIBB", content, 16)
    if colour == 4:
        raise InputError(path, "is grey with transparency, which is not read: save it without")
    return _Header(width, height, _PNG_CHANNELS.get(colour, 1) * bits / 8)


# Markers of JPEG that begin a frame, in other words, that state its size.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg(path: Path, content: bytes) -> _Header:
    """The markers up to the pixels (ITU-T T.81, B.1), and the one that ends them."""
    if content[:2] != b"\xff\xd8":
        raise InputError(path, UNREADABLE)
    begin, frame = 2, None
    while True:
        mark, kind, length = struct.unpack_from(">BBH", content, begin)
        if mark != 0xFF:
            raise InputError(path, DAMAGED)
        part = content[begin + 4 : begin + 2 + length]
        if kind in _FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", part)
            if bits != 8 or channels not in (1, 3):
                stored = f"{channels} channels of {bits} bits"
                raise InputError(path, f"has {stored}; of JPEG 1 or 3 of 8 are read")
            # Flat pixels take next to nothing.
            frame = _Header(width, height, 0.0)
        elif kind == 0xE1 and part[:6] == b"Exif\0\0":
            _check_upright(path, _exif_orientation(part[6:]))
        elif kind == 0xDA:
            break
        begin += 2 + length
    # Within the pixels a byte 0xFF is never followed by 0xD9.
    if frame is None or content.find(b"\xff\xd9", begin + 2 + length) == -1:
        raise InputError(path, DAMAGED)
    return frame


def _exif_orientation(part: bytes) -> int:
    try:
        return int(_tags(part, *_tiff_start(part))[0].get(_ORIENTATION, [1])[0])
    except (struct.error, ValueError, IndexError):
        # A note that cannot be read says nothing.
        return 1


def _check_upright(path: Path, orientation: int) -> None:
    if orientation not in (0, 1):
        raise InputError(
            path,
            f"is stored turned or mirrored (orientation {orientation}), and points marked on it "
            "may be meant either way: save it upright",
        )


_ORIENTATION, _WHITE_IS_0 = 274, 0
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_CHANNELS, _SAMPLE_FORMAT = 277, 339
_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES = 273, 279, 324, 325
_NUMBERS = {1: "B", 3: "H", 4: "I"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
# A page has tens of tags, and a strip a row at most.
_MOST_VALUES = 1 << 20


def _tiff(path: Path, content: bytes) -> _Header:
    """The first page's tags (TIFF 6.0), and whether its strips or tiles are in the file."""
    try:
        tags, following = _tags(content, *_tiff_start(content))
    except ValueError:
        raise InputError(path, UNREADABLE) from None
    if following:
        raise InputError(path, "holds several pages; save the one that is meant as a file")
    width, height = (int(tags.get(tag, [0])[0]) for tag in (_WIDTH, _HEIGHT))
    bits, channels = (int(tags.get(tag, [1])[0]) for tag in (_BITS, _CHANNELS))
    if bits > 32 or (bits > 16 and int(tags.get(_SAMPLE_FORMAT, [1])[0]) not in (1, 2, 3)):
        raise InputError(path, f"has numbers of {bits} bits; 32 are the most that are read")
    _check_upright(path, int(tags.get(_ORIENTATION, [1])[0]))
    begins = tags.get(_STRIPS) or tags.get(_TILES) or []
    lengths = tags.get(_STRIP_BYTES) or tags.get(_TILE_BYTES) or []
    ends = [a + b for a, b in zip(begins, lengths, strict=False)]
    if not begins or len(begins) != len(lengths) or max(ends) > len(content):
        raise InputError(path, DAMAGED)
    size = width * height * channels * bits / 8
    if tags.get(_COMPRESSION, [1])[0] == 1 and sum(lengths) < size:
        raise InputError(path, f"{DAMAGED}: less pixel data than its rows and columns need")
    return _Header(
        width, height, channels * bits / 8, tags.get(_PHOTOMETRIC, [1])[0] == _WHITE_IS_0
    )


def _tiff_start(content: bytes) -> tuple[str, int]:
    """The order of bytes, as `struct` has it, and where the first page's tags are."""
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None:
        raise ValueError("no TIFF")
    magic, begin = struct.unpack_from(f"{order}HI", content, 2)
    if magic != 42:
        raise ValueError("no TIFF, or one of over 4 GiB")
    return order, begin


def _tags(content: bytes, order: str, begin: int) -> tuple[dict[int, list[int]], int]:
    """Tag -> its whole numbers, of one page, and where the next page's tags are, 0 for none."""
    (count,) = struct.unpack_from(f"{order}H", content, begin)
    tags: dict[int, list[int]] = {}
    for entry in range(begin + 2, begin + 2 + 12 * count, 12):
        tag, kind, values = struct.unpack_from(f"{order}HHI", content, entry)
        at = entry + 8
        if (size := values * _SIZES.get(kind, 0)) > 4:
            (at,) = struct.unpack_from(f"{order}I", content, at)
        if at + size > len(content):
            raise struct.error("a value behind the end of the file")
        if kind in _NUMBERS and values <= _MOST_VALUES:
            tags[tag] = [*struct.unpack_from(f"{order}{values}{_NUMBERS[kind]}", content, at)]
    (following,) = struct.unpack_from(f"{order}I", content, begin + 2 + 12 * count)
    return tags, following


def _bmp(path: Path, content: bytes) -> _Header:
    """A Windows bitmap that is not compressed: its rows are in the file."""
    magic, begin, size, width, height, _, bits, packing = struct.unpack_from(
        "<2s8xIIiiHHI", content
    )
    if magic != b"BM" or size < 40 or width <= 0:
        raise InputError(path, UNREADABLE)
    if packing != 0 or bits not in (8, 24, 32):
        raise InputError(path, f"has {bits} bits a pixel or is packed: save it as PNG")
    row = math.ceil(width * bits / 32) * 4
    if begin + row * abs(height) > len(content):
        raise InputError(path, f"{DAMAGED}: less pixel data than its rows and columns need")
    return _Header(width, abs(height), bits / 8)


_FORMATS: dict[str, tuple[str, Callable[[Path, bytes], _Header]]] = {
    ".png": ("PNGImageIO", _png),
    ".jpg": ("JPEGImageIO", _jpeg),
    ".jpeg": ("JPEGImageIO", _jpeg),
    ".tif": ("TIFFImageIO", _tiff),
    ".tiff": ("TIFFImageIO", _tiff),
    ".bmp": ("BMPImageIO", _bmp),
}
EXTENSIONS = tuple(_FORMATS)
