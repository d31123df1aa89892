"""The exceptions whose messages are written for users."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

# Longer messages are cut: they may quote a file.
_LONGEST_PROBLEM = 2000


def printable(text: str) -> str:
    """The text as one line; control codes and invisible characters are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line: where, then what.

    `where` names a file, a folder, or a config field (`config.data.root`). `main` prints the
    message alone, without a traceback, and exits with code 1. Where several files are wrong, an
    `ExceptionGroup` of these is raised. A problem of more than 2000 characters is cut.
    """

    def __init__(self, where: str | Path, problem: str):
        cut = len(problem) > _LONGEST_PROBLEM
        short = f"{problem[:_LONGEST_PROBLEM]}..." if cut else problem
        # Names read from a file must not break the line or control the terminal.
        super().__init__(printable(f"{where}: {short}"))
        self.arguments = (str(where), problem)

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str]]:
        # Worker processes send it back pickled, and exceptions are pickled by their `args`.
        return type(self), self.arguments


class UnwritableError(InputError):
    """A checkpoint can't be written. Its threads may still run, so Python can't end cleanly."""


@contextlib.contextmanager
def about(where: str | Path) -> Iterator[None]:
    """Turns a ValueError in this block into an InputError about the file `where`.

    For functions that compute and know no file names.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(where, str(error)) from error
