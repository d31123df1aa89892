"""Figures of how far predictions are from the truth.

Everything is world millimetres and NumPy on the host. A landmark that is not `present` in a scan is
in no sum. Standard deviations are those of a sample (n - 1); a figure that the points do not define
(the mean of nothing, the spread of one value) is None.

`N` scans, `K` landmarks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def radial_error_mm(
    truth_mm: np.ndarray, predicted_mm: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """Euclidean distance of each prediction from its landmark.

    `truth_mm`, `predicted_mm` (N, K, 3), `present` (N, K) bool -> (N, K) mm, NaN where absent.
    Raises ValueError for other shapes and for a position that is not finite at a present landmark.
    """
    present = np.asarray(present, bool)
    for name, positions in (("true", truth_mm), ("predicted", predicted_mm)):
        if np.shape(positions) != (*present.shape, 3) or present.ndim != 2:
            raise ValueError(
                f"{name} positions have shape {np.shape(positions)}, presence {present.shape};"
                " they must be (N, K, 3) and (N, K)"
            )
        broken = int(np.sum(present & ~np.isfinite(positions).all(axis=-1)))
        if broken:
            raise ValueError(f"{broken} {name} positions of present landmarks are not finite")
    difference = np.asarray(predicted_mm, float) - np.asarray(truth_mm, float)
    return np.where(present, np.linalg.norm(difference, axis=-1), np.nan)


def nearest_landmark(
    truth_mm: np.ndarray, predicted_mm: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """The present landmark whose true position each prediction is nearest to, in the same scan.

    Shapes as in `radial_error_mm` -> (N, K) indices of landmarks, -1 where absent. A tie goes to
    the prediction's own landmark.
    """
    present = np.asarray(present, bool)
    own = np.arange(present.shape[1])
    nearest = np.full(present.shape, -1)
    # One scan at a time: all pairs of a large cohort at once would not fit into memory.
    for scan, here in enumerate(present):
        distance = np.linalg.norm(predicted_mm[scan, :, None] - truth_mm[scan, None], axis=-1)
        distance[:, ~here] = np.inf
        best = distance.argmin(axis=1)
        best = np.where(distance[own, best] == distance.diagonal(), own, best)
        nearest[scan] = np.where(here, best, -1)
    return nearest


def confusions(truth_mm: np.ndarray, predicted_mm: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(N, K): 1 where a prediction is nearer to another landmark than to its own, else 0.

    Shapes as in `radial_error_mm`; NaN where absent.
    """
    nearest = nearest_landmark(truth_mm, predicted_mm, present)
    return np.where(nearest < 0, np.nan, nearest != np.arange(nearest.shape[1]))


def success_rates(errors_mm: np.ndarray, thresholds_mm: Sequence[float]) -> dict[str, float | None]:
    """SDR: share of points, in [0, 1], with an error of at most (`<=`) each threshold.

    `errors_mm` of any shape, NaN where absent. Keys are the thresholds as text ("2", "2.5"), as
    JSON needs them.
    """
    errors = errors_mm[np.isfinite(errors_mm)]
    return {
        np.format_float_positional(threshold, trim="-"): _mean(errors <= threshold)
        for threshold in thresholds_mm
    }


def summarize(
    truth_mm: np.ndarray,
    predicted_mm: np.ndarray,
    present: np.ndarray,
    thresholds_mm: Sequence[float],
    landmarks: Sequence[str],
) -> dict[str, Any]:
    """All figures of one set of predictions, in JSON types.

    Shapes as in `radial_error_mm`, K names in `landmarks`. Gives `mre_mm` (mean over points) and
    `median_mm`; three spreads: `sd_points_mm` over points, `sd_scans_mm` over scans' means,
    `sd_landmarks_mm` over landmarks' means; `sdr` (see `success_rates`); `confusion_rate`, the
    share of points nearer to another present landmark's true position than to their own;
    `n_points` and `n_scans` (scans with at least one point); `per_landmark`, one row a name.
    Raises ValueError as `radial_error_mm`, and where the names are not K.
    """
    errors = radial_error_mm(truth_mm, predicted_mm, present)
    if len(landmarks) != errors.shape[1]:
        raise ValueError(f"{len(landmarks)} names for {errors.shape[1]} landmarks")
    points = errors[np.isfinite(errors)]
    scans = [row[np.isfinite(row)] for row in errors]
    by_landmark = [column[np.isfinite(column)] for column in errors.T]
    confused = confusions(truth_mm, predicted_mm, present)
    return {
        "mre_mm": _mean(points),
        "median_mm": float(np.median(points)) if points.size else None,
        "sd_points_mm": _sd(points),
        "sd_scans_mm": _sd([scan.mean() for scan in scans if scan.size]),
        "sd_landmarks_mm": _sd([column.mean() for column in by_landmark if column.size]),
        "sdr": success_rates(errors, thresholds_mm),
        "confusion_rate": _mean(confused[np.isfinite(confused)]),
        "n_points": points.size,
        "n_scans": sum(scan.size > 0 for scan in scans),
        "per_landmark": [
            {
                "name": name,
                "n": column.size,
                "mre_mm": _mean(column),
                "sd_mm": _sd(column),
                "median_mm": float(np.median(column)) if column.size else None,
                "max_mm": float(column.max()) if column.size else None,
            }
            for name, column in zip(landmarks, by_landmark, strict=True)
        ],
    }


def coverage(
    errors_mm: np.ndarray, radius_mm: np.ndarray, seed: int, *, samples: int = 10_000
) -> dict[str, Any]:
    """The share of points whose error is within the stated radius, of points that have both.

    `errors_mm` (N, K), NaN where absent, `radius_mm` (N, K), infinite where none is stated. Gives
    `share`, `interval` (95 %, whole scans drawn, None with fewer than two), `n_points`,
    `n_unstated` (points without a radius) and `mean_radius_mm`. `per_landmark` has rows of `n`,
    `share` and mean `radius_mm`. `by_radius` has three rows, thirds of the points by radius, also
    with the errors' `median_mm`: they show whether small radii hold as often as large ones, and
    whether errors are smaller where radii are.
    """
    here = np.isfinite(errors_mm)
    stated = here & np.isfinite(radius_mm)
    held = stated & (errors_mm <= radius_mm)
    return {
        **share(held, stated, seed, samples=samples),
        "n_points": int(stated.sum()),
        "n_unstated": int((here & ~stated).sum()),
        "mean_radius_mm": _mean(radius_mm[stated]),
        "per_landmark": [
            {"n": int(s.sum()), "share": _mean(h[s]), "radius_mm": _mean(r[s])}
            for s, h, r in zip(stated.T, held.T, radius_mm.T, strict=True)
        ],
        "by_radius": [
            {
                "n": part.size,
                "share": _mean(held[stated][part]),
                "radius_mm": _mean(radius_mm[stated][part]),
                "median_mm": float(np.median(errors_mm[stated][part])) if part.size else None,
            }
            for part in np.array_split(np.argsort(radius_mm[stated], kind="stable"), 3)
        ],
    }


def share(
    held: np.ndarray, counted: np.ndarray, seed: int, *, samples: int = 10_000
) -> dict[str, Any]:
    """The share of `held` among `counted`, with its uncertainty.

    `held`, `counted` (N, A) bool, for A items in each scan. Gives `share` and `interval` (95 %,
    whole scans drawn, None with fewer than two scans that have a counted item).
    """
    mean = average(np.where(counted, held, np.nan), seed, samples=samples)
    return {"share": mean["mean"], "interval": mean["interval"]}


def average(values: np.ndarray, seed: int, *, samples: int = 10_000) -> dict[str, Any]:
    """The mean of A numbers in each of N scans, with its uncertainty.

    `values` (N, A), NaN where there is none. Gives `mean` and `interval`, as in `share`.
    """
    counts, sums = np.isfinite(values).sum(1), np.nansum(values, axis=1)
    interval = None
    if (counts > 0).sum() >= 2:
        drawn = _drawn(counts[counts > 0].size, seed, samples)
        means = (drawn @ sums[counts > 0]) / (drawn @ counts[counts > 0])
        interval = np.quantile(means, [0.025, 0.975]).tolist()
    return {
        "mean": float(sums.sum() / counts.sum()) if counts.sum() else None,
        "interval": interval,
    }


def attributes(
    said: np.ndarray, true: np.ndarray, known: np.ndarray, seed: int, *, samples: int = 10_000
) -> dict[str, Any]:
    """How often A attributes, true or false for each scan, are predicted correctly.

    `said` (predicted), `true`, `known` (N, A) bool; unknown ones are in no sum. Gives `accuracy`,
    `sensitivity` (share of correct ones among the true), `specificity` (among the false) and
    `balanced_accuracy`, the mean of these two: each a `share` with its `interval`, as in `share`,
    over all scans and attributes, None where there are no such attributes. The interval of the last
    uses the draws that have both kinds. Also the counts `n_true` and `n_false`.
    """
    right = said == true
    kinds = known & true, known & ~true
    both = np.stack([kind.sum(1) for kind in kinds])  # (2, N)
    hits = np.stack([(kind & right).sum(1) for kind in kinds])
    balanced: dict[str, Any] = {"share": None, "interval": None}
    if both.sum(1).all():
        balanced["share"] = float((hits.sum(1) / both.sum(1)).mean())
        some = both.any(0)
        if some.sum() >= 2:
            drawn = _drawn(int(some.sum()), seed, samples)
            counts = both[:, some] @ drawn.T  # (2, samples)
            usable = counts.all(0)
            rates = (hits[:, some] @ drawn.T)[:, usable] / counts[:, usable]
            balanced["interval"] = np.quantile(rates.mean(0), [0.025, 0.975]).tolist()
    return {
        "n_true": int(both[0].sum()),
        "n_false": int(both[1].sum()),
        "accuracy": share(right, known, seed, samples=samples),
        "sensitivity": share(right, kinds[0], seed, samples=samples),
        "specificity": share(right, kinds[1], seed, samples=samples),
        "balanced_accuracy": balanced,
    }


def presence(probability: np.ndarray, present: np.ndarray, absent: np.ndarray) -> dict[str, Any]:
    """Figures of the stated probabilities of presence, over landmarks whose state is known.

    `probability` (N, K), NaN where none is stated, `present`, `absent` (N, K) bool. Gives
    `n_present`, `n_absent`, `accuracy` (at 0.5), `brier` (mean squared difference from 1 or 0),
    `brier_base` (that of stating the overall share every time), `auc` (None where one of the two
    states does not occur), and `bins`: rows of `n`, mean `stated` and `observed` share, by tenths.
    """
    from scipy import stats  # half a second, so only where it is needed

    known = (present | absent) & np.isfinite(probability)
    p, y = probability[known], present[known].astype(float)
    ranks = stats.rankdata(p)
    positive, negative = int(y.sum()), int((1 - y).sum())
    above = ranks[y == 1].sum() - positive * (positive + 1) / 2
    tenth = np.minimum((10 * p).astype(int), 9)
    return {
        "n_present": positive,
        "n_absent": negative,
        "accuracy": _mean((p >= 0.5) == (y == 1)),
        "brier": _mean((p - y) ** 2),
        "brier_base": _mean((y.mean() - y) ** 2) if y.size else None,
        "auc": float(above / (positive * negative)) if positive and negative else None,
        "bins": [
            {"n": int(b.sum()), "stated": _mean(p[b]), "observed": _mean(y[b])}
            for b in (tenth == t for t in range(10))
        ],
    }


def paired_comparison(
    errors_a: np.ndarray,
    errors_b: np.ndarray,
    seed: int,
    *,
    samples: int = 10_000,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Two methods on the same points: is A's mean (radial error, say) smaller than B's?

    `errors_a`, `errors_b` (N, K), NaN where absent, in both at the same places. Gives
    `difference`, A's mean minus B's; `interval`, its percentile bootstrap interval, for which
    whole scans are drawn (the points of one scan are not independent); `p_value`, the two-sided
    Wilcoxon signed-rank test on scans' means. Interval and p are None with fewer than two scans.
    Raises ValueError where the two do not hold the same points.
    """
    from scipy import stats  # as above

    if errors_a.shape != errors_b.shape or (np.isnan(errors_a) != np.isnan(errors_b)).any():
        raise ValueError("the two methods were not scored on the same points")
    difference = errors_a - errors_b
    counts = np.sum(~np.isnan(difference), axis=1)
    sums = np.nansum(difference, axis=1)[counts > 0]
    counts = counts[counts > 0]
    result: dict[str, Any] = {
        "difference": float(sums.sum() / counts.sum()) if counts.size else None,
        "interval": None,
        "confidence": confidence,
        "p_value": None,
        "n_scans": counts.size,
    }
    if counts.size < 2:
        return result
    drawn = _drawn(counts.size, seed, samples)
    tail = (1 - confidence) / 2
    bounds = np.quantile((drawn @ sums) / (drawn @ counts), [tail, 1 - tail])
    result["interval"] = bounds.tolist()
    means = sums / counts
    # The test is not defined where no scan differs, which is no evidence of a difference.
    result["p_value"] = float(stats.wilcoxon(means).pvalue) if means.any() else 1.0
    return result


def smallest_p_value(scans: int) -> float:
    """The smallest p value that `paired_comparison` can give for so many scans, all better."""
    return float(min(1.0, 2.0 ** (1 - scans)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, adjusted for the chance of any false alarm among all.

    Holm's step-down procedure (Scand. J. Statist. 1979).
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    stepped = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = stepped
    return adjusted.tolist()


def _drawn(scans: int, seed: int, samples: int) -> np.ndarray:
    """(samples, scans): how often each scan is drawn, in each of the bootstrap samples."""
    return np.random.default_rng(seed).multinomial(scans, np.full(scans, 1 / scans), size=samples)


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if values.size else None


def _sd(values: np.ndarray | Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
