"""Landmark files: whatever may be written comes back, and whatever comes is read or refused."""

import csv
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_landmarks import same

from jaxmark.data.landmarks import (
    Landmarks,
    check_case,
    read_landmarks,
    read_table,
    write_fcsv,
    write_mrk_json,
    write_table,
)
from jaxmark.system.errors import InputError

WRITERS: dict[str, Callable[..., None]] = {".mrk.json": write_mrk_json, ".fcsv": write_fcsv}


def is_name(text: str) -> bool:
    formula = unicodedata.normalize("NFKC", text)[:1] in ("=", "+", "-", "@")
    return text.isprintable() and text == text.strip() and not formula


def is_case(name: str) -> bool:
    try:
        check_case(Path("a.csv"), name)
    except InputError:
        return False
    return True


NAMES = st.text(min_size=1, max_size=40).filter(is_name)
CASES = NAMES.filter(is_case)
NUMBERS = st.floats(-1e299, 1e299)
POSITIONS = st.tuples(NUMBERS, NUMBERS, NUMBERS).map(np.array)
KNOWN = st.none() | POSITIONS
STATES = KNOWN | st.just(np.full(3, np.nan))


def some(states: Any) -> Any:
    return st.dictionaries(NAMES, states, min_size=1, max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("landmarks")


@pytest.mark.parametrize("extension", WRITERS)
@given(landmarks=some(STATES))
def test_any_landmarks_come_back(folder: Path, extension: str, landmarks: Landmarks) -> None:
    path = folder / f"a{extension}"
    WRITERS[extension](path, landmarks, hidden=list(landmarks)[::2])
    same(read_landmarks(path), landmarks)


@given(cases=st.dictionaries(CASES, some(KNOWN), min_size=1, max_size=4))
def test_any_table_comes_back(folder: Path, cases: dict[str, Landmarks]) -> None:
    path = folder / "a.csv"
    write_table(path, cases)
    back = read_table(path)
    assert list(back) == list(cases)
    for case, landmarks in cases.items():
        same(back[case], landmarks)


def as_ras(path: Path) -> None:
    """The same file in the other frame, changed as text."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        tree = json.loads(text)
        for markup in tree["markups"]:
            markup["coordinateSystem"] = "RAS"
            for point in markup["controlPoints"]:
                if "position" in point:
                    x, y, z = point["position"]
                    point["position"] = [-x, -y, z]
        path.write_text(json.dumps(tree), encoding="utf-8")
        return
    first = 1 if path.suffix == ".fcsv" else 2
    rows = list(csv.reader(text.replace("= LPS", "= RAS").replace("_lps", "_ras").splitlines()))
    for row in rows:
        if row[0].startswith("# ") or "landmark" in row[1:2]:
            continue
        # A number's sign, without a way over numbers.
        row[first : first + 2] = [
            cell[1:] if cell[:1] == "-" else f"-{cell}" if cell else ""
            for cell in row[first : first + 2]
        ]
    with path.open("w", encoding="utf-8", newline="") as file:
        for row in rows:
            if row[0].startswith("# "):
                file.write(",".join(row) + "\n")
            else:
                csv.writer(file, lineterminator="\n").writerow(row)


@pytest.mark.parametrize("extension", [*WRITERS, ".csv"])
@given(points=st.dictionaries(st.sampled_from("abcdef"), POSITIONS, min_size=1))
def test_the_frame_does_not_matter(folder: Path, extension: str, points: Landmarks) -> None:
    path = folder / f"a{extension}"
    if extension == ".csv":
        write_table(path, {"a": points})
    else:
        WRITERS[extension](path, points)
    as_ras(path)
    found = read_landmarks(path)
    assert list(found) == list(points)
    for name, xyz in points.items():
        np.testing.assert_array_equal(found[name], xyz)
    with pytest.raises(InputError, match="states the frame RAS"):
        read_landmarks(path, "LPS")


EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 12),
        st.binary(max_size=6)
        | st.sampled_from([b"1e999", b"nan", b"-1", b'"', b",", b"\n", b"[", b"}", b"null", b"# "]),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("extension", [*WRITERS, ".csv"])
@given(edits=EDITS)
def test_a_damaged_file_is_read_or_refused(
    folder: Path, extension: str, edits: list[tuple[float, int, bytes]]
) -> None:
    path = folder / f"a{extension}"
    points: Landmarks = {"a": np.array([1.5, -2, 3e-5]), 'b "c"': None, "d": np.zeros(3)}
    if extension == ".csv":
        write_table(path, {"a": points}, {"score": {"a": {"a": 0.5}}})
    else:
        WRITERS[extension](path, points)
    content = path.read_bytes()
    for where, cut, put in edits:
        at = int(where * len(content))
        content = content[:at] + put + content[at + cut :]
    path.write_bytes(content)
    try:
        found = read_landmarks(path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
    else:
        assert found and all(xyz is None or xyz.shape == (3,) for xyz in found.values())
