"""The elements of a DICOM file (PS3.5, section 7), walked over before GDCM reads them.

GDCM asks for the memory that an element's length states before it looks for so many bytes, and goes
down into sequences as deep as they are. After this walk every length is one that the file has.
"""

import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from jaxmark.data.formats.safeguards import DAMAGED
from jaxmark.system.errors import InputError

_MAX_BYTES = 1 << 30
_MAX_INFLATED = 1 << 28
# Real files have hundreds, a few levels deep.
_MAX_ELEMENTS = 1_000_000
_MAX_DEPTH = 32

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_TRANSFER_SYNTAX, _PIXEL_DATA = (0x0002, 0x0010), (0x7FE0, 0x0010)
_BIG_ENDIAN, _DEFLATED = b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"
# Value representations with a length of two bytes, and those with one of four behind two others.
_SHORT = set(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = set(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


class _Holder(NamedTuple):
    """What elements, items or fragments are in: the file, a sequence, an item, packed voxels."""

    end: float  # infinite: a delimiter ends it
    kind: str  # "elements", "items" or "fragments"
    explicit: bool  # elements state their value representation


class _Element(NamedTuple):
    tag: tuple[int, int]
    kind: bytes  # value representation; empty where none is stated
    begin: int  # of the value
    length: int


def pixel_bytes(path: Path) -> float:
    """Length of a file's pixel data in bytes; infinite where it is compressed, or not there.

    Raises:
      InputError: an element is longer than what holds it, sequences are nested deeper than 32, the
        file has over a million elements, over 1 GiB, or inflates to over 256 MiB.
    """
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise InputError(path, f"has {size} bytes; a slice has {_MAX_BYTES} at most")
    content = path.read_bytes()
    try:
        begin, syntax = _meta_information(path, content)
        if syntax == _DEFLATED:
            content, begin = _inflated(path, content[begin:]), 0
        return _walk(path, content, begin, ">" if syntax == _BIG_ENDIAN else "<")
    except struct.error:
        raise InputError(path, f"{DAMAGED}: it ends within an element") from None


def _meta_information(path: Path, content: bytes) -> tuple[int, bytes]:
    """Where it ends, and the transfer syntax that it states."""
    position = 132 if content[128:132] == b"DICM" else 0
    syntax = b""
    while content[position : position + 2] == b"\2\0":
        element = _read(content, position, "<", explicit=True)
        position = element.begin + element.length
        _check_end(path, element, position, len(content))
        if element.tag == _TRANSFER_SYNTAX:
            syntax = content[element.begin : position].rstrip(b"\0 ")
    return position, syntax


def _inflated(path: Path, packed: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = stream.decompress(packed, _MAX_INFLATED)
    except zlib.error:
        raise InputError(path, DAMAGED) from None
    if stream.unconsumed_tail:
        raise InputError(path, f"inflates to more than {_MAX_INFLATED} bytes")
    return content


def _walk(path: Path, content: bytes, position: int, order: str) -> float:
    """The length of the pixel data; an iteration for each element, item and delimiter."""
    # Some files state another transfer syntax than they have; the first element shows it.
    explicit = content[position + 4 : position + 6] in _SHORT | _LONG
    holders = [_Holder(len(content), "elements", explicit)]
    found = math.inf
    # Some are filled up with zeros.
    filled = len(content.rstrip(b"\0"))
    for _ in range(_MAX_ELEMENTS):
        while position == holders[-1].end:
            holders.pop()
            if not holders:
                return found
        if len(holders) == 1 and position >= filled:
            return found
        holder = holders[-1]
        element = _read(content, position, order, holder.explicit and holder.kind == "elements")
        tag, _, position, length = element
        if tag == (_ITEM_END if holder.kind == "elements" else _SEQUENCE_END):
            if holder.end != math.inf:
                raise InputError(path, f"{DAMAGED}: something ends that has not begun")
            holders.pop()
            continue
        if holder.kind != "elements" and tag != _ITEM:
            raise InputError(path, f"{DAMAGED}: a sequence holds what is no item")
        if tag == _PIXEL_DATA and len(holders) == 1:
            found = math.inf if length == _UNDEFINED else length
        end = math.inf if length == _UNDEFINED else position + length
        if end != math.inf:
            _check_end(path, element, int(end), min(h.end for h in holders))
        inner = _inner(holder, element, content, order)
        if inner is not None:
            holders.append(_Holder(end, *inner))
            if len(holders) > _MAX_DEPTH:
                raise InputError(path, f"has sequences nested deeper than {_MAX_DEPTH}")
        elif end == math.inf:
            raise InputError(path, f"{DAMAGED}: {_name(tag)} states no length")
        else:
            position = int(end)
    raise InputError(path, f"has over {_MAX_ELEMENTS} elements")


def _read(content: bytes, position: int, order: str, explicit: bool) -> _Element:
    """The element, item or delimiter there; struct.error where the file ends before its value."""
    tag = struct.unpack_from(f"{order}2H", content, position)
    kind = content[position + 4 : position + 6] if explicit else b""
    if kind in _LONG:
        return _Element(
            tag, kind, position + 12, *struct.unpack_from(f"{order}I", content, position + 8)
        )
    if kind in _SHORT:
        return _Element(
            tag, kind, position + 8, *struct.unpack_from(f"{order}H", content, position + 6)
        )
    return _Element(tag, b"", position + 8, *struct.unpack_from(f"{order}I", content, position + 4))


def _inner(
    holder: _Holder, element: _Element, content: bytes, order: str
) -> tuple[str, bool] | None:
    """What the value holds, and whether its elements are explicit; None for what is just bytes."""
    if holder.kind != "elements":
        return None if holder.kind == "fragments" else ("elements", holder.explicit)
    tag, kind, begin, length = element
    if length == _UNDEFINED and tag == _PIXEL_DATA:
        return "fragments", False
    # What a program did not know it has kept as it was: implicit.
    if kind in (b"UN", b""):
        is_sequence = content[begin : begin + 4] == struct.pack(f"{order}2H", *_ITEM)
        nested = length == _UNDEFINED or (is_sequence and tag[0] != _PIXEL_DATA[0])
        return ("items", False) if nested else None
    return ("items", holder.explicit) if kind == b"SQ" else None


def _check_end(path: Path, element: _Element, end: int, limit: float) -> None:
    if end > limit:
        stated = f"{_name(element.tag)} states {element.length} bytes"
        raise InputError(path, f"{DAMAGED}: {stated}, more than there are")


def _name(tag: tuple[int, int]) -> str:
    return f"its element ({tag[0]:04x},{tag[1]:04x})"
