"""Runs side by side: averaged over seeds, compared point by point, refused where they can't be."""

import dataclasses

import numpy as np
import pytest
from conftest import refused

from jaxmark.results.compare import as_text, compare, write_comparison
from jaxmark.results.evaluate import evaluate
from jaxmark.results.measures.points import Points
from jaxmark.system.files import read_json

PAPER = {"ours": {"mre_mm": 1.5, "sd_mm": 0.25, "sdr": [80.0, 90.0]}}


def run(folder, error_mm, seed=0, scans=6, **changes):
    """A run whose predictions are all off by `error_mm` along x, but for the last scan's."""
    truth = np.random.default_rng(0).normal(0, 30, (scans, 4, 3))
    predicted = truth + [error_mm, 0, 0]
    predicted[-1] = truth[-1]
    present = np.ones((scans, 4), bool)
    present[1, 2] = False
    points = Points(
        cases=tuple(f"c{i}" for i in range(scans)),
        landmarks=tuple("a <b> c d".split()),
        truth_mm=truth,
        predicted_mm=predicted,
        present=present,
        absent=~present,
        score=np.ones((scans, 4)),
        presence=np.full((scans, 4), np.nan),
        radius_mm=np.full((scans, 4), np.inf),
    )
    points = dataclasses.replace(points, **changes)
    evaluate(points, thresholds_mm=(2, 4), floors={}, folder=folder / "evaluation")
    return folder


def test_differences_are_those_of_the_points(tmp_path):
    homes = {
        "base": [run(tmp_path / "b", 3.0)],
        "ours": [run(tmp_path / "o0", 1.0), run(tmp_path / "o1", 2.0)],
    }
    base, ours = compare(homes, "base")
    share = 19 / 23  # points with an error
    assert base.summary["mre_mm"] == pytest.approx(3 * share)
    assert ours.summary["mre_mm"] == pytest.approx(1.5 * share)
    assert ours.sd_runs_mm == pytest.approx(np.std([share, 2 * share], ddof=1))
    assert base.sd_runs_mm is None and base.error_test is None
    test = ours.error_test
    assert test["difference"] == pytest.approx(-1.5 * share)
    assert test["interval"][0] <= test["difference"] <= test["interval"][1] < 0
    assert ours.confusion_test["difference"] == pytest.approx(0)


def test_the_page_and_the_file_hold_the_table(tmp_path):
    homes = {"base": [run(tmp_path / "b", 3.0)], "ours": [run(tmp_path / "o", 1.0)]}
    rows = compare(homes, "base")
    path = write_comparison(rows, tmp_path, title="<T>", note="n & n", published=PAPER)
    text = path.read_text(encoding="utf-8")
    assert "&lt;T&gt;" in text and "n &amp; n" in text and "1.50 (0.25)" in text
    tree = read_json(tmp_path / "table.json", 1)
    assert [row["label"] for row in tree["rows"]] == ["base", "ours"]
    assert tree["rows"][1]["published"] == PAPER["ours"]
    assert tree["rows"][0]["error_minus_reference"] is None
    parts = as_text(rows, PAPER).split("\n\n")
    assert [part for part in parts if part.endswith(":")] == [
        "Methods:",
        "Differences from base:",
        "Published:",
    ]
    assert "| ours | 0.83 (" in parts[1] and "| ours | −1.65 |" in parts[3]
    assert "| ours | 1.50 (0.25) | 80.0 % | 90.0 % |" in parts[5]
    for part in parts[1::2]:
        assert len({line.count("|") for line in part.strip().splitlines()}) == 1


def test_runs_on_other_points_are_refused(tmp_path):
    first = run(tmp_path / "a", 1.0)
    fewer = run(tmp_path / "fewer", 1.0, scans=5)
    refused(lambda: compare({"a": [first], "b": [fewer]}, "a"), fewer, "is of other cases")
    truth = np.random.default_rng(9).normal(0, 30, (6, 4, 3))
    moved = run(tmp_path / "moved", 1.0, truth_mm=truth)
    refused(lambda: compare({"a": [first], "b": [moved]}, "a"), moved, "other true positions")
    refused(lambda: compare({"a": [tmp_path / "none"]}, "a"), tmp_path / "none")
