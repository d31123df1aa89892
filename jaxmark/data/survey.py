"""What a cohort is like, read once before anything is planned: sizes, intensities, points.

Scans are read in processes, a few numbers a case; of a large cohort some, evenly spaced.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine
from jaxmark.data.annotated import Annotated, read_annotated
from jaxmark.data.cohort import Cohort, RawCase, check_inside, read_cohort
from jaxmark.data.formats import raster
from jaxmark.data.formats.safeguards import entries
from jaxmark.data.layouts import find_layout
from jaxmark.data.looks import Source
from jaxmark.data.pictures import find_pictures, read_picture
from jaxmark.data.scans import EXTENSIONS, Scan, read_scan
from jaxmark.system.errors import InputError
from jaxmark.system.parallel import parallel, worker_pool

# At most so many scans are read.
MOST_SCANS = 40
# Landmarks that a smaller share of the cases has are not planned for, unless they are named.
LEAST_SHARE, LEAST_CASES = 0.1, 3
# Of all voxels, and of those within so many millimetres of a landmark.
PERCENTILES = (0.5, 50.0, 99.5)
_NEAR_PERCENTILES = (2.0, 99.5)
_NEAR_VOXELS = 4


@dataclasses.dataclass(frozen=True)
class ScanFacts:
    """Of one scan; lengths are mm, or pixels of a picture whose pixel size is not known."""

    shape: tuple[int, int, int]  # voxels along i, j, k
    spacing: tuple[float, float, float]
    # (4, 4) voxels -> LPS mm.
    ijk_to_lps: np.ndarray
    orientation: str  # the nearest axes of i, j, k: "LPS", "RAI" ...
    values: tuple[float, ...]  # `PERCENTILES` of the intensities
    near: tuple[float, float]  # low and high about the landmarks

    @property
    def world_spacing(self) -> np.ndarray:
        """(3,) along the world's axes that i, j and k are nearest to."""
        return _by_world(self.ijk_to_lps, np.asarray(self.spacing))

    @property
    def world_extent(self) -> np.ndarray:
        """(3,) likewise."""
        return _by_world(self.ijk_to_lps, np.asarray(self.spacing) * self.shape)

    @property
    def middle(self) -> np.ndarray:
        """(3,) where the middle of the volume is."""
        return apply_affine(self.ijk_to_lps, (np.array(self.shape) - 1) / 2)


@dataclasses.dataclass(frozen=True)
class Survey:
    """N training cases with K landmarks that are planned for, and what their scans are like."""

    cohort: Cohort
    # Landmarks that too few cases have, and how many do.
    rare: dict[str, int]
    # (N, K, 3) of the training cases; NaN where not present.
    points: np.ndarray
    train: tuple[RawCase, ...]
    # Case -> facts, of training cases that were read.
    facts: dict[str, ScanFacts]
    # Cases with and without landmarks.
    labelled: int
    unlabelled: int
    planar: bool
    unit: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of the landmarks."""
        return self.cohort.names

    def source(self, case: RawCase) -> Source:
        """How a case's scan is read."""
        return source_of(case, self.unit if self.planar else "")

    def median_of(self, name: str) -> np.ndarray:
        """(3,) the median over scans of a property of their facts."""
        return np.asarray(np.median([getattr(fact, name) for fact in self.facts.values()], axis=0))


def source_of(case: RawCase, unit: str) -> Source:
    """How a case's scan is read; the unit is of a picture's world, "" of a volume's."""
    return Source(case.scan, unit, case.pixel_size_mm)


def is_planar(data: Data) -> bool:
    """Whether the images of a folder are pictures: by their names, or else by the first of them.

    InputError where some are pictures and others are volumes, or there are none.
    """
    root = Path(data.root).expanduser()
    folder = root / "images"
    if not folder.is_dir():
        return False
    pictures = [p.name for p in entries(folder) if p.name.lower().endswith(raster.EXTENSIONS)]
    try:
        scans = list(find_layout(root, data.suffix, data.series).images.values())
    except InputError:
        volumes = any(path.name.lower().endswith(EXTENSIONS) for path in entries(folder))
        with contextlib.suppress(InputError):
            if not volumes and find_pictures(folder):
                return True
        raise
    planar = _holds_picture(scans[0])
    if pictures and not planar:
        problem = f"holds pictures ({pictures[0]}) and volumes ({scans[0].name}): keep one kind"
        raise InputError(folder, problem)
    return planar


def _holds_picture(path: Path) -> bool:
    """Whether an image that may be a volume is a picture; not where it cannot be read."""
    try:
        return read_scan(path, as_stored=True).planar
    except InputError:
        with contextlib.suppress(InputError):
            read_picture(path, "px")
            return True
        return False


def unit_of_pictures(data: Data) -> str:
    """ "mm" where the size of a pixel is known of all pictures, else "px"."""
    annotated = read_annotated(dataclasses.replace(data, unit="px"))
    if np.all(annotated.pixel_size_mm > 0):
        return "mm"
    try:
        for path, size in zip(annotated.scans, annotated.pixel_size_mm, strict=True):
            read_picture(path, "mm", float(size))
    except InputError:
        return "px"
    return "mm"


def common_landmarks(annotated: Annotated) -> tuple[tuple[str, ...], dict[str, int]]:
    """Landmarks that enough cases have, and how many have each of the others."""
    counts = np.isfinite(annotated.points_mm).all(-1).sum(0)
    least = max(min(LEAST_CASES, len(annotated.cases)), LEAST_SHARE * len(annotated.cases))
    kept = tuple(
        name for name, count in zip(annotated.names, counts, strict=True) if count >= least
    )
    rare = {
        name: int(count)
        for name, count in zip(annotated.names, counts, strict=True)
        if name not in kept
    }
    return kept, rare


def survey_cohort(data: Data, rare: dict[str, int] | None = None) -> Survey:
    """Reads all landmarks, and the scans of up to `MOST_SCANS` training and as many other cases.

    Args:
      data: with `landmarks`, `unit` and (of pictures) a planar `crop` as they will be used.
      rare: landmarks that are left out, for the record.

    Raises:
      InputError, or an ExceptionGroup of them: see `read_cohort` and `scan_facts`; no two training
        cases have a landmark in common.
    """
    cohort = read_cohort(data)
    train = tuple(cohort.cases[name] for name in cohort.splits["train"])
    points = np.array([case.landmarks_mm for case in train]).reshape(-1, len(cohort.names), 3)
    if not np.isfinite(spread(points)):
        problem = (
            f"of {len(train)} cases in the split train no two have a landmark in common: a plan "
            "needs to see how cases differ"
        )
        raise InputError(data.root, problem)
    unit = data.unit if data.planar else ""
    some = evenly(train, MOST_SCANS)
    # Nothing is learned from the others; what is wrong with them should show before training.
    others = [cohort.cases[name] for name in (*cohort.splits["val"], *cohort.splits["test"])]
    jobs = [(case, unit) for case in (*some, *evenly(others, MOST_SCANS))]
    with worker_pool(data.workers, len(jobs)) as pool:
        facts = parallel(pool, scan_facts, jobs, "looking at scans")[: len(some)]
    labelled = sum(case.present.any() for case in cohort.cases.values())
    return Survey(
        cohort=cohort,
        rare=rare or {},
        points=points,
        train=train,
        facts={case.name: fact for case, fact in zip(some, facts, strict=True)},
        labelled=int(labelled),
        unlabelled=len(cohort.cases) - int(labelled),
        planar=data.planar,
        unit=unit or "mm",
    )


def scan_facts(job: tuple[RawCase, str]) -> ScanFacts:
    """Reads a case's scan, and looks at it about its landmarks; the unit as in `source_of`.

    InputError where the scan cannot be read, or a landmark is outside of it, as in preparation.
    """
    case, unit = job
    scan = source_of(case, unit).read()
    check_inside(case, scan, unit or "mm")
    thin = scan.voxels[::2, ::2, ::2] if scan.voxels.size > 2**18 else scan.voxels
    low, middle, high = np.percentile(thin, PERCENTILES)
    x, y, z = scan.voxels.shape
    dx, dy, dz = map(float, scan.spacing_mm)
    return ScanFacts(
        shape=(x, y, z),
        spacing=(dx, dy, dz),
        ijk_to_lps=scan.ijk_to_lps,
        orientation=_orientation(scan.ijk_to_lps),
        values=(float(low), float(middle), float(high)),
        near=_near(scan, case.landmarks_mm),
    )


def _near(scan: Scan, points_mm: np.ndarray) -> tuple[float, float]:
    """Percentiles of the voxels about the landmarks."""
    known = points_mm[np.isfinite(points_mm).all(-1)]
    around: list[np.ndarray] = []
    for ijk in np.rint(apply_affine(np.linalg.inv(scan.ijk_to_lps), known)).astype(int):
        first = np.maximum(ijk - _NEAR_VOXELS, 0)
        part = tuple(
            slice(a, b) for a, b in zip(first, np.maximum(ijk + _NEAR_VOXELS + 1, 0), strict=True)
        )
        around.append(scan.voxels[part].ravel())
    values = np.concatenate(around) if around else np.empty(0)
    if not values.size:
        return (np.nan, np.nan)
    low, high = np.percentile(values, _NEAR_PERCENTILES)
    return float(low), float(high)


def _orientation(ijk_to_lps: np.ndarray) -> str:
    axes = ijk_to_lps[:3, :3] / np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    code: str = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(axes.ravel())
    return code


def _by_world(ijk_to_lps: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(3,) lengths along i, j, k as lengths along the world's nearest x, y, z."""
    axes = np.abs(ijk_to_lps[:3, :3]) / np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    found, left = np.empty(3), axes.copy()
    for _ in range(3):
        world, own = np.unravel_index(left.argmax(), left.shape)
        found[world] = lengths[own]
        left[world], left[:, own] = -1.0, -1.0
    return found


def spread(points: np.ndarray) -> float:
    """Mean distance of points (N, K, 3) from the mean of the other cases' same landmark.

    It is the error of the mean position, each case left out once. NaN where no two cases have a
    landmark in common.
    """
    seen = np.isfinite(points).all(-1)
    counts = seen.sum(0)
    mean = np.where(seen[..., None], points, 0.0).sum(0) / np.maximum(counts, 1)[:, None]
    away = np.linalg.norm(points - mean, axis=-1) * counts / np.maximum(counts - 1, 1)
    known = seen & (counts > 1)
    return float(away[known].mean()) if known.any() else float("nan")


def evenly(cases: Sequence[RawCase], count: int) -> list[RawCase]:
    """At most so many of them, evenly spaced."""
    return list(cases[:: -(-len(cases) // count)]) if cases else []
