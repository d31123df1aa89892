"""The common space of a trained model: a `Frame` turns any scan into a volume of one shape.

It is found from the training cases only and is stored with the model: the same frame prepares the
cohort and new scans. A scan's landmarks are never used to prepare it.
"""

import dataclasses
import functools
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np

from jaxmark.core.anatomy import Segment
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.core.grids import Grid, blocks, box
from jaxmark.data.cases import Volume
from jaxmark.data.chunks import ChunkedImage, Chunks, slab_planes, write_chunks
from jaxmark.data.mutual_information import register_mutual_information
from jaxmark.data.pictures import read_picture
from jaxmark.data.registration import Kind, register, smaller
from jaxmark.data.resampling import Sampling, background, covered, resample
from jaxmark.data.scans import Scan, read_scan, write_scan
from jaxmark.system.errors import InputError, about
from jaxmark.system.files import read_json, write_json
from jaxmark.system.parallel import ahead

SCHEMA_VERSION = 2

# A mouse head with 40 % of it cut off was turned wrongly at a lead of 0.008; a few heads that are
# right have such a lead too.
AMBIGUOUS_LEAD = 0.02
# A scan that fills less than this share of the prepared volume gets a warning.
_LITTLE_OVERLAP = 0.5
# Scaled intensities are cut off here: float16 ends at 65504, and implants in a CT may lie far
# above the upper percentile.
_MAX_SCALED = 100.0
# Nodes along each axis that are resampled at a time.
_BLOCK = 128
# Threads that resample a scan whose image goes to disk.
_THREADS = 2


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How a scan was brought to the common frame; figures are NaN without registration."""

    matrix: np.ndarray  # (4, 4): common mm -> mm of the scan
    quality: float  # see Registration
    lead: float  # see Registration; infinite if no other rotation was found


@dataclasses.dataclass(frozen=True)
class PreparedScan:
    """A scan in the common space, and the map back to the scan."""

    # (X, Y, Z) float16, in memory or on disk; background near 0, bright structures near 1.
    image: np.ndarray | ChunkedImage
    ijk_to_lps: np.ndarray  # (4, 4): voxels of `image` -> mm of the scan's world
    quality: float  # of the registration; NaN without one
    lead: float  # of the registration
    overlap: float  # share of the volume that lies in the scan
    profile: np.ndarray  # of its intensities, see `intensity_profile`
    extent_mm: np.ndarray  # (3,) of the scan, sorted
    voxel_mm: np.ndarray  # (3,) of the scan, sorted
    grid: Grid  # of the scan itself
    notes: tuple[str, ...] = ()  # of the scan
    pixel_mm: tuple[float, float] | None = None  # of a picture, if it is known

    def volume(self, name: str) -> Volume:
        """The image in the form that prediction takes."""
        if isinstance(self.image, ChunkedImage):
            return Volume(name, self.image.whole, self.ijk_to_lps, self.image)
        return Volume(name, functools.partial(np.asarray, self.image), self.ijk_to_lps)

    def discard(self) -> None:
        """Deletes the image's folder, if the image is on disk."""
        if isinstance(self.image, ChunkedImage):
            shutil.rmtree(self.image.folder, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Frame:
    """Template, grid and intensities of an experiment; fields as in `config.Data`."""

    register: str
    metric: str
    search_degrees: float
    template: Scan | None  # None where nothing is registered
    common_to_template: np.ndarray  # (4, 4) mm; not the identity where modalities share a frame
    grid_to_common: np.ndarray  # (4, 4): voxels of the prepared image -> common mm
    shape: tuple[int, int, int]  # crop and margin
    intensity: str
    intensity_range: tuple[float, float]  # percentiles, or the window
    quality_limit: float = -np.inf  # registrations with less quality have probably failed
    untrained: tuple[str, ...] = ()  # landmarks that no training case has
    segments: tuple[Segment, ...] = ()  # of the scheme, where the method learns segments
    chunks: Chunks | None = None  # how prepared images are stored; None: each in one array
    unit: str = "mm"  # of the scans' worlds: "px" for pictures of unknown pixel size
    # (K, 3) the landmarks' typical shape, see `Task.shape_mm`; for methods that need it.
    shape_mm: np.ndarray | None = None
    # "native": voxels of prepared pictures are their pixels, and `grid_to_common` is not used.
    grid: str = "common"

    @property
    def planar(self) -> bool:
        """Whether scans are pictures."""
        return self.shape[2] == 1

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) spacing of the prepared volumes."""
        lengths: np.ndarray = np.linalg.norm(self.grid_to_common[:3, :3], axis=0)
        return lengths

    def align(self, scan: Scan) -> Alignment:
        """Registers a scan to the template; without one the scan's frame is the common frame."""
        if self.register == "middle":
            middle = apply_affine(scan.ijk_to_lps, (np.array(scan.voxels.shape) - 1) / 2)
            return Alignment(compose_affine(np.eye(3), middle), np.nan, np.nan)
        if self.template is None:
            return Alignment(np.eye(4), np.nan, np.nan)
        if self.chunks is not None:
            scan = smaller(scan)
        by_information = self.metric == "mutual_information" and self.register != "center"
        match = register_mutual_information if by_information else register
        result = match(self.template, scan, cast(Kind, self.register), self.search_degrees)
        matrix = result.fixed_to_moving @ self.common_to_template
        return Alignment(matrix, result.quality, result.lead)

    def apply(self, scan: Scan, alignment: Alignment) -> PreparedScan:
        """The scan on the common grid; ValueError where the two do not overlap."""
        if self.grid == "native":
            ijk_to_lps = scan.ijk_to_lps @ compose_affine(np.eye(3), -_offset(scan, self.shape))
            seen = self._seen(scan, ijk_to_lps)
            image = _cropped(scan, self.shape)
        else:
            ijk_to_lps = alignment.matrix @ self.grid_to_common
            seen = self._seen(scan, ijk_to_lps)
            image = resample(scan, self.shape, ijk_to_lps)
        limits = self._range(image[::2, ::2, ::2][seen])
        scaled = self._scaled(image, limits)
        return self._prepared(scan, alignment, ijk_to_lps, seen, scaled)

    def read(self, path: Path, pixel_size_mm: float = 0.0) -> Scan:
        """Reads a scan for preparation; voxels keep the file's type if images are in chunks.

        `pixel_size_mm` is for a picture that does not state its pixel size; 0: unknown.
        """
        if self.planar:
            return read_picture(path, self.unit, pixel_size_mm)
        return read_scan(path, as_stored=self.chunks is not None)

    def prepare(self, scan: Scan, folder: Path | None = None) -> PreparedScan:
        """The scan, aligned, on the common grid; see `apply`, and `store` for `folder`."""
        alignment = self.align(scan)
        if self.chunks is None:
            return self.apply(scan, alignment)
        assert folder is not None, "a frame whose images are on a disk"
        return self.store(scan, alignment, folder)

    def store(self, scan: Scan, alignment: Alignment, folder: Path) -> PreparedScan:
        """As `apply`, but writes the image in chunks to an existing folder.

        The whole image is never in memory. The scan's voxels may be of any type.
        """
        assert self.chunks is not None, "a frame whose images are in memory"
        thickness = slab_planes(self.chunks.factor)
        ijk_to_lps = alignment.matrix @ self.grid_to_common
        seen = self._seen(scan, ijk_to_lps)
        sampling = Sampling.of(scan, ijk_to_lps)
        if self.intensity == "window":
            limits = self.intensity_range
        else:
            # Every second node, block by block.
            values = [
                sampling.every(2).sampled(first, shape)[seen[box(first, shape)]]
                for first, shape in blocks(seen.shape, _BLOCK)
            ]
            limits = self._range(np.concatenate(values))

        def slab(first: int) -> np.ndarray:
            planes = min(thickness, self.shape[0] - first)
            found = np.empty((planes, *self.shape[1:]), np.float16)
            for corner, shape in blocks(found.shape, _BLOCK):
                x, y, z = corner
                values = sampling.sampled((first + x, y, z), shape)
                found[box(corner, shape)] = self._scaled(values, limits)
            return found

        # NumPy releases the interpreter's lock: threads resample slabs while one is written.
        with ThreadPoolExecutor(_THREADS) as pool:
            ready = ahead(pool, slab, range(0, self.shape[0], thickness), _THREADS)
            slabs = (voxels for _, voxels in ready)
            image = write_chunks(folder, self.shape, slabs, self.chunks.factor)
        return self._prepared(scan, alignment, ijk_to_lps, seen, image)

    def _seen(self, scan: Scan, ijk_to_lps: np.ndarray) -> np.ndarray:
        """For every second node, whether it lies in the scan; for the overlap and percentiles."""
        half = ijk_to_lps @ np.diag([2.0, 2.0, 2.0, 1.0])
        x, y, z = (-(-n // 2) for n in self.shape)
        seen = covered(scan, (x, y, z), half)
        if not seen.any():
            raise ValueError(
                "lies outside of the volume that the model looks at; if its frame is another one, "
                "config.data.register has to bring it there"
            )
        return seen

    def _scaled(self, image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
        low, high = limits
        image = (image - low) / (high - low)
        return np.clip(image, *self.most).astype(np.float16)

    @property
    def most(self) -> tuple[float, float]:
        """The lowest and the highest scaled intensity; others are cut off."""
        return (0.0, 1.0) if self.intensity == "window" else (-_MAX_SCALED, _MAX_SCALED)

    def _prepared(
        self,
        scan: Scan,
        alignment: Alignment,
        ijk_to_lps: np.ndarray,
        seen: np.ndarray,
        image: np.ndarray | ChunkedImage,
    ) -> PreparedScan:
        small = image.overview() if isinstance(image, ChunkedImage) else image
        # A picture has no thickness.
        spacing_mm = scan.spacing_mm * np.array([1, 1, 0 if self.planar else 1])
        return PreparedScan(
            image=image,
            ijk_to_lps=ijk_to_lps,
            quality=alignment.quality,
            lead=alignment.lead,
            overlap=float(seen.mean()),
            notes=scan.notes,
            profile=intensity_profile(small),
            extent_mm=np.sort(spacing_mm * scan.voxels.shape),
            voxel_mm=np.sort(spacing_mm),
            pixel_mm=scan.pixel_mm,
            grid=Grid(scan.voxels.shape, scan.ijk_to_lps),
        )

    def _range(self, values: np.ndarray) -> tuple[float, float]:
        """The intensities that become 0 and 1.

        Percentiles are taken in the prepared volume, so that a scan's size does not matter.
        """
        if self.intensity == "window":
            return self.intensity_range
        low, high = np.percentile(values, self.intensity_range)
        if high <= low:
            # Very few voxels differ from the others.
            low, high = values.min(), values.max()
        if high <= low:
            raise ValueError(f"is {low:g} everywhere in the volume that the model looks at")
        return float(low), float(high)

    def doubts(
        self, quality: float, lead: float, overlap: float, voxel_mm: np.ndarray
    ) -> list[str]:
        """Warnings about a scan's preparation, a line each; for arguments see `PreparedScan`."""
        found = []
        if quality < self.quality_limit:
            found.append(
                f"registration quality {quality:.3f}, under the {self.quality_limit:.3f} that "
                "training cases reach: it has probably failed"
            )
        if lead < AMBIGUOUS_LEAD:
            found.append(f"another rotation fits nearly as well (margin {lead:.3f})")
        # Native pictures and scans placed by their middle are meant to be smaller than the volume.
        may_be_smaller = self.grid == "native" or self.register == "middle"
        if overlap < _LITTLE_OVERLAP and not may_be_smaller:
            found.append(f"only {100 * overlap:.0f} % of the prepared volume lies in the scan")
        if self.chunks is not None:
            # The voxels of the first stage, which sees the whole scan.
            coarse_mm = self.chunks.factor * np.linalg.norm(self.grid_to_common[:3, :3], axis=0)
            # An unknown size is NaN, and NaN is never larger.
            if (voxel_mm > coarse_mm.max() * (1 + 1e-3)).any():
                found.append(
                    f"its voxels, up to {voxel_mm.max():.3g} mm long, are coarser than the "
                    f"{coarse_mm.max():.3g} mm of the first stage: the second sees nothing finer"
                )
        return found


def _offset(scan: Scan, shape: tuple[int, int, int]) -> np.ndarray:
    """(3,) whole voxels that move a scan's middle to the middle of a native grid."""
    return (np.array(shape) - scan.voxels.shape) // 2


def _cropped(scan: Scan, shape: tuple[int, int, int]) -> np.ndarray:
    """The middle of a scan, (X, Y, Z) voxels of its grid; background where it has none."""
    image = np.full(shape, background(scan), np.float32)
    offset = _offset(scan, shape)
    to = tuple(
        slice(max(o, 0), max(o, 0) + n) for o, n in zip(offset, scan.voxels.shape, strict=True)
    )
    there = image[to].shape
    image[to] = scan.voxels[
        tuple(slice(max(-o, 0), max(-o, 0) + n) for o, n in zip(offset, there, strict=True))
    ]
    return image


def intensity_profile(image: np.ndarray) -> np.ndarray:
    """(50,) quantiles, 1 to 99 %, of every second voxel of a prepared image (X, Y, Z)."""
    voxels = np.asarray(image[::2, ::2, ::2], np.float32)
    return np.quantile(voxels, np.linspace(0.01, 0.99, 50))


def prepare_scan(
    path: Path, frame: Frame, folder: Path | None = None, pixel_size_mm: float = 0.0
) -> PreparedScan:
    """Reads and prepares a new scan; InputError names it where that is impossible.

    Args:
      folder: where the image is stored, for a frame with chunks.
      pixel_size_mm: for a picture that does not state it; 0: unknown.
    """
    scan = frame.read(path, pixel_size_mm)
    with about(path):
        return frame.prepare(scan, folder)


def save_frame(frame: Frame, landmarks: Sequence[str], folder: Path) -> None:
    """Writes `frame.json`, and the template if there is one: they prepare new scans."""
    if frame.template is not None:
        template = folder / _TEMPLATES[frame.planar]
        write_scan(template, frame.template.voxels, frame.template.ijk_to_lps)
    tree = {
        "schema_version": SCHEMA_VERSION,
        "landmarks": list(landmarks),
        "register": frame.register,
        "metric": frame.metric,
        "search_degrees": frame.search_degrees,
        "has_template": frame.template is not None,
        "common_to_template": frame.common_to_template.tolist(),
        "grid_to_common": frame.grid_to_common.tolist(),
        "shape": frame.shape,
        "intensity": frame.intensity,
        "intensity_range": frame.intensity_range,
        "quality_limit": frame.quality_limit if np.isfinite(frame.quality_limit) else None,
    }
    # Fields that do not apply are left out, so that the files of older models stay the same.
    if frame.untrained:
        tree["untrained"] = list(frame.untrained)
    if frame.unit != "mm":
        tree["unit"] = frame.unit
    if frame.grid != "common":
        tree["grid"] = frame.grid
    if frame.chunks is not None:
        tree["chunks"] = dataclasses.asdict(frame.chunks)
    if frame.shape_mm is not None:
        tree["shape_mm"] = frame.shape_mm.tolist()
    if frame.segments:
        tree["segments"] = [dataclasses.asdict(segment) for segment in frame.segments]
    write_json(folder / "frame.json", tree)


def load_frame(folder: Path) -> tuple[Frame, tuple[str, ...]]:
    """The frame of a trained model, and the names of its landmarks."""
    path = folder / "frame.json"
    tree = read_json(path, SCHEMA_VERSION)
    try:
        limit, names = tree["quality_limit"], tree["landmarks"]
        frame = Frame(
            register=tree["register"],
            metric=tree["metric"],
            search_degrees=tree["search_degrees"],
            template=_read_template(folder, tree["shape"]) if tree["has_template"] else None,
            common_to_template=_matrix(tree["common_to_template"]),
            grid_to_common=_matrix(tree["grid_to_common"]),
            shape=tuple(tree["shape"]),
            intensity=tree["intensity"],
            intensity_range=tuple(tree["intensity_range"]),
            quality_limit=-np.inf if limit is None else limit,
            untrained=_some_of(tree.get("untrained", []), names),
            segments=tuple(
                Segment(str(s["name"]), _some_of(s["ends"], names), bool(s["may_be_missing"]))
                for s in tree.get("segments", [])
            ),
            unit=tree.get("unit", "mm"),
            grid=tree.get("grid", "common"),
            chunks=Chunks(int(tree["chunks"]["factor"])) if "chunks" in tree else None,
            shape_mm=np.asarray(tree["shape_mm"], np.float64).reshape(len(names), 3)
            if "shape_mm" in tree
            else None,
        )
        return frame, tuple(names)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error


# The file for volumes, and the file for pictures.
_TEMPLATES = ("template.mha", "template.nii")


def _read_template(folder: Path, shape: Sequence[int]) -> Scan:
    planar = shape[2] == 1
    path = folder / _TEMPLATES[planar]
    # The file's coordinates need no conversion: it was written in the model's unit.
    return read_picture(path) if planar else read_scan(path)


def _some_of(names: list[str], known: list[str]) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(name in known for name in names):
        raise ValueError(f"landmarks {names!r} that are none")
    return tuple(names)


def _matrix(rows: object) -> np.ndarray:
    return np.asarray(rows, np.float64).reshape(4, 4)
