"""Lines for the terminal. What is an error is an InputError, which `main` prints."""

import sys


def say(line: object) -> None:
    """One line of progress, on standard output."""
    print(line, flush=True)


def counted(count: int, noun: str) -> str:
    """The number and the noun, with an s where there is not just one: "1 scan", "1,200 scans"."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def warn(line: object) -> None:
    """One line that is no progress, on standard error."""
    print(f"warning: {line}", file=sys.stderr, flush=True)
