"""Prepared images in cubes on disk: reading a patch does not read the volume around it.

A folder holds `chunks.npy`, the image (X, Y, Z) as (X / 32, Y / 32, Z / 32, 32, 32, 32) float16
with zeros behind its last voxels, and `coarse.npy`, means over cubes of `factor` voxels. A patch of
64 voxels touches 27 cubes, which are 1.8 MB in 9 pieces; in one array of 512 voxels a side it
touches 4096 rows. Files are read, not mapped: a file that another process cuts short then raises an
error; if mapped, it would end the process.
"""

import dataclasses
import io
import itertools
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxmark.core.grids import box
from jaxmark.data import multiscale
from jaxmark.data.arrays import check_crc32, npy, read_npy, shape_of
from jaxmark.system.errors import InputError

# Voxels along a cube's side. Smaller cubes split a patch into more pieces; larger cubes hold more
# voxels that a patch does not need.
SIDE = 32

# Overviews of an image with more voxels use the coarse image: 2**26 voxels are 0.27 GB in float32.
_LARGE_VOXELS = 2**26

_CHUNKS, _COARSE = "chunks.npy", "coarse.npy"


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Storage for methods that read patches, and the whole image `factor` times smaller."""

    factor: int


@dataclasses.dataclass(frozen=True)
class ChunkedImage:
    """An image (X, Y, Z) float16 in a folder, on disk only."""

    folder: Path
    shape: tuple[int, int, int]
    factor: int
    chunks_crc32: int
    coarse_crc32: int

    def patch(self, first: Sequence[int] | np.ndarray, side: int) -> np.ndarray:
        """As `multiscale.patch`, from the disk; InputError where the file is damaged."""
        found = np.zeros((side,) * 3, np.float16)
        low = np.maximum(first, 0)
        high = np.minimum(np.asarray(first) + side, self.shape)
        if not (high > low).all():
            return found
        path = self.folder / _CHUNKS
        try:
            with path.open("rb") as file:
                counts = self._counts(file)
                self._fill(file.fileno(), file.tell(), counts, found, first, low, high)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        return found

    def _fill(
        self,
        descriptor: int,
        begin: int,
        counts: tuple[int, ...],
        found: np.ndarray,
        first: Sequence[int] | np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
    ) -> None:
        """Copies voxels `low` to `high` to where they lie in the patch that begins at `first`."""
        (i, j, k), (i_end, j_end, k_end) = low // SIDE, (high - 1) // SIDE + 1
        # Cubes along the last axis are contiguous in the file: a row of them is one piece.
        row = (int(k_end - k), SIDE, SIDE, SIDE)
        size = 2 * SIDE**3
        places = {
            (x, y): begin + ((x * counts[1] + y) * counts[2] + int(k)) * size
            for x, y in itertools.product(range(i, i_end), range(j, j_end))
        }
        # The system can then fetch all pieces at once.
        if hasattr(os, "posix_fadvise"):
            for place in places.values():
                os.posix_fadvise(descriptor, place, row[0] * size, os.POSIX_FADV_WILLNEED)
        for (x, y), place in places.items():
            piece = os.pread(descriptor, row[0] * size, place)
            if len(piece) < row[0] * size:
                raise ValueError("truncated")
            for z, cube in enumerate(np.frombuffer(piece, np.float16).reshape(row), k):
                corner = np.array([x, y, z]) * SIDE
                start = np.maximum(low, corner)
                seen = np.minimum(high, corner + SIDE) - start
                found[box(start - first, seen)] = cube[box(start - corner, seen)]

    def coarse(self, factor: int) -> np.ndarray:
        """As `multiscale.coarse`; read from disk for `self.factor`, else computed."""
        if factor != self.factor:
            return multiscale.coarse(self.whole(), factor)
        path = self.folder / _COARSE
        try:
            return read_npy(path, np.float16)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error

    def whole(self) -> np.ndarray:
        """The whole image, in memory."""
        path = self.folder / _CHUNKS
        found = np.empty(self.shape, np.float16)
        try:
            with path.open("rb") as file:
                counts = self._counts(file)
                for x in range(0, self.shape[0], SIDE):
                    slab = np.fromfile(file, np.float16, math.prod(counts[1:]))
                    y, z = counts[1] * SIDE, counts[2] * SIDE
                    voxels = slab.reshape(counts[1:]).transpose(2, 0, 3, 1, 4).reshape(SIDE, y, z)
                    part = found[x : x + SIDE]
                    part[:] = voxels[: len(part), : self.shape[1], : self.shape[2]]
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        return found

    @property
    def overview_factor(self) -> int:
        """How many voxels along an axis become one in `overview`."""
        return self.factor if math.prod(self.shape) > _LARGE_VOXELS else 1

    def overview(self) -> np.ndarray:
        """The image for pictures and statistics of the whole: the coarse one, if it is large."""
        return self.whole() if self.overview_factor == 1 else self.coarse(self.factor)

    def check(self) -> None:
        """Raises InputError if a file has changed since it was written."""
        check_crc32(self.folder / _CHUNKS, self.chunks_crc32)
        check_crc32(self.folder / _COARSE, self.coarse_crc32)

    def _counts(self, file: BinaryIO) -> tuple[int, ...]:
        """(6,) shape of the stored array; reads the file up to its first voxel."""
        counts = shape_of(file, np.float16, axes=6)
        if counts != _stored_shape(self.shape):
            raise ValueError(f"cubes {counts} of an image of {self.shape} voxels")
        return counts


def slab_planes(factor: int) -> int:
    """Planes along X of the slabs that `write_chunks` takes: whole cubes, fine and coarse."""
    return math.lcm(SIDE, factor)


def write_chunks(
    folder: Path, shape: tuple[int, int, int], slabs: Iterable[np.ndarray], factor: int
) -> ChunkedImage:
    """Writes an image to an existing folder, slab by slab: it need never be in memory as a whole.

    Args:
      shape: (X, Y, Z), multiples of `factor`.
      slabs: the image along X, (planes, Y, Z) float16; all but the last have `slab_planes` planes.

    Raises:
      OSError: the folder cannot be written.
    """
    checksum, smaller = 0, list[np.ndarray]()
    with (folder / _CHUNKS).open("wb") as file:
        header = io.BytesIO()
        descriptor = {"descr": "<f2", "fortran_order": False, "shape": _stored_shape(shape)}
        np.lib.format.write_array_header_1_0(header, descriptor)
        pieces = (piece for slab in slabs for piece in _cubes(slab, smaller, factor))
        for piece in itertools.chain([header.getbuffer()], pieces):
            file.write(piece)
            checksum = zlib.crc32(piece, checksum)
    array = npy(np.concatenate(smaller))
    (folder / _COARSE).write_bytes(array)
    return ChunkedImage(folder, shape, factor, checksum, zlib.crc32(array))


def _cubes(slab: np.ndarray, smaller: list[np.ndarray], factor: int) -> Iterable[memoryview]:
    """The slab in layers of cubes, as bytes; appends the slab's coarse image to `smaller`."""
    smaller.append(multiscale.coarse(slab, factor))
    for x in range(0, len(slab), SIDE):
        layer = slab[x : x + SIDE]
        counts = _stored_shape(layer.shape)[1:]
        padded = layer
        if layer.shape != (SIDE, counts[0] * SIDE, counts[1] * SIDE):
            padded = np.zeros((SIDE, counts[0] * SIDE, counts[1] * SIDE), np.float16)
            padded[tuple(slice(n) for n in layer.shape)] = layer
        cubes = padded.reshape(SIDE, counts[0], SIDE, counts[1], SIDE).transpose(1, 3, 0, 2, 4)
        yield np.ascontiguousarray(cubes).data.cast("B")


def _stored_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return (*(-(-n // SIDE) for n in shape), SIDE, SIDE, SIDE)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(path, f"damaged prepared image ({error}); delete its folder")
