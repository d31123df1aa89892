"""The training loop: any method, any number of devices, stopped and continued at will."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxmark.config import Experiment, check_same, to_json
from jaxmark.core.errors import InputError
from jaxmark.core.metrics import radial_error_mm
from jaxmark.data.cases import PreparedCase
from jaxmark.data.pipeline import training_batches
from jaxmark.methods.method import Batch, Method, Metrics
from jaxmark.training.checkpoints import Checkpoints
from jaxmark.training.inference import Predictor, volumes
from jaxmark.training.processes import from_primary, primary
from jaxmark.training.records import Records
from jaxmark.training.sharding import put_batch, sharded_init, sharded_step


def train(
    method: Method,
    experiment: Experiment,
    *,
    cases: Sequence[PreparedCase],
    validation: Sequence[PreparedCase],
    landmarks: Sequence[str],
    workdir: Path,
    mesh: Mesh,
) -> None:
    """Train through all phases, or continue from the newest checkpoint; returns when all is saved.

    Raises:
      InputError: the batch does not divide over the devices; the newest checkpoint is of other
        landmarks, data or settings.
      FloatingPointError: the loss is not finite.
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
        "schema_version": 1,
        "landmarks": list(landmarks),
        "config": to_json(experiment),
    }
    checkpoints = Checkpoints(workdir, keep=settings.keep_checkpoints)
    batches = training_batches(
        cases,
        batch=settings.batch,
        seed=experiment.seed,
        threads=settings.loader_threads,
        prefetch=settings.prefetch,
        process=jax.process_index(),
        processes=jax.process_count(),
    )

    # A run continues from its newest checkpoint; without one it starts from the seed.
    latest = from_primary("latest step", checkpoints.latest_step())
    if latest is None:
        state = sharded_init(method.init, mesh)(key)
        start = 0
    else:
        saved = checkpoints.meta(latest)
        if saved["landmarks"] != meta["landmarks"]:
            raise InputError(checkpoints.folder, "is of other landmarks; use another --workdir")
        check_same(saved["config"], experiment, checkpoints.folder)
        state, iterator = checkpoints.restore(latest, abstract, mesh)
        batches.set_state(iterator)
        start = latest
        print(f"continuing at step {start} of {total}", flush=True)
    if start >= total:
        print(f"training is complete: {start} steps", flush=True)
        checkpoints.close()
        return

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
    step_number = start
    first = 0
    try:
        for phase in method.phases:
            last = first + phase.steps
            if step_number >= last:
                first = last
                continue
            step = sharded_step(phase.step, mesh)
            bar.set_description(phase.name)
            past = [r for r in records.past if r["kind"] == "train" and r["phase"] == phase.name]
            alarmed = phase.alarm(past) or "" if past else ""
            clock, recent = time.monotonic(), []
            while step_number < last:
                batch = Batch(**put_batch(mesh, next(batches)))
                state, metrics = step(state, batch, key)
                recent.append(metrics)
                step_number += 1
                bar.update()
                due = step_number % settings.validate_every == 0 or step_number == last
                if due or step_number % settings.log_every == 0:
                    # Before every checkpoint too: what is not finite must not be saved.
                    values = means(recent)
                    check_finite(values, phase.name, step_number)
                    rate = len(recent) * settings.batch / (time.monotonic() - clock)
                    records.write("train", phase.name, step_number, **values, volumes_per_s=rate)
                    bar.set_postfix(loss=f"{values['loss']:.4g}", volumes_per_s=f"{rate:.2f}")
                    past.append(values)
                    alarm = phase.alarm(past) or ""
                    if alarm and not alarmed:
                        bar.write(f"warning: step {step_number}: {alarm}")
                        records.write("warning", phase.name, step_number, message=alarm)
                    alarmed = alarm
                    clock, recent = time.monotonic(), []
                if due:
                    mre = validate(predictor, state.params, validation, experiment)
                    if mre is not None:
                        records.write("validation", phase.name, step_number, mre_mm=mre)
                        bar.write(f"step {step_number}: validation MRE {mre:.3f} mm")
                    # State and iterator are of the same moment: all batches so far, no more.
                    checkpoints.save(state, batches.get_state(), meta, mre)
                    clock = time.monotonic()
            first = last
    finally:
        bar.close()
        records.close()
        checkpoints.close()


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


def means(metrics: Sequence[Metrics]) -> dict[str, float]:
    """The mean of each metric over some steps, all fetched at once."""
    fetched = jax.device_get(metrics)
    return {name: float(np.mean([step[name] for step in fetched])) for name in fetched[0]}


def check_finite(values: dict[str, float], phase: str, step: int) -> None:
    """FloatingPointError that names the term, phase and step."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(f"{', '.join(bad)} not finite in phase {phase} at step {step}")
