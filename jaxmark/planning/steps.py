"""What a step of training takes on this device: seconds and bytes, of blank cases.

Nothing has to be prepared for it.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmark.config import Experiment
from jaxmark.core import native
from jaxmark.core.anatomy import scheme_of
from jaxmark.data.cases import PreparedCase
from jaxmark.data.prepare import prepared_shape
from jaxmark.methods.method import Batch, Phase
from jaxmark.system.devices import put_batch
from jaxmark.system.memory import bytes_at_once
from jaxmark.training.sharding import sharded_init, sharded_step
from jaxmark.training.streams import batch_size
from jaxmark.workflow import task_of

# Warm steps that are timed, and the seconds after which no further one is.
_TIMED, _MOST_S = 4, 6.0


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of a phase's step."""

    phase: str
    batch: int
    seconds: float
    bytes: int  # all that it needs at once, by the compiler's count


@dataclasses.dataclass(frozen=True)
class _Blank(PreparedCase):
    """A prepared case without a file: all 0, its landmarks in the middle."""

    voxels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((1, 1, 1)))

    def image(self, *, mapped: bool = False) -> np.ndarray:
        return self.voxels

    @classmethod
    def of(cls, experiment: Experiment, landmarks: int) -> "_Blank":
        shape = prepared_shape(experiment.data)
        middle = (np.array(shape) - 1) / 2 * experiment.data.spacing_mm
        return cls(
            name="blank",
            folder=Path(),
            ijk_to_lps=np.diag([*experiment.data.spacing_mm, 1.0]),
            landmarks_mm=np.tile(middle, (landmarks, 1)),
            present=np.ones(landmarks, bool),
            absent=np.zeros(landmarks, bool),
            voxels=np.zeros(shape, np.float16),
        )


def step_costs(experiment: Experiment, landmarks: tuple[str, ...], mesh: Mesh) -> list[StepCost]:
    """Of each phase of the experiment's method; it takes the time of compiling them.

    Raises:
      InputError: settings that do not fit each other.
      jax.errors.JaxRuntimeError: a step does not fit into the device's memory.
    """
    native.use(mesh)
    method = experiment.method.build(task_of(experiment, scheme_of(landmarks), mesh))
    state = sharded_init(method.init, mesh)(jax.random.key(0))
    case = _Blank.of(experiment, len(landmarks))
    return [_cost(phase, state, case, experiment, mesh) for phase in method.phases]


def _cost(phase: Phase, state: Any, case: _Blank, experiment: Experiment, mesh: Mesh) -> StepCost:
    size = batch_size(phase, experiment.train)
    one = phase.read(case, np.random.default_rng(0))
    host = jax.tree.map(lambda x: np.stack([x] * size), dict(one))
    batch, key = Batch(**put_batch(mesh, host)), jax.random.key(0)
    step = sharded_step(phase.step, mesh).lower(state, batch, key).compile()
    # The state is donated; the others' must stay.
    own = jax.tree.map(lambda x: x.copy(), state)
    seconds: list[float] = []
    while len(seconds) <= _TIMED and sum(seconds) < _MOST_S:
        begin = time.perf_counter()
        own, _ = jax.block_until_ready(step(own, batch, key))
        seconds.append(time.perf_counter() - begin)
    warm = seconds[1:] or seconds
    return StepCost(phase.name, size, float(np.median(warm)), bytes_at_once(step))
