"""A cohort of raw scans -> prepared cases: align, resample, crop; cached, in parallel, resumable.

The cases share a `Frame`, which is found here from the training cases only. The cache holds each
alignment and each case in a separate file: a stopped run continues where it was.
"""

import contextlib
import csv
import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmark.config import Data
from jaxmark.core.anatomy import COW19, Segment, scheme_of
from jaxmark.core.geometry import apply_affine, pick_template
from jaxmark.core.grids import Grid
from jaxmark.data.annotations import annotation_doubts
from jaxmark.data.arrays import replacing_folder
from jaxmark.data.cache import cache_folder, in_cache
from jaxmark.data.cases import (
    CaseSegments,
    PreparedCase,
    load_case,
    save_case,
    write_chunked_case,
)
from jaxmark.data.chunks import ChunkedImage, Chunks
from jaxmark.data.cohort import SPLITS, Cohort, RawCase, check_inside
from jaxmark.data.frame import Alignment, Frame, PreparedScan
from jaxmark.data.left_out import LeftOut, left_out, untrained
from jaxmark.data.notes import first_few
from jaxmark.data.pictures import read_picture
from jaxmark.data.prepared_segments import (
    load_checked,
    load_segments,
    prepare_segments,
    segments_jobs,
)
from jaxmark.data.registration import register, smaller
from jaxmark.data.scans import Scan, read_scan
from jaxmark.data.segmentations import CohortSegments
from jaxmark.data.transforms import read_transform
from jaxmark.system.errors import InputError, about
from jaxmark.system.files import read_sealed, sealed, write_json
from jaxmark.system.fingerprints import file_state, json_key
from jaxmark.system.parallel import parallel, worker_pool

# Part of every cache key. Raise it when preparation computes something else.
RECIPE_VERSION = 2

# A registration has probably failed if its quality lies more than this many robust standard
# deviations, and more than this share of the median, under the training cases' median.
_FAILED_SD, _FAILED_SHARE = 3.0, 0.1

# Messages name this many cases and count the others.
_MAX_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared cohort."""

    landmarks: tuple[str, ...]
    cases: dict[str, PreparedCase]
    splits: dict[str, tuple[str, ...]]
    frame: Frame
    # Problems of files in the cache, which were made anew.
    mended: tuple[str, ...] = ()
    # Notes on a template that is none of the cases.
    template_notes: tuple[str, ...] = ()
    # Cases and landmarks that training does not use.
    left_out: tuple[LeftOut, ...] = ()

    def split(self, name: str) -> list[PreparedCase]:
        """The cases of train, val or test, in the order of the split."""
        return [self.cases[case] for case in self.splits[name]]

    @property
    def presence(self) -> float:
        """Share of present landmarks among the present and absent ones of the training cases.

        In (0, 1): one present and one absent landmark are added to the counts.
        """
        present, absent = (
            sum(int(getattr(case, state).sum()) for case in self.split("train"))
            for state in ("present", "absent")
        )
        return (present + 1) / (present + absent + 2)

    def doubts(self) -> dict[str, list[str]]:
        """Case -> warnings about it, a line each; cases without any are left out."""
        found = self._preparation_doubts()
        for name, line in self.annotation_doubts.items():
            found[name] = [*found.get(name, []), line]
        return {name: found[name] for name in self.cases if name in found}

    def _preparation_doubts(self) -> dict[str, list[str]]:
        found = {
            name: self.frame.doubts(case.quality, case.lead, case.overlap, case.voxel_mm)
            for name, case in self.cases.items()
        }
        return {name: lines for name, lines in found.items() if lines}

    @functools.cached_property
    def annotation_doubts(self) -> dict[str, str]:
        """Case -> a line on how its landmarks contradict the other cases', where they do."""
        cases = list(self.cases.values())
        unit = "px" if self.frame.grid == "native" else self.frame.unit
        return annotation_doubts(cases, self.landmarks, self.frame.grid_to_common, unit)

    def warnings(self) -> list[str]:
        """Warnings about the cohort, a line each."""
        lines = [
            f"{name}: {'; '.join(doubts)}" for name, doubts in self._preparation_doubts().items()
        ]
        contradictory = list(self.annotation_doubts.items())
        lines += [f"{name}: {doubt}" for name, doubt in contradictory[:_MAX_NAMED]]
        if len(contradictory) > _MAX_NAMED:
            lines.append(
                f"landmarks of {len(contradictory) - _MAX_NAMED} more cases contradict the other "
                "cases': see cases.csv"
            )
        if self.mended:
            lines.append(
                f"{len(self.mended)} files in the cache could not be used and were made anew; the "
                f"first: {self.mended[0]}"
            )
        outside = {name: self._outside(case) for name, case in self.cases.items()}
        if any(outside.values()):
            worst = max(outside, key=lambda name: outside[name])
            lines.append(
                f"{sum(outside.values())} landmarks of {sum(map(bool, outside.values()))} cases "
                f"lie outside the prepared volume (most: {worst}, {outside[worst]}); "
                "a larger config.data.crop would hold them"
            )
        return lines + self._unevaluated()

    def _unevaluated(self) -> list[str]:
        """A warning before training if nothing can be evaluated after it."""
        test = self.split("test")
        if test and not any(case.present.any() for case in test):
            other = ", or evaluate the validation cases (--config.predict.split=val)"
            return [
                f"none of the {len(test)} cases of test has a landmark with a position: they are "
                "predicted, but --mode=evaluate and report will end with an error; place some"
                + other
                * bool(self.splits["val"])
            ]
        if not test and not self.splits["val"]:
            return [
                "there are no validation and no test cases: nothing will say how good the model "
                "is, and --mode=predict without --input will end with an error; annotate more"
            ]
        return []

    def notes(self) -> list[str]:
        """Guesses and repairs of readers: a line for each of the first cases, and a count."""
        noted = [case for case in self.cases.values() if case.notes]
        lines = [f"{case.name}: {'; '.join(case.notes)}" for case in noted[:_MAX_NAMED]]
        if len(noted) > _MAX_NAMED:
            more = f"{len(noted) - _MAX_NAMED} more cases have notes, {len(noted)} of "
            lines.append(f"{more}{len(self.cases)} in all: see preparation/cases.csv")
        unseen = {n: c.segments.unseen for n, c in self.cases.items() if c.segments is not None}
        if total := sum(unseen.values()):
            are = "segment is" if total == 1 else "segments are"
            lines.append(
                f"{first_few(name for name in unseen if unseen[name])}: {total} {are} stated to be "
                "present without a voxel in the label map (too thin, or outside of the scan)"
            )
        if self.template_notes:
            lines.append(f"config.data.template: {'; '.join(self.template_notes)}")
        return lines

    def table(self) -> str:
        """Every case's preparation as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        segmented = any(case.segments is not None for case in self.cases.values())
        writer.writerow(
            ["case", "split", "quality", "margin", "coverage", "landmarks_outside", "doubts"]
            + ["cached_as", "notes"]
            + ["segments"] * segmented
        )
        doubts = self.doubts()
        for split in SPLITS:
            for case in self.split(split):
                figures = (case.quality, case.lead, case.overlap)
                writer.writerow(
                    [case.name, split, *("" if np.isnan(f) else f"{f:.4f}" for f in figures)]
                    + [self._outside(case), "; ".join(doubts.get(case.name, []))]
                    # The cache's names change whenever the case's image or landmarks change.
                    + [f"{case.folder.parent.parent.name}/{case.folder.name}"]
                    + ["; ".join(case.notes)]
                    + [_segments_cell(case.segments)] * segmented
                )
        return text.getvalue()

    def _outside(self, case: PreparedCase) -> int:
        """How many of its landmarks lie outside the prepared volume."""
        ijk = case.landmarks_ijk[case.present]
        return int(((ijk < 0) | (ijk > np.asarray(self.frame.shape) - 1)).any(-1).sum())


def _segments_cell(segments: CaseSegments | None) -> str:
    """A case's cell in the column `segments` of `Prepared.table`."""
    if segments is None:
        return ""
    present, absent = int(segments.present.sum()), int(segments.absent.sum())
    told = f"{present} present, {absent} absent, {len(segments.present) - present - absent} unknown"
    # The folder's name changes whenever the prepared label map changes.
    return told if segments.file is None else f"{told}, {segments.file.parent.name}"


class Template(NamedTuple):
    """A scan to which others are registered."""

    path: Path
    # For pictures: the unit of their world, and a pixel size that is stated beside the file.
    unit: str = ""
    pixel_size_mm: float = 0.0


def prepare_cohort(
    cohort: Cohort,
    data: Data,
    segments: CohortSegments | None = None,
    chunks: Chunks | None = None,
) -> Prepared:
    """Prepares every case of the splits, or finds it in the cache.

    Args:
      segments: each case's segments, for methods that learn from them.
      chunks: how images are stored, for methods that read patches of them.

    Raises:
      InputError, or an ExceptionGroup of them where several files are wrong: all files are checked
      before any case is written.
    """
    names = [name for split in SPLITS for name in cohort.splits[split]]
    sources = [cohort.cases[name] for name in names]
    train = [cohort.cases[name] for name in cohort.splits["train"]]
    if not train:
        raise InputError(data.root, "the split train has no cases: there is nothing to learn from")
    template = choose_template(train, data)
    folder = cache_folder(data) / json_key(_settings(cohort, data, template, chunks))
    keys = {s.name: f"{s.name}-{json_key(identity(s))}" for s in sources}
    homes = {name: folder / "cases" / key for name, key in keys.items()}
    frame = _unplaced_frame(data, template, chunks)
    # Jobs are sent to other processes without the template: each process reads it once.
    light = dataclasses.replace(frame, template=None)
    files = {name: folder / "alignments" / f"{key}.json" for name, key in keys.items()}
    known, unaligned = in_cache(read_alignment, files)
    whole, unprepared = in_cache(_read_case, homes)
    unknown = [source for source in sources if source.name not in known]
    missing = [source for source in sources if source.name not in whole]

    # The grids of cases that are not in the cache are not known yet.
    grids = {name: Grid(frame.shape, case.ijk_to_lps) for name, case in whole.items()}
    to_segment = functools.partial(segments_jobs, cohort, segments, folder / "segments")
    jobs = to_segment(grids)
    segmented, unsegmented = in_cache(load_checked, {name: job.home for name, job in jobs.items()})
    maps = len(sources) - len(segmented) if segments is not None else 0

    with worker_pool(data.workers, len(missing) + len(unknown) + maps) as pool:
        found = parallel(
            pool,
            _check_and_align,
            [(source, light, template, files[source.name]) for source in unknown],
            "checking and aligning scans" if template else "checking scans",
        )
        aligned = known | {s.name: a for s, a in zip(unknown, found, strict=True)}
        frame = dataclasses.replace(
            frame,
            grid_to_common=place_grid(train, [aligned[s.name].matrix for s in train], data),
            quality_limit=quality_limit([aligned[s.name].quality for s in train]),
            untrained=untrained(cohort),
            segments=_own_segments(cohort.names, segments),
        )
        jobs = to_segment(
            {n: Grid(frame.shape, a.matrix @ frame.grid_to_common) for n, a in aligned.items()}
            | grids
        )
        # Before any case is written: a label map may be refused.
        parallel(
            pool,
            prepare_segments,
            [job for name, job in jobs.items() if name not in segmented],
            "resampling label maps",
        )
        parallel(
            pool,
            _prepare_case,
            [
                (s, dataclasses.replace(frame, template=None), aligned[s.name], homes[s.name])
                for s in missing
            ],
            "resampling scans",
        )
    cases = {name: whole.get(name) or load_case(home) for name, home in homes.items()}
    for name, job in jobs.items():
        cases[name] = dataclasses.replace(cases[name], segments=load_segments(job.home))
    mended = (*unaligned, *unprepared, *unsegmented)
    # The notes of a template that is a case are that case's notes.
    own = any(template is not None and template.path == source.scan for source in sources)
    notes = frame.template.notes if frame.template is not None and not own else ()
    return Prepared(cohort.names, cases, cohort.splits, frame, mended, notes, left_out(cohort))


def _unplaced_frame(data: Data, template: Template | None, chunks: Chunks | None) -> Frame:
    """The frame before the training cases are aligned: where its grid lies is not known."""
    return Frame(
        register=data.register,
        metric=data.metric,
        search_degrees=data.search_degrees,
        template=_read_template(template, small=chunks is not None) if template else None,
        common_to_template=template_in_common(data),
        grid_to_common=np.eye(4),
        shape=prepared_shape(data),
        intensity=data.intensity,
        intensity_range=intensity_range(data),
        chunks=chunks,
        unit=data.unit,
        grid=data.grid,
    )


def _own_segments(landmarks: Sequence[str], segments: CohortSegments | None) -> tuple[Segment, ...]:
    """The segments that the frame must store: none if the scheme is the built-in `COW19`."""
    if segments is None or scheme_of(landmarks, segments.segments) is COW19:
        return ()
    return segments.segments


def _settings(
    cohort: Cohort, data: Data, template: Template | None, chunks: Chunks | None
) -> dict[str, Any]:
    """The settings that all prepared cases share: the key of their folder in the cache."""
    extra = [data.template_transform, data.template_mask, data.shared_mask]
    return {
        "recipe": RECIPE_VERSION,
        "landmarks": cohort.names,
        "register": data.register,
        "metric": data.metric,
        "search_degrees": data.search_degrees,
        "spacing_mm": data.spacing_mm,
        "crop": data.crop,
        "margin": data.margin,
        "intensity": data.intensity,
        "intensity_range": intensity_range(data),
        "template": file_state(template.path) if template else None,
        "template_in_common": [file_state(Path(path)) for path in extra if path],
        # Only for pictures, so that keys of volumes stay the same.
        **({"unit": data.unit, "grid": data.grid} if data.planar else {}),
        "train": [identity(cohort.cases[name]) for name in cohort.splits["train"]],
        # Only with chunks, so that keys of other methods stay the same.
        **({} if chunks is None else {"chunks": dataclasses.asdict(chunks)}),
    }


def choose_template(train: Sequence[RawCase], data: Data) -> Template | None:
    """The configured scan, or the most typical training case's; None: nothing is registered."""
    if data.register in ("none", "middle"):
        return None
    if data.template:
        for source in train:
            if source.name == data.template:
                return _template(source.scan, data, source.pixel_size_mm)
        if Path(data.template).exists():
            return _template(Path(data.template), data, data.pixel_size_mm)
        raise InputError(
            "config.data.template", f"{data.template!r} is neither a training case nor a scan file"
        )
    landmarks = np.stack([source.landmarks_mm for source in train])
    with about("config.data.template"):
        chosen = pick_template(landmarks, np.stack([source.present for source in train]))
    return _template(train[chosen].scan, data, train[chosen].pixel_size_mm)


def _template(path: Path, data: Data, pixel_size_mm: float) -> Template:
    return Template(path, data.unit, pixel_size_mm) if data.planar else Template(path)


def template_in_common(data: Data) -> np.ndarray:
    """(4, 4) mm of the modalities' shared frame -> mm of the template; the identity without one.

    Tan et al. (ISBI 2023) align an MRA and a CTA of one person by masks of the vessels, and every
    other scan to the one of its modality.
    """
    if data.template_transform:
        return read_transform(Path(data.template_transform).expanduser())
    if not data.template_mask:
        return np.eye(4)
    shared, own = (
        read_scan(Path(path).expanduser()) for path in (data.shared_mask, data.template_mask)
    )
    return register(shared, own, "rigid", data.search_degrees).fixed_to_moving


def intensity_range(data: Data) -> tuple[float, float]:
    """Percentiles or window, whichever `data.intensity` asks for."""
    return data.intensity_window if data.intensity == "window" else data.intensity_percentiles


def quality_limit(qualities: Sequence[float]) -> float:
    """The quality under which a registration has probably failed; -inf without qualities."""
    known = np.array([q for q in qualities if np.isfinite(q)])
    if not known.size:
        return -np.inf
    median = float(np.median(known))
    spread = 1.4826 * float(np.median(np.abs(known - median)))
    return median - max(_FAILED_SD * spread, _FAILED_SHARE * abs(median))


def prepared_shape(data: Data) -> tuple[int, int, int]:
    """Voxels of a prepared volume: crop and margin."""
    x, y, z = (n + 2 * margin for n, margin in zip(data.crop, data.margins, strict=True))
    return x, y, z


def place_grid(
    train: Sequence[RawCase], alignments: Sequence[np.ndarray], data: Data
) -> np.ndarray:
    """(4, 4) voxels -> common mm; the crop's centre is the centre of the mean training landmarks.

    That is the centre of their bounding box, not their mean: the crop has to hold them all. With
    `config.data.register` "middle", it is the scans' common middle.
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
    if data.register == "middle":
        centre = np.zeros(3)
    matrix = np.diag([*data.spacing_mm, 1.0])
    if data.planar:
        # A picture's plane is z = 0.
        centre[2] = 0.0
    middle = (np.asarray(prepared_shape(data)) - 1) / 2
    matrix[:3, 3] = centre - middle * np.asarray(data.spacing_mm)
    return matrix


def identity(source: RawCase) -> dict[str, Any]:
    """What a prepared case is made from: sizes and times of the scan's files, and landmarks."""
    return {
        **file_state(source.scan),
        **({"pixel_size_mm": source.pixel_size_mm} if source.pixel_size_mm else {}),
        "landmarks": [
            p.tolist() if here else bool(absent)
            for p, here, absent in zip(
                source.landmarks_mm, source.present, source.absent, strict=True
            )
        ],
    }


def _read_case(folder: Path) -> PreparedCase:
    case = load_case(folder)
    case.check_image()
    return case


def read_alignment(path: Path) -> Alignment:
    """An alignment found earlier; InputError for a damaged one."""
    tree = read_sealed(path, 2)
    try:
        figures = {
            name: np.nan if tree[key] is None else float(tree[key])
            for name, key in _FIGURES.items()
        }
        return Alignment(np.asarray(tree["matrix"], np.float64).reshape(4, 4), **figures)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(path, f"damaged alignment ({error!r})") from error


def write_alignment(path: Path, alignment: Alignment) -> None:
    """The file that `read_alignment` reads."""
    figures = {key: getattr(alignment, name) for name, key in _FIGURES.items()}
    known = {key: value if np.isfinite(value) else None for key, value in figures.items()}
    tree = {"schema_version": 2, "matrix": alignment.matrix.tolist(), **known}
    write_json(path, sealed(tree))


# Field -> what the file calls it.
_FIGURES = {"quality": "quality", "lead": "margin"}


# Each process reads the template once.
@functools.lru_cache(maxsize=1)
def _read_template(template: Template, *, small: bool) -> Scan:
    """The template as registration takes it; `small` where scans are made smaller as well."""
    if small:
        return smaller(read_scan(template.path, as_stored=True))
    if template.unit:
        return read_picture(template.path, template.unit, template.pixel_size_mm)
    return read_scan(template.path)


def _check_and_align(job: tuple[RawCase, Frame, Template | None, Path]) -> Alignment:
    source, frame, template, file = job
    if template is not None:
        read = _read_template(template, small=frame.chunks is not None)
        frame = dataclasses.replace(frame, template=read)
    scan = frame.read(source.scan, source.pixel_size_mm)
    check_inside(source, scan, frame.unit)
    with about(source.scan):
        alignment = frame.align(scan)
    write_alignment(file, alignment)
    return alignment


def _prepare_case(job: tuple[RawCase, Frame, Alignment, Path]) -> None:
    source, frame, alignment, folder = job
    with contextlib.suppress(InputError):
        # Another run may have prepared the case since this run looked.
        _read_case(folder)
        return
    scan = frame.read(source.scan, source.pixel_size_mm)
    if frame.chunks is None:
        with about(source.scan):
            prepared = frame.apply(scan, alignment)
        assert isinstance(prepared.image, np.ndarray)
        save_case(_case_of(source, prepared, folder), prepared.image, source.scan)
        return
    with replacing_folder(folder) as temporary:
        with about(source.scan):
            prepared = frame.store(scan, alignment, temporary)
        assert isinstance(prepared.image, ChunkedImage)
        case = dataclasses.replace(_case_of(source, prepared, folder), chunks=prepared.image)
        write_chunked_case(case, temporary, source.scan)


def _case_of(source: RawCase, prepared: PreparedScan, folder: Path) -> PreparedCase:
    return PreparedCase(
        name=source.name,
        folder=folder,
        ijk_to_lps=prepared.ijk_to_lps,
        landmarks_mm=source.landmarks_mm,
        present=source.present,
        absent=source.absent,
        quality=prepared.quality,
        lead=prepared.lead,
        overlap=prepared.overlap,
        notes=prepared.notes,
        extent_mm=prepared.extent_mm,
        voxel_mm=prepared.voxel_mm,
        pixel_mm=prepared.pixel_mm,
    )
