"""What a method is: all that the training loop, prediction and reports know of one.

A module of this package is one paper: a settings dataclass with a function `build(task) -> Method`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from jaxmark.config import Augment

Params = Mapping[str, Any]
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class LandmarkSets:
    """Landmarks of people without images, in the volumes of those with."""

    landmarks_ijk: np.ndarray  # (U, K, 3) float32 in voxels of a volume with its margin; 0: absent
    present: np.ndarray  # (U, K) bool


@dataclasses.dataclass(frozen=True)
class Task:
    """What a method has to find, and in what volumes. Shapes in voxels, (X, Y, Z)."""

    landmarks: tuple[str, ...]
    crop: tuple[int, int, int]
    margin: int
    spacing_mm: tuple[float, float, float]
    augment: Augment
    # Arithmetic of the networks; parameters, losses and decoding are always float32.
    dtype: DTypeLike = jnp.float32
    # Share of the landmarks whose state is known that are there, in the training cases.
    presence: float = 0.5
    # Another cohort's landmarks, for methods that learn from them.
    unpaired: LandmarkSets | None = None


@struct.dataclass
class Batch:
    """Volumes with their margin, as they come from the host."""

    image: Array  # (B, X + 2 margin, Y + 2 margin, Z + 2 margin, 1) float16
    landmarks_ijk: Array  # (B, K, 3) float32 in voxels of `image`; 0 where not present
    present: Array  # (B, K) bool: annotated
    absent: Array  # (B, K) bool: known not to be there; of others nothing is known


@struct.dataclass
class State:
    """Everything that training changes, for all networks of a method."""

    step: Array  # () int32: steps taken over all phases
    params: dict[str, Any]  # network name -> parameters
    optimizer: dict[str, Any]  # network name -> state of its optimiser


@struct.dataclass
class Prediction:
    """Positions in voxels of the crop, by both decoders."""

    argmax_ijk: Array  # (B, K, 3): the papers' decoder
    subvoxel_ijk: Array  # (B, K, 3)
    score: Array  # (B, K): peak of the heatmap, near 1 for a certain landmark
    evidence: Array  # (B, K): how much speaks for presence; calibrated later, on validation cases


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training. `step(state, batch, key)` is pure; the loop jits and shards it.

    Its metrics are scalars; `loss` is one of them. `alarm` looks at the records of the phase so
    far, means of the metrics since the record before, and says what a person should know, if
    anything.
    """

    name: str
    steps: int
    step: Callable[[State, Batch, Array], tuple[State, Metrics]]
    alarm: Callable[[Sequence[Mapping[str, float]]], str | None] = lambda records: None


@dataclasses.dataclass(frozen=True)
class Method:
    """`predict(params, image)` takes volumes of the crop's shape, `(B, X, Y, Z, 1)`.

    `notes(batch)` are lines that a person should read before training with such a batch starts.
    `learned(params)` are numbers (K,) that the method has learned of each landmark, by a name that
    ends in their unit.
    """

    init: Callable[[Array], State]
    phases: tuple[Phase, ...]
    predict: Callable[[Params, Array], Prediction]
    notes: Callable[[int], Sequence[str]] = lambda batch: ()
    learned: Callable[[Params], Mapping[str, Array]] = lambda params: {}


class Settings(Protocol):
    """The settings dataclass of a method, the `method` field of an experiment."""

    @property
    def needs_unpaired(self) -> bool:
        """Whether training needs `Task.unpaired`; prediction never does."""
        ...

    def build(self, task: Task) -> Method:
        """The method for this task; InputError where settings and task don't fit."""
        ...
