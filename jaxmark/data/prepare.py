"""Raw scans -> prepared cases: register to a frame, resample to a grid, crop; keep the way back.

The frame (template scan, grid) is found from the training cases alone and belongs to the trained
model: the same frame prepares a scan never seen. No landmark of a scan is used to prepare it.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.config import Data
from jaxmark.core.errors import InputError
from jaxmark.core.files import read_json, write_json, write_text_atomic
from jaxmark.core.geometry import apply_affine, pick_template
from jaxmark.core.parallel import parallel, worker_pool
from jaxmark.data.cases import PreparedCase, load_case, save_case
from jaxmark.data.cohort import CaseSource, Cohort, check_inside
from jaxmark.data.registration import register, resample
from jaxmark.data.scans import Scan, read_scan, write_scan

# Part of every cache key: a change of what preparation computes must not reuse older results.
RECIPE_VERSION = 1

# The mouse head that was turned wrongly, with 40 % of it cut off, had a margin of 0.008; so have a
# few that are right.
AMBIGUOUS_MARGIN = 0.02


@dataclasses.dataclass(frozen=True)
class Frame:
    """The common space of an experiment: what turns any scan into a volume of one shape."""

    register: str
    search_degrees: float
    template: Scan | None  # None where nothing is registered
    grid_to_template: np.ndarray  # (4, 4): voxels of the prepared image -> template's (common) mm
    shape: tuple[int, int, int]  # crop and margin
    intensity_percentiles: tuple[float, float]

    def apply(self, scan: Scan, common_to_scan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The prepared image (X, Y, Z) float32 and its `ijk_to_lps` (4, 4) in the scan's mm."""
        ijk_to_lps = common_to_scan @ self.grid_to_template
        low, high = np.percentile(scan.voxels[::2, ::2, ::2], self.intensity_percentiles)
        if high <= low:
            low, high = float(scan.voxels.min()), float(scan.voxels.max())
        image = (resample(scan, self.shape, ijk_to_lps) - low) / (high - low)
        # Half precision holds 65504; implants in a CT may lie far above the upper percentile.
        return np.clip(image, -100, 100), ijk_to_lps


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How a scan was brought to the common frame; figures are NaN where nothing was registered."""

    matrix: np.ndarray  # (4, 4): common mm -> mm of the scan
    quality: float  # see Registration
    margin: float  # see Registration; infinite where there was no other answer


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared cohort."""

    landmarks: tuple[str, ...]
    cases: dict[str, PreparedCase]
    splits: dict[str, tuple[str, ...]]
    frame: Frame
    margins: dict[str, float]  # of the registrations: near 0, another rotation fits as well

    def split(self, name: str) -> list[PreparedCase]:
        """The cases of train, val or test, in the order of the split."""
        return [self.cases[case] for case in self.splits[name]]

    def warnings(self) -> list[str]:
        """What a person should know: landmarks outside the crop, unusual registrations."""
        lines = []
        size = np.asarray(self.frame.shape)
        outside = {
            case.name: int(((ijk < 0) | (ijk > size - 1)).any(-1).sum())
            for case in self.cases.values()
            for ijk in [case.landmarks_ijk[case.present]]
        }
        if any(outside.values()):
            worst = max(outside, key=lambda name: outside[name])
            lines.append(
                f"{sum(outside.values())} landmarks of {sum(map(bool, outside.values()))} cases "
                f"lie outside the prepared volume (most: {worst}, {outside[worst]}); "
                "a larger config.data.crop would hold them"
            )
        quality = np.array([case.quality for case in self.cases.values()])
        median = np.median(quality)
        # Three robust standard deviations under the median; NaN, without registration, is not.
        limit = median - 3 * 1.4826 * np.median(np.abs(quality - median))
        for name, case in self.cases.items():
            if case.quality < limit:
                lines.append(
                    f"{name}: registration quality {case.quality:.3f}, median {median:.3f}"
                )
            if self.margins[name] < AMBIGUOUS_MARGIN:
                lines.append(
                    f"{name}: another rotation fits nearly as well (margin "
                    f"{self.margins[name]:.3f}); look at its picture in the report"
                )
        return lines


def prepare(cohort: Cohort, data: Data) -> Prepared:
    """Prepare every case of the splits, or find it in the cache.

    Raises:
      InputError, or an ExceptionGroup of them where several files are wrong: all files are checked
      before anything is written.
    """
    names = [name for split in ("train", "val", "test") for name in cohort.splits[split]]
    sources = [cohort.cases[name] for name in names]
    train = [cohort.cases[name] for name in cohort.splits["train"]]
    template = choose_template(train, data)
    settings = {
        "recipe": RECIPE_VERSION,
        "landmarks": cohort.names,
        "register": data.register,
        "search_degrees": data.search_degrees,
        "spacing_mm": data.spacing_mm,
        "crop": data.crop,
        "margin": data.margin,
        "intensity_percentiles": data.intensity_percentiles,
        "template": identity(template) if template else None,
        "train": [identity(source) for source in train],
    }
    folder = cache_folder(data) / digest(settings)
    homes = {s.name: folder / "cases" / f"{s.name}-{digest(identity(s))}" for s in sources}
    template_scan = read_scan(template.scan) if template else None
    missing = [source for source in sources if not is_whole(homes[source.name])]
    alignments = read_alignments(folder / "alignments.json")
    unknown = [source for source in sources if homes[source.name].name not in alignments]

    with worker_pool(data.workers, len(missing) + len(unknown)) as pool:
        found = parallel(
            pool,
            _check_and_align,
            [(source, template_scan, data) for source in unknown],
            "checking and aligning scans" if template_scan else "checking scans",
        )
        if unknown:
            alignments |= {
                homes[source.name].name: alignment
                for source, alignment in zip(unknown, found, strict=True)
            }
            write_alignments(folder / "alignments.json", alignments)
        aligned = {source.name: alignments[homes[source.name].name] for source in sources}
        frame = Frame(
            register=data.register,
            search_degrees=data.search_degrees,
            template=template_scan,
            grid_to_template=place_grid(train, [aligned[s.name].matrix for s in train], data),
            shape=tuple(n + 2 * data.margin for n in data.crop),  # type: ignore[arg-type]
            intensity_percentiles=data.intensity_percentiles,
        )
        parallel(
            pool,
            _prepare_case,
            [(source, frame, aligned[source.name], homes[source.name]) for source in missing],
            "resampling scans",
        )
    cases = {name: load_case(home) for name, home in homes.items()}
    margins = {name: alignment.margin for name, alignment in aligned.items()}
    return Prepared(cohort.names, cases, cohort.splits, frame, margins)


def choose_template(train: Sequence[CaseSource], data: Data) -> CaseSource | None:
    """The configured training case, or the most typical one; None where nothing is registered."""
    if data.register == "none":
        return None
    if data.template:
        for source in train:
            if source.name == data.template:
                return source
        raise InputError("config.data.template", f"{data.template!r} is not a training case")
    landmarks = np.stack([source.landmarks_mm for source in train])
    return train[pick_template(landmarks, np.stack([source.present for source in train]))]


def place_grid(
    train: Sequence[CaseSource], alignments: Sequence[np.ndarray], data: Data
) -> np.ndarray:
    """(4, 4) voxels -> common mm: the crop's centre is the centre of the mean training landmarks.

    The centre of their bounding box, not their mean: the crop is a box that has to hold them all.
    """
    common = np.stack(
        [
            apply_affine(np.linalg.inv(matrix), source.landmarks_mm)
            for source, matrix in zip(train, alignments, strict=True)
        ]
    )
    seen = ~np.isnan(common[..., 0])
    total = np.where(seen[..., None], common, 0.0).sum(0)
    mean = (total / np.maximum(seen.sum(0), 1)[:, None])[seen.any(0)]
    centre = (mean.min(0) + mean.max(0)) / 2
    matrix = np.diag([*data.spacing_mm, 1.0])
    middle = (np.asarray(data.crop) + 2 * data.margin - 1) / 2
    matrix[:3, 3] = centre - middle * np.asarray(data.spacing_mm)
    return matrix


def align(scan: Scan, template: Scan | None, kind: str, search_degrees: float) -> Alignment:
    """Register a scan to the template; the common frame is the scan's own where there is none."""
    if template is None:
        return Alignment(np.eye(4), np.nan, np.nan)
    result = register(template, scan, kind, search_degrees)  # type: ignore[arg-type]
    return Alignment(result.fixed_to_moving, result.quality, result.margin)


def prepare_scan(scan: Scan, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """A scan never seen: its prepared image (X, Y, Z) and `ijk_to_lps` (4, 4)."""
    alignment = align(scan, frame.template, frame.register, frame.search_degrees)
    return frame.apply(scan, alignment.matrix)


def save_frame(frame: Frame, landmarks: Sequence[str], folder: Path) -> None:
    """Write what a new scan needs: `frame.json`, and `template.mha` if there is one."""
    if frame.template is not None:
        write_scan(folder / "template.mha", frame.template.voxels, frame.template.ijk_to_lps)
    tree = {
        "schema_version": 1,
        "register": frame.register,
        "search_degrees": frame.search_degrees,
        "landmarks": list(landmarks),
        "has_template": frame.template is not None,
        "grid_to_template": frame.grid_to_template.tolist(),
        "shape": frame.shape,
        "intensity_percentiles": frame.intensity_percentiles,
    }
    write_json(folder / "frame.json", tree)


def load_frame(folder: Path) -> tuple[Frame, tuple[str, ...]]:
    """The frame of a trained model, and the names of its landmarks."""
    path = folder / "frame.json"
    tree = read_json(path, 1)
    try:
        frame = Frame(
            register=tree["register"],
            search_degrees=tree["search_degrees"],
            template=read_scan(folder / "template.mha") if tree["has_template"] else None,
            grid_to_template=np.asarray(tree["grid_to_template"], np.float64).reshape(4, 4),
            shape=tuple(tree["shape"]),
            intensity_percentiles=tuple(tree["intensity_percentiles"]),
        )
        return frame, tuple(tree["landmarks"])
    except (KeyError, TypeError) as error:
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error


def cache_folder(data: Data) -> Path:
    """Where prepared cases lie: `config.data.cache`, or `jaxmark` in the user's cache folder."""
    if data.cache:
        return Path(data.cache)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "jaxmark"


def identity(source: CaseSource) -> dict[str, Any]:
    """What a prepared case is made from: the scan's files by size and time, and the landmarks."""
    files = sorted(source.scan.iterdir()) if source.scan.is_dir() else [source.scan]
    return {
        "scan": str(source.scan.absolute()),
        "files": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        "landmarks": [
            p.tolist() if here else None
            for p, here in zip(source.landmarks_mm, source.present, strict=True)
        ],
    }


def digest(tree: Any) -> str:
    """A short key of JSON types; long enough that two never meet."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:20]


def is_whole(folder: Path) -> bool:
    """Whether a prepared case can be read; a damaged one is made anew."""
    try:
        load_case(folder)
        return (folder / "image.npy").is_file()
    except InputError:
        return False


def read_alignments(path: Path) -> dict[str, Alignment]:
    """Alignments found earlier; {} if there are none, or if the file is damaged."""
    try:
        cases = json.loads(path.read_bytes())["cases"]
        return {
            name: Alignment(np.asarray(c["matrix"]).reshape(4, 4), c["quality"], c["margin"])
            for name, c in cases.items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_alignments(path: Path, alignments: dict[str, Alignment]) -> None:
    """The file that `read_alignments` reads. Not for others: it holds NaN and infinity."""
    cases = {
        name: {"matrix": a.matrix.tolist(), "quality": a.quality, "margin": a.margin}
        for name, a in alignments.items()
    }
    write_text_atomic(path, json.dumps({"schema_version": 1, "cases": cases}))


def _check_and_align(job: tuple[CaseSource, Scan | None, Data]) -> Alignment:
    source, template, data = job
    scan = read_scan(source.scan)
    check_inside(source, scan)
    return align(scan, template, data.register, data.search_degrees)


def _prepare_case(job: tuple[CaseSource, Frame, Alignment, Path]) -> None:
    source, frame, alignment, folder = job
    image, ijk_to_lps = frame.apply(read_scan(source.scan), alignment.matrix)
    case = PreparedCase(
        name=source.name,
        folder=folder,
        ijk_to_lps=ijk_to_lps,
        landmarks_mm=source.landmarks_mm,
        present=source.present,
        quality=alignment.quality,
    )
    save_case(case, image, source.scan)
