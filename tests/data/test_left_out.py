"""What a cohort loses is said: cases without landmarks, landmarks that nobody annotated."""

import csv
import json
from pathlib import Path

import numpy as np
from conftest import refused

from jaxmark.config import Data
from jaxmark.data.cohort import read_cohort
from jaxmark.data.landmarks import write_mrk_json
from jaxmark.data.left_out import left_out, summary, table, untrained
from jaxmark.data.prepare import prepare_cohort

HERE, NOWHERE = np.array([1.0, 2.0, 3.0]), np.full(3, np.nan)


def make(root: Path, cases, splits=None) -> Data:
    (root / "images").mkdir()
    for name, points in cases.items():
        (root / "images" / f"{name}.nii.gz").touch()
        if points is not None:
            write_mrk_json(root / "landmarks" / f"{name}.mrk.json", points)
    if splits is not None:
        (root / "splits.json").write_text(json.dumps(splits))
    return Data(root=str(root))


def test_points_that_were_never_placed_are_refused_before_anything_is_computed(tmp_path):
    data = make(tmp_path, {f"c{i}": {"a": NOWHERE, "b": NOWHERE} for i in range(4)})
    refused(lambda: read_cohort(data), "has landmarks: all points of its 4 landmark files are")


def test_points_that_are_all_missing_are_refused(tmp_path):
    data = make(tmp_path, {f"c{i}": {"a": None, "b": NOWHERE} for i in range(4)})
    problem = "none of the 2 cases of train has a landmark with a position: of 4, 2 are stated"
    refused(lambda: read_cohort(data), tmp_path.name, problem)


def test_a_validation_split_without_any_position_is_refused_and_none_is_allowed(tmp_path):
    cases = {"one": {"a": HERE}, "two": {"a": NOWHERE}}
    data = make(tmp_path, cases, {"train": ["one"], "val": ["two"]})
    refused(lambda: read_cohort(data), "cases of val", "without validation")
    (tmp_path / "splits.json").write_text('{"train": ["one"]}')
    assert read_cohort(data).splits["val"] == ()


def test_cases_whose_points_were_never_placed_are_drawn_into_no_split(tmp_path):
    cases = {f"c{i}": {"a": HERE} for i in range(6)} | {"blank": {"a": NOWHERE}, "bare": None}
    cohort = read_cohort(make(tmp_path, cases))
    assert sorted(name for split in cohort.splits.values() for name in split) == list(cases)[:6]
    reasons = {row.name: row.reason for row in left_out(cohort)}
    assert list(reasons) == ["bare", "blank"]
    assert reasons["bare"] == "has an image, but no landmark file"
    assert "none of its landmarks is placed" in reasons["blank"]


def test_all_that_is_left_out_has_a_reason_and_the_terminal_shows_five(tmp_path):
    cases = {f"c{i}": {"a": HERE, "b": NOWHERE, "c": NOWHERE} for i in range(9)}
    cases["c0"] = {"a": HERE, "b": NOWHERE, "c": HERE}
    splits = {"train": ["c1"], "val": ["c0"]}
    cohort = read_cohort(make(tmp_path, cases, splits))
    assert untrained(cohort) == ("b", "c")
    rows = left_out(cohort)
    assert [row.name for row in rows] == [*(f"c{i}" for i in range(2, 9)), "b", "c"]
    lines = summary(rows)
    assert len(lines) == 3 and lines[0].startswith("7 cases, each: has landmarks, but is in no")
    assert lines[0].endswith("'c2', 'c3', 'c4', 'c5', 'c6' and 2 more")
    assert "(0 of 2 cases do)" in lines[1] and "(1 of 2 cases do)" in lines[2]
    listed = list(csv.DictReader(table(rows).splitlines()))
    assert len(listed) == 9 and listed[-1]["kind"] == "landmark"


def test_a_whole_cohort_leaves_nothing_out(tmp_path):
    assert left_out(read_cohort(make(tmp_path, {f"c{i}": {"a": HERE} for i in range(3)}))) == ()


def test_a_cohort_without_training_cases_is_refused(tmp_path):
    data = make(tmp_path, {"one": {"a": HERE}}, {"test": ["one"]})
    refused(lambda: prepare_cohort(read_cohort(data), data), "the split train has no cases")
