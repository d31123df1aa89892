"""A plan as an experiment file: what a person edits, and runs with `--config=FILE`."""

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

from jaxmark.config import Experiment
from jaxmark.planning.draft import Plan

_WIDTH = 100
# The parts of an experiment, in the order of the file.
_PARTS = ("data", "method", "augment", "train", "stream", "predict", "evaluate")


def experiment_file(plan: Plan) -> str:
    """Python source with a function `get_config`, whose experiment is the plan's.

    Fields that are as everywhere are left out; the others have their reasons as comments. The
    source is as `ruff format` leaves it.
    """
    experiment = plan.experiment
    reasons = {decision.field: decision.reason for decision in plan.decisions}
    classes: set[type] = {Experiment}
    arguments = [f"        name={_quoted(experiment.name)},"]
    if experiment.seed:
        arguments.append(f"        seed={experiment.seed},")
    for part in _PARTS:
        settings = getattr(experiment, part)
        if part == "method" or _changed(settings):
            arguments += _made(settings, part, part, reasons, classes, "        ")
    lines = [
        '"""An experiment that was planned for a folder; edit it as you like."""',
        "",
        *(_wrapped(line, "# ") for line in (*plan.findings, *plan.expectations)),
        "",
        *_imports(classes),
        "",
        "",
        'def get_config(preset: str = "") -> Experiment:',
        '    """Without presets: ValueError for one."""',
        "    if preset:",
        '        raise ValueError(f"there is no preset {preset!r}: this experiment has none")',
        "    return Experiment(",
        *arguments,
        "    )",
    ]
    return "\n".join([*lines, ""])


def _imports(classes: set[type]) -> list[str]:
    modules = sorted({kind.__module__ for kind in classes})
    return [
        f"from {module} import "
        + ", ".join(sorted(kind.__name__ for kind in classes if kind.__module__ == module))
        for module in modules
    ]


def _changed(settings: Any) -> list[str]:
    """Fields of a dataclass that are not as everywhere."""
    usual = type(settings)()
    names = [field.name for field in dataclasses.fields(settings)]
    return [name for name in names if getattr(settings, name) != getattr(usual, name)]


def _made(
    settings: Any, name: str, path: str, reasons: dict[str, str], classes: set[type], indent: str
) -> Iterator[str]:
    """Lines of the argument `name`, a dataclass; what has to be imported is added to `classes`."""
    classes.add(type(settings))
    changed, inner = _changed(settings), f"{indent}    "
    if not changed:
        yield f"{indent}{name}={type(settings).__name__}(),"
        return
    yield f"{indent}{name}={type(settings).__name__}("
    for field in changed:
        if reason := reasons.get(f"{path}.{field}"):
            yield _wrapped(reason[0].upper() + reason[1:] + ".", f"{inner}# ")
        value = getattr(settings, field)
        if dataclasses.is_dataclass(value):
            yield from _made(value, field, f"{path}.{field}", reasons, classes, inner)
        else:
            yield from _argument(field, value, inner)
    yield f"{indent}),"


def _argument(name: str, value: Any, indent: str) -> Iterator[str]:
    """`name=value,`; a tuple that is too long for a line has one for each of its items."""
    line = f"{indent}{name}={_literal(value)},"
    if len(line) <= _WIDTH or not isinstance(value, tuple):
        yield line
        return
    yield f"{indent}{name}=("
    yield from (f"{indent}    {_literal(item)}," for item in value)
    yield f"{indent}),"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, tuple):
        items = ", ".join(map(_literal, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    return repr(value)


def _quoted(text: str) -> str:
    """The text as a literal in double quotes, or in single ones where those need fewer escapes."""
    # What a text has beside quotes is escaped as `repr` does; it takes double quotes for this one.
    parts = [repr("'" + part)[2:-1] for part in text.split('"')]
    if text.count('"') > text.count("'"):
        return "'" + '"'.join(part.replace("'", "\\'") for part in parts) + "'"
    return '"' + '\\"'.join(parts) + '"'


def _wrapped(text: str, begin: str) -> str:
    return "\n".join(textwrap.wrap(text, _WIDTH, initial_indent=begin, subsequent_indent=begin))
