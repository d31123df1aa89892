"""Shared by commands of experiments: flags that list words, and errors on one line."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from jaxmark.system.errors import InputError


@contextlib.contextmanager
def errors_on_one_line() -> Iterator[None]:
    """An InputError in this block ends the process: its line on stderr, exit code 1."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def check_no_arguments(argv: Sequence[str]) -> None:
    """InputError for a word that is no flag; `argv` begins with the program's name."""
    if len(argv) > 1:
        raise InputError("command line", f"unexpected argument {argv[1]!r}")


def check_lists(known: Mapping[str, Sequence[str]]) -> None:
    """InputError if a flag lists an unknown word, or --seeds is not whole numbers.

    Args:
      known: name of a flag -> its words.
    """
    values: Any = flags.FLAGS
    for flag, words in known.items():
        for word in getattr(values, flag):
            if word not in words:
                raise InputError(f"--{flag}", f"{word!r} is not one of {', '.join(words)}")
    if not all(seed.isdecimal() for seed in values.seeds):
        raise InputError("--seeds", f"{','.join(values.seeds)!r} is not whole numbers")
