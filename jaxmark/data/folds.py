"""Folds of a cross-validation: the patient of each case, and a seeded division of the patients.

A patient's cases stay together. The first of these that exists names the patients:

```
root/patients.csv        case, patient
root/landmarks.csv       a column patient (patient_id, subject, subject_id) beside the case's
case names of BIDS       sub-01_ses-1 and sub-01_ses-2 are both of sub-01
```

Otherwise each case is a patient.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jaxmark.data.labels import natural, nearest
from jaxmark.data.landmark_files import columns
from jaxmark.data.landmark_files.content import short
from jaxmark.data.landmark_files.rows import listed
from jaxmark.data.landmark_files.tables import Table, read_case_column, read_cells
from jaxmark.data.notes import Note
from jaxmark.system.errors import InputError

TABLE = "patients.csv"
# The first of these columns that a table has is taken.
_COLUMNS = ("patient", "patient_id", "subject", "subject_id")
_TABLES = (".csv", ".tsv")
_SESSION = re.compile("(?P<subject>sub-[a-zA-Z0-9]+)_ses-.*")


def patients_of(
    root: Path, landmarks: Path | Mapping[str, Path], cases: Collection[str]
) -> tuple[dict[str, str], list[Note]]:
    """Case -> its patient; and a note on where that was read, unless each case is a patient.

    Args:
      root: the cohort's folder.
      landmarks: where its landmarks are, see `layouts.Layout`.
      cases: the cases with images.

    Raises:
      InputError: a table names no patient for a case, or two; `patients.csv` lacks a case or names
        one that has no image.
    """
    file = root / TABLE
    if file.exists():
        found = _read(read_cells(file), cases)
        if found is None:
            raise InputError(file, f"has no column 'patient' beside the case: {_header(file)}")
        for case in sorted(cases, key=natural):
            if case not in found:
                raise InputError(file, f"has no row of case {short(case)}")
        return found, [Note(TABLE, _by_patient(found))]
    if isinstance(landmarks, Path) and landmarks.suffix.lower() in _TABLES:
        found = _read(read_cells(landmarks), cases)
        if found is not None:
            # A case without landmarks is in no fold.
            found = {case: found.get(case, case) for case in cases}
            return found, [Note(landmarks.name, _by_patient(found))]
    found = {case: m["subject"] if (m := _SESSION.fullmatch(case)) else case for case in cases}
    notes = [Note("case names", _by_patient(found))] if set(found.values()) != {*cases} else []
    return found, notes


def divide(
    patients: Mapping[str, str], folds: int, seed: int, where: Path
) -> list[tuple[str, ...]]:
    """Cases of each fold, of nearly equal sizes; the same for any order of the cases.

    If every patient has one case, the sizes differ by one at most.

    Args:
      patients: case -> patient, for the cases to divide.
      folds: their number.
      seed: decides which patients go together.
      where: the cohort's folder, for messages.

    Raises:
      InputError: there are fewer patients than folds.
    """
    members: dict[str, list[str]] = {}
    for case in sorted(patients, key=natural):
        members.setdefault(patients[case], []).append(case)
    if len(members) < folds:
        several = f" ({len(patients)} cases)" * (len(members) < len(patients))
        what = "patients" if several else "cases with landmarks"
        problem = f"{folds} folds of {len(members)} {what}{several} not kept for testing in {where}"
        raise InputError("config.data.folds", problem)
    divided: list[list[str]] = [[] for _ in range(folds)]
    # Patients with most cases first: the others even out the folds.
    for patient in sorted(members, key=lambda one: (-len(members[one]), drawn(seed, one))):
        min(divided, key=len).extend(members[patient])
    return [tuple(sorted(fold, key=natural)) for fold in divided]


def shared_patients(patients: Mapping[str, str], splits: Mapping[str, Sequence[str]]) -> list[str]:
    """Patients that have cases in several of the splits."""
    homes: dict[str, set[str]] = {}
    for split, cases in splits.items():
        for case in cases:
            homes.setdefault(patients[case], set()).add(split)
    return sorted((patient for patient, at in homes.items() if len(at) > 1), key=natural)


def drawn(seed: int, name: str) -> bytes:
    """A key that sorts names at random; unlike a shuffle, the same for any order of files."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _read(table: Table, cases: Collection[str]) -> dict[str, str] | None:
    """Case -> patient, from a table with one or more rows for each case; None without column."""
    case_column, names = read_case_column(table, cases)
    keys = [columns.key(column) for column in table.header]
    places = [keys.index(key) for key in _COLUMNS if key in keys]
    column = next((place for place in places if place != case_column), None)
    if column is None:
        return None
    found: dict[str, str] = {}
    for (line, cells), case in zip(table.rows, names, strict=True):
        patient, where = cells[column], f"line {line}: {table.header[column]} of case {short(case)}"
        if case not in cases:
            problem = f"line {line}: case {short(case)} has no image{nearest(case, cases)}"
            raise InputError(table.path, problem)
        if not patient:
            raise InputError(table.path, f"{where} is empty")
        if found.setdefault(case, patient) != patient:
            problem = f"{where} is {short(patient)}, and {short(found[case])} above"
            raise InputError(table.path, problem)
    return found


def _header(file: Path) -> str:
    return listed(read_cells(file).header)


def _by_patient(patients: Mapping[str, str]) -> str:
    count = len(set(patients.values()))
    return f"{len(patients)} cases of {count} patients; a patient's cases stay in one fold"
