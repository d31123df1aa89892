"""The memory of a device that a training step needs, counted before it runs."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmark.config import Experiment
from jaxmark.data.cases import HostBatch, PreparedCase
from jaxmark.methods.method import Batch, Method, Phase
from jaxmark.system.devices import platform
from jaxmark.system.memory import Demand, batch_shapes, bytes_at_once
from jaxmark.training.sharding import sharded_step
from jaxmark.training.streams import batch_size

# Fields of methods that reduce the memory when they are smaller.
_SIZE_FIELDS = ("widths", "filters", "patch", "refine_widths")


def step_bytes(method: Method, phase: Phase, case: HostBatch, batch: int, mesh: Mesh) -> int:
    """Bytes that a phase's step needs on each device at once, by the compiler's count.

    They hold weights, optimiser, batch and activations. The step is compiled; nothing is allocated.

    Args:
      case: arrays of one case as `Phase.read` makes them, or their shapes.
      batch: cases of all devices together; the number of devices divides it.
    """
    return bytes_at_once(_lowered(method, phase, batch_shapes(case, batch), mesh).compile())


def step_demand(
    method: Method,
    phase: Phase,
    experiment: Experiment,
    cases: Sequence[PreparedCase],
    mesh: Mesh,
) -> Demand:
    """The demand of a phase's step on batches of these cases, or of cases that the phase draws."""
    return Demand(
        field=phase.batch_field,
        batch=batch_size(phase, experiment.train),
        what="a step",
        case=functools.cache(lambda: case_shapes(phase, cases[0])),
        program=lambda batch: _lowered(method, phase, batch, mesh),
        mesh=mesh,
        less=needs_less(experiment.method, platform(mesh)),
    )


def case_shapes(phase: Phase, case: PreparedCase) -> HostBatch:
    """The shapes of one case's part of a batch; the case is read, or one is drawn."""
    rng = np.random.default_rng(0)
    arrays = phase.read(case, rng) if phase.draw is None else phase.draw(0)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), arrays)


def needs_less(method: Any, platform: str) -> str:
    """A phrase that names the other settings that reduce the memory of a method."""
    known = {field.name for field in dataclasses.fields(method)}
    fields = ["a smaller config.data.crop", "a larger config.data.spacing_mm"]
    # On a CPU, XLA merges the second computation of `remat` with the first, and saves nothing.
    if platform != "cpu" and getattr(method, "remat", True) is False:
        fields.insert(0, "config.method.remat=True")
    fields += [f"smaller config.method.{name}" for name in _SIZE_FIELDS if name in known]
    return f"{', '.join(fields[:-1])} or {fields[-1]} needs less"


def _lowered(method: Method, phase: Phase, batch: HostBatch, mesh: Mesh) -> jax.stages.Lowered:
    """The step lowered for the shapes of a batch, as `loop` compiles it."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(method.init, key)
    return sharded_step(phase.step, mesh).lower(state, Batch(**batch), key)
