"""Raw scans in, landmark files out: one scan or a folder of them, at the pace of the devices.

Processes read, register and resample scans ahead of the network, and write and draw behind it. A
scan that fails is reported and the others go on; a second start does what is not done.

```
output/<case>.mrk.json, .fcsv, .csv, .png   landmarks in the scan's own LPS mm, and a picture
output/<case>.seg.nrrd, .attributes.json    of models that know of segments, as
output/segmentations/<case>.nii.gz          `data.label_map_files` and `predictions` say
output/batch/landmarks.csv, attributes.csv  all cases in one table
output/batch/batch.json                     what failed and why, and how fast it was
output/batch/cases/<case>.json              written last: what was made of which scan by which model
output/batch/.prepared-*/                   images in chunks, each until its case is written
```
"""

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import math
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxmark.core.geometry import apply_affine
from jaxmark.core.grids import Plane
from jaxmark.data.arrays import discarded, stored
from jaxmark.data.formats.safeguards import named
from jaxmark.data.frame import Frame, PreparedScan
from jaxmark.data.frames import load_frames, prepare_scan_in
from jaxmark.data.landmarks import check_case, write_table
from jaxmark.data.notes import first_few
from jaxmark.data.pictures import EXTENSIONS as PICTURES
from jaxmark.data.pictures import pictures_in, search_pictures_below
from jaxmark.data.scans import EXTENSIONS, case_name, file_flaw, passed_over, search_below
from jaxmark.inference.model import COLUMNS, FOLDS_SD, ScanLandmarks, TrainedModel, why_hidden
from jaxmark.inference.segments import ScanSegments
from jaxmark.methods.method import TOLD
from jaxmark.results.figures import pictures
from jaxmark.results.measures.units import from_unit, in_unit
from jaxmark.results.predictions import (
    ATTRIBUTES,
    DOUBTS,
    HIDDEN,
    attributes_file,
    doubts_by_landmark,
    read_predicted_attributes,
    segment_files,
    write_markups,
    write_predictions,
    write_segments,
    write_segments_table,
)
from jaxmark.system.errors import InputError, printable
from jaxmark.system.files import read_json, replacing, write_json
from jaxmark.system.fingerprints import file_state
from jaxmark.system.messages import counted, say, warn
from jaxmark.system.parallel import ahead, worker_pool
from jaxmark.system.processes import from_primary, gather, own_share, primary

SCHEMA_VERSION = 1
# Starting processes costs about as much as preparing so many scans.
_SCANS_WORTH_PROCESSES = 4
# What is said of many is said of so many by name.
_NAMED = 5
# What is wrong with one file's disk is wrong with the next one's.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# In the folder `batch`; what tells processes apart follows.
_STORE = ".prepared-"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a batch."""

    written: int
    skipped: int  # done by an earlier run
    failures: dict[str, InputError]
    seconds: float
    # The disk was full, or otherwise at fault: the last failure says how; the rest was not tried.
    stopped: bool = False
    refused: tuple[str, ...] = ()  # of those written: probably no such scans, all hidden

    def summary(self, folder: Path) -> str:
        """One line for a terminal."""
        pace = f", {self.written / self.seconds:.2f} volumes/s" if self.written else ""
        done = f"; {self.skipped} were done before" if self.skipped else ""
        failed = f"; {len(self.failures)} failed" if self.failures else ""
        failed += "; the rest was not tried" * self.stopped
        if self.refused:
            failed += (
                f"; hidden in {len(self.refused)} of them, which are probably no such scans: "
                f"{first_few(self.refused)}"
            )
        scans = counted(self.written, "scan")
        return (
            f"landmarks of {scans} written to {folder} in {self.seconds:.1f} s{pace}{done}{failed}"
        )


def scans_at(path: Path, series: str = "", *, planar: bool = False) -> dict[str, Path]:
    """Name -> scan: the scan at `path`, or all below it; says what is left out and passed over.

    Args:
      series: of DICOM series below a folder those alone that are called so: `search_below`.
      planar: pictures are looked for, not volumes.

    Raises:
      InputError: there is nothing, or no scan, or one slice of a series, or no series so called.
    """
    if not path.exists():
        raise InputError(path, "no such file or folder (--input)")
    if path.is_file():
        if planar:
            return pictures_in(path) or {path.name: path}
        name = case_name(path)
        if not name and (flaw := file_flaw(path)):
            raise InputError(path, flaw)
        return {name or path.name: path}
    found = search_pictures_below(path, series) if planar else search_below(path, series)
    left_out = [f"{folder}: {what}" for folder, what in found.left_out.items()]
    known = [*found.scans.values(), *found.left_out, *found.other_series]
    if planar:
        # Frames lie in files, and files of a cine in its folder.
        known += [scan.parent for scan in found.scans.values()]
    over = passed_over(path, known, below=True, readable_ones=PICTURES if planar else EXTENSIONS)
    if not found.scans:
        what = "pictures" if planar else "scans"
        lines = [f"holds no {what} (--input)", named(left_out), over]
        if found.other_series:
            lines[0] = f"holds {_other_series(found.other_series, series)}"
        raise InputError(path, "; ".join(filter(None, lines)))
    if primary():
        if left_out:
            warn(printable(f"left out, {named(left_out)}"))
        if found.other_series:
            warn(printable(f"left out, {_other_series(found.other_series, series)}"))
        if over:
            say(printable(f"note: {path}: {over}"))
    return found.scans


def _other_series(folders: dict[Path, str], series: str) -> str:
    """What is said of folders without the series that is meant, and what to do about them."""
    held = named([f"{folder}: {what}" for folder, what in folders.items()])
    every = "config.data.series; --config.data.series= predicts all"
    return f"no DICOM volume that is {series!r} ({every}): {held}"


def predict_scans(model: TrainedModel, sources: dict[str, Path], folder: Path) -> Outcome:
    """Find and write the landmarks of raw scans, case name -> path.

    A line on stderr for each scan that fails and each that is doubtful. A disk that is full or
    fails ends the batch; what is done stays done. Several processes divide the scans, and each gets
    the outcome of all; their model is on devices of their own.

    Raises:
      InputError: the output folder, or the first case, cannot be written; a process was killed.
      OSError: all cases are written, the tables of the batch cannot be.
    """
    begin = time.monotonic()
    try:
        (folder / "batch").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"cannot be written: {error.strerror} (--output)") from error
    if primary():
        # Of a run that was killed.
        for stale in (folder / "batch").glob(f"{_STORE}*"):
            shutil.rmtree(stale, ignore_errors=True)
    agreed = from_primary("scans", {name: str(path) for name, path in sources.items()})
    sources = {name: Path(path) for name, path in agreed.items()}
    bad_names = {name: bad for name, path in sources.items() if (bad := _bad_name(name, path))}
    named = {name: path for name, path in sources.items() if name not in bad_names}
    undone = [n for n in own_share(named) if not _is_done(model, n, named[n], folder)]
    left = {name for part in gather("undone scans", undone) for name in part}
    done = named.keys() - left
    todo = {name: named[name] for name in own_share(name for name in named if name in left)}
    own = _Share(model, todo, folder, bad_names, some_done=bool(done))
    own.predict()
    written, failures, stopped, refused = own.with_others()
    seconds = time.monotonic() - begin
    outcome = Outcome(len(written), len(done), failures, seconds, stopped, refused)
    if primary():
        finished = [name for name in named if name in written or name in done]
        try:
            _write_batch(outcome, finished, sources, folder)
            if tells := model.predictor.tells:
                table = folder / "batch" / ATTRIBUTES
                write_segments_table(finished, model.scheme, tells, folder, table)
        except OSError:
            # A line of its own has been printed for it.
            if not stopped:
                raise
    return outcome


class _Share:
    """The scans of a batch that this process predicts, and what becomes of them."""

    def __init__(
        self,
        model: TrainedModel,
        todo: dict[str, Path],
        folder: Path,
        bad_names: dict[str, InputError],
        *,
        some_done: bool,
    ):
        self._model, self._todo, self._folder = model, todo, folder
        # Of this process alone.
        self._store = folder / "batch" / f"{_STORE}{uuid.uuid4().hex[:8]}"
        # The other processes have the same ones.
        self._failures = dict(bad_names)
        self._some_done = some_done
        self._written: set[str] = set()
        self._refused: set[str] = set()
        # Of those that are with the network.
        self._prepared: dict[str, tuple[PreparedScan, ...]] = {}
        self._stopped = False
        self._noted = 0  # scans with notes

    def predict(self) -> None:
        """Everything to do, in parallel: prepare, find, write. Shows a bar."""
        data = self._model.experiment.data
        workers = data.workers if len(self._todo) >= _SCANS_WORTH_PROCESSES else 1
        # Scans in work: enough that no process waits for the next.
        depth = data.workers or os.cpu_count() or 1
        # An image in chunks is a quarter of a gigabyte on the disk.
        depth *= 2 if self._model.frame.chunks is None else 1
        total = len(self._failures) + len(self._todo)
        with (
            discarded(self._store),
            worker_pool(workers, len(self._todo)) as pool,
            tqdm(
                total=total, desc="predicting", unit="scan", disable=not primary() or not total
            ) as self._bar,
        ):
            if primary():
                for name, bad in list(self._failures.items()):
                    self._fail(name, bad)
            for writing, problem in ahead(pool, _write, self._writings(pool, depth), depth):
                if problem is None:
                    self._written.add(writing.case.name)
                    if writing.case.refused:
                        self._refused.add(writing.case.name)
                    self._bar.update()
                else:
                    self._fail_to_write(writing.case.name, problem)
            if self._noted > _NAMED:
                more = f"{self._noted - _NAMED} more scans have notes: see batch/cases/<case>.json"
                self._bar.write(f"note: {more}", file=sys.stderr)

    def with_others(self) -> tuple[set[str], dict[str, InputError], bool, tuple[str, ...]]:
        """What all processes have written, what failed and why, whether a disk stopped them.

        Last, which of those written are probably no scans that the model is for.
        """
        results = gather(
            "results",
            {
                "written": [*self._written],
                "failed": {name: error.arguments for name, error in self._failures.items()},
                "stopped": self._stopped,
                "refused": [*self._refused],
            },
        )
        written = {name for part in results for name in part["written"]}
        failures = {
            name: InputError(*where) for part in results for name, where in part["failed"].items()
        }
        refused = tuple(sorted(name for part in results for name in part["refused"]))
        return written, failures, any(part["stopped"] for part in results), refused

    def _scans(
        self, pool: Executor | None, depth: int
    ) -> Iterator[tuple[str, tuple[PreparedScan, ...]]]:
        """Scans as the model takes them; those that can't be prepared have failed."""
        model = self._model
        names = itertools.takewhile(lambda _: not self._stopped, self._todo)
        size_mm = model.experiment.data.pixel_size_mm
        jobs = (
            _Preparing(
                model.preparations, model.identity, self._todo[name], self._store / name, size_mm
            )
            for name in names
        )
        for job, result in ahead(pool, _prepare, jobs, depth):
            name = job.home.name
            if isinstance(result, InputError):
                self._fail(name, result)
            else:
                self._prepared[name] = result
                yield name, result

    def _writings(self, pool: Executor | None, depth: int) -> Iterator["_Writing"]:
        """What the network found, as jobs for `_write`."""
        model = self._model
        for case in model.find(self._scans(pool, depth)):
            prepared, scan = self._prepared.pop(case.name), self._todo[case.name]
            for doubt in case.doubts:
                self._bar.write(printable(f"warning: {scan}: {doubt}"), file=sys.stderr)
            self._say_notes(scan, case.notes)
            picture = model.experiment.predict.pictures
            yield _Writing(model.identity, scan, case, prepared, self._folder, picture)

    def _say_notes(self, scan: Path, notes: Sequence[str]) -> None:
        """Of the first scans with any; all are in the records."""
        self._noted += bool(notes)
        if notes and self._noted <= _NAMED:
            self._bar.write(printable(f"note: {scan}: {'; '.join(notes)}"), file=sys.stderr)

    def _fail(self, name: str, error: InputError) -> None:
        self._failures[name] = error
        self._bar.write(f"error: {error}", file=sys.stderr)
        self._bar.update()

    def _fail_to_write(self, name: str, problem: OSError) -> None:
        refusal = InputError(self._folder, f"case {name!r} cannot be written: {problem.strerror}")
        of_the_disk = problem.errno in _DISK_ERRORS
        if of_the_disk and not (self._written or self._some_done):
            raise refusal
        # Those that were on their way fail as well: once is enough.
        if not self._stopped:
            self._fail(name, refusal)
        self._stopped = self._stopped or of_the_disk


@dataclasses.dataclass(frozen=True)
class _Preparing:
    preparations: tuple[Path, ...]  # the folders of the model's frames
    model: str
    scan: Path
    home: Path  # where the image is stored, if it is; its last part is the case's name
    pixel_size_mm: float  # of a picture that does not state it


@dataclasses.dataclass(frozen=True)
class _Writing:
    model: str
    scan: Path
    case: ScanLandmarks
    prepared: tuple[PreparedScan, ...]  # in each of the model's frames
    folder: Path
    picture: bool


@functools.lru_cache(maxsize=1)
def _frames_of(preparations: tuple[Path, ...], model: str) -> tuple[Frame, ...]:
    """Read once in each process; another model in the same folder has another frame."""
    return load_frames(preparations)


def _bad_name(name: str, path: Path) -> InputError | None:
    try:
        check_case(path, name)
    except InputError as error:
        return error
    return None


def _prepare(job: _Preparing) -> tuple[PreparedScan, ...] | InputError:
    """Whatever is wrong with one scan must not end the batch."""
    path, frames = job.scan, _frames_of(job.preparations, job.model)
    try:
        if frames[0].chunks is None:
            return prepare_scan_in(path, frames, pixel_size_mm=job.pixel_size_mm)
        with stored(job.home):
            return prepare_scan_in(path, frames, job.home)
    except InputError as error:
        return error
    except OSError as error:
        return InputError(path, f"cannot be stored in {job.home.parent}: {error.strerror}")
    except MemoryError:
        return InputError(path, "is too large for the memory of this machine")
    except Exception as error:
        return InputError(path, f"cannot be prepared: {type(error).__name__}: {error}")


def _write(job: _Writing) -> OSError | None:
    """What keeps the results of a case from being written, if anything; then none of them stays."""
    case, folder = job.case, job.folder
    try:
        write_markups(case, folder, fcsv=True)
        write_predictions(folder / f"{case.name}.csv", [case])
        if case.segments is not None:
            write_segments(case.name, case.segments, folder, case.doubts)
        if job.picture:
            with replacing(folder / f"{case.name}.png") as temporary:
                temporary.write_bytes(_picture(job))
        write_json(_record(folder, case.name), _describe(job))
    except OSError as error:
        with contextlib.suppress(OSError):
            for file in _files(folder, case.name, TOLD):
                file.unlink(missing_ok=True)
        return error
    finally:
        for prepared in job.prepared:
            prepared.discard()
    return None


def _picture(job: _Writing) -> bytes:
    case, prepared = job.case, job.prepared[0]
    radius = (f" ({r:.1f} {case.unit})" if np.isfinite(r) else "" for r in case.radius_mm)
    untrained = np.isin(case.landmarks, case.untrained)
    image, place = prepared.volume(case.name).overview()
    ijk = apply_affine(np.linalg.inv(place), case.positions_mm)
    return pictures.overlay(
        image,
        np.linalg.norm(place[:3, :3], axis=0).tolist(),
        np.where(untrained[:, None], np.nan, ijk),
        "; ".join([case.name, *case.doubts]),
        names=[
            name + (" (not trained: not drawn)" if unknown else r)
            for name, r, unknown in zip(case.landmarks, radius, untrained, strict=True)
        ],
        faint=np.isin(case.landmarks, case.hidden) & ~untrained,
        segments=_drawn(case.segments),
        unit=case.unit,
        origin_mm=place[:3, 3],
    )


def _drawn(segments: ScanSegments | None) -> pictures.Segmentation | None:
    if segments is None or segments.prepared is None:
        return None
    names = [segment.name for segment in segments.scheme.segments]
    return pictures.Segmentation(segments.prepared, names)


def _describe(job: _Writing) -> dict[str, Any]:
    columns, plane, prepared = job.case.columns(), job.case.plane, job.prepared[0]
    tree = {
        "schema_version": SCHEMA_VERSION,
        "case": job.case.name,
        "made_from": file_state(job.scan),
        "model": job.model,
        "coverage_of_radius": job.case.coverage,
        "registration_quality": _number(prepared.quality),
        "registration_margin": _number(prepared.lead),
        "share_of_volume_in_scan": prepared.overlap,
        "doubts": list(job.case.doubts),
        "notes": list(job.case.notes),
        "untrained": list(job.case.untrained),
        "outside": list(job.case.outside),
        "refused": job.case.refused,
        "landmarks": {
            name: {"lps_mm": xyz.tolist(), **{c: columns[c][name] for c in columns}}
            for name, xyz in zip(job.case.landmarks, job.case.positions_mm, strict=True)
        },
    }
    if plane is not None:
        tree["picture"] = dataclasses.asdict(plane)
    return _renamed(in_unit, tree, job.case.unit)


def _is_done(model: TrainedModel, name: str, path: Path, folder: Path) -> bool:
    """Whether this scan, as it is now, was predicted by this model; what is stale is deleted."""
    tells = model.predictor.tells
    record, *files = _files(folder, name, tells)
    try:
        tree = read_record(record, model.landmarks)
        if tells:
            read_predicted_attributes(attributes_file(folder, name), model.scheme)
        made_from = json.loads(json.dumps(file_state(path)))
        same = tree["model"] == model.identity and tree["made_from"] == made_from
    except InputError:
        same = False
    picture = model.experiment.predict.pictures
    if same and all(file.is_file() for file in files if picture or file.suffix != ".png"):
        return True
    if record.exists():
        # The model of the record may have told more.
        for file in _files(folder, name, TOLD):
            file.unlink(missing_ok=True)
    return False


def read_record(path: Path, landmarks: Sequence[str]) -> dict[str, Any]:
    """What a batch wrote last of a case, `batch/cases/<case>.json`.

    Raises:
      InputError: it is missing, damaged, or of other landmarks.
    """
    tree = _read_in_mm(path)
    try:
        rows = tree["landmarks"]
        if list(rows) != list(landmarks):
            raise ValueError("other landmarks")
        for row in rows.values():
            numbers = [*row["lps_mm"], *(row[c] for c in COLUMNS if row[c] is not None)]
            if len(row["lps_mm"]) != 3 or not all(math.isfinite(number) for number in numbers):
                raise ValueError("no position")
        words = [*tree.get("doubts", []), *tree.get("untrained", []), *tree.get("outside", [])]
        words.append(tree.get("refused", ""))
        if not all(isinstance(word, str) for word in words):
            raise ValueError("a doubt that is no text")
        return {**tree, "model": tree["model"], "made_from": tree["made_from"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error


def _read_in_mm(path: Path) -> dict[str, Any]:
    """A record with the names that lengths have in mm, whatever their unit."""
    tree = read_json(path, SCHEMA_VERSION)
    picture = tree.get("picture")
    return _renamed(from_unit, tree, picture["unit"]) if isinstance(picture, dict) else tree


def _renamed(rename: Callable[[Any, str], Any], tree: dict[str, Any], unit: str) -> dict[str, Any]:
    """A record by `in_unit` or `from_unit`; landmarks keep their names, however these end.

    The size of a picture's pixels is in mm in any unit.
    """
    found: dict[str, Any] = rename(tree, unit)
    if "picture" in tree:
        found = {**found, "picture": tree["picture"]}
    if isinstance(rows := tree.get("landmarks"), dict):
        found = {**found, "landmarks": {name: rename(row, unit) for name, row in rows.items()}}
    return found


def _write_batch(
    outcome: Outcome, done: Sequence[str], sources: dict[str, Path], folder: Path
) -> None:
    """The table of all cases that are done, and what became of the batch."""
    records = {name: _read_in_mm(_record(folder, name)) for name in done}
    planes = {
        name: Plane(tree["picture"]["unit"], tree["picture"]["pixel_mm"])
        for name, tree in records.items()
        if "picture" in tree
    }
    unit = next(iter(planes.values())).unit if planes else "mm"
    cases: dict[str, dict[str, Any]] = {name: tree["landmarks"] for name, tree in records.items()}
    points = {
        name: {landmark: np.array(row["lps_mm"]) for landmark, row in rows.items()}
        for name, rows in cases.items()
    }
    of_ensemble = any(FOLDS_SD in row for rows in cases.values() for row in rows.values())
    columns = {
        in_unit(column, unit): {
            name: {landmark: row.get(column) for landmark, row in rows.items()}
            for name, rows in cases.items()
        }
        for column in (*COLUMNS, *[FOLDS_SD] * of_ensemble)
    }
    words: dict[str, dict[str, str | None]] = {
        name: doubts_by_landmark(
            list(tree["landmarks"]), tree.get("doubts", []), tree.get("untrained", [])
        )
        for name, tree in records.items()
    }
    hidden = {name: _hidden(tree) for name, tree in records.items()}
    table = {**columns, HIDDEN: hidden, DOUBTS: words}
    write_table(folder / "batch" / "landmarks.csv", points, table, planes)
    write_json(
        folder / "batch" / "batch.json",
        {
            "schema_version": SCHEMA_VERSION,
            "scans": len(sources),
            "written": outcome.written,
            "done_before": outcome.skipped,
            "failed": [
                {"case": name, "scan": str(sources[name]), "problem": str(error)}
                for name, error in outcome.failures.items()
            ],
            "stopped": outcome.stopped,
            "refused": [name for name, tree in records.items() if tree.get("refused")],
            "seconds": round(outcome.seconds, 3),
        },
    )


def _hidden(tree: dict[str, Any]) -> dict[str, str | None]:
    """Landmark -> why it is hidden, of a record; None: it is not. Older ones say less."""
    presence = {name: row["presence"] for name, row in tree["landmarks"].items()}
    outside, refused = tree.get("outside", []), bool(tree.get("refused"))
    why = why_hidden(presence, tree.get("untrained", []), outside, refused=refused)
    return {**dict.fromkeys(presence), **why}


def _record(folder: Path, name: str) -> Path:
    return folder / "batch" / "cases" / f"{name}.json"


def _files(folder: Path, name: str, tells: Collection[str]) -> list[Path]:
    """What is written of a case: its record, and then what is for people."""
    ends = (".mrk.json", ".fcsv", ".csv", ".png")
    files = [_record(folder, name), *(folder / f"{name}{end}" for end in ends)]
    return [*files, *segment_files(folder, name, tells)]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
