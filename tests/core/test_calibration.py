"""Promises: radii that hold what they say, presence that is as probable as it says."""

import numpy as np
import pytest
from scipy import optimize, stats

from jaxmark.core.calibration import conformal_radius, fit_presence, fit_spread_radius


def test_radius_is_the_order_statistic_that_theory_asks_for():
    errors = np.array([[3.0, 1.0], [1.0, np.nan], [2.0, np.nan], [4.0, np.nan]])
    # ceil(5 * 0.8) = 4th of four; one error says nothing of 80 %, and all of 50 %.
    np.testing.assert_array_equal(conformal_radius(errors, 0.8), [4.0, np.inf])
    np.testing.assert_array_equal(conformal_radius(errors, 0.5), [3.0, 1.0])
    np.testing.assert_array_equal(conformal_radius(errors, 0.81), [np.inf, np.inf])
    nine = np.arange(9.0)[:, None]
    # 0.9 * 10 is 9 in floating point, and must not become the tenth.
    assert conformal_radius(nine, 0.9)[0] == 8.0
    assert conformal_radius(np.full((3, 1), np.nan), 0.1)[0] == np.inf


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("draw", [stats.expon.rvs, stats.cauchy.rvs, stats.lognorm(2.0).rvs])
def test_radius_holds_the_next_error_as_often_as_it_says(coverage, draw):
    rng = np.random.default_rng(1)
    count, trials = 29, 4000
    seen = np.abs(draw(size=(count, trials), random_state=rng))
    following = np.abs(draw(size=trials, random_state=rng))
    held = following <= conformal_radius(seen, coverage)
    # Exactly ceil(30 coverage) / 30, give or take what 4000 trials leave.
    expected = np.ceil(30 * coverage) / 30
    assert abs(held.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / trials)


def synthetic(rng, scans, slope=1.5, intercepts=(0.0, 2.0, -1.0)):
    evidence = rng.normal(0, 3, (scans, len(intercepts)))
    share = 1 / (1 + np.exp(-(np.array(intercepts) + slope * evidence)))
    present = rng.random(evidence.shape) < share
    return evidence, share, present


def test_presence_is_calibrated_on_new_scans():
    rng = np.random.default_rng(0)
    evidence, _, present = synthetic(rng, 400)
    known = rng.random(present.shape) < 0.9
    model = fit_presence(evidence, present & known, ~present & known)
    assert model.slope == pytest.approx(1.5, rel=0.2)
    np.testing.assert_allclose(model.intercept, [0, 2, -1], atol=0.7)
    evidence, share, _ = synthetic(rng, 2000)
    assert np.abs(model.probability(evidence) - share).max() < 0.15
    # And over the whole: what is said to be 30 % happens in 30 %.
    assert np.abs(model.probability(evidence).mean(0) - share.mean(0)).max() < 0.05


def test_presence_is_the_minimum_of_the_penalised_likelihood():
    rng = np.random.default_rng(3)
    evidence, _, present = synthetic(rng, 30)
    model = fit_presence(evidence, present, ~present)
    # The same in other words, and by another optimiser.
    x = (evidence - evidence.mean()) / evidence.std()
    n, m = present.sum(), (~present).sum()
    target = np.where(present, (n + 1) / (n + 2), 1 / (m + 2))

    def loss(p):
        share = 1 / (1 + np.exp(-(p[0] + p[2:] + p[1] * x)))
        fit = -(target * np.log(share) + (1 - target) * np.log(1 - share)).sum()
        return fit + (p[2:] ** 2).sum() / 2 + p[1] ** 2 / 50

    best = optimize.minimize(loss, np.zeros(5), method="Powell", tol=1e-12).x
    expected = 1 / (1 + np.exp(-(best[0] + best[2:] + best[1] * x)))
    np.testing.assert_allclose(model.probability(evidence), expected, atol=1e-3)


def test_presence_of_separable_and_of_few_cases_stays_finite():
    evidence = np.array([[5.0, 4.0], [6.0, -7.0], [5.5, -6.0]])
    present = evidence > 0
    share = fit_presence(evidence, present, ~present).probability(evidence)
    assert (share[present] > 0.5).all() and (share[~present] < 0.5).all()
    assert 0.001 < share.min() and share.max() < 0.999
    # Evidence that says the opposite is left alone, not turned round.
    turned = fit_presence(-evidence, present, ~present)
    assert turned.slope == 0


def test_nothing_is_learned_of_absence_where_nothing_is_absent():
    evidence = np.ones((4, 2))
    everything, nothing = np.ones((4, 2), bool), np.zeros((4, 2), bool)
    assert fit_presence(evidence, everything, nothing) is None
    assert fit_presence(evidence, nothing, nothing) is None


def test_radii_by_spread_hold_as_often_as_they_say_and_grow_with_it():
    rng = np.random.default_rng(2)
    trials, count, coverage = 2000, 29, 0.9
    held, by_third = [], []
    for _ in range(trials):
        spread = rng.uniform(1, 6, (count + 1, 1))
        errors = (0.2 * 3.5 + spread) ** 1.5 * rng.exponential(size=(count + 1, 1))
        model = fit_spread_radius(errors[:-1], spread[:-1], coverage)
        held.append(errors[-1, 0] <= model.radius_mm(spread[-1])[0])
        by_third.append(int(3 * (spread[-1, 0] - 1) / 5))
    # ceil(30 * 0.9) / 30, and, where the spread tells all, in every third of the spreads.
    assert abs(np.mean(held) - 0.9) < 4 * np.sqrt(0.09 / trials)
    for third in range(3):
        share = np.mean(np.array(held)[np.array(by_third) == third])
        assert abs(share - 0.9) < 0.06
    # A radius that is the same for all holds too seldom where the spread is large.
    constant = conformal_radius(errors[:-1], coverage)[0]
    assert model.radius_mm(np.array([6.0]))[0] > constant > model.radius_mm(np.array([1.0]))[0]


def test_a_landmark_of_few_cases_takes_the_scores_of_all():
    rng = np.random.default_rng(3)
    spread = rng.uniform(1, 2, (12, 3))
    errors = rng.uniform(0, 3, (12, 3))
    errors[3:, 2] = np.nan
    model = fit_spread_radius(errors, spread, 0.8)
    usual = np.median(spread)
    scores = errors / ((0.2 + spread / usual) / 1.2) ** 1.5
    assert (
        model.usual_mm == usual
        and model.factor_mm[0] == np.sort(scores[:, 0])[int(np.ceil(13 * 0.8)) - 1]
    )
    # Every case counts once, and a thirteenth one as infinite.
    values, weights = [], []
    for row in scores:
        known = row[np.isfinite(row)]
        values += known.tolist()
        weights += [1 / len(known) / 13] * len(known)
    order = np.argsort(values)
    at = np.searchsorted(np.cumsum(np.array(weights)[order]), 0.8 - 1e-12)
    assert model.factor_mm[2] == values[order[at]]
    assert np.isinf(fit_spread_radius(errors[:3], spread[:3], 0.8).factor_mm).all()
    # Spots of one voxel still have a radius.
    assert (fit_spread_radius(errors, 0 * spread, 0.8).radius_mm(np.zeros(3)) > 0).all()
