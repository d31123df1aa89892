"""Reads millions of damaged files: each must be read, or refused in one line.

    python -m experiments.fuzz --seconds=300 --seed=0

Makes good files of every kind that jaxmark reads, changes them at random, and reads them in a
process with limits on time and memory. A file that gives neither a result nor an InputError is kept
below --failures, and the exit code is 1. One seed always makes the same files; the time decides how
many.
"""

import dataclasses
import faulthandler
import gzip
import hashlib
import json
import re
import resource
import selectors
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from absl import app, flags

from experiments import dicom_files
from jaxmark.config import Data
from jaxmark.core.anatomy import COW19, Segment
from jaxmark.core.geometry import compose_affine
from jaxmark.core.grids import Grid
from jaxmark.data.attributes import read_attributes
from jaxmark.data.cases import PreparedCase, load_case, save_case
from jaxmark.data.cohort import RawCase, read_cohort
from jaxmark.data.frame import Frame, load_frame, save_frame
from jaxmark.data.label_tables import read_label_tables
from jaxmark.data.landmarks import (
    read_landmarks,
    read_tables,
    write_fcsv,
    write_mrk_json,
    write_table,
)
from jaxmark.data.prepare import read_alignment
from jaxmark.data.prepared_segments import SegmentsJob, load_segments, prepare_segments
from jaxmark.data.scans import Scan, read_scan, search_below, to_image, write_scan
from jaxmark.data.segmentations import CohortSegments, RawSegments, read_label_map
from jaxmark.data.transforms import read_transform
from jaxmark.data.unpaired import read_unpaired
from jaxmark.inference import calibration
from jaxmark.inference.likeness import PROFILE_SIZE, Usual
from jaxmark.inference.segments import ScanSegments
from jaxmark.results import batch
from jaxmark.results.evaluate import evaluate, read_summary
from jaxmark.results.measures import attributes, segmentation
from jaxmark.results.measures.points import Points, read_points
from jaxmark.results.predictions import attributes_of, read_predicted_attributes
from jaxmark.system.errors import InputError
from jaxmark.system.files import sealed, write_json
from jaxmark.trained import get_config

_SECONDS = flags.DEFINE_float("seconds", 300, "In all; every kind gets the same share.")
_SEED = flags.DEFINE_integer("seed", 0, "Other seeds make other files.")
_ONLY = flags.DEFINE_list("only", [], "Kinds to try; empty: all.")
_FAILURES = flags.DEFINE_string("failures", "runs/fuzz", "Where files that fail are kept.")
_SERVE = flags.DEFINE_string("serve", None, "Internal: read files of this kind, named on stdin.")

# Time limit for one file; the machine may be busy.
_LIMIT_S = 20
# Memory limit, in addition to the memory at the process's start.
_LIMIT_BYTES = 768 << 20

NAMES = ("left", "right", "tip")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of files."""

    # Writes good files into a folder, and returns those to change.
    make: Callable[[Path], list[Path]]
    # Reads the files of `make`; a result or an InputError is right.
    read: Callable[[Path], object]
    # Whether the changed file is compressed as a whole.
    packed: bool = False


# Good files


def _points(rng: np.random.Generator) -> dict[str, np.ndarray | None]:
    return {"left": rng.normal(0, 50, 3), "right": rng.normal(0, 50, 3), "tip": None}


def _scan(rng: np.random.Generator) -> Scan:
    voxels = rng.integers(0, 900, (6, 5, 7)).astype(np.int16)
    return Scan(voxels, compose_affine(np.diag([0.5, 0.75, 2.0]), np.array([-10.0, 20, 3])))


def _one(name: str, write: Callable[[Path], None]) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        write(folder / name)
        return [folder / name]

    return make


def _markups(path: Path) -> None:
    rng = np.random.default_rng(0)
    (write_fcsv if path.suffix == ".fcsv" else write_mrk_json)(path, _points(rng))


def _table(path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = ("a", "b") if path.stem == "sets" else ("a",)
    write_table(path, {case: _points(rng) for case in cases})


def _spreadsheet(path: Path) -> None:
    path.write_text(
        "sep=;\nPatient;left_x_lps;left_y_lps;left_z_lps;right_x_lps;right_y_lps;right_z_lps;;\n"
        "a.nii.gz;1,5;-2,25;3;4;5;6;;\nb.nii.gz;1,5;-2,25;3;;;;;\n;;;;;;;;\n"
    )


def _control_points(path: Path) -> None:
    columns = "label,l,p,s,defined,selected,visible,locked,description"
    path.write_text(f"{columns}\nleft,1,2,3.5,1,1,1,0,\nright,0,0,0,0,1,1,0,\n")


def _voxels(path: Path) -> None:
    points = {"left": [1, 2, 3.5], "right": [4, 5, 6], "tip": None}
    write_json(path, {"a": points, "b": points})


def _predictions(folder: Path) -> list[Path]:
    words = dict.fromkeys(NAMES, "presence 0.30, score 0.500")
    points = _points(np.random.default_rng(0))
    write_mrk_json(folder / "a.mrk.json", points, descriptions=words, hidden=NAMES)
    write_fcsv(folder / "a.fcsv", points, descriptions=words, hidden=NAMES)
    write_table(folder / "a.csv", {"a": points}, {"score": {}, "presence": {}, "radius_mm": {}})
    return [folder / "a.mrk.json", folder / "a.fcsv", folder / "a.csv"]


def _scan_file(path: Path) -> None:
    scan = _scan(np.random.default_rng(0))
    write_scan(path, scan.voxels, scan.ijk_to_lps)


def _in_two(name: str) -> Callable[[Path], list[Path]]:
    """A header and its voxels, as ITK writes them."""

    def make(folder: Path) -> list[Path]:
        scan = _scan(np.random.default_rng(0))
        sitk.WriteImage(to_image(scan.voxels, scan.ijk_to_lps), str(folder / name), True)
        return sorted(folder.iterdir())

    return make


def _nifti_2(path: Path) -> None:
    scan = _scan(np.random.default_rng(0))
    header = bytearray(544)
    struct.pack_into("<i8s2h", header, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16)
    struct.pack_into("<8q", header, 16, 3, *scan.voxels.shape, 1, 1, 1, 1)
    struct.pack_into("<8dq", header, 104, 1, *scan.spacing_mm, 0, 0, 0, 0, 544)
    rows = (np.diag([-1.0, -1, 1]) @ scan.ijk_to_lps[:3]).ravel()
    struct.pack_into("<2i6d12d", header, 344, 1, 2, 0, 0, 1, 10, -20, 3, *rows)
    path.write_bytes(gzip.compress(bytes(header) + scan.voxels.tobytes("F")))


def _mgz(path: Path) -> None:
    scan = _scan(np.random.default_rng(0))
    header = struct.pack(">7ih", 1, *scan.voxels.shape, 1, 4, 0, 1)
    header += struct.pack(">15f", *scan.spacing_mm, -1, 0, 0, 0, -1, 0, 0, 0, 1, 0, 0, 0)
    voxels = scan.voxels.astype(">i2").tobytes("F")
    path.write_bytes(gzip.compress(header.ljust(284, b"\0") + voxels))


def _series(compressor: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetUseCompression(bool(compressor))
        writer.SetCompressor(compressor)
        rng = np.random.default_rng(0)
        for k in range(4):
            # JPEG 2000 needs some voxels.
            part = sitk.GetImageFromArray(rng.integers(0, 900, (40, 36)).astype(np.int16))
            tags = {"0008|0060": "CT", "0020|000d": "1.2", "0020|000e": "1.2.3"}
            tags |= {"0008|0018": f"1.2.3.{k}", "0020|0032": f"0\\0\\{2 * k}"}
            tags["0020|0037"] = "1\\0\\0\\0\\1\\0"
            for tag, value in tags.items():
                part.SetMetaData(tag, value)
            writer.SetFileName(str(folder / f"{k}.dcm"))
            writer.Execute(part)
        return sorted(folder.iterdir())

    return make


def _frames(pack: bool) -> Callable[[Path], list[Path]]:
    """A multi-frame file, with a scale for each frame; also as a packed one."""

    def make(folder: Path) -> list[Path]:
        frames = np.random.default_rng(0).integers(0, 900, (5, 6, 7))
        places = np.arange(5)[:, None] * [0.0, 0.4, 2.0]
        scales = [(k + 1.5, k) for k in range(5)]
        content = dicom_files.enhanced(
            frames, places, np.array([1, 0, 0, 0, 1, 0]), (0.5, 0.7), rescale=scales
        )
        (folder / "a").write_bytes(dicom_files.packed(content, frames) if pack else content)
        return [folder / "a"]

    return make


def _archive(folder: Path) -> list[Path]:
    """Two series and a report in one folder."""
    frame = np.random.default_rng(0).integers(0, 900, (6, 7))
    for k in range(10):
        content = dicom_files.single(frame, (0, 0, k // 2), uid=f"1.2.{k % 2}", number=str(k % 2))
        (folder / f"{k}").write_bytes(content)
    report = dicom_files.single(None, sop_class=f"{dicom_files.STORAGE}88.22")
    (folder / "report").write_bytes(report)
    return sorted(folder.iterdir())


def _read_archive(folder: Path) -> object:
    scans = search_below(folder).scans
    return [read_scan(path).notes for path in scans.values()]


def _transform(path: Path) -> None:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(np.diag([1.0, 1.1, 0.9]).ravel().tolist())
    transform.SetTranslation((1.0, -2.0, 3.5))
    sitk.WriteTransform(transform, str(path))


def _cohort(folder: Path) -> list[Path]:
    for case in "abcd":
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / f"{case}.nii").touch()
        write_mrk_json(folder / "landmarks" / f"{case}.mrk.json", {"left": np.zeros(3)})
    splits = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    write_json(folder / "splits.json", splits)
    return [folder / "splits.json"]


def _case(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    present = np.array([True, True, False])
    place = compose_affine(np.eye(3) * 2, np.ones(3))
    case = PreparedCase("a", folder / "a", place, rng.normal(size=(3, 3)), present, ~present, 0.9)
    save_case(case, rng.normal(size=(5, 4, 6)), folder)
    return [folder / "a" / "case.json", folder / "a" / "image.npy"]


def _read_case(folder: Path) -> object:
    # With a wrong checksum every changed file would be refused at once.
    path = folder / "a" / "case.json"
    with_seal(path)
    case = load_case(folder / "a")
    return case.landmarks_ijk, case.image()


def _label_tables(folder: Path) -> list[Path]:
    (folder / "labels.csv").write_text(
        "label,name,ends,may_be_missing\n0,background,,\n3,stem,tip,no\n7,arm,tip;left,yes\n"
    )
    write_json(folder / "dataset.json", {"labels": {"background": 0, "stem": 3, "arm": 7}})
    (folder / "a_dseg.tsv").write_text("index\tname\tcolor\n3\tstem\tred\n7\tarm\tblue\n")
    return sorted(folder.iterdir())


def _attributes(folder: Path) -> list[Path]:
    (folder / "wide.csv").write_text("case,stem,arm\na,yes,no\nb,1,\n")
    (folder / "long.csv").write_text(
        "Patient;segment;present\na.nii.gz;stem;TRUE\na.nii.gz;arm;absent\nb.nii.gz;arm;0\n"
    )
    return sorted(folder.iterdir())


def _label_map(path: Path) -> None:
    scan = _scan(np.random.default_rng(0))
    write_scan(path, (scan.voxels % 3).astype(np.uint8), scan.ijk_to_lps)


def _read_label_map(folder: Path) -> object:
    scan = _scan(np.random.default_rng(0))
    segments = CohortSegments((Segment("stem", ()),), (1,), (2,), {})
    grid = Grid(scan.voxels.shape, scan.ijk_to_lps)
    return read_label_map(folder / "a.nii", Path("scan.nii"), grid, segments)


def _segments(folder: Path) -> list[Path]:
    """Segments as preparation writes them."""
    scan = _scan(np.random.default_rng(0))
    write_scan(folder / "scan.nii", scan.voxels, scan.ijk_to_lps)
    _label_map(folder / "a.nii")
    points = np.zeros((0, 3))
    source = RawCase("a", folder / "scan.nii", points, points[:, 0], points[:, 0], None, ())
    raw = RawSegments(folder / "a.nii", None)
    segments = CohortSegments((Segment("stem", ()),), (1,), (2,), {"a": raw})
    job = SegmentsJob(
        source, segments, Grid(scan.voxels.shape, scan.ijk_to_lps), folder / "prepared"
    )
    prepare_segments(job)
    return [job.home / "segments.json", job.home / "segmentation.npy"]


def _read_segments(folder: Path) -> object:
    (home,) = (folder / "prepared").iterdir()
    with_seal(home / "segments.json")
    segments = load_segments(home)
    return segments.unseen, segments.file and segments.label_map()


def _alignment(path: Path) -> None:
    matrix = np.eye(4).tolist()
    write_json(path, {"schema_version": 2, "matrix": matrix, "quality": 0.9, "margin": None})


def _frame(folder: Path) -> list[Path]:
    frame = Frame(
        register="rigid",
        metric="correlation",
        search_degrees=90.0,
        template=_scan(np.random.default_rng(0)),
        common_to_template=np.eye(4),
        grid_to_common=np.eye(4),
        shape=(8, 8, 8),
        intensity="percentiles",
        intensity_range=(0.5, 99.5),
        quality_limit=0.7,
    )
    save_frame(frame, NAMES, folder)
    return [folder / "frame.json", folder / "template.mha"]


def _calibration(path: Path) -> None:
    rng = np.random.default_rng(0)
    error = rng.uniform(0, 5, (12, 3))
    observed = {
        "schema_version": calibration.SCHEMA_VERSION,
        "step": 10,
        "landmarks": list(NAMES),
        "cases": [f"c{n}" for n in range(12)],
        "error_mm": {"subvoxel": [[*row[:2].tolist(), None] for row in error]},
        "evidence": rng.normal(size=(12, 3)).tolist(),
        "absent": [[False, False, True]] * 12,
        "usual": Usual(
            of="validation",
            profile=rng.uniform(0, 1, (12, PROFILE_SIZE)),
            overlap=np.ones(12),
            extent_mm=rng.uniform(80, 90, (12, 3)),
            voxel_mm=np.ones((12, 3)),
            evidence=rng.normal(size=12),
        ).to_json(),
    }
    write_json(path, observed)


def _record(path: Path) -> None:
    row = {"lps_mm": [1.0, 2.0, 3.0], "score": 0.5, "presence": None, "radius_mm": 2.5}
    tree = {"schema_version": 1, "case": "a", "made_from": {"scan": "a"}, "model": "m"}
    write_json(path, {**tree, "landmarks": dict.fromkeys(NAMES, row)})


def _evaluation(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 20, (4, 3, 3))
    here = np.ones((4, 3), bool)
    points = Points(
        tuple("abcd"), NAMES, truth, truth + 1, here, ~here, *(rng.uniform(size=(3, 4, 3)))
    )
    floors = {"mean_position": truth.mean(0)}
    evaluate(points, thresholds_mm=(2.0, 4.0), floors=floors, folder=folder, promised=0.9)
    return [folder / "points.csv", folder / "summary.json"]


def _predicted_attributes(path: Path) -> None:
    grid = Grid((9, 8, 7), np.eye(4))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:5, 2:5] = 1
    segments = ScanSegments(COW19, grid, np.full(20, 0.75), np.full(19, 0.25), labels, np.eye(4))
    write_json(path, attributes_of("a", segments, ["a doubt"]))


def _measured_segments(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    columns = ("dice", "cldice", "betti0_error", "volume_true_mm3", "volume_predicted_mm3")
    values = {name: rng.uniform(size=(3, 4)) for name in columns}
    segmentation.write_maps(segmentation.Maps(tuple("abc"), NAMES, values), folder)
    yes = rng.uniform(size=(3, 3)) < 0.5
    told = attributes.Attributes(tuple("abc"), NAMES, rng.uniform(size=(3, 3)), yes, yes)
    kinds = (attributes.SEGMENT, attributes.LANDMARK)
    attributes.write_attributes(dict.fromkeys(kinds, told), folder)
    return [folder / segmentation.MAPS, folder / attributes.ATTRIBUTES]


def _config(path: Path) -> None:
    from experiments.cow import get_config as experiment
    from jaxmark.config import to_json

    write_json(path, {"schema_version": 1, **to_json(experiment("tiny"))})


KINDS = {
    ".mrk.json": Kind(_one("a.mrk.json", _markups), lambda d: read_landmarks(d / "a.mrk.json")),
    ".fcsv": Kind(_one("a.fcsv", _markups), lambda d: read_landmarks(d / "a.fcsv")),
    ".csv": Kind(_one("a.csv", _table), lambda d: read_landmarks(d / "a.csv")),
    "unpaired": Kind(
        _one("sets.csv", _table),
        lambda d: read_unpaired(Data(unpaired=str(d / "sets.csv")), NAMES),
    ),
    "spreadsheet": Kind(
        _one("sets.csv", _spreadsheet),
        lambda d: read_unpaired(Data(unpaired=str(d / "sets.csv")), NAMES),
    ),
    "Slicer's table": Kind(_one("a.csv", _control_points), lambda d: read_landmarks(d / "a.csv")),
    "voxels .json": Kind(_one("a.json", _voxels), lambda d: read_tables(d / "a.json")),
    "predictions": Kind(_predictions, lambda d: read_unpaired(Data(unpaired=str(d)), NAMES)),
    "splits.json": Kind(_cohort, lambda d: read_cohort(Data(root=str(d)))),
    ".nii": Kind(_one("a.nii", _scan_file), lambda d: read_scan(d / "a.nii")),
    ".nii.gz": Kind(_one("a.nii.gz", _scan_file), lambda d: read_scan(d / "a.nii.gz"), True),
    ".mha": Kind(_one("a.mha", _scan_file), lambda d: read_scan(d / "a.mha")),
    ".nrrd": Kind(_one("a.nrrd", _scan_file), lambda d: read_scan(d / "a.nrrd")),
    "NIfTI-2": Kind(_one("a.nii.gz", _nifti_2), lambda d: read_scan(d / "a.nii.gz"), True),
    ".hdr": Kind(_in_two("a.hdr"), lambda d: read_scan(d / "a.hdr")),
    ".nhdr": Kind(_in_two("a.nhdr"), lambda d: read_scan(d / "a.nhdr")),
    ".mgz": Kind(_one("a.mgz", _mgz), lambda d: read_scan(d / "a.mgz"), True),
    "DICOM": Kind(_series(""), read_scan),
    "DICOM, JPEG 2000": Kind(_series("JPEG2000"), read_scan),
    "DICOM, multi-frame": Kind(_frames(False), lambda d: read_scan(d / "a")),
    "DICOM, packed frames": Kind(_frames(True), lambda d: read_scan(d / "a")),
    "DICOM, several series": Kind(_archive, _read_archive),
    "transform .tfm": Kind(_one("a.tfm", _transform), lambda d: read_transform(d / "a.tfm")),
    "transform .mat": Kind(_one("a.mat", _transform), lambda d: read_transform(d / "a.mat")),
    "prepared case": Kind(_case, _read_case),
    "label tables": Kind(
        _label_tables, lambda d: [read_label_tables([path]) for path in sorted(d.iterdir())]
    ),
    "attributes": Kind(
        _attributes,
        lambda d: [read_attributes(path, ("stem", "arm"), "ab") for path in sorted(d.iterdir())],
    ),
    "label map": Kind(_one("a.nii", _label_map), _read_label_map),
    "prepared segments": Kind(_segments, _read_segments),
    "alignment": Kind(
        _one("a.json", _alignment), lambda d: read_alignment(with_seal(d / "a.json"))
    ),
    "frame": Kind(_frame, load_frame),
    "calibration": Kind(
        _one(calibration.FILE, _calibration),
        lambda d: calibration.load(d, NAMES, 10, "subvoxel", 0.9),
    ),
    "batch record": Kind(_one("a.json", _record), lambda d: batch.read_record(d / "a.json", NAMES)),
    "evaluation": Kind(_evaluation, lambda d: (read_points(d), read_summary(d))),
    "predicted attributes": Kind(
        _one("a.attributes.json", _predicted_attributes),
        lambda d: read_predicted_attributes(d / "a.attributes.json", COW19),
    ),
    "measured segments": Kind(
        _measured_segments,
        lambda d: (segmentation.read_maps(d), attributes.read_attributes_table(d)),
    ),
    "config.json": Kind(_one("config.json", _config), lambda d: get_config(str(d))),
}


def with_seal(path: Path) -> Path:
    """The file with its checksum corrected, if it is JSON."""
    try:
        tree = json.loads(path.read_bytes())
        tree.pop("crc32", None)
        path.write_text(json.dumps(sealed(tree)))
    except (ValueError, AttributeError, RecursionError):
        pass
    return path


# Changes

_NUMBERS = (
    b"0 -1 1 2 3 4 255 65535 2147483647 2147483648 4294967295 1e308 1e999 -1e999 nan inf 1e-320 "
    b'99999999999999999999 0.5 1e30 true null [] {} "" -0'
).split()
_WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def changed(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to four random changes."""
    for _ in range(int(rng.integers(1, 5))):
        content = _CHANGES[rng.integers(len(_CHANGES))](bytearray(content), rng)
    return content


def _flip(data: bytearray, rng: np.random.Generator) -> bytes:
    for at in rng.integers(len(data), size=rng.integers(1, 9)) if data else ():
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


def _word(data: bytearray, rng: np.random.Generator) -> bytes:
    size = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(max(len(data) - size, 0) + 1))
    order = "little" if rng.integers(2) else "big"
    word = int(rng.choice(_WORDS)) & ((1 << 8 * size) - 1)
    data[at : at + size] = word.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(data)


def _cut(data: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(data[: rng.integers(len(data) + 1)])


def _splice(data: bytearray, rng: np.random.Generator) -> bytes:
    """Remove a part, double it, or move it."""
    begin, end = sorted(rng.integers(len(data) + 1, size=2).tolist())
    part = data[begin:end] * int(rng.integers(0, 3))
    at = int(rng.integers(len(data) + 1))
    data[at : at + int(rng.integers(0, 2)) * len(part)] = part
    return bytes(data)


def _number(data: bytearray, rng: np.random.Generator) -> bytes:
    found = list(re.finditer(rb"-?\d+(\.\d+)?(e[-+]?\d+)?", data))
    if found:
        where = found[rng.integers(len(found))]
        data[where.start() : where.end()] = _NUMBERS[rng.integers(len(_NUMBERS))]
    return bytes(data)


def _line(data: bytearray, rng: np.random.Generator) -> bytes:
    """Remove or double a line or cell."""
    mark = (b"\n", b",", b" ")[rng.integers(3)]
    parts = bytes(data).split(mark)
    at = int(rng.integers(len(parts)))
    parts[at : at + 1] = [parts[at]] * int(rng.choice([0, 2, 3]))
    return mark.join(parts)


_CHANGES = (_flip, _flip, _word, _word, _cut, _splice, _number, _number, _line)


# The process that reads


def serve(kind: Kind) -> None:
    """Read one folder after another, named on stdin, and print a line of JSON for each."""
    faulthandler.enable()
    warnings.simplefilter("error")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        folder = Path(json.loads(line))
        try:
            kind.read(folder)
            outcome, what = "read", ""
        except InputError as error:
            # A good message is one printable line that names a file.
            good = str(error).isprintable() and str(folder) in str(error)
            outcome, what = "refused" if good else "failed", str(error)
        except BaseException:
            outcome, what = "failed", traceback.format_exc()
        print(json.dumps([outcome, what]), flush=True)


class Reader:
    """A process that runs `serve`; a new one starts if it ends."""

    def __init__(self, name: str, log: Path):
        self._name, self._log = name, log
        self._process: subprocess.Popen[str] | None = None

    def read(self, folder: Path) -> tuple[str, str]:
        """The outcome of the files in `folder`: read, refused or failed; and details."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(str(folder)) + "\n")
        process.stdin.flush()
        answer = self._answer(process, _LIMIT_S)
        if answer is not None:
            return answer[0], answer[1]
        late = process.poll() is None
        self.stop()
        said = self._log.read_text(errors="replace")[-3000:]
        return "failed", f"more than {_LIMIT_S} s" if late else f"the process ended: {said}"

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "experiments.fuzz", f"--serve={self._name}"]
        with self._log.open("w") as log:
            self._process = process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="utf-8"
            )
        if self._answer(process, 120) is None:
            raise RuntimeError(f"the reader does not start: {self._log.read_text()}")
        return process

    @staticmethod
    def _answer(process: "subprocess.Popen[str]", seconds: float) -> Sequence[str] | None:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        line = process.stdout.readline()
        answer: Sequence[str] | None = json.loads(line) if line else None
        return answer


def fuzz(name: str, kind: Kind, seconds: float, seed: int, failures: Path) -> list[str]:
    """A row of the table: inputs tried, read, refused, failed, and the slowest in seconds."""
    count = {"read": 0, "refused": 0, "failed": 0}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        files = kind.make(folder)
        good = {file: file.read_bytes() for file in files}
        others = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        reader = Reader(name, Path(temporary) / "log")
        if (first := reader.read(folder))[0] != "read":
            raise RuntimeError(f"{name}: the good files are not read: {first[1]}")
        number = 0
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            rng = np.random.default_rng([seed, number, *name.encode()])
            number += 1
            for path, content in others.items():
                path.write_bytes(content)
            # One file, or all of them.
            chosen = files if rng.random() < 0.2 else [files[rng.integers(len(files))]]
            for file in chosen:
                file.write_bytes(_made(good[file], kind.packed, rng))
            tried = {file: file.read_bytes() for file in chosen}
            at = time.monotonic()
            outcome, what = reader.read(folder)
            slowest = max(slowest, time.monotonic() - at)
            count[outcome] += 1
            if outcome == "failed":
                _keep(failures / re.sub(r"\W+", "-", name).strip("-"), tried, what)
        reader.stop()
    return [name, str(number), *map(str, count.values()), f"{slowest:.2f} s"]


def _made(content: bytes, packed: bool, rng: np.random.Generator) -> bytes:
    """The content changed; half of the changes to a packed file are inside of the packing."""
    if packed and rng.random() < 0.5:
        return gzip.compress(changed(gzip.decompress(content), rng), 1)
    return changed(content, rng)


def _keep(folder: Path, tried: dict[Path, bytes], what: str) -> None:
    """Keep files that failed, in one folder for each place in the code where they failed."""
    lines = [line for line in what.strip().splitlines() if "files/" not in line] or [what]
    key = hashlib.sha256("".join(lines[-4:]).encode()).hexdigest()[:8]
    home = folder / key
    if home.exists():
        return
    home.mkdir(parents=True)
    for path, content in tried.items():
        (home / path.name).write_bytes(content)
    (home / "what.txt").write_text(what, encoding="utf-8")
    print(f"failed: {home}: {lines[-1][:200]}", flush=True)


def main(_: Sequence[str]) -> None:
    """Print the table."""
    if _SERVE.value:
        serve(KINDS[_SERVE.value])
        return
    names = _ONLY.value or list(KINDS)
    share = _SECONDS.value / len(names)
    rows = [["format", "tried", "read", "refused", "failed", "slowest"]]
    rows.append(["---"] * len(rows[0]))
    for name in names:
        rows.append(fuzz(name, KINDS[name], share, _SEED.value, Path(_FAILURES.value)))
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    print("\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows))
    if any(row[4] != "0" for row in rows[2:]):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
