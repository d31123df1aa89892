"""The one exception a person is meant to read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

# A file may say a lot; what is said of it is a line.
_LONGEST = 2000


def printable(text: str) -> str:
    """The text in one line that is safe to print: what a terminal would obey or hide is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line: where, then what.

    `where` names a file, a folder, or a config field (`config.data.root`). `main` prints the
    message alone, without a traceback, and exits with code 1. Where several files are wrong, an
    `ExceptionGroup` of these is raised. A problem of more than 2000 characters is cut.
    """

    def __init__(self, where: str | Path, problem: str):
        short = problem if len(problem) <= _LONGEST else f"{problem[:_LONGEST]}..."
        # Names read from a file must not break the line nor reach the terminal.
        super().__init__(printable(f"{where}: {short}"))
        self.arguments = (str(where), problem)

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str]]:
        # Exceptions are pickled by their `args`; this one has to come back from worker processes.
        return type(self), self.arguments


class UnwritableError(InputError):
    """A checkpoint can't be written. Threads may still be at it, so Python can't end in peace."""


@contextlib.contextmanager
def about(where: str | Path) -> Iterator[None]:
    """In this block a ValueError is about the file `where`, and becomes an InputError that says so.

    For mathematics that knows no files.
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(where, str(error)) from error
