"""Predictions of prepared cases, scored from their files; the floors, by hand."""

import numpy as np
import pytest
from conftest import random_rotation

from jaxmark.config import Data
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.data.cases import PreparedCase
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmarks import write_table
from jaxmark.data.prepare import prepare_cohort
from jaxmark.data.scans import write_scan
from jaxmark.results.evaluate import evaluate_cases, headline
from jaxmark.results.measures.points import read_points
from jaxmark.system.errors import InputError

NAMES = ("a", "b")


def case(name, offset, points, quality=np.nan):
    """A case whose prepared grid lies at `offset` mm in its scan's world."""
    affine = np.eye(4)
    affine[:3, 3] = offset
    landmarks = np.array([[np.nan] * 3 if p is None else p for p in points], float)
    present = np.array([p is not None for p in points])
    return PreparedCase(name, None, affine, landmarks + offset, present, ~present, quality)


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
    half = {c.name: dict.fromkeys(NAMES, 0.5) for c in cases}
    write_table(table, rows, {"score": half, "presence": half, "radius_mm": half})
    return evaluate_cases(
        TRAIN,
        cases,
        landmarks=NAMES,
        thresholds_mm=(1.0, 2.0),
        predictions=table,
        folder=tmp_path / "evaluation",
    )


def test_either_frame_of_the_landmark_files_gives_the_same_errors(tmp_path):
    rng = np.random.default_rng(0)
    size, summaries = np.array([20, 18, 16]), []
    affine = compose_affine(random_rotation(rng) * [1.5, 1.2, 1.0], rng.normal(0, 40, 3))
    names = [f"case{n}" for n in range(4)]
    points = {
        case: dict(zip(NAMES, apply_affine(affine, rng.uniform(4, 12, (2, 3))), strict=True))
        for case in names
    }
    guesses = {c: {n: p + rng.normal(0, 2, 3) for n, p in row.items()} for c, row in points.items()}
    half = {case: dict.fromkeys(NAMES, 0.5) for case in names}
    table = tmp_path / "predictions.csv"
    write_table(table, guesses, {"score": half, "presence": half, "radius_mm": half})
    for frame in ("LPS", "RAS"):
        root = tmp_path / frame
        for case in names:
            write_scan(root / "images" / f"{case}.mha", rng.random(size, np.float32), affine)
        rows = [
            (case, name, *(xyz if frame == "LPS" else xyz * [-1, -1, 1]))
            for case, row in points.items()
            for name, xyz in row.items()
        ]
        text = f"# frame: {frame}\ncase,landmark,x,y,z\n"
        text += "".join(f"{c},{n},{x!r},{y!r},{z!r}\n" for c, n, x, y, z in rows)
        (root / "landmarks.csv").write_text(text.replace("np.float64(", "").replace(")", ""))
        data = Data(
            root=str(root),
            cache=str(tmp_path / "cache"),
            spacing_mm=(1.5, 1.5, 1.5),
            crop=(8, 8, 8),
            margin=1,
            workers=1,
        )
        prepared = prepare_cohort(read_cohort(data), data)
        summaries.append(
            evaluate_cases(
                prepared.split("train"),
                [prepared.cases[case] for case in names],
                landmarks=NAMES,
                thresholds_mm=(1.0, 2.0),
                predictions=table,
                folder=tmp_path / "evaluation",
            )
        )
    assert summaries[0] == summaries[1]
    expected = [np.linalg.norm(guesses[c][n] - points[c][n]) for c in names for n in NAMES]
    assert summaries[0]["mre_mm"] == pytest.approx(np.mean(expected))


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
