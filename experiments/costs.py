"""What a trained work dir costs: parameters, memory, seconds a step, minutes to an error.

Times of training are those that its log holds, so they are of the machine and of what else it did.
The log has no time of validation and compilation: minutes here are those of steps alone.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.contenders import bytes_at_once
from jaxmark.config import Train
from jaxmark.data.pipeline import CASE
from jaxmark.methods.method import Batch, Phase
from jaxmark.system.devices import put_batch
from jaxmark.system.files import read_json, write_json
from jaxmark.training.records import METRICS, SPEED, read_records
from jaxmark.training.sharding import sharded_step
from jaxmark.training.streams import Streams, batch_size
from jaxmark.workflow import Run

FILE = "costs.json"
SCHEMA_VERSION = 1
# Predictions are timed so often, after one that compiles.
_TIMED = 3


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one run; registration has no steps and no parameters."""

    parameters: int
    # Of the steps of all phases, and of each step, the phases' medians.
    minutes: float
    step_s: tuple[float, ...]
    # What the largest step needs at once: weights, optimiser, batch and all between, by the
    # compiler's count.
    step_bytes: int | None
    volumes_per_s: float
    # Minutes of steps before each validation, and its error.
    validations: tuple[tuple[float, float], ...]

    def minutes_to(self, error_mm: float) -> float | None:
        """Minutes of steps before the first validation with at most this error."""
        return next((minutes for minutes, mm in self.validations if mm <= error_mm), None)


def of_run(run: Run) -> Costs:
    """What is in the work dir's `costs.json`, or else is measured and written there."""
    path = run.workdir / FILE
    if path.exists():
        tree = read_json(path, SCHEMA_VERSION)
        del tree["schema_version"]
        validations = tuple((minutes, mm) for minutes, mm in tree.pop("validations"))
        return Costs(step_s=tuple(tree.pop("step_s")), validations=validations, **tree)
    _, variables = run.variables()
    phases, settings = run.method.phases, run.experiment.train
    pace = paces(read_records(run.workdir / SPEED), phases, settings)
    # Seconds of steps until each line of the log.
    clock = np.cumsum([steps * step_s for _, _, steps, step_s in pace])
    ends = [step for _, step, _, _ in pace]
    costs = Costs(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables.params)),
        minutes=float(clock[-1]) / 60 if pace else 0.0,
        step_s=tuple(
            float(np.median([line[3] for line in pace if line[0] == phase.name]))
            for phase in phases
        ),
        step_bytes=max((step_bytes(run, phase) for phase in phases), default=None),
        volumes_per_s=volumes_per_s(run),
        validations=tuple(
            (float(np.interp(record["step"], ends, clock)) / 60, float(record["mre_mm"]))
            for record in read_records(run.workdir / METRICS)
            if record["kind"] == "validation"
        ),
    )
    write_json(path, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(costs)})
    return costs


def paces(
    records: Sequence[Mapping[str, Any]], phases: Sequence[Phase], settings: Train
) -> list[tuple[str, int, int, float]]:
    """Of each line of the log of speed: phase, its last step, how many steps, seconds of each."""
    batch = {phase.name: batch_size(phase, settings) for phase in phases}
    steps = [0, *(int(record["step"]) for record in records)]
    return [
        (name, step, step - before, batch[name] / float(record["volumes_per_s"]))
        for record, before, step in zip(records, steps, steps[1:], strict=False)
        for name in [str(record["phase"])]
    ]


def step_bytes(run: Run, phase: Phase) -> int:
    """What a step of the phase needs at once, by the compiler's count."""
    cases = run.prepared.split("train")
    with Streams(run.method.phases, cases, run.experiment, {}) as streams:
        host = next(streams.of(phase))
    host.pop(CASE)
    state = jax.eval_shape(run.method.init, jax.random.key(0))
    batch = Batch(**put_batch(run.mesh, host))
    step = sharded_step(phase.step, run.mesh).lower(state, batch, jax.random.key(0))
    return bytes_at_once(step.compile())


def volumes_per_s(run: Run) -> float:
    """Prepared volumes that are predicted in a second, warm: the median of a few rounds.

    Of a run without networks nothing has to be compiled first, and one round takes minutes.
    """
    _, cases = run.evaluated()
    _, variables = run.variables()
    rates = []
    for _ in range(1 + _TIMED if run.method.stages else 1):
        begin = time.perf_counter()
        for _ in run.find(variables, cases, "timing"):
            pass
        rates.append(len(cases) / (time.perf_counter() - begin))
    return float(np.median(rates[-_TIMED:]))
