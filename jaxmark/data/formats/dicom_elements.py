"""The elements of a DICOM file (PS3.5, section 7), walked over before GDCM reads them.

GDCM asks for the memory that an element's length states before it looks for so many bytes, and goes
down into sequences as deep as they are. After this walk every length is one that the file has.
"""

import dataclasses
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from jaxmark.data.formats.safeguards import DAMAGED, floats
from jaxmark.system.errors import InputError

_MAX_BYTES = 1 << 30
_MAX_INFLATED = 1 << 28
# Real files have hundreds, a few levels deep.
_MAX_ELEMENTS = 1_000_000
_MAX_DEPTH = 32
# What tells a file's series lies in front; headers of slices are seldom longer.
_HEAD_BYTES = 1 << 16
# Text of more than a few frames' worth is none of the values that are asked for.
_MAX_VALUE = 1 << 12

_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_TRANSFER_SYNTAX, _PIXEL_DATA = (0x0002, 0x0010), (0x7FE0, 0x0010)
_LAST = (0xFFFF, 0xFFFF)
_ITEM_HEAD = 8  # bytes
_BIG_ENDIAN, _DEFLATED = b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"
_RLE = b"1.2.840.10008.1.2.5"
# Value representations with a length of two bytes, and those with one of four behind two others.
_SHORT = set(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = set(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


Tag = tuple[int, int]


@dataclasses.dataclass(slots=True)
class DataSet:
    """Some elements of a file, or of an item of a sequence; of doubled ones the last."""

    values: dict[Tag, bytes] = dataclasses.field(default_factory=dict)
    sequences: dict[Tag, list["DataSet"]] = dataclasses.field(default_factory=dict)
    # The order of bytes in binary numbers, as `struct` has it.
    order: str = "<"

    def text(self, *tag: int) -> str:
        """A value in text, empty where there is none."""
        # UTF-8 or Latin: names are for messages.
        raw = self.values.get((tag[0], tag[1]), b"")
        try:
            return raw.decode("utf-8").strip("\0 ")
        except UnicodeDecodeError:
            return raw.decode("latin-1").strip("\0 ")

    def numbers(self, *tag: int) -> list[float]:
        """Numbers in text, of which some may be NaN."""
        return floats(self.text(*tag).replace("\\", " "))

    def whole(self, *tag: int) -> int:
        """A binary number of two bytes; -1 where there is none."""
        value = self.values.get((tag[0], tag[1]), b"")
        return int(struct.unpack(f"{self.order}H", value)[0]) if len(value) == 2 else -1

    def items(self, *tags: Tag) -> list["DataSet"]:
        """The items of a sequence in this data set, or of one in the first item of another."""
        found = [self]
        for tag in tags:
            found = found[0].sequences.get(tag, []) if found else []
        return found

    def first(self, *tags: Tag) -> "DataSet":
        """The first of `items`; without elements where there is none."""
        return next(iter(self.items(*tags)), DataSet())


class _Holder(NamedTuple):
    """What elements, items or fragments are in: the file, a sequence, an item, packed voxels."""

    end: float  # infinite: a delimiter ends it
    kind: str  # "elements", "items" or "fragments"
    explicit: bool  # elements state their value representation
    # Where elements or items that are wanted go; None: nowhere.
    wanted: "DataSet | list[DataSet] | None" = None


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
    return read_elements(path, frozenset())[1]


def read_elements(path: Path, wanted: frozenset[Tag]) -> tuple[DataSet, float]:
    """Those of the elements that are wanted, down into wanted sequences, and `pixel_bytes`."""
    return _read_elements(path, _content(path, path.stat().st_size), wanted, _LAST)


def read_head(path: Path, wanted: frozenset[Tag]) -> DataSet:
    """The wanted elements in front of the voxels; no more of a file is read than that needs.

    Raises:
      InputError: as `pixel_bytes`, of what was read.
    """
    size = path.stat().st_size
    if size > _HEAD_BYTES:
        try:
            return _read_elements(path, _content(path, _HEAD_BYTES), wanted, max(wanted), size)[0]
        except InputError:
            # A long sequence in front, or damage: the whole file tells.
            pass
    return _read_elements(path, _content(path, size), wanted, max(wanted))[0]


def _content(path: Path, length: int) -> bytes:
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise InputError(path, f"has {size} bytes; a slice has {_MAX_BYTES} at most")
    with open(path, "rb") as file:
        return file.read(length)


def _read_elements(
    path: Path, content: bytes, wanted: frozenset[Tag], last: Tag, size: int | None = None
) -> tuple[DataSet, float]:
    """As `read_elements`, up to the element `last` of the file; `size` where content is a part."""
    size = len(content) if size is None else size
    try:
        begin, syntax = _meta_information(path, content)
        if syntax == _DEFLATED:
            if size > len(content):
                raise InputError(path, "is compressed as a whole")
            content, begin = _inflated(path, content[begin:]), 0
            size = len(content)
        return _walk(path, content, begin, syntax, wanted, last, size)
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


def _walk(
    path: Path,
    content: bytes,
    position: int,
    syntax: bytes,
    wanted: frozenset[Tag],
    last: Tag,
    size: int,
) -> tuple[DataSet, float]:
    """See `_read_elements`; an iteration for each element, item and delimiter."""
    order = ">" if syntax == _BIG_ENDIAN else "<"
    # Some files state another transfer syntax than they have; the first element shows it.
    explicit = content[position + 4 : position + 6] in _SHORT | _LONG
    data_set = DataSet(order=order)
    holders = [_Holder(size, "elements", explicit, data_set)]
    found = math.inf
    # Where the first fragment begins, which is no frame but says where frames begin.
    table = -1
    # Some are filled up with zeros.
    filled = len(content.rstrip(b"\0")) if size == len(content) else size
    for _ in range(_MAX_ELEMENTS):
        while position == holders[-1].end:
            holders.pop()
            if not holders:
                return data_set, found
        if len(holders) == 1 and position >= filled:
            return data_set, found
        holder = holders[-1]
        element = _read(content, position, order, holder.explicit and holder.kind == "elements")
        tag, _, position, length = element
        if len(holders) == 1 and tag > last:
            return data_set, found
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
        if holder.kind == "fragments" and syntax == _RLE and position != table:
            _check_runs(path, content[position : position + length])
        inner = _inner(holder, element, content, order)
        if inner is not None and inner[0] == "fragments":
            table = position + _ITEM_HEAD
        if inner is not None:
            holders.append(_Holder(end, *inner, _place(holder, tag, wanted)))
            if len(holders) > _MAX_DEPTH:
                raise InputError(path, f"has sequences nested deeper than {_MAX_DEPTH}")
        elif end == math.inf:
            raise InputError(path, f"{DAMAGED}: {_name(tag)} states no length")
        else:
            if isinstance(holder.wanted, DataSet) and tag in wanted and length <= _MAX_VALUE:
                holder.wanted.values[tag] = content[position : int(end)]
                if int(end) > len(content):
                    raise struct.error
            position = int(end)
    raise InputError(path, f"has over {_MAX_ELEMENTS} elements")


def _check_runs(path: Path, fragment: bytes) -> None:
    """Refuses a frame in run lengths (PS3.5, annex G) whose head GDCM does not survive."""
    count, *begins = struct.unpack_from("<16I", fragment)
    begins = begins[:count]
    rising = all(a < b for a, b in zip(begins, [*begins[1:], len(fragment)], strict=False))
    if not (1 <= count <= 15 and begins[0] == 64 and rising):
        raise InputError(path, f"{DAMAGED}: a frame's run lengths are not where it states them")


def _place(holder: _Holder, tag: Tag, wanted: frozenset[Tag]) -> "DataSet | list[DataSet] | None":
    """Where what a sequence or item holds goes."""
    if isinstance(holder.wanted, DataSet) and tag in wanted:
        return holder.wanted.sequences.setdefault(tag, [])
    if isinstance(holder.wanted, list):
        holder.wanted.append(DataSet())
        return holder.wanted[-1]
    return None


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
