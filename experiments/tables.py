"""A paper's table as one command: its flags, its rows trained one after the other, and the page.

Finished rows are not run again, and a stopped row continues.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from experiments.commands import check_lists, check_no_arguments, errors_on_one_line
from experiments.rows import Row, train_and_compare
from jaxmark.config import Experiment
from jaxmark.results.compare import Published, as_text, write_comparison
from jaxmark.results.compare import Row as Compared
from jaxmark.results.compare import Table as Lines

# (trained rows, compared rows) -> further tables, and lines of words.
Beside = Callable[[Sequence[Row], Sequence[Compared]], tuple[Sequence[Lines], Sequence[str]]]


@dataclass(frozen=True)
class Table:
    """Rows of one experiment file, whose presets are `SIZE/ROW`."""

    name: str  # name of the file, experiments/NAME.py, and of the runs' folder
    sizes: Mapping[str, Callable[[], Experiment]]
    rows: Sequence[str]
    reference: str  # the row that the others are compared with
    note: str
    published: Mapping[str, Published]
    extra: Sequence[str] = ()  # rows that are trained only if a flag names them
    # Row -> program that trains it instead of `jaxmark.main`; see `rows.Row`.
    programs: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def split(self, preset: str) -> tuple[str, str]:
        """Size and row; ValueError for a preset that does not exist."""
        size, _, row = preset.partition("/")
        if size not in self.sizes or row not in (*self.rows, *self.extra):
            listed = ", ".join((*self.rows, *self.extra))
            raise ValueError(
                f"there is no preset {preset!r}, but SIZE/ROW with SIZE of "
                f"{', '.join(self.sizes)} and ROW of {listed}"
            )
        return size, row

    def define_flags(self) -> None:
        """Define the flags of every table."""
        usual = "small" if "small" in self.sizes else next(iter(self.sizes))
        flags.DEFINE_enum(
            "preset", usual, list(self.sizes), "Size of scans and length of training."
        )
        flags.DEFINE_list("rows", list(self.rows), "Which rows.")
        flags.DEFINE_list("seeds", ["0"], "Each row is trained with each of these, and averaged.")
        flags.DEFINE_string("workdir", None, f"Folder of all runs; default: runs/{self.name}_*.")

    def row(self, size: str, name: str, seeds: Sequence[str], folder: Path, *overrides: str) -> Row:
        """A row, trained with each seed in `folder/NAME-SEED`."""
        homes = {seed: folder / f"{name}-{seed}" for seed in seeds}
        config, program = f"experiments/{self.name}.py:{size}/{name}", self.programs.get(name, ())
        return Row(name, config, homes, list(overrides), program)

    def run(
        self,
        argv: Sequence[str],
        title: str,
        *,
        suffix: str = "",
        more: Sequence[str] = (),
        hidden: Sequence[str] = (),
        overrides: Mapping[str, Sequence[str]] | None = None,
        always: Sequence[str] = (),
        beside: Beside = lambda rows, found: ([], []),
    ) -> tuple[Path, list[Compared]]:
        """Train the rows that the flags name and write the table; return its folder and the rows.

        Exit code 1 for a wrong flag, or if a row's training ends with an error.

        Args:
          suffix: end of the runs' folder's name.
          more: rows in addition to those of --rows.
          hidden: rows that --rows can't name.
          overrides: row -> arguments of `jaxmark.main` for this row; `always` are for all rows.
          beside: makes further tables of the page, and lines of words about the tables.
        """
        values: Any = flags.FLAGS
        with errors_on_one_line():
            check_lists({"rows": [n for n in (*self.rows, *self.extra) if n not in hidden]})
            check_no_arguments(argv)
            folder = Path(values.workdir or f"runs/{self.name}_{values.preset}{suffix}")
            rows = [
                self.row(
                    values.preset,
                    name,
                    values.seeds,
                    folder,
                    *always,
                    *(overrides or {}).get(name, ()),
                )
                for name in (*values.rows, *more)
            ]
            found = train_and_compare(rows, self.reference)
            more_tables, words = beside(rows, found)
        page = write_comparison(
            found,
            folder,
            title=title,
            note=self.note,
            published=self.published,
            more=more_tables,
            words=words,
        )
        print(as_text(found, self.published, more_tables))
        print("".join(f"{line}\n" for line in words), end="")
        print(f"table: {page}")
        return folder, found
