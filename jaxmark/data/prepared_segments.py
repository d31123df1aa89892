"""Prepared segments: a folder for each case, with `segments.json`, and `segmentation.npy` if the
case has a label map.

They lie beside the prepared cases, so that methods with and without segments share images.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.grids import Grid, nearest_labels
from jaxmark.data.arrays import check_crc32, npy, write_folder
from jaxmark.data.cases import CaseSegments
from jaxmark.data.cohort import Cohort, RawCase
from jaxmark.data.scans import read_voxels
from jaxmark.data.segmentations import CohortSegments, RawSegments, read_label_map
from jaxmark.system.errors import InputError
from jaxmark.system.files import json_text, read_sealed, sealed
from jaxmark.system.fingerprints import file_state, json_key
from jaxmark.system.messages import counted

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class SegmentsJob:
    """The input of `prepare_segments` for one case."""

    source: RawCase
    cohort: CohortSegments  # with this case only
    grid: Grid  # of the prepared image, in the scan's mm
    folder: Path  # of all cases' segments

    @property
    def raw(self) -> RawSegments:
        """The case's label map and attributes."""
        return self.cohort.cases[self.source.name]

    @property
    def home(self) -> Path:
        """The folder of the prepared segments; its name changes with their sources."""
        made_from = {
            "schema_version": SCHEMA_VERSION,
            "scan": file_state(self.source.scan),
            "label_map": file_state(self.raw.label_map) if self.raw.label_map else None,
            "stated": None if self.raw.stated is None else self.raw.stated.tolist(),
            "segments": [dataclasses.asdict(segment) for segment in self.cohort.segments],
            "values": [self.cohort.values, self.cohort.background],
            "grid": [self.grid.shape, self.grid.ijk_to_lps.tolist()],
        }
        return self.folder / f"{self.source.name}-{json_key(made_from)}"


def segments_jobs(
    cohort: Cohort, segments: CohortSegments | None, folder: Path, grids: Mapping[str, Grid]
) -> dict[str, SegmentsJob]:
    """Case -> job, for prepared images on these grids; empty without segments.

    Jobs are sent to other processes, so each holds its case only.
    """
    if segments is None:
        return {}
    return {
        name: SegmentsJob(
            cohort.cases[name],
            dataclasses.replace(segments, cases={name: segments.cases[name]}, notes=()),
            grid,
            folder,
        )
        for name, grid in grids.items()
    }


def prepare_segments(job: SegmentsJob) -> None:
    """Writes `job.home`.

    Raises:
      InputError: `read_label_map` refuses the map, or it shows a segment that is stated to be
        absent; the scan cannot be read.
      OSError: the folder cannot be written.
    """
    # Only the scan's grid is needed.
    scan = read_voxels(job.source.scan)
    own = Grid(scan.voxels.shape, scan.ijk_to_lps)
    labels = None
    voxels: tuple[int, ...] = ()
    if job.raw.label_map is not None:
        labels, voxels = read_label_map(job.raw.label_map, job.source.scan, own, job.cohort)
    present, absent = _states(job, voxels)
    tree: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "present": present.tolist(),
        "absent": absent.tolist(),
        "scan_shape": list(own.shape),
        "scan_ijk_to_lps": own.ijk_to_lps.tolist(),
    }
    files: dict[str, bytes | memoryview] = {}
    if labels is not None:
        files["segmentation.npy"] = npy(nearest_labels(labels, own, job.grid))
        tree["segmentation_crc32"] = zlib.crc32(files["segmentation.npy"])
        tree |= {"label_map": str(job.raw.label_map), "values": job.cohort.values, "voxels": voxels}
    write_folder(job.home, {**files, "segments.json": json_text(sealed(tree)).encode()})


def load_segments(folder: Path) -> CaseSegments:
    """Reads `segments.json`; the label map is read when it is needed."""
    path = folder / "segments.json"
    tree = read_sealed(path, SCHEMA_VERSION)
    try:
        count = len(tree["present"])
        x, y, z = map(int, tree["scan_shape"])
        place = np.asarray(tree["scan_ijk_to_lps"], np.float64).reshape(4, 4)
        if not ((np.abs(place) < 1e9).all() and np.linalg.matrix_rank(place) == 4):
            raise ValueError("a place without an inverse")
        found = CaseSegments(
            present=np.asarray(tree["present"], bool).reshape(count),
            absent=np.asarray(tree["absent"], bool).reshape(count),
            grid=Grid((x, y, z), place),
        )
        if "label_map" not in tree:
            return found
        values, voxels = (np.asarray(tree[key], int).reshape(count) for key in ("values", "voxels"))
        return dataclasses.replace(
            found,
            file=folder / "segmentation.npy",
            crc32=int(tree["segmentation_crc32"]),
            source=Path(tree["label_map"]),
            values=tuple(values.tolist()),
            voxels=tuple(voxels.tolist()),
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(path, f"damaged prepared segments ({error!r})") from error


def load_checked(folder: Path) -> CaseSegments:
    """As `load_segments`; InputError if the label map has changed since it was written."""
    segments = load_segments(folder)
    if segments.file is not None:
        check_crc32(segments.file, segments.crc32)
    return segments


def _states(job: SegmentsJob, voxels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(S,) bool each: segments known to be present, and absent, by attributes and label map.

    A segment with voxels is present. One without voxels is absent only if there are no attributes
    and the segment may be missing; else it may lie outside of the scan, or be too thin.
    """
    segments = job.cohort.segments
    stated = job.raw.stated
    seen = np.array(voxels) > 0 if voxels else np.zeros(len(segments), bool)
    if stated is None:
        may_be_missing = np.array([segment.may_be_missing for segment in segments])
        return seen, ~seen & may_be_missing & bool(voxels)
    wrong = [
        f"{segment.name!r} ({counted(count, 'voxel')})"
        for segment, state, count in zip(segments, stated, voxels, strict=False)
        if state < 0 and count
    ]
    if wrong:
        assert job.raw.label_map is not None
        raise InputError(
            job.raw.label_map,
            f"shows {', '.join(wrong)}, which attributes.csv says that case {job.source.name!r} "
            "lacks; correct one of the two",
        )
    return seen | (stated > 0), stated < 0
