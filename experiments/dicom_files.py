"""DICOM files as bytes, built from the standard: multi-frame volumes, slices, reports."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

STORAGE = "1.2.840.10008.5.1.4.1.1."
MR, ENHANCED_MR, ENHANCED_CT = f"{STORAGE}4", f"{STORAGE}4.1", f"{STORAGE}2.1"
EXPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def element(group: int, number: int, kind: str, value: Any = b"") -> bytes:
    """One data element with its value representation, little endian; text, a number or bytes."""
    if kind == "SQ":
        items = value if isinstance(value, (list, tuple)) else [value]
        raw = b"".join(struct.pack("<2HI", 0xFFFE, 0xE000, len(i)) + i for i in items)
    elif kind in ("US", "UL"):
        raw = struct.pack("<H" if kind == "US" else "<I", value)
    else:
        raw = value if isinstance(value, bytes) else str(value).encode()
        raw += (b"\0" if kind in ("UI", "OW") else b" ") * (len(raw) % 2)
    head = struct.pack("<2H", group, number) + kind.encode()
    if kind.encode() in _LONG:
        return head + struct.pack("<HI", 0, len(raw)) + raw
    return head + struct.pack("<H", len(raw)) + raw


def part10(sop_class: str, *elements: bytes, syntax: str = EXPLICIT) -> bytes:
    """A file of these elements, which must be in order."""
    meta = element(2, 2, "UI", sop_class) + element(2, 0x10, "UI", syntax)
    length = struct.pack("<2H2sHI", 2, 0, b"UL", 4, len(meta))
    return bytes(128) + b"DICM" + length + meta + b"".join(elements)


def numbers(values: Sequence[float] | np.ndarray) -> str:
    return "\\".join(f"{v:.10g}" for v in np.ravel(values))


def enhanced(
    frames: np.ndarray,
    positions: np.ndarray,
    orientation: np.ndarray,
    spacing: Sequence[float],
    *,
    sop_class: str = ENHANCED_MR,
    uid: str = "1.2.826.7",
    rescale: Sequence[tuple[float, float]] = ((1, 0),),
    stacks: Sequence[str] = (),
    description: str = "",
    extra: bytes = b"",
) -> bytes:
    """An enhanced multi-frame file.

    Args:
      frames: (N, rows, columns) int16.
      positions: (N, 3) LPS mm of the first voxel of each frame.
      orientation: (6,) for all frames, or (N, 6).
      spacing: between rows, between columns.
      rescale: slope and intercept, for all frames or for each.
      stacks: the stack of each frame.
      extra: elements between the series and the voxels.
    """
    count, rows, columns = frames.shape

    def scaled(slope: float, intercept: float) -> bytes:
        pair = element(0x28, 0x1052, "DS", intercept) + element(0x28, 0x1053, "DS", slope)
        return element(0x28, 0x9145, "SQ", pair + element(0x28, 0x1054, "LO", "US"))

    def turned(six: np.ndarray) -> bytes:
        return element(0x20, 0x9116, "SQ", element(0x20, 0x37, "DS", numbers(six)))

    common = turned(orientation) if np.ndim(orientation) == 1 else b""
    common += element(0x28, 0x9110, "SQ", element(0x28, 0x30, "DS", numbers(spacing)))
    common += scaled(*rescale[0]) if len(rescale) == 1 else b""
    items = []
    for n in range(count):
        content = element(0x20, 0x9056, "SH", stacks[n] if stacks else "1")
        item = element(0x20, 0x9111, "SQ", content)
        item += element(0x20, 0x9113, "SQ", element(0x20, 0x32, "DS", numbers(positions[n])))
        item += turned(orientation[n]) if np.ndim(orientation) == 2 else b""
        item += scaled(*rescale[n]) if len(rescale) > 1 else b""
        items.append(item)
    return part10(
        sop_class,
        element(8, 0x16, "UI", sop_class),
        element(8, 0x18, "UI", f"{uid}.1"),
        element(8, 0x60, "CS", "MR"),
        element(8, 0x103E, "LO", description),
        element(0x20, 0xD, "UI", "1.2.826.5"),
        element(0x20, 0xE, "UI", uid),
        extra,
        element(0x28, 2, "US", 1),
        element(0x28, 4, "CS", "MONOCHROME2"),
        element(0x28, 8, "IS", count),
        *_pixels(rows, columns),
        element(0x5200, 0x9229, "SQ", common),
        element(0x5200, 0x9230, "SQ", items),
        element(0x7FE0, 0x10, "OW", frames.astype("<i2").tobytes()),
    )


def _pixels(rows: int, columns: int) -> list[bytes]:
    """Elements with the size of a frame of int16."""
    sizes = {0x10: rows, 0x11: columns, 0x100: 16, 0x101: 16, 0x102: 15, 0x103: 1}
    return [element(0x28, number, "US", size) for number, size in sizes.items()]


def packed(content: bytes, frames: np.ndarray) -> bytes:
    """The file with these frames (N, rows, columns) packed (RLE) in place of its own.

    If there are fewer than its header says, the others are missing.
    """
    at = content.index(struct.pack("<2H2s", 0x7FE0, 0x10, b"OW"))
    parts = [b""]
    for frame in frames:
        planes = frame.astype("<i2").view("u1").reshape(-1, 2)[:, ::-1].T
        # Runs as they are, in pieces of 128.
        runs = [
            b"".join(
                bytes([len(plane[i : i + 128]) - 1]) + plane[i : i + 128].tobytes()
                for i in range(0, len(plane), 128)
            )
            for plane in planes
        ]
        first, second = (run + b"\0" * (len(run) % 2) for run in runs)
        parts.append(struct.pack("<16I", 2, 64, 64 + len(first), *[0] * 13) + first + second)
    items = b"".join(struct.pack("<2HI", 0xFFFE, 0xE000, len(part)) + part for part in parts)
    head = struct.pack("<2H2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF)
    end = struct.pack("<2HI", 0xFFFE, 0xE0DD, 0)
    syntax = element(2, 0x10, "UI", EXPLICIT), element(2, 0x10, "UI", RLE)
    assert len(syntax[0]) == len(syntax[1])
    return content[:at].replace(*syntax) + head + items + end


def single(
    frame: np.ndarray | None,
    position: Sequence[float] | None = None,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    spacing: Sequence[float] = (1, 1),
    *,
    uid: str = "1.2.826.8",
    sop_class: str = MR,
    description: str = "",
    number: str = "",
    image_type: str = "ORIGINAL\\PRIMARY\\M",
    modality: str = "MR",
) -> bytes:
    """A file of one slice, int16 (rows, columns); None gives a file without an image."""
    place = []
    if position is not None:
        place = [
            element(0x20, 0x32, "DS", numbers(position)),
            element(0x20, 0x37, "DS", numbers(orientation)),
        ]
    image = []
    if frame is not None:
        image = [
            element(0x28, 2, "US", 1),
            element(0x28, 4, "CS", "MONOCHROME2"),
            element(0x28, 0x10, "US", frame.shape[0]),
            element(0x28, 0x11, "US", frame.shape[1]),
            element(0x28, 0x30, "DS", numbers(spacing)),
            *_pixels(*frame.shape)[2:],
            element(0x7FE0, 0x10, "OW", frame.astype("<i2").tobytes()),
        ]
    return part10(
        sop_class,
        element(8, 8, "CS", image_type),
        element(8, 0x16, "UI", sop_class),
        element(8, 0x18, "UI", f"{uid}.{abs(hash(str(position))) % 10**9}"),
        element(8, 0x60, "CS", modality),
        element(8, 0x103E, "LO", description),
        element(0x20, 0xD, "UI", "1.2.826.5"),
        element(0x20, 0xE, "UI", uid),
        element(0x20, 0x11, "IS", number),
        *place,
        *image,
    )
