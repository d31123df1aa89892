"""Tables of measurements: CSV with fixed columns; reading gives back the written values."""

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxmark.system.errors import InputError
from jaxmark.system.files import read_bytes, write_text_atomic


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table; Python's floats get the fewest digits that give the same float back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())


@contextlib.contextmanager
def about_damage(path: Path) -> Iterator[None]:
    """In this block a ValueError becomes an InputError that calls the file damaged."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(path, f"is damaged: {error}") from error


def read_rows(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The rows of a table below its header.

    Raises:
      InputError: the file cannot be read.
      ValueError: it has other columns, or a row of another length.
    """
    content = read_bytes(path).decode()
    try:
        header, *rows = [*csv.reader(io.StringIO(content, newline=""), strict=True)] or [[]]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if tuple(header) != tuple(columns):
        raise ValueError("its columns are not those of an evaluation")
    if any(len(row) != len(columns) for row in rows):
        raise ValueError("a row is not as long as the header")
    return rows


def cases_and_names(rows: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The values of the first two columns; ValueError unless all pairs have a row, in order."""
    cases = tuple(dict.fromkeys(row[0] for row in rows))
    names = tuple(dict.fromkeys(row[1] for row in rows))
    if [tuple(row[:2]) for row in rows] != [(case, name) for case in cases for name in names]:
        raise ValueError("not every case has a row for every name")
    return cases, names
