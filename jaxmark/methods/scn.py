"""SpatialConfiguration-Net (Payer et al., Medical Image Analysis 54, 2019).

One network with two parts, whose outputs are multiplied. It is trained end to end with a summed
squared error against Gaussians; the width of each landmark's Gaussian is learned, too. Defaults are
those of the authors' public code; `recipe="later"` is their code for the VerSe 2020 challenge.
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
    """Values of the authors' code; fields as in `SpatialConfiguration`."""

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
    """Settings. None: the value of the recipe in `RECIPES`; all other values are equal in both.

    Lengths in voxels are stated for the authors' isotropic grids of 2 mm. A voxel with unequal
    sides counts as a cube of its volume; a pixel counts as a square of its area.
    """

    # "2019" or "later": chooses the networks (see `SpatialConfigurationNet`) and the values of all
    # fields below that are None.
    recipe: str = setting("2019", either(*RECIPES))
    # The authors' code: 40,000 in "2019" and 50,000 in "later", batch 1.
    steps: int = setting(40_000, POSITIVE)
    filters: int | None = setting(None, POSITIVE)
    levels: int = setting(4, POSITIVE)
    # The spatial part's input is averaged over blocks of this many voxels a side.
    downsample: int | None = setting(None, POSITIVE)
    # Levels of the spatial part's U-Net, in "later" alone. The code: as many as `levels`.
    spatial_levels: int = setting(4, POSITIVE)
    dropout: float | None = setting(
        None, Bound(lambda value: 0 <= value < 1, "{} is not in [0, 1)")
    )
    # Mirror volumes at their borders instead of padding with zeros.
    reflect: bool | None = None
    # Compute activations again for the gradient, level by level: for GPUs with little memory.
    remat: bool = False
    # "nesterov" (momentum 0.99) or "adam".
    optimizer: str | None = setting(None, either("nesterov", "adam"))
    learning_rate: float | None = setting(None, POSITIVE)
    # The rate falls exponentially to this share of its first value.
    final_rate: float | None = setting(None, POSITIVE)
    # This times half the squared norm of all kernels is added to the loss.
    weight_decay: float | None = setting(None, NOT_NEGATIVE)
    # Gradients are clipped to this norm; 0: not. The code of 2019 does not clip; that of "later"
    # clips at twice a moving average.
    clip_norm: float = setting(0.0, NOT_NEGATIVE)
    # First width of all target Gaussians; None: 4 voxels in "2019", 3 in "later".
    sigma_mm: float | None = setting(None, POSITIVE)
    learn_sigma: bool | None = None
    # A target's sum over all voxels, so that narrow targets are high; 0: all have height 1. Learned
    # widths need a sum: among targets of one height the narrowest has the least loss.
    target_sum: float | None = setting(None, NOT_NEGATIVE)
    # This times half the sum of the squared widths (in voxels) of the present landmarks is added to
    # the loss.
    sigma_penalty: float = setting(100.0, NOT_NEGATIVE)
    # Learning rate of the widths as a multiple of the network's; the code: 1. Adam's steps are as
    # long as its rate, whatever the gradient: at 3e-4 voxels a step a width hardly moves.
    sigma_rate: float = setting(1.0, POSITIVE)
    # Least width: a narrower Gaussian could fall between voxels. Ours; the code has no bound.
    min_sigma_voxels: float = setting(0.5, POSITIVE)
    # Width of the mean shift for sub-voxel positions; None: the first width of the targets. The
    # code takes the voxel of the maximum.
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
                "needs a config.method.target_sum: among targets of one height the narrowest has "
                "the least loss",
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
        """The method for volumes of `task.crop`; its sides must fit `levels` and `downsample`."""
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
        """The optimiser of the network and of the widths, which are in voxels."""
        rate = optax.exponential_decay(
            self.recipe.learning_rate, self.settings.steps, self.recipe.final_rate
        )
        steps = {"nesterov": nesterov(rate), "adam": optax.adam(rate)}
        optimizer = decayed(self.recipe.weight_decay, steps[self.recipe.optimizer])
        return clipped(self.settings.clip_norm, optimizer)

    def in_voxels(self, params: Params) -> dict[str, Any]:
        """Parameters with widths in voxels: the code's rates and penalty are for voxels."""
        return {**params, "sigma_mm": params["sigma_mm"] / self.voxel_mm}

    def in_mm(self, params: Params) -> dict[str, Any]:
        """The inverse of `in_voxels`, with widths of at least `min_sigma_voxels`."""
        voxels = jnp.maximum(params["sigma_mm"], self.settings.min_sigma_voxels)
        return {**params, "sigma_mm": voxels * self.voxel_mm}

    def heatmaps(
        self, params: Params, image: Array, key: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Heatmaps, their local and their spatial factors (B, X, Y, Z, K); a key turns dropout on.

        They can't be made slab by slab: the spatial part needs all local heatmaps before any
        product is known. K channels are little memory beside features of 64 channels.
        """
        image = self.task.squeezed(image)
        if key is None:
            outputs: Any = self._net.apply(params["scn"], image)
        else:
            outputs = self._training_net.apply(params["scn"], image, rngs={"dropout": key})
        heatmaps, local, spatial = map(self.task.restored, outputs)
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

        Absent landmarks have an empty target. Landmarks without annotation are left out of the sum;
        in the authors' code they have an empty target, too.
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
        """Landmarks of volumes (B, X, Y, Z, 1); the score is the peak relative to the target's."""
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
    """A training step of network and widths together."""

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
    kept: int  # activations that the forward pass keeps for the backward pass
    working: int  # arrays of the largest layer while it runs

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.parameters + self.kept + self.working


def training_memory(settings: SpatialConfiguration, task: Task, batch: int) -> Memory:
    """The memory of a training step of `batch` volumes, estimated without compiling it.

    `parameters` and `kept` are exact for JAX's own graph (a compiler may still merge or recompute
    some). `working` is fitted, see `WORKING_LAYERS`.
    """
    model = ScaledHeatmaps(settings, task)
    k = len(task.landmarks)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda p: model.optimizer().init(model.in_voxels(p)), params)
    image = jax.ShapeDtypeStruct((batch, *task.crop, 1), jnp.float32)

    # On a CPU, XLA merges the second computation of `remat` with the first, and saves nothing.
    def left_behind(params: Params, image: Array) -> Any:
        return jax.vjp(lambda p: model.heatmaps(p, image, jax.random.key(0))[0], params)[1]

    kept = nbytes(jax.eval_shape(left_behind, params, image)) - nbytes(params)
    widest = max(model.recipe.filters, k) * jnp.dtype(task.dtype).itemsize
    return Memory(
        parameters=2 * nbytes(params) + nbytes(state),
        kept=kept,
        working=WORKING_LAYERS[settings.recipe] * batch * math.prod(task.crop) * widest,
    )


# Arrays of the size of a full-resolution layer's output that the backward pass holds beside those
# kept: gradients, padded and rearranged copies, heatmaps. XLA counted 11 to 15 and 4 to 6 on a CPU
# in float32 at five sizes; a compiler that convolves in place needs fewer.
WORKING_LAYERS = {"2019": 13, "later": 6}


def memory_notes(settings: SpatialConfiguration, task: Task, batch: int) -> tuple[str, ...]:
    """A line to print before training: the memory of a step, and which settings reduce it."""
    # The working part is fitted to a CPU's compiler.
    about = "about" if task.platform == "cpu" else "at most about"
    line = (
        f"a training step of {batch} volume(s) of {'x'.join(map(str, task.crop))} voxels with "
        f"{resolved(settings).filters} filters needs {about} "
        f"{training_memory(settings, task, batch).total / 1e9:.2g} GB"
    )
    # The compiler's counts for an H100: "later" 8.3 GB, with remat 4.6; "2019" 4.0 and 4.5.
    if not settings.remat and settings.recipe == "later":
        line += "; config.method.remat=True nearly halves that, but not on a CPU"
    return (line + "; fewer config.method.filters need less in proportion",)


def resolved(settings: SpatialConfiguration) -> Recipe:
    """The recipe, overridden by those of the settings that are not None."""
    names = [field.name for field in dataclasses.fields(Recipe) if field.name != "sigma_voxels"]
    given = {name: getattr(settings, name) for name in names}
    own = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(RECIPES[settings.recipe], **own)
