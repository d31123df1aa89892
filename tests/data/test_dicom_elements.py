"""Lengths of DICOM elements, which GDCM believes: the walk over them, and what it refuses."""

import math
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import refused
from test_scans import voxels, write_series

from jaxmark.data.formats import dicom_elements
from jaxmark.data.formats.dicom_elements import pixel_bytes
from jaxmark.data.scans import read_scan

PIXELS, PRIVATE, SEQUENCE = (0x7FE0, 0x10), (0x9, 0x1001), (0x8, 0x1115)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
UNDEFINED = 0xFFFFFFFF
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")


def element(tag, kind, value=b"", length=None, order="<"):
    """One with its value representation; none where `kind` is empty, as in items."""
    length = len(value) if length is None else length
    head = struct.pack(f"{order}2H", *tag) + kind
    if kind in LONG:
        return head + struct.pack(f"{order}HI", 0, length) + value
    return head + struct.pack(f"{order}{'H' if kind else 'I'}", length) + value


def item(value=b"", length=None, tag=ITEM, order="<"):
    return element(tag, b"", value, length, order)


def file(syntax, *elements):
    meta = element((2, 0x10), b"UI", syntax + b"\0" * (len(syntax) % 2))
    return bytes(128) + b"DICM" + meta + b"".join(elements)


EXPLICIT, IMPLICIT, BIG = (b"1.2.840.10008.1.2" + end for end in (b".1", b"", b".2"))
DEFLATED = EXPLICIT + b".99"
TEXT = element((8, 0x60), b"CS", b"CT")
VOXELS = element(PIXELS, b"OW", bytes(60))
DELIMITED = element(SEQUENCE, b"SQ", item(TEXT + item(tag=ITEM_END), UNDEFINED), UNDEFINED)
DELIMITED += item(tag=SEQUENCE_END)
UNKNOWN = element(PRIVATE, b"UN", item(element((8, 0x60), b"", b"CT")), UNDEFINED)
UNKNOWN += item(tag=SEQUENCE_END)
FRAGMENTS = element(PIXELS, b"OB", item() + item(b"\xff" * 12), UNDEFINED) + item(tag=SEQUENCE_END)


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (file(EXPLICIT, TEXT, VOXELS), 60),
        (file(EXPLICIT, TEXT, VOXELS) + bytes(500), 60),
        (file(EXPLICIT, TEXT, VOXELS) + b"\0", 60),
        (file(EXPLICIT, TEXT, element(SEQUENCE, b"SQ", item(TEXT) + item()), VOXELS), 60),
        (file(EXPLICIT, TEXT, DELIMITED, VOXELS), 60),
        (file(EXPLICIT, TEXT, UNKNOWN, VOXELS), 60),
        # An icon's are not the slice's.
        (file(EXPLICIT, element(SEQUENCE, b"SQ", item(FRAGMENTS)), VOXELS), 60),
        (file(EXPLICIT, TEXT, FRAGMENTS), math.inf),
        (file(EXPLICIT, TEXT), math.inf),
        (file(IMPLICIT, element((8, 0x60), b"", b"CT"), element(PIXELS, b"", bytes(40))), 40),
        (file(IMPLICIT, element(SEQUENCE, b"", item(element((8, 0x60), b"", b"CT")))), math.inf),
        (file(BIG, element((8, 0x60), b"CS", b"CT", order=">")), math.inf),
        (file(BIG, element(PIXELS, b"OW", bytes(6), order=">")), 6),
        # Stated otherwise than it is.
        (file(IMPLICIT, TEXT, VOXELS), 60),
        # No preamble.
        (TEXT + VOXELS, 60),
        (file(DEFLATED, zlib.compress(TEXT + VOXELS, wbits=-15)), 60),
    ],
)  # fmt: skip
def test_pixel_data_is_found(tmp_path, content, length):
    (tmp_path / "a.dcm").write_bytes(content)
    assert pixel_bytes(tmp_path / "a.dcm") == length


NESTED = (element(SEQUENCE, b"SQ", b"", UNDEFINED) + item(b"", UNDEFINED)) * 100_000


HOSTILE = {
    "2 GiB": (file(EXPLICIT, element(PRIVATE, b"UN", b"x", 0x7FFFFFF0)), "(0009,1001) states"),
    "4 GiB, implicit": (file(IMPLICIT, element(PRIVATE, b"", b"x", 0xFFFFFFF0)), "(0009,1001)"),
    "4 GiB of voxels": (file(EXPLICIT, element(PIXELS, b"OW", b"", 0xFFFFFFFE)), "(7fe0,0010)"),
    "big endian": (file(BIG, element(PRIVATE, b"UN", b"x", 1 << 30, ">")), "(0009,1001) states"),
    "in the meta information": (file(b"1" * 64)[:170], "(0002,0010) states 64 bytes"),
    "in an item": (
        file(EXPLICIT, element(SEQUENCE, b"SQ", item(element(PRIVATE, b"UN", b"", 1 << 30)))),
        "(0009,1001) states 1073741824 bytes, more than there are",
    ),
    "longer than its item": (
        file(EXPLICIT, element(SEQUENCE, b"SQ", item(element(PRIVATE, b"UN", b"", 60))), VOXELS),
        "(0009,1001) states 60 bytes",
    ),
    "an item longer than its sequence": (
        file(EXPLICIT, element(SEQUENCE, b"SQ", item(b"", 60)), VOXELS),
        "(fffe,e000) states 60 bytes",
    ),
    "a fragment": (file(EXPLICIT, element(PIXELS, b"OB", item(b"x", 1 << 30), UNDEFINED)), "fffe"),
    "a sequence of no items": (file(EXPLICIT, element(SEQUENCE, b"SQ", TEXT)), "what is no item"),
    "an end without a beginning": (file(EXPLICIT, TEXT, item(tag=ITEM_END)), "that has not begun"),
    "no length": (file(EXPLICIT, element((9, 9), b"UT", b"x", UNDEFINED)), "states no length"),
    "a sequence without an end": (file(EXPLICIT, DELIMITED[:-8]), "ends within an element"),
    "cut": (file(EXPLICIT, TEXT, VOXELS[:6]), "ends within an element"),
    "deep": (file(EXPLICIT, NESTED), "nested deeper than 32"),
    "many": (file(EXPLICIT, TEXT * 10_001), "over 10000 elements"),
    "a bomb": (file(DEFLATED, zlib.compress(bytes(3 << 20), wbits=-15)), "more than 1048576"),
    "deflated badly": (file(DEFLATED, b"\xff" * 9), "truncated or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(tmp_path, what, monkeypatch):
    monkeypatch.setattr(dicom_elements, "_MAX_ELEMENTS", 10_000)
    monkeypatch.setattr(dicom_elements, "_MAX_INFLATED", 1 << 20)
    content, problem = HOSTILE[what]
    (tmp_path / "a.dcm").write_bytes(content)
    refused(lambda: pixel_bytes(tmp_path / "a.dcm"), tmp_path / "a.dcm", problem)


def test_huge_files_are_not_read(tmp_path):
    with open(tmp_path / "a.dcm", "wb") as sparse:
        sparse.truncate(1 << 40)
    refused(lambda: pixel_bytes(tmp_path / "a.dcm"), "has 1099511627776 bytes")


def test_gdcm_never_asks_for_what_a_length_claims(tmp_path):
    """In a process that may have 256 MiB more than it has."""
    folder = write_series(tmp_path / "ct")
    # A text file that begins like DICOM is not opened: GDCM would be lost in it.
    (folder / "notes").write_bytes(element(PRIVATE, b"", b"x", 0x7FFFFFF0))
    np.testing.assert_array_equal(read_scan(folder).voxels, voxels())
    wrong = []
    for name in ("7.dcm", "5.dcm"):
        wrong.append(shutil.copytree(folder, tmp_path / name))
        content = (wrong[-1] / name).read_bytes()
        at = content.index(struct.pack("<2H", 0x20, 0x13))
        (wrong[-1] / name).write_bytes(
            content[:at] + element(PRIVATE, b"", b"x", 0x70000000) + content[at:]
        )
    code = """
import resource, sys
from pathlib import Path
from jaxmark.system.errors import InputError
from jaxmark.data.scans import read_scan
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for folder in sys.argv[1:]:
    try:
        print(read_scan(Path(folder)).voxels.shape)
    except InputError as error:
        print(error)
"""
    run = [sys.executable, "-c", code, str(folder), *map(str, wrong)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    good, *refusals = done.stdout.splitlines()
    assert good == "(7, 6, 5)" and len(refusals) == 2
    for path, line in zip(wrong, refusals, strict=True):
        assert line.startswith(f"{path}/{path.name}: truncated or damaged: its element (0009,1001)")
