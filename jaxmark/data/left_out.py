"""Cases and landmarks of a cohort that training does not use, with the reason for each."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmark.data.cohort import Cohort

TABLE = "left_out.csv"
# The terminal names this many for each reason and counts the others.
_MAX_NAMED = 5


class LeftOut(NamedTuple):
    """A case or a landmark that training does not use."""

    kind: str  # "case" or "landmark"
    name: str
    reason: str


def untrained(cohort: Cohort) -> tuple[str, ...]:
    """Landmarks that no training case has: what a network predicts for them means nothing."""
    trained = np.zeros(len(cohort.names), bool)
    for name in cohort.splits["train"]:
        trained |= cohort.cases[name].present
    return tuple(name for name, known in zip(cohort.names, trained, strict=True) if not known)


def left_out(cohort: Cohort) -> tuple[LeftOut, ...]:
    """Cases, then landmarks, in the cohort's order."""
    home = {name: split for split, members in cohort.splits.items() for name in members}
    found = []
    for name, case in cohort.cases.items():
        split = home.get(name)
        if case.landmark_file is None:
            reason = "has an image, but no landmark file"
        elif not (case.present | case.absent).any():
            reason = "none of its landmarks is placed (all are preview, undefined or not listed)"
        elif split is None:
            reason = "has landmarks, but is in no split (splits.json, config.data.train_fraction)"
        else:
            continue
        if split == "test":
            reason += "; it is predicted, but not evaluated"
        found.append(LeftOut("case", name, reason))
    members = [cohort.cases[name] for name in home]
    for landmark in untrained(cohort):
        k = cohort.names.index(landmark)
        others = sum(bool(case.present[k]) for case in members)
        reason = f"no training case has it ({others} of {len(members)} cases do)"
        found.append(LeftOut("landmark", landmark, f"{reason}; predictions hide it"))
    return tuple(found)


def summary(rows: Sequence[LeftOut]) -> list[str]:
    """A line for each reason, with the first names and a count."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.reason), []).append(row.name)
    lines = []
    for (kind, reason), names in groups.items():
        count = f"1 {kind}" if len(names) == 1 else f"{len(names)} {kind}s, each"
        named = ", ".join(map(repr, names[:_MAX_NAMED]))
        more = f" and {len(names) - _MAX_NAMED} more" * (len(names) > _MAX_NAMED)
        lines.append(f"{count}: {reason}: {named}{more}")
    return lines


def table(rows: Sequence[LeftOut]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LeftOut._fields)
    writer.writerows(rows)
    return text.getvalue()
