"""Figures against values found by hand, and against plain loops."""

import json
import math

import numpy as np
import pytest

from jaxmark.core import metrics

# Two scans, three landmarks on a line, 10 mm apart.
TRUTH = np.array([[[0, 0, 0], [10, 0, 0], [20, 0, 0]]] * 2, float)
# Errors 5, 1, 0 and 8 (nearer to the next landmark), 3 (absent), 2.
PREDICTED = TRUTH + np.array(
    [[[0, 3, 4], [1, 0, 0], [0, 0, 0]], [[8, 0, 0], [0, 3, 0], [0, 0, 2]]], float
)
PRESENT = np.array([[True, True, True], [True, False, True]])
NAMES = ["a", "b", "c"]


def summarize(truth=TRUTH, predicted=PREDICTED, present=PRESENT, thresholds=(2, 5.5), names=NAMES):
    return metrics.summarize(truth, predicted, present, thresholds, names)


def random_points(seed, scans=6, landmarks=5):
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 10, (scans, landmarks, 3))
    predicted = truth + rng.normal(0, 8, truth.shape)
    present = rng.random((scans, landmarks)) > 0.3
    truth[~present] = np.nan
    return truth, predicted, present


def test_errors_by_hand():
    errors = metrics.radial_error_mm(TRUTH, PREDICTED, PRESENT)
    np.testing.assert_array_equal(errors, [[5, 1, 0], [8, np.nan, 2]])


def test_figures_by_hand():
    figures = summarize()
    assert figures["mre_mm"] == pytest.approx(16 / 5)
    assert figures["median_mm"] == 2
    assert figures["sd_points_mm"] == pytest.approx(math.sqrt((94 - 5 * 3.2**2) / 4))
    # Scans' means are 2 and 5, landmarks' means 6.5, 1 and 1.
    assert figures["sd_scans_mm"] == pytest.approx(3 / math.sqrt(2))
    assert figures["sd_landmarks_mm"] == pytest.approx(5.5 / math.sqrt(3))
    assert figures["sdr"] == {"2": 3 / 5, "5.5": 4 / 5}
    assert (figures["n_points"], figures["n_scans"]) == (5, 2)
    assert figures["per_landmark"][0] == {
        "name": "a",
        "n": 2,
        "mre_mm": 6.5,
        "sd_mm": pytest.approx(3 / math.sqrt(2)),
        "median_mm": 6.5,
        "max_mm": 8,
    }
    assert figures["per_landmark"][1]["sd_mm"] is None
    assert json.loads(json.dumps(figures)) == figures


def test_confusion_needs_the_other_landmark_to_be_present():
    # In the second scan `a` is predicted 2 mm from where `b` would be, but `b` is absent there.
    assert summarize()["confusion_rate"] == 0
    everywhere = np.ones_like(PRESENT)
    assert summarize(present=everywhere)["confusion_rate"] == pytest.approx(1 / 6)
    nearest = metrics.nearest_landmark(TRUTH, PREDICTED, everywhere)
    np.testing.assert_array_equal(nearest, [[0, 1, 2], [1, 1, 2]])
    assert metrics.nearest_landmark(TRUTH, PREDICTED, PRESENT)[1].tolist() == [0, -1, 2]


def test_a_tie_is_no_confusion():
    truth = np.array([[[0, 0, 0], [2, 0, 0]]], float)
    middle = np.array([[[1, 0, 0], [1, 0, 0]]], float)
    present = np.ones((1, 2), bool)
    assert metrics.nearest_landmark(truth, middle, present).tolist() == [[0, 1]]


def test_what_absent_landmarks_hold_does_not_matter():
    truth, predicted = TRUTH.copy(), PREDICTED.copy()
    truth[~PRESENT] = np.nan
    predicted[~PRESENT] = np.inf
    assert summarize(truth, predicted) == summarize()


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_plain_loops(seed):
    truth, predicted, present = random_points(seed)
    errors, by_scan, by_landmark, confused = [], {}, {}, 0
    for n in range(len(truth)):
        for k in range(truth.shape[1]):
            if not present[n, k]:
                continue
            error = math.dist(truth[n, k], predicted[n, k])
            errors.append(error)
            by_scan.setdefault(n, []).append(error)
            by_landmark.setdefault(k, []).append(error)
            others = [j for j in range(truth.shape[1]) if j != k and present[n, j]]
            confused += any(math.dist(truth[n, j], predicted[n, k]) < error for j in others)

    def sd(values):
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))

    figures = summarize(truth, predicted, present, (9,), "abcde")
    assert figures["mre_mm"] == pytest.approx(sum(errors) / len(errors))
    assert figures["sd_points_mm"] == pytest.approx(sd(errors))
    scans = [sum(v) / len(v) for v in by_scan.values()]
    assert figures["sd_scans_mm"] == pytest.approx(sd(scans))
    means = [sum(v) / len(v) for v in by_landmark.values()]
    assert figures["sd_landmarks_mm"] == pytest.approx(sd(means))
    assert figures["sdr"]["9"] == pytest.approx(sum(e <= 9 for e in errors) / len(errors))
    assert figures["confusion_rate"] == pytest.approx(confused / len(errors))
    assert 0 < confused < len(errors)


def test_one_scan_and_one_landmark_have_no_spread():
    figures = summarize(TRUTH[:1, :1], PREDICTED[:1, :1], PRESENT[:1, :1], (5,), ["a"])
    assert figures["mre_mm"] == 5
    assert figures["sdr"] == {"5": 1.0}
    for spread in ("sd_points_mm", "sd_scans_mm", "sd_landmarks_mm"):
        assert figures[spread] is None


def test_a_landmark_and_a_scan_that_are_never_there():
    present = np.array([[True, True, False], [False, False, False]])
    figures = summarize(present=present)
    assert figures["mre_mm"] == 3
    assert figures["n_scans"] == 1
    assert figures["sd_scans_mm"] is None
    never = figures["per_landmark"][2]
    assert never["n"] == 0
    assert never["mre_mm"] is never["max_mm"] is None


def test_no_point_at_all():
    figures = summarize(present=np.zeros_like(PRESENT))
    assert figures["mre_mm"] is figures["confusion_rate"] is figures["sdr"]["2"] is None
    assert figures["n_points"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["true", "predicted"])
def test_positions_that_are_not_finite_are_refused(value, which):
    truth, predicted = TRUTH.copy(), PREDICTED.copy()
    (truth if which == "true" else predicted)[0, 1, 2] = value
    with pytest.raises(ValueError, match=f"1 {which} positions"):
        summarize(truth, predicted)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        metrics.radial_error_mm(TRUTH, PREDICTED[:, :2], PRESENT)
    with pytest.raises(ValueError, match="2 names for 3"):
        summarize(names=["a", "b"])


def test_comparison_of_a_method_that_is_always_better():
    b = np.random.default_rng(0).uniform(3, 5, (12, 4))
    b[2, 1] = np.nan
    result = metrics.paired_comparison(b - 1, b, seed=0)
    assert result["difference"] == pytest.approx(-1)
    assert result["interval"] == pytest.approx([-1, -1])
    assert result["p_value"] == pytest.approx(2 / 2**12)
    assert result["n_scans"] == 12


def test_comparison_weighs_points_and_draws_scans():
    a = np.array([[1.0, 1.0], [4.0, np.nan], [0.0, 2.0], [1.5, 3.0]])
    b = np.array([[2.0, 2.0], [1.0, np.nan], [1.0, 1.0], [1.0, 1.0]])
    result = metrics.paired_comparison(a, b, seed=3)
    assert result["difference"] == pytest.approx(np.nanmean(a) - np.nanmean(b))
    rng = np.random.default_rng(5)
    drawn = [rng.integers(4, size=4) for _ in range(4000)]
    means = [np.nanmean(a[rows]) - np.nanmean(b[rows]) for rows in drawn]
    assert result["interval"] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.15)
    assert result == metrics.paired_comparison(a, b, seed=3)


def test_comparison_with_itself_and_with_too_few_scans():
    errors = metrics.radial_error_mm(TRUTH, PREDICTED, PRESENT)
    assert metrics.paired_comparison(errors, errors, 0)["p_value"] == 1
    one = metrics.paired_comparison(errors[:1], errors[:1] + 1, 0)
    assert one["difference"] == pytest.approx(-1)
    assert one["interval"] is one["p_value"] is None


def test_comparison_of_other_points_is_refused():
    errors = metrics.radial_error_mm(TRUTH, PREDICTED, PRESENT)
    with pytest.raises(ValueError, match="same points"):
        metrics.paired_comparison(errors, np.zeros_like(errors), 0)


def test_coverage_by_hand():
    errors = np.array([[1.0, 2.0], [3.0, np.nan], [2.0, 9.0]])
    radius = np.array([[2.0, 2.0], [2.0, 2.0], [2.0, np.inf]])
    found = metrics.coverage(errors, radius, seed=0)
    assert found["share"] == pytest.approx(3 / 4)
    assert (found["n_points"], found["n_unstated"]) == (4, 1)
    assert found["per_landmark"][0] == {"n": 3, "share": pytest.approx(2 / 3), "radius_mm": 2.0}
    assert found["per_landmark"][1] == {"n": 1, "share": 1.0, "radius_mm": 2.0}
    low, high = found["interval"]
    assert 0 <= low <= 0.75 <= high <= 1
    nothing = metrics.coverage(np.full((2, 1), np.nan), np.ones((2, 1)), seed=0)
    assert nothing["share"] is None and nothing["interval"] is None
    assert [row["n"] for row in nothing["by_radius"]] == [0, 0, 0]


def test_coverage_where_a_method_is_sure_and_where_not_by_hand():
    errors = np.array([[1.0, 5.0, np.nan], [3.0, 2.0, 8.0], [0.5, 7.0, 1.0]])
    radius = np.array([[2.0, 9.0, 1.0], [2.5, 4.0, 6.0], [1.0, 5.0, np.inf]])
    found = metrics.coverage(errors, radius, seed=0)["by_radius"]
    # Radii 1, 2, 2.5; 4, 5; 6, 9.
    assert [row["n"] for row in found] == [3, 2, 2]
    assert [row["share"] for row in found] == [pytest.approx(2 / 3), 0.5, 0.5]
    assert [row["radius_mm"] for row in found] == [pytest.approx(5.5 / 3), 4.5, 7.5]
    assert [row["median_mm"] for row in found] == [1.0, 4.5, 6.5]


def test_presence_by_hand():
    stated = np.array([[0.9, 0.2], [0.6, 0.6], [np.nan, 0.35]])
    present = np.array([[True, False], [True, False], [True, False]])
    absent = np.array([[False, True], [False, True], [False, False]])
    found = metrics.presence(stated, present, absent)
    # The last scan's landmarks are not stated, or not known.
    assert (found["n_present"], found["n_absent"]) == (2, 2)
    assert found["accuracy"] == 0.75
    assert found["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.4**2 + 0.6**2) / 4)
    assert found["brier_base"] == pytest.approx(0.25)
    # Of four pairs one is tied.
    assert found["auc"] == pytest.approx(3.5 / 4)
    assert found["bins"][6] == {"n": 2, "stated": pytest.approx(0.6), "observed": 0.5}
    assert found["bins"][0] == {"n": 0, "stated": None, "observed": None}
    assert metrics.presence(stated, present, np.zeros((3, 2), bool))["auc"] is None


def test_share_by_hand():
    held = np.array([[True, False, True], [True, True, False], [False, False, False]])
    counted = np.array([[True, True, False], [True, True, True], [False, False, False]])
    found = metrics.share(held, counted, seed=0)
    assert found["share"] == 3 / 5
    # Either scan twice, or each once: 2 of 4, 4 of 6, or 3 of 5.
    assert found["interval"] == pytest.approx([1 / 2, 2 / 3])
    alone = metrics.share(held[:1], counted[:1], seed=0)
    assert alone == {"share": 1 / 2, "interval": None}
    assert metrics.share(held, held & False, seed=0) == {"share": None, "interval": None}


@pytest.mark.parametrize("seed", range(5))
def test_attributes_agree_with_plain_loops(seed):
    rng = np.random.default_rng(seed)
    said, true, known = rng.random((3, 7, 5)) < np.array([0.6, 0.7, 0.8])[:, None, None]
    cells = [(n, a) for n in range(7) for a in range(5) if known[n, a]]

    def rates(scans):
        """Accuracy, sensitivity, specificity and their mean over scans, some of them repeatedly."""
        of = [(said[n, a], true[n, a]) for scan in scans for n, a in cells if n == scan]
        positive = [s for s, t in of if t]
        negative = [not s for s, t in of if not t]
        if not (positive and negative):
            return None
        sensitivity, specificity = np.mean(positive), np.mean(negative)
        right = np.mean([s == t for s, t in of])
        return right, sensitivity, specificity, (sensitivity + specificity) / 2

    found = metrics.attributes(said, true, known, seed=0)
    names = ("accuracy", "sensitivity", "specificity", "balanced_accuracy")
    np.testing.assert_allclose([found[name]["share"] for name in names], rates(range(7)))
    assert found["n_true"] + found["n_false"] == len(cells)
    # The same intervals, but for chance, from another generator's draws.
    draws = [rates(rng.integers(0, 7, 7)) for _ in range(2000)]
    bounds = np.quantile([d for d in draws if d is not None], [0.025, 0.975], axis=0).T
    np.testing.assert_allclose([found[name]["interval"] for name in names], bounds, atol=0.06)


def test_attributes_of_one_kind_alone():
    said = np.array([[True, True], [True, False]])
    everything = np.ones((2, 2), bool)
    found = metrics.attributes(said, everything, everything, seed=0)
    assert (found["n_true"], found["n_false"]) == (4, 0)
    assert found["accuracy"]["share"] == found["sensitivity"]["share"] == 3 / 4
    nothing = {"share": None, "interval": None}
    assert found["specificity"] == found["balanced_accuracy"] == nothing
    unknown = metrics.attributes(said, everything, ~everything, seed=0)
    assert unknown["accuracy"] == nothing and unknown["n_true"] == 0
    # One scan has no interval; JSON holds what there is.
    one = metrics.attributes(said[1:], np.array([[True, False]]), everything[1:], seed=0)
    assert one["balanced_accuracy"] == {"share": 1.0, "interval": None}
    json.dumps([found, unknown, one], allow_nan=False)
