"""What was guessed, repaired or left out while a cohort was read: remarks for its user."""

from collections.abc import Iterable
from typing import NamedTuple

from jaxmark.system.errors import printable

# Of a kind so many are named.
_NAMED = 5


class Note(NamedTuple):
    """One remark: notes with the same `what`, of whatever number, are of a kind."""

    where: str
    what: str


def first_few(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def summed_up(notes: Iterable[Note]) -> tuple[str, ...]:
    """A line a kind, in the order of their first notes, safe to print."""
    kinds: dict[str, dict[str, None]] = {}
    for where, what in notes:
        kinds.setdefault(what, {})[where] = None
    return tuple(printable(f"{first_few(places)}: {what}") for what, places in kinds.items())
