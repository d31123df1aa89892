"""Cross-validation: errors of every case by a model trained without it, and the folds' ensemble.

    cross_validate(experiment, "runs/cv", folds=5)
    load_model("runs/cv").predict("patient.nii.gz")

Each fold is an ordinary run in `folds/<k>` of the work dir, with `config.data.fold=k`. It may be
trained anywhere; a trained fold is not trained again. When all folds are trained, their out-of-fold
cases are predicted. The work dir then has the files of a run, for all cases:

```
folds/<k>/                     one run each, with its checkpoints, frame and log
predictions/                   of each case, by the model of the fold that was trained without it
evaluation/, report/           of these predictions; folds.csv: case, fold
calibration.json, shape.json   calibration of the ensemble, from these predictions
test/predictions, evaluation   of the ensemble, if there is a test split
```
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.config import SCHEMA_VERSION, Experiment, check_same, to_json, validate
from jaxmark.core.metrics import radial_error_mm
from jaxmark.data.cases import PreparedCase
from jaxmark.data.labels import natural
from jaxmark.inference import calibration
from jaxmark.inference.ensemble import FOLDS, Ensemble, fold_folder
from jaxmark.inference.model import ScanLandmarks
from jaxmark.inference.predictor import Found
from jaxmark.results import evaluate as evaluation
from jaxmark.results import predictions
from jaxmark.results.folds import ensemble_figures, fold_figures, write_folds
from jaxmark.results.measures.points import Points, floors_of, points_of
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json, write_json
from jaxmark.system.lock import InUseError
from jaxmark.system.messages import say
from jaxmark.training.checkpoints import FOLDER
from jaxmark.workflow import (
    Run,
    find_and_write,
    load_model,
    observe,
    of_fold,
    owned,
    prepare,
    train,
    write_page,
)

USUAL_FOLDS = 5
TEST = "test"


def cross_validate(
    experiment: Experiment, workdir: str | Path, folds: int | None = None
) -> dict[str, Any]:
    """Train all folds, or continue; then predict, evaluate and report their out-of-fold cases.

    Folds that other processes train are skipped; the process that ends last does the rest.

    Args:
      folds: number of folds; None: `config.data.folds`, or 5 if that is 0.

    Returns:
      The figures of all cases by name; empty if other processes still train folds.

    Raises:
      InputError: bad input, or the work dir holds no cross-validation but something else.
      Interrupted, FloatingPointError: see `workflow.run_stages`.
    """
    workdir = Path(workdir)
    experiment = _begin(experiment, workdir, folds)
    runs, busy = _train(experiment, workdir)
    if busy:
        homes = ", ".join(str(fold_folder(workdir, fold)) for fold in busy)
        say(
            f"other processes work on {homes}; the one that ends last, or this command again, "
            "writes the report"
        )
        return {}
    try:
        with owned(workdir):
            return _pool(experiment, workdir, runs)
    except InUseError as error:
        say(f"{error}, which writes the report")
        return {}


def _begin(experiment: Experiment, workdir: Path, folds: int | None) -> Experiment:
    """The experiment of fold 0; its config is also the work dir's."""
    data = experiment.data
    if data.fold:
        raise InputError("config.data.fold", "is for a fold alone; --mode=crossval trains all")
    if folds is not None and data.folds not in (0, folds):
        raise InputError("--folds", f"is {folds}, config.data.folds {data.folds}")
    data = dataclasses.replace(
        data, folds=folds if folds is not None else data.folds or USUAL_FOLDS
    )
    if not data.folds:
        raise InputError("--folds", "0 is no cross-validation: 2 or more")
    experiment = validate(of_fold(dataclasses.replace(experiment, data=data), 0))
    path = workdir / "config.json"
    if path.exists() and any(path.parent.glob(f"{FOLDS}/*/{FOLDER}")):
        check_same(read_json(path, SCHEMA_VERSION), experiment, path)
    if (workdir / FOLDER).exists():
        raise InputError(workdir, "holds a run of its own, not folds; use another --workdir")
    write_json(path, {"schema_version": SCHEMA_VERSION, **to_json(experiment)})
    return experiment


def _train(experiment: Experiment, workdir: Path) -> tuple[list[Run], list[int]]:
    """All folds as trained runs; or the folds that other processes train."""
    done: dict[int, Run] = {}
    count = experiment.data.folds
    while True:
        before, busy = len(done), []
        for fold in range(count):
            if fold in done:
                continue
            home = fold_folder(workdir, fold)
            try:
                with owned(home):
                    say(f"fold {fold + 1} of {count} (config.data.fold={fold}): {home}")
                    run = prepare(of_fold(experiment, fold), home)
                    train(run)
            except InUseError as error:
                say(f"skipped: {error}")
                busy.append(fold)
                continue
            done[fold] = run
        # Another round takes over folds that others have finished meanwhile.
        if not busy or len(done) == before:
            return [done[fold] for fold in sorted(done)], busy


def _pool(experiment: Experiment, workdir: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """Write predictions, figures and page of all out-of-fold cases, and the ensemble's test."""
    landmarks = runs[0].prepared.landmarks
    found: list[list[Found]] = []
    on_test: list[list[Found]] = []
    for run in runs:
        step, variables = run.variables()
        say(
            f"predicting the cases of fold {run.experiment.data.fold} with its model of step {step}"
        )
        own, folder = run.prepared.split("val"), workdir / "predictions"
        found.append(find_and_write(run, variables, own, folder))
        others = run.find(variables, run.prepared.split("test"), "predicting test cases")
        on_test.append([one.without_maps() for one in others])

    cases = [case for run in runs for case in run.prepared.split("val")]
    everything = [one for own_found in found for one in own_found]
    untrained = [
        name for name in landmarks if all(name in run.prepared.frame.untrained for run in runs)
    ]
    observed = observe(runs[0], everything, cases, step, cases, untrained)
    predicted = _predicted(runs, found, observed.figures)
    predictions.write_cases(predicted, experiment.predict.decoder, workdir / "predictions")
    # Written last: with this file the work dir is a model.
    calibration.save(observed, workdir)
    ensemble = _test(experiment, workdir, runs, on_test) if on_test[0] else None
    return _evaluate(experiment, workdir, runs, ensemble)


def _evaluate(
    experiment: Experiment, workdir: Path, runs: Sequence[Run], ensemble: dict[str, Any] | None
) -> dict[str, Any]:
    """Write figures and page of the out-of-fold predictions; `ensemble` figures are added."""
    first, settings, folder = runs[0], experiment.predict, workdir / "evaluation"
    by_name = {case.name: (k, case) for k, r in enumerate(runs) for case in r.prepared.split("val")}
    fold_of = {name: by_name[name][0] for name in sorted(by_name, key=natural)}
    cases = [by_name[name][1] for name in fold_of]
    frame = first.prepared.frame
    table = workdir / "predictions" / f"landmarks_{settings.decoder}.csv"
    unit = frame.unit if frame.planar else ""
    points = points_of(cases, first.prepared.landmarks, table, unit)
    more: dict[str, Any] = {"folds": fold_figures(points, fold_of), "ensemble": ensemble}
    if tells := first.method.tells:
        scheme, workers = first.scheme, experiment.data.workers
        predictions.write_split_segments(list(fold_of), scheme, tells, table.parent)
        more |= evaluation.evaluate_segments(cases, scheme, tells, table.parent, folder, workers)
    thresholds_mm, other_thresholds = first.thresholds
    summary = evaluation.evaluate(
        points,
        thresholds_mm=thresholds_mm,
        floors=_floors(runs, cases),
        folder=folder,
        # Each fold's radii were calibrated on the other folds' cases.
        promised=settings.coverage,
        more=more,
        other_thresholds=other_thresholds,
    )
    write_folds(fold_of, folder)
    say(evaluation.headline(summary))
    if tells:
        say(evaluation.segments_headline(summary))
    doubts = {
        name: lines
        for run in runs
        for name, lines in run.prepared.doubts().items()
        if name in fold_of and runs[fold_of[name]] is run
    }
    write_page(first, workdir, points, cases, doubts)
    return summary


def _predicted(
    runs: Sequence[Run], found: Sequence[Sequence[Found]], observed: dict[str, Any]
) -> dict[str, list[ScanLandmarks]]:
    """Decoder -> out-of-fold landmarks, calibrated on the other folds' cases."""
    settings = runs[0].experiment.predict
    predicted: dict[str, list[ScanLandmarks]] = {}
    for run, own in zip(runs, found, strict=True):
        others = calibration.without(observed, {one.name for one in own})
        for decoder in run.experiment.method.decoders:
            promise = calibration.calibrate(others, decoder, settings.coverage)
            predicted.setdefault(decoder, []).extend(
                predictions.cases_of(
                    own,
                    run.prepared.landmarks,
                    decoder,
                    promise,
                    run.prepared.frame.untrained,
                    run.planes(run.prepared.split("val")),
                )
            )
    return {
        decoder: sorted(listed, key=lambda case: natural(case.name))
        for decoder, listed in predicted.items()
    }


def _floors(runs: Sequence[Run], cases: Sequence[PreparedCase]) -> dict[str, np.ndarray]:
    """(N, K, 3) baseline positions of each case, from the training cases of its fold."""
    by_case: dict[str, dict[str, np.ndarray]] = {}
    for run in runs:
        own = run.prepared.split("val")
        for name, positions in floors_of(run.prepared.split("train"), own).items():
            shape = (len(own), *positions.shape[-2:])
            for case, rows in zip(own, np.broadcast_to(positions, shape), strict=True):
                by_case.setdefault(name, {})[case.name] = rows
    return {
        name: np.stack([rows[case.name] for case in cases])
        for name, rows in by_case.items()
        # A fold whose scans could not be registered lacks some baselines.
        if len(rows) == len(cases)
    }


def _test(
    experiment: Experiment, workdir: Path, runs: Sequence[Run], found: Sequence[Sequence[Found]]
) -> dict[str, Any] | None:
    """Write the ensemble's test to `test/`; return its figures beside those of its folds."""
    first, settings = runs[0], experiment.predict
    if first.method.tells:
        say("note: the method predicts segments: there is no ensemble of its folds")
        return None
    ensemble = load_model(workdir, experiment, first.mesh)
    assert isinstance(ensemble, Ensemble)
    landmarks, frame, cases = ensemble.landmarks, ensemble.frame, first.prepared.split("test")
    by_case = list(zip(*found, strict=True))
    together = [ensemble.combined(one) for one in by_case]
    promises = {
        decoder: calibration.load(workdir, landmarks, ensemble.step, decoder, settings.coverage)
        for decoder in experiment.method.decoders
    }
    planes, folder = first.planes(cases), workdir / TEST
    listed = {
        decoder: [
            dataclasses.replace(case, folds_sd_mm=ensemble.sd_mm(one, decoder))
            for one, case in zip(
                by_case,
                predictions.cases_of(
                    together, landmarks, decoder, promise, frame.untrained, planes
                ),
                strict=True,
            )
        ]
        for decoder, promise in promises.items()
    }
    predictions.write_cases(listed, settings.decoder, folder / "predictions")
    table = folder / "predictions" / f"landmarks_{settings.decoder}.csv"
    if not any(case.present.any() for case in cases):
        return None
    points = points_of(cases, landmarks, table, frame.unit if frame.planar else "")
    thresholds_mm, other_thresholds = first.thresholds
    summary = evaluation.evaluate(
        points,
        thresholds_mm=thresholds_mm,
        # Baselines are in the frame of the first fold.
        floors=floors_of([*first.prepared.split("train"), *first.prepared.split("val")], cases),
        folder=folder / "evaluation",
        promised=settings.coverage,
        other_thresholds=other_thresholds,
    )
    say(f"ensemble on the test cases: {evaluation.headline(summary)}")
    return ensemble_figures(points, [_errors(points, own, settings.decoder) for own in found])


def _errors(points: Points, found: Sequence[Found], decoder: str) -> np.ndarray:
    """(N, K) errors of one fold's predictions of the same cases."""
    predicted_mm = np.stack([one.landmarks_mm(decoder) for one in found])
    return radial_error_mm(points.truth_mm, predicted_mm, points.present)
