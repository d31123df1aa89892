"""Notes for the user on what was guessed, repaired or left out while reading a cohort."""

from collections.abc import Iterable
from typing import NamedTuple

from jaxmark.system.errors import printable

# A line names this many and counts the others.
_MAX_NAMED = 5


class Note(NamedTuple):
    """One note; notes with the same `what` are summed up in one line."""

    where: str
    what: str


def first_few(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _MAX_NAMED} more" if len(listed) > _MAX_NAMED else ""
    return ", ".join(listed[:_MAX_NAMED]) + more


def summed_up(notes: Iterable[Note]) -> tuple[str, ...]:
    """One line for each `what`, in the order of their first notes, safe to print."""
    kinds: dict[str, dict[str, None]] = {}
    for where, what in notes:
        kinds.setdefault(what, {})[where] = None
    return tuple(printable(f"{first_few(places)}: {what}") for what, places in kinds.items())
