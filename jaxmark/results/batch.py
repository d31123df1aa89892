"""Raw scans in, landmark files out: one scan or a folder of them, at the pace of the devices.

Processes read, register and resample scans ahead of the network, and write and draw behind it. A
scan that fails is reported, and the others continue. A second start predicts only unfinished scans.

```
output/<case>.mrk.json, .fcsv, .csv, .png   landmarks in the scan's own LPS mm, and a picture
output/<case>.seg.nrrd, .attributes.json    for models that predict segments, see
output/segmentations/<case>.nii.gz          `data.label_map_files` and `predictions`
output/batch/landmarks.csv, attributes.csv  all cases in one table
output/batch/batch.json                     failures with reasons, and the pace
output/batch/cases/<case>.json              written last: scan, model and results of the case
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
# Starting processes takes as long as preparing about this many scans.
_SCANS_WORTH_PROCESSES = 4
# Notes are printed for this many scans, and counted for the others.
_MOST_NOTED = 5
# After one of these errors the next file can't be written either.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# Folder in `batch`; a random end, different in each process, follows.
_STORE = ".prepared-"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a batch."""

    written: int
    skipped: int  # done by an earlier run
    failures: dict[str, InputError]
    seconds: float
    # An error of the disk, the last failure, ended the batch; the rest was not tried.
    stopped: bool = False
    refused: tuple[str, ...] = ()  # written scans that the model refused: all landmarks hidden

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
    """Name -> scan: the scan at `path`, or all below it; prints what is left out or skipped.

    Args:
      series: below a folder, take only DICOM series of this name; see `search_below`.
      planar: search for pictures instead of volumes.

    Raises:
      InputError: there is nothing at `path`, no scan, one slice of a series, or no series of this
        name.
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
        # A cine's scans are frames: their files, and the folders of these, are known, too.
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
    """A message about folders without the wanted series, and how to predict them."""
    held = named([f"{folder}: {what}" for folder, what in folders.items()])
    every = "config.data.series; --config.data.series= predicts all"
    return f"no DICOM volume that is {series!r} ({every}): {held}"


def predict_scans(model: TrainedModel, sources: dict[str, Path], folder: Path) -> Outcome:
    """Find and write the landmarks of raw scans, case name -> path.

    Prints a line on stderr for each failed and each doubtful scan. An error of the disk ends the
    batch; written cases stay. Several processes divide the scans, each with the model on its own
    devices, and each gets the outcome of all.

    Raises:
      InputError: the output folder, or the first case, cannot be written; a process was killed.
      OSError: all cases are written, but the tables of the batch cannot be.
    """
    begin = time.monotonic()
    try:
        (folder / "batch").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"cannot be written: {error.strerror} (--output)") from error
    if primary():
        # Remove folders of a killed run.
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
            # A line has been printed for it already.
            if not stopped:
                raise
    return outcome


class _Share:
    """This process's part of a batch: its scans and their outcome."""

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
        # A folder for this process alone.
        self._store = folder / "batch" / f"{_STORE}{uuid.uuid4().hex[:8]}"
        # These failures are the same in all processes.
        self._failures = dict(bad_names)
        self._some_done = some_done
        self._written: set[str] = set()
        self._refused: set[str] = set()
        # Scans on their way through the network.
        self._prepared: dict[str, tuple[PreparedScan, ...]] = {}
        self._stopped = False
        self._noted = 0  # scans with notes

    def predict(self) -> None:
        """Prepare, predict and write all scans in parallel, with a progress bar."""
        data = self._model.experiment.data
        workers = data.workers if len(self._todo) >= _SCANS_WORTH_PROCESSES else 1
        # Scans in work: enough that no process has to wait.
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
            if self._noted > _MOST_NOTED:
                more = f"{self._noted - _MOST_NOTED} more scans have notes"
                self._bar.write(f"note: {more}: see batch/cases/<case>.json", file=sys.stderr)

    def with_others(self) -> tuple[set[str], dict[str, InputError], bool, tuple[str, ...]]:
        """Written scans, failures, whether a disk error stopped the batch, refused scans.

        These are of all processes together.
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
        """Prepared scans for the model; scans that can't be prepared become failures."""
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
        """The network's predictions as jobs for `_write`."""
        model = self._model
        for case in model.find(self._scans(pool, depth)):
            prepared, scan = self._prepared.pop(case.name), self._todo[case.name]
            for doubt in case.doubts:
                self._bar.write(printable(f"warning: {scan}: {doubt}"), file=sys.stderr)
            self._say_notes(scan, case.notes)
            picture = model.experiment.predict.pictures
            yield _Writing(model.identity, scan, case, prepared, self._folder, picture)

    def _say_notes(self, scan: Path, notes: Sequence[str]) -> None:
        """Print the notes of the first scans that have any; records have the notes of all."""
        self._noted += bool(notes)
        if notes and self._noted <= _MOST_NOTED:
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
        # Scans on their way fail as well, but one message is enough.
        if not self._stopped:
            self._fail(name, refusal)
        self._stopped = self._stopped or of_the_disk


@dataclasses.dataclass(frozen=True)
class _Preparing:
    preparations: tuple[Path, ...]  # the folders of the model's frames
    model: str
    scan: Path
    home: Path  # where the image may be stored; its last part is the case's name
    pixel_size_mm: float  # for a picture that does not state it


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
    """The frames, read once in each process; `model` tells models in one folder apart."""
    return load_frames(preparations)


def _bad_name(name: str, path: Path) -> InputError | None:
    try:
        check_case(path, name)
    except InputError as error:
        return error
    return None


def _prepare(job: _Preparing) -> tuple[PreparedScan, ...] | InputError:
    """Prepare a scan; any error is returned, since it must not end the batch."""
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
    """Write all results of a case; on an error keep none of them, and return the error."""
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
    """Whether this model predicted this scan in its present state; delete outdated results."""
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
        # The model of the record may have predicted more than this one.
        for file in _files(folder, name, TOLD):
            file.unlink(missing_ok=True)
    return False


def read_record(path: Path, landmarks: Sequence[str]) -> dict[str, Any]:
    """The record of a case, `batch/cases/<case>.json`.

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
    """A record whose lengths have the names for mm, in any unit."""
    tree = read_json(path, SCHEMA_VERSION)
    picture = tree.get("picture")
    return _renamed(from_unit, tree, picture["unit"]) if isinstance(picture, dict) else tree


def _renamed(rename: Callable[[Any, str], Any], tree: dict[str, Any], unit: str) -> dict[str, Any]:
    """A record renamed by `in_unit` or `from_unit`, except names of landmarks.

    The size of a picture's pixels is always in mm.
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
    """Write the tables of all finished cases, and the outcome of the batch."""
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
    """Landmark -> why a record hides it; None: it does not. Older records have fewer reasons."""
    presence = {name: row["presence"] for name, row in tree["landmarks"].items()}
    outside, refused = tree.get("outside", []), bool(tree.get("refused"))
    why = why_hidden(presence, tree.get("untrained", []), outside, refused=refused)
    return {**dict.fromkeys(presence), **why}


def _record(folder: Path, name: str) -> Path:
    return folder / "batch" / "cases" / f"{name}.json"


def _files(folder: Path, name: str, tells: Collection[str]) -> list[Path]:
    """Files of a case: the record first, then those for users."""
    ends = (".mrk.json", ".fcsv", ".csv", ".png")
    files = [_record(folder, name), *(folder / f"{name}{end}" for end in ends)]
    return [*files, *segment_files(folder, name, tells)]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
