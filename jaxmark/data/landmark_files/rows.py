"""Lines and cells of text tables, `.fcsv` and `.csv`, with bounds on both."""

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxmark.data.landmark_files.content import MAX_NAME, short, text
from jaxmark.system.errors import InputError

# Longer lines are refused: a line of 64 MiB could have as many cells.
_MAX_LINE = 1 << 20


def lines(path: Path) -> Iterator[str]:
    """The lines with their ends; InputError for one that is too long."""
    for number, line in enumerate(io.StringIO(text(path), newline=""), start=1):
        if len(line) > _MAX_LINE:
            raise InputError(path, f"line {number} has {len(line)} characters")
        yield line


def rows(path: Path, delimiter: str = ",", skip: int = 0) -> list[tuple[int, list[str]]]:
    """Line numbers (of a row's last line) and stripped cells; blank rows are left out.

    Args:
      skip: lines before the first row.
    """
    reader = csv.reader(itertools.islice(lines(path), skip, None), strict=True, delimiter=delimiter)
    try:
        found = [(reader.line_num + skip, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(path, f"line {reader.line_num + skip}: {error}") from None
    return [(line, row) for line, row in found if any(row)]


def comments(path: Path, found: Iterable[list[str]]) -> dict[str, str]:
    """The lines `# key = value` (or `key: value`); keys in lower case.

    Raises:
      InputError: a key that says how to read the file comes with two values.
    """
    stated: dict[str, str] = {}
    for row in found:
        # A line of columns has commas of its own.
        key, *values = re.split("[=:]", ",".join(row).strip("# "), maxsplit=1)
        key, value = key.strip().lower(), "".join(values).strip(" ,")
        if stated.get(key, value) != value and key in ("frame", "coordinatesystem", "columns"):
            both = f"{short(stated[key])} and {short(value)}"
            raise InputError(path, f"has two lines '# {key} =', {both}")
        stated[key] = value
    return stated


def listed(header: list[str]) -> str:
    """The columns, for a message."""
    text = ", ".join(header)
    text = text if len(text) <= MAX_NAME else text[:MAX_NAME] + "..."
    return text + (" (separated by commas?)" if len(header) == 1 else "")


def numbers(path: Path, where: str, cells: list[str], columns: list[str]) -> list[float]:
    """The cells as finite numbers."""
    values = []
    for cell, column in zip(cells, columns, strict=True):
        try:
            # Python reads 1_5 as 15; here it is a mistake.
            value = float(cell.replace("_", "?"))
        except ValueError:
            raise InputError(path, f"{where}: {column} is {short(cell)}, not a number") from None
        if not math.isfinite(value):
            raise InputError(path, f"{where}: {column} is {short(cell)}, not a finite number")
        values.append(value)
    return values
