"""NIfTI-1 and NIfTI-2: one file, plain or in gzip, or a pair of header and voxels.

This module reads them without ITK, which reads no NIfTI-2 and silently makes up missing values. For
NIfTI-1 it gives the same voxels and maps as ITK, bit by bit.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import numpy as np

from jaxmark.core.geometry import compose_affine
from jaxmark.data.formats.raster import Picture, check_size
from jaxmark.data.formats.safeguards import (
    MAX_SKEW,
    UNREADABLE,
    Content,
    at_right_angles,
    beginning,
    check_origin,
    check_place,
    check_shape,
    check_spacing,
    distances_mm,
    entries,
    inflated,
    read_voxels,
    rounded,
    skew,
)
from jaxmark.system.errors import InputError

# There is room for whole documents between the header and the voxels.
_MAX_OFFSET = 1 << 24

# The fields of the header that say where its voxels are and what they mean.
_FIELDS_1 = {
    "dim": ("8i2", 40),
    "datatype": ("i2", 70),
    "pixdim": ("8f4", 76),
    "vox_offset": ("f4", 108),
    "scl_slope": ("f4", 112),
    "scl_inter": ("f4", 116),
    "xyzt_units": ("u1", 123),
    "qform_code": ("i2", 252),
    "sform_code": ("i2", 254),
    "quatern": ("3f4", 256),
    "qoffset": ("3f4", 268),
    "srow": ("(3,4)f4", 280),
}
_FIELDS_2 = {
    "datatype": ("i2", 12),
    "dim": ("8i8", 16),
    "pixdim": ("8f8", 104),
    "vox_offset": ("i8", 168),
    "scl_slope": ("f8", 176),
    "scl_inter": ("f8", 184),
    "qform_code": ("i4", 344),
    "sform_code": ("i4", 348),
    "quatern": ("3f8", 352),
    "qoffset": ("3f8", 376),
    "srow": ("(3,4)f8", 400),
    "xyzt_units": ("i4", 500),
}


@dataclasses.dataclass(frozen=True)
class _Version:
    size: int  # of the header in bytes, which is also its first number
    fields: dict[str, tuple[str, int]]
    magic_at: int
    whole: bytes  # the magic of one file ...
    pair: bytes  # ... and of a header beside its voxels


_VERSIONS = (
    _Version(348, _FIELDS_1, 344, b"n+1\0", b"ni1\0"),
    _Version(540, _FIELDS_2, 4, b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"),
)
_Order = Literal["little", "big"]
_ORDERS: tuple[_Order, ...] = ("little", "big")
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
# Metres, and micrometres; any other code is taken for millimetres.
_MM = {1: 1e3, 3: 1e-3}
_ANALYZE = "is Analyze, which has no orientation: convert it to NIfTI"
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(path: Path) -> Content:
    """The volume in a file, or in the pair of which `path` is the header.

    Of the two places that a file may state, the sform is taken if its code is 1 (scanner) or if
    there is no qform, else the qform; the qform also where that sform is sheared. As ITK does.
    """
    header = _header(path)
    fields = header.fields
    _check_numbers(path, fields, header.least_offset)
    _check_stated_place(path, fields)
    shape = _shape(fields)
    check_shape(path, shape)
    ijk_to_lps, notes = _place(fields, shape)
    check_place(path, shape, ijk_to_lps)
    data = _voxel_file(path) if header.is_pair else path
    packed = _is_packed(data)
    if data.suffix.lower() == ".gz" and not packed:
        notes += ("is not compressed, though its name ends in .gz",)
    dtype = np.dtype(_TYPES[int(fields["datatype"])]).newbyteorder(header.order)
    begin = int(fields["vox_offset"])
    voxels = read_voxels(data, shape[:3], dtype, begin, 0 if packed else None)
    return Content(voxels, ijk_to_lps, notes, _scale(fields))


def read_slice(path: Path) -> Picture:
    """The one slice in a file (X, Y, 1), or of a header with two axes; its place is not read."""
    header = _header(path)
    fields = header.fields
    _check_numbers(path, fields, header.least_offset)
    shape = _shape(fields)
    if len(shape) < 2 or any(size != 1 for size in shape[2:]):
        stated = " x ".join(map(str, shape))
        problem = f"has {stated} voxels, but config.data.crop with Z = 1 is of pictures"
        raise InputError(path, problem)
    check_size(path, shape[0], shape[1])
    pixel_mm = fields["pixdim"][1:3].astype(np.float64) * _unit_mm(fields)
    check_spacing(path, pixel_mm)
    dtype = np.dtype(_TYPES[int(fields["datatype"])]).newbyteorder(header.order)
    stream = 0 if _is_packed(path) else None
    pixels = read_voxels(path, shape[:2], dtype, int(fields["vox_offset"]), stream)
    values = Content(pixels, np.eye(4), scale=_scale(fields)).values()
    return Picture(values, (float(pixel_mm[0]), float(pixel_mm[1])))


def check_written(path: Path, voxel_bytes: int) -> None:
    """Raises EOFError or zlib.error if the file is too short: ITK does not report a full disk."""
    packed = path.suffix.lower() == ".gz"
    size = sum(map(len, inflated(path, 0))) if packed else path.stat().st_size
    if size < _VERSIONS[0].size + voxel_bytes:
        raise EOFError


def voxels_beside(path: Path) -> Path | None:
    """The file that belongs to the header `<name>.hdr`: `<name>.img`, also in gzip or capitals."""
    stem = path.name[: -len(".hdr")]
    usual = path.with_name(f"{stem}.img")
    if usual.is_file():
        return usual
    names = [f"{stem}.img".lower(), f"{stem}.img.gz".lower()]
    found = [p for p in entries(path.parent) if p.name.lower() in names and p.is_file()]
    return found[0] if found else None


@dataclasses.dataclass(frozen=True)
class _Header:
    fields: np.void
    order: _Order
    is_pair: bool
    least_offset: int  # of the voxels


def _header(path: Path) -> _Header:
    """What the file begins with; the first number of it tells version and byte order."""
    content = beginning(path, _VERSIONS[1].size, packed=_is_packed(path))
    is_pair = path.suffix.lower() == ".hdr"
    for version in _VERSIONS:
        for order in _ORDERS:
            if int.from_bytes(content[:4], order) != version.size or len(content) < version.size:
                continue
            wanted = version.pair if is_pair else version.whole
            magic = content[version.magic_at :][: len(wanted)]
            if magic != wanted and is_pair and version is _VERSIONS[0]:
                raise InputError(path, _ANALYZE)
            if magic != wanted:
                break
            formats, offsets = zip(*version.fields.values(), strict=True)
            names = [*version.fields]
            dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets})
            fields = np.frombuffer(content, dtype.newbyteorder(order), 1)[0]
            return _Header(fields, order, is_pair, 0 if is_pair else version.size + 4)
    raise InputError(path, UNREADABLE)


def _is_packed(path: Path) -> bool:
    """Whether a file called .gz is what its name says; some are NIfTI as it is."""
    if path.suffix.lower() != ".gz":
        return False
    with open(path, "rb") as file:
        start = file.read(4)
    sizes = [version.size for version in _VERSIONS]
    return all(int.from_bytes(start, order) not in sizes for order in _ORDERS)


def _voxel_file(path: Path) -> Path:
    if found := voxels_beside(path):
        return found
    raise InputError(path, f"its voxels, {path.with_suffix('.img').name}, are missing")


def _shape(fields: np.void) -> list[int]:
    """As stated; axes of one voxel behind the third say nothing."""
    count, *sizes = fields["dim"].tolist()
    axes = max((i for i in range(1, count + 1) if i <= 3 or sizes[i - 1] > 1), default=0)
    return sizes[:axes]


def _check_numbers(path: Path, fields: np.void, least_offset: int) -> None:
    """Refuses axes, types, offsets and scales of which no voxels can be made."""
    if not 1 <= fields["dim"][0] <= 7:
        raise InputError(path, f"states dim[0] = {fields['dim'][0]}, not 1 to 7")
    kind = int(fields["datatype"])
    if kind not in _TYPES:
        raise InputError(path, f"has voxels of type {kind} (colour, complex or unknown)")
    offset = fields["vox_offset"]
    if not least_offset <= offset <= _MAX_OFFSET:
        stated = f"states vox_offset = {offset:g}"
        raise InputError(path, f"{stated}, not {least_offset} to {_MAX_OFFSET}")
    slope, intercept = fields["scl_slope"], fields["scl_inter"]
    if np.isinf(slope) or (_is_scale(slope) and not np.isfinite(intercept)):
        raise InputError(path, f"states scl_slope = {slope:g} and scl_inter = {intercept:g}")


def _check_stated_place(path: Path, fields: np.void) -> None:
    """Refuses spacings that ITK silently replaces by 1 mm, 0 or another value."""
    unit = _unit_mm(fields)
    pixdim = fields["pixdim"].astype(np.float64)
    check_spacing(path, pixdim[1:4] * unit)
    if fields["qform_code"] > 0:
        quaternion = fields["quatern"].astype(np.float64)
        if not (np.isfinite(pixdim[0]) and np.linalg.norm(quaternion) < 1.01):
            raise InputError(path, f"states a qform that is no rotation, {rounded(quaternion)}")
        check_origin(path, fields["qoffset"] * unit)
    if fields["sform_code"] > 0:
        columns = fields["srow"][:, :3].astype(np.float64)
        if not np.isfinite(columns).all():
            raise InputError(path, "states an sform that is not finite")
        check_origin(path, fields["srow"][:, 3] * unit)
        if fields["sform_code"] == 1 or not fields["qform_code"] > 0:
            _check_sform_spacing(path, columns, pixdim[1:4])


def _check_sform_spacing(path: Path, columns: np.ndarray, pixdim: np.ndarray) -> None:
    spacing = np.linalg.norm(columns, axis=0)
    # One that is sheared is refused, or the qform is taken.
    tolerance = 1e-3 if at_right_angles(columns) else MAX_SKEW
    if skew(columns) <= MAX_SKEW and not np.allclose(spacing, pixdim, rtol=tolerance):
        stated = f"states a voxel spacing of {rounded(pixdim)} as pixdim"
        raise InputError(path, f"{stated}, but of {rounded(spacing)} in its sform")


def _place(fields: np.void, shape: list[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(4, 4) ijk_to_lps, with the directions of the form that is taken and the stated spacing.

    And a note where another reading would put the voxels elsewhere.
    """
    spacing = fields["pixdim"][1:4].astype(np.float64)
    forms = {}
    if fields["sform_code"] > 0:
        forms["sform"] = compose_affine(fields["srow"][:, :3], fields["srow"][:, 3])
    if fields["qform_code"] > 0:
        forms["qform"] = compose_affine(_qform(fields), fields["qoffset"])
    if not forms:
        return compose_affine(np.diag(spacing * _unit_mm(fields)), np.zeros(3)), (
            "states no place (neither sform nor qform): taken as LPS from its first voxel on, as "
            "ITK does",
        )
    taken = _taken(fields, forms)
    columns = forms[taken][:3, :3]
    directions = columns / np.linalg.norm(columns, axis=0)
    place = compose_affine(directions * (spacing * _unit_mm(fields)), forms[taken][:3, 3])
    place[:3, 3] *= _unit_mm(fields)
    return _TO_LPS @ place, _disagreement(fields, forms, taken, shape)


def _taken(fields: np.void, forms: dict[str, np.ndarray]) -> str:
    """The form that ITK takes."""
    if len(forms) == 1:
        return next(iter(forms))
    usable = at_right_angles(forms["sform"][:3, :3])
    return "sform" if fields["sform_code"] == 1 and usable else "qform"


def _disagreement(
    fields: np.void, forms: dict[str, np.ndarray], taken: str, shape: list[int]
) -> tuple[str, ...]:
    """A note where sform and qform are more than a voxel apart, or the sform is sheared."""
    if len(forms) < 2:
        return ()
    unit = _unit_mm(fields)
    sheared = not skew(forms["sform"][:3, :3]) <= MAX_SKEW
    centre, corner = distances_mm(shape, forms["sform"], forms["qform"])
    if not (sheared or corner > min(fields["pixdim"][1:4])):
        return ()
    sform = f"sform (code {fields['sform_code']}){', which is sheared,' * sheared}"
    return (
        f"its {sform} and qform (code {fields['qform_code']}) are {centre * unit:.1f} mm apart at "
        f"the centre, up to {corner * unit:.1f} mm at the corners: read by the {taken}, as ITK and "
        "3D Slicer do",
    )


def _qform(fields: np.void) -> np.ndarray:
    """(3, 3): the qform's columns, in the header's own precision as in the NIfTI library."""
    b, c, d = fields["quatern"].astype(np.float64)
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < 1e-7:
        # Half a turn, up to rounding.
        norm = 1.0 / math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b * norm, c * norm, d * norm
    else:
        a = math.sqrt(rest)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    sign = [1.0, 1.0, -1.0 if fields["pixdim"][0] < 0 else 1.0]
    columns = rotation * (fields["pixdim"][1:4].astype(np.float64) * sign)
    return columns.astype(fields["quatern"].dtype)


def _unit_mm(fields: np.void) -> float:
    return _MM.get(int(fields["xyzt_units"]) & 7, 1.0)


def _scale(fields: np.void) -> tuple[float, float]:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    return (slope, intercept) if _is_scale(slope) else (1.0, 0.0)


def _is_scale(slope: float) -> bool:
    """A slope of 0 or NaN means none."""
    return not (slope == 0 or math.isnan(slope))
