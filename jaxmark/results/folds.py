"""A cross-validation's figures: for all out-of-fold cases, each fold, and the ensemble."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core import metrics
from jaxmark.inference.ensemble import fold_folder
from jaxmark.results.evaluate import unit_of
from jaxmark.results.figures import charts
from jaxmark.results.measures.points import Points
from jaxmark.results.measures.tables import write_rows
from jaxmark.results.page import chart, interval, mm, p_value, table
from jaxmark.training.records import METRICS, read_records

# File in the folder of an evaluation.
TABLE = "folds.csv"


def write_folds(fold_of: Mapping[str, int], folder: Path) -> None:
    """Write `folds.csv`: the fold of each case."""
    write_rows(folder / TABLE, ["case", "fold"], list(fold_of.items()))


def fold_figures(points: Points, fold_of: Mapping[str, int]) -> dict[str, Any]:
    """MRE of each fold's cases, by a model that was trained on the other folds, as JSON types.

    `mean_mm` and `sd_mm` are over folds, None if one has no annotated point.
    """
    errors, folds = points.error_mm(), np.array([fold_of[case] for case in points.cases])
    rows: list[dict[str, Any]] = []
    for fold in sorted(set(fold_of.values())):
        own = errors[folds == fold]
        known = own[np.isfinite(own)]
        rows.append(
            {
                "fold": fold,
                "n_scans": len(own),
                "n_points": known.size,
                "mre_mm": float(known.mean()) if known.size else None,
                "median_mm": float(np.median(known)) if known.size else None,
            }
        )
    means = [row["mre_mm"] for row in rows]
    whole = all(mean is not None for mean in means)
    return {
        "mean_mm": float(np.mean(means)) if whole else None,
        "sd_mm": float(np.std(means, ddof=1)) if whole else None,
        "rows": rows,
    }


def ensemble_figures(ensemble: Points, folds_mm: Sequence[np.ndarray]) -> dict[str, Any]:
    """The ensemble compared with its folds on the test cases, as JSON types.

    Args:
      ensemble: the ensemble's points.
      folds_mm: (N, K) errors of each fold's model alone on the same points.
    """
    errors = ensemble.error_mm()
    mean = np.mean(folds_mm, axis=0)
    return {
        "n_scans": len(errors),
        "mre_mm": float(np.nanmean(errors)),
        "folds_mre_mm": [float(np.nanmean(own)) for own in folds_mm],
        "mean_of_folds_mm": float(np.nanmean(mean)),
        "minus_mean_of_folds": metrics.paired_comparison(errors, mean, 0),
    }


def folds_section(summary: Mapping[str, Any], workdir: Path, kinds: Mapping[str, str]) -> str:
    """HTML: each fold's error and training; empty if the run is no cross-validation."""
    found = summary.get("folds")
    if found is None:
        return ""
    unit = unit_of(summary)
    rows = [
        [str(r["fold"]), str(r["n_scans"]), str(r["n_points"]), mm(r["mre_mm"]), mm(r["median_mm"])]
        for r in found["rows"]
    ]
    head = ["fold", "cases", "points", f"MRE ({unit})", f"median ({unit})"]
    text = (
        f"MRE over the folds: mean {mm(found['mean_mm'])} {unit}, standard deviation "
        f"{mm(found['sd_mm'])} {unit}. Each fold's cases were predicted by a model trained on the "
        "other folds, with its last checkpoint. Radii and probabilities of presence below come "
        "from the errors of the other folds."
    )
    body = table(head, rows, range(5)) + f"<p>{escape(text)}</p>\n"
    for row in found["rows"]:
        log = read_records(fold_folder(workdir, row["fold"]) / METRICS)
        if curves := charts.training_curves(log, kinds, unit):
            drawn = chart(curves, f"Logged numbers over the steps of fold {row['fold']}")
            title = f"Training of fold {row['fold']}"
            body += f"<details><summary>{title}</summary>{drawn}</details>\n"
    return body


def ensemble_section(summary: Mapping[str, Any]) -> str:
    """HTML: the ensemble on the test cases; empty if there are none."""
    found = summary.get("ensemble")
    if found is None:
        return ""
    unit, test = unit_of(summary), found["minus_mean_of_folds"]
    rows = [[f"fold {k} alone", mm(mre)] for k, mre in enumerate(found["folds_mre_mm"])]
    rows.append(["mean of the folds", mm(found["mean_of_folds_mm"])])
    rows.append(["ensemble", mm(found["mre_mm"])])
    text = (
        f"Ensemble minus the mean of its folds: {mm(test['difference'])} {unit} (95 % interval "
        f"{interval(test)}, scans drawn with replacement; p {p_value(test['p_value'])}, Wilcoxon "
        f"signed-rank test on the means of {test['n_scans']} scans). All figures are in "
        "test/evaluation/summary.json."
    )
    return table(["", f"MRE ({unit})"], rows, [1]) + f"<p>{escape(text)}</p>\n"
