"""What a method is: all that training, inference and reports know of one.

A module of this package is one paper: a settings dataclass with a function `build(task) -> Method`.
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

# What a logged number is, which decides how it is drawn.
LOSS, SHARE, GRADIENT, LENGTH_MM = "loss", "share", "gradient", "length_mm"

# What a method may need of a cohort beside images and landmarks; see `Settings.needs`.
UNPAIRED = "unpaired"  # another cohort's landmarks, `Task.unpaired`
SEGMENTS = "segments"  # which segments each case has, `Batch.targets`
LABEL_MAPS = "label_maps"  # where they are: implies SEGMENTS
SHAPE = "shape"  # the typical shape of its landmarks, `Task.shape_mm`
# `Chunks` may be among them, too: prepared images that are read in parts.
Need = str | Chunks

# Names in `Batch.targets`.
SEGMENTATION = "segmentation"  # (B, X, Y, Z) uint8: 0, or 1 + index of the segment
SEGMENTS_PRESENT = "segments_present"  # (B, S) bool
SEGMENTS_ABSENT = "segments_absent"  # (B, S) bool: known not to be there; else nothing is known
# What images are drawn from, see `config.Appearance`: (B, X, Y, Z) uint8, `core.tissues`.

# Probability that arteries fork at a landmark: a name in `Prediction.probabilities`.
FORKS = "forks"

# All that a method may tell of segments; see `Method.tells`.
TOLD = frozenset({SEGMENTATION, SEGMENTS_PRESENT, FORKS})

# What a target of a batch is, which decides how it moves with the image.
LABELS = "labels"  # (B, X, Y, Z) uint8: 0, or 1 + index of the segment
BY_SEGMENT = "by_segment"  # (B, S): a value of each segment
BY_LANDMARK = "by_landmark"  # (B, K): a value of each landmark


@dataclasses.dataclass(frozen=True)
class LandmarkSets:
    """Landmarks of people without images, in the volumes of those with."""

    landmarks_ijk: np.ndarray  # (U, K, 3) float32 in voxels of a volume with its margin; 0: absent
    present: np.ndarray  # (U, K) bool


@dataclasses.dataclass(frozen=True)
class Task:
    """What a method has to find, in what volumes, on what devices. Shapes are voxels (X, Y, Z)."""

    scheme: Scheme
    crop: tuple[int, int, int]
    margin: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    augment: Augment
    # JAX's name of the devices that compute: "cpu", "gpu" or "tpu"; "onnx" where JAX does not.
    platform: str = "cpu"
    # Arithmetic of the networks; parameters, losses and decoding are always float32.
    dtype: DTypeLike = jnp.float32
    # Share of the landmarks whose state is known that are there, in the training cases.
    presence: float = 0.5
    # Another cohort's landmarks, for methods that learn from them.
    unpaired: LandmarkSets | None = None
    # (K, 3) the landmarks' typical shape, its bounding box around 0; for methods that need it.
    shape_mm: np.ndarray | None = None
    # Where training is on a stream: makes a phase's `draw`, as `CirclePhantom.drawing` does. Phases
    # without one of their own get that of the prepared volumes' shape.
    drawing: Callable[..., Callable[[int], HostBatch]] | None = None
    # What `Batch.targets` holds: name -> LABELS, BY_SEGMENT or BY_LANDMARK.
    targets: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def landmarks(self) -> tuple[str, ...]:
        """Names, in the order of every array of landmarks."""
        return self.scheme.landmarks

    @property
    def planar(self) -> bool:
        """Whether volumes are pictures, one voxel along Z: then networks are 2-D."""
        return self.crop[2] == 1

    @property
    def axes(self) -> int:
        """Axes that a network sees: 3, or 2 of pictures."""
        return 2 if self.planar else 3

    def squeezed(self, volumes: Array) -> Array:
        """Volumes (B, X, Y, Z, C) as networks take them: pictures are (B, X, Y, C) there."""
        return volumes[:, :, :, 0] if self.planar else volumes

    def restored(self, made: Array) -> Array:
        """The inverse of `squeezed`, of what a network made."""
        return made[:, :, :, None] if self.planar else made

    def coarser(self, factor: int) -> "Task":
        """The same on voxels `factor` times as long, which divide the crop and the margins."""
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
        """Voxels, about, that are made into heatmaps at a time: see `core.slabs`."""
        return slab_voxels(self.platform)


@struct.dataclass
class Batch:
    """Volumes with their margin, as they come from the host; or random views of them."""

    # (B, X + 2 margin, Y + 2 margin, Z + 2 margin, 1) float16; a view: the crop. Where appearance
    # is drawn: the share of each voxel that lies in arteries, uint8 of which 255 is all, or float.
    image: Array
    landmarks_ijk: Array  # (B, K, 3) float32 in voxels of `image`; 0 where not present
    present: Array  # (B, K) bool: annotated
    absent: Array  # (B, K) bool: known not to be there; of others nothing is known
    targets: Mapping[str, Array] = struct.field(default_factory=dict)  # see `Task.targets`


@struct.dataclass
class Variables:
    """All that prediction needs of a trained state."""

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
    """What a stage says of a batch of volumes; on the host, of one: without the first axis.

    Positions and maps are in voxels of the stage's volumes, and after `Stage.finish` of the
    prepared ones. `Method.tells` names those maps and probabilities that are there: the map
    SEGMENTATION, uint8, and the probabilities SEGMENTS_PRESENT (B, S) and FORKS (B, K).
    """

    positions_ijk: dict[str, Array]  # decoder -> (B, K, 3)
    score: Array  # (B, K): peak of the heatmap, near 1 for a certain landmark
    evidence: Array  # (B, K): how much speaks for presence; calibrated later, on validation cases
    maps: dict[str, Array] = struct.field(default_factory=dict)  # (B, X, Y, Z) by name
    probabilities: dict[str, Array] = struct.field(default_factory=dict)  # (B, N) by name
    # (B, K): how far the heatmap lies about the position, in mm of the volume; None: the method
    # does not tell. Calibrated later: where it is larger, so is the radius.
    spread_mm: Array | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training. `step(state, batch, key)` is pure; the loop jits and shards it.

    Its metrics are scalars; `loss` is one of them. `read(case, rng)` makes one case's part of a
    `Batch`; phases that read alike, in batches of one size, go on with each other's order of cases.
    `draw(number)`, where there is one, makes an endless supply of synthetic cases, which the phase
    sees instead; see `data.stream`. `alarm` looks at the records of the phase so far, means of the
    metrics since the record before, and returns a line for the user, if there is reason for one.
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
    """The whole prepared image, for a stage that begins with it."""
    return {"image": volume.image()[..., None]}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A network's part of prediction, with what the host does before and after it.

    `read(volume, earlier)` makes one volume's arrays, `earlier` being what the stage before said of
    it; `run(variables, arrays)` is pure, takes them in batches, and is jitted and sharded;
    `finish(prediction)` gets one volume's part on the host.
    """

    run: Callable[[Variables, Mapping[str, Array]], Prediction]
    read: Callable[[Volume, Prediction | None], HostBatch] = read_image
    finish: Callable[[Prediction], Prediction] = lambda prediction: prediction


def whole_volume_stage(
    task: Task, predict: Callable[[Variables, Array], Prediction]
) -> tuple[Stage]:
    """The only stage of a method that looks at the crop, (B, X, Y, Z, 1), as a whole."""
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

    `tells` is what its predictions hold beside landmarks: of SEGMENTATION, SEGMENTS_PRESENT, FORKS.
    `notes(batch)` are lines to be read before training with such a batch starts. `learned(params)`
    are numbers (K,) that the method has learned of each landmark, by a name that ends in their
    unit.
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
    # What the steps' metrics are: LOSS, SHARE, GRADIENT, LENGTH_MM; others are not drawn.
    metrics: ClassVar[Mapping[str, str]]

    @property
    def needs(self) -> frozenset[Need]:
        """What the method needs of a cohort: of UNPAIRED, SEGMENTS, LABEL_MAPS, SHAPE and `Chunks`.

        Prediction needs none but the last.
        """
        ...

    def misfits(self, task: Task) -> Iterable[Problem]:
        """Fields that don't fit the task, and why."""
        ...

    def build(self, task: Task) -> Method:
        """The method for this task; InputError where settings and task don't fit."""
        ...
