"""SpatialConfiguration-Net (Payer et al., Medical Image Analysis 54, 2019).

One network in two parts that are multiplied, trained end to end by a summed squared error against
Gaussians whose widths are learned, too, one for each landmark. The numbers are those of the
authors' public code; `recipe="later"` is what the same authors did for the VerSe 2020 challenge.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxmark.bounds import NOT_NEGATIVE, POSITIVE, Bound, Problem, check, divisible, either, setting
from jaxmark.core.heatmaps import decode, gaussian_sum, gaussians
from jaxmark.methods.method import (
    GRADIENT,
    LENGTH_MM,
    LOSS,
    Batch,
    Method,
    Metrics,
    Params,
    Phase,
    Prediction,
    State,
    Task,
    whole_volume_stage,
)
from jaxmark.methods.optimizers import clipped, decayed, nesterov
from jaxmark.methods.views import augmented
from jaxmark.models.scn import SpatialConfigurationNet, multiples
from jaxmark.system.memory import nbytes


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the authors' code has; fields as in `SpatialConfiguration`."""

    filters: int
    downsample: int
    dropout: float
    reflect: bool
    optimizer: str
    learning_rate: float
    final_rate: float
    weight_decay: float
    sigma_voxels: float
    learn_sigma: bool
    target_sum: float


RECIPES = {
    "2019": Recipe(
        filters=64,
        downsample=8,
        dropout=0.5,
        reflect=True,
        optimizer="nesterov",
        learning_rate=5e-8,
        final_rate=1.0,
        weight_decay=5e-4,
        sigma_voxels=4.0,
        learn_sigma=True,
        target_sum=1000.0,
    ),
    "later": Recipe(
        filters=96,
        downsample=4,
        dropout=0.25,
        reflect=False,
        optimizer="adam",
        learning_rate=1e-4,
        final_rate=0.1,
        weight_decay=0.0,
        sigma_voxels=3.0,
        learn_sigma=False,
        target_sum=0.0,
    ),
}


@dataclasses.dataclass
class SpatialConfiguration:
    """Settings. None: the recipe's own, `RECIPES`; all other values are the same in both.

    Lengths in voxels are of the authors' isotropic grids of 2 mm. Where voxels have unequal sides,
    the side of a cube of the same volume counts, or of pictures that of a square of the same area.
    """

    # "2019" or "later": the networks (see `SpatialConfigurationNet`) and what is None below.
    recipe: str = setting("2019", either(*RECIPES))
    # The code: 40,000 and 50,000, batch 1.
    steps: int = setting(40_000, POSITIVE)
    filters: int | None = setting(None, POSITIVE)
    levels: int = setting(4, POSITIVE)
    # Voxels a side that the spatial part sees as one.
    downsample: int | None = setting(None, POSITIVE)
    # Levels of the spatial part's U-Net, of "later" alone. The code: as many as `levels`.
    spatial_levels: int = setting(4, POSITIVE)
    dropout: float | None = setting(
        None, Bound(lambda value: 0 <= value < 1, "{} is not in [0, 1)")
    )
    # Mirror volumes at their borders instead of padding with zeros.
    reflect: bool | None = None
    # Compute activations anew for the gradient, level by level: for cards with little memory.
    remat: bool = False
    # "nesterov" (momentum 0.99) or "adam".
    optimizer: str | None = setting(None, either("nesterov", "adam"))
    learning_rate: float | None = setting(None, POSITIVE)
    # The rate at the end as a share of that at the start, along an exponential.
    final_rate: float | None = setting(None, POSITIVE)
    # Half the squared norm of all kernels, times this, is added to what is minimised.
    weight_decay: float | None = setting(None, NOT_NEGATIVE)
    # Largest norm of a gradient; 0: any. The code of 2019 has none; that of "later" clips at twice
    # a moving average.
    clip_norm: float = setting(0.0, NOT_NEGATIVE)
    # Width of all target Gaussians at the start; None: 4 or 3 voxels.
    sigma_mm: float | None = setting(None, POSITIVE)
    learn_sigma: bool | None = None
    # A target's sum over all voxels, so that narrow ones are high; 0: all have height 1. To be
    # learned, a width needs a sum: of targets of one height the narrowest costs least.
    target_sum: float | None = setting(None, NOT_NEGATIVE)
    # Half the sum of the squared widths (in voxels) of the landmarks that are present, times this,
    # is added to the loss.
    sigma_penalty: float = setting(100.0, NOT_NEGATIVE)
    # Learning rate of the widths as a multiple of the network's; the code: 1. Adam's steps are as
    # long as its rate, however steep the loss: at 3e-4 voxels a step a width hardly moves.
    sigma_rate: float = setting(1.0, POSITIVE)
    # No width gets smaller: such a Gaussian would fall between voxels. Ours; the code has no bound.
    min_sigma_voxels: float = setting(0.5, POSITIVE)
    # Of the mean shift for sub-voxel positions; None: the width at the start. The code has the
    # voxel of the maximum.
    decode_sigma_mm: float | None = setting(None, POSITIVE)

    decoders: ClassVar[tuple[str, ...]] = ("argmax", "subvoxel")
    metrics: ClassVar[Mapping[str, str]] = {
        "loss": LOSS,
        "heatmap_loss": LOSS,
        "sigma_penalty": LOSS,
        "mean_sigma_mm": LENGTH_MM,
        "gradient_norm": GRADIENT,
    }

    @property
    def needs(self) -> frozenset[str]:
        """See `Settings`."""
        return frozenset()

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        recipe = resolved(self)
        if recipe.learn_sigma and not recipe.target_sum:
            yield (
                "learn_sigma",
                "needs a config.method.target_sum: of targets of one height the narrowest costs "
                "least",
            )

    def misfits(self, task: Task) -> Iterator[Problem]:
        """See `Settings`."""
        downsample = resolved(self).downsample
        local, spatial = multiples(self.recipe, self.levels, downsample, self.spatial_levels)
        later = (
            f" and {self.spatial_levels} levels of the spatial part "
            "(config.method.spatial_levels) need"
        )
        ends = (
            f"config.method.downsample={downsample}{later if self.recipe == 'later' else ' needs'}"
        )
        for size, why in (
            (local, f"{self.levels} levels (config.method.levels) need"),
            (spatial, ends),
        ):
            yield from divisible(task.crop, size, why)

    def build(self, task: Task) -> Method:
        """The method for volumes of `task.crop`, whose sides must fit levels and `downsample`."""
        check(self, "config.method", task)
        model = ScaledHeatmaps(self, task)
        optimizer = model.optimizer()

        def init(key: Array) -> State:
            params = model.init(key)
            return State(
                step=jnp.zeros((), jnp.int32),
                params=params,
                optimizer={"scn": optimizer.init(model.in_voxels(params))},
            )

        return Method(
            init=init,
            phases=(Phase("train", self.steps, training_step(model, optimizer)),),
            stages=whole_volume_stage(
                task, lambda variables, image: model.predict(variables.params, image)
            ),
            notes=lambda batch: memory_notes(self, task, batch),
            learned=model.learned,
        )


class ScaledHeatmaps:
    """Network, targets, loss and decoding as pure functions of the parameters.

    Parameters are `{"scn": the network's, "sigma_mm": (K,)}`.
    """

    def __init__(self, settings: SpatialConfiguration, task: Task):
        self.settings, self.task = settings, task
        self.recipe = resolved(settings)
        self.voxel_mm = math.prod(task.spacing_mm[: task.axes]) ** (1 / task.axes)
        self.sigma_mm = settings.sigma_mm or self.recipe.sigma_voxels * self.voxel_mm
        self._net = SpatialConfigurationNet(
            len(task.landmarks),
            settings.recipe,
            self.recipe.filters,
            settings.levels,
            self.recipe.downsample,
            settings.spatial_levels,
            self.recipe.dropout,
            self.recipe.reflect,
            remat=settings.remat,
            dtype=task.dtype,
        )
        self._training_net = self._net.clone(training=True)

    def init(self, key: Array) -> dict[str, Any]:
        """Parameters at the start."""
        return {
            "scn": self._net.init(key, self.task.squeezed(jnp.zeros((1, *self.task.crop, 1)))),
            "sigma_mm": jnp.full((len(self.task.landmarks),), self.sigma_mm, jnp.float32),
        }

    def optimizer(self) -> optax.GradientTransformation:
        """Of the network and, in voxels, of the widths."""
        rate = optax.exponential_decay(
            self.recipe.learning_rate, self.settings.steps, self.recipe.final_rate
        )
        steps = {"nesterov": nesterov(rate), "adam": optax.adam(rate)}
        optimizer = decayed(self.recipe.weight_decay, steps[self.recipe.optimizer])
        return clipped(self.settings.clip_norm, optimizer)

    def in_voxels(self, params: Params) -> dict[str, Any]:
        """Widths in voxels, as in the code: its rates and penalty are for these."""
        return {**params, "sigma_mm": params["sigma_mm"] / self.voxel_mm}

    def in_mm(self, params: Params) -> dict[str, Any]:
        """The inverse of `in_voxels`, with widths of at least `min_sigma_voxels`."""
        voxels = jnp.maximum(params["sigma_mm"], self.settings.min_sigma_voxels)
        return {**params, "sigma_mm": voxels * self.voxel_mm}

    def heatmaps(
        self, params: Params, image: Array, key: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Heatmaps, local and spatial ones (B, X, Y, Z, K); dropout is on where there is a key.

        They are there as a whole: the spatial part looks at all local ones before any product is
        known. Beside features of 64 channels, K are few.
        """
        image = self.task.squeezed(image)
        if key is None:
            made: Any = self._net.apply(params["scn"], image)
        else:
            made = self._training_net.apply(params["scn"], image, rngs={"dropout": key})
        heatmaps, local, spatial = map(self.task.restored, made)
        return heatmaps, local, spatial

    def height(self, sigma: Array) -> Array:
        """The targets' heights (K,) for widths (K,) in mm."""
        if not self.recipe.target_sum:
            return jnp.ones_like(sigma)
        task = self.task
        unit = gaussian_sum(task.crop, task.spacing_mm, 1.0)
        return self.recipe.target_sum / (unit * sigma**task.axes)

    def losses(
        self,
        params: Params,
        heatmaps: Array,
        landmarks_ijk: Array,
        present: Array,
        absent: Array,
    ) -> tuple[Array, Array]:
        """Half the summed squared error, and the penalty on the widths; means over the batch.

        Absent landmarks have an empty target. In the code, those that nobody annotated have, too;
        here they leave the sum.
        """
        sigma = params["sigma_mm"]
        if not self.recipe.learn_sigma:
            sigma = jax.lax.stop_gradient(sigma)
        target = gaussians(landmarks_ijk, heatmaps.shape[1:4], self.task.spacing_mm, sigma)
        target = target * jnp.where(present, self.height(sigma), 0.0)[:, None, None, None]
        squared = ((heatmaps - target) ** 2).sum((1, 2, 3))
        fit = 0.5 * jnp.where(present | absent, squared, 0.0).sum(-1).mean()
        voxels = sigma / self.voxel_mm
        penalty = 0.5 * self.settings.sigma_penalty * (present * voxels**2).sum(-1).mean()
        return fit, penalty if self.recipe.learn_sigma else jnp.zeros(())

    def learned(self, params: Params) -> dict[str, Array]:
        """The targets' widths, where they are learned."""
        return {"sigma_mm": params["sigma_mm"]} if self.recipe.learn_sigma else {}

    def predict(self, params: Params, image: Array) -> Prediction:
        """Landmarks of volumes (B, X, Y, Z, 1); the score is the height relative to the target."""
        heatmaps, _, _ = self.heatmaps(params, image)
        peak, fine, score, evidence, spread_mm = decode(
            heatmaps / self.height(params["sigma_mm"]),
            lambda x: x,
            spacing_mm=self.task.spacing_mm,
            sigma_mm=self.settings.decode_sigma_mm or self.sigma_mm,
            softmax=False,
            slab_voxels=self.task.slab_voxels,
        )
        positions = {"argmax": peak, "subvoxel": fine}
        return Prediction(positions, score, evidence, spread_mm=spread_mm)


def training_step(
    model: ScaledHeatmaps, optimizer: optax.GradientTransformation
) -> Callable[[State, Batch, Array], tuple[State, Metrics]]:
    """A step of network and widths together."""

    def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        k_view, k_dropout = jax.random.split(key)
        view = augmented(model.task, batch, k_view)

        def loss(voxels: Params) -> tuple[Array, tuple[Array, Array]]:
            params = {**voxels, "sigma_mm": voxels["sigma_mm"] * model.voxel_mm}
            heatmaps, _, _ = model.heatmaps(params, view.image, k_dropout)
            fit, penalty = model.losses(
                params, heatmaps, view.landmarks_ijk, view.present, view.absent
            )
            return fit + penalty, (fit, penalty)

        params = model.in_voxels(state.params)
        (value, (fit, penalty)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        update, opt_state = optimizer.update(gradient, state.optimizer["scn"], params)
        update["sigma_mm"] = update["sigma_mm"] * model.settings.sigma_rate
        new = model.in_mm(optax.apply_updates(params, update))
        metrics = {
            "loss": value,
            "heatmap_loss": fit,
            "sigma_penalty": penalty,
            "mean_sigma_mm": new["sigma_mm"].mean(),
            "gradient_norm": optax.tree.norm(gradient),
        }
        return State(step=state.step + 1, params=new, optimizer={"scn": opt_state}), metrics

    return step


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs, in parts."""

    parameters: int  # with their gradients and the optimiser's state
    kept: int  # what the forward pass leaves for the backward pass
    working: int  # at the time of the largest layer

    @property
    def total(self) -> int:
        """All at once."""
        return self.parameters + self.kept + self.working


def training_memory(settings: SpatialConfiguration, task: Task, batch: int) -> Memory:
    """What a training step of `batch` volumes will need, without compiling or computing it.

    Parameters and what is kept are exact for JAX's own graph (a compiler may still merge or
    recompute some). The rest is `WORKING_LAYERS`.
    """
    model = ScaledHeatmaps(settings, task)
    k = len(task.landmarks)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda p: model.optimizer().init(model.in_voxels(p)), params)
    image = jax.ShapeDtypeStruct((batch, *task.crop, 1), jnp.float32)

    # On a CPU, XLA merges what `remat` computes again with the first time, and saves nothing.
    def left_behind(params: Params, image: Array) -> Any:
        return jax.vjp(lambda p: model.heatmaps(p, image, jax.random.key(0))[0], params)[1]

    kept = nbytes(jax.eval_shape(left_behind, params, image)) - nbytes(params)
    widest = max(model.recipe.filters, k) * jnp.dtype(task.dtype).itemsize
    return Memory(
        parameters=2 * nbytes(params) + nbytes(state),
        kept=kept,
        working=WORKING_LAYERS[settings.recipe] * batch * math.prod(task.crop) * widest,
    )


# Results of a layer at full resolution that the backward pass has in hand beside those that are
# kept: gradients, padded and rearranged copies, heatmaps. As XLA counts for a CPU in float32 (11 to
# 15 and 4 to 6 at five sizes); a compiler that convolves in place needs fewer.
WORKING_LAYERS = {"2019": 13, "later": 6}


def memory_notes(settings: SpatialConfiguration, task: Task, batch: int) -> tuple[str, ...]:
    """A line for people before training: what a step will need, and what would make it less."""
    # The working part is fitted to a CPU's compiler.
    about = "about" if task.platform == "cpu" else "at most about"
    line = (
        f"a training step of {batch} volume(s) of {'x'.join(map(str, task.crop))} voxels with "
        f"{resolved(settings).filters} filters needs {about} "
        f"{training_memory(settings, task, batch).total / 1e9:.2g} GB"
    )
    # The compiler's counts for an H100: 8.3 GB, 4.6 with it; of the other recipe 4.0 and 4.5.
    if not settings.remat and settings.recipe == "later":
        line += "; config.method.remat=True nearly halves that, but not on a CPU"
    return (line + "; fewer config.method.filters need less in proportion",)


def resolved(settings: SpatialConfiguration) -> Recipe:
    """The recipe with what the settings have instead."""
    names = [field.name for field in dataclasses.fields(Recipe) if field.name != "sigma_voxels"]
    given = {name: getattr(settings, name) for name in names}
    own = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(RECIPES[settings.recipe], **own)
