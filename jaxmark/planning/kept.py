"""The plan in a work dir: made once, and used by every later command about that work dir.

A plan depends on how fast the device is at that moment: a run that goes on must not make another.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxmark.config import Experiment, from_json, to_json, validate
from jaxmark.inference.ensemble import FOLDS
from jaxmark.planning.draft import Decision, Draft, Plan, Wishes
from jaxmark.planning.experiment_file import experiment_file
from jaxmark.planning.plan import lines_of, make_plan
from jaxmark.registry import METHODS, PHANTOMS
from jaxmark.results.plan_section import FILE, SCHEMA_VERSION
from jaxmark.system import processes
from jaxmark.system.devices import data_mesh, platform
from jaxmark.system.errors import InputError, printable
from jaxmark.system.files import read_json, write_json, write_text_atomic
from jaxmark.system.messages import say
from jaxmark.training.checkpoints import FOLDER
from jaxmark.workflow import owned

EXPERIMENT_FILE = "plan.py"
# Fields that no plan depends on: they may change from command to command.
_FREE = ("train.", "predict.", "evaluate.", "name", "data.cache", "data.workers", "data.all_sheets")


def plan_in(
    workdir: Path,
    experiment: Experiment,
    given: Collection[str],
    wishes: Wishes,
    *,
    anew: bool = False,
) -> Plan:
    """The plan in a work dir; made, printed and written there where there is none.

    Where a model is trained, its plan counts: what is not stated now is what was stated then. Where
    none is, a plan for another request is made anew, and `anew` also one for the same request.

    Args:
      experiment, given, wishes: see `make_plan`.

    Raises:
      InputError: as `make_plan`; the work dir holds a model that was planned for something else.
    """
    mesh, path = data_mesh(), workdir / FILE
    request = _request(experiment, given, wishes, mesh)
    known = _load(path) if path.exists() else None
    trained = (workdir / FOLDER).exists() or any(workdir.glob(f"{FOLDS}/*/{FOLDER}"))
    if trained:
        differing = _differing(known, experiment, request)
        if differing:
            raise InputError(
                workdir, f"holds a model whose plan had {differing}; use another --workdir"
            )
    if known is not None and (trained or (known.request == request and not anew)):
        say(f"planned before: {path}" + " (--mode=plan plans anew)" * (not trained))
        return dataclasses.replace(known, experiment=_with_free(known, experiment, given))
    with processes.primary_first("plan"):
        if processes.primary():
            with owned(workdir):
                made = dataclasses.replace(
                    make_plan(experiment, given, wishes, mesh), request=request
                )
                for line in lines_of(made):
                    say(printable(line))
                # The one that later commands look for comes last.
                write_text_atomic(workdir / EXPERIMENT_FILE, experiment_file(made))
                _save(made, path)
    say(f"plan: {path}, {workdir / EXPERIMENT_FILE}")
    return _load(path)


def _request(
    experiment: Experiment, given: Collection[str], wishes: Wishes, mesh: Mesh
) -> dict[str, Any]:
    """What a plan is asked for, as JSON types."""
    tree = to_json(experiment)
    values = {field: _at(tree, field) for field in sorted(given) if not _is_free(field)}
    root = str(Path(experiment.data.root).expanduser().resolve())
    return {
        "given": {**values, "data.root": root},
        "wishes": dataclasses.asdict(wishes),
        "platform": platform(mesh),
        "devices": mesh.size,
    }


def _is_free(field: str) -> bool:
    return field.startswith(_FREE)


def _at(tree: Mapping[str, Any], field: str) -> Any:
    found: Any = tree
    for name in field.split("."):
        found = found[name]
    return found


def _differing(known: Plan | None, experiment: Experiment, request: Mapping[str, Any]) -> str:
    """What is stated now and was other when the model in the work dir was planned; "": nothing."""
    if known is None:
        return "no plan"
    was, planned = known.request, to_json(known.experiment)
    root = was["given"]["data.root"]
    lines = []
    for field, value in request["given"].items():
        old = root if field == "data.root" else _at(planned, field)
        if old != value:
            lines.append(f"config.{field} = {old}, not {value}")
    for name, value in request["wishes"].items():
        if value and value != was["wishes"][name]:
            lines.append(f"--{name}={was['wishes'][name]}, not {value}")
    return "; ".join(lines)


def _with_free(known: Plan, experiment: Experiment, given: Collection[str]) -> Experiment:
    """The planned experiment with those of the given fields that no plan depends on."""
    draft = Draft(known.experiment, ())
    for field in filter(_is_free, given):
        draft.decide(field, Draft(experiment, ())[field], "")
    return validate(draft.experiment)


def _save(plan: Plan, path: Path) -> None:
    """As JSON; the experiment as in a run's `config.json`."""
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "request": dict(plan.request),
            "findings": list(plan.findings),
            "decisions": [dataclasses.asdict(decision) for decision in plan.decisions],
            "expectations": list(plan.expectations),
            "experiment": to_json(plan.experiment),
        },
    )


def _load(path: Path) -> Plan:
    """What `_save` wrote; InputError where it cannot be read."""
    tree = read_json(path, SCHEMA_VERSION)
    try:
        return Plan(
            experiment=from_json(tree["experiment"], METHODS | PHANTOMS, path),
            decisions=tuple(Decision(**decision) for decision in tree["decisions"]),
            findings=tuple(tree["findings"]),
            expectations=tuple(tree["expectations"]),
            request=tree["request"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(path, f"lacks a field or has a wrong one ({error!r})") from error
