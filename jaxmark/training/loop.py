"""The training loop: for any method, on any number of devices; it can stop and continue."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmark.config import Experiment, check_same
from jaxmark.core.metrics import radial_error_mm
from jaxmark.data.cases import HostBatch, PreparedCase
from jaxmark.data.pipeline import CASE
from jaxmark.inference.predictor import Predictor
from jaxmark.methods.method import Batch, LandmarkSets, Method, Phase, State, Variables
from jaxmark.system.devices import put_batch
from jaxmark.system.errors import InputError
from jaxmark.system.interrupts import Interrupted
from jaxmark.system.messages import say
from jaxmark.system.processes import Stops, barrier, from_primary, primary, stops
from jaxmark.training.checkpoints import Checkpoints, Writer
from jaxmark.training.memory import step_demand
from jaxmark.training.provenance import check_data, provenance
from jaxmark.training.records import Records
from jaxmark.training.sharding import sharded_init, sharded_step
from jaxmark.training.streams import Streams, batch_size


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """The metrics of one training step (scalars by name), and the numbers of its cases."""

    metrics: Mapping[str, Any]
    cases: tuple[int, ...]


def train(
    method: Method,
    experiment: Experiment,
    *,
    cases: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    landmarks: Sequence[str],
    workdir: Path,
    mesh: Mesh,
    unpaired: LandmarkSets | None = None,
) -> None:
    """Train through all phases, or continue from the newest checkpoint; returns when all is saved.

    `unpaired` are the landmarks of the method's task: a run must not continue with others.

    Raises:
      InputError: a batch does not divide over the devices, or does not fit into their memory; the
        newest checkpoint has other landmarks, data or settings; all checkpoints are damaged.
      FloatingPointError: a loss or parameter is not finite.
      Interrupted: SIGTERM or SIGINT came; all steps so far are saved.
    """
    settings, phases = experiment.train, method.phases
    for phase in phases:
        size = batch_size(phase, settings)
        if size % mesh.size:
            raise InputError(phase.batch_field, f"{size} does not divide over {mesh.size} devices")
    total = sum(phase.steps for phase in phases)
    streamed = any(phase.draw for phase in phases)
    meta = provenance(experiment, landmarks, cases, unpaired, streamed=streamed)
    key = jax.random.key(experiment.seed)
    start = resume(method, experiment, meta, workdir, mesh)
    if start is None:
        start = Start(0, sharded_init(method.init, mesh)(key), {}, [])
    else:
        say(f"continuing at step {start.step} of {total}")
    if start.step >= total:
        say(f"training is complete: {start.step} steps")
        return

    predictor = Predictor(method, experiment.predict.batch, mesh)
    for line in method.notes(settings.batch):
        say(line)
    # The stack closes all in the reverse order; the writer first finishes its checkpoint.
    with contextlib.ExitStack() as stack:
        streams = stack.enter_context(Streams(phases, cases, experiment, start.streams))
        writer = Writer(workdir, keep=settings.keep_checkpoints)
        stack.callback(writer.close)
        records = Records(
            workdir, resume_step=start.step, tensorboard=settings.tensorboard, write=primary()
        )
        stack.callback(records.close)
        bar = tqdm(
            total=total,
            initial=start.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
            disable=not primary(),
        )
        stack.callback(bar.close)
        log = Log(records, bar, start.recent, start.step, experiment.data.unit)

        stop = stack.enter_context(stops())

        def validated(variables: Variables) -> float | None:
            return validate(predictor, variables, validation, experiment.predict.decoder)

        def save(state: State, mre_mm: float | None) -> None:
            # The log must be on the disk before a checkpoint that continues it.
            records.sync()
            # State and streams belong to the same step: all batches so far, no more.
            since = {"recent": [dataclasses.asdict(record) for record in log.recent]}
            writer.save(state, streams.states(), {**meta, **since}, mre_mm)

        run = Run(
            method,
            experiment,
            cases,
            streams,
            key,
            mesh,
            log,
            validated,
            save,
            writer.wait,
            stop,
        )
        state = start.state
        if validation:
            log.compiling("validation")
            stop.hold(False)
            next(predictor(state.variables, [validation[0].volume]))
        for phase, last in zip(phases, ends(phases), strict=True):
            if log.step < last:
                state = run_phase(run, phase, last, state)


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run that all phases share."""

    method: Method
    experiment: Experiment
    cases: Sequence[PreparedCase]
    streams: Streams
    key: Array
    mesh: Mesh
    log: "Log"
    validate: Callable[[Variables], float | None]
    save: Callable[[State, float | None], None]
    wait_saved: Callable[[], None]  # returns when the last checkpoint is written
    stop: Stops


def run_phase(run: Run, phase: Phase, last: int, state: State) -> State:
    """Train through one phase, up to step `last`, with log, validations and checkpoints."""
    log, settings = run.log, run.experiment.train
    memory = step_demand(run.method, phase, run.experiment, run.cases, run.mesh)
    if phase.draw is None:
        memory.check_arrays()
    batches = run.streams.of(phase)
    with memory.watched():
        batch, drawn = _next_batch(batches, run.mesh)
    log.compiling(phase.name)
    # A signal may end the process while it compiles: the phase before ended with a checkpoint.
    run.wait_saved()
    run.stop.hold(False)
    with memory.watched():
        step = sharded_step(phase.step, run.mesh).lower(state, batch, run.key).compile()
    memory.check(step)
    run.stop.hold(True)
    log.begin(phase, batch_size(phase, settings))
    while log.step < last:
        with memory.watched():
            state, metrics = step(state, batch, run.key)
        log.add(StepRecord(metrics, drawn))
        stop = run.stop.after(log.step)
        due = log.step % settings.validate_every == 0 or log.step == last
        logged = due or log.step % settings.log_every == 0
        if logged or stop:
            # Also before every checkpoint: values that are not finite must not be saved.
            with memory.watched():
                log.check(None if phase.draw else run.cases)
        if logged:
            log.line()
        if due or stop:
            check_parameters(state.variables, phase.name, log.step)
            # A run that stops here has this validation in its log, as if it had not stopped.
            mre_mm = run.validate(state.variables) if due else None
            stop = stop or run.stop.now()
            log.validated(mre_mm)
            run.save(state, mre_mm)
        if stop:
            raise Interrupted(stop)
        if log.step < last:
            with memory.watched():
                batch, drawn = _next_batch(batches, run.mesh)
    return state


def _next_batch(batches: Iterator[HostBatch], mesh: Mesh) -> tuple[Batch, tuple[int, ...]]:
    """A batch on its way to the devices, and the numbers of its cases."""
    host = next(batches)
    drawn = tuple(map(int, host.pop(CASE)))
    return Batch(**put_batch(mesh, host)), drawn


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins or continues."""

    step: int
    state: State
    streams: Mapping[str, Any]  # see `Streams`
    recent: list[StepRecord]  # since the last line of the log


def resume(
    method: Method, experiment: Experiment, meta: Mapping[str, Any], workdir: Path, mesh: Mesh
) -> Start | None:
    """The newest whole checkpoint, which must fit this run's `meta`; None if there is none."""
    checkpoints = Checkpoints(workdir)
    abstract = jax.eval_shape(method.init, jax.random.key(0))

    def read(step: int) -> Start:
        saved = checkpoints.meta(step)
        check_continues(saved, meta, experiment, checkpoints.folder)
        state, streams = checkpoints.state(step, abstract, mesh)
        recent = [StepRecord(t["metrics"], tuple(t["cases"])) for t in saved["recent"]]
        return Start(step, state, streams, recent)

    found = checkpoints.first_whole(from_primary("steps", checkpoints.steps()[::-1]), read)
    if found is None:
        return None
    if primary():
        checkpoints.set_aside_after(found[0])
    barrier("damaged checkpoints")
    return found[1]


def ends(phases: Sequence[Phase]) -> list[int]:
    """The last step of each phase, counted over all."""
    return list(itertools.accumulate(phase.steps for phase in phases))


class Log:
    """Counts steps, and writes metrics, pace and alarms to the log and the progress bar."""

    def __init__(
        self,
        records: Records,
        bar: "tqdm[Any]",
        recent: Sequence[StepRecord],
        step: int,
        unit: str = "mm",
    ):
        self.step = step
        # Unit of validation errors.
        self._unit = unit
        # Steps since the last line of the log.
        self.recent = list(recent)
        self._records, self._bar = records, bar

    def compiling(self, what: str) -> None:
        """Say on the bar that a program is being compiled, which takes seconds."""
        self._bar.set_description(f"compiling {what}")

    def begin(self, phase: Phase, batch: int) -> None:
        """Begin a phase, whose steps take `batch` cases each."""
        self._phase, self._batch = phase, batch
        # The only phase of a method is shown as "train", even if its name is "pretrain".
        self._bar.set_description("train" if phase.steps == self._bar.total else phase.name)
        # The bar's pace must not count the time of compiling.
        self._bar.unpause()
        # Records of this phase so far, and the alarm at the last of them.
        self._past: list[Mapping[str, Any]] = [
            r for r in self._records.past if r["kind"] == "train" and r["phase"] == phase.name
        ]
        self._alarm = phase.alarm(self._past) or "" if self._past else ""
        self._start_clock()

    def add(self, record: StepRecord) -> None:
        """Count one step; the device may still be computing it."""
        self.recent.append(record)
        self.step += 1
        self._bar.update()

    def check(self, cases: Sequence[PreparedCase] | None) -> None:
        """Wait for all steps; FloatingPointError where a metric of one is not finite.

        `cases` name the cases that steps have by number; None: cases of a stream have no names.
        """
        self.recent = fetched(self.recent)
        check_finite(self.recent, self._phase.name, self.step, cases)

    def line(self) -> None:
        """Write the means since the last line, and an alarm if there was none at the last line."""
        values = means(self.recent)
        rate = (self.step - self._since) * self._batch / (time.monotonic() - self._clock)
        self._records.write("train", self._phase.name, self.step, **values)
        self._records.write_speed(self._phase.name, self.step, rate)
        self._bar.set_postfix(loss=f"{values['loss']:.4g}", volumes_per_s=f"{rate:.2f}")
        self._past.append(values)
        alarm = self._phase.alarm(self._past) or ""
        if alarm and not self._alarm:
            self._bar.write(f"warning: step {self.step}: {alarm}")
            self._records.write("warning", self._phase.name, self.step, message=alarm)
        self._alarm = alarm
        self.recent = []
        self._start_clock()

    def validated(self, mre_mm: float | None) -> None:
        """Write the validation error, if there is one."""
        if mre_mm is not None:
            self._records.write("validation", self._phase.name, self.step, mre_mm=mre_mm)
            self._bar.write(f"step {self.step}: validation MRE {mre_mm:.3f} {self._unit}")
        self._start_clock()

    def _start_clock(self) -> None:
        self._clock, self._since = time.monotonic(), self.step


def check_continues(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], experiment: Experiment, where: Path
) -> None:
    """InputError where a checkpoint's `meta` has other landmarks, settings or data."""
    if saved["landmarks"] != wanted["landmarks"]:
        raise InputError(where, "is of other landmarks; use another --workdir")
    check_same(saved["config"], experiment, where)
    check_data(saved["data"], wanted["data"], where)


def validate(
    predictor: Predictor,
    variables: Variables,
    cases: Sequence[PreparedCase],
    decoder: str,
) -> float | None:
    """Mean radial error in scanner mm over all validation points; None without any."""
    if not cases:
        return None
    found = predictor(variables, (case.volume for case in cases))
    predicted = np.stack([result.landmarks_mm(decoder) for result in found])
    errors = radial_error_mm(
        np.stack([c.landmarks_mm for c in cases]), predicted, np.stack([c.present for c in cases])
    )
    return float(np.nanmean(errors))


def fetched(steps: Sequence[StepRecord]) -> list[StepRecord]:
    """The same steps with metrics on this host, all fetched at once."""
    metrics = jax.device_get([dict(step.metrics) for step in steps])
    return [
        StepRecord({name: float(value) for name, value in found.items()}, step.cases)
        for found, step in zip(metrics, steps, strict=True)
    ]


def means(steps: Sequence[StepRecord]) -> dict[str, float]:
    """The mean of each metric over some steps."""
    return {
        name: float(np.mean([step.metrics[name] for step in steps])) for name in steps[0].metrics
    }


def check_finite(
    steps: Sequence[StepRecord], phase: str, last: int, cases: Sequence[PreparedCase] | None
) -> None:
    """FloatingPointError that names the first bad step, its terms and its cases.

    `last` is the number of the last of the steps; for `cases` see `Log.check`.
    """
    for number, step in enumerate(steps, start=last - len(steps) + 1):
        bad = [name for name, value in step.metrics.items() if not math.isfinite(value)]
        if bad:
            names = ", ".join(f"{n} drawn" if cases is None else cases[n].name for n in step.cases)
            raise FloatingPointError(
                f"{', '.join(bad)} not finite in phase {phase} at step {number} (cases {names})"
            )


def check_parameters(variables: Variables, phase: str, step: int) -> None:
    """FloatingPointError where a parameter or statistic is not finite."""
    trees = {**variables.params, **variables.statistics}
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        if not np.isfinite(jax.device_get(leaf)).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise FloatingPointError(
                f"parameters {name} not finite in phase {phase} after step {step}"
            )
