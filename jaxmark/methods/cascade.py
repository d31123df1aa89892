"""Two-stage cascade regression (Tan et al., 2019): coarse heatmaps, then full-resolution patches.

Primary prediction (section 2.1), `FirstStage`: a U-Net sees the whole volume, `factor` times
smaller, and outputs N heatmaps of landmarks and one of the background (targets: Eq. 1, made in the
loss). It is trained with the weighted squared error of its output and of three side paths (Eq. 2).
The position S_0 of a landmark is the maximum of its heatmap.
Refinement (section 2.2), `SecondStage`: for each landmark a small network sees a patch of the full
resolution around S_0 and regresses the displacement, S = S_0 + dS. The first stage is trained, then
the second. `PatchedFirstStage` is the ablation of section 3.2.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmark.bounds import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Problem,
    check,
    coarsely_divisible,
    either,
    positive_numbers,
    setting,
    volumes_only,
)
from jaxmark.config import Augment
from jaxmark.core.heatmaps import decode
from jaxmark.core.losses import (
    distance_loss,
    exponential_heatmap_loss,
    heatmap_cross_entropy,
)
from jaxmark.data.cases import HostBatch, PreparedCase, Volume, read_coarse
from jaxmark.data.chunks import Chunks
from jaxmark.data.multiscale import covering, first_voxels
from jaxmark.methods.method import (
    GRADIENT,
    LENGTH_MM,
    LOSS,
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
from jaxmark.models.blocks import append_coordinates, for_each_landmark
from jaxmark.models.cascade import DisplacementNet, SidePathUNet
from jaxmark.models.unet import ResidualUNet

# Decoders of the first stage alone.
FIRST = ("stage1", "stage1_subvoxel")
# The field with the number of cases of a training step on patches.
REFINE_BATCH = "config.method.refine_batch"


@dataclasses.dataclass
class Cascade:
    """Settings. The paper states the factor, patch, batch, Adam's rate, steps and side weights.

    Values with another comment are ours. `config.augment` (the paper: none) changes the volumes of
    the first stage and each patch of the second. Patches are moved by up to `reach_mm` instead of
    `translation_voxels`, and never mirrored.
    """

    # Training steps of the first and of the second stage.
    steps: int = setting(11_250, POSITIVE)
    refine_steps: int = setting(45_000, NOT_NEGATIVE)
    # A voxel of the first stage has this many voxels of the volume along each axis; the paper: 4
    # coronary, 2 aorta.
    factor: int = setting(4, POSITIVE)
    # 0: the first stage sees the whole volume. Else, the paper's ablation, it sees patches of this
    # many voxels a side (the paper: 48), and a landmark lies at the highest response of all. The
    # paper does not state their resolution; here it is the full one. Such a patch shows "the
    # context information around one landmark"; a patch of the smaller volume, 77 mm, would show
    # four landmarks.
    first_patch: int = setting(0, NOT_NEGATIVE)
    # Ours, as are the height and width of the Gaussians.
    widths: tuple[int, ...] = setting(
        (16, 32, 64, 128), positive_numbers("needs positive numbers of channels")
    )
    # Channels of a 1^3 layer before the last; 0: none. See ResidualUNet.
    head: int = setting(0, NOT_NEGATIVE)
    height: float = setting(1.0, POSITIVE)
    sigma_mm: float = setting(3.0, POSITIVE)
    # Three more channels of the first stage: each voxel's place in the volume, from -1 to 1; ours,
    # for registered cohorts.
    coordinates: bool = False
    # Weights of the squared error. "prediction": e to the power of the predicted values, as
    # printed; "truth": e to the power of the true values. "cross_entropy": no squared error but the
    # cross-entropy of a softmax over all voxels (ours).
    weights: str = setting("prediction", either("prediction", "truth", "cross_entropy"))
    # Weights of the side paths' losses, the coarsest first.
    sides: tuple[float, ...] = (0.3, 0.6, 0.9)
    # Voxels a side of the second stage's patches, of the full resolution.
    patch: int = setting(64, POSITIVE)
    # The second stage moves a landmark by at most this along each axis; in training, patches are
    # centred up to this far from the landmark. Ours: about the error of the first stage.
    reach_mm: float = setting(6.0, POSITIVE)
    # "displacement" (the paper's), or "heatmap": a softmax over the patch's voxels (ours).
    refine: str = setting("displacement", either("displacement", "heatmap"))
    # Rounds of the second stage, each with a patch around the position of the round before; the
    # paper suggests more than one for the future.
    looks: int = setting(1, POSITIVE)
    # Each round takes the mean position from eight patches, moved by this many voxels both ways
    # along each axis; 0: from one patch, as in the paper. Ours; training is the same.
    shifted: int = setting(0, NOT_NEGATIVE)
    # All landmarks share one network except its last layer; ours, for few scans and many landmarks.
    shared: bool = False
    # Ours.
    refine_widths: tuple[int, ...] = setting(
        (16, 32, 64, 64), positive_numbers("needs positive numbers of channels")
    )
    hidden: int = setting(128, POSITIVE)
    refine_sigma_mm: float = setting(1.0, POSITIVE)
    refine_batch: int = setting(4, POSITIVE)
    learning_rate: float = setting(1e-3, POSITIVE)
    refine_learning_rate: float = setting(1e-3, POSITIVE)
    # Last share of each stage's steps, over which the rate falls to zero along a cosine; the paper:
    # 0.
    decay: float = setting(0.0, SHARE)
    # Gradients of a stage are clipped to this norm; 0: not, as in the paper.
    clip_norm: float = setting(0.0, NOT_NEGATIVE)

    # "subvoxel": after the second stage. After the first stage: "stage1", the voxel of the maximum,
    # as in the paper, and "stage1_subvoxel", from which the second stage starts.
    decoders: ClassVar[tuple[str, ...]] = ("subvoxel", "stage1", "stage1_subvoxel")
    metrics: ClassVar[Mapping[str, str]] = {
        "loss": LOSS,
        "heatmap_loss": LOSS,
        "side_loss": LOSS,
        "distance_mm": LENGTH_MM,
        "gradient_norm": GRADIENT,
    }

    @property
    def needs(self) -> frozenset[Need]:
        """See `Settings`."""
        return frozenset({Chunks(self.factor)})

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        block = 2 ** (len(self.widths) - 1)
        if self.first_patch % block:
            yield (
                "first_patch",
                f"{self.first_patch} is not a multiple of {block} (config.method.widths)",
            )
        if self.first_patch and self.weights == "cross_entropy":
            yield "weights", "cross_entropy does not compare patches: first_patch must be 0"
        if self.first_patch and self.coordinates:
            yield "coordinates", "are places in the whole volume: first_patch must be 0"
        depth = len(self.refine_widths) - (self.refine == "heatmap")
        if self.patch % 2**depth:
            yield (
                "patch",
                f"{self.patch} is not a multiple of {2**depth} (config.method.refine_widths)",
            )
        paths = min(3, len(self.widths) - 1)
        if len(self.sides) < paths or min(self.sides, default=0) < 0:
            yield "sides", f"{self.sides} is not a weight of 0 or more for each side path ({paths})"

    def misfits(self, task: Task) -> Iterator[Problem]:
        """See `Settings`."""
        yield from volumes_only(task.crop)
        if not self.first_patch:
            yield from coarsely_divisible(task.crop, task.margin, self.factor, len(self.widths))
        if self.patch * min(task.spacing_mm) < 2 * self.reach_mm:
            yield (
                "config.method.reach_mm",
                f"{self.reach_mm} takes landmarks out of patches of {self.patch} voxels",
            )

    def build(self, task: Task) -> Method:
        """The method for volumes of `task.crop`; factor 2^(levels - 1) must divide its sides."""
        check(self, "config.method", task)
        first = PatchedFirstStage(self, task) if self.first_patch else FirstStage(self, task)
        second = SecondStage(self, task)
        rates = {
            "coarse": (self.learning_rate, self.steps),
            "fine": (self.refine_learning_rate, self.refine_steps),
        }
        optimizers = adams(rates, self.decay, self.clip_norm)

        def init(key: Array) -> State:
            k_first, k_second = jax.random.split(key)
            params = {"coarse": first.init(k_first), "fine": second.init(k_second)}
            return untrained(params, optimizers, NOT_REFINED)

        step = descent("coarse", first.loss, optimizers["coarse"])
        phases = [
            Phase(
                "coarse",
                self.steps,
                step,
                read=first.read,
                batch=first.batch,
                batch_field=first.batch_field,
            )
        ]
        if self.refine_steps:
            read = functools.partial(
                read_patches, side=second.side, reach_mm=self.reach_mm, spacing_mm=task.spacing_mm
            )
            step = descent("fine", second.loss, optimizers["fine"], refined)
            phases.append(
                Phase(
                    "fine",
                    self.refine_steps,
                    step,
                    read=read,
                    batch=self.refine_batch,
                    batch_field=REFINE_BATCH,
                )
            )
        return Method(
            init=init,
            phases=tuple(phases),
            stages=(first.stage, *[second.stage] * self.looks),
        )


class FirstStage:
    """Heatmaps of the whole volume, `factor` times smaller."""

    # Cases of a training step; None: `config.train.batch`.
    batch: int | None = None
    batch_field = "config.train.batch"

    def __init__(self, settings: Cascade, task: Task):
        self.settings, self.task, self._whole = settings, self._seen_by(settings, task), task
        self._net = SidePathUNet(
            settings.widths, len(task.landmarks) + 1, head=settings.head, dtype=task.dtype
        )

    @staticmethod
    def _seen_by(settings: Cascade, task: Task) -> Task:
        """The task on the network's input."""
        return task.coarser(settings.factor)

    def read(self, case: PreparedCase, rng: np.random.Generator) -> HostBatch:
        """One case's part of a batch."""
        return read_coarse(case, rng, factor=self.settings.factor)

    def init(self, key: Array) -> Params:
        """Parameters of the U-Net."""
        return self._net.init(key, self._seen(jnp.zeros((1, *self.task.crop, 1))))

    def _seen(self, image: Array) -> Array:
        return append_coordinates(image) if self.settings.coordinates else image

    def loss(self, params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Eq. 2: the error of the heatmaps plus the weighted errors of the side paths."""
        view = augmented(self.task, batch, key)
        features, sides = self._net.apply(params, self._seen(view.image), method="features")
        head = self._head(params)
        final = self.heatmap_loss(features, view, 1, head)
        side = jnp.zeros(())
        for number, (weight, maps) in enumerate(zip(self.settings.sides, sides, strict=False)):
            times = 2 ** (len(sides) - number)
            side = side + weight * self.heatmap_loss(maps, view, times, None)
        return final + side, {"heatmap_loss": final, "side_loss": side}

    def heatmap_loss(
        self, prediction: Array, view: Batch, times: int, head: Callable[[Array], Array] | None
    ) -> Array:
        """L_mse on voxels `times` as long as those of the first stage."""
        settings, task = self.settings, self.task
        # Coordinates count voxel centres, which differ between the two grids.
        points = (view.landmarks_ijk + 0.5) / times - 0.5
        place: dict[str, Any] = {
            "spacing_mm": [times * s for s in task.spacing_mm],
            # A Gaussian narrower than a voxel could fall between voxels.
            "sigma_mm": max(settings.sigma_mm, 0.5 * times * max(task.spacing_mm)),
            "absent": view.absent,
            "slab_voxels": task.slab_voxels,
        }
        if settings.weights == "cross_entropy":
            landmarks = (lambda x: x[..., :-1]) if head is None else (lambda x: head(x)[..., :-1])
            return heatmap_cross_entropy(
                prediction, points, view.present, presence=task.presence, head=landmarks, **place
            )
        return exponential_heatmap_loss(
            prediction,
            points,
            view.present,
            height=settings.height,
            of_truth=settings.weights == "truth",
            head=head,
            **place,
        )

    def _head(self, params: Params) -> Callable[[Array], Array]:
        return lambda x: jnp.asarray(self._net.apply(params, x, method="heatmaps"))

    def found(self, variables: Variables, image: Array) -> Prediction:
        """Landmarks in the network's input (B, X, Y, Z, 1), in voxels of this input."""
        params = variables.params["coarse"]
        features, _ = self._net.apply(params, self._seen(image), method="features")
        head = self._head(params)
        softmax = self.settings.weights == "cross_entropy"
        peak, fine, score, evidence, spread_mm = decode(
            features,
            lambda x: head(x)[..., :-1],
            spacing_mm=self.task.spacing_mm,
            sigma_mm=self.settings.sigma_mm,
            softmax=softmax,
            slab_voxels=self.task.slab_voxels,
        )
        if not softmax:
            score = score / self.settings.height
        positions = {"stage1": peak, "stage1_subvoxel": fine, "subvoxel": fine}
        return Prediction(positions, score, evidence, spread_mm=spread_mm)

    @property
    def stage(self) -> Stage:
        """The first stage of a prediction; `finish` returns voxels of the full resolution."""
        factor = self.settings.factor
        margin = np.array(self._whole.margin, np.float32)

        def read(volume: Volume, earlier: Prediction | None) -> HostBatch:
            return {"image": volume.coarse(factor)[..., None]}

        def run(variables: Variables, arrays: Mapping[str, Array]) -> Prediction:
            x, y, z = (slice(m, -m or None) for m in self.task.margin)
            image = arrays["image"][:, x, y, z].astype(jnp.float32)
            return self.found(variables, image)

        def finish(found: Prediction) -> Prediction:
            moved = {
                name: np.asarray((ijk + 0.5) * factor - 0.5 + margin, np.float32)
                for name, ijk in found.positions_ijk.items()
            }
            return found.replace(positions_ijk=moved)  # type: ignore[attr-defined]

        return Stage(run, read, finish)


class PatchedFirstStage(FirstStage):
    """Heatmaps of patches of the full resolution: the ablation."""

    def __init__(self, settings: Cascade, task: Task):
        super().__init__(settings, task)
        self.batch, self.batch_field = settings.refine_batch, REFINE_BATCH

    @staticmethod
    def _seen_by(settings: Cascade, task: Task) -> Task:
        # The only change in training is the random place at which a patch is cut.
        still = dataclasses.replace(
            task.augment, translation_voxels=0, rotation_degrees=0.0, scale=0.0, flip=0.0
        )
        side = settings.first_patch
        return dataclasses.replace(task, crop=(side,) * 3, margin=(0, 0, 0), augment=still)

    def read(self, case: PreparedCase, rng: np.random.Generator) -> HostBatch:
        """A random patch of the volume; with probability 1/2 one that holds a landmark."""
        side, margin = self.settings.first_patch, np.array(self._whole.margin)
        points = case.landmarks_ijk
        room = np.maximum(np.array(self._whole.crop) - side, 0)
        first = margin + rng.integers(0, room + 1)
        if case.present.any() and rng.random() < 0.5:
            chosen = points[rng.choice(np.flatnonzero(case.present))]
            first = first_voxels(chosen + rng.uniform(-side / 2, side / 2, 3), side)
        return {
            "image": case.volume.patch(first, side)[..., None],
            "landmarks_ijk": (np.nan_to_num(points) - first).astype(np.float32),
            "present": case.present,
            "absent": case.absent,
        }

    @property
    def stage(self) -> Stage:
        """A stage over patches that cover the volume; each landmark takes its highest response."""
        side = self.settings.first_patch
        corners = covering(self._whole.crop, side) + np.array(self._whole.margin)

        def read(volume: Volume, earlier: Prediction | None) -> HostBatch:
            return {
                "image": np.stack([volume.patch(corner, side) for corner in corners])[..., None]
            }

        def run(variables: Variables, arrays: Mapping[str, Array]) -> Prediction:
            def in_patch(images: Array) -> Prediction:
                return self.found(variables, images.astype(jnp.float32))

            # (N, B, ...), one patch of each volume at a time.
            in_all = jax.lax.map(in_patch, arrays["image"].swapaxes(0, 1))
            moved = {
                name: ijk + jnp.asarray(corners, jnp.float32)[:, None, None]
                for name, ijk in in_all.positions_ijk.items()
            }
            in_all = in_all.replace(positions_ijk=moved)
            best = jnp.argmax(in_all.score, axis=0)

            def chosen(values: Array) -> Array:
                index = best[None, ..., None] if values.ndim == 4 else best[None]
                return jnp.take_along_axis(values, index, axis=0)[0]

            return jax.tree.map(chosen, in_all)

        return Stage(run, read)


class SecondStage:
    """One network for each landmark, on a patch of the full resolution around it."""

    def __init__(self, settings: Cascade, task: Task):
        self.settings = settings
        # The task on patches; their margin is for views that are turned or enlarged.
        self.task = dataclasses.replace(
            task,
            crop=(settings.patch,) * 3,
            margin=(view_border(settings.patch, task.augment),) * 3,
            augment=dataclasses.replace(task.augment, translation_voxels=0, flip=0.0),
        )
        self._net: DisplacementNet | ResidualUNet
        if settings.refine == "displacement":
            self._net = DisplacementNet(settings.refine_widths, settings.hidden, dtype=task.dtype)
        else:
            self._net = ResidualUNet(settings.refine_widths, 1, dtype=task.dtype)

    @property
    def side(self) -> int:
        """Voxels a side that are read for training: a patch with its margin."""
        return self.settings.patch + 2 * self.task.margin[0]

    def init(self, key: Array) -> Params:
        """Parameters with a first axis over the landmarks; a shared body has no such axis."""
        keys = jax.random.split(key, len(self.task.landmarks))
        shape = jnp.zeros((1, *(self.settings.patch,) * 3, 1))
        parts = jax.vmap(self._net.init, (0, None))(keys, shape)["params"]
        if self.settings.shared:
            parts = {**parts, "body": jax.tree.map(lambda x: x[0], parts["body"])}
        return {"params": parts}

    def loss(self, params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """The Euclidean distance to the landmark in mm, or the cross-entropy of the heatmap."""
        view = self.views(batch, key)
        # (B, K, n, n, n, 1) to (K, B, n, n, n, 1).
        features = self._features(params, view.image.swapaxes(0, 1))
        spacing = jnp.asarray(self.task.spacing_mm)
        if self.settings.refine == "displacement":
            moved, _ = self._positions(params, features)
            loss = distance_loss(moved * spacing, view.landmarks_ijk * spacing, view.present)
            return loss, {"distance_mm": loss}

        def landmark_loss(last: Params, features: Array, points: Array, present: Array) -> Array:
            return heatmap_cross_entropy(
                features,
                points[:, None],
                present[:, None],
                head=self._last(last),
                spacing_mm=self.task.spacing_mm,
                sigma_mm=self.settings.refine_sigma_mm,
                slab_voxels=self.task.slab_voxels,
            )

        known = view.landmarks_ijk.swapaxes(0, 1), view.present.swapaxes(0, 1)
        arguments = (params["params"]["last"], features, *known)
        losses = for_each_landmark(landmark_loss, *arguments, platform=self.task.platform)
        return losses.mean(), {}

    def positions(self, params: Params, patches: Array) -> tuple[Array, Array]:
        """Patches (K, B, n, n, n, 1) -> landmarks (B, K, 3) in voxels of each patch, and spreads.

        The spreads (B, K) of the heatmaps are in mm; 0 for "displacement", which has no heatmaps.
        """
        return self._positions(params, self._features(params, patches))

    def views(self, batch: Batch, key: Array) -> Batch:
        """Random views of the patches (B, K, m, m, m, 1), each turned by itself."""
        b, k = batch.present.shape
        alone = Batch(
            image=batch.image.reshape(b * k, *batch.image.shape[2:]),
            landmarks_ijk=batch.landmarks_ijk.reshape(b * k, 1, 3),
            present=batch.present.reshape(b * k, 1),
            absent=batch.absent.reshape(b * k, 1),
        )
        view = augmented(self.task, alone, key)
        return Batch(
            image=view.image.reshape(b, k, *view.image.shape[1:]),
            landmarks_ijk=view.landmarks_ijk.reshape(b, k, 3),
            present=batch.present,
            absent=batch.absent,
        )

    def _features(self, params: Params, patches: Array) -> Array:
        """(K, B, n, n, n, 1) -> the input of each landmark's last layers, (K, B, ..., C)."""
        body = params["params"]["body"]

        def body_features(body: Params, images: Array) -> Array:
            return jnp.asarray(
                self._net.apply({"params": {"body": body}}, images, method="features")
            )

        if self.settings.shared:
            found = body_features(body, patches.reshape(-1, *patches.shape[2:]))
            return found.reshape(*patches.shape[:2], *found.shape[1:])
        return for_each_landmark(body_features, body, patches, platform=self.task.platform)

    def _positions(self, params: Params, features: Array) -> tuple[Array, Array]:
        """`positions` from features (K, B, ..., C)."""
        settings, spacing = self.settings, jnp.asarray(self.task.spacing_mm)
        middle, reach = (settings.patch - 1) / 2, settings.reach_mm / spacing

        def position(last: Params, features: Array) -> tuple[Array, Array]:
            if settings.refine == "displacement":
                moved = middle + self._last(last)(features) * reach
                return moved, jnp.zeros(moved.shape[:1])
            found = decode(
                features,
                self._last(last),
                spacing_mm=self.task.spacing_mm,
                sigma_mm=settings.refine_sigma_mm,
                softmax=True,
                slab_voxels=self.task.slab_voxels,
            )
            inside = jnp.clip(found.subvoxel_ijk[:, 0], middle - reach, middle + reach)
            return inside, found.spread_mm[:, 0]

        last = params["params"]["last"]
        moved, spread_mm = for_each_landmark(position, last, features, platform=self.task.platform)
        return moved.swapaxes(0, 1), spread_mm.swapaxes(0, 1)

    def _last(self, last: Params) -> Callable[[Array], Array]:
        method = "displacements" if self.settings.refine == "displacement" else "heatmaps"
        return lambda x: jnp.asarray(self._net.apply({"params": {"last": last}}, x, method=method))

    @property
    def stage(self) -> Stage:
        """One round of the second stage, around earlier positions; the volume stays on the host."""
        side, k = self.settings.patch, len(self.task.landmarks)
        shift = self.settings.shifted
        # (J, 3) voxels.
        shifts = np.array(list(itertools.product({-shift, shift}, repeat=3)))

        def read(volume: Volume, earlier: Prediction | None) -> HostBatch:
            assert earlier is not None
            found = np.asarray(earlier.positions_ijk["subvoxel"])
            # (K, J, 3)
            first = first_voxels(found, side)[:, None] + shifts
            patches = np.stack([volume.patch(corner, side) for corner in first.reshape(-1, 3)])
            return {
                "image": patches.reshape(*first.shape[:2], *patches.shape[1:], 1),
                "first": first.astype(np.float32),
                "found": found,
                **{name: np.asarray(earlier.positions_ijk[name]) for name in FIRST},
                "score": np.asarray(earlier.score),
                "evidence": np.asarray(earlier.evidence),
                "spread_mm": np.asarray(earlier.spread_mm),
            }

        def run(variables: Variables, arrays: Mapping[str, Array]) -> Prediction:
            b, j = arrays["image"].shape[0], len(shifts)
            # (B, K, J, n, n, n, 1) to (K, B J, n, n, n, 1): shifted patches become volumes.
            patches = arrays["image"].swapaxes(0, 1).astype(jnp.float32)
            patches = patches.reshape(k, b * j, *patches.shape[3:])
            in_patch, fine_mm = self.positions(variables.params["fine"], patches)
            in_patch = in_patch.reshape(b, j, k, 3).swapaxes(1, 2)
            moved = (arrays["first"] + in_patch).mean(2)
            fine_mm = fine_mm.reshape(b, j, k).mean(1)
            refine = variables.statistics["refine"] > 0
            positions = {
                **{name: arrays[name] for name in FIRST},
                "subvoxel": jnp.where(refine, moved, arrays["found"]),
            }
            # Uncertainty of the first stage and of the second: of the patch, and within it.
            spread_mm = jnp.hypot(arrays["spread_mm"], jnp.where(refine, fine_mm, 0.0))
            return Prediction(positions, arrays["score"], arrays["evidence"], spread_mm=spread_mm)

        return Stage(run, read)


def read_patches(
    case: PreparedCase,
    rng: np.random.Generator,
    *,
    side: int,
    reach_mm: float,
    spacing_mm: tuple[float, float, float],
) -> HostBatch:
    """A patch near each landmark, (K, n, n, n, 1), and the landmark in voxels of the patch.

    The patch's middle lies within `reach_mm` of the landmark along each axis, as if the first stage
    had found it there.
    """
    volume = case.volume
    points = np.nan_to_num(case.landmarks_ijk)
    reach = reach_mm / np.asarray(spacing_mm)
    first = first_voxels(points + rng.uniform(-reach, reach, points.shape), side)
    return {
        "image": np.stack([volume.patch(corner, side) for corner in first])[..., None],
        "landmarks_ijk": (points - first).astype(np.float32),
        "present": case.present,
        "absent": case.absent,
    }


def view_border(side: int, augment: Augment) -> int:
    """Voxels around a cube of `side` that its largest and most turned view reaches."""
    if not (augment.rotation_degrees or augment.scale):
        return 0
    # cos + sqrt(2) sin is the largest sum of a rotation's row; it is greatest at this angle.
    angle = min(math.radians(augment.rotation_degrees), math.atan(math.sqrt(2)))
    farthest = (math.cos(angle) + math.sqrt(2) * math.sin(angle)) * (1 + augment.scale)
    return math.ceil(side / 2 * (farthest - 1))
