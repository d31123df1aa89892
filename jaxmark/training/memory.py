"""What a step of training needs of a device's memory, before it is used."""

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

# Fields of methods whose smaller values need less.
_NARROWER = ("widths", "filters", "patch", "refine_widths")


def step_bytes(method: Method, phase: Phase, case: HostBatch, batch: int, mesh: Mesh) -> int:
    """What a step of a phase needs on each device at once, by the compiler's count.

    Weights, optimiser, batch and all between. It compiles the step and allocates nothing.

    Args:
      case: arrays of one case as `Phase.read` makes them, or their shapes.
      batch: cases of all devices together, which the devices divide.
    """
    return bytes_at_once(_lowered(method, phase, batch_shapes(case, batch), mesh).compile())


def step_demand(
    method: Method,
    phase: Phase,
    experiment: Experiment,
    cases: Sequence[PreparedCase],
    mesh: Mesh,
) -> Demand:
    """A phase's step on batches of these cases, or of those that the phase draws."""
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
    """Which other settings need less, of a method's settings dataclass, in words."""
    known = {field.name for field in dataclasses.fields(method)}
    fields = ["a smaller config.data.crop", "a larger config.data.spacing_mm"]
    # On a CPU, XLA merges what is computed again with the first time, and saves nothing.
    if platform != "cpu" and getattr(method, "remat", True) is False:
        fields.insert(0, "config.method.remat=True")
    fields += [f"smaller config.method.{name}" for name in _NARROWER if name in known]
    return f"{', '.join(fields[:-1])} or {fields[-1]} needs less"


def _lowered(method: Method, phase: Phase, batch: HostBatch, mesh: Mesh) -> jax.stages.Lowered:
    """The step on the shapes of a batch, as `loop` compiles it."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(method.init, key)
    return sharded_step(phase.step, mesh).lower(state, Batch(**batch), key)
