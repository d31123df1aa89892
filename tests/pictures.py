"""Pictures as bytes, built from the formats' definitions."""

import struct
import zlib

import numpy as np

from experiments.dicom_files import STORAGE, element, numbers, part10

XRAY, CAPTURE, MULTI_FRAME = f"{STORAGE}1.1", f"{STORAGE}7", f"{STORAGE}7.2"
# (H, W): no symmetry, no two rows or columns alike.
GREY = (np.arange(5 * 7).reshape(5, 7) * 7 + 3).astype(np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG, with its checksum."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(pixels: np.ndarray, *, colour: int = 0, bits: int = 0, extra: bytes = b"") -> bytes:
    """Rows of a picture (H, W) or (H, W, C), as they are."""
    height, width = pixels.shape[:2]
    bits = bits or 8 * pixels.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + extra
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def tiff(
    pixels: np.ndarray,
    *,
    order: str = "<",
    photometric: int = 1,
    more: tuple[tuple[int, int], ...] = (),
    pages: int = 1,
    **stated: int,
) -> bytes:
    """Pixels (H, W) or (H, W, 3) in one strip that is not packed; `more` are tags of two bytes."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    kinds = {"u": 1, "i": 2, "f": 3}
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    bits = [8 * pixels.itemsize] * channels
    parts = [struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0)]
    bits_at = 8 + len(data)
    data += struct.pack(f"{order}{channels}H", *bits)
    tags = {
        256: (4, stated.get("width", pixels.shape[1])),
        257: (4, stated.get("height", pixels.shape[0])),
        258: (3, bits[0]) if channels == 1 else (-3, bits_at),
        259: (3, 1),
        262: (3, 2 if channels > 1 else photometric),
        273: (4, 8),
        277: (3, channels),
        278: (4, pixels.shape[0]),
        279: (4, bits_at - 8),
        339: (3, kinds[pixels.dtype.kind]),
        **{tag: (3, value) for tag, value in more},
    }
    begin = 8 + len(data)
    parts[0] = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, begin)
    size = 2 + 12 * len(tags) + 4
    for page in range(pages):
        table = struct.pack(f"{order}H", len(tags))
        for tag, (kind, value) in sorted(tags.items()):
            count = channels if kind < 0 else 1
            table += struct.pack(f"{order}HHI", tag, abs(kind), count)
            table += (
                struct.pack(f"{order}HH", value, 0)
                if kind == 3
                else struct.pack(f"{order}I", value)
            )
        last = page == pages - 1
        data += table + struct.pack(f"{order}I", 0 if last else begin + (page + 1) * size)
    return parts[0] + data


def bmp(pixels: np.ndarray, *, bottom_up: bool = True) -> bytes:
    """Pixels (H, W) in 8 bits with a grey palette, or (H, W, 3) RGB in 24."""
    height, width = pixels.shape[:2]
    bits = 8 if pixels.ndim == 2 else 24
    rows = pixels if bits == 8 else pixels[..., ::-1]
    raw = b""
    for row in rows[::-1] if bottom_up else rows:
        line = row.tobytes()
        raw += line + bytes(-len(line) % 4)
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256)) if bits == 8 else b""
    begin = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", begin + len(raw), 0, 0, begin)
    head += struct.pack(
        "<IiiHHIIiiII",
        40,
        width,
        height if bottom_up else -height,
        1,
        bits,
        0,
        len(raw),
        0,
        0,
        0,
        0,
    )
    return head + palette + raw


def xray(
    frames: np.ndarray,
    *,
    photometric: str = "MONOCHROME2",
    spacing: tuple[float, float] | None = None,
    at_detector: tuple[float, float] | None = None,
    uid: str = "1.2.826.30",
    instance: int = 1,
    sop_class: str = "",
) -> bytes:
    """A DICOM picture of uint16 (H, W), or of several frames (N, H, W); spacing: rows, columns."""
    count = len(frames) if frames.ndim == 3 else 1
    sop_class = sop_class or (MULTI_FRAME if count > 1 else XRAY)
    height, width = frames.shape[-2:]
    pairs = ((0x28, 0x30, spacing),)
    return part10(
        sop_class,
        element(8, 0x16, "UI", sop_class),
        element(8, 0x18, "UI", f"{uid}.{instance}"),
        element(8, 0x60, "CS", "DX"),
        *([element(0x18, 0x1164, "DS", numbers(at_detector))] if at_detector else []),
        element(0x20, 0xD, "UI", "1.2.826.5"),
        element(0x20, 0xE, "UI", uid),
        element(0x20, 0x13, "IS", instance),
        element(0x28, 2, "US", 1),
        element(0x28, 4, "CS", photometric),
        *([element(0x28, 8, "IS", count)] if count > 1 else []),
        element(0x28, 0x10, "US", height),
        element(0x28, 0x11, "US", width),
        *[element(g, e, "DS", numbers(value)) for g, e, value in pairs if value],
        element(0x28, 0x100, "US", 16),
        element(0x28, 0x101, "US", 12),
        element(0x28, 0x102, "US", 11),
        element(0x28, 0x103, "US", 0),
        element(0x7FE0, 0x10, "OW", frames.astype("<u2").tobytes()),
    )
