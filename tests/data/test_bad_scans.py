"""Scans that are malformed or hostile: one line says what is wrong, and nothing else is said."""

import gzip
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import refused
from test_scans import image, itk_write, replace, voxels, write_series

from jaxmark.data.scans import EXTENSIONS, find_scans, find_scans_below, read_scan, write_scan

NAN, INF = float("nan"), float("inf")
VOXELS = np.arange(120, dtype="<i2").reshape((6, 5, 4), order="F")

# Builders of files, from the formats' definitions

NIFTI_FIELDS = {
    "sizeof_hdr": ("i", 0),
    "dim": ("8h", 40),
    "datatype": ("h", 70),
    "bitpix": ("h", 72),
    "pixdim": ("8f", 76),
    "vox_offset": ("f", 108),
    "scl_slope": ("f", 112),
    "scl_inter": ("f", 116),
    "xyzt_units": ("B", 123),
    "qform_code": ("h", 252),
    "sform_code": ("h", 254),
    "quatern": ("3f", 256),
    "qoffset": ("3f", 268),
    "srow": ("12f", 280),
    "magic": ("4s", 344),
}
NIFTI_TYPES = {
    "u1": 2,
    "i2": 4,
    "i4": 8,
    "f4": 16,
    "f8": 64,
    "i1": 256,
    "u2": 512,
    "u4": 768,
    "i8": 1024,
    "u8": 1280,
}


def nifti(array: np.ndarray = VOXELS, order: str = "<", pad: int = 4, **fields: object) -> bytes:
    """A NIfTI-1 file; fields are numbers, or tuples of them."""
    values: dict[str, object] = {
        "sizeof_hdr": 348,
        "dim": (3, *array.shape, 1, 1, 1, 1),
        "datatype": NIFTI_TYPES[array.dtype.str[1:]],
        "bitpix": array.itemsize * 8,
        "pixdim": (1, 1, 1, 1, 0, 0, 0, 0),
        "vox_offset": 348 + pad,
        "xyzt_units": 2,
        "sform_code": 1,
        "srow": (-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0),
        "magic": b"n+1\0",
    } | fields
    header = bytearray(348)
    for name, value in values.items():
        code, offset = NIFTI_FIELDS[name]
        struct.pack_into(order + code, header, offset, *np.atleast_1d(value).tolist())
    data = array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    return bytes(header) + bytes(pad) + data


def nifti_2() -> bytes:
    header = bytearray(540)
    struct.pack_into("<i8s2h8q", header, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16, 3, 6, 5, 4, 1, 1, 1, 1)
    struct.pack_into("<8dq", header, 104, 1, 1, 1, 1, 0, 0, 0, 0, 544)
    return bytes(header) + bytes(4) + VOXELS.tobytes(order="F")


def metaimage(
    array: np.ndarray = VOXELS, data: bytes | None = None, last: str = "LOCAL", **fields: object
) -> bytes:
    """A MetaImage file; a field of None is left out."""
    values: dict[str, object] = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1 1 1",
        "DimSize": " ".join(map(str, array.shape)),
        "ElementType": "MET_SHORT",
    } | fields
    lines = [f"{key} = {value}\n" for key, value in values.items() if value is not None]
    data = array.tobytes(order="F") if data is None else data
    return "".join([*lines, f"ElementDataFile = {last}\n"]).encode() + data


def nrrd(data: bytes | None = None, **fields: object) -> bytes:
    """An NRRD file; "_" in names stands for a space, a field of None is left out."""
    values: dict[str, object] = {
        "type": "short",
        "dimension": 3,
        "space": "left-posterior-superior",
        "sizes": "6 5 4",
        "space_directions": "(1,0,0) (0,1,0) (0,0,1)",
        "endian": "little",
        "encoding": "raw",
        "space_origin": "(0,0,0)",
    } | fields
    lines = [f"{k.replace('_', ' ')}: {v}\n" for k, v in values.items() if v is not None]
    data = VOXELS.tobytes(order="F") if data is None else data
    return "".join(["NRRD0004\n", *lines, "\n"]).encode() + data


def png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s2I", 13, b"IHDR", 64, 64) + bytes(600)


def bomb(header: bytes) -> bytes:
    """What a header says, then 160 MiB of zeros in 160 KiB."""
    packer = zlib.compressobj(level=1, wbits=31)
    parts = [packer.compress(header)]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(160)]
    return b"".join([*parts, packer.flush()])


def gz(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


RAW = VOXELS.tobytes(order="F")
PACKED = zlib.compress(RAW)
HUGE = (3, 30000, 30000, 30000, 1, 1, 1, 1)
LARGE = (3, 1200, 1200, 1200, 1, 1, 1, 1)
SHEAR = (-1, 0.5, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0)
UNREADABLE = "cannot be read: truncated, damaged, or not the format"


def with_value(value: float, dtype: str = "<f4") -> np.ndarray:
    array = VOXELS.astype(dtype)
    array[3, 4, 2] = value
    return array


# What it is -> file name, content, what is said of it.
FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    # Not the format
    "nothing in it": ("a.nii", lambda: b"", UNREADABLE),
    "nothing in a gzip file": ("a.nii.gz", lambda: b"", UNREADABLE),
    "an empty gzip stream": ("a.nii.gz", lambda: gz(b""), UNREADABLE),
    "an empty MetaImage": ("a.mha", lambda: b"", UNREADABLE),
    "an empty NRRD": ("a.nrrd", lambda: b"", UNREADABLE),
    "a picture named .nii.gz": ("a.nii.gz", png, UNREADABLE),
    "a picture named .mha": ("a.mha", png, UNREADABLE),
    "text named .nii.gz": ("a.nii.gz", lambda: b"see my mail\n" * 99, UNREADABLE),
    "NRRD named .nii": ("a.nii", nrrd, UNREADABLE),
    "NIfTI named .nrrd": ("a.nrrd", nifti, UNREADABLE),
    "NIfTI named .nii.gz without gzip": ("a.nii.gz", nifti, UNREADABLE),
    "gzip named .nii": ("a.nii", lambda: gz(nifti()), UNREADABLE),
    "magic of header and image apart": ("a.nii", lambda: nifti(magic=b"ni1\0"), UNREADABLE),
    "no magic, as in Analyze": ("a.nii", lambda: nifti(magic=bytes(4)), UNREADABLE),
    "NIfTI-2": ("a.nii", nifti_2, "NIfTI-2"),
    "NIfTI-2 with gzip": ("a.nii.gz", lambda: gz(nifti_2()), "NIfTI-2"),
    "NRRD of the future": ("a.nrrd", lambda: nrrd().replace(b"0004", b"0009"), UNREADABLE),
    # Cut off
    "cut in the header": ("a.nii", lambda: nifti()[:200], UNREADABLE),
    "cut after the header": ("a.nii", lambda: nifti()[:352], "truncated"),
    "cut in the voxels": ("a.nii", lambda: nifti()[:-1], "truncated"),
    "gzip cut in its header": ("a.nii.gz", lambda: gz(nifti())[:5], UNREADABLE),
    "gzip cut in the voxels": ("a.nii.gz", lambda: gz(nifti())[:-40], "truncated"),
    "gzip cut in its trailer": ("a.nii.gz", lambda: gz(nifti())[:-3], "truncated"),
    "gzip without its trailer": ("a.nii.gz", lambda: gz(nifti())[:-8], "truncated"),
    "gzip with another checksum": ("a.nii.gz", lambda: gz(nifti())[:-8] + bytes(8), "damaged"),
    "gzip of a cut file": ("a.nii.gz", lambda: gz(nifti()[:-1]), "truncated"),
    "gzip with rubbish behind": ("a.nii.gz", lambda: gz(nifti()) + b"rubbish", "damaged"),
    "MetaImage header cut": ("a.mha", lambda: metaimage()[:150], UNREADABLE),
    "MetaImage cut": ("a.mha", lambda: metaimage()[:-1], "truncated"),
    "NRRD header cut": ("a.nrrd", lambda: nrrd()[:60], "a.nrrd"),
    "NRRD cut": ("a.nrrd", lambda: nrrd()[:-1], "truncated"),
    "NRRD gzip cut": ("a.nrrd", lambda: nrrd(gz(RAW)[:-3], encoding="gzip"), "truncated"),
    "NRRD text cut": ("a.nrrd", lambda: nrrd(b"1 2 3 " * 30, encoding="text"), "truncated"),
    "NRRD text too short": ("a.nrrd", lambda: nrrd(b"1 2 3", encoding="text"), "truncated"),
    # Axes
    "an axis of zero": ("a.nii", lambda: nifti(dim=(3, 6, 0, 4, 1, 1, 1, 1)), "(6, 0, 4) voxels"),
    "a negative axis": ("a.nii", lambda: nifti(dim=(3, 6, -5, 4, 1, 1, 1, 1)), "(6, -5, 4) voxels"),
    "no axes": ("a.nii", lambda: nifti(dim=(0, 6, 5, 4, 1, 1, 1, 1)), "dim[0] = 0"),
    "nine axes": ("a.nii", lambda: nifti(dim=(9, 6, 5, 4, 1, 1, 1, 1)), "dim[0] = 9"),
    "a flat image": ("a.nii", lambda: nifti(dim=(2, 12, 10, 1, 1, 1, 1, 1)), "2 dimensions"),
    "one slice": ("a.nii", lambda: nifti(dim=(3, 12, 10, 1, 1, 1, 1, 1)), "(12, 10, 1) voxels"),
    "two volumes": ("a.nii", lambda: nifti(dim=(4, 6, 5, 2, 2, 1, 1, 1)), "4 dimensions"),
    "vectors in NIfTI": ("a.nii", lambda: nifti(dim=(5, 6, 5, 2, 1, 2, 1, 1)), "5 dimensions"),
    "MetaImage axis of zero": ("a.mha", lambda: metaimage(DimSize="6 5 0"), "(6, 5, 0) voxels"),
    "MetaImage negative axis": ("a.mha", lambda: metaimage(DimSize="6 5 -4"), "(6, 5, -4) voxels"),
    "MetaImage two of three axes": ("a.mha", lambda: metaimage(DimSize="6 5"), "DimSize = 6 5,"),
    "MetaImage axis of text": ("a.mha", lambda: metaimage(DimSize="6 5 x"), "DimSize = 6 5 x"),
    "MetaImage without axes": ("a.mha", lambda: metaimage(DimSize=None), "DimSize = nothing"),
    # ITK ends the process at these two.
    "MetaImage of -1 dimensions": ("a.mha", lambda: metaimage(NDims=-1), "NDims = -1"),
    "MetaImage of 1e6 dimensions": ("a.mha", lambda: metaimage(NDims=1000000), "NDims = 1000000"),
    "MetaImage dimensions twice": (
        "a.mha",
        lambda: b"NDims = 1000000\n" + metaimage(),
        "NDims twice",
    ),
    "NRRD axis of zero": ("a.nrrd", lambda: nrrd(sizes="6 5 0"), UNREADABLE),
    "NRRD negative axis": ("a.nrrd", lambda: nrrd(sizes="6 5 -4"), UNREADABLE),
    "NRRD flat": (
        "a.nrrd",
        lambda: nrrd(
            dimension=2,
            sizes="12 10",
            space=None,
            space_directions=None,
            space_origin=None,
            spacings="1 1",
        ),
        "spacing for three axes",
    ),
    # Kinds of voxels
    "NIfTI colours": ("a.nii", lambda: nifti(datatype=128, bitpix=24), "type 128"),
    "NIfTI colours with alpha": ("a.nii", lambda: nifti(datatype=2304, bitpix=32), "type 2304"),
    "NIfTI complex": ("a.nii", lambda: nifti(datatype=32, bitpix=64), "type 32"),
    "NIfTI float128": ("a.nii", lambda: nifti(datatype=1536, bitpix=128), "type 1536"),
    "NIfTI bits": ("a.nii", lambda: nifti(datatype=1, bitpix=1), "type 1 "),
    "NIfTI unknown type": ("a.nii", lambda: nifti(datatype=999), "type 999"),
    "MetaImage vectors": (
        "a.mha",
        lambda: metaimage(ElementNumberOfChannels=3, DimSize="5 4 4"),
        "3 numbers a voxel",
    ),
    "MetaImage unknown type": ("a.mha", lambda: metaimage(ElementType="MET_OTHER"), "MET_OTHER"),
    "MetaImage without a type": ("a.mha", lambda: metaimage(ElementType=None), "ElementType"),
    "MetaImage in text": ("a.mha", lambda: metaimage(BinaryData="False"), "BinaryData"),
    "NRRD unknown type": ("a.nrrd", lambda: nrrd(type="quark"), UNREADABLE),
    "NRRD unknown encoding": ("a.nrrd", lambda: nrrd(encoding="zip"), "a.nrrd"),
    # ITK writes these beyond the end of its own error message.
    "NRRD long unknown field": ("a.nrrd", lambda: nrrd(**{"k" * 3000: 1}), "more than 512 bytes"),
    "NRRD long value": ("a.nrrd", lambda: nrrd(type="x" * 3000), "more than 512 bytes: type"),
    "NRRD long line": ("a.nrrd", lambda: nrrd().replace(b"endian", b"x" * 3000), "512 bytes"),
    # Values
    "NaN": (
        "a.nii",
        lambda: nifti(with_value(NAN)),
        "1 voxels are NaN or infinite, the first at (3, 4, 2)",
    ),
    "infinity": ("a.nii.gz", lambda: gz(nifti(with_value(INF))), "1 voxels are NaN or infinite"),
    "beyond float32": ("a.nii", lambda: nifti(with_value(1e300, "<f8")), "NaN or infinite"),
    "constant": ("a.nii", lambda: nifti(VOXELS * 0 + 7), "all voxels are 7"),
    "uint64 that float32 cannot tell apart": (
        "a.nii",
        lambda: nifti(VOXELS.astype("<u8") + 2**63),
        "all voxels are 9.22337e+18",
    ),
    "scaled to a constant": (
        "a.nii",
        lambda: nifti(scl_slope=1e-30, scl_inter=5),
        "all voxels are 5",
    ),
    "scaled to infinity": (
        "a.nii",
        lambda: nifti(with_value(1e30), scl_slope=1e30),
        "NaN or infinite",
    ),
    "infinite slope": ("a.nii", lambda: nifti(scl_slope=INF), "scl_slope = inf"),
    "slope without an intercept": (
        "a.nii",
        lambda: nifti(scl_slope=2, scl_inter=NAN),
        "scl_inter = nan",
    ),
    # Spacing
    "spacing 0": ("a.nii", lambda: nifti(pixdim=(1, 0, 1, 1, 0, 0, 0, 0)), "spacing of (0, 1, 1)"),
    "spacing -1": (
        "a.nii",
        lambda: nifti(pixdim=(1, -1, 1, 1, 0, 0, 0, 0)),
        "spacing of (-1, 1, 1)",
    ),
    "spacing NaN": ("a.nii", lambda: nifti(pixdim=(1, NAN, 1, 1, 0, 0, 0, 0)), "spacing of (nan"),
    "spacing infinite": (
        "a.nii",
        lambda: nifti(pixdim=(1, INF, 1, 1, 0, 0, 0, 0)),
        "spacing of (inf",
    ),
    "spacing 1e9": ("a.nii", lambda: nifti(pixdim=(1, 1e9, 1, 1, 0, 0, 0, 0)), "spacing of (1e+09"),
    "spacing 1e-9": (
        "a.nii",
        lambda: nifti(pixdim=(1, 1e-9, 1, 1, 0, 0, 0, 0)),
        "spacing of (1e-09",
    ),
    "spacing of a metre": (
        "a.nii",
        lambda: nifti(xyzt_units=1),
        "spacing of (1000, 1000, 1000) mm",
    ),
    "spacing and sform at odds": (
        "a.nii",
        lambda: nifti(srow=(-3, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0)),
        "[1.0, 1.0, 1.0] as pixdim, but of [3.0, 1.0, 1.0] in its sform",
    ),
    "longer than ten metres": (
        "a.nii",
        lambda: nifti(
            np.resize(VOXELS, (4, 4, 150)),
            pixdim=(1, 1, 1, 90, 0, 0, 0, 0),
            srow=(-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 90, 0),
        ),
        "extends over 13500 mm",
    ),
    "MetaImage spacing 0": (
        "a.mha",
        lambda: metaimage(ElementSpacing="0 1 1"),
        "spacing of (0, 1, 1)",
    ),
    "MetaImage spacing -1": (
        "a.mha",
        lambda: metaimage(ElementSpacing="-1 1 1"),
        "spacing of (-1, 1, 1)",
    ),
    "MetaImage spacing inf": (
        "a.mha",
        lambda: metaimage(ElementSpacing="inf 1 1"),
        "ElementSpacing = inf",
    ),
    "MetaImage spacing text": (
        "a.mha",
        lambda: metaimage(ElementSpacing="1,5mm 1 1"),
        "ElementSpacing",
    ),
    "MetaImage no spacing": ("a.mha", lambda: metaimage(ElementSpacing=None), "ElementSpacing"),
    "NRRD spacing 1e300": (
        "a.nrrd",
        lambda: nrrd(space_directions="(1e300,0,0) (0,1,0) (0,0,1)"),
        "spacing of (",
    ),
    "NRRD without a direction": (
        "a.nrrd",
        lambda: nrrd(space_directions="(1,0,0) (0,1,0) none"),
        "spacing for three axes",
    ),
    "NRRD without spacing": (
        "a.nrrd",
        lambda: nrrd(space_directions=None),
        "spacing for three axes",
    ),
    "NRRD spacing -1": (
        "a.nrrd",
        lambda: nrrd(space=None, space_directions=None, space_origin=None, spacings="-1 1 1"),
        "spacing of (-1, 1, 1)",
    ),
    "NRRD in centimetres": ("a.nrrd", lambda: nrrd(space_units='"cm" "cm" "cm"'), "units"),
    "MetaImage axes of 1e300": (
        "a.mha",
        lambda: metaimage(TransformMatrix="1e300 0 0 0 1 0 0 0 1"),
        "spacing of (inf",
    ),
    # Directions and origin
    "sheared sform": ("a.nii", lambda: nifti(srow=SHEAR), "not at right angles"),
    "singular sform": ("a.nii", lambda: nifti(srow=(0,) * 12), "a.nii"),
    "sform NaN": ("a.nii", lambda: nifti(srow=(NAN,) * 12), "sform that is not finite"),
    "sform origin NaN": (
        "a.nii",
        lambda: nifti(srow=(-1, 0, 0, NAN, 0, -1, 0, 0, 0, 0, 1, 0)),
        "origin (nan",
    ),
    "sform origin 1e9": (
        "a.nii",
        lambda: nifti(srow=(-1, 0, 0, 1e9, 0, -1, 0, 0, 0, 0, 1, 0)),
        "origin (1e+09",
    ),
    "qform NaN": ("a.nii", lambda: nifti(sform_code=0, qform_code=1, quatern=(NAN, 0, 0)), "qform"),
    "qform too long": (
        "a.nii",
        lambda: nifti(sform_code=0, qform_code=1, quatern=(5, 0, 0)),
        "qform",
    ),
    "qform origin NaN": (
        "a.nii",
        lambda: nifti(sform_code=0, qform_code=1, qoffset=(NAN, 0, 0)),
        "origin (nan",
    ),
    "MetaImage origin NaN": ("a.mha", lambda: metaimage(Offset="nan 0 0"), "Offset = nan"),
    "MetaImage origin 1e8": ("a.mha", lambda: metaimage(Offset="1e8 0 0"), "origin (1e+08"),
    "MetaImage axes NaN": (
        "a.mha",
        lambda: metaimage(TransformMatrix="nan 0 0 0 1 0 0 0 1"),
        "TransformMatrix = nan",
    ),
    "MetaImage axes incomplete": (
        "a.mha",
        lambda: metaimage(TransformMatrix="1 0 0 0 1 0 0 0"),
        "not 9 finite numbers",
    ),
    "NRRD origin NaN": ("a.nrrd", lambda: nrrd(space_origin="(nan,nan,nan)"), "origin (nan"),
    "NRRD origin 1e8": ("a.nrrd", lambda: nrrd(space_origin="(1e8,0,0)"), "origin (1e+08"),
    # Where the voxels are
    "vox_offset 0": ("a.nii", lambda: nifti(vox_offset=0), "vox_offset = 0"),
    "vox_offset negative": ("a.nii", lambda: nifti(vox_offset=-352), "vox_offset = -352"),
    "vox_offset NaN": ("a.nii", lambda: nifti(vox_offset=NAN), "vox_offset = nan"),
    "MetaImage header skipped": ("a.mha", lambda: metaimage(HeaderSize=10), "HeaderSize = 10"),
    "MetaImage voxels in itself": ("a.mha", lambda: metaimage(last="a.mha"), "a.mha is missing"),
    "MetaImage voxels nowhere": ("a.mha", lambda: metaimage(last=""), "is missing"),
    "MetaImage list of files": ("a.mhd", lambda: metaimage(last="LIST"), "LIST is missing"),
    "MetaImage pattern": ("a.mhd", lambda: metaimage(last="a%d.raw 1 4 1"), "is missing"),
    "MetaImage upwards": ("a.mhd", lambda: metaimage(last="../a.raw"), "not in the same folder"),
    "MetaImage elsewhere": (
        "a.mhd",
        lambda: metaimage(last="/etc/passwd"),
        "not in the same folder",
    ),
    "MetaImage on Windows": (
        "a.mhd",
        lambda: metaimage(last="..\\a.raw"),
        "not in the same folder",
    ),
    "MetaImage NUL in a name": ("a.mhd", lambda: metaimage(last="a\0.raw"), "missing"),
    "MetaImage long name": ("a.mhd", lambda: metaimage(last="a" * 5000), "cannot be read"),
    "MetaImage zlib damaged": (
        "a.mha",
        lambda: metaimage(data=PACKED[:-2] + b"xx", CompressedData="True"),
        "damaged",
    ),
    "NRRD upwards": ("a.nrrd", lambda: nrrd(b"", data_file="../a.raw"), "not in the same folder"),
    "NRRD elsewhere": (
        "a.nrrd",
        lambda: nrrd(b"", data_file="/etc/passwd"),
        "not in the same folder",
    ),
    "NRRD voxels missing": ("a.nrrd", lambda: nrrd(b"", data_file="a.raw"), "a.raw is missing"),
    "NRRD list of files": ("a.nrrd", lambda: nrrd(b"", data_file="LIST"), "LIST is missing"),
}

# Headers that promise more than there is: to be refused before memory is asked for.
GREEDY: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "30000 voxels a side": ("a.nii", lambda: nifti(dim=HUGE), "more than 2147483648"),
    "30000 with gzip": ("a.nii.gz", lambda: gz(nifti(dim=HUGE)), "more than 2147483648"),
    "1200 voxels a side": ("a.nii", lambda: nifti(dim=LARGE), "truncated"),
    "1200 with gzip": ("a.nii.gz", lambda: gz(nifti(dim=LARGE)), "truncated"),
    "MetaImage 30000": ("a.mha", lambda: metaimage(DimSize="30000 30000 30000"), "more than"),
    "MetaImage 1200": ("a.mha", lambda: metaimage(DimSize="1200 1200 1200"), "truncated"),
    "MetaImage 1e30": ("a.mha", lambda: metaimage(DimSize="6 5 1e30"), "more than"),
    "MetaImage zlib 1200": (
        "a.mha",
        lambda: metaimage(data=PACKED, CompressedData="True", DimSize="1200 1200 1200"),
        "truncated",
    ),
    "NRRD 30000": ("a.nrrd", lambda: nrrd(sizes="30000 30000 30000"), "more than"),
    "NRRD 1200": ("a.nrrd", lambda: nrrd(sizes="1200 1200 1200"), "truncated"),
    "NRRD gzip 1200": (
        "a.nrrd",
        lambda: nrrd(gz(RAW), encoding="gzip", sizes="1200 1200 1200"),
        "truncated",
    ),
    "NRRD text 1200": (
        "a.nrrd",
        lambda: nrrd(encoding="text", sizes="1200 1200 1200"),
        "truncated",
    ),
    "NRRD skipping 1e12 bytes": ("a.nrrd", lambda: nrrd(byte_skip=10**12), "cannot be read"),
    "huge vox_offset": ("a.nii", lambda: nifti(vox_offset=1e9), "vox_offset = 1e+09"),
    "huge vox_offset with gzip": (
        "a.nii.gz",
        lambda: gz(nifti(vox_offset=3e9)),
        "vox_offset = 3e+09",
    ),
    "huge extension": (
        "a.nii",
        lambda: nifti(pad=0, vox_offset=1e7)[:348] + struct.pack("<4B2i", 1, 0, 0, 0, 1 << 30, 6),
        "truncated",
    ),
    "bomb": ("a.nii.gz", lambda: bomb(nifti()), "more voxels than its header states"),
    "bomb in the header": ("a.nii.gz", lambda: bomb(b""), UNREADABLE),
    "MetaImage bomb": (
        "a.mha",
        lambda: metaimage(data=bomb(RAW), CompressedData="True"),
        "more voxels than its header states",
    ),
    "NRRD bomb": (
        "a.nrrd",
        lambda: nrrd(bomb(RAW), encoding="gzip"),
        "more voxels than its header states",
    ),
    "MetaImage header of 100 MB": ("a.mha", lambda: b"Comment = " + b"x" * 10**8, UNREADABLE),
    "MetaImage header of many lines": ("a.mha", lambda: b"\n" * 10**7, UNREADABLE),
    "NRRD header of 100 MB": (
        "a.nrrd",
        lambda: b"NRRD0004\n" + b"x" * 10**8,
        "more than 512 bytes",
    ),
    "NRRD header of many lines": ("a.nrrd", lambda: b"NRRD0004\n" + b"#\n" * 10**7, UNREADABLE),
}


@pytest.fixture(autouse=True)
def silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What is wrong is said once: libraries say nothing of their own."""
    yield
    assert capfd.readouterr().err == ""


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Ends what waits for ever, as on a pipe."""

    def stop(*_: object) -> None:
        raise TimeoutError("waits for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", FILES)
def test_malformed_files(tmp_path: Path, what: str) -> None:
    name, content, problem = FILES[what]
    (tmp_path / name).write_bytes(content())
    refused(lambda: read_scan(tmp_path / name), tmp_path / name, problem)


def test_well_formed_files(tmp_path: Path) -> None:
    """Else the ones above could be refused for another reason than theirs."""
    (tmp_path / "a.raw").write_bytes(RAW)
    (tmp_path / "skipped.raw").write_bytes(bytes(10) + RAW)
    (tmp_path / "a.zraw").write_bytes(PACKED)
    (tmp_path / "a.gz").write_bytes(gz(RAW))
    text = " ".join(map(str, VOXELS.ravel(order="F"))).encode()
    for name, content in [
        ("a.nii", nifti()),
        ("a.nii.gz", gz(nifti())),
        ("extended.nii", nifti(pad=52)),
        ("filled.nii.gz", gz(nifti()) + bytes(512)),
        ("parts.nii.gz", gz(nifti()[:100]) + gz(nifti()[100:])),
        ("one.nii", nifti(dim=(7, 6, 5, 4, 1, 1, 1, 1))),
        ("nan.nii", nifti(scl_slope=NAN, scl_inter=NAN)),
        ("a.mha", metaimage()),
        ("packed.mha", metaimage(data=PACKED, CompressedData="True")),
        ("a.mhd", metaimage(data=b"", last="a.raw")),
        ("skipped.mhd", metaimage(data=b"", last="skipped.raw", HeaderSize=10)),
        ("end.mhd", metaimage(data=b"", last="skipped.raw", HeaderSize=-1)),
        ("packed.mhd", metaimage(data=b"", last="a.zraw", CompressedData="True")),
        ("a.nrrd", nrrd()),
        ("packed.nrrd", nrrd(gz(RAW), encoding="gzip")),
        ("text.nrrd", nrrd(text, encoding="text")),
        ("apart.nrrd", nrrd(b"", data_file="./a.raw")),
        ("apart.nrrd", nrrd(b"", data_file="a.gz", encoding="gzip")),
        ("crlf.mha", metaimage(data=b"").replace(b"\n", b"\r\n") + RAW),
        ("crlf.nrrd", nrrd(b"").replace(b"\n", b"\r\n") + RAW),
    ]:
        (tmp_path / name).write_bytes(content)
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.voxels, VOXELS, err_msg=name)
        np.testing.assert_array_equal(scan.ijk_to_lps, np.eye(4), err_msg=name)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for its memory")
def test_memory_is_not_asked_for(tmp_path: Path) -> None:
    """In a process that may have 128 MiB more than it has; at most 2 ** 31 voxels are claimed."""
    paths = [tmp_path / str(i) / name for i, (name, _, _) in enumerate(GREEDY.values())]
    for path, (_, content, _) in zip(paths, GREEDY.values(), strict=True):
        path.parent.mkdir()
        path.write_bytes(content())
    code = """
import resource, sys
from pathlib import Path
from jaxmark.core.errors import InputError
from jaxmark.data.scans import read_scan
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (128 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    try:
        read_scan(Path(path))
        print("was read")
    except InputError as error:
        print(error)
"""
    run = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    for path, line, (what, (_, _, problem)) in zip(
        paths, done.stdout.splitlines(), GREEDY.items(), strict=True
    ):
        assert line.startswith(f"{path}: ") and problem in line, (what, line)


def test_slope_0_means_none_whatever_the_intercept(tmp_path: Path) -> None:
    # So the standard; ITK adds the intercept.
    (tmp_path / "a.nii").write_bytes(nifti(scl_slope=0, scl_inter=5))
    np.testing.assert_array_equal(read_scan(tmp_path / "a.nii").voxels, VOXELS)


@pytest.mark.parametrize("code", [1, 2, 4])
def test_qform_and_sform_that_contradict_each_other(tmp_path: Path, code: int) -> None:
    swapped = (0, -1, 0, 7, -1, 0, 0, 8, 0, 0, 1, 9)
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(qform_code=1, sform_code=code, srow=swapped, qoffset=(1, 2, 3)))
    # RAS in the file, LPS here.
    of_sform = [[0, 1, 0, -7], [1, 0, 0, -8], [0, 0, 1, 9], [0, 0, 0, 1]]
    of_qform = [[-1, 0, 0, -1], [0, -1, 0, -2], [0, 0, 1, 3], [0, 0, 0, 1]]
    expected = of_sform if code == 1 else of_qform
    np.testing.assert_array_equal(read_scan(path).ijk_to_lps, expected)


def test_a_sheared_sform_beside_a_qform(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(qform_code=1, srow=SHEAR, qoffset=(1, 2, 3)))
    np.testing.assert_array_equal(read_scan(path).ijk_to_lps[:, 3], [-1, -2, 3, 1])


def test_micrometres(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    pixdim = (1, 50, 50, 50, 0, 0, 0, 0)
    path.write_bytes(
        nifti(xyzt_units=3, pixdim=pixdim, srow=(-50, 0, 0, 500, 0, -50, 0, 0, 0, 0, 50, 0))
    )
    np.testing.assert_allclose(read_scan(path).spacing_mm, 0.05)
    np.testing.assert_allclose(read_scan(path).ijk_to_lps[0, 3], -0.5)


# What is no file


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder to work in, as somebody whom permissions concern: root may read everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_what_may_not_be_read(unprivileged: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "a.mha", "a.nrrd"):
        (unprivileged / name).write_bytes(nifti())
        (unprivileged / name).chmod(0)
        path = unprivileged / name
        refused(partial(read_scan, path), path, "cannot be read: Permission denied")
        path.unlink()
    (unprivileged / "below").mkdir()
    (unprivileged / "below" / "IM0001").write_bytes(b"x")
    (unprivileged / "below" / "IM0001").chmod(0)
    problem = "cannot be read: Permission denied"
    refused(lambda: find_scans(unprivileged), unprivileged / "below" / "IM0001", problem)
    (unprivileged / "below").chmod(0)
    for find in (find_scans, find_scans_below):
        refused(partial(find, unprivileged), unprivileged / "below", problem)


def test_a_long_path(tmp_path: Path) -> None:
    path = tmp_path.joinpath(*["x" * 200] * 7, "a.nrrd")
    path.parent.mkdir(parents=True)
    path.write_bytes(nrrd(type="quark"))
    refused(lambda: read_scan(path), path, "its path has more than 512 bytes")


def test_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.symlink_to(tmp_path / "nowhere")
    refused(lambda: read_scan(path), path, "no such file")
    path.unlink()
    path.symlink_to(path)
    refused(lambda: read_scan(path), path, "no such file")
    path.unlink()
    path.mkdir()
    refused(lambda: read_scan(path), path, "holds no DICOM files")
    path.rmdir()
    os.mkfifo(path)
    refused(lambda: read_scan(path), path, "is not a file")
    (tmp_path / "b.mhd").write_bytes(metaimage(data=b"", last="a.nii.gz"))
    refused(lambda: read_scan(tmp_path / "b.mhd"), "b.mhd", "a.nii.gz is missing")


# Formats, as ITK writes them and spoilt


def test_a_missing_file_and_an_unknown_format(tmp_path: Path) -> None:
    refused(lambda: read_scan(tmp_path / "a.nii"), tmp_path / "a.nii", "no such file")
    (tmp_path / "a.png").write_text("x")
    refused(lambda: read_scan(tmp_path / "a.png"), "a.png", "not an image format", ".nii.gz")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.95, -1])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_truncated_files(
    tmp_path: Path, extension: str, compress: bool, kept: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = itk_write(tmp_path / f"a{extension}", image(), compress)
    part = path
    if extension == ".mhd":
        part = path.with_suffix(".zraw" if compress else ".raw")
    content = part.read_bytes()
    part.write_bytes(content[:-1] if kept == -1 else content[: int(len(content) * kept)])
    refused(lambda: read_scan(path), path, "truncated")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("extension", [".nii.gz", ".mha", ".mhd", ".nrrd"])
def test_damaged_compressed_files(
    tmp_path: Path, extension: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = itk_write(tmp_path / f"a{extension}", image(), True)
    part = path.with_suffix(".zraw") if extension == ".mhd" else path
    content = bytearray(part.read_bytes())
    content[-len(content) // 8] ^= 0xFF
    part.write_bytes(content)
    refused(lambda: read_scan(path), path, "damaged")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_garbage(tmp_path: Path, extension: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"a{extension}"
    path.write_bytes(b"not an image " * 100)
    refused(lambda: read_scan(path), path, "cannot be read")
    assert capfd.readouterr().err == ""


def test_a_header_without_its_data_file(tmp_path: Path) -> None:
    path = itk_write(tmp_path / "a.mhd", image())
    (tmp_path / "a.raw").unlink()
    refused(lambda: read_scan(path), path, "data file a.raw is missing")


def test_images_that_are_no_volume_of_numbers(tmp_path: Path) -> None:
    volume = image()
    for name, wrong, problem in [
        ("flat.nii", volume[:, :, 0], "2 dimensions, (7, 6)"),
        ("time.nii.gz", sitk.JoinSeries([volume, volume]), "4 dimensions, (7, 6, 5, 2)"),
        ("vector.nrrd", sitk.Compose(volume, volume, volume), "3 numbers a voxel"),
        ("colour.mha", sitk.Compose(*[sitk.Cast(volume, sitk.sitkUInt8)] * 3), "3 numbers a voxel"),
        (
            "complex.nii",
            sitk.Cast(volume, sitk.sitkComplexFloat32),
            "type 32 (colour, complex or unknown)",
        ),
        ("thin.mha", volume[:, :, :3], "(7, 6, 3) voxels; each axis needs at least 4"),
        ("constant.nii", volume * 0 + 7, "all voxels are 7"),
    ]:
        path = itk_write(tmp_path / name, wrong)
        refused(partial(read_scan, path), path, problem)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("pixel", [sitk.sitkFloat32, sitk.sitkFloat64])
def test_voxels_that_are_not_finite(
    tmp_path: Path, extension: str, pixel: int, value: float
) -> None:
    wrong = sitk.Cast(image(), pixel)
    wrong[3, 4, 2] = wrong[5, 0, 1] = value
    path = itk_write(tmp_path / f"a{extension}", wrong)
    refused(lambda: read_scan(path), f"{path}: 2 voxels are NaN or infinite", "(3, 4, 2)")


def test_float64_voxels_beyond_float32(tmp_path: Path) -> None:
    path = itk_write(tmp_path / "a.mha", image(np.float64) * 1e300)
    refused(lambda: read_scan(path), path, "NaN or infinite")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_impossible_spacing_in_nifti(tmp_path: Path, value: float) -> None:
    path = itk_write(tmp_path / "a.nii", image())
    content = bytearray(path.read_bytes())
    struct.pack_into("<f", content, 84, value)
    path.write_bytes(content)
    refused(lambda: read_scan(path), path, "spacing")


@pytest.mark.parametrize(
    ("extension", "old", "new"),
    [
        (".mha", b"ElementSpacing = 0.5 ", b"ElementSpacing = 0 "),
        (".mha", b"ElementSpacing = 0.5 ", b"ElementSpacing = nan "),
        (".nrrd", b"(0,0,1.5)", b"(0,0,0)"),
        (".nrrd", b"(0,0,1.5)", b"(nan,nan,nan)"),
    ],
)
def test_impossible_spacing_in_text(tmp_path: Path, extension: str, old: bytes, new: bytes) -> None:
    path = tmp_path / f"a{extension}"
    write_scan(path, voxels(), np.diag([0.5, 0.7, 1.5, 1.0]))
    replace(path, old, new)
    refused(lambda: read_scan(path), path, "pacing")


@pytest.mark.parametrize(
    ("extension", "old", "new"),
    [
        (".mha", b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0 1 0 0 0 0 1"),
        (".nrrd", b"(0,0,1.5)", b"(0,1.5,0)"),
    ],
)
def test_singular_axes(tmp_path: Path, extension: str, old: bytes, new: bytes) -> None:
    path = tmp_path / f"a{extension}"
    write_scan(path, voxels(), np.diag([0.5, 0.7, 1.5, 1.0]))
    replace(path, old, new)
    refused(lambda: read_scan(path), path, "singular direction matrix")


def test_a_sheared_nifti(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = itk_write(tmp_path / "a.nii", image())
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, 0, 1)
    struct.pack_into("<4f", content, 280, 1.0, 0.5, 0.0, 0.0)
    path.write_bytes(content)
    refused(lambda: read_scan(path), path, "not at right angles")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("extension", [".mha", ".nrrd"])
def test_sheared_axes_in_text(tmp_path: Path, extension: str) -> None:
    sheared = image()
    sheared.SetDirection((1, 0.3, 0, 0, 1, 0, 0, 0, 1))
    path = itk_write(tmp_path / f"a{extension}", sheared)
    refused(lambda: read_scan(path), path, "not at right angles")


def test_a_data_file_with_a_name_beyond_ascii(tmp_path: Path) -> None:
    path = itk_write(tmp_path / "ünï.mhd", image())
    np.testing.assert_array_equal(read_scan(path).voxels, voxels())


# DICOM errors


def test_a_folder_without_dicom(tmp_path: Path) -> None:
    refused(lambda: read_scan(tmp_path), tmp_path, "holds no DICOM files")


def test_several_series(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", "1.2.826.1", "a")
    write_series(tmp_path / "ct", "1.2.826.2", "b")
    (tmp_path / "ct" / "b9.dcm").unlink()
    problem = "holds 2 DICOM series, need one: 1.2.826.1 (5 slices), 1.2.826.2 (4 slices)"
    refused(lambda: read_scan(tmp_path / "ct"), tmp_path / "ct", problem)


def test_a_missing_slice(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    (folder / "7.dcm").unlink()
    refused(lambda: read_scan(folder), folder, "from slice 2 to 3", "a slice is missing")


@pytest.mark.parametrize("name", ["9.dcm", "7.dcm"])
def test_a_truncated_slice(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    file = write_series(tmp_path / "ct") / name
    file.write_bytes(file.read_bytes()[:-20])
    refused(lambda: read_scan(tmp_path / "ct"), file, "truncated")
    assert capfd.readouterr().err == ""


def test_slices_in_one_place(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    for file in folder.iterdir():
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        part = reader.Execute()
        part.SetMetaData("0020|0032", "0\\0\\0")
        part.SetOrigin((0, 0, 0))
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(file))
        writer.Execute(part)
    refused(lambda: read_scan(folder), folder, "doubled")


def test_too_few_slices(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    for name in ("9.dcm", "8.dcm"):
        (folder / name).unlink()
    refused(lambda: read_scan(folder), folder, "(7, 6, 3) voxels")


def test_slices_of_two_sizes(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    file = sitk.ImageFileReader()
    file.SetFileName(str(folder / "7.dcm"))
    part = file.Execute()
    smaller = part[:4]
    for tag in part.GetMetaDataKeys():
        smaller.SetMetaData(tag, part.GetMetaData(tag))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(folder / "7.dcm"))
    writer.Execute(smaller)
    refused(lambda: read_scan(folder), folder / "7.dcm", "has (4, 6) voxels", "(7, 6)")


def spoil(path: Path, tag: str, value: str | None) -> None:
    """Changes the text of a DICOM element, in its length; None takes the element away."""
    group, element = (int(part, 16) for part in tag.split("|"))
    key = struct.pack("<2H", group, element)
    content = path.read_bytes()
    at = content.index(key)
    if value is None:
        # An element that nobody asks for.
        content = content[:at] + struct.pack("<2H", group, element + 1) + content[at + 4 :]
    else:
        (length,) = struct.unpack_from("<I", content, at + 4)
        content = (
            content[: at + 8] + value.encode().ljust(length)[:length] + content[at + 8 + length :]
        )
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("tag", "value", "problem"),
    [
        ("0028|0030", None, "states no pixel spacing"),
        ("0020|0032", None, "states no image position"),
        ("0020|0037", None, "states no image orientation"),
        ("7fe0|0010", None, "damaged, or not a DICOM image"),
        ("0028|0030", "0\\0", "spacing of (0, 0)"),
        ("0028|0030", "-1\\1", "spacing of (-1, 1)"),
        ("0028|0030", "1e9\\1", "spacing of (1e+09, 1)"),
        ("0028|0030", ".7", "1 numbers as pixel spacing"),
        ("0028|0030", ".9\\.5", "another spacing or direction"),
        ("0020|0037", "1\\0\\0\\0\\1\\0", "another spacing or direction"),
    ],
)
def test_a_spoilt_slice(tmp_path: Path, tag: str, value: str | None, problem: str) -> None:
    folder = write_series(tmp_path / "ct")
    spoil(folder / "7.dcm", tag, value)
    refused(lambda: read_scan(folder), folder / "7.dcm", problem)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [(7, "less pixel data"), (100, "less pixel data"), (20000, "less pixel data")],
)
def test_slices_that_claim_more_than_they_hold(tmp_path: Path, rows: int, problem: str) -> None:
    folder = write_series(tmp_path / "ct")
    for path in folder.iterdir():
        for element in (0x10, 0x11):
            key = struct.pack("<2HI", 0x28, element, 2)
            content = path.read_bytes()
            at = content.index(key) + len(key)
            path.write_bytes(content[:at] + struct.pack("<H", rows) + content[at + 2 :])
    refused(lambda: read_scan(folder), folder, problem)


def test_compressed_slices_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    for path in folder.iterdir():
        small = sitk.ReadImage(str(path))
        # JPEG 2000 needs some voxels.
        part = sitk.Expand(small, [8, 8, 1], sitk.sitkNearestNeighbor)
        for key in small.GetMetaDataKeys():
            if not key.startswith("0028"):
                part.SetMetaData(key, small.GetMetaData(key))
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.SetFileName(str(path))
        writer.Execute(part)
    assert read_scan(folder).voxels.shape == (56, 48, 5)
    for path in folder.iterdir():
        for element in (0x10, 0x11):
            key = struct.pack("<2H2sH", 0x28, element, b"US", 2)
            content = path.read_bytes()
            at = content.index(key) + len(key)
            path.write_bytes(content[:at] + struct.pack("<H", 20000) + content[at + 2 :])
    refused(lambda: read_scan(folder), folder, "truncated or damaged")


def test_a_doubled_slice(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    shutil.copy(folder / "7.dcm", folder / "4.dcm")
    refused(lambda: read_scan(folder), folder, "missing or doubled")


def test_a_pipe_among_slices(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    os.mkfifo(folder / "x")
    refused(lambda: read_scan(folder), folder / "x", "neither a file nor a folder")


def test_slices_of_different_scale_keep_their_fractions(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    slope = struct.pack("<2HI2s", 0x28, 0x1053, 2, b"1 ")
    for name in ("8.dcm", "7.dcm", "6.dcm", "5.dcm"):
        replace(folder / name, slope, slope[:-2] + b".5")
    np.testing.assert_array_equal(read_scan(folder).voxels, voxels() * [1, 0.5, 0.5, 0.5, 0.5])
