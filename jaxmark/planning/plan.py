"""A folder in, an experiment out: what a cohort is like decides registration, network and steps.

    plan = make_plan(Experiment(...), given=("data.root",), wishes=Wishes(minutes=20))
    workflow.run_stages(plan.experiment, "runs/mine")

The order is that of the decisions: pictures or volumes, landmarks and splits, registration (tried
on some cases), intensities, method, spacing and box, views, network, steps (timed on the device).
Each has a reason with the figures behind it.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxmark.bounds import check_values
from jaxmark.config import Experiment, validate
from jaxmark.data.labels import nearest
from jaxmark.planning.draft import Draft, Plan, Wishes
from jaxmark.planning.forecast import Forecast, forecast
from jaxmark.planning.network import Device, Fitted, decide_network
from jaxmark.planning.placing import (
    Placed,
    decide_intensity,
    decide_kind,
    placed,
    surveyed,
)
from jaxmark.planning.steps import step_costs
from jaxmark.system.devices import platform
from jaxmark.system.memory import device_bytes
from jaxmark.system.messages import say

# Success rates are given for these times a nice number near half the expected error.
_THRESHOLDS = (1, 2, 3, 4, 6)
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
# With fewer training cases, more of them would help most.
_MANY_CASES = 40


def make_plan(experiment: Experiment, given: Collection[str], wishes: Wishes, mesh: Mesh) -> Plan:
    """Plans what is not given.

    Args:
      experiment: with `data.root`; other fields count where they are `given`.
      given: names of fields that the user has set, such as "data.crop", without "config.".
      mesh: of the devices that will train; a step is timed there.

    Raises:
      InputError, or an ExceptionGroup of them: the folder cannot be read, or nothing can be learned
        from it; see `read_cohort`.
    """
    draft = Draft(experiment, given)
    check_values(experiment, "config")
    decide_kind(draft)
    survey = surveyed(draft)
    place = placed(draft, survey)
    decide_intensity(draft, survey)
    device = Device(platform(mesh), device_bytes(mesh), mesh.size)
    say("timing a step of training")

    def probe(experiment: Experiment, landmarks: tuple[str, ...]) -> list[Any]:
        return step_costs(validate(experiment), landmarks, mesh)

    fitted = decide_network(draft, place, wishes, device, probe)
    finest = float(np.min(np.asarray(draft["data.spacing_mm"])[: 2 if survey.planar else 3]))
    expected = forecast(place.spread, len(survey.train), finest)
    _decide_thresholds(draft, place, expected)
    return Plan(
        experiment=validate(draft.experiment),
        decisions=tuple(draft.decisions.values()),
        findings=tuple(_findings(place)),
        expectations=tuple(_expectations(place, expected, fitted, device, finest)),
    )


def _decide_thresholds(draft: Draft, place: Placed, expected: Forecast) -> None:
    middle = (expected.low + expected.high) / 4
    unit = 10 ** np.floor(np.log10(middle))
    nice = unit * min(_NICE, key=lambda number: abs(number - middle / unit))
    thresholds = tuple(float(f"{nice * times:.3g}") for times in _THRESHOLDS)
    field = (
        "evaluate.sdr_thresholds_mm" if place.survey.unit == "mm" else "evaluate.sdr_thresholds_px"
    )
    draft.decide(field, thresholds, "about the errors to expect")


def _findings(place: Placed) -> list[str]:
    """What the cohort is like."""
    survey, facts = place.survey, list(place.survey.facts.values())
    what, unit = ("pictures" if survey.planar else "scans"), survey.unit
    axes = slice(0, 2 if survey.planar else 3)
    shape, spacing = survey.median_of("shape")[axes], survey.median_of("spacing")[axes]
    sizes = {name: len(cases) for name, cases in survey.cohort.splits.items()}
    lines = [
        f"{survey.labelled} {what} with landmarks, {survey.unlabelled} without; "
        f"{len(survey.names)} landmarks; splits: "
        + ", ".join(f"{count} {name}" for name, count in sizes.items()),
        f"{_product(shape)} voxels of {_product(spacing)} {unit} (medians of {len(facts)} {what})",
    ]
    present = np.isfinite(survey.points).all(-1)
    absent = np.stack([case.absent for case in survey.train])
    if not present.all():
        lines.append(
            f"{100 * present.mean():.0f} % of the landmarks are annotated, "
            f"{100 * absent.mean():.0f} % stated to be absent"
        )
    if survey.rare:
        some = list(survey.rare.items())[:5]
        named = ", ".join(f"{n!r} ({count}{nearest(n, survey.names)})" for n, count in some)
        lines.append(f"left out, for too few cases have them: {named}")
    if not survey.planar:
        codes = sorted({fact.orientation for fact in facts})
        lines.append(f"orientations in headers: {', '.join(codes)}")
    return lines


def _expectations(
    place: Placed, expected: Forecast, fitted: Fitted, device: Device, finest: float
) -> list[str]:
    """What training will take and come to, and what would help most."""
    unit, count = place.survey.unit, len(place.survey.train)
    room = "" if device.bytes is None else f" of {device.bytes / 1e9:.0f}"
    # Ranges are those of detectors that have seen their cases often enough.
    usual = fitted.usual_minutes
    trained = "" if usual is None else f", trained for {math.ceil(usual)} minutes"
    lines = [
        f"mean position: {expected.floor:.3g} {unit} off; "
        f"a detector from {count} cases{trained}: about "
        f"{expected.low:.2g} to {expected.high:.2g} {unit} (rough, from three other cohorts)",
        f"training: about {fitted.minutes:.0f} minutes here; a step needs "
        f"{fitted.bytes / 1e9:.2g}{room} GB",
        f"most help: {_most_help(place, expected, fitted, finest)}",
    ]
    return lines


def _most_help(place: Placed, expected: Forecast, fitted: Fitted, finest: float) -> str:
    survey, unit = place.survey, place.survey.unit
    count = len(survey.train)
    known = place.poses
    if known is not None and place.spread > 3 * known.spread and not survey.planar:
        return (
            f"registration: scans lie {place.spread:.3g} {unit} apart, of which {known.spread:.3g} "
            "is shape (config.data.register, config.data.template)"
        )
    if fitted.usual_minutes is not None:
        minutes = math.ceil(fitted.usual_minutes)
        return f"time: with --minutes={minutes} each case is seen as often as is usual"
    if expected.low < 0.5 * finest:
        return f"finer scans: voxels of {finest:.3g} {unit} are coarse for such errors"
    if expected.low_with_more > 0.9 * expected.low:
        return "a look at the worst cases: more of the same kind are not known to help"
    return (
        f"more cases: with {2 * count} for training about {expected.low_with_more:.2g} to "
        f"{expected.high_with_more:.2g} {unit}"
    )


def _product(lengths: np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in lengths)


def lines_of(plan: Plan) -> list[str]:
    """The plan for a terminal."""
    width = max(len(decision.field) for decision in plan.decisions)
    decisions = [
        f"  {d.field:<{width}}  {_short(d.value)}" + f"  ({d.reason})" * bool(d.reason)
        for d in plan.decisions
    ]
    return [*plan.findings, "plan:", *decisions, *plan.expectations]


def _short(value: Any) -> str:
    text = (
        ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
    return text if len(text) <= 60 else f"{text[:57]}..."
