"""Bounds of settings, written beside the fields, and the one function that checks them.

    steps: int = setting(20_000, POSITIVE)

A dataclass of settings may also have methods `conflicts()` and `misfits(task)`. They yield each
field that contradicts another field, or the task: its name and what is wrong with it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from jaxmark.system.errors import InputError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Bound:
    """A condition on a value, and the message where it does not hold; `{}` there is the value.

    None is always allowed: it stands for a value that is chosen elsewhere.
    """

    holds: Callable[[Any], bool]
    problem: str


def setting(default: T, *bounds: Bound) -> T:
    """A dataclass field with a default and bounds.

    The return type is the value's: type checkers see a field that has this default.
    """
    field: Any = dataclasses.field(default=default, metadata={"bounds": bounds})
    return field


def at_least(least: float) -> Bound:
    """A finite number, `least` or larger."""
    return Bound(
        lambda value: math.isfinite(value) and value >= least,
        f"{{}} is not a number of at least {least}",
    )


def between(low: float, high: float) -> Bound:
    """A number between `low` and `high`, both excluded."""
    return Bound(lambda value: low < value < high, f"{{}} is not between {low} and {high}")


def one_of(*choices: str) -> Bound:
    """One of these words; the message prints them as a tuple."""
    return Bound(lambda value: value in choices, f"{{!r}} is not one of {choices}")


def each_of(*choices: str) -> Bound:
    """A tuple of one or more of these words."""
    return Bound(
        lambda value: len(value) > 0 and all(word in choices for word in value),
        f"{{!r}} is not one or more of {choices}",
    )


def either(*choices: str) -> Bound:
    """One of these words; the message joins them with "or"."""
    return Bound(lambda value: value in choices, f"{{!r}} is not {' or '.join(map(repr, choices))}")


def triple(kind: str, *types: type) -> Bound:
    """Three positive numbers (X, Y, Z) of these types; the message calls them `kind`."""

    def holds(value: Sequence[float]) -> bool:
        return len(value) == 3 and all(isinstance(v, types) and v > 0 for v in value)

    return Bound(holds, f"{{}} is not three positive {kind} (X, Y, Z)")


def positive_numbers(problem: str, least: int = 1) -> Bound:
    """`least` or more numbers, each 1 or larger."""
    return Bound(lambda value: len(value) >= least and min(value) >= 1, problem)


POSITIVE = Bound(lambda value: 0 < value < math.inf, "{} is not positive")
NOT_NEGATIVE = Bound(lambda value: 0 <= value < math.inf, "{} is negative")
SHARE = Bound(lambda value: 0 <= value <= 1, "{} is not between 0 and 1")
LENGTHS = triple("numbers", int, float)
VOXELS = triple("whole numbers", int)


# A field and what is wrong with it; "" for a problem of several fields of the dataclass.
Problem = tuple[str, str]


def divisible(crop: Sequence[int], block: int, why: str) -> Iterator[Problem]:
    """The problem of a crop with a side that is not a multiple of `block` voxels.

    `why` completes "a multiple of N, which ...". A picture's one voxel along Z is always allowed.
    """
    sides = crop[:2] if crop[2] == 1 else crop
    if any(side % block for side in sides):
        problem = f"{crop} has a side that is not a multiple of {block}, which {why}"
        yield "config.data.crop", problem


def coarsely_divisible(
    crop: Sequence[int], margin: Sequence[int], factor: int, levels: int
) -> Iterator[Problem]:
    """Problems of crop and margin for a U-Net whose voxels are `factor` times as long."""
    why = f"{levels} levels (config.method.widths) of voxels {factor} times as long need"
    yield from divisible(crop, factor * 2 ** (levels - 1), why)
    if any(m % factor for m in margin):
        why = f"{max(margin)} is not a multiple of {factor} (config.method.factor)"
        yield "config.data.margin", why


def volumes_only(crop: Sequence[int]) -> Iterator[Problem]:
    """The problem of a picture (one voxel along Z), for a method that takes volumes only."""
    if crop[2] == 1:
        yield "config.data.crop", f"{crop} is a picture, and this method is for volumes"


def pictures_only(crop: Sequence[int]) -> Iterator[Problem]:
    """The problem of a volume, for a method that takes pictures (one voxel along Z) only."""
    if crop[2] != 1:
        yield "config.data.crop", f"{crop} is a volume, and this method is for pictures (Z = 1)"


def check(settings: Any, path: str, task: Any = None) -> None:
    """Raises InputError for the first wrong value in a dataclass and the dataclasses in it.

    Args:
      settings: a dataclass; any other value is passed over.
      path: its name in the message, as "config.data".
      task: what a method has to find; None while that is not known.
    """
    check_values(settings, path)
    _check_conflicts(settings, path)
    if task is not None:
        _refuse_first(getattr(settings, "misfits")(task), path)  # noqa: B009


def check_values(settings: Any, path: str) -> None:
    """As `check`, of each field by itself: where other fields are still to be decided."""
    if not dataclasses.is_dataclass(settings):
        return
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        for bound in field.metadata.get("bounds", ()):
            if value is not None and not bound.holds(value):
                raise InputError(f"{path}.{field.name}", bound.problem.format(value))
        check_values(value, f"{path}.{field.name}")


def _check_conflicts(settings: Any, path: str) -> None:
    if not dataclasses.is_dataclass(settings):
        return
    for field in dataclasses.fields(settings):
        _check_conflicts(getattr(settings, field.name), f"{path}.{field.name}")
    _refuse_first(getattr(settings, "conflicts", tuple)(), path)


def _refuse_first(problems: Iterable[Problem], path: str) -> None:
    for name, problem in problems:
        # A problem of another part of the config has its whole path.
        where = name if name.startswith("config.") else f"{path}.{name}".rstrip(".")
        raise InputError(where, problem)
