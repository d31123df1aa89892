"""Measures two choices of cross-validation: the checkpoint, and how to combine the folds.

python -m experiments.crossval_choices --workdir=W

The first table has out-of-fold and test errors of each fold's last checkpoint, and of the
checkpoint that is best on the fold's out-of-fold cases. These cases chose it, so their error falls
further than that of the test cases. The second table compares ways to combine the folds' positions
on the test cases. The last line says whether the folds disagree where their mean is wrong.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from scipy.stats import spearmanr

from experiments.commands import errors_on_one_line
from jaxmark import trained
from jaxmark.core.metrics import paired_comparison, radial_error_mm
from jaxmark.data.cases import PreparedCase
from jaxmark.inference.ensemble import fold_folder, is_cross_validation
from jaxmark.inference.predictor import Found
from jaxmark.results.page import interval, mm
from jaxmark.system.errors import InputError
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
    logging.set_verbosity(logging.ERROR)
    with errors_on_one_line():
        measure(parser.parse_args().workdir)


def measure(workdir: Path) -> None:
    """Print the tables; InputError for a work dir without folds, or without a test split."""
    experiment = trained.get_config(str(workdir))
    if not is_cross_validation(workdir):
        raise InputError(workdir, "holds no cross-validation (--mode=crossval)")
    folds = range(experiment.data.folds)
    runs = [prepare(of_fold(experiment, fold), fold_folder(workdir, fold)) for fold in folds]
    if not runs[0].prepared.splits["test"]:
        raise InputError(workdir, "has no test split to measure with")
    found = [{which: _found(run, which) for which in ("last", "best")} for run in runs]
    table = np.array(
        [[_mres(run, f) for f in one.values()] for run, one in zip(runs, found, strict=True)]
    )
    print("| | out-of-fold cases | test cases |\n|---|---|---|")
    for name, row in zip(("last checkpoint", "best checkpoint"), table.mean(0), strict=True):
        print(f"| MRE (mm), mean over folds: {name} | {mm(row[0])} | {mm(row[1])} |")
    gain = table[:, 1] - table[:, 0]
    pairs = zip(gain.mean(0), gain.std(0, ddof=1), strict=True)
    cells = " | ".join(f"{mm(mean)} (SD of folds {mm(sd)})" for mean, sd in pairs)
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


def _mres(run: Run, found: dict[str, list[Found]]) -> list[float]:
    """Mean radial error of each split."""
    decoder = run.experiment.predict.decoder
    positions = {split: [one.landmarks_mm(decoder) for one in f] for split, f in found.items()}
    return [
        float(np.nanmean(_errors(run.prepared.split(split), np.array(own))))
        for split, own in positions.items()
    ]


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
    mean = positions.mean(0)
    apart = np.sqrt(((positions - mean) ** 2).sum((0, -1)) / (len(positions) - 1))
    errors = _errors(cases, mean)
    known = np.isfinite(errors)
    rank = spearmanr(apart[known], errors[known]).statistic
    print(f"\nrank correlation of the folds' standard deviation and the mean's error: {rank:.2f}")


def _errors(cases: Sequence[PreparedCase], predicted_mm: np.ndarray) -> np.ndarray:
    truth = np.stack([case.landmarks_mm for case in cases])
    return radial_error_mm(truth, predicted_mm, np.stack([case.present for case in cases]))


if __name__ == "__main__":
    main()
