"""What a cross-validation's choices are worth, measured on its work dir.

python -m experiments.crossval_choices --workdir=W

The first table: out-of-fold and test errors of each fold's last checkpoint, and of the one that is
best on the fold's own cases. The best one is chosen by these, so their error falls further than
that of the test cases. The second table: ways to combine the folds' positions on the test cases.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from jaxmark import trained
from jaxmark.core.metrics import paired_comparison, radial_error_mm
from jaxmark.data.cases import PreparedCase
from jaxmark.inference.ensemble import fold_folder
from jaxmark.inference.predictor import Found
from jaxmark.results.page import interval, mm
from jaxmark.workflow import Run, of_fold, prepare

# Positions (M, N, K, 3) of M folds in N cases, and their spread (M, N, K) -> (N, K, 3).
COMBINATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mean": lambda positions, spread: positions.mean(0),
    "median of each coordinate": lambda positions, spread: np.median(positions, axis=0),
    "mean, weighted by 1 / spread^2": lambda positions, spread: np.average(
        positions, axis=0, weights=np.broadcast_to(spread[..., None] ** -2, positions.shape)
    ),
}


def main() -> None:
    """Parse flags, print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of --mode=crossval")
    workdir = parser.parse_args().workdir
    logging.set_verbosity(logging.ERROR)
    experiment = trained.get_config(str(workdir))
    folds = range(experiment.data.folds)
    runs = [prepare(of_fold(experiment, fold), fold_folder(workdir, fold)) for fold in folds]
    found = [{which: _found(run, which) for which in ("last", "best")} for run in runs]
    print("| | out-of-fold cases | test cases |\n|---|---|---|")
    table = np.array(
        [[[_mre(run, f, split) for split in f] for f in one.values()] for run, one in zip(
            runs, found, strict=True)]
    )  # fmt: skip
    for name, row in zip(("last checkpoint", "best checkpoint"), table.mean(0), strict=True):
        print(f"| MRE (mm), mean over folds: {name} | {mm(row[0])} | {mm(row[1])} |")
    gain = table[:, 1] - table[:, 0]
    sd = gain.std(0, ddof=1)
    cells = " | ".join(
        f"{mm(g)} (SD of folds {mm(s)})" for g, s in zip(gain.mean(0), sd, strict=True)
    )
    print(f"| best minus last | {cells} |\n")
    _combine(runs[0].prepared.split("test"), [one["last"]["test"] for one in found], runs[0])


def _found(run: Run, checkpoint: str) -> dict[str, list[Found]]:
    """Split -> predictions by the last or the best checkpoint."""
    predict = dataclasses.replace(run.experiment.predict, checkpoint=checkpoint)
    chosen = dataclasses.replace(
        run, experiment=dataclasses.replace(run.experiment, predict=predict)
    )
    _, variables = chosen.variables()
    return {
        split: [
            found.without_maps()
            for found in run.predictor(
                variables, (case.volume for case in run.prepared.split(split))
            )
        ]
        for split in ("val", "test")
    }


def _mre(run: Run, found: dict[str, list[Found]], split: str) -> float:
    positions = [one.landmarks_mm(run.experiment.predict.decoder) for one in found[split]]
    return float(np.nanmean(_errors(run.prepared.split(split), np.array(positions))))


def _combine(cases: Sequence[PreparedCase], folds: Sequence[Sequence[Found]], run: Run) -> None:
    decoder = run.experiment.predict.decoder
    positions = np.array([[one.landmarks_mm(decoder) for one in found] for found in folds])
    spreads = [[one.prediction.spread_mm for one in found] for found in folds]
    alone = np.mean([_errors(cases, own) for own in positions], axis=0)
    print("| on the test cases | MRE (mm) | minus the mean of single folds (95 %) |\n|---|---|---|")
    print(f"| single folds, mean | {mm(float(np.nanmean(alone)))} | |")
    for name, combine in COMBINATIONS.items():
        if "spread" in name and spreads[0][0] is None:
            continue
        spread = np.array(spreads, float) if spreads[0][0] is not None else np.ones(0)
        errors = _errors(cases, combine(positions, spread))
        test = paired_comparison(errors, alone, 0)
        cell = f"{mm(test['difference'])} ({interval(test)})"
        print(f"| {name} | {mm(float(np.nanmean(errors)))} | {cell} |")


def _errors(cases: Sequence[PreparedCase], predicted_mm: np.ndarray) -> np.ndarray:
    truth = np.stack([case.landmarks_mm for case in cases])
    return radial_error_mm(truth, predicted_mm, np.stack([case.present for case in cases]))


if __name__ == "__main__":
    main()
