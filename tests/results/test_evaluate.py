"""What is written can be read back, bit for bit, and damage is told apart from data."""

import csv
import json

import numpy as np
import pytest

from jaxmark.results import evaluate
from jaxmark.results.measures.points import Points, read_floor_errors, read_points
from jaxmark.system.errors import InputError


def make_points(scans=3, landmarks=4, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 30, (scans, landmarks, 3))
    present = np.ones((scans, landmarks), bool)
    present[1, 2] = False
    truth[1, 2] = np.nan
    return Points(
        cases=('plain, "quoted"', "line\r\nbreak", "ünicode <b>")[:scans],
        landmarks=tuple(f"L{k}" for k in range(landmarks)),
        truth_mm=truth,
        predicted_mm=np.nan_to_num(truth) + rng.normal(0, 2, truth.shape),
        present=present,
        absent=~present,
        score=rng.random((scans, landmarks)),
        presence=np.where(rng.random(present.shape) < 0.5, np.nan, 0.1 + 0.8 * present),
        radius_mm=np.where(rng.random(present.shape) < 0.2, np.inf, 3.0),
    )


def run(points, folder):
    floor = np.zeros((len(points.landmarks), 3))
    return evaluate.evaluate(
        points, thresholds_mm=(2, 4), floors={"mean_position": floor}, folder=folder
    )


def test_points_come_back_exactly(tmp_path):
    points = make_points()
    run(points, tmp_path / "evaluation")
    back = read_points(tmp_path / "evaluation")
    assert (back.cases, back.landmarks) == (points.cases, points.landmarks)
    for name in set(vars(points)) - {"cases", "landmarks"}:
        np.testing.assert_array_equal(getattr(back, name), getattr(points, name))


def test_table_says_what_it_holds(tmp_path):
    points = make_points()
    run(points, tmp_path)
    with (tmp_path / "points.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    first, absent = rows[0], rows[6]
    assert (first["case"], first["landmark"]) == ('plain, "quoted"', "L0")
    assert float(first["y_predicted_lps_mm"]) == points.predicted_mm[0, 0, 1]
    assert float(first["z_true_lps_mm"]) == points.truth_mm[0, 0, 2]
    distance = np.linalg.norm(points.truth_mm[0, 0] - points.predicted_mm[0, 0])
    assert float(first["error_mm"]) == pytest.approx(distance)
    assert absent["x_true_lps_mm"] == absent["error_mm"] == absent["error_mean_position_mm"] == ""
    assert absent["x_predicted_lps_mm"] != ""


def test_summary_and_floors(tmp_path):
    points = make_points()
    summary = run(points, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert evaluate.read_summary(tmp_path) == summary
    assert summary["n_points"] == 11
    floor = summary["floors"]["mean_position"]
    assert summary.keys() - floor.keys() == {"schema_version", "floors", "coverage", "presence"}
    assert summary["coverage"] is None and summary["presence"] is None
    errors = read_floor_errors(tmp_path)["mean_position"]
    np.testing.assert_array_equal(np.isnan(errors), ~points.present)
    assert np.nanmean(errors) == pytest.approx(floor["mre_mm"])
    expected = np.linalg.norm(points.truth_mm[points.present], axis=-1)
    np.testing.assert_allclose(errors[points.present], expected)


@pytest.mark.parametrize("reader", [read_points, evaluate.read_summary])
def test_missing_files_are_named(tmp_path, reader):
    with pytest.raises(InputError, match=r"(points\.csv|summary\.json): cannot be read"):
        reader(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("error_mm", "error_cm"),
        lambda text: text.replace("L3", "L2"),
        lambda text: text.splitlines()[0],
        lambda text: text.rstrip() + "x\n",
        lambda text: text + "another,L0\n",
    ],
)
def test_a_damaged_table_is_refused(tmp_path, damage):
    run(make_points(), tmp_path)
    path = tmp_path / "points.csv"
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(damage(text))
    with pytest.raises(InputError, match=r"points\.csv: is damaged"):
        read_points(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 99}'])
def test_a_damaged_summary_is_refused(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(InputError, match="summary.json"):
        evaluate.read_summary(tmp_path)


def test_points_that_make_no_table_are_refused():
    points = make_points()
    with pytest.raises(ValueError, match="score"):
        Points(**{**vars(points), "score": points.score[:1]})
    with pytest.raises(ValueError, match="more than once: a"):
        Points(**{**vars(points), "cases": ("a", "b", "a")})
    with pytest.raises(ValueError, match="no cases"):
        Points((), ("a",), *(np.zeros((0, 1, 3)),) * 2, *(np.zeros((0, 1)),) * 5)


def test_promises_are_compared_with_what_came(tmp_path):
    points = make_points()
    points.predicted_mm[:, 0] = np.nan_to_num(points.truth_mm[:, 0]) + [0, 0, 5]
    points.radius_mm[:, 0] = [4.0, 6.0, np.inf]
    points.presence[:] = np.where(points.present, 0.8, 0.3)
    summary = evaluate.evaluate(
        points, thresholds_mm=(2,), floors={}, folder=tmp_path, promised=0.75
    )
    kept = summary["coverage"]
    assert kept["nominal"] == 0.75
    assert kept["per_landmark"][0] == {"n": 2, "share": 0.5, "radius_mm": 5.0}
    assert kept["n_points"] + kept["n_unstated"] == 11
    known = summary["presence"]
    assert (known["n_present"], known["n_absent"], known["auc"]) == (11, 1, 1.0)
    assert known["brier"] == pytest.approx((11 * 0.2**2 + 0.3**2) / 12)
    assert "% within the radii stated for 75 %" in evaluate.headline(summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
