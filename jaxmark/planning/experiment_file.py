"""A plan as an experiment file: what a person edits, and runs with `--config=FILE`."""

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

from jaxmark.config import Experiment
from jaxmark.planning.draft import Plan

_WIDTH = 100
# The parts of an experiment, in the order of the file.
_PARTS = ("data", "method", "augment", "train", "predict", "evaluate")


def experiment_file(plan: Plan) -> str:
    """Python source with a function `get_config`, whose experiment is the plan's.

    Fields that are as everywhere are left out; the others have their reasons as comments.
    """
    experiment = plan.experiment
    reasons = {decision.field: decision.reason for decision in plan.decisions}
    method = type(experiment.method)
    kinds = {"data": "Data", "augment": "Augment", "train": "Train"}
    kinds |= {"predict": "Predict", "evaluate": "Evaluate", "method": method.__name__}
    parts = [part for part in _PARTS if part == "method" or _changed(getattr(experiment, part))]
    used = sorted({"Experiment", *(kinds[part] for part in parts if part != "method")})
    lines = [
        '"""An experiment that was planned for a folder of scans; edit it as you like.',
        "",
        *(_wrapped(line, "") for line in (*plan.findings, *plan.expectations)),
        '"""',
        "",
        f"from jaxmark.config import {', '.join(used)}",
        f"from {method.__module__} import {method.__name__}",
        "",
        "",
        'def get_config(preset: str = "") -> Experiment:',
        '    """Without presets: ValueError for one."""',
        "    if preset:",
        '        raise ValueError(f"there is no preset {preset!r}: this experiment has none")',
        "    return Experiment(",
        f"        name={experiment.name!r},",
    ]
    if experiment.seed:
        lines.append(f"        seed={experiment.seed},")
    for part in parts:
        lines += [f"        {part}={kinds[part]}("]
        lines += _fields(getattr(experiment, part), part, reasons)
        lines += ["        ),"]
    return "\n".join([*lines, "    )", ""])


def _changed(settings: Any) -> list[str]:
    """Fields of a dataclass that are not as everywhere."""
    usual = type(settings)()
    names = [field.name for field in dataclasses.fields(settings)]
    return [name for name in names if getattr(settings, name) != getattr(usual, name)]


def _fields(settings: Any, part: str, reasons: dict[str, str]) -> Iterator[str]:
    """Lines of keyword arguments; values of dataclasses have the repr of what makes them."""
    for name in _changed(settings):
        if reason := reasons.get(f"{part}.{name}"):
            yield _wrapped(reason[0].upper() + reason[1:] + ".", "            # ")
        yield f"            {name}={getattr(settings, name)!r},"


def _wrapped(text: str, begin: str) -> str:
    return "\n".join(textwrap.wrap(text, _WIDTH, initial_indent=begin, subsequent_indent=begin))


def is_the_plan_s(source: str, plan: Plan) -> bool:
    """Whether the file makes the plan's experiment."""
    names: dict[str, Any] = {}
    exec(compile(source, "experiment.py", "exec"), names)  # noqa: S102 - our own text
    made: Experiment = names["get_config"]()
    return made == plan.experiment
