"""The training loop: any method, any number of devices, stopped and continued at will."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmark.config import Experiment, check_same, to_json
from jaxmark.core.metrics import radial_error_mm
from jaxmark.data.cases import PreparedCase
from jaxmark.data.pipeline import CASE, training_batches
from jaxmark.inference.predictor import Predictor, volumes
from jaxmark.methods.method import Batch, LandmarkSets, Method, Phase
from jaxmark.system.devices import put_batch
from jaxmark.system.errors import InputError
from jaxmark.system.interrupts import Interrupted
from jaxmark.system.processes import barrier, from_primary, primary, stops
from jaxmark.training.checkpoints import Checkpoints, Writer
from jaxmark.training.records import Records
from jaxmark.training.sharding import sharded_init, sharded_step


@dataclasses.dataclass(frozen=True)
class Taken:
    """What a step said (scalars by name), and which cases it saw."""

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

    `unpaired` are those of the method's task: a run must not go on with others.

    Raises:
      InputError: the batch does not divide over the devices; the newest checkpoint is of other
        landmarks, data or settings; all checkpoints are damaged.
      FloatingPointError: a loss or parameter is not finite.
      Interrupted: SIGTERM or SIGINT came; all steps so far are saved.
    """
    settings = experiment.train
    if settings.batch % mesh.size:
        raise InputError(
            "config.train.batch", f"{settings.batch} does not divide over {mesh.size} devices"
        )
    total = sum(phase.steps for phase in method.phases)
    key = jax.random.key(experiment.seed)
    abstract = jax.eval_shape(method.init, key)
    meta = {
        "schema_version": 2,
        "landmarks": list(landmarks),
        "config": to_json(experiment),
        "data": fingerprint(cases, unpaired),
    }
    checkpoints = Checkpoints(workdir)
    batches = training_batches(
        cases,
        batch=settings.batch,
        seed=experiment.seed,
        threads=settings.loader_threads,
        prefetch=settings.prefetch,
        process=jax.process_index(),
        processes=jax.process_count(),
    )

    def resume(step: int) -> tuple[Any, Any, list[Taken]]:
        saved = checkpoints.meta(step)
        check_continues(saved, meta, experiment, checkpoints.folder)
        state, iterator = checkpoints.state(step, abstract, mesh)
        recent = [Taken(t["metrics"], tuple(t["cases"])) for t in saved["recent"]]
        return state, iterator, recent

    # A run continues from its newest checkpoint; without one it starts from the seed.
    found = checkpoints.first_whole(from_primary("steps", checkpoints.steps()[::-1]), resume)
    if found is None:
        start, state = 0, sharded_init(method.init, mesh)(key)
        recent: list[Taken] = []
    else:
        start, (state, iterator, recent) = found
        if primary():
            checkpoints.set_aside_after(start)
        barrier("damaged checkpoints")
        batches.set_state(iterator)
        print(f"continuing at step {start} of {total}", flush=True)
    if start >= total:
        print(f"training is complete: {start} steps", flush=True)
        return

    writer = Writer(workdir, keep=settings.keep_checkpoints)
    records = Records(workdir, resume_step=start, tensorboard=settings.tensorboard, write=primary())
    predictor = Predictor(method, experiment, mesh)
    for line in method.notes(settings.batch):
        print(line, flush=True)
    bar = tqdm(
        total=total,
        initial=start,
        unit="step",
        dynamic_ncols=True,
        mininterval=1.0,
        disable=not primary(),
    )
    log = Log(records, bar, recent, settings.batch, start)
    try:
        with stops() as stops_after:
            for phase, last in zip(method.phases, ends(method.phases), strict=True):
                if log.step >= last:
                    continue
                log.begin(phase)
                step = sharded_step(phase.step, mesh)
                while log.step < last:
                    host = next(batches)
                    drawn = tuple(map(int, host.pop(CASE)))
                    state, metrics = step(state, Batch(**put_batch(mesh, host)), key)
                    log.took(Taken(metrics, drawn))
                    stop = stops_after(log.step)
                    due = log.step % settings.validate_every == 0 or log.step == last
                    if due or stop or log.step % settings.log_every == 0:
                        # Before every checkpoint too: what is not finite must not be saved.
                        log.check(cases)
                    if due or log.step % settings.log_every == 0:
                        log.line()
                    if due or stop:
                        check_parameters(state.params, phase.name, log.step)
                        # A run that has to stop has no time for this.
                        mre = (
                            validate(predictor, state.params, validation, experiment)
                            if due
                            else None
                        )
                        log.validated(mre)
                        # What the log says must be there when the checkpoint is.
                        records.sync()
                        # State and iterator are of the same moment: all batches so far, no more.
                        since = {"recent": [dataclasses.asdict(taken) for taken in log.recent]}
                        writer.save(state, batches.get_state(), {**meta, **since}, mre)
                    if stop:
                        raise Interrupted(stop)
    finally:
        bar.close()
        try:
            records.close()
        finally:
            writer.close()


def ends(phases: Sequence[Phase]) -> list[int]:
    """The last step of each phase, counted over all."""
    return list(accumulate(phase.steps for phase in phases))


class Log:
    """Counts steps, and says of them what people should know: in the log and on the bar."""

    def __init__(
        self, records: Records, bar: "tqdm[Any]", recent: Sequence[Taken], batch: int, step: int
    ):
        self.step = step
        # Those since the last line.
        self.recent = list(recent)
        self._records, self._bar, self._batch = records, bar, batch

    def begin(self, phase: Phase) -> None:
        """Steps are of this phase from now on."""
        self._phase = phase
        self._bar.set_description(phase.name)
        # Records of this phase so far, and what they alarmed of.
        self._past: list[Mapping[str, Any]] = [
            r for r in self._records.past if r["kind"] == "train" and r["phase"] == phase.name
        ]
        self._alarm = phase.alarm(self._past) or "" if self._past else ""
        self._start_clock()

    def took(self, taken: Taken) -> None:
        """One step; it may still be computing."""
        self.recent.append(taken)
        self.step += 1
        self._bar.update()

    def check(self, cases: Sequence[PreparedCase]) -> None:
        """Wait for all steps; FloatingPointError where one of them was not finite."""
        self.recent = fetched(self.recent)
        check_finite(self.recent, self._phase.name, self.step, cases)

    def line(self) -> None:
        """Means of the steps since the line before, and an alarm once when it begins."""
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
        """A validation error, if there is one."""
        if mre_mm is not None:
            self._records.write("validation", self._phase.name, self.step, mre_mm=mre_mm)
            self._bar.write(f"step {self.step}: validation MRE {mre_mm:.3f} mm")
        self._start_clock()

    def _start_clock(self) -> None:
        self._clock, self._since = time.monotonic(), self.step


def check_continues(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], experiment: Experiment, where: Path
) -> None:
    """InputError where a checkpoint's `meta` is of other landmarks, settings or data."""
    if saved["landmarks"] != wanted["landmarks"]:
        raise InputError(where, "is of other landmarks; use another --workdir")
    check_same(saved["config"], experiment, where)
    for what, value in wanted["data"].items():
        if saved["data"][what] != value:
            raise InputError(
                where, f"is of other {what} than those that are there now; use another --workdir"
            )


def fingerprint(cases: Sequence[PreparedCase], unpaired: LandmarkSets | None) -> dict[str, str]:
    """What is learned from -> a digest: names and landmarks, to a thousandth of a millimetre.

    Of where files lie and when they were written it knows nothing.
    """
    training, others = hashlib.sha256(), hashlib.sha256()
    for case in cases:
        training.update(case.name.encode())
        for numbers in (case.landmarks_mm, case.ijk_to_lps):
            # Minus zero is zero.
            training.update((np.round(np.nan_to_num(numbers), 3) + 0.0).tobytes())
        training.update(case.present.tobytes() + case.absent.tobytes())
    if unpaired is not None:
        others.update((np.round(unpaired.landmarks_ijk, 3) + 0.0).tobytes())
        others.update(unpaired.present.tobytes())
    return {"training cases": training.hexdigest(), "unpaired landmarks": others.hexdigest()}


def validate(
    predictor: Predictor,
    params: Any,
    cases: Sequence[PreparedCase],
    experiment: Experiment,
) -> float | None:
    """Mean radial error in scanner mm over all validation points; None without any."""
    if not cases:
        return None
    decoder = experiment.predict.decoder
    found = predictor(params, volumes(cases))
    predicted = np.stack([result.landmarks_mm(decoder) for result in found])
    errors = radial_error_mm(
        np.stack([c.landmarks_mm for c in cases]), predicted, np.stack([c.present for c in cases])
    )
    return float(np.nanmean(errors))


def fetched(steps: Sequence[Taken]) -> list[Taken]:
    """The same steps with numbers of this host, all fetched at once."""
    metrics = jax.device_get([dict(step.metrics) for step in steps])
    return [
        Taken({name: float(value) for name, value in found.items()}, step.cases)
        for found, step in zip(metrics, steps, strict=True)
    ]


def means(steps: Sequence[Taken]) -> dict[str, float]:
    """The mean of each metric over some steps."""
    return {
        name: float(np.mean([step.metrics[name] for step in steps])) for name in steps[0].metrics
    }


def check_finite(
    steps: Sequence[Taken], phase: str, last: int, cases: Sequence[PreparedCase]
) -> None:
    """FloatingPointError that names the first bad step, its terms and its cases.

    `last` is the number of the last of the steps.
    """
    for number, step in enumerate(steps, start=last - len(steps) + 1):
        bad = [name for name, value in step.metrics.items() if not math.isfinite(value)]
        if bad:
            names = ", ".join(cases[case].name for case in step.cases)
            raise FloatingPointError(
                f"{', '.join(bad)} not finite in phase {phase} at step {number} (cases {names})"
            )


def check_parameters(params: Any, phase: str, step: int) -> None:
    """FloatingPointError where a parameter is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(jax.device_get(leaf)).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise FloatingPointError(
                f"parameters {name} not finite in phase {phase} after step {step}"
            )
