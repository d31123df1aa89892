"""Tables of the segment for each value of a label map, in one of three formats.

```
dataset.json    nnU-Net's: {"labels": {"background": 0, "C5 R": 1}} or {"labels": {"1": "C5 R"}}
labels.csv      label, name; optional: ends (landmarks, separated by ";") and may_be_missing
                (yes or no)
*_dseg.tsv      BIDS': index, name
```
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxmark.data.landmark_files import columns
from jaxmark.data.landmark_files.content import json_tree, short
from jaxmark.data.landmark_files.rows import listed
from jaxmark.data.landmark_files.tables import Table, read_cells
from jaxmark.system.errors import InputError

# Prepared label maps are uint8, and 0 is the background.
MAX_SEGMENTS = 255
# Names that are no segments. nnU-Net's networks do not learn from voxels to "ignore".
_BACKGROUND, _IGNORED = "background", "ignore"
_VALUES_END = 2**31
_YES_OR_NO = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}


@dataclasses.dataclass(frozen=True)
class Label:
    """A value of a label map; fields that the table does not state are None."""

    value: int
    name: str
    ends: tuple[str, ...] | None = None  # names of the landmarks at its ends
    may_be_missing: bool | None = None

    @property
    def is_background(self) -> bool:
        """Whether it is no segment: its value is 0, or its name is background or ignore."""
        return self.value == 0 or self.name.lower() in (_BACKGROUND, _IGNORED)


def find_label_tables(root: Path) -> list[Path]:
    """The label tables in a cohort's folder."""
    places = [root / "segmentations" / "labels.csv", root / "segmentations" / "dataset.json"]
    places += [root / "dataset.json", *sorted(root.glob("*dseg.tsv"))]
    found = [path for path in places if path.exists()]
    found += sorted(root.glob("derivatives/**/*dseg.tsv"))
    # nnU-Net's file may name channels only.
    return [path for path in found if path.name != "dataset.json" or _labels_of(path) is not None]


def read_label_tables(paths: Sequence[Path]) -> tuple[Label, ...]:
    """The labels of a table, in the order of their values.

    Several tables must have the same values and names: BIDS has one for each case, and a
    `labels.csv` may add ends, which nnU-Net's file cannot hold.

    Raises:
      InputError: a table is not readable, has no labels or over 255; a value or a name comes twice;
        a value is no whole number from 0; two tables differ.
    """
    tables = {path: _read(path) for path in paths}
    (first, chosen), *others = tables.items()
    for path, labels in others:
        if _segments(labels) != _segments(chosen):
            raise InputError(path, f"names other labels than {first}; keep one of the tables")
        if any(label.ends is not None or label.may_be_missing is not None for label in labels):
            chosen = labels
    return chosen


def _read(path: Path) -> tuple[Label, ...]:
    labels = _of_json(path) if path.suffix == ".json" else _of_cells(read_cells(path))
    found: dict[int, str] = {}
    for label in labels:
        if label.value in found:
            both = f"{short(found[label.value])} and {short(label.name)}"
            raise InputError(path, f"label {label.value} comes twice, as {both}")
        if label.name in found.values() and not label.is_background:
            raise InputError(path, f"two labels are called {short(label.name)}")
        if not label.name or not label.name.isprintable():
            raise InputError(path, f"the name of label {label.value} is {short(label.name)}")
        found[label.value] = label.name
    segments = len(_segments(labels))
    if not segments:
        raise InputError(path, "names no label beside the background")
    if segments > MAX_SEGMENTS:
        raise InputError(path, f"names {segments} labels; {MAX_SEGMENTS} at most can be used")
    return tuple(sorted(labels, key=lambda label: label.value))


def _segments(labels: Sequence[Label]) -> list[tuple[int, str]]:
    return [(label.value, label.name) for label in labels if not label.is_background]


def _value(path: Path, where: str, value: Any) -> int:
    """A label's value from JSON or from a cell."""
    text = str(value).removesuffix(".0")
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal() and len(text) < 11):
        raise InputError(path, f"{where} is {short(value)}, not a whole number from 0")
    if int(text) >= _VALUES_END:
        raise InputError(path, f"{where} is {text}; labels are under {_VALUES_END}")
    return int(text)


def _labels_of(path: Path) -> Any:
    tree = json_tree(path)
    return tree.get("labels") if isinstance(tree, dict) else None


def _of_json(path: Path) -> list[Label]:
    tree = _labels_of(path)
    if not isinstance(tree, dict):
        raise InputError(path, 'labels is not an object like {"background": 0, "C5 R": 1}')
    labels = []
    for key, value in tree.items():
        if isinstance(value, list):
            problem = f"label {short(key)} is a region of several values; name each by itself"
            raise InputError(path, problem)
        # The first version of nnU-Net has values as keys.
        old = isinstance(value, str) and not value.isdecimal()
        name, number = (value, key) if old else (key, value)
        where = "a key of labels" if old else f"label {short(name)}"
        labels.append(Label(_value(path, where, number), name.strip()))
    return labels


def _of_cells(table: Table) -> list[Label]:
    path = table.path
    keys = [columns.key(column) for column in table.header]

    def column(*names: str) -> int | None:
        return next((keys.index(name) for name in names if name in keys), None)

    value, name = column("label", "index", "value"), column("name", "segment")
    if value is None or name is None:
        wanted = "index and name" if path.suffix == ".tsv" else "label and name"
        raise InputError(path, f"has no columns {wanted}; its columns are {listed(table.header)}")
    ends, missing = column("ends"), column("may_be_missing")
    labels = []
    for line, cells in table.rows:
        where = f"line {line}"
        number = _value(path, f"{where}: {table.header[value]}", cells[value])
        joined = None if ends is None else _ends(path, where, cells[ends])
        stated = None if missing is None else _yes_or_no(path, where, cells[missing])
        labels.append(Label(number, cells[name], joined, stated))
    return labels


def _ends(path: Path, where: str, cell: str) -> tuple[str, ...] | None:
    ends = tuple(end.strip() for end in cell.split(";") if end.strip())
    if len(set(ends)) != len(ends) or len(ends) > 2:
        raise InputError(path, f"{where}: ends is {short(cell)}; a segment has two at most")
    return ends or None


def _yes_or_no(path: Path, where: str, cell: str) -> bool | None:
    if not cell:
        return None
    if cell.lower() not in _YES_OR_NO:
        raise InputError(path, f"{where}: may_be_missing is {short(cell)}, not yes or no")
    return _YES_OR_NO[cell.lower()]
