"""Lines for the terminal. Errors are InputErrors, which `main` prints."""

import sys


def say(line: object) -> None:
    """One line of progress, on standard output."""
    print(line, flush=True)


def counted(count: int, noun: str) -> str:
    """The number and the noun, in the plural unless it is 1: "1 scan", "1,200 scans"."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def warn(line: object) -> None:
    """One line of warning, on standard error."""
    print(f"warning: {line}", file=sys.stderr, flush=True)
