"""What a prediction may promise, learned from cases that the network has not been trained on.

A radius that holds the truth with a stated probability (split conformal prediction), and the
probability that a landmark is there at all. numpy and scipy, on the host. `N` scans, `K` landmarks.
"""

import dataclasses
import math

import numpy as np
from scipy import optimize, special

# Standard deviation of the landmarks' own log-odds about the common ones, and of the slope in
# units of the evidence's spread: what a few cases say must not outweigh what all do.
_OWN_SD, _SLOPE_SD = 1.0, 5.0
# Of a radius, see `_growth`; chosen on phantoms.
OFFSET, POWER = 0.2, 1.5


def conformal_radius(errors_mm: np.ndarray, coverage: float) -> np.ndarray:
    """(K,) mm: each landmark's next error is at most this with probability >= `coverage`.

    The ceil((n + 1) coverage)-th smallest of the n errors of a landmark (Vovk et al. 2005; Lei et
    al., JASA 2018). It asks nothing of the errors' distribution, only that the next scan is drawn
    as these were. Infinite where there are fewer than coverage / (1 - coverage) errors: so few say
    nothing of so high a coverage.

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
    """Radii that grow with how unsure a network is."""

    factor_mm: np.ndarray  # (K,): the radius at the usual spread; infinite: not known
    usual_mm: float  # spread of half of the validation cases' heatmaps

    def radius_mm(self, spread_mm: np.ndarray) -> np.ndarray:
        """(..., K) mm of spreads (..., K)."""
        radius: np.ndarray = self.factor_mm * _growth(spread_mm, self.usual_mm)
        return radius


def fit_spread_radius(
    errors_mm: np.ndarray, spread_mm: np.ndarray, coverage: float
) -> SpreadRadius:
    """Split conformal prediction of a normalised score, the error over a function of the spread.

    As `conformal_radius`, of these scores (Lei et al., JASA 2018, section 5.2): the coverage is the
    same, whatever the spread is worth. A landmark with too few errors of its own takes the quantile
    of all scores, in which every case counts the same, and so does the next one, as infinite (Dunn,
    Wasserman and Ramdas, JASA 2022).

    Args:
      errors_mm: (N, K), NaN where there is none.
      spread_mm: (N, K) of the same predictions, not negative.
      coverage: in (0, 1).
    """
    # Of heatmaps that are empty any unit will do.
    usual_mm = float(np.median(spread_mm)) or 1.0
    scores = errors_mm / _growth(spread_mm, usual_mm)
    own = conformal_radius(scores, coverage)
    return SpreadRadius(np.where(np.isfinite(own), own, _pooled(scores, coverage)), usual_mm)


def _growth(spread_mm: np.ndarray, usual_mm: float) -> np.ndarray:
    """What a radius is multiplied by, 1 at the usual spread.

    Errors grow faster than the spread where scans are unlike those that were learned from. A share
    of the usual one is added, so that a heatmap of one voxel has no radius of 0.
    """
    grown: np.ndarray = ((OFFSET + spread_mm / usual_mm) / (OFFSET + 1)) ** POWER
    return grown


def _pooled(scores: np.ndarray, coverage: float) -> float:
    """The quantile of all scores (N, K), NaN where there is none; infinite of too few cases."""
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

    Platt's targets (1999: never quite 0 and 1) and a prior that pulls landmarks together keep few
    cases from saying too much. None where no landmark's state is known, or none is absent: nothing
    can be learned of absence then.

    Args:
      evidence: (N, K) finite, larger for presence.
      present, absent: (N, K) bool; where neither is set, nothing is known.
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

    # More evidence never speaks against presence.
    bounds = [(None, None), (0, None), *[(None, None)] * count]
    fit = optimize.minimize(loss, np.zeros(2 + count), jac=True, method="L-BFGS-B", bounds=bounds)
    slope = fit.x[1] / spread
    return PresenceModel(fit.x[0] + fit.x[2:] - slope * centre, float(slope))


def unusual_above(values: np.ndarray, level: float) -> float:
    """What the next value, drawn as these were, is above with a probability of at most `level`.

    A normal distribution's prediction bound (Student's t), or the largest value seen if that is
    more: with few values the order statistic of a conformal bound does not exist. NaN for less
    than two values.
    """
    n = values.size
    if n < 2:
        return float("nan")
    width = special.stdtrit(n - 1, 1 - level) * values.std(ddof=1) * math.sqrt(1 + 1 / n)
    return float(max(values.mean() + width, values.max()))
