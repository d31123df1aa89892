"""What error to expect before anything is trained, from what other cohorts came to.

The forecast is a wide range, a share of the mean position's error: cohorts with as many cases
differ in difficulty.
"""

import dataclasses

import numpy as np

# Training cases -> a detector's error as a share of the mean position's, on validation cases:
# mouse heads (`experiments/few_scans.py`, rows Quarter, Half and Long), phantoms
# (`experiments/plans.py`) and films (`cephalogram.py:small`).
LEARNED = ((4, 0.85), (8, 0.64), (16, 0.57), (40, 0.39), (120, 0.15))
# Half-width of the range, as a factor.
_UNSURE = 1.6
# The least error that is forecast, as a share of a voxel.
_LEAST_VOXELS = 0.25


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Mean radial errors in the cohort's unit."""

    floor: float  # of the mean position
    low: float
    high: float
    # With twice the training cases.
    low_with_more: float
    high_with_more: float


def learned_share(cases: int) -> float:
    """Of the mean position's error, what is left after training on so many cases."""
    counts, shares = np.array(LEARNED).T
    return float(np.exp(np.interp(np.log(max(cases, 1)), np.log(counts), np.log(shares))))


def forecast(floor: float, cases: int, finest: float) -> Forecast:
    """What to expect of a detector that sees voxels of `finest`."""

    def between(count: int) -> tuple[float, float]:
        middle = floor * learned_share(count)
        low, high = (max(middle * by, _LEAST_VOXELS * finest) for by in (1 / _UNSURE, _UNSURE))
        return min(low, floor), min(high, floor)

    return Forecast(floor, *between(cases), *between(2 * cases))
