"""Landmarks of a structure that may lie anywhere in a scan, turned and of any size.

Ours. A coarse network sees the whole scan and makes a heatmap of each landmark. A robust fit moves,
turns and scales the landmarks' typical shape onto the maxima, which gives the structure's pose. A
fine network then sees a crop in that pose, where all people look alike, and finds the landmarks.
The fit and the fine network can be repeated from these. Both networks are those of `heatmap`. The
coarse one is trained first, on whole scans; then the fine one, on crops in the true pose, changed
at random by about the coarse network's error.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmark.bounds import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    VOXELS,
    Problem,
    at_least,
    check,
    coarsely_divisible,
    divisible,
    positive_numbers,
    setting,
    volumes_only,
)
from jaxmark.core.geometry import apply_affine, compose_affine
from jaxmark.core.grids import centred
from jaxmark.core.intensities import stretched
from jaxmark.core.pose import pose_of
from jaxmark.data.cases import HostBatch, Volume, read_coarse, read_posed
from jaxmark.data.chunks import Chunks
from jaxmark.methods.heatmap import Generator, HeatmapRegression, LandmarkPrior
from jaxmark.methods.method import (
    GRADIENT,
    LOSS,
    SHAPE,
    Batch,
    Method,
    Metrics,
    Need,
    Params,
    Phase,
    Prediction,
    Stage,
    State,
    Task,
    Variables,
)
from jaxmark.methods.optimizers import NOT_REFINED, adams, descent, refined, untrained
from jaxmark.methods.views import augmented

# Least standard deviation of a landmark along each axis in the fit of the typical shape, from which
# people differ.
_LEAST_SD_MM = 1.5
# With `apart_mm` this many looks see several poses: the first all, the second the best of them.
_LOOKS_AT_SEVERAL_POSES = 2
_POSES_KEPT = 3


@dataclasses.dataclass
class CoarseToFine:
    """Settings. `config.augment` changes the volumes of the coarse network; lengths are mm."""

    # Training steps of the coarse and of the fine network.
    steps: int = setting(1500, POSITIVE)
    fine_steps: int = setting(3000, POSITIVE)
    # A voxel of the coarse network has this many voxels of the prepared volume along each axis.
    factor: int = setting(4, POSITIVE)
    widths: tuple[int, ...] = setting(
        (16, 32, 64, 64), positive_numbers("needs positive numbers of channels")
    )
    sigma_mm: float = setting(5.0, POSITIVE)
    learning_rate: float = setting(1e-3, POSITIVE)
    # Voxels of the fine network's crop, around the middle of the typical shape. For the circle of
    # Willis, 64 x 56 x 48 mm cut off ends of arteries in many people.
    crop: tuple[int, int, int] = setting((64, 56, 48), VOXELS)
    spacing_mm: float = setting(1.0, POSITIVE)
    fine_widths: tuple[int, ...] = setting(
        (16, 32, 64), positive_numbers("needs positive numbers of channels")
    )
    fine_sigma_mm: float = setting(2.0, POSITIVE)
    # Standard deviation, along each axis, of the fine network's prior of a landmark around its
    # place in the typical shape. 0: no prior.
    usual_mm: float = setting(0.0, NOT_NEGATIVE)
    fine_learning_rate: float = setting(1e-3, POSITIVE)
    fine_batch: int = setting(2, POSITIVE)
    # Random changes of the true pose in training: voxels along each axis, degrees, share of the
    # size.
    shift: int = setting(6, at_least(0))
    turn_degrees: float = setting(12.0, NOT_NEGATIVE)
    resize: float = setting(0.12, NOT_NEGATIVE)
    # Rounds of the fine network ("looks"), each with a crop around the landmarks of the one before.
    looks: int = setting(2, POSITIVE)
    # The first look tries poses this far apart, in mm along each axis, and the second the best of
    # them; 0: the coarse network's pose alone. See `FineNetwork.starts`.
    apart_mm: float = setting(0.0, NOT_NEGATIVE)
    # Later looks also see each crop mirrored: for structures whose sides look alike.
    mirror: bool = False
    # Last share of each network's steps, over which its rate falls to zero along a cosine.
    decay: float = setting(0.5, SHARE)
    # Gradients of a network are clipped to this norm; 0: not.
    clip_norm: float = setting(0.0, NOT_NEGATIVE)

    # "coarse": the positions of the coarse network.
    decoders: ClassVar[tuple[str, ...]] = ("subvoxel", "argmax", "coarse")
    metrics: ClassVar[Mapping[str, str]] = {"loss": LOSS, "gradient_norm": GRADIENT}

    @property
    def needs(self) -> frozenset[Need]:
        """See `Settings`."""
        return frozenset({Chunks(self.factor), SHAPE})

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        if self.resize >= 1:
            yield "resize", f"{self.resize} is not under 1"
        why = f"{len(self.fine_widths)} levels (config.method.fine_widths) need"
        for _, problem in divisible(self.crop, 2 ** (len(self.fine_widths) - 1), why):
            yield "crop", problem

    def misfits(self, task: Task) -> Iterator[Problem]:
        """See `Settings`."""
        if self.mirror and not task.scheme.symmetric_pairs:
            yield (
                "mirror",
                ("exchanges right and left, but no landmarks are called so, or R and L"),
            )
        yield from volumes_only(task.crop)
        yield from coarsely_divisible(task.crop, task.margin, self.factor, len(self.widths))

    def build(self, task: Task) -> Method:
        """The method for volumes of `task.crop`; factor 2^(levels - 1) must divide its sides."""
        check(self, "config.method", task)
        coarse, fine = CoarseNetwork(self, task), FineNetwork(self, task)
        rates = {
            "coarse": (self.learning_rate, self.steps),
            "fine": (self.fine_learning_rate, self.fine_steps),
        }
        optimizers = adams(rates, self.decay, self.clip_norm)

        def init(key: Array) -> State:
            k_coarse, k_fine = jax.random.split(key)
            params = {"coarse": coarse.init(k_coarse), "fine": fine.init(k_fine)}
            return untrained(params, optimizers, NOT_REFINED)

        return Method(
            init=init,
            phases=(
                Phase(
                    "coarse",
                    self.steps,
                    descent("coarse", coarse.loss, optimizers["coarse"]),
                    read=functools.partial(read_coarse, factor=self.factor),
                    draw=coarse.draw,
                ),
                Phase(
                    "fine",
                    self.fine_steps,
                    descent("fine", fine.loss, optimizers["fine"], refined),
                    read=functools.partial(read_posed, shape_mm=fine.shape_mm, grid=fine.grid),
                    batch=self.fine_batch,
                    batch_field="config.method.fine_batch",
                    draw=fine.draw,
                ),
            ),
            stages=(coarse.stage, *fine.looks),
        )


class CoarseNetwork:
    """Heatmaps of the whole scan, in voxels `factor` times as long."""

    def __init__(self, settings: CoarseToFine, task: Task):
        self._factor, self._margin = settings.factor, np.array(task.margin, np.float32)
        self.task = task.coarser(settings.factor)
        kind = HeatmapRegression(
            widths=settings.widths, head=0, loss="cross_entropy", sigma_mm=settings.sigma_mm
        )
        self._generator = Generator(kind, self.task)
        # A stream draws people in any pose.
        self.draw = None
        if task.drawing is not None:
            x, y, z = (n + 2 * m for n, m in zip(self.task.crop, self.task.margin, strict=True))
            self.draw = task.drawing((x, y, z), self.task.spacing_mm)

    def init(self, key: Array) -> Params:
        """Parameters."""
        return self._generator.init(key)

    def loss(self, params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """The cross-entropy of the heatmaps of a random view."""
        return heatmap_loss(self._generator, params, batch, key), {}

    @property
    def stage(self) -> Stage:
        """The approximate landmarks, in voxels of the prepared volume."""

        def read(volume: Volume, earlier: Prediction | None) -> HostBatch:
            return {"image": volume.coarse(self._factor)[..., None]}

        def run(variables: Variables, arrays: Mapping[str, Array]) -> Prediction:
            x, y, z = (slice(m, -m or None) for m in self.task.margin)
            image = stretched(arrays["image"][:, x, y, z].astype(jnp.float32))
            return self._generator.predict(variables.params["coarse"], image)

        def finish(found: Prediction) -> Prediction:
            fine = found.positions_ijk["subvoxel"]
            moved = np.asarray((fine + 0.5) * self._factor - 0.5 + self._margin, np.float32)
            positions = dict.fromkeys(CoarseToFine.decoders, moved)
            return found.replace(positions_ijk=positions)  # type: ignore[attr-defined]

        return Stage(run, read, finish)


class FineNetwork:
    """Heatmaps of a crop in the pose of the landmarks' typical shape."""

    def __init__(self, settings: CoarseToFine, task: Task):
        margin = border(settings)
        self._settings = settings
        self.task = dataclasses.replace(
            task,
            crop=settings.crop,
            margin=margin,
            spacing_mm=(settings.spacing_mm,) * 3,
            augment=dataclasses.replace(
                task.augment,
                translation_voxels=settings.shift,
                rotation_degrees=settings.turn_degrees,
                scale=settings.resize,
            ),
        )
        # Zeros where the task has no typical shape: enough to make parameters.
        self.shape_mm = np.zeros((len(task.landmarks), 3))
        if task.shape_mm is not None:
            self.shape_mm = task.shape_mm
        # Training reads a crop with its margin.
        x, y, z = (n + 2 * m for n, m in zip(settings.crop, margin, strict=True))
        self.grid = centred((x, y, z), self.task.spacing_mm)
        self._crop = centred(settings.crop, self.task.spacing_mm)
        kind = HeatmapRegression(
            widths=settings.fine_widths,
            head=0,
            loss="cross_entropy",
            sigma_mm=settings.fine_sigma_mm,
            # In a posed crop a voxel's place says much about a landmark.
            coordinates=True,
        )
        prior = LandmarkPrior(self.shape_mm, settings.usual_mm) if settings.usual_mm else None
        self._generator = Generator(kind, self.task, prior)
        # All looks of one kind share a function, so that it is compiled once.
        self._runs = {see: functools.partial(self._run, mirror=see) for see in (False, True)}
        # A stream draws people in the pose of the typical shape.
        self.draw = None
        if task.drawing is not None:
            self.draw = task.drawing(self.grid.shape, self.task.spacing_mm, 0.0, 0.0)

    def init(self, key: Array) -> Params:
        """Parameters."""
        return self._generator.init(key)

    def loss(self, params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """The cross-entropy of the heatmaps of a random view, near the true pose."""
        return heatmap_loss(self._generator, params, batch, key), {}

    def starts(self, volume: Volume, coarse: Prediction) -> list[np.ndarray]:
        """The first poses, (4, 4) each, in LPS mm.

        The coarse network's pose; with `apart_mm` also six moved from it, and the typical shape
        upright in the middle of the scan.
        """
        first, apart_mm = self._pose(volume, coarse), self._settings.apart_mm
        if not apart_mm:
            return [first]
        moves = apart_mm * np.concatenate([np.eye(3), -np.eye(3)])
        around = [compose_affine(np.eye(3), move) @ first for move in moves]
        return [first, *around, compose_affine(np.eye(3), middle_mm(volume))]

    def _pose(self, volume: Volume, found: Prediction) -> np.ndarray:
        """(4, 4) the typical shape's pose, fitted to the landmarks found."""
        points_mm = apply_affine(volume.ijk_to_lps, np.asarray(found.positions_ijk["subvoxel"]))
        # Along each axis. The maximum of an absent landmark may lie anywhere.
        sd_mm = np.maximum(np.asarray(found.spread_mm) / math.sqrt(3), _LEAST_SD_MM)
        return pose_of(self.shape_mm, points_mm, sd_mm, middle_mm(volume))

    def _poses(self, volume: Volume, found: Prediction) -> list[np.ndarray]:
        """`_pose` of one prediction, or of each of several."""
        if np.asarray(found.evidence).ndim == 1:
            return [self._pose(volume, found)]
        return [
            self._pose(volume, _selected(found, number)) for number in range(len(found.evidence))
        ]

    @property
    def looks(self) -> tuple[Stage, ...]:
        """The rounds of the fine network; see `_look`."""
        looks = self._settings.looks
        tries = min(_LOOKS_AT_SEVERAL_POSES, looks) if self._settings.apart_mm else 1
        return tuple(
            self._look(
                self.starts if number == 1 else self._poses,
                keep=1 if number >= tries else _POSES_KEPT,
                mirror=self._settings.mirror and number > tries,
            )
            for number in range(1, looks + 1)
        )

    def _look(
        self,
        poses_of: Callable[[Volume, Prediction], list[np.ndarray]],
        *,
        keep: int,
        mirror: bool,
    ) -> Stage:
        """A look at the crops of S poses; positions come back in voxels of the prepared volume.

        The prediction has a first axis over poses, (S, K, ...). The next look gets the `keep` poses
        with the highest mean evidence over all landmarks, or all if there are fewer. `keep=1`
        removes the axis.
        """

        def read(volume: Volume, earlier: Prediction | None) -> HostBatch:
            assert earlier is not None
            poses = poses_of(volume, earlier)
            if np.asarray(earlier.evidence).ndim == 1:
                earlier = _stacked([earlier] * len(poses))
            to_volume = np.linalg.inv(volume.ijk_to_lps) @ np.stack(poses) @ self._crop.ijk_to_lps
            return {
                "image": np.stack(
                    [volume.sampled(affine, self._crop.shape)[..., None] for affine in to_volume]
                ),
                "to_volume": to_volume.astype(np.float32),
                "earlier": earlier,
            }

        def finish(found: Prediction) -> Prediction:
            best = np.argsort(-found.evidence.mean(1), kind="stable")[:keep]
            return _selected(found, best[0] if keep == 1 else best)

        return Stage(self._runs[mirror], read, finish)

    def _run(self, variables: Variables, arrays: Mapping[str, Any], *, mirror: bool) -> Prediction:
        """The part of `_look` on the device, for crops (B, S, X, Y, Z, 1)."""
        cases, starts, *crop = arrays["image"].shape
        image = stretched(arrays["image"].reshape(cases * starts, *crop))
        found = self._generator.predict(variables.params["fine"], image, mirror=mirror)
        found = jax.tree.map(lambda x: x.reshape(cases, starts, *x.shape[1:]), found)
        turn, offset = arrays["to_volume"][..., :3, :3], arrays["to_volume"][..., None, :3, 3]
        moved = {
            name: jnp.einsum("bsrc,bskc->bskr", turn, ijk) + offset
            for name, ijk in found.positions_ijk.items()
        }
        earlier = arrays["earlier"]
        found = found.replace(positions_ijk={**earlier.positions_ijk, **moved})
        trained = variables.statistics["refine"] > 0
        return jax.tree.map(lambda new, old: jnp.where(trained, new, old), found, earlier)


def middle_mm(volume: Volume) -> np.ndarray:
    """(3,) LPS of a volume's middle."""
    return apply_affine(volume.ijk_to_lps, (np.array(volume.shape) - 1) / 2)


def _stacked(predictions: Sequence[Prediction]) -> Prediction:
    """Several predictions of one volume as one, with a first axis over them."""
    return jax.tree.map(lambda *parts: np.stack(parts), *predictions)


def _selected(predictions: Prediction, number: int | np.ndarray) -> Prediction:
    """One or several of stacked predictions, by their numbers."""
    return jax.tree.map(lambda x: x[number], predictions)


def heatmap_loss(generator: Generator, params: Params, batch: Batch, key: Array) -> Array:
    """The loss on a random view of the volumes, with contrast stretched as in prediction."""
    view = augmented(generator.task, batch, key)
    features = generator.features(params, stretched(view.image))
    return generator.loss(
        features,
        view.landmarks_ijk,
        view.present,
        absent=view.absent,
        head=generator.head(params),
    )


def border(settings: CoarseToFine) -> tuple[int, int, int]:
    """About how many voxels around a crop its largest, most turned and farthest view reaches."""
    angle = math.radians(settings.turn_degrees)
    grown = (1 + settings.resize) * (math.cos(angle) + math.sin(angle)) - 1
    return (settings.shift + math.ceil(grown * max(settings.crop) / 2),) * 3
