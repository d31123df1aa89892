"""The uncertainty of predictions, learned from cases that the network was not trained on.

A radius that holds the truth with a stated probability (split conformal prediction), and the
probability that a landmark is present. numpy and scipy, on the host. `N` scans, `K` landmarks.
"""

import dataclasses
import math

import numpy as np
from scipy import optimize, special

# Priors, so that few cases of a landmark do not outweigh all cases: standard deviation of a
# landmark's log-odds about the common ones, and of the slope in units of the evidence's spread.
_OWN_SD, _SLOPE_SD = 1.0, 5.0
# The constants of `_growth`; chosen on phantoms.
OFFSET, POWER = 0.2, 1.5


def conformal_radius(errors_mm: np.ndarray, coverage: float) -> np.ndarray:
    """(K,) mm: each landmark's next error is at most this with probability >= `coverage`.

    The ceil((n + 1) coverage)-th smallest of the n errors of a landmark (Vovk et al. 2005; Lei et
    al., JASA 2018). It assumes nothing about the errors' distribution, only that the next scan is
    drawn as these were. Infinite where there are fewer than coverage / (1 - coverage) errors.

    Args:
      errors_mm: (N, K), NaN where there is none.
      coverage: in (0, 1).
    """
    radius = np.full(errors_mm.shape[1], np.inf)
    for k, column in enumerate(errors_mm.T):
        errors = np.sort(column[np.isfinite(column)])
        # Rounding must not push 0.9 of 9 + 1 to the tenth.
        rank = math.ceil(round((errors.size + 1) * coverage, 9))
        if rank <= errors.size:
            radius[k] = errors[rank - 1]
    return radius


@dataclasses.dataclass(frozen=True)
class SpreadRadius:
    """Radii that grow with the spread of a network's heatmaps."""

    factor_mm: np.ndarray  # (K,): the radius at the usual spread; infinite: unknown
    usual_mm: float  # spread of half of the validation cases' heatmaps

    def radius_mm(self, spread_mm: np.ndarray) -> np.ndarray:
        """(..., K) mm for spreads (..., K)."""
        radius: np.ndarray = self.factor_mm * _growth(spread_mm, self.usual_mm)
        return radius


def fit_spread_radius(
    errors_mm: np.ndarray, spread_mm: np.ndarray, coverage: float
) -> SpreadRadius:
    """Split conformal prediction of a normalised score, the error over a function of the spread.

    As `conformal_radius`, for these scores (Lei et al., JASA 2018, section 5.2): the coverage holds
    even if the spread tells nothing. A landmark with too few errors takes the quantile of all
    landmarks' scores. Every case has the same weight in it, and so has the next one, as infinite
    (Dunn, Wasserman and Ramdas, JASA 2022).

    Args:
      errors_mm: (N, K), NaN where there is none.
      spread_mm: (N, K) of the same predictions, not negative.
      coverage: in (0, 1).
    """
    # If all heatmaps are empty, any unit will do.
    usual_mm = float(np.median(spread_mm)) or 1.0
    scores = errors_mm / _growth(spread_mm, usual_mm)
    own = conformal_radius(scores, coverage)
    return SpreadRadius(np.where(np.isfinite(own), own, _pooled(scores, coverage)), usual_mm)


def _growth(spread_mm: np.ndarray, usual_mm: float) -> np.ndarray:
    """The factor of a radius, 1 at the usual spread.

    In scans that are unlike the training scans, errors grow faster than the spread. `OFFSET` keeps
    the radius of a heatmap of one voxel above 0.
    """
    grown: np.ndarray = ((OFFSET + spread_mm / usual_mm) / (OFFSET + 1)) ** POWER
    return grown


def _pooled(scores: np.ndarray, coverage: float) -> float:
    """The quantile of all scores (N, K), NaN where there is none; infinite for too few cases."""
    counts = np.isfinite(scores).sum(1)
    cases = int((counts > 0).sum())
    weights = np.where(np.isfinite(scores), 1 / np.maximum(counts, 1)[:, None], 0.0)
    order = np.argsort(scores, axis=None)
    reached = np.cumsum(weights.ravel()[order])
    enough = np.flatnonzero(np.round(reached - coverage * (cases + 1), 9) >= 0)
    return float(scores.ravel()[order[enough[0]]]) if len(enough) else np.inf


@dataclasses.dataclass(frozen=True)
class PresenceModel:
    """The probability of presence: a logistic function of a method's evidence."""

    intercept: np.ndarray  # (K,)
    slope: float

    def probability(self, evidence: np.ndarray) -> np.ndarray:
        """(..., K) in [0, 1] of evidence (..., K)."""
        return special.expit(self.intercept + self.slope * evidence)


def fit_presence(
    evidence: np.ndarray, present: np.ndarray, absent: np.ndarray
) -> PresenceModel | None:
    """Logistic regression of presence on evidence, with a slope that all landmarks share.

    Platt's targets (1999: never quite 0 and 1) and a prior that pulls landmarks together limit the
    effect of few cases. None if no landmark is present, or none is absent: then absence cannot be
    learned.

    Args:
      evidence: (N, K) finite, larger for presence.
      present, absent: (N, K) bool; unknown where neither is set.
    """
    known = present | absent
    if not (present.any() and absent.any()):
        return None
    centre, spread = float(evidence[known].mean()), float(evidence[known].std()) or 1.0
    x = (evidence[known] - centre) / spread
    k = np.nonzero(known)[1]
    count = evidence.shape[1]
    yes = present[known]
    positive, negative = int(yes.sum()), int((~yes).sum())
    target = np.where(yes, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        common, slope, own = free[0], free[1], free[2:]
        logit = common + own[k] + slope * x
        wrong = special.expit(logit) - target
        value = (np.logaddexp(0, logit) - target * logit).sum()
        value += (own**2).sum() / (2 * _OWN_SD**2) + slope**2 / (2 * _SLOPE_SD**2)
        gradient = np.concatenate(
            [
                [wrong.sum(), (wrong * x).sum() + slope / _SLOPE_SD**2],
                np.bincount(k, wrong, count) + own / _OWN_SD**2,
            ]
        )
        return value, gradient

    # The slope is not negative: more evidence never lowers the probability.
    bounds = [(None, None), (0, None), *[(None, None)] * count]
    fit = optimize.minimize(loss, np.zeros(2 + count), jac=True, method="L-BFGS-B", bounds=bounds)
    slope = fit.x[1] / spread
    return PresenceModel(fit.x[0] + fit.x[2:] - slope * centre, float(slope))


def unusual_above(values: np.ndarray, level: float) -> float:
    """The limit that the next value, drawn as these were, exceeds with a probability of `level`.

    A normal distribution's prediction bound (Student's t), or the largest value, if that is larger.
    (With few values a conformal bound does not exist.) NaN for less than two values.
    """
    n = values.size
    if n < 2:
        return float("nan")
    width = special.stdtrit(n - 1, 1 - level) * values.std(ddof=1) * math.sqrt(1 + 1 / n)
    return float(max(values.mean() + width, values.max()))
