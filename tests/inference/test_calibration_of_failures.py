"""Validation cases that a model failed at say nothing of what is usual."""

import numpy as np

from jaxmark.inference.calibration import well_predicted


def test_cases_that_failed_are_those_whose_landmarks_are_mostly_far_off() -> None:
    errors = np.abs(np.random.default_rng(0).normal(2, 0.5, (12, 19)))
    assert well_predicted(errors).all()
    errors[3] += 20
    # Single landmarks that are far off are no failure.
    errors[5, :6] += 20
    errors[7] = np.nan
    assert np.flatnonzero(~well_predicted(errors)).tolist() == [3]
    assert well_predicted(np.full((2, 3), np.nan)).all()
    assert well_predicted(np.zeros((0, 3))).size == 0
