"""Raster pictures: what is read is what was written, and what is damaged is refused."""

import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused
from pictures import GREY, bmp, chunk, png, tiff

from jaxmark.data.formats import raster

# (H, W, 3)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)
BRIGHTNESS = COLOUR @ np.array([0.299, 0.587, 0.114])
PALETTE = chunk(b"PLTE", b"".join(bytes([i, 255 - i, 7]) for i in range(256)))


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def jpeg(folder: Path, pixels: np.ndarray, name: str = "a.jpg") -> Path:
    path = folder / name
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))
    return path


GOOD = {
    "8 bits.png": (png(GREY), GREY),
    "16 bits.png": (png(GREY.astype(np.uint16) * 250), GREY * 250.0),
    "1 bit.png": (png(np.full((5, 1), 0b10110010, np.uint8), bits=1), None),
    "rgb.png": (png(COLOUR, colour=2), BRIGHTNESS),
    "rgba.png": (png(np.dstack([COLOUR, GREY]), colour=6), BRIGHTNESS),
    "grey in colour.png": (png(np.dstack([GREY] * 3), colour=2), GREY),
    "palette.png": (
        png(GREY, colour=3, extra=PALETTE),
        GREY * 0.299 + (255.0 - GREY) * 0.587 + 7 * 0.114,
    ),
    "8 bits.tif": (tiff(GREY), GREY),
    "big endian.tiff": (tiff(GREY.astype(np.uint16) * 250, order=">"), GREY * 250.0),
    "signed.tif": (tiff(GREY.astype(np.int16) - 100), GREY - 100.0),
    "float.TIF": (tiff(GREY.astype(np.float32) / 3), GREY / np.float32(3)),
    "white is 0.tif": (tiff(GREY, photometric=0), float(GREY.max()) + GREY.min() - GREY),
    "white is 0 in 16 bits.tif": (
        tiff(GREY.astype(np.uint16) * 9, photometric=0),
        9.0 * (float(GREY.max()) + GREY.min() - GREY),
    ),
    "rgb.tif": (tiff(COLOUR), BRIGHTNESS),
    "8 bits.bmp": (bmp(GREY), GREY),
    "top down.bmp": (bmp(GREY, bottom_up=False), GREY),
    "24 bits.bmp": (bmp(COLOUR), BRIGHTNESS),
}


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_those_that_were_written(tmp_path, name):
    content, expected = GOOD[name]
    if name == "1 bit.png":
        # One byte a row: seven columns of the pattern.
        content = png(np.full((5, 1), 0b10110010, np.uint8), bits=1)
        content = content.replace(
            content[8:33], chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 1, 0, 0, 0, 0))
        )
        expected = np.tile([255, 0, 255, 255, 0, 0, 255], (5, 1))
    found = raster.read(written(tmp_path, name, content))
    assert found.pixels.dtype == np.float32 and found.pixels.flags.f_contiguous
    np.testing.assert_allclose(found.pixels, expected.T, rtol=1e-6, atol=1e-4)
    # A print's resolution is no pixel size.
    assert found.pixel_mm is None


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("rgb.png", "is in colour"),
        ("rgba.png", "transparency is left out"),
        ("palette.png", "is in colour"),
        ("white is 0.tif", "inverted"),
        ("24 bits.bmp", "is in colour"),
        ("8 bits.png", ""),
        ("grey in colour.png", ""),
        ("8 bits.bmp", ""),
    ],
)
def test_what_was_changed_is_said(tmp_path, name, word):
    notes = raster.read(written(tmp_path, name, GOOD[name][0])).notes
    assert any(word in note for note in notes) if word else not notes


def test_jpeg_is_read_in_grey_and_in_colour(tmp_path):
    smooth = np.linspace(0, 250, 40 * 64).reshape(40, 64).astype(np.uint8)
    found = raster.read(jpeg(tmp_path, smooth))
    assert np.abs(found.pixels.T - smooth).max() < 4 and not found.notes
    colour = np.dstack([smooth, smooth[::-1], smooth])
    found = raster.read(jpeg(tmp_path, colour, "b.JPEG"))
    assert np.abs(found.pixels.T - colour @ [0.299, 0.587, 0.114]).max() < 6
    assert "is in colour" in found.notes[0]


@pytest.mark.parametrize("kind", ["png", "tif", "bmp", "jpg"])
def test_a_truncated_picture_is_refused_wherever_it_ends(tmp_path, kind):
    content = {"png": png(GREY), "tif": tiff(GREY), "bmp": bmp(GREY)}.get(kind)
    content = content or jpeg(tmp_path, GREY).read_bytes()
    for end in range(0, len(content), max(1, len(content) // 40)):
        path = written(tmp_path, f"a.{kind}", content[:end])
        refused(partial(raster.read, path), path)


def test_a_damaged_chunk_is_refused(tmp_path):
    content = bytearray(png(GREY))
    content[-20] ^= 1
    path = written(tmp_path, "a.png", bytes(content))
    refused(partial(raster.read, path), path, "truncated or damaged")


def sized(content: bytes, width: int, height: int) -> bytes:
    """A PNG that states another size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return content[:8] + chunk(b"IHDR", head) + content[33:]


BAD = {
    "huge.png": (sized(png(GREY), 60000, 60000), "60000 x 60000 pixels, more than"),
    "greedy.png": (sized(png(GREY), 9000, 9000), "truncated or damaged"),
    "small.png": (png(GREY[:3]), "has 7 x 3 pixels; each axis needs at least 4"),
    "grey and alpha.png": (png(np.dstack([GREY, GREY]), colour=4), "grey with transparency"),
    "text.png": (b"no picture at all", "cannot be read"),
    "png.jpg": (png(GREY), "cannot be read"),
    "png.tif": (png(GREY), "cannot be read"),
    "png.bmp": (png(GREY), "cannot be read"),
    "pages.tif": (tiff(GREY, pages=2), "several pages"),
    "turned.tif": (tiff(GREY, more=((274, 6),)), "orientation 6"),
    "double.tif": (tiff(GREY.astype(np.float64)), "has numbers of 64 bits"),
    "huge.tif": (tiff(GREY, width=60000, height=60000), "less pixel data"),
    "packed.bmp": (bmp(GREY)[:30] + struct.pack("<I", 1) + bmp(GREY)[34:], "packed"),
    "huge.bmp": (bmp(GREY)[:18] + struct.pack("<ii", 60000, 60000) + bmp(GREY)[26:], "less pixel"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_to_mark_is_refused(tmp_path, name):
    content, problem = BAD[name]
    path = written(tmp_path, name, content)
    refused(partial(raster.read, path), path, problem)


def test_a_jpeg_that_is_shown_turned_is_refused(tmp_path):
    plain = jpeg(tmp_path, GREY).read_bytes()
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, 6, 0, 0)
    part = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    path = written(tmp_path, "b.jpg", plain[:2] + part + plain[2:])
    refused(partial(raster.read, path), path, "orientation 6")
    upright = part.replace(
        struct.pack("<HHIHH", 274, 3, 1, 6, 0), struct.pack("<HHIHH", 274, 3, 1, 1, 0)
    )
    written(tmp_path, "c.jpg", plain[:2] + upright + plain[2:])
    np.testing.assert_array_equal(
        raster.read(tmp_path / "c.jpg").pixels, raster.read(tmp_path / "a.jpg").pixels
    )
