"""`--mode=check` from files to files: all mistakes of a cohort at once, and no error for them."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import refused
from pictures import png
from spotted import NAMES, SIDE, SPACING_MM, heads, write_cohort

from jaxmark import workflow
from jaxmark.config import Data, Experiment
from jaxmark.core.suspicion import LINE
from jaxmark.data.annotated import read_annotated
from jaxmark.data.landmarks import write_table
from jaxmark.data.scans import write_scan
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.results.check import KINDS, read_predictions

CASES = tuple(f"head-{number:02}" for number in range(14))


def experiment(root, **data):
    data = {"crop": (32, 32, 32), "workers": 1, **data}
    return Experiment(name="check", data=Data(root=str(root), **data), method=HeatmapRegression())


def rows_of(workdir):
    with (workdir / "check" / "suspicions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    points = dict(zip(CASES, heads(len(CASES), 5), strict=True))
    write_cohort(root, points, points)
    return root, points


@pytest.fixture
def copied(good, tmp_path):
    """The cohort with other landmarks, or scans."""
    root, points = good
    shutil.copytree(root, tmp_path / "cohort")
    points = {case: at.copy() for case, at in points.items()}

    def write():
        tables = {
            case: {n: p for n, p in zip(NAMES, at, strict=True) if np.isfinite(p).all()}
            for case, at in points.items()
        }
        write_table(tmp_path / "cohort" / "landmarks.csv", tables)
        return tmp_path / "cohort"

    return points, write


def test_a_good_cohort_has_nothing_above_the_line(good, tmp_path, capsys):
    summary = workflow.check(experiment(good[0]), tmp_path)
    assert summary["above_the_line"] == 0
    assert (summary["cases"], summary["points"]) == (14, 126)
    out = capsys.readouterr().out
    assert "14 cases, 126 points: 0 suspicions" in out
    assert f"look at {tmp_path}/check/index.html" in out


def test_all_mistakes_are_listed_at_once(copied, tmp_path, capsys):
    points, write = copied
    points[CASES[0]][2] = [-30, 5, 5]
    points[CASES[1]][5] = [3, 3, 3]
    points[CASES[2]] /= SPACING_MM
    points[CASES[3]] *= [-1, -1, 1]
    points[CASES[4]], points[CASES[5]] = points[CASES[5]], points[CASES[4]]
    points[CASES[6]][3] = np.nan
    root = write()
    points["again"] = points[CASES[7]] + 0.01
    images = root / "images"
    shutil.copy(images / f"{CASES[7]}.nii.gz", images / "again.nii.gz")
    points["unseen"] = points[CASES[8]]
    write()
    place = np.diag([SPACING_MM] * 3 + [1.0])
    noise = np.random.default_rng(0).random((SIDE,) * 3).astype(np.float32)
    write_scan(images / "unplaced.nii.gz", noise, place)

    summary = workflow.check(experiment(root), tmp_path)
    rows = rows_of(tmp_path)
    found = {(row["case"], row["landmarks"], row["kind"]) for row in rows}
    assert found >= {
        (CASES[0], "deep", "outside"),
        (CASES[1], "ear R", "air"),
        (CASES[2], "", "units"),
        (CASES[3], "", "frame"),
        (CASES[4], "", "other case"),
        (CASES[5], "", "other case"),
        (CASES[6], "eye R", "missing"),
        (CASES[7], "", "doubled scan"),
        ("unseen", "", "no scan"),
        ("unplaced", "", "no landmarks"),
    }
    scores = [float(row["suspicion"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert sum(score >= LINE for score in scores) == summary["above_the_line"] == 7
    other = next(row for row in rows if row["case"] == CASES[4])
    assert CASES[5] in other["words"]
    true = heads(len(CASES), 5)[0, 2]
    expected = [float(rows[0][f"expected_{axis}_lps_mm"]) for axis in "xyz"]
    assert rows[0]["kind"] == "outside"
    assert np.linalg.norm(expected - true) < 2

    out = capsys.readouterr().out
    assert "7 suspicions" in out
    assert f"{CASES[3]}: the points fit the scan with x and y negated" in out
    page = (tmp_path / "check" / "index.html").read_text("utf-8")
    assert page.count("data:image/png") >= 7
    assert "<script" not in page
    assert all(KINDS[row["kind"]] in page for row in rows)
    tree = json.loads((tmp_path / "check" / "summary.json").read_text("utf-8"))
    assert tree["schema_version"] == 1
    assert tree["kinds"]["other case"] == 2


def test_landmarks_of_one_case_under_two_names(copied, tmp_path):
    points, write = copied
    points[CASES[4]] = points[CASES[9]].copy()
    workflow.check(experiment(write()), tmp_path)
    first = rows_of(tmp_path)[0]
    assert (first["case"], first["kind"]) == (CASES[4], "doubled landmarks")
    assert CASES[9] in first["words"]


def test_a_misspelt_name_is_one_row_of_its_case(copied, tmp_path, capsys):
    _, write = copied
    root = write()
    table = root / "landmarks.csv"
    lines = table.read_text("utf-8").splitlines()
    lines = [line.replace("eye R", "eyeR") if CASES[3] in line else line for line in lines]
    table.write_text("\n".join(lines), "utf-8")
    workflow.check(experiment(root), tmp_path)
    (row,) = [row for row in rows_of(tmp_path) if row["kind"] in ("name", "missing")]
    assert (row["case"], row["landmarks"], row["kind"]) == (CASES[3], "eyeR", "name")
    assert float(row["suspicion"]) >= LINE
    sentence = "no other case has a landmark 'eyeR'; it lacks 'eye R', which all others have"
    assert f"{CASES[3]}: {sentence}" in capsys.readouterr().out


def test_predictions_of_runs_and_of_folds_count(good, tmp_path):
    root, points = good
    annotated = read_annotated(Data(root=str(root)))
    columns = {
        name: {case: dict.fromkeys(NAMES, value) for case in points}
        for name, value in (("score", 1.0), ("presence", 1.0), ("radius_mm", 1.5))
    }
    predicted = {c: dict(zip(NAMES, at + 0.2, strict=True)) for c, at in points.items()}
    predicted[CASES[3]]["jaw L"] = points[CASES[3]][8] + [9.0, 0, 0]
    home = tmp_path / "cv" / "folds"
    for fold, cases in enumerate((CASES[:7], CASES[7:])):
        table = home / str(fold) / "predictions" / "landmarks_subvoxel.csv"
        table.parent.mkdir(parents=True)
        write_table(table, {case: predicted[case] for case in cases}, columns)
    found = read_predictions([tmp_path / "cv"], annotated, "subvoxel", "mm")
    assert np.isfinite(found.points_mm).all()
    assert (found.radius_mm == 1.5).all()

    workflow.check(experiment(root), tmp_path, [tmp_path / "cv"])
    first = rows_of(tmp_path)[0]
    assert (first["case"], first["landmarks"]) == (CASES[3], "jaw L")

    refused(
        lambda: read_predictions([tmp_path], annotated, "subvoxel", "mm"),
        tmp_path,
        "landmarks_subvoxel.csv",
        "--mode=predict",
    )
    other = dataclasses.replace(annotated, names=tuple(f"{n}?" for n in NAMES))
    refused(lambda: read_predictions([tmp_path / "cv"], other, "subvoxel", "mm"), "no case of this")


def test_few_points_on_pictures(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "films"
    (root / "images").mkdir(parents=True)
    lines = ["case,landmark,x_px,y_px"]
    for number in range(20):
        pixels = (255 * rng.random((40, 30))).astype(np.uint8)
        (root / "images" / f"{number}.png").write_bytes(png(pixels))
        length = 12 + 0.5 * rng.standard_normal()
        ends = {"a": (8.0, 10.0), "b": (8.0 + length, 10.0)}
        if number == 4:
            ends["b"] = (9.0, 10.0)
        if number == 6:
            ends["a"] = (-9.0, 10.0)
        lines += [f"{number},{name},{x},{y}" for name, (x, y) in ends.items()]
    (root / "landmarks.csv").write_text("\n".join(lines), "utf-8")
    settings = {"unit": "px", "grid": "native", "spacing_mm": (1.0, 1.0, 1.0)}
    workflow.check(experiment(root, crop=(32, 32, 1), **settings), tmp_path)
    rows = {(r["case"], r["landmarks"], r["kind"]) for r in rows_of(tmp_path)}
    assert ("6", "a", "outside") in rows
    assert ("4", "a; b", "distance") in rows
    assert "off_px" in rows_of(tmp_path)[0]


def test_what_cannot_be_read_is_an_error(copied, tmp_path):
    _, write = copied
    root = write()
    (root / "images" / f"{CASES[2]}.nii.gz").write_bytes(b"nothing")
    refused(lambda: workflow.check(experiment(root), tmp_path), f"{CASES[2]}.nii.gz")
    refused(lambda: workflow.check(experiment(tmp_path / "no"), tmp_path), "config.data.root")
    table = root / "landmarks.csv"
    table.write_text(table.read_text("utf-8").replace("head", "face"), "utf-8")
    refused(
        lambda: workflow.check(experiment(root), tmp_path),
        "no case has both",
        "landmarks: 'face-00'",
    )
