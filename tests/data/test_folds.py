"""Folds of a cross-validation: every case in one, patients whole, the same for any order."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st

from jaxmark.config import Data
from jaxmark.data.cohort import read_cohort
from jaxmark.data.folds import divide, patients_of

POINT = (12.0, 22.0, -27.0)


def make(root: Path, cases: list[str], *, patient: dict[str, str] | None = None) -> None:
    """A cohort with one table of landmarks, which may name the cases' patients."""
    (root / "images").mkdir()
    header = "case,landmark,x_lps_mm,y_lps_mm,z_lps_mm"
    lines = [header + ",patient_id" * (patient is not None)]
    for case in cases:
        (root / "images" / f"{case}.nii.gz").touch()
        row = [case, "a", *map(str, POINT)]
        lines.append(",".join([*row, *([patient[case]] if patient is not None else [])]))
    (root / "landmarks.csv").write_text("\n".join(lines) + "\n")


def splits(root: Path, folds: int, **more: int) -> list[dict[str, tuple[str, ...]]]:
    return [
        read_cohort(Data(root=str(root), folds=folds, fold=fold, **more)).splits
        for fold in range(folds)
    ]


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=12),
    st.integers(2, 6),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_folds_are_a_division_of_whole_patients(
    sizes: list[int], folds: int, seed: int, order: random.Random
) -> None:
    cases = {f"c{p}-{n}": f"p{p}" for p, size in enumerate(sizes) for n in range(size)}
    if len(sizes) < folds:
        refused(lambda: divide(cases, folds, seed, Path("root")), f"{folds} folds of {len(sizes)}")
        return
    found = divide(cases, folds, seed, Path("root"))
    assert sorted(case for fold in found for case in fold) == sorted(cases) and all(found)
    homes = [{cases[case] for case in fold} for fold in found]
    assert sum(map(len, homes)) == len(sizes)
    counts = list(map(len, found))
    # Two folds never differ by more than the patient that was put there last.
    assert max(counts) - min(counts) <= max(sizes)
    shuffled = list(cases.items())
    order.shuffle(shuffled)
    assert divide(dict(shuffled), folds, seed, Path("root")) == found


def test_cases_are_divided_evenly_and_by_the_seed(tmp_path: Path) -> None:
    make(tmp_path, [f"c{n}" for n in range(11)])
    found = splits(tmp_path, 3)
    assert sorted(len(one["val"]) for one in found) == [3, 4, 4]
    everyone = {f"c{n}" for n in range(11)}
    for one in found:
        assert {*one["train"]} | {*one["val"]} == everyone and not {*one["train"]} & {*one["val"]}
        # Nothing is drawn for testing.
        assert one["test"] == ()
    assert splits(tmp_path, 3) == found != splits(tmp_path, 3, split_seed=1)
    # As it was without folds.
    plain = read_cohort(Data(root=str(tmp_path))).splits
    assert {split: len(cases) for split, cases in plain.items()} == dict(train=7, val=2, test=2)


def test_what_is_kept_for_testing_stays_there(tmp_path: Path) -> None:
    make(tmp_path, [f"c{n}" for n in range(6)])
    stated = {"train": ["c0", "c1", "c2"], "val": ["c3"], "test": ["c5"]}
    (tmp_path / "splits.json").write_text(json.dumps(stated))
    found = splits(tmp_path, 2)
    assert {case for one in found for case in one["val"]} == {"c0", "c1", "c2", "c3"}
    assert all(one["test"] == ("c5",) for one in found)


def test_a_patient_is_known_by_a_column_of_the_landmark_table(tmp_path: Path) -> None:
    patient = {f"c{n}": f"p{n // 2}" for n in range(6)}
    make(tmp_path, list(patient), patient=patient)
    for one in splits(tmp_path, 3):
        assert len({patient[case] for case in one["val"]}) == 1 and len(one["val"]) == 2
    (line,) = read_cohort(Data(root=str(tmp_path), folds=3)).notes
    assert line == "landmarks.csv: 6 cases of 3 patients; a patient's cases stay in one fold"
    message = "config.data.folds: 4 folds of 3 patients (6 cases) not kept for testing in"
    refused(lambda: splits(tmp_path, 4), message)


def test_a_table_of_patients_comes_first(tmp_path: Path) -> None:
    make(tmp_path, ["c0", "c1", "c2"], patient={"c0": "p0", "c1": "p0", "c2": "p1"})
    (tmp_path / "patients.csv").write_text("case;patient\nc0;x\nc1;y\nc2;y\n")
    assert {one["val"] for one in splits(tmp_path, 2)} == {("c0",), ("c1", "c2")}


def test_sessions_of_a_bids_subject_stay_together(tmp_path: Path) -> None:
    cases = ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-a", "sub-03"]
    patients, notes = patients_of(tmp_path, {}, cases)
    assert list(patients.values()) == ["sub-01", "sub-01", "sub-02", "sub-03"]
    assert notes[0].where == "case names" and "4 cases of 3 patients" in notes[0].what
    assert patients_of(tmp_path, {}, ["c0", "sub-03"]) == ({"c0": "c0", "sub-03": "sub-03"}, [])


def test_drawn_splits_stay_but_say_that_they_divide_a_patient(tmp_path: Path) -> None:
    make(tmp_path, [f"c{n}" for n in range(8)])
    before = read_cohort(Data(root=str(tmp_path)))
    rows = "".join(f"c{n},p\n" for n in range(8))
    (tmp_path / "patients.csv").write_text(f"case,patient\n{rows}")
    after = read_cohort(Data(root=str(tmp_path)))
    assert after.splits == before.splits and before.notes == ()
    (line,) = after.notes
    assert line.startswith("patients 'p': cases in several of the drawn splits")
    # What is wrong with the table is no error until it is needed.
    (tmp_path / "patients.csv").write_text("case,patient\nc0,\n")
    assert read_cohort(Data(root=str(tmp_path))).notes == ()


def test_a_patient_in_test_and_folds_is_named(tmp_path: Path) -> None:
    make(tmp_path, ["c0", "c1", "c2", "c3"], patient=dict(c0="p", c1="q", c2="r", c3="p"))
    (tmp_path / "splits.json").write_text('{"train": ["c0", "c1", "c2"], "test": ["c3"]}')
    notes = read_cohort(Data(root=str(tmp_path), folds=2)).notes
    assert "patient 'p': has cases in the test split and in the folds" in notes[-1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("case,patient\nc0,p\nc1,q\nc9,q\n", "line 4: case 'c9' has no image; the nearest"),
        ("case,patient\nc0,p\nc1,\n", "line 3: patient of case 'c1' is empty"),
        ("case,patient\nc0,p\nc0,q\n", "line 3: patient of case 'c0' is 'q', and 'p' above"),
        ("case,patient\nc0,p\n", "has no row of case 'c1'"),
        ("case,person\nc0,p\nc1,q\n", "has no column 'patient' beside the case: case, person"),
    ],
)
def test_what_is_wrong_with_a_table_of_patients(tmp_path: Path, table: str, message: str) -> None:
    make(tmp_path, ["c0", "c1"])
    (tmp_path / "patients.csv").write_text(table)
    data = Data(root=str(tmp_path), folds=2)
    refused(lambda: read_cohort(data), tmp_path / "patients.csv", message)


def test_a_patient_of_a_landmark_table_may_not_be_empty(tmp_path: Path) -> None:
    make(tmp_path, ["c0", "c1"], patient={"c0": "p", "c1": ""})
    data = Data(root=str(tmp_path), folds=2)
    refused(lambda: read_cohort(data), "landmarks.csv: line 3: patient_id of case 'c1' is empty")
    assert np.isfinite(read_cohort(Data(root=str(tmp_path))).cases["c0"].landmarks_mm).all()
