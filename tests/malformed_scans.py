"""Malformed and hostile scans as bytes, built from the formats' definitions."""

import gzip
import struct
import zlib
from collections.abc import Callable

import numpy as np

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


NIFTI_2_FIELDS = {
    "sizeof_hdr": ("i", 0),
    "magic": ("8s", 4),
    "datatype": ("h", 12),
    "bitpix": ("h", 14),
    "dim": ("8q", 16),
    "pixdim": ("8d", 104),
    "vox_offset": ("q", 168),
    "scl_slope": ("d", 176),
    "scl_inter": ("d", 184),
    "qform_code": ("i", 344),
    "sform_code": ("i", 348),
    "quatern": ("3d", 352),
    "qoffset": ("3d", 376),
    "srow": ("12d", 400),
    "xyzt_units": ("i", 500),
}


def nifti_2(array: np.ndarray = VOXELS, order: str = "<", **fields: object) -> bytes:
    """A NIfTI-2 file, from the table of the standard; fields are numbers, or tuples of them."""
    values: dict[str, object] = {
        "sizeof_hdr": 540,
        "magic": b"n+2\0\r\n\x1a\n",
        "datatype": NIFTI_TYPES[array.dtype.str[1:]],
        "bitpix": array.itemsize * 8,
        "dim": (3, *array.shape, 1, 1, 1, 1),
        "pixdim": (1, 1, 1, 1, 0, 0, 0, 0),
        "vox_offset": 544,
        "xyzt_units": 2,
        "sform_code": 1,
        "srow": (-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0),
    } | fields
    header = bytearray(540)
    for name, value in values.items():
        code, offset = NIFTI_2_FIELDS[name]
        struct.pack_into(order + code, header, offset, *np.atleast_1d(value).tolist())
    data = array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    return bytes(header) + bytes(4) + data


MGH_TYPES = {"u1": 0, "i4": 1, "f4": 3, "i2": 4, "u2": 10}


def mgh(array: np.ndarray = VOXELS, **fields: object) -> bytes:
    """FreeSurfer's MGH, as its MRIwrite writes it; axes and centre are RAS."""
    values: dict[str, object] = {
        "version": 1,
        "shape": (*array.shape, 1),
        "type": MGH_TYPES[array.dtype.str[1:]],
        "has_place": 1,
        "spacing": (1, 1, 1),
        "axes": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
        # Of voxel (0, 0, 0) at (0, 0, 0).
        "centre": (-array.shape[0] / 2, -array.shape[1] / 2, array.shape[2] / 2),
    } | fields
    codes = {"version": "i", "shape": "4i", "type": "i4x", "has_place": "h", "spacing": "3f"}
    codes |= {"axes": "9f", "centre": "3f"}
    parts = [struct.pack(f">{codes[k]}", *np.atleast_1d(v).tolist()) for k, v in values.items()]
    return b"".join(parts).ljust(284, b"\0") + array.astype(array.dtype.newbyteorder(">")).tobytes(
        "F"
    )


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
    "gzip named .nii": ("a.nii", lambda: gz(nifti()), UNREADABLE),
    "magic of header and image apart": ("a.nii", lambda: nifti(magic=b"ni1\0"), UNREADABLE),
    "no magic, as in Analyze": ("a.nii", lambda: nifti(magic=bytes(4)), UNREADABLE),
    "a NIfTI-2 header alone": ("a.nii", lambda: nifti_2(magic=b"ni2\0\r\n\x1a\n"), UNREADABLE),
    "NIfTI-2 with line ends changed": (
        "a.nii",
        lambda: nifti_2(magic=b"n+2\0\n\x1a\n\0"),
        UNREADABLE,
    ),
    "MGH of the future": ("a.mgh", lambda: mgh(version=2), UNREADABLE),
    "an empty MGH": ("a.mgz", lambda: b"", UNREADABLE),
    "NIfTI named .mgz": ("a.mgz", lambda: gz(nifti()), UNREADABLE),
    "NRRD with bzip2": ("a.nrrd", lambda: nrrd(encoding="bzip2"), "bzip2 compression is not read"),
    "NRRD with bz2": ("a.nhdr", lambda: nrrd(encoding="BZ2"), "bzip2 compression is not read"),
    "NRRD of the future": ("a.nrrd", lambda: nrrd().replace(b"0004", b"0009"), UNREADABLE),
    # Cut off
    "cut in the header": ("a.nii", lambda: nifti()[:200], UNREADABLE),
    "cut after the header": ("a.nii", lambda: nifti()[:352], "truncated"),
    "cut in the voxels": ("a.nii", lambda: nifti()[:-1], "truncated"),
    "NIfTI-2 cut in the header": ("a.nii", lambda: nifti_2()[:400], UNREADABLE),
    "NIfTI-2 cut in the voxels": ("a.nii.gz", lambda: gz(nifti_2()[:-1]), "truncated"),
    "MGH cut in the header": ("a.mgz", lambda: gz(mgh()[:90]), UNREADABLE),
    "MGH cut in the voxels": ("a.mgh", lambda: mgh()[:-1], "truncated"),
    "MGH cut in gzip": ("a.mgz", lambda: gz(mgh())[:-3], "truncated"),
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
    "NIfTI-2 axis of zero": ("a.nii", lambda: nifti_2(dim=(3, 6, 0, 4, 1, 1, 1, 1)), "(6, 0, 4)"),
    "MGH axis of zero": ("a.mgh", lambda: mgh(shape=(6, 0, 4, 1)), "(6, 0, 4) voxels"),
    "MGH of two frames": ("a.mgh", lambda: mgh(shape=(6, 5, 4, 2)), "4 dimensions"),
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
    "MGH unknown type": ("a.mgh", lambda: mgh(type=7), "unknown type 7"),
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
    "mostly NaN": (
        "a.nii",
        lambda: nifti(np.where(VOXELS < 110, NAN, VOXELS).astype("<f4")),
        "110 voxels are NaN or infinite, the first at (0, 0, 0)",
    ),
    "all NaN": ("a.nii", lambda: nifti(np.full((6, 5, 4), NAN, "<f4")), "120 voxels are NaN"),
    "NaN and infinity": (
        "a.nii",
        lambda: nifti(np.where(VOXELS == 0, NAN, with_value(INF)).astype("<f4")),
        "2 voxels are NaN or infinite",
    ),
    "NaN around a constant": (
        "a.nii",
        lambda: nifti(np.where(VOXELS < 60, NAN, 7).astype("<f4")),
        "all voxels are 7",
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
    "MGH without a place": ("a.mgh", lambda: mgh(has_place=0), "states no place"),
    "MGH spacing 0": ("a.mgh", lambda: mgh(spacing=(0, 1, 1)), "spacing of (0, 1, 1)"),
    "MGH spacing NaN": ("a.mgh", lambda: mgh(spacing=(NAN, 1, 1)), "spacing of (nan, 1, 1)"),
    "MGH sheared": ("a.mgh", lambda: mgh(axes=(-1, 0.1, 0, 0, -1, 0, 0, 0, 1)), "right angles"),
    "MGH axes of zero": ("a.mgh", lambda: mgh(axes=(0,) * 9), "spacing of (0, 0, 0)"),
    "MGH centre NaN": ("a.mgh", lambda: mgh(centre=(NAN, 0, 0)), "origin (nan"),
    "NIfTI-2 spacing 1e-200": (
        "a.nii",
        lambda: nifti_2(srow=(-1e-200, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0)),
        "a.nii",
    ),
    "NIfTI-2 sheared": ("a.nii", lambda: nifti_2(srow=SHEAR), "not at right angles"),
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

# Of pairs: scans only where header and voxels are beside each other.
PARTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "Analyze": ("a.hdr", lambda: nifti(magic=bytes(4))[:348], "Analyze, which has no orientation"),
    "ENVI named .hdr": ("a.hdr", lambda: b"ENVI\nsamples = 6\n" * 99, UNREADABLE),
    "one file named .hdr": ("a.hdr", nifti_2, UNREADABLE),
    "a pair without its voxels": (
        "a.hdr",
        lambda: nifti(magic=b"ni1\0", vox_offset=0)[:348],
        "its voxels, a.img, are missing",
    ),
    "voxels of a pair": ("a.img", lambda: RAW, "voxels alone: name its header, a.hdr"),
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
    "NIfTI-2 1e6 voxels a side": (
        "a.nii",
        lambda: nifti_2(dim=(3, 10**6, 10**6, 10**6, 1, 1, 1, 1)),
        "more than 2147483648",
    ),
    "NIfTI-2 1e18 voxels a side": (
        "a.nii.gz",
        lambda: gz(nifti_2(dim=(3, *[10**18] * 3, 1, 1, 1, 1))),
        "more than 2147483648",
    ),
    "NIfTI-2 1200": ("a.nii", lambda: nifti_2(dim=LARGE), "truncated"),
    "NIfTI-2 huge vox_offset": ("a.nii", lambda: nifti_2(vox_offset=2**60), "vox_offset = 1.15"),
    "NIfTI-2 bomb": ("a.nii.gz", lambda: bomb(nifti_2()), "more voxels than its header states"),
    "MGH 30000": ("a.mgz", lambda: gz(mgh(shape=(30000,) * 3 + (1,))), "more than 2147483648"),
    "MGH 1200": ("a.mgh", lambda: mgh(shape=(1200,) * 3 + (1,)), "truncated"),
    "MGH 1200 with gzip": ("a.mgz", lambda: gz(mgh(shape=(1200,) * 3 + (1,))), "truncated"),
    "MGH bomb": ("a.mgz", lambda: bomb(mgh()), "more voxels than its header states"),
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
