"""Prepared cases: a folder for each, with the image and `case.json`.

The image is `image.npy`; for methods that need `Chunks` it is in the files of `chunks` instead.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.core.grids import Grid
from jaxmark.core.pose import true_pose
from jaxmark.data import multiscale
from jaxmark.data.arrays import check_crc32, map_npy, npy, read_npy, write_folder
from jaxmark.data.chunks import ChunkedImage
from jaxmark.system.errors import InputError
from jaxmark.system.files import json_text, read_sealed, sealed

SCHEMA_VERSION = 3

# Names of the checksums of the files of `chunks`, in `ChunkedImage` and in `case.json`.
_CHECKSUMS = ("chunks_crc32", "coarse_crc32")

# Arrays of a batch, or of one case in it, by the names of the fields of `methods.method.Batch` and
# of its targets.
HostBatch = dict[str, Any]

# Field -> its key in the file.
_FIGURES = {"quality": "quality", "lead": "margin", "overlap": "coverage"}


@dataclasses.dataclass(frozen=True)
class Volume:
    """A prepared image with its margin, and the map from its voxels to its scan's LPS mm."""

    name: str
    image: Callable[[], np.ndarray]  # (X, Y, Z); called where the whole image is needed
    ijk_to_lps: np.ndarray  # (4, 4)
    # The same image, if it is on disk in chunks.
    chunks: ChunkedImage | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) in voxels."""
        x, y, z = self.image().shape if self.chunks is None else self.chunks.shape
        return x, y, z

    def patch(self, first: Sequence[int] | np.ndarray, side: int) -> np.ndarray:
        """The cube of `side` voxels from voxel `first` on, float16; 0 outside of the image."""
        if self.chunks is not None:
            return self.chunks.patch(first, side)
        return multiscale.patch(self.image(), first, side)

    def coarse(self, factor: int) -> np.ndarray:
        """Means over cubes of `factor` voxels, float16; `factor` divides the image's sides."""
        if self.chunks is not None:
            return self.chunks.coarse(factor)
        return multiscale.coarse(self.image(), factor)

    def sampled(self, grid_to_ijk: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """(X, Y, Z) float32 at the nodes of an affine grid, trilinear; 0 outside of the image.

        Args:
          grid_to_ijk: (4, 4) indices of the grid -> of the image; spacings should be similar.
        """
        return multiscale.sampled(self.patch, grid_to_ijk, shape)

    def overview(self) -> tuple[np.ndarray, np.ndarray]:
        """The image for views of the whole, and its ijk_to_lps (4, 4).

        For a large image in chunks this is the coarse image.
        """
        if self.chunks is None:
            return self.image(), self.ijk_to_lps
        factor = self.chunks.overview_factor
        seen_to_ijk = compose_affine(np.eye(3) * factor, np.full(3, (factor - 1) / 2))
        return self.chunks.overview(), self.ijk_to_lps @ seen_to_ijk


@dataclasses.dataclass(frozen=True)
class CaseSegments:
    """Which of the S segments a case has, and where they are."""

    present: np.ndarray  # (S,) bool
    absent: np.ndarray  # (S,) bool; segments neither present nor absent are unknown
    grid: Grid  # of the raw scan
    # (X, Y, Z) uint8 on the grid of the prepared image, as an .npy file: 0, or 1 + index of the
    # segment. None: the case has no label map.
    file: Path | None = None
    crc32: int | None = None  # of that file
    # The user's label map, on the raw scan's grid.
    source: Path | None = None
    values: tuple[int, ...] = ()  # (S,) the value of each segment in `source`
    voxels: tuple[int, ...] = ()  # (S,) the number of its voxels there

    @property
    def unseen(self) -> int:
        """How many segments are stated to be present and have no voxel in the label map."""
        return int((self.present & (np.array(self.voxels) == 0)).sum()) if self.voxels else 0

    def label_map(self) -> np.ndarray:
        """(X, Y, Z) uint8 on the grid of the prepared image; InputError where it is damaged."""
        assert self.file is not None, "a case without a label map"
        try:
            return read_npy(self.file, np.uint8)
        except (OSError, ValueError) as error:
            problem = f"damaged prepared label map ({error}); delete its folder"
            raise InputError(self.file, problem) from error


def _unknown() -> np.ndarray:
    return np.full(3, np.nan)


@dataclasses.dataclass(frozen=True)
class PreparedCase:
    """A scan resampled to the experiment's grid, crop plus margin, with its landmarks."""

    name: str
    folder: Path
    ijk_to_lps: np.ndarray  # (4, 4): voxels of the prepared image -> mm of the scan's world
    landmarks_mm: np.ndarray  # (K, 3) LPS mm of the scan's world; NaN where not present
    present: np.ndarray  # (K,) bool: annotated
    absent: np.ndarray  # (K,) bool; landmarks neither present nor absent are unknown
    quality: float = np.nan  # of the registration; NaN without one
    lead: float = np.nan  # of the registration: near 0, another rotation fits as well
    overlap: float = 1.0  # share of the volume that lies in the scan
    image_crc32: int | None = None  # of the file `image.npy`; None: it is not written yet
    notes: tuple[str, ...] = ()  # what a reader guessed or repaired in the scan
    # (3,) of the scan, sorted; NaN where an earlier version prepared it.
    extent_mm: np.ndarray = dataclasses.field(default_factory=_unknown)
    voxel_mm: np.ndarray = dataclasses.field(default_factory=_unknown)
    # For methods that learn segments.
    segments: CaseSegments | None = None
    # For a picture: mm between columns and between rows, if known.
    pixel_mm: tuple[float, float] | None = None
    # The image, for methods that need it in chunks; there is no `image.npy` then.
    chunks: ChunkedImage | None = None

    @property
    def landmarks_ijk(self) -> np.ndarray:
        """(K, 3) in voxels of the prepared image, NaN where not present."""
        back = np.linalg.inv(self.ijk_to_lps)
        return self.landmarks_mm @ back[:3, :3].T + back[:3, 3]

    @property
    def volume(self) -> Volume:
        """The image in the form that prediction takes."""
        return Volume(self.name, partial(self.image, mapped=True), self.ijk_to_lps, self.chunks)

    def image(self, *, mapped: bool = False) -> np.ndarray:
        """(X, Y, Z) float16; background near 0, bright structures near 1.

        With `mapped` only the parts that are used are read from disk; chunks are always read whole.
        """
        if self.chunks is not None:
            return self.chunks.whole()
        path = self.folder / "image.npy"
        try:
            return (map_npy if mapped else read_npy)(path, np.float16)
        except (OSError, ValueError) as error:
            raise InputError(
                path, f"damaged prepared image ({error}); delete its folder"
            ) from error

    def check_image(self) -> None:
        """Raises InputError if the image's files have changed since they were written."""
        if self.chunks is not None:
            self.chunks.check()
            return
        check_crc32(self.folder / "image.npy", self.image_crc32)


def save_case(case: PreparedCase, image: np.ndarray, made_from: Path) -> None:
    """Writes `case.folder` whole or not at all; an OSError names it."""
    array = npy(image.astype(np.float16))
    tree = _tree(case, {"image_crc32": zlib.crc32(array)}, made_from)
    write_folder(case.folder, {"image.npy": array, "case.json": json_text(tree).encode()})


def write_chunked_case(case: PreparedCase, folder: Path, made_from: Path) -> None:
    """Writes `case.json` into the folder of `case.chunks`; `load_case` reads both."""
    chunks = case.chunks
    assert chunks is not None, "a case whose image is in memory"
    known = {name: getattr(chunks, name) for name in ("shape", "factor", *_CHECKSUMS)}
    tree = _tree(case, {"chunks": known}, made_from)
    (folder / "case.json").write_text(json_text(tree), "utf-8")


def _tree(case: PreparedCase, image: dict[str, Any], made_from: Path) -> dict[str, Any]:
    """The content of `case.json`; `image` holds the fields on the image's files."""
    return sealed(
        {
            "schema_version": SCHEMA_VERSION,
            "name": case.name,
            "ijk_to_lps": case.ijk_to_lps.tolist(),
            "landmarks_lps_mm": [
                p.tolist() if here else None
                for p, here in zip(case.landmarks_mm, case.present, strict=True)
            ],
            "absent": case.absent.tolist(),
            **{key: _number(getattr(case, name)) for name, key in _FIGURES.items()},
            **{
                key: size.tolist()
                for key, size in (("extent_mm", case.extent_mm), ("voxel_mm", case.voxel_mm))
                if np.isfinite(size).all()
            },
            **image,
            "made_from": str(made_from),
            # Left out if empty, as in files of earlier versions.
            **({"notes": list(case.notes)} if case.notes else {}),
            **({"pixel_mm": case.pixel_mm} if case.pixel_mm else {}),
        }
    )


def load_case(folder: Path) -> PreparedCase:
    """Reads `case.json`; the image is read when it is needed."""
    path = folder / "case.json"
    try:
        tree = read_sealed(path, SCHEMA_VERSION)
        points = tree["landmarks_lps_mm"]
        landmarks = [[np.nan] * 3 if p is None else p for p in points]
        if not all(abs(v) < 1e9 for p in points if p is not None for v in p):
            raise ValueError("a landmark that is nowhere")
        place = np.asarray(tree["ijk_to_lps"], np.float64).reshape(4, 4)
        if not ((np.abs(place) < 1e9).all() and np.linalg.matrix_rank(place) == 4):
            raise ValueError("a place without an inverse")
        figures = {
            name: np.nan if tree[key] is None else float(tree[key])
            for name, key in _FIGURES.items()
        }
        return PreparedCase(
            name=tree["name"],
            folder=folder,
            ijk_to_lps=place,
            landmarks_mm=np.asarray(landmarks, np.float64).reshape(len(points), 3),
            present=np.asarray([p is not None for p in points], bool),
            absent=np.asarray(tree["absent"], bool).reshape(len(points)),
            image_crc32=None if "chunks" in tree else tree["image_crc32"],
            chunks=_chunks(folder, tree["chunks"]) if "chunks" in tree else None,
            notes=_notes(tree.get("notes", [])),
            pixel_mm=_pixel_mm(tree.get("pixel_mm")),
            extent_mm=_size(tree.get("extent_mm")),
            voxel_mm=_size(tree.get("voxel_mm")),
            quality=figures["quality"],
            lead=figures["lead"],
            overlap=figures["overlap"],
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(path, f"damaged prepared case ({error!r})") from error


def read_case(case: PreparedCase, rng: np.random.Generator) -> HostBatch:
    """The whole prepared image and its landmarks: what most methods learn from."""
    return {
        "image": case.image()[..., None],
        "landmarks_ijk": np.nan_to_num(case.landmarks_ijk).astype(np.float32),
        "present": case.present,
        "absent": case.absent,
    }


def read_coarse(case: PreparedCase, rng: np.random.Generator, *, factor: int) -> HostBatch:
    """The whole image, `factor` times smaller, with landmarks in its voxels."""
    points = (np.nan_to_num(case.landmarks_ijk) + 0.5) / factor - 0.5
    return {
        "image": case.volume.coarse(factor)[..., None],
        "landmarks_ijk": points.astype(np.float32),
        "present": case.present,
        "absent": case.absent,
    }


def read_posed(
    case: PreparedCase, rng: np.random.Generator, *, shape_mm: np.ndarray, grid: Grid
) -> HostBatch:
    """A crop on `grid`, in the frame of a typical shape (K, 3), fitted to the case's landmarks."""
    points_mm = np.where(case.present[:, None], case.landmarks_mm, np.nan)
    to_lps = true_pose(shape_mm, points_mm) @ grid.ijk_to_lps
    to_volume = np.linalg.inv(case.ijk_to_lps) @ to_lps
    points = apply_affine(np.linalg.inv(to_lps), np.nan_to_num(case.landmarks_mm))
    return {
        "image": case.volume.sampled(to_volume, grid.shape).astype(np.float16)[..., None],
        "landmarks_ijk": points.astype(np.float32),
        "present": case.present,
        "absent": case.absent,
    }


def read_case_and_attributes(case: PreparedCase, rng: np.random.Generator) -> HostBatch:
    """As `read_case`, with the targets `segments_present` and `segments_absent`, (S,) bool."""
    assert case.segments is not None, "segments that no method has asked for"
    known = {"segments_present": case.segments.present, "segments_absent": case.segments.absent}
    return {**read_case(case, rng), "targets": known}


def read_segmented_case(case: PreparedCase, rng: np.random.Generator) -> HostBatch:
    """As `read_case_and_attributes`, with the label map, (X, Y, Z) uint8."""
    batch = read_case_and_attributes(case, rng)
    assert case.segments is not None
    batch["targets"]["segmentation"] = case.segments.label_map()
    return batch


def _pixel_mm(stated: Any) -> tuple[float, float] | None:
    if stated is None:
        return None
    x, y = map(float, stated)
    if not (0 < x < 1e9 and 0 < y < 1e9):
        raise ValueError("a pixel of no size")
    return x, y


def _chunks(folder: Path, known: dict[str, Any]) -> ChunkedImage:
    x, y, z = map(int, known["shape"])
    checksums = (int(known[name]) for name in _CHECKSUMS)
    return ChunkedImage(folder, (x, y, z), int(known["factor"]), *checksums)


def _notes(lines: object) -> tuple[str, ...]:
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError("notes that are no lines")
    return tuple(lines)


def _size(lengths: list[float] | None) -> np.ndarray:
    """(3,) lengths of a scan; NaN for files of earlier versions, which lack them."""
    return _unknown() if lengths is None else np.asarray(lengths, np.float64).reshape(3)


def _number(value: float) -> float | None:
    """The number, or None for NaN and infinity, which JSON does not have."""
    return float(value) if np.isfinite(value) else None
