"""Predictions of prepared cases, scored from their files; the floors, by hand."""

import numpy as np
import pytest

from jaxmark.core.errors import InputError
from jaxmark.data.cases import PreparedCase
from jaxmark.data.landmarks import write_table
from jaxmark.results.evaluate import evaluate_cases, headline, read_points

NAMES = ("a", "b")


def case(name, offset, points, quality=np.nan):
    """A case whose prepared grid lies at `offset` mm in its scan's world."""
    affine = np.eye(4)
    affine[:3, 3] = offset
    landmarks = np.array([[np.nan] * 3 if p is None else p for p in points], float)
    present = np.array([p is not None for p in points])
    return PreparedCase(name, None, affine, landmarks + offset, present, quality)


TRAIN = [
    case("t0", 0.0, [(1, 1, 1), (5, 5, 5)], 0.9),
    case("t1", 10.0, [(3, 1, 1), None], 0.9),
]


def score(tmp_path, cases, positions):
    table = tmp_path / "predictions.csv"
    rows = {
        c.name: {n: np.array(p, float) for n, p in zip(NAMES, row, strict=True)}
        for c, row in zip(cases, positions, strict=True)
    }
    write_table(table, rows, {c.name: dict.fromkeys(NAMES, 0.5) for c in cases})
    return evaluate_cases(
        TRAIN,
        cases,
        landmarks=NAMES,
        thresholds_mm=(1.0, 2.0),
        predictions=table,
        folder=tmp_path / "evaluation",
    )


def test_errors_and_floors_by_hand(tmp_path):
    cases = [case("v", 20.0, [(2, 1, 1), (5, 5, 6)], 0.9)]
    summary = score(tmp_path, cases, [[(22, 21, 24), (25, 25, 26)]])
    assert summary["mre_mm"] == pytest.approx((3 + 0) / 2)
    assert summary["sdr"] == {"1": 0.5, "2": 0.5}
    # In the grid, a is at (2, 1, 1) and b at (5, 5, 5) on average: 0 and 1 mm from the truth.
    assert summary["floors"]["mean_position_registered"]["mre_mm"] == pytest.approx(0.5)
    # In the scanner, a's mean is ((1, 1, 1) + (13, 11, 11)) / 2, and b was seen once.
    far = (np.linalg.norm([22 - 7, 21 - 6, 21 - 6]) + np.linalg.norm([20, 20, 21])) / 2
    assert summary["floors"]["mean_position"]["mre_mm"] == pytest.approx(far)
    assert "MRE 1.500 mm" in headline(summary)
    assert read_points(tmp_path / "evaluation").score.tolist() == [[0.5, 0.5]]


def test_without_registration_there_is_one_floor(tmp_path):
    summary = score(tmp_path, [case("v", 0.0, [(1, 1, 1), None])], [[(1, 1, 1), (0, 0, 0)]])
    assert list(summary["floors"]) == ["mean_position"]
    assert summary["n_points"] == 1 and summary["mre_mm"] == 0


def test_predictions_that_lack_a_case_are_refused(tmp_path):
    score(tmp_path, [case("v", 0.0, [(1, 1, 1), (2, 2, 2)])], [[(1, 1, 1), (2, 2, 2)]])
    with pytest.raises(InputError, match=r"predictions\.csv: has no position of 'a' in case 'w'"):
        evaluate_cases(
            TRAIN,
            [case("w", 0.0, [(1, 1, 1), (2, 2, 2)])],
            landmarks=NAMES,
            thresholds_mm=(1.0,),
            predictions=tmp_path / "predictions.csv",
            folder=tmp_path,
        )


def test_cases_without_landmarks_cannot_be_evaluated(tmp_path):
    with pytest.raises(InputError, match="no case has landmarks to compare with"):
        score(tmp_path, [case("v", 0.0, [None, None])], [[(1, 1, 1), (0, 0, 0)]])
