"""Tables of measurements in README.md and docs/, written from experiments/results/figures/.

A page holds a block, each marker on a line alone:

    <!-- figures: NAME -->
    <!-- /figures -->

`python -m experiments.figures` writes the table of NAME.json between them, and below it the
command, the machine and the date. The block `index` lists all tables. `--check` writes nothing
and exits with code 1 where a page differs.
"""

import argparse
import dataclasses
import datetime
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.commands import errors_on_one_line
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_bytes, read_json, write_text_atomic

SCHEMA_VERSION = 1
ROOT = Path(__file__).parents[1]
FOLDER = Path("experiments/results/figures")
# The block that lists all tables.
INDEX = "index"
_WIDTH = 200
_BEGIN = re.compile(r"<!-- figures: (\S+) -->")
_END = "<!-- /figures -->"

Cell = str | int | float


@dataclass(frozen=True)
class Figures:
    """A table of measurements, and how to make it again."""

    title: str
    command: str
    machine: str
    versions: str  # of the libraries that matter, as in "jax 0.10.2, Python 3.11"
    date: str  # of the measurement, YYYY-MM-DD
    commit: str  # of the code that was measured
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    takes: str = ""  # how long the command runs; empty: not known
    note: str = ""  # text below the table, in Markdown


def read_figures(path: Path) -> Figures:
    """The table in a file.

    Raises InputError, which names the field: one is missing, unknown or of another type, a row is
    longer or shorter than the columns, the date or the commit is not valid.
    """
    tree = read_json(path, SCHEMA_VERSION)
    del tree["schema_version"]
    fields = {field.name: field for field in dataclasses.fields(Figures)}
    for name in tree:
        if name not in fields:
            raise InputError(path, f"has the unknown field {name!r}")
    for name, field in fields.items():
        if name not in tree and field.default is dataclasses.MISSING:
            raise InputError(path, f"has no field {name!r}")
    columns, rows = tree.pop("columns"), tree.pop("rows")
    for name, value in tree.items():
        if not isinstance(value, str) or "\n" in value:
            raise InputError(path, f"{name!r} is not a text of one line")
    for name in ("title", "command", "machine", "date", "commit"):
        if not tree[name]:
            raise InputError(path, f"{name!r} is empty")
    if not _is_date(tree["date"]):
        raise InputError(path, f"'date' is {tree['date']!r}, not YYYY-MM-DD")
    if not re.fullmatch("[0-9a-f]{7,40}", tree["commit"]):
        raise InputError(path, f"'commit' is {tree['commit']!r}, not 7 to 40 hexadecimal digits")
    if not _is_row(columns) or not columns:
        raise InputError(path, "'columns' is not a list of names")
    if not isinstance(rows, list) or not rows:
        raise InputError(path, "'rows' is not a list of rows")
    for number, row in enumerate(rows, 1):
        if not _is_row(row):
            raise InputError(path, f"row {number} is not a list of texts of one line and numbers")
        if len(row) != len(columns):
            raise InputError(path, f"row {number} has {len(row)} cells for {len(columns)} columns")
    return Figures(columns=tuple(map(str, columns)), rows=tuple(map(tuple, rows)), **tree)


def table(figures: Figures) -> str:
    """The Markdown between two markers: the table, its note, and a line on how it was made."""
    lines = [_line(figures.columns), "|" + "---|" * len(figures.columns)]
    lines += map(_line, figures.rows)
    versions = f"; {figures.versions}" if figures.versions else ""
    made = f"`{figures.command}` on {figures.machine}, {figures.date}{versions}."
    notes = [figures.note, made] if figures.note else [made]
    return "\n".join([*lines, *("\n" + _wrapped(note) for note in notes)])


def index(tables: Mapping[str, Figures], shown: Mapping[str, str]) -> str:
    """A Markdown list of all tables by page: title, command, how long, on what, when.

    Args:
      shown: name of a table -> link to the page that shows it, in the order of the list; tables
        that no page shows come last.
    """
    pages: dict[str, list[str]] = {}
    others = (name for name in tables if name not in shown)
    for name in (*(name for name in shown if name in tables), *others):
        figures = tables[name]
        takes = f"{figures.takes} on " if figures.takes else ""
        made = f"{takes}{figures.machine}, {figures.date}, commit {figures.commit[:7]}"
        entry = _wrapped(f"- {figures.title}: `{figures.command}` ({made})", "  ")
        pages.setdefault(shown.get(name, "On no page"), []).append(entry)
    return "\n\n".join(f"**{page}**\n\n" + "\n".join(lines) for page, lines in pages.items())


def filled(page: Path, text: str, blocks: Mapping[str, str]) -> str:
    """The text of a page with `blocks`, by name, between their markers.

    Raises InputError, which names page and line: a name that is not in `blocks`, a marker without
    its partner.
    """
    lines: list[str] = []
    name, begin = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        found = _BEGIN.fullmatch(line.strip())
        if found and name:
            raise InputError(page, f"line {begin}: the block {name!r} has no line {_END}")
        if found:
            name, begin = found[1], number
            if name not in blocks:
                problem = f"line {number}: there is no {FOLDER / name}.json"
                raise InputError(page, problem)
            lines += [line, blocks[name]]
        elif line.strip() == _END:
            if not name:
                raise InputError(page, f"line {number}: {_END} ends no block")
            name = ""
            lines.append(line)
        elif not name:
            lines.append(line)
    if name:
        raise InputError(page, f"line {begin}: the block {name!r} has no line {_END}")
    return "\n".join(lines) + "\n"


def pages(root: Path) -> dict[Path, str]:
    """README.md and all of docs/, by their paths in the project, with their texts."""
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return {
        path.relative_to(root): read_bytes(path).decode("utf-8").replace("\r\n", "\n")
        for path in paths
    }


def stale(root: Path) -> dict[Path, str]:
    """Pages that differ from the measurements, by their paths in the project, with new texts."""
    tables = {path.stem: read_figures(path) for path in sorted((root / FOLDER).glob("*.json"))}
    if INDEX in tables:
        raise InputError(root / FOLDER / f"{INDEX}.json", "this name is that of the list of tables")
    texts = pages(root)
    blocks = {name: table(figures) for name, figures in tables.items()}
    blocks[INDEX] = index(tables, _links(texts))
    new = {path: filled(path, text, blocks) for path, text in texts.items()}
    return {path: text for path, text in new.items() if text != texts[path]}


def _links(texts: Mapping[Path, str]) -> dict[str, str]:
    """Name of a table -> link from a page in docs/ to the first page that shows it."""
    links: dict[str, str] = {}
    for path, text in texts.items():
        inside = path.parts[0] == "docs"
        target = path.relative_to("docs").as_posix() if inside else f"../{path.name}"
        for name in _names(text):
            links.setdefault(name, f"[{target}]({target})")
    return links


def _names(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if found := _BEGIN.fullmatch(line.strip()):
            yield found[1]


def _line(cells: tuple[Cell, ...]) -> str:
    # A bar would end the cell.
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _is_row(cells: object) -> bool:
    return isinstance(cells, list) and all(
        isinstance(cell, Cell) and not isinstance(cell, bool) and "\n" not in str(cell)
        for cell in cells
    )


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def main() -> None:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    check = parser.parse_args().check
    with errors_on_one_line():
        new = stale(ROOT)
        for path, text in new.items():
            if not check:
                write_text_atomic(ROOT / path, text)
            print(f"{path}: {'differs from ' + str(FOLDER) if check else 'written'}")
    if check and new:
        print("`python -m experiments.figures` writes them", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
