"""The stages of an experiment as functions: raw scans in, a trained detector and its errors out.

    run = prepare(experiment, "runs/mine")
    train(run)
    predict(run)
    print(evaluate(run)["mre_mm"], report(run))

or `run_stages(experiment, "runs/mine")`, which also locks the work dir while it runs.
`load_model("runs/mine")` finds landmarks in new scans; `align` aligns two scans by their landmarks.
The command line (`main`) calls these functions. They know no flags, print lines of progress, and
raise `InputError` for what the user can correct.
"""

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmark import trained
from jaxmark.config import SCHEMA_VERSION, Data, Experiment, check_same, moved, to_json, validate
from jaxmark.core import native
from jaxmark.core.alignment import KINDS, Kind
from jaxmark.core.anatomy import Scheme, scheme_of
from jaxmark.core.grids import Plane
from jaxmark.core.shapes import typical_shape
from jaxmark.data import left_out
from jaxmark.data.annotated import read_annotated
from jaxmark.data.annotation_check import check_annotations
from jaxmark.data.cache import cache_folder
from jaxmark.data.cases import HostBatch, PreparedCase
from jaxmark.data.cohort import read_cohort
from jaxmark.data.frame import Frame, load_frame, save_frame
from jaxmark.data.frames import load_frames
from jaxmark.data.prepare import Prepared, prepare_cohort, prepared_shape
from jaxmark.data.segmentations import read_segments
from jaxmark.data.unpaired import place_unpaired, read_unpaired
from jaxmark.inference import calibration, exported, packed
from jaxmark.inference.engines import XLA
from jaxmark.inference.ensemble import Ensemble, fold_folder, is_cross_validation
from jaxmark.inference.model import TrainedModel
from jaxmark.inference.predictor import Found, Predictor
from jaxmark.inference.segments import ScanSegments
from jaxmark.methods.method import (
    BY_SEGMENT,
    LABEL_MAPS,
    LABELS,
    SEGMENTATION,
    SEGMENTS,
    SEGMENTS_ABSENT,
    SEGMENTS_PRESENT,
    SHAPE,
    UNPAIRED,
    LandmarkSets,
    Method,
    Task,
    Variables,
    chunks_of,
)
from jaxmark.results import align as alignment
from jaxmark.results import batch, contact_sheet, predictions, shown_cases
from jaxmark.results import check as checked
from jaxmark.results import evaluate as evaluation
from jaxmark.results import report as reports
from jaxmark.results.measures.points import Points, read_points
from jaxmark.results.measures.segmentation import read_maps
from jaxmark.system import processes
from jaxmark.system.devices import data_mesh, local_mesh, platform
from jaxmark.system.errors import InputError, about, printable
from jaxmark.system.files import read_json, write_json, write_text_atomic
from jaxmark.system.fingerprints import json_key
from jaxmark.system.lock import locked
from jaxmark.system.messages import say, warn
from jaxmark.system.parallel import parallel
from jaxmark.training.checkpoints import FOLDER, Checkpoints, load_variables
from jaxmark.training.loop import train as train_method
from jaxmark.training.provenance import check_moved


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment in its work dir, with the prepared cohort; all stages share it."""

    experiment: Experiment
    workdir: Path
    mesh: Mesh
    prepared: Prepared
    unpaired: LandmarkSets | None
    method: Method

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Compiled once for all stages."""
        settings = self.experiment.predict
        return Predictor(self.method, settings.batch, self.mesh, settings.engine)

    def variables(self) -> tuple[int, Variables]:
        """The step and the variables that `config.predict.checkpoint` names."""
        return _load_variables(self.method, self.experiment, self.workdir, self.mesh)

    @property
    def scheme(self) -> Scheme:
        """The landmarks and segments of the prepared cases."""
        return scheme_of(self.prepared.landmarks, self.prepared.frame.segments)

    @property
    def thresholds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Thresholds of success rates: in the landmarks' unit (mm or px), and in the other one."""
        own = self.experiment.evaluate
        both = own.sdr_thresholds_mm, own.sdr_thresholds_px
        return both if self.prepared.frame.unit == "mm" else both[::-1]

    def planes(self, cases: Sequence[PreparedCase]) -> dict[str, Plane]:
        """Case -> the plane of its picture; empty where cases are volumes."""
        frame = self.prepared.frame
        return {c.name: Plane(frame.unit, c.pixel_mm) for c in cases} if frame.planar else {}

    def find(
        self, variables: Variables, cases: Sequence[PreparedCase], what: str
    ) -> Iterator[Found]:
        """Predict prepared cases one by one, with a progress bar called `what`."""
        found = self.predictor(variables, (case.volume for case in cases))
        yield from tqdm(
            found, total=len(cases), desc=what, unit="scan", disable=not processes.primary()
        )

    def evaluated(self) -> tuple[str, list[PreparedCase]]:
        """The split that `config.predict.split` names, and its cases.

        An empty name means test, or val where there are no test cases.
        """
        chosen = self.experiment.predict.split
        name = chosen or ("test" if self.prepared.splits["test"] else "val")
        cases = self.prepared.split(name)
        if not cases:
            raise InputError("config.predict.split", f"the split {name!r} has no cases")
        return name, cases


def prepare(experiment: Experiment, workdir: str | Path) -> Run:
    """Prepare the cohort, the user's or a phantom, or find it in the cache; build the method.

    Writes config, frame and contact sheets into the work dir. Raises InputError for bad input, and
    where the work dir holds a model of another config: it must not be overwritten.
    """
    workdir, mesh = Path(workdir), data_mesh()
    validate(experiment)
    if is_cross_validation(workdir):
        problem = "holds a cross-validation (--mode=crossval); use another --workdir"
        raise InputError(workdir, problem)
    path = workdir / "config.json"
    changes: list[str] = []
    if path.exists() and (workdir / "checkpoints").exists():
        stored = read_json(path, SCHEMA_VERSION)
        check_same(stored, experiment, path)
        changes = moved(stored, experiment)
    with processes.primary_first("preparation"):
        prepared, unpaired = _prepare(experiment, workdir, changes)
    scheme = scheme_of(prepared.landmarks, prepared.frame.segments)
    task = task_of(experiment, scheme, mesh)
    native.use(mesh)
    task = dataclasses.replace(
        task,
        unpaired=unpaired,
        presence=prepared.presence,
        drawing=_drawing(experiment, scheme),
        shape_mm=prepared.frame.shape_mm,
    )
    method = experiment.method.build(task)
    if experiment.stream.on:
        method = _streamed(method, task)
    return Run(experiment, workdir, mesh, prepared, unpaired, method)


def train(run: Run) -> None:
    """Train, or continue an earlier training, then calibrate on the validation cases."""
    train_method(
        run.method,
        run.experiment,
        cases=run.prepared.split("train"),
        validation=run.prepared.split("val"),
        landmarks=run.prepared.landmarks,
        workdir=run.workdir,
        mesh=run.mesh,
        unpaired=run.unpaired,
    )
    calibrate(run, *run.variables())


def predict(run: Run) -> None:
    """Predict the cases of the evaluated split; write files into the work dir's `predictions/`."""
    split, cases = run.evaluated()
    step, variables = run.variables()
    calibrate(run, step, variables)
    say(f"predicting the {len(cases)} cases of split {split!r} with the model of step {step}")
    folder = run.workdir / "predictions"
    found = find_and_write(run, variables, cases, folder)
    if not processes.primary():
        return
    landmarks, settings = run.prepared.landmarks, run.experiment.predict
    if tells := run.method.tells:
        names = [case.name for case in cases]
        predictions.write_split_segments(names, run.scheme, tells, folder)
    promises = {
        name: calibration.load(run.workdir, landmarks, step, name, settings.coverage)
        for name in run.experiment.method.decoders
    }
    untrained = run.prepared.frame.untrained
    planes = run.planes(cases)
    predictions.write_split(found, landmarks, settings.decoder, promises, folder, untrained, planes)
    _say_untrained(untrained)
    learned = predictions.write_learned(run.method, variables.params, landmarks, folder)
    if learned:
        say(learned)


def find_and_write(
    run: Run, variables: Variables, cases: Sequence[PreparedCase], folder: Path
) -> list[Found]:
    """Landmarks of prepared cases. Label maps go to files: all of them would fill the memory."""
    found = []
    for one, case in zip(run.find(variables, cases, "predicting"), cases, strict=True):
        if processes.primary() and case.segments is not None:
            segments = ScanSegments.of(one, run.scheme, case.segments.grid)
            if segments is not None:
                predictions.write_segments(case.name, segments, folder)
        found.append(one.without_maps())
    return found


def calibrate(run: Run, step: int, variables: Variables) -> None:
    """Write the calibration file of a model, unless the work dir has it.

    It holds how well predictions of the validation cases fit, and what usual scans look like, so
    that unusual scans are recognised.
    """
    cases, training = run.prepared.split("val"), run.prepared.split("train")
    landmarks, settings = run.prepared.landmarks, run.experiment.predict
    any_look = run.experiment.augment.appearance.drawn
    known = False
    # A file of another step, or a damaged one, is replaced.
    with contextlib.suppress(InputError):
        if (run.workdir / calibration.FILE).exists():
            promised = calibration.load(
                run.workdir, landmarks, step, settings.decoder, settings.coverage
            )
            # Files of an earlier version do not say what usual scans look like.
            known = promised.usual is not None or any_look
    if processes.from_primary("calibration", known):
        return
    found = [f.without_maps() for f in run.find(variables, cases, "calibrating")] if cases else []
    if processes.primary():
        observed = observe(run, found, cases, step, training, run.prepared.frame.untrained)
        calibration.save(observed, run.workdir)


def observe(
    run: Run,
    found: Sequence[Found],
    cases: Sequence[PreparedCase],
    step: int,
    training: Sequence[PreparedCase],
    untrained: Sequence[str],
) -> calibration.Observed:
    """Call `calibration.observe` with the settings of the run."""
    experiment = run.experiment
    return calibration.observe(
        found,
        cases,
        run.prepared.landmarks,
        step,
        training,
        untrained,
        spacing_mm=run.prepared.frame.spacing_mm,
        decoders=experiment.method.decoders,
        shapes_mm=experiment.phantom.shapes_mm() if experiment.stream.on else None,
        any_look=experiment.augment.appearance.drawn,
    )


def evaluate(run: Run) -> dict[str, Any]:
    """Write errors of the predictions into the work dir's `evaluation/`; return figures by name.

    Of several processes only the primary evaluates; the others return {}.
    """
    split, cases = run.evaluated()
    if not processes.primary():
        return {}
    settings, frame = run.experiment.predict, run.prepared.frame
    thresholds_mm, other_thresholds = run.thresholds
    summary = evaluation.evaluate_cases(
        run.prepared.split("train"),
        cases,
        landmarks=run.prepared.landmarks,
        thresholds_mm=thresholds_mm,
        other_thresholds=other_thresholds,
        unit=frame.unit if frame.planar else "",
        # The radii were calibrated on the validation cases, so these can't test them.
        promised=None if split == "val" else settings.coverage,
        predictions=run.workdir / "predictions" / f"landmarks_{settings.decoder}.csv",
        folder=run.workdir / "evaluation",
        scheme=run.scheme,
        tells=run.method.tells,
        workers=run.experiment.data.workers,
    )
    say(evaluation.headline(summary))
    if run.method.tells:
        say(evaluation.segments_headline(summary))
    return summary


def report(run: Run) -> Path:
    """Write one page about the run from the files in its work dir; return its path."""
    page = run.workdir / reports.PAGE
    if processes.primary():
        split, cases = run.evaluated()
        points = read_points(run.workdir / "evaluation")
        write_page(run, run.workdir, points, cases, run.prepared.doubts(), split)
    return page


def write_page(
    run: Run,
    workdir: Path,
    points: Points,
    cases: Sequence[PreparedCase],
    doubts: Mapping[str, Sequence[str]],
    split: str = "",
) -> None:
    """Write the page about the predictions in a work dir, of one run or of all folds.

    `doubts`: case name -> what is doubtful about the case. `split`: the one that the cases are of;
    "" where they are of several.
    """
    viewer, tells = run.experiment.evaluate.viewer, run.method.tells
    overlays = shown_cases.overlay_cases(
        points,
        cases,
        doubts,
        workdir / "predictions" if viewer and SEGMENTATION in tells else None,
        [segment.name for segment in run.scheme.segments],
    )
    kinds, maps = run.experiment.method.metrics, label_cases(workdir, cases)
    reports.write_report(workdir, overlays, kinds, maps, split=split, viewer=viewer)
    say(f"report: {workdir / reports.PAGE}")


def label_cases(workdir: Path, cases: Sequence[PreparedCase]) -> list[shown_cases.LabelCase]:
    """Cases that the page shows with label maps; none if predicted or true maps are missing."""
    evaluated = workdir / "evaluation"
    if evaluation.read_summary(evaluated).get("segmentation") is None:
        return []
    return shown_cases.label_cases(read_maps(evaluated), cases, workdir / "predictions")


# What follows `prepare`, in order.
_AFTER: dict[str, Callable[[Run], Any]] = {
    "train": train,
    "predict": predict,
    "evaluate": evaluate,
    "report": report,
}
STAGES = ("prepare", *_AFTER)


def run_stages(experiment: Experiment, workdir: str | Path, stages: Sequence[str] = STAGES) -> Run:
    """Run some of `STAGES`, in their order; continue where an earlier run stopped.

    Preparation starts processes, so a script calls this under `if __name__ == "__main__":`.

    Raises:
      InputError: bad input, or another run is in the work dir.
      Interrupted: SIGTERM or Ctrl-C came while training; all steps so far are saved.
      FloatingPointError: a loss or parameter is not finite.
    """
    with owned(Path(workdir)):
        run = prepare(experiment, workdir)
        for name, stage in _AFTER.items():
            if name in stages:
                stage(run)
    return run


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Lock the folder for this run; of several processes the primary holds the lock."""
    with contextlib.ExitStack() as stack:
        with processes.primary_first(f"lock of {folder}"):
            if processes.primary():
                stack.enter_context(locked(folder))
        yield


def load_model(
    workdir: str | Path, experiment: Experiment | None = None, mesh: Mesh | None = None
) -> TrainedModel:
    """The trained model in a work dir, ready for new scans.

    A cross-validation gives the `Ensemble` of its folds.

    Args:
      workdir: a work dir, or a packed model: a file or a URL (see `inference.packed`).
      experiment: how the model is used (`predict`, `data.workers`); None: as it was trained.
      mesh: the devices; None: those of this process.

    Raises:
      InputError: the work dir holds no model, or one of another method or crop; or a
        cross-validation that is not complete, or whose method predicts segments.
    """
    workdir, mesh = packed.folder_of(workdir), mesh or local_mesh()
    experiment = validate(experiment or trained.get_config(str(workdir)))
    if is_cross_validation(workdir):
        return _load_ensemble(workdir, experiment, mesh)
    model = _load_untested(workdir, experiment, mesh)
    settings = experiment.predict
    known = calibration.load(
        workdir, model.landmarks, model.step, settings.decoder, settings.coverage
    )
    return dataclasses.replace(model, calibration=known)


def _load_ensemble(workdir: Path, experiment: Experiment, mesh: Mesh) -> Ensemble:
    """The models of all folds, calibrated on the out-of-fold cases."""
    settings = experiment.predict
    if settings.checkpoint != "last":
        problem = f"{settings.checkpoint!r} was chosen by the cases that errors are of: set 'last'"
        raise InputError("config.predict.checkpoint", problem)
    if not (workdir / calibration.FILE).exists():
        problem = "holds a cross-validation that is not complete: continue it, --mode=crossval"
        raise InputError(workdir, problem)
    members: list[TrainedModel] = []
    for fold in range(experiment.data.folds):
        own = of_fold(experiment, fold)
        model = _load_untested(fold_folder(workdir, fold), own, mesh)
        if model.predictor.tells:
            problem = (
                "holds folds of a method that tells segments, and an ensemble is of landmarks "
                f"alone; use one fold: {fold_folder(workdir, fold)}"
            )
            raise InputError(workdir, problem)
        if members and model.frame.shape_mm is None and settings.engine == XLA:
            # XLA's programs hold nothing of a fold, so all folds share one compiled program. Graphs
            # of other engines hold the fold's weights.
            model = dataclasses.replace(model, predictor=members[0].predictor)
        members.append(model)
    first = members[0]
    known = calibration.load(
        workdir, first.landmarks, first.step, settings.decoder, settings.coverage
    )
    frames = load_frames([member.preparation for member in members])
    return Ensemble.of(
        [
            dataclasses.replace(member, calibration=known, frame=frame)
            for member, frame in zip(members, frames, strict=True)
        ]
    )


def _load_untested(workdir: Path, experiment: Experiment, mesh: Mesh) -> TrainedModel:
    """A model without its calibration."""
    path, preparation = workdir / "config.json", workdir / "preparation"
    check_same(read_json(path, SCHEMA_VERSION), experiment, workdir, parts=("method",))
    frame, landmarks = load_frame(preparation)
    if frame.shape != prepared_shape(experiment.data):
        raise InputError(
            "config.data.crop", f"with its margin is not {frame.shape}, the model's in {workdir}"
        )
    scheme = scheme_of(landmarks, frame.segments)
    native.use(mesh)
    method = _method_for(experiment, frame, scheme, platform(mesh))
    step, variables = _load_variables(method, experiment, workdir, mesh)
    settings = experiment.predict
    return TrainedModel(
        experiment=experiment,
        preparation=preparation,
        frame=frame,
        scheme=scheme,
        predictor=Predictor(method, settings.batch, mesh, settings.engine),
        variables=variables,
        calibration=calibration.Calibration.unknown(len(landmarks), settings.coverage),
        step=step,
    )


def _method_for(experiment: Experiment, frame: Frame, scheme: Scheme, kind: str) -> Method:
    """The method of a trained model, on devices of a `Task.platform`."""
    task = dataclasses.replace(_task_on(kind, experiment, scheme), shape_mm=frame.shape_mm)
    method: Method = experiment.method.build(task)
    return method


def export(workdir: str | Path, file: str | Path) -> None:
    """Write the trained model as one file that needs no jaxmark.

    Args:
      workdir: a work dir or a packed model, as in `load_model`.
      file: ends in .jax.zip or .onnx, which chooses the format; see `inference.exported`.

    Raises:
      InputError: as `load_model`; the file's name ends otherwise; the model can't be exported.
      OSError: the file cannot be written.
    """
    file = Path(file)
    exported.format_of(file)
    workdir = packed.folder_of(workdir)
    if is_cross_validation(workdir):
        problem = f"holds several models; export one of them: {fold_folder(workdir, 0)}"
        raise InputError(workdir, problem)
    model = load_model(workdir)
    methods = functools.partial(_method_for, model.experiment, model.frame, model.scheme)
    with native.unused():
        tree = exported.write(model, methods, file, workdir)
    say(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {len(model.landmarks)} landmarks")
    if (placed := tree["grid"]["placed_by"]) == "registration":
        say("scans have to be registered to the template in the file before it sees them")
    else:
        say(f"its grid is placed by the scan's {placed}; docs/export.md says how it is used")


def of_fold(experiment: Experiment, fold: int) -> Experiment:
    """The experiment that trains and evaluates one fold of a cross-validation.

    It predicts with the last checkpoint. The best one would be chosen by the same cases that are
    evaluated, and their errors would be too small.
    """
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, fold=fold),
        predict=dataclasses.replace(experiment.predict, split="val", checkpoint="last"),
    )


def pack(workdir: str | Path, file: str | Path) -> None:
    """Write the trained model in a work dir as one file, and load that file once as a check.

    Raises:
      InputError: as `load_model`, or the file's name does not end in .zip.
      OSError: the file cannot be written.
    """
    workdir, file = Path(workdir), Path(file)
    if file.suffix != packed.EXTENSION:
        raise InputError("--output", f"{file} does not end in {packed.EXTENSION}")
    _check_trained(workdir)
    model = load_model(workdir)
    members = model.members if isinstance(model, Ensemble) else (model,)
    metas = {}
    for member in members:
        home, step = member.preparation.parent, member.step
        name = f"{(home / FOLDER).relative_to(workdir)}/{step}/meta/metadata"
        metas[name] = Checkpoints(home).public_meta(step, packed.without_names)
    steps = [member.step for member in members]
    digest = packed.pack(workdir, steps if isinstance(model, Ensemble) else steps[0], file, metas)
    with tempfile.TemporaryDirectory() as folder:
        load_model(packed.folder_of(file, Path(folder)))
    say(f"{file}: {file.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}")
    say(f"use: --checkpoint={file} or, from elsewhere, --checkpoint=URL#sha256={digest}")


def predict_batch(
    experiment: Experiment, workdir: str | Path, scans: str | Path, folder: str | Path
) -> batch.Outcome:
    """Find landmarks in a raw scan, or in all scans below a folder; write them into `folder`."""
    workdir, folder = Path(workdir), Path(folder)
    # The quick check comes first: loading the model takes seconds, finding scans may take minutes.
    _check_trained(workdir)
    data = experiment.data
    sources = batch.scans_at(Path(scans), data.series, planar=data.planar)
    # Each process predicts a part of the scans.
    model = load_model(workdir, experiment)
    _say_untrained(model.frame.untrained)
    with owned(folder / "batch"):
        outcome = batch.predict_scans(model, sources, folder)
    say(outcome.summary(folder))
    return outcome


def align(
    fixed: str | Path,
    moving: str | Path,
    folder: str | Path,
    *,
    transform: Kind = "similarity",
    workdir: str | Path | None = None,
    experiment: Experiment | None = None,
    fixed_landmarks: str | Path | None = None,
    moving_landmarks: str | Path | None = None,
) -> alignment.Alignment:
    """Align the moving scan with the fixed one by their landmarks; write files into `folder`.

    A scan's landmarks come from its landmark file where one is given, else from the model in the
    work dir. What the model states about a landmark decides its weight. Intensities are not
    compared.

    Args:
      fixed, moving: one scan each: a file, or a folder with one DICOM volume.
      transform: "rigid", "similarity", "affine" or "thin_plate".
      workdir: the trained model; not needed where both scans have landmark files.
      experiment: how the model is used, as in `load_model`.

    Raises:
      InputError, or an ExceptionGroup of them: a scan or a landmark file can't be read; there is no
        model; the landmarks in common are too few, or lie on a line or in a plane.
    """
    if transform not in KINDS:
        raise InputError("transform", f"{transform!r} is not one of {', '.join(KINDS)}")
    folder = Path(folder)
    given = [(Path(fixed), fixed_landmarks), (Path(moving), moving_landmarks)]
    inputs = [(path, None if file is None else Path(file)) for path, file in given]
    by_model = [path for path, file in inputs if file is None]
    # The quick checks come first: loading the model takes seconds.
    if by_model:
        if workdir is None:
            raise InputError(by_model[0], "has no landmark file, and no trained model is named")
        _check_trained(Path(workdir))
    sides = parallel(None, alignment.read_side, inputs, "reading")
    if by_model:
        model = load_model(Path(str(workdir)), experiment)
        found = dict(
            zip(by_model, parallel(None, model.predict, by_model, "finding landmarks"), strict=True)
        )
        sides = [
            side.with_prediction(found[path], str(workdir)) if file is None else side
            for side, (path, file) in zip(sides, inputs, strict=True)
        ]
    result = alignment.align_sides(sides[0], sides[1], transform)
    for line in result.notes:
        say(printable(f"note: {line}"))
    for line in result.doubts:
        warn(printable(line))
    say(printable(f"resampling {moving} on the grid of {fixed}"))
    with owned(folder):
        alignment.write_alignment(result, folder)
    say(result.summary(folder))
    return result


def check(
    experiment: Experiment, workdir: str | Path, predicted: Sequence[str | Path] = ()
) -> dict[str, Any]:
    """List the annotations to look at first, before any training; return the summary's figures.

    Writes `suspicions.csv`, `index.html` and `summary.json` into the work dir's `check/`.

    Args:
      predicted: work dirs of runs or cross-validations whose predictions are compared as well.

    Raises:
      InputError, or an ExceptionGroup of them: scans, landmark files or predictions can't be read.
    """
    folder = Path(workdir) / "check"
    validate(experiment)
    data = _with_root(experiment)
    annotated = read_annotated(data)
    for line in annotated.notes:
        say(printable(f"note: {line}"))
    unit = data.unit if data.planar else "mm"
    predictions = None
    if predicted:
        decoder = experiment.predict.decoder
        homes = [Path(home) for home in predicted]
        predictions = checked.read_predictions(homes, annotated, decoder, unit)
    with owned(folder):
        rows = check_annotations(annotated, data, predictions)
        written = checked.write_check(annotated, rows, folder, unit, data.workers)
    for text in written.lines:
        say(text)
    return written.summary


def _check_trained(workdir: Path) -> None:
    config = workdir / "config.json"
    if not config.is_file():
        raise InputError(workdir, f"holds no trained model: there is no {config.name}")


def _say_untrained(landmarks: Sequence[str]) -> None:
    if landmarks:
        more = f" and {len(landmarks) - 5} more" * (len(landmarks) > 5)
        say(
            "hidden in all predictions, since no training case has them: "
            f"{', '.join(map(repr, landmarks[:5]))}{more}"
        )


def write_phantom(experiment: Experiment, folder: str | Path) -> None:
    """Write the experiment's synthetic cohort as files that any tool reads."""
    if experiment.phantom is None:
        raise InputError("config.phantom", f"experiment {experiment.name!r} has none")
    experiment.phantom.write(Path(folder), experiment.data.workers)
    say(f"synthetic cohort written to {folder}")


def task_of(experiment: Experiment, scheme: Scheme, mesh: Mesh) -> Task:
    """The method's task on these devices; networks compute in bfloat16 on GPUs and TPUs."""
    return _task_on(platform(mesh), experiment, scheme)


def _task_on(kind: str, experiment: Experiment, scheme: Scheme) -> Task:
    """`task_of` for devices of the kind `Task.platform`."""
    data = experiment.data
    needs = experiment.method.needs
    targets = {}
    if needs & {SEGMENTS, LABEL_MAPS}:
        targets = {SEGMENTS_PRESENT: BY_SEGMENT, SEGMENTS_ABSENT: BY_SEGMENT}
    if LABEL_MAPS in needs:
        targets[SEGMENTATION] = LABELS
    if experiment.augment.flip and not scheme.symmetric_pairs:
        raise InputError(
            "config.augment.flip",
            "exchanges right and left, but no landmarks are called R and L, or right and left",
        )
    return Task(
        scheme=scheme,
        crop=data.crop,
        margin=data.margins,
        spacing_mm=data.spacing_mm,
        augment=experiment.augment,
        platform=kind,
        dtype=jnp.bfloat16 if kind in ("gpu", "tpu") else jnp.float32,
        targets=targets,
    )


def _typical_shape(experiment: Experiment, prepared: Prepared) -> np.ndarray:
    """The typical shape (K, 3) in mm: of the phantom if there is a stream, else of training cases.

    A landmark that no case has lies in the middle.
    """
    if experiment.stream.on:
        return np.asarray(experiment.phantom.shape_mm())
    points = np.stack(
        [
            np.where(case.present[:, None], case.landmarks_mm, np.nan)
            for case in prepared.split("train")
        ]
    )
    with about("config.data.root"):
        return typical_shape(points, scheme_of(prepared.landmarks).mirrored)


def _drawing(
    experiment: Experiment, scheme: Scheme
) -> Callable[..., Callable[[int], HostBatch]] | None:
    """What makes the cases of a stream, if there is one; InputError for other landmarks."""
    if not experiment.stream.on:
        return None
    if scheme.landmarks != experiment.phantom.scheme.landmarks:
        problem = "draws people with other landmarks than the cohort's, or in another order"
        raise InputError("config.stream.on", problem)
    drawing: Callable[..., Callable[[int], HostBatch]] = experiment.phantom.drawing
    return drawing


def _streamed(method: Method, task: Task) -> Method:
    """The method; phases without a `draw` get one, with label maps of the prepared shape."""
    assert task.drawing is not None
    x, y, z = (side + 2 * margin for side, margin in zip(task.crop, task.margin, strict=True))
    draw = task.drawing((x, y, z), task.spacing_mm)
    phases = tuple(
        phase if phase.draw else dataclasses.replace(phase, draw=draw) for phase in method.phases
    )
    return dataclasses.replace(method, phases=phases)


def _load_variables(
    method: Method, experiment: Experiment, workdir: Path, mesh: Mesh
) -> tuple[int, Variables]:
    return load_variables(workdir, experiment.predict.checkpoint, method.init, mesh)


def _prepare(
    experiment: Experiment, workdir: Path, changes: Sequence[str]
) -> tuple[Prepared, LandmarkSets | None]:
    """The prepared cohort, and the unpaired one for methods that learn from it.

    `changes`: paths to data that differ from those of the model in the work dir; InputError if the
    data there differ, too.
    """
    data = _with_root(experiment)
    cohort = read_cohort(data)
    # All tables are read before anything is prepared: a mistake should show at once.
    notes = [*cohort.notes]
    needed = experiment.method.needs
    if data.planar and LABEL_MAPS in needed:
        raise InputError("config.method", "learns from label maps, which pictures do not have here")
    sets = read_unpaired(data, cohort.names, notes) if UNPAIRED in needed else None
    segments = None
    if needed & {SEGMENTS, LABEL_MAPS}:
        segments = read_segments(cohort, data, maps=LABEL_MAPS in needed)
        notes += segments.notes
    for line in notes:
        say(printable(f"note: {line}"))
    begin = time.monotonic()
    prepared = prepare_cohort(cohort, data, segments, chunks_of(needed))
    if SHAPE in needed:
        shaped = dataclasses.replace(prepared.frame, shape_mm=_typical_shape(experiment, prepared))
        prepared = dataclasses.replace(prepared, frame=shaped)
    sizes = ", ".join(f"{len(cases)} {split}" for split, cases in prepared.splits.items())
    say(
        f"prepared cases: {sizes}; {len(prepared.landmarks)} landmarks; "
        f"{time.monotonic() - begin:.1f} s; cache {cache_folder(data)}"
    )
    for line in left_out.summary(prepared.left_out):
        say(f"left out: {line}")
    for line in prepared.warnings():
        say(f"warning: {line}")
    for line in prepared.notes():
        say(printable(f"note: {line}"))
    unpaired = None
    if sets is not None:
        path, by_case = sets
        unpaired = _place_unpaired(by_case, prepared, data.unpaired_align, path)
    if changes:
        train_cases = prepared.split("train")
        say(f"note: {check_moved(workdir, prepared.landmarks, train_cases, unpaired, changes)}")
    if processes.primary():
        write_json(
            workdir / "config.json", {"schema_version": SCHEMA_VERSION, **to_json(experiment)}
        )
        preparation = workdir / "preparation"
        save_frame(prepared.frame, prepared.landmarks, preparation)
        write_text_atomic(preparation / left_out.TABLE, left_out.table(prepared.left_out))
        sheets = contact_sheet.write_contact_sheets(
            prepared, preparation, everything=data.all_sheets, workers=data.workers
        )
        say(f"look at the prepared cases: {_listed(sheets, len(prepared.cases), data)}")
    return prepared, unpaired


def _with_root(experiment: Experiment) -> Data:
    """The data settings with a folder: the user's, or the phantom's, written if it is missing."""
    data = experiment.data
    if data.root:
        return data
    if experiment.phantom is None:
        raise InputError("config.data.root", "is empty; set it to the folder of your scans")
    root = _phantom_in_cache(experiment)
    return dataclasses.replace(data, root=str(root), landmarks=experiment.phantom.scheme.landmarks)


def _listed(sheets: Sequence[Path], cases: int, data: Data) -> str:
    """One line that says where the contact sheets are."""
    last = f" to {sheets[-1].name}" * (len(sheets) > 1)
    some = ""
    if cases > contact_sheet.MOST_CASES and not data.all_sheets:
        some = (
            f" ({contact_sheet.MOST_CASES} of {cases:,} cases, doubtful ones first; "
            "--config.data.all_sheets draws all)"
        )
    return f"{sheets[0]}{last}{some}"


def _phantom_in_cache(experiment: Experiment) -> Path:
    """The synthetic cohort's folder; written if it is missing."""
    phantom, data = experiment.phantom, experiment.data
    fields = {k: v for k, v in to_json(experiment)["phantom"].items() if k != "class"}
    usual = to_json(dataclasses.replace(experiment, phantom=type(phantom)()))["phantom"]
    for name in getattr(phantom, "later", ()):
        if fields[name] == usual[name]:
            del fields[name]
    key = json_key({"recipe": phantom.recipe_version, **fields})
    root = cache_folder(data) / f"phantom-{key}"
    phantom.write(root, data.workers)
    return root


def _place_unpaired(
    sets: dict[str, np.ndarray], prepared: Prepared, align: str, path: Path
) -> LandmarkSets:
    """Landmarks without scans as methods take them; prints how many there are."""
    ijk = place_unpaired(sets, prepared.split("train"), prepared.frame, align, path)
    present = np.isfinite(ijk).all(-1)
    given = sum(int(np.isfinite(points).all(-1).sum()) for points in sets.values())
    outside = given - int(present.sum())
    say(
        f"landmarks of {len(sets)} people without scans, {path}: {present.sum()} points"
        + (f"; {outside} more lie outside of the prepared volume and are left out" * bool(outside))
    )
    if not present.any():
        raise InputError(
            path,
            "no landmark lies in the prepared volume; are the sets in another frame? "
            "--config.data.unpaired_align=rigid",
        )
    return LandmarkSets(np.nan_to_num(ijk).astype(np.float32), present)
