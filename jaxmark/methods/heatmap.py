"""Heatmap regression with a residual U-Net: the generator of Tan et al. (ISBI 2023) trained alone.

This is the paper's "Baseline" row and its pretraining phase.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxmark.core.augmentation import augment
from jaxmark.core.errors import InputError
from jaxmark.core.heatmaps import decode_argmax, decode_subvoxel
from jaxmark.core.losses import weighted_heatmap_loss
from jaxmark.methods.method import Batch, Method, Metrics, Params, Phase, Prediction, State, Task
from jaxmark.models.blocks import append_coordinates
from jaxmark.models.unet import ResidualUNet


@dataclasses.dataclass
class HeatmapRegression:
    """Settings. The paper states alpha, Adam and its rate; the others are ours to choose."""

    steps: int = 20_000
    widths: tuple[int, ...] = (16, 32, 64, 128)
    # Give the network each voxel's place in the volume: for cohorts that are registered. Paper: no.
    coordinates: bool = False
    sigma_mm: float = 1.5
    alpha: float = 1000.0
    learning_rate: float = 1e-4
    # Share of the steps over which the rate falls to zero along a cosine at the end; the paper: 0.
    decay: float = 0.0

    def build(self, task: Task) -> Method:
        """The method for volumes of `task.crop`, whose sides 2^(levels - 1) must divide."""
        block = 2 ** (len(self.widths) - 1)
        if any(n % block for n in task.crop):
            raise InputError(
                "config.data.crop",
                f"{task.crop} has a side that is not a multiple of {block}, which "
                f"{len(self.widths)} levels (config.method.widths) need",
            )
        net = ResidualUNet(self.widths, len(task.landmarks), dtype=task.dtype)
        optimizer = optax.adam(learning_rate(self.learning_rate, self.steps, self.decay))

        def inputs(image: Array) -> Array:
            return append_coordinates(image) if self.coordinates else image

        def init(key: Array) -> State:
            params = net.init(key, inputs(jnp.zeros((1, *task.crop, 1))))
            return State(
                step=jnp.zeros((), jnp.int32),
                params={"generator": params},
                optimizer={"generator": optimizer.init(params)},
            )

        def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
            image, landmarks_ijk = augment(
                key,
                batch.image,
                batch.landmarks_ijk,
                margin=task.margin,
                spacing_mm=task.spacing_mm,
                **dataclasses.asdict(task.augment),
            )

            def loss(params: Params) -> tuple[Array, Metrics]:
                return weighted_heatmap_loss(
                    net.apply(params, inputs(image)),
                    landmarks_ijk,
                    batch.present,
                    spacing_mm=task.spacing_mm,
                    sigma_mm=self.sigma_mm,
                    alpha=self.alpha,
                )

            params, opt_state = state.params["generator"], state.optimizer["generator"]
            (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            update, opt_state = optimizer.update(gradient, opt_state, params)
            new = State(
                step=state.step + 1,
                params={"generator": optax.apply_updates(params, update)},
                optimizer={"generator": opt_state},
            )
            return new, {"loss": value, "gradient_norm": optax.global_norm(gradient)}

        def predict(params: Params, image: Array) -> Prediction:
            heatmaps = net.apply(params["generator"], inputs(image))
            peak, score = decode_argmax(heatmaps)
            fine = decode_subvoxel(heatmaps, peak, task.spacing_mm, self.sigma_mm)
            return Prediction(argmax_ijk=peak, subvoxel_ijk=fine, score=score)

        return Method(init=init, phases=(Phase("pretrain", self.steps, step),), predict=predict)


def learning_rate(peak: float, steps: int, decay: float) -> optax.Schedule:
    """Constant, then a cosine to zero over the last `decay` share of the steps."""
    if not decay:
        return optax.constant_schedule(peak)
    start = round(steps * (1 - decay))
    return optax.join_schedules(
        [optax.constant_schedule(peak), optax.cosine_decay_schedule(peak, max(1, steps - start))],
        [start],
    )
