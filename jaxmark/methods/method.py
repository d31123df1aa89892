"""The interface of a method: training, inference and reports use nothing else of it.

Each module of a method implements one paper: a settings dataclass whose `build(task)` returns the
`Method`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from jaxmark.bounds import Problem
from jaxmark.config import Augment
from jaxmark.core.anatomy import Scheme
from jaxmark.core.slabs import slab_voxels
from jaxmark.data.cases import HostBatch, PreparedCase, Volume, read_case
from jaxmark.data.chunks import Chunks

Params = Mapping[str, Any]
Metrics = dict[str, Array]

# The kind of a logged number; it decides how curves are drawn.
LOSS, SHARE, GRADIENT, LENGTH_MM = "loss", "share", "gradient", "length_mm"

# What a method may need of a cohort beside images and landmarks; see `Settings.needs`.
UNPAIRED = "unpaired"  # another cohort's landmarks, `Task.unpaired`
SEGMENTS = "segments"  # which segments each case has, `Batch.targets`
LABEL_MAPS = "label_maps"  # a label of every voxel; implies SEGMENTS
SHAPE = "shape"  # the typical shape of the landmarks, `Task.shape_mm`
# `Chunks` is a need, too: prepared images that are read in parts.
Need = str | Chunks

# Names in `Batch.targets`.
SEGMENTATION = "segmentation"  # (B, X, Y, Z) uint8: 0, or 1 + index of the segment
SEGMENTS_PRESENT = "segments_present"  # (B, S) bool
SEGMENTS_ABSENT = "segments_absent"  # (B, S) bool: known to be missing
# `core.tissues.TARGET` is a name, too: (B, X, Y, Z) uint8, from which images are drawn, see
# `config.Appearance`.

# Probability that arteries fork at a landmark: a name in `Prediction.probabilities`.
FORKS = "forks"

# What a method may predict beside landmarks; see `Method.tells`.
TOLD = frozenset({SEGMENTATION, SEGMENTS_PRESENT, FORKS})

# The kind of a target of a batch; it decides how the target moves with the image.
LABELS = "labels"  # (B, X, Y, Z) uint8: 0, or 1 + index of the segment
BY_SEGMENT = "by_segment"  # (B, S): one value for each segment
BY_LANDMARK = "by_landmark"  # (B, K): one value for each landmark


@dataclasses.dataclass(frozen=True)
class LandmarkSets:
    """Landmarks of people without images, in the grid of the prepared volumes."""

    landmarks_ijk: np.ndarray  # (U, K, 3) float32 in voxels of a volume with its margin; 0: absent
    present: np.ndarray  # (U, K) bool


@dataclasses.dataclass(frozen=True)
class Task:
    """Which landmarks to find, in which volumes, on which devices. Shapes are voxels (X, Y, Z)."""

    scheme: Scheme
    crop: tuple[int, int, int]
    margin: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    augment: Augment
    # JAX's name of the devices that compute: "cpu", "gpu" or "tpu"; "onnx" where JAX does not.
    platform: str = "cpu"
    # Arithmetic of the networks; parameters, losses and decoding are always float32.
    dtype: DTypeLike = jnp.float32
    # In the training cases: share of present landmarks among those known as present or absent.
    presence: float = 0.5
    # Another cohort's landmarks, for methods that learn from them.
    unpaired: LandmarkSets | None = None
    # (K, 3) the landmarks' typical shape, its bounding box around 0; for methods that need it.
    shape_mm: np.ndarray | None = None
    # For training on a stream: makes a phase's `draw`, as `CirclePhantom.drawing` does. A phase
    # without a `draw` gets one for volumes of the prepared shape.
    drawing: Callable[..., Callable[[int], HostBatch]] | None = None
    # What `Batch.targets` holds: name -> LABELS, BY_SEGMENT or BY_LANDMARK.
    targets: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def landmarks(self) -> tuple[str, ...]:
        """Names, in the order of every array of landmarks."""
        return self.scheme.landmarks

    @property
    def planar(self) -> bool:
        """Whether volumes are pictures, one voxel along Z; networks are 2-D then."""
        return self.crop[2] == 1

    @property
    def axes(self) -> int:
        """Axes of a network's input: 3, or 2 for pictures."""
        return 2 if self.planar else 3

    def squeezed(self, volumes: Array) -> Array:
        """Volumes (B, X, Y, Z, C) as a network's input; pictures become (B, X, Y, C)."""
        return volumes[:, :, :, 0] if self.planar else volumes

    def restored(self, output: Array) -> Array:
        """A network's output with the axis Z that `squeezed` removed."""
        return output[:, :, :, None] if self.planar else output

    def coarser(self, factor: int) -> "Task":
        """The same task on voxels `factor` times as long; `factor` divides crop and margins."""
        moves = self.augment.translation_voxels // factor
        (x, y, z), (a, b, c), (dx, dy, dz) = self.crop, self.margin, self.spacing_mm
        return dataclasses.replace(
            self,
            crop=(x // factor, y // factor, z // factor),
            margin=(a // factor, b // factor, c // factor),
            spacing_mm=(dx * factor, dy * factor, dz * factor),
            augment=dataclasses.replace(self.augment, translation_voxels=moves),
        )

    @property
    def slab_voxels(self) -> int:
        """About how many voxels become heatmaps at a time; see `core.slabs`."""
        return slab_voxels(self.platform)


@struct.dataclass
class Batch:
    """Volumes with their margin, as they come from the host; or random views of them."""

    # (B, X + 2 margin, Y + 2 margin, Z + 2 margin, 1) float16; a view has the crop's shape. Where
    # appearance is drawn: the share of each voxel that lies in arteries, uint8 (255: all) or float.
    image: Array
    landmarks_ijk: Array  # (B, K, 3) float32 in voxels of `image`; 0 where not present
    present: Array  # (B, K) bool: annotated
    absent: Array  # (B, K) bool: known to be absent; neither present nor absent: unknown
    targets: Mapping[str, Array] = struct.field(default_factory=dict)  # see `Task.targets`


@struct.dataclass
class Variables:
    """The part of a trained state that prediction needs."""

    params: dict[str, Any]
    statistics: dict[str, Any] = struct.field(default_factory=dict)


@struct.dataclass
class State:
    """Everything that training changes, for all networks of a method."""

    step: Array  # () int32: steps taken over all phases
    params: dict[str, Any]  # network name -> parameters
    optimizer: dict[str, Any]  # network name -> state of its optimiser
    # What is learned without a gradient, such as a batch normalisation's running means.
    statistics: dict[str, Any] = struct.field(default_factory=dict)

    @property
    def variables(self) -> Variables:
        """What prediction needs."""
        return Variables(params=self.params, statistics=self.statistics)


@struct.dataclass
class Prediction:
    """The output of a stage for a batch of volumes; on the host for one volume, without axis B.

    Positions and maps are in voxels of the stage's input; `Stage.finish` converts them to voxels of
    the prepared volume. `Method.tells` names the maps and probabilities that a method predicts: the
    map SEGMENTATION, uint8, and the probabilities SEGMENTS_PRESENT (B, S) and FORKS (B, K).
    """

    positions_ijk: dict[str, Array]  # decoder -> (B, K, 3)
    score: Array  # (B, K): peak of the heatmap, near 1 for a certain landmark
    evidence: Array  # (B, K): larger for a present landmark; calibrated on validation cases
    maps: dict[str, Array] = struct.field(default_factory=dict)  # (B, X, Y, Z) by name
    probabilities: dict[str, Array] = struct.field(default_factory=dict)  # (B, N) by name
    # (B, K): spread of the heatmap around the position, in mm of the volume; None: the method has
    # none. The calibrated radius grows with it.
    spread_mm: Array | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of training: `steps` calls of one `step`.

    `step(state, batch, key)` is pure; the loop jits and shards it. Its metrics are scalars, `loss`
    among them. `read(case, rng)` makes one case's part of a `Batch`. Phases with the same `read`
    and batch size continue one order of cases. `draw(number)`, if given, makes a synthetic case;
    the phase trains on such cases alone, see `data.stream`. `alarm(records)` gets the log of the
    phase so far, each record the means of the metrics since the last one; it returns a warning or
    None.
    """

    name: str
    steps: int
    step: Callable[[State, Batch, Array], tuple[State, Metrics]]
    alarm: Callable[[Sequence[Mapping[str, float]]], str | None] = lambda records: None
    read: Callable[[PreparedCase, np.random.Generator], HostBatch] = read_case
    batch: int | None = None  # None: `config.train.batch`
    batch_field: str = "config.train.batch"  # that sets it
    draw: Callable[[int], HostBatch] | None = None


def read_image(volume: Volume, earlier: Prediction | None) -> HostBatch:
    """The whole prepared image as a stage's input."""
    return {"image": volume.image()[..., None]}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One network of a prediction, with the host's work before and after it.

    `read(volume, earlier)` makes one volume's arrays on the host; `earlier` is the prediction of
    the stage before. `run(variables, arrays)` is pure, gets batches of these arrays, and is jitted
    and sharded. `finish(prediction)` converts one volume's prediction on the host.
    """

    run: Callable[[Variables, Mapping[str, Array]], Prediction]
    read: Callable[[Volume, Prediction | None], HostBatch] = read_image
    finish: Callable[[Prediction], Prediction] = lambda prediction: prediction


def whole_volume_stage(
    task: Task, predict: Callable[[Variables, Array], Prediction]
) -> tuple[Stage]:
    """The single stage of a method whose network gets the whole crop, (B, X, Y, Z, 1)."""
    x, y, z = (slice(m, -m or None) for m in task.margin)

    def run(variables: Variables, arrays: Mapping[str, Array]) -> Prediction:
        return predict(variables, arrays["image"][:, x, y, z].astype(jnp.float32))

    def finish(found: Prediction) -> Prediction:
        margin = np.array(task.margin, np.float32)
        moved = {name: ijk + margin for name, ijk in found.positions_ijk.items()}
        border = [(m, m) for m in task.margin]
        maps = {name: np.pad(values, border) for name, values in found.maps.items()}
        return found.replace(positions_ijk=moved, maps=maps)  # type: ignore[attr-defined]

    return (Stage(run, finish=finish),)


@dataclasses.dataclass(frozen=True)
class Method:
    """How a state is made, trained and used.

    `tells`: what predictions hold beside landmarks, a subset of `TOLD`. `notes(batch)`: lines to
    print before training with `batch` cases a step. `learned(params)`: name -> (K,) one learned
    number for each landmark; the name ends in the unit.
    """

    init: Callable[[Array], State]
    phases: tuple[Phase, ...]
    stages: tuple[Stage, ...]
    tells: frozenset[str] = frozenset()
    notes: Callable[[int], Sequence[str]] = lambda batch: ()
    learned: Callable[[Params], Mapping[str, Array]] = lambda params: {}


def chunks_of(needs: frozenset[Need]) -> Chunks | None:
    """How prepared images are stored for a method with these needs; None: each in one array."""
    return next((need for need in needs if isinstance(need, Chunks)), None)


class Settings(Protocol):
    """The settings dataclass of a method, the `method` field of an experiment."""

    # Ways from heatmaps to positions; the names in `Prediction.positions_ijk`.
    decoders: ClassVar[tuple[str, ...]]
    # Metric -> LOSS, SHARE, GRADIENT or LENGTH_MM; metrics without a kind are not drawn.
    metrics: ClassVar[Mapping[str, str]]

    @property
    def needs(self) -> frozenset[Need]:
        """What the method needs of a cohort: UNPAIRED, SEGMENTS, LABEL_MAPS, SHAPE or `Chunks`.

        Prediction needs `Chunks` alone.
        """
        ...

    def misfits(self, task: Task) -> Iterable[Problem]:
        """Each field that does not fit the task, with the reason."""
        ...

    def build(self, task: Task) -> Method:
        """The method for this task; InputError where settings and task don't fit."""
        ...
