"""Lines for the terminal. What is an error is an InputError, which `main` prints."""

import sys


def say(line: object) -> None:
    """One line of progress, on standard output."""
    print(line, flush=True)


def warn(line: object) -> None:
    """One line that is no progress, on standard error."""
    print(f"warning: {line}", file=sys.stderr, flush=True)
