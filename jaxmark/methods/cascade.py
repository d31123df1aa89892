"""Two-stage cascade regression (Tan et al., 2019): coarse heatmaps, then a look at full resolution.

The first stage sees the whole volume, some times smaller, and makes a heatmap of each landmark and
of the background. The second cuts a patch of the full resolution around each place found and says
how far the landmark is from its middle, one small network a landmark. First the one is trained,
then the other.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxmark.bounds import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Problem,
    check,
    divisible,
    either,
    positive_numbers,
    setting,
    volumes_only,
)
from jaxmark.core.heatmaps import decode
from jaxmark.core.losses import (
    distance_loss,
    exponential_heatmap_loss,
    heatmap_cross_entropy,
)
from jaxmark.data.cases import HostBatch, PreparedCase, Volume
from jaxmark.data.chunks import Chunks
from jaxmark.data.multiscale import first_voxels
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
from jaxmark.methods.optimizers import clipped, cosine_at_the_end, descent
from jaxmark.methods.views import augmented
from jaxmark.models.blocks import each
from jaxmark.models.cascade import DisplacementNet, SidePathUNet
from jaxmark.models.unet import ResidualUNet


@dataclasses.dataclass
class Cascade:
    """Settings. The paper states the factor, patch, batch, Adam's rate, steps and side weights.

    What has another comment is ours to choose. `config.augment` is for the first stage; patches of
    the second one are moved alone.
    """

    # Of the two stages.
    steps: int = setting(11_250, POSITIVE)
    refine_steps: int = setting(45_000, NOT_NEGATIVE)
    # How many voxels along each axis are one of the first stage; the paper: 4 coronary, 2 aorta.
    factor: int = setting(4, POSITIVE)
    # Ours, as are the height and width of the Gaussians.
    widths: tuple[int, ...] = setting(
        (16, 32, 64, 128), positive_numbers("needs positive numbers of channels")
    )
    height: float = setting(1.0, POSITIVE)
    sigma_mm: float = setting(3.0, POSITIVE)
    # "prediction": weights of the squared error are e to the power of the predicted values, as
    # printed; "truth": of the true ones. "cross_entropy": of a softmax over all voxels (ours).
    weights: str = setting("prediction", either("prediction", "truth", "cross_entropy"))
    # Weights of the side paths' losses, the coarsest first.
    sides: tuple[float, ...] = (0.3, 0.6, 0.9)
    # Voxels a side of the second stage's patches, of the full resolution.
    patch: int = setting(64, POSITIVE)
    # The farthest that the second stage moves a place, and in training how far from the landmark
    # patches may be centred, along each axis; ours. About what the first stage errs.
    reach_mm: float = setting(6.0, POSITIVE)
    # "displacement" (the paper's), or "heatmap": a softmax over the patch's voxels (ours).
    refine: str = setting("displacement", either("displacement", "heatmap"))
    # How often the second stage looks again around what it said; the paper's outlook: more than 1.
    looks: int = setting(1, POSITIVE)
    # Ours.
    refine_widths: tuple[int, ...] = setting(
        (16, 32, 64, 64), positive_numbers("needs positive numbers of channels")
    )
    hidden: int = setting(128, POSITIVE)
    refine_sigma_mm: float = setting(1.0, POSITIVE)
    refine_batch: int = setting(4, POSITIVE)
    learning_rate: float = setting(1e-3, POSITIVE)
    refine_learning_rate: float = setting(1e-3, POSITIVE)
    # Share of each stage's steps over which the rate falls to zero along a cosine; the paper: 0.
    decay: float = setting(0.0, SHARE)
    # Largest norm of a stage's gradient; 0: any, as in the paper.
    clip_norm: float = setting(0.0, NOT_NEGATIVE)

    # "subvoxel": after the second stage; "stage1": the voxel of the first stage's maximum.
    decoders: ClassVar[tuple[str, ...]] = ("subvoxel", "stage1")
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
        levels = len(self.widths)
        why = f"{levels} levels (config.method.widths) of voxels {self.factor} times as long need"
        yield from divisible(task.crop, self.factor * 2 ** (levels - 1), why)
        if any(m % self.factor for m in task.margin):
            yield "config.data.margin", f"{max(task.margin)} is not a multiple of {self.factor}"
        if self.patch * min(task.spacing_mm) < 2 * self.reach_mm:
            yield (
                "config.method.reach_mm",
                f"{self.reach_mm} takes landmarks out of patches of {self.patch} voxels",
            )

    def build(self, task: Task) -> Method:
        """The method for volumes of `task.crop`, whose sides factor 2^(levels - 1) must divide."""
        check(self, "config.method", task)
        first, second = FirstStage(self, task), SecondStage(self, task)
        optimizers = {
            name: clipped(self.clip_norm, optax.adam(cosine_at_the_end(rate, steps, self.decay)))
            for name, rate, steps in (
                ("coarse", self.learning_rate, self.steps),
                ("fine", self.refine_learning_rate, self.refine_steps),
            )
        }

        def init(key: Array) -> State:
            k_first, k_second = jax.random.split(key)
            params = {"coarse": first.init(k_first), "fine": second.init(k_second)}
            return State(
                step=jnp.zeros((), jnp.int32),
                params=params,
                optimizer={name: optimizers[name].init(params[name]) for name in optimizers},
                # Whether the second stage's word counts: not before it is trained.
                statistics={"refine": jnp.zeros(())},
            )

        phases = [
            Phase(
                "coarse",
                self.steps,
                descent("coarse", first.loss, optimizers["coarse"]),
                read=functools.partial(read_coarse, factor=self.factor),
            )
        ]
        if self.refine_steps:
            read = functools.partial(
                read_patches, side=self.patch, reach_mm=self.reach_mm, spacing_mm=task.spacing_mm
            )
            step = descent("fine", second.loss, optimizers["fine"], refined)
            phases.append(
                Phase("fine", self.refine_steps, step, read=read, batch=self.refine_batch)
            )
        return Method(
            init=init,
            phases=tuple(phases),
            stages=(first.stage, *[second.stage] * self.looks),
        )


class FirstStage:
    """Heatmaps of the whole volume, `factor` times smaller."""

    def __init__(self, settings: Cascade, task: Task):
        self.settings, factor = settings, settings.factor
        whole = task.augment
        self.task = dataclasses.replace(
            task,
            crop=_divided(task.crop, factor),
            margin=_divided(task.margin, factor),
            spacing_mm=_times(task.spacing_mm, factor),
            augment=dataclasses.replace(
                whole, translation_voxels=whole.translation_voxels // factor
            ),
        )
        self._full_margin = np.array(task.margin, np.float32)
        self._net = SidePathUNet(settings.widths, len(task.landmarks) + 1, dtype=task.dtype)

    def init(self, key: Array) -> Params:
        """Parameters of the U-Net."""
        return self._net.init(key, jnp.zeros((1, *self.task.crop, 1)))

    def loss(self, params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Eq. 2: the error of the heatmaps, and of those of the side paths."""
        view = augmented(self.task, batch, key)
        features, sides = self._net.apply(params, view.image, method="features")
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
        # Centres of voxels: the first of the coarser ones lies between those of the finer.
        points = (view.landmarks_ijk + 0.5) / times - 0.5
        place: dict[str, Any] = {
            "spacing_mm": [times * s for s in task.spacing_mm],
            # Narrower than a voxel a Gaussian may fall between them.
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

    @property
    def stage(self) -> Stage:
        """The first look of a prediction; positions come back in voxels of the full resolution."""
        factor = self.settings.factor

        def read(volume: Volume, earlier: Prediction | None) -> HostBatch:
            return {"image": volume.coarse(factor)[..., None]}

        def run(variables: Variables, arrays: Mapping[str, Array]) -> Prediction:
            x, y, z = (slice(m, -m or None) for m in self.task.margin)
            image = arrays["image"][:, x, y, z].astype(jnp.float32)
            params = variables.params["coarse"]
            features, _ = self._net.apply(params, image, method="features")
            head = self._head(params)
            softmax = self.settings.weights == "cross_entropy"
            peak, fine, score, evidence = decode(
                features,
                lambda x: head(x)[..., :-1],
                spacing_mm=self.task.spacing_mm,
                sigma_mm=self.settings.sigma_mm,
                softmax=softmax,
                slab_voxels=self.task.slab_voxels,
            )
            if not softmax:
                score = score / self.settings.height
            return Prediction({"stage1": peak, "subvoxel": fine}, score, evidence)

        def finish(found: Prediction) -> Prediction:
            moved = {
                name: np.asarray((ijk + 0.5) * factor - 0.5 + self._full_margin, np.float32)
                for name, ijk in found.positions_ijk.items()
            }
            return found.replace(positions_ijk=moved)  # type: ignore[attr-defined]

        return Stage(run, read, finish)


class SecondStage:
    """A patch of the full resolution around each landmark, and a network for each."""

    def __init__(self, settings: Cascade, task: Task):
        self.settings, self.task = settings, task
        self._net: DisplacementNet | ResidualUNet
        if settings.refine == "displacement":
            self._net = DisplacementNet(settings.refine_widths, settings.hidden, dtype=task.dtype)
        else:
            self._net = ResidualUNet(settings.refine_widths, 1, dtype=task.dtype)

    def init(self, key: Array) -> Params:
        """Parameters, with an axis over the landmarks before all others."""
        keys = jax.random.split(key, len(self.task.landmarks))
        shape = jnp.zeros((1, *(self.settings.patch,) * 3, 1))
        return jax.vmap(self._net.init, (0, None))(keys, shape)

    def loss(self, params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """The Euclidean distance that is left, in mm; or the cross-entropy of the heatmap."""
        # (B, K, n, n, n, 1) to (K, B, n, n, n, 1).
        patches = batch.image.swapaxes(0, 1).astype(jnp.float32)
        true = batch.landmarks_ijk
        spacing = jnp.asarray(self.task.spacing_mm)
        if self.settings.refine == "displacement":
            moved = self.positions(params, patches)
            loss = distance_loss(moved * spacing, true * spacing, batch.present)
            return loss, {"distance_mm": loss}

        def of_one(params: Params, images: Array, points: Array, present: Array) -> Array:
            features = jnp.asarray(self._net.apply(params, images, method="features"))
            return heatmap_cross_entropy(
                features,
                points[:, None],
                present[:, None],
                head=self._head(params),
                spacing_mm=self.task.spacing_mm,
                sigma_mm=self.settings.refine_sigma_mm,
                slab_voxels=self.task.slab_voxels,
            )

        arguments = (params, patches, true.swapaxes(0, 1), batch.present.swapaxes(0, 1))
        losses = each(of_one, *arguments, platform=self.task.platform)
        return losses.mean(), {}

    def positions(self, params: Params, patches: Array) -> Array:
        """Patches (K, B, n, n, n, 1) -> landmarks (B, K, 3) in voxels of each patch."""
        settings, spacing = self.settings, jnp.asarray(self.task.spacing_mm)
        middle = (settings.patch - 1) / 2

        def of_one(params: Params, images: Array) -> Array:
            if settings.refine == "displacement":
                moved = jnp.asarray(self._net.apply(params, images))
                return middle + moved * settings.reach_mm / spacing
            features = jnp.asarray(self._net.apply(params, images, method="features"))
            _, fine, _, _ = decode(
                features,
                self._head(params),
                spacing_mm=self.task.spacing_mm,
                sigma_mm=settings.refine_sigma_mm,
                softmax=True,
                slab_voxels=self.task.slab_voxels,
            )
            reach = settings.reach_mm / spacing
            return jnp.clip(fine[:, 0], middle - reach, middle + reach)

        return each(of_one, params, patches, platform=self.task.platform).swapaxes(0, 1)

    def _head(self, params: Params) -> Callable[[Array], Array]:
        return lambda x: jnp.asarray(self._net.apply(params, x, method="heatmaps"))

    @property
    def stage(self) -> Stage:
        """Another look around what was found; the volume stays on the host."""
        side = self.settings.patch

        def read(volume: Volume, earlier: Prediction | None) -> HostBatch:
            assert earlier is not None
            found = np.asarray(earlier.positions_ijk["subvoxel"])
            first = first_voxels(found, side)
            return {
                "image": np.stack([volume.patch(corner, side) for corner in first])[..., None],
                "first": first.astype(np.float32),
                "found": found,
                "stage1": np.asarray(earlier.positions_ijk["stage1"]),
                "score": np.asarray(earlier.score),
                "evidence": np.asarray(earlier.evidence),
            }

        def run(variables: Variables, arrays: Mapping[str, Array]) -> Prediction:
            patches = arrays["image"].swapaxes(0, 1).astype(jnp.float32)
            moved = arrays["first"] + self.positions(variables.params["fine"], patches)
            refined = jnp.where(variables.statistics["refine"] > 0, moved, arrays["found"])
            positions = {"stage1": arrays["stage1"], "subvoxel": refined}
            return Prediction(positions, arrays["score"], arrays["evidence"])

        return Stage(run, read)


def read_coarse(case: PreparedCase, rng: np.random.Generator, *, factor: int) -> HostBatch:
    """The whole image, `factor` times smaller, with landmarks in its voxels."""
    points = (np.nan_to_num(case.landmarks_ijk) + 0.5) / factor - 0.5
    return {
        "image": case.volume.coarse(factor)[..., None],
        "landmarks_ijk": points.astype(np.float32),
        "present": case.present,
        "absent": case.absent,
    }


def read_patches(
    case: PreparedCase,
    rng: np.random.Generator,
    *,
    side: int,
    reach_mm: float,
    spacing_mm: tuple[float, float, float],
) -> HostBatch:
    """A patch near each landmark, (K, n, n, n, 1), and the landmark in its voxels.

    Its middle is anywhere within `reach_mm` along each axis: where the first stage may have put it.
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


def refined(statistics: dict[str, Any]) -> dict[str, Any]:
    """After a step of the second stage: its word counts."""
    return {"refine": jnp.ones_like(statistics["refine"])}


def _times(lengths: tuple[float, float, float], factor: int) -> tuple[float, float, float]:
    x, y, z = (n * factor for n in lengths)
    return x, y, z


def _divided(sizes: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    x, y, z = (n // factor for n in sizes)
    return x, y, z
