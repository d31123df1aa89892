"""The one exception a person is meant to read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line: where, then what.

    `where` names a file, a folder, or a config field (`config.data.root`). `main` prints the
    message alone, without a traceback, and exits with code 1. Where several files are wrong, an
    `ExceptionGroup` of these is raised.
    """

    def __init__(self, where: str | Path, problem: str):
        # A name read from a file may hold control characters: they must not break the line
        # nor reach the terminal.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{where}: {problem}")
        super().__init__(line)
        self.arguments = (str(where), problem)

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str]]:
        # Exceptions are pickled by their `args`; this one has to come back from worker processes.
        return type(self), self.arguments


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
