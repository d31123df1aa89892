"""DICOM files as bytes, built from the standard: multi-frame volumes, and what is no image."""

import struct
from collections.abc import Sequence

import numpy as np

ENHANCED_MR, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.2.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def element(group: int, number: int, kind: str, value: object = b"") -> bytes:
    """One with its value representation, in little endian; text, a number or bytes."""
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
    shared: bytes = b"",
) -> bytes:
    """An enhanced multi-frame file.

    Args:
      frames: (N, rows, columns) int16.
      positions: (N, 3) LPS mm of the first voxel of each.
      orientation: (6,) of all, or (N, 6).
      spacing: between rows, between columns.
      rescale: slope and intercept: of all, or of each frame.
      stacks: the stack that each frame is in.
      shared: more elements in the first item of the shared groups.
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
        element(0x28, 2, "US", 1),
        element(0x28, 4, "CS", "MONOCHROME2"),
        element(0x28, 8, "IS", count),
        element(0x28, 0x10, "US", rows),
        element(0x28, 0x11, "US", columns),
        element(0x28, 0x100, "US", 16),
        element(0x28, 0x101, "US", 16),
        element(0x28, 0x102, "US", 15),
        element(0x28, 0x103, "US", 1),
        element(0x5200, 0x9229, "SQ", common + shared),
        element(0x5200, 0x9230, "SQ", items),
        element(0x7FE0, 0x10, "OW", frames.astype("<i2").tobytes()),
    )
