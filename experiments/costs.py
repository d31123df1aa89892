"""Costs of a trained work dir: parameters, memory, seconds a step, minutes to an error.

Steps and predictions are timed here, after all compared runs are trained. So times do not depend on
other work of the machine during training. Minutes of training count steps alone, without validation
and compilation.
"""

import dataclasses
import time

import jax
import numpy as np

from jaxmark.data.pipeline import CASE
from jaxmark.methods.method import Batch, Phase
from jaxmark.system.devices import put_batch
from jaxmark.system.files import read_json, write_json
from jaxmark.system.memory import bytes_at_once
from jaxmark.training.records import METRICS, read_records
from jaxmark.training.sharding import sharded_init, sharded_step
from jaxmark.training.streams import Streams
from jaxmark.workflow import Run

FILE = "costs.json"
SCHEMA_VERSION = 1
# Timed rounds of predictions, after one that compiles.
_TIMED_ROUNDS = 3
# Timed steps: at least the first number and these seconds, at most the second number.
_TIMED_STEPS, _MOST_STEPS, _LEAST_S = 5, 50, 3.0


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of one run; registration has no steps and no parameters."""

    parameters: int
    minutes: float  # of all steps
    step_s: tuple[float, ...]  # of each phase
    # Memory that the largest step needs at once (weights, optimiser, batch, activations), by the
    # compiler's count.
    step_bytes: int | None
    volumes_per_s: float
    # Minutes of steps before each validation, and its error.
    validations: tuple[tuple[float, float], ...]

    def minutes_to(self, error_mm: float) -> float | None:
        """Minutes of steps before the first validation with at most this error."""
        return next((minutes for minutes, mm in self.validations if mm <= error_mm), None)


def of_run(run: Run) -> Costs:
    """Read the work dir's `costs.json`; if it is missing, measure and write it."""
    path = run.workdir / FILE
    if path.exists():
        tree = read_json(path, SCHEMA_VERSION)
        del tree["schema_version"]
        validations = tuple((minutes, mm) for minutes, mm in tree.pop("validations"))
        return Costs(step_s=tuple(tree.pop("step_s")), validations=validations, **tree)
    _, variables = run.variables()
    phases = run.method.phases
    steps = [timed_steps(run, phase) for phase in phases]
    step_s = tuple(seconds for seconds, _ in steps)
    # Minutes of steps until the end of each phase.
    ends = np.cumsum([0, *(phase.steps for phase in phases)])
    clock = np.cumsum([0, *(p.steps * s for p, s in zip(phases, step_s, strict=True))]) / 60
    costs = Costs(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables.params)),
        minutes=float(clock[-1]),
        step_s=step_s,
        step_bytes=max((size for _, size in steps), default=None),
        volumes_per_s=volumes_per_s(run),
        validations=tuple(
            (float(np.interp(record["step"], ends, clock)), float(record["mre_mm"]))
            for record in read_records(run.workdir / METRICS)
            if record["kind"] == "validation"
        ),
    )
    write_json(path, {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(costs)})
    return costs


def timed_steps(run: Run, phase: Phase) -> tuple[float, int]:
    """Median seconds of a phase's compiled step, and the bytes that it needs at once.

    Steps begin with the first state of training, on batches that are already in memory.
    """
    cases, key = run.prepared.split("train"), jax.random.key(0)
    state = sharded_init(run.method.init, run.mesh)(key)
    with Streams(run.method.phases, cases, run.experiment, {}) as streams:
        host = next(streams.of(phase))
    host.pop(CASE)
    batch = Batch(**put_batch(run.mesh, host))
    step = sharded_step(phase.step, run.mesh).lower(state, batch, key).compile()
    seconds: list[float] = []
    while len(seconds) <= _TIMED_STEPS or (sum(seconds) < _LEAST_S and len(seconds) < _MOST_STEPS):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, key))
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds[1:])), bytes_at_once(step)


def volumes_per_s(run: Run) -> float:
    """Predicted volumes in a second without compilation: the median of a few rounds.

    A run without networks has one round, which takes minutes and compiles nothing.
    """
    _, cases = run.evaluated()
    _, variables = run.variables()
    rates = []
    for _ in range(1 + _TIMED_ROUNDS if run.method.stages else 1):
        begin = time.perf_counter()
        for _ in run.find(variables, cases, "timing"):
            pass
        rates.append(len(cases) / (time.perf_counter() - begin))
    return float(np.median(rates[-_TIMED_ROUNDS:]))
