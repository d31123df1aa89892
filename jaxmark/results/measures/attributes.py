"""Presence of segments and forks of arteries: predictions against the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.core import metrics
from jaxmark.core.anatomy import Scheme
from jaxmark.data.cases import PreparedCase
from jaxmark.results.measures.tables import about_damage, cases_and_names, read_rows, write_rows
from jaxmark.results.predictions import attributes_file, read_predicted_attributes
from jaxmark.system.errors import InputError

ATTRIBUTES = "attributes.csv"
_COLUMNS = ("case", "name", "kind", "truth", "probability")
SEGMENT, LANDMARK = "segment", "landmark"
_TRUTHS = {"yes": 1, "no": 0, "": -1}


@dataclass(frozen=True)
class Attributes:
    """A attributes of one kind in N cases: SEGMENT (it is there) or LANDMARK (arteries fork)."""

    cases: tuple[str, ...]
    names: tuple[str, ...]
    probability: np.ndarray  # (N, A)
    true: np.ndarray  # (N, A) bool
    known: np.ndarray  # (N, A) bool: where the truth is known

    @property
    def said(self) -> np.ndarray:
        """(N, A) bool: the prediction; 0.5 decides."""
        return self.probability >= 0.5

    def right(self) -> np.ndarray:
        """(N, A): 1 where the prediction is right, else 0; NaN where the truth is not known."""
        return np.where(self.known, self.said == self.true, np.nan)


def measure(
    cases: Sequence[PreparedCase], scheme: Scheme, predictions: Path
) -> dict[str, Attributes]:
    """Attributes by kind, from prepared cases and from files in the folder `predictions`.

    A kind that the files do not state is left out.

    Raises:
      InputError: a file is missing, damaged, or of another scheme.
    """
    stated = []
    for case in cases:
        path = attributes_file(predictions, case.name)
        if not path.exists():
            raise InputError(path, "no such file: run --mode=predict")
        stated.append(read_predicted_attributes(path, scheme))
    nothing = np.zeros(len(scheme.segments), bool)
    present = np.stack([nothing if c.segments is None else c.segments.present for c in cases])
    absent = np.stack([nothing if c.segments is None else c.segments.absent for c in cases])
    fork, smooth = scheme.forks(present, absent)
    segments = tuple(segment.name for segment in scheme.segments)
    found = {}
    for kind, names, told, true, known in (
        (SEGMENT, segments, [of.present for of in stated], present, present | absent),
        (LANDMARK, scheme.landmarks, [of.forks for of in stated], fork, fork | smooth),
    ):
        probabilities = [values for values in told if values is not None]
        if len(probabilities) == len(cases):
            of_cases = tuple(case.name for case in cases)
            found[kind] = Attributes(of_cases, names, np.stack(probabilities), true, known)
    return found


def figures(told: dict[str, Attributes], scheme: Scheme) -> dict[str, Any]:
    """All figures, in JSON types; None for a kind that `told` lacks.

    `segments` and `landmarks`: `metrics.attributes` over `all` and over those that `may_change`
    (segments that may be missing, and landmarks where they meet), and a row for each in `each`:
    `name`, `may_change`, `n_true`, `n_false`, `right_true`, `right_false`. `self_consistency`:
    share of predicted forks that agree with the predicted segments, over landmarks that may change.
    """
    segments, landmarks = told.get(SEGMENT), told.get(LANDMARK)
    consistency = None
    if segments is not None and landmarks is not None:
        # Segments that cannot be missing exist, even if the prediction says otherwise.
        there = segments.said | ~scheme.may_be_missing
        follows = scheme.landmark_attributes(there) == landmarks.said
        counted = np.broadcast_to(scheme.may_change, follows.shape)
        consistency = metrics.share(follows, counted, seed=0)
    return {
        "segments": segments and _of_kind(segments, scheme.may_be_missing),
        "landmarks": landmarks and _of_kind(landmarks, scheme.may_change),
        "self_consistency": consistency,
    }


def _of_kind(told: Attributes, may_change: np.ndarray) -> dict[str, Any]:
    right = told.known & (told.said == told.true)
    return {
        "all": metrics.attributes(told.said, told.true, told.known, seed=0),
        "may_change": metrics.attributes(told.said, told.true, told.known & may_change, seed=0),
        "each": [
            {
                "name": name,
                "may_change": bool(may_change[a]),
                "n_true": int((told.known & told.true)[:, a].sum()),
                "n_false": int((told.known & ~told.true)[:, a].sum()),
                "right_true": int((right & told.true)[:, a].sum()),
                "right_false": int((right & ~told.true)[:, a].sum()),
            }
            for a, name in enumerate(told.names)
        ],
    }


def write_attributes(told: dict[str, Attributes], folder: Path) -> None:
    """Write `attributes.csv`: one row for each case and attribute."""
    words = {state: word for word, state in _TRUTHS.items()}
    rows = []
    for kind, of in told.items():
        states = np.where(of.known, of.true.astype(int), -1)
        for n, case in enumerate(of.cases):
            for a, name in enumerate(of.names):
                share = float(of.probability[n, a])
                rows.append([case, name, kind, words[int(states[n, a])], share])
    write_rows(folder / ATTRIBUTES, _COLUMNS, rows)


def read_attributes_table(folder: Path) -> dict[str, Attributes]:
    """Read the table of `write_attributes`; InputError if it is missing or damaged."""
    with about_damage(folder / ATTRIBUTES):
        rows = read_rows(folder / ATTRIBUTES, _COLUMNS)
        of_kind = {kind: [r for r in rows if r[2] == kind] for kind in (SEGMENT, LANDMARK)}
        return {kind: _parse(some) for kind, some in of_kind.items() if some}


def _parse(rows: list[list[str]]) -> Attributes:
    cases, names = cases_and_names(rows)
    shape = (len(cases), len(names))
    if unknown := {row[3] for row in rows} - _TRUTHS.keys():
        raise ValueError(f"a truth that is neither yes nor no: {min(unknown)!r}")
    states = np.array([_TRUTHS[row[3]] for row in rows]).reshape(shape)
    probability = np.array([float(row[4]) for row in rows]).reshape(shape)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("a probability outside of [0, 1]")
    return Attributes(cases, names, probability, true=states == 1, known=states >= 0)
