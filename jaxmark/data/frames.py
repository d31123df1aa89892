"""One scan in the frames of several models: read once, aligned once for each template."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxmark.data.frame import Alignment, Frame, PreparedScan, load_frame
from jaxmark.data.scans import Scan
from jaxmark.system.errors import about


def load_frames(folders: Sequence[Path]) -> tuple[Frame, ...]:
    """The frames of several models of one config; equal templates are the same object."""
    frames: list[Frame] = []
    for folder in folders:
        frame = load_frame(folder)[0]
        template = next(
            (f.template for f in frames if _same(f.template, frame.template)), frame.template
        )
        frames.append(dataclasses.replace(frame, template=template))
    return tuple(frames)


def prepare_scan_in(
    path: Path, frames: Sequence[Frame], folder: Path | None = None, pixel_size_mm: float = 0.0
) -> tuple[PreparedScan, ...]:
    """As `frame.prepare_scan`, in each of the frames of `load_frames`."""
    scan = frames[0].read(path, pixel_size_mm)
    with about(path):
        return prepare_in(frames, scan, folder)


def prepare_in(
    frames: Sequence[Frame], scan: Scan, folder: Path | None = None
) -> tuple[PreparedScan, ...]:
    """The scan in each of the frames of `load_frames`.

    Args:
      folder: where images are stored, for frames with chunks: one image in it, or one subfolder for
        each of several frames.
    """
    alignments: dict[int, Alignment] = {}
    prepared: dict[tuple[int, bytes], PreparedScan] = {}
    for frame in frames:
        if id(frame.template) not in alignments:
            alignments[id(frame.template)] = frame.align(scan)
        if _place(frame) in prepared:
            continue
        alignment = alignments[id(frame.template)]
        if frame.chunks is None:
            prepared[_place(frame)] = frame.apply(scan, alignment)
            continue
        assert folder is not None, "a frame whose images are on a disk"
        home = folder if len(frames) == 1 else folder / str(len(prepared))
        home.mkdir(exist_ok=True)
        prepared[_place(frame)] = frame.store(scan, alignment, home)
    return tuple(prepared[_place(frame)] for frame in frames)


def _place(frame: Frame) -> tuple[int, bytes]:
    """A key of template and grid: frames of one config with the same key prepare the same image."""
    # A native grid is the scan's grid.
    grid = b"" if frame.grid == "native" else frame.grid_to_common.tobytes()
    return id(frame.template), grid


def _same(one: Scan | None, other: Scan | None) -> bool:
    """Whether two templates are equal, voxel by voxel."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one.ijk_to_lps, other.ijk_to_lps) and np.array_equal(
        one.voxels, other.voxels
    )
