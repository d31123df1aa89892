"""A plan while it is made: an experiment whose fields are decided one by one, with reasons.

What a user has set is kept, and what follows is decided around it.
"""

import copy
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jaxmark.config import Experiment

KEPT = "set by you"


@dataclasses.dataclass(frozen=True)
class Decision:
    """A field of the experiment, its value, and the reason with the figures behind it."""

    field: str  # without "config."
    value: Any
    reason: str


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a user asks of a plan beside fields of the experiment."""

    # "heatmap" or "cascade"; "": whichever suits.
    method: str = ""
    # How long training may take; None: as long as is usual.
    minutes: float | None = None
    # The error that is wanted; None: as small as it gets.
    target_mm: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """An experiment, and why it is as it is."""

    experiment: Experiment
    decisions: tuple[Decision, ...]
    # What was found, and what to expect, a line each.
    findings: tuple[str, ...]
    expectations: tuple[str, ...]
    # What was asked for, where the plan is kept: see `kept`.
    request: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Draft:
    """An experiment, and the decisions so far."""

    def __init__(self, experiment: Experiment, given: Collection[str]):
        """`given` are names of fields that the user has set, such as "data.crop"."""
        self.experiment = copy.deepcopy(experiment)
        self.given = frozenset(given)
        self.decisions: dict[str, Decision] = {}

    def __getitem__(self, field: str) -> Any:
        """The value of a field as it is now."""
        holder: Any = self.experiment
        for name in field.split("."):
            holder = getattr(holder, name)
        return holder

    def decide(self, field: str, value: Any, reason: str) -> Any:
        """Set a field, if the user has not; the value that it has then."""
        *path, name = field.split(".")
        holder: Any = self.experiment
        for part in path:
            holder = getattr(holder, part)
        if field in self.given:
            value, reason = getattr(holder, name), KEPT
        else:
            setattr(holder, name, value)
        self.decisions[field] = Decision(field, value, reason)
        return value

    def note(self, what: str, value: Any, reason: str) -> None:
        """A decision that no field of its own holds."""
        self.decisions[what] = Decision(what, value, reason)

    def use_method(self, settings: Any, kept: Mapping[str, Any]) -> None:
        """Another method's settings, with what the user has set of them.

        Decisions about the method before it are dropped: its fields may not be there.
        """
        self.decisions = {
            field: decision
            for field, decision in self.decisions.items()
            if not field.startswith("method.")
        }
        self.experiment.method = dataclasses.replace(settings, **kept)

    @property
    def given_of_method(self) -> dict[str, Any]:
        """Fields of the method that the user has set."""
        names = [f.removeprefix("method.") for f in self.given if f.startswith("method.")]
        return {name: getattr(self.experiment.method, name) for name in names}
