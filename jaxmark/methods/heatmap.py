"""Heatmap regression with a residual U-Net: the generator of Tan et al. (ISBI 2023) trained alone.

This is the paper's "Baseline" row and its pretraining phase.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.scipy.special import logsumexp

from jaxmark.core.augmentation import augment
from jaxmark.core.heatmaps import decode, gaussian_sum
from jaxmark.core.losses import heatmap_cross_entropy, weighted_heatmap_loss
from jaxmark.core.slabs import Head, map_slabs, whole
from jaxmark.methods.method import Batch, Method, Metrics, Params, Phase, Prediction, State, Task
from jaxmark.models.blocks import append_coordinates
from jaxmark.models.unet import ResidualUNet
from jaxmark.system.errors import InputError


@dataclasses.dataclass
class HeatmapRegression:
    """Settings. The paper states alpha, Adam and its rate; the others are ours to choose."""

    steps: int = 20_000
    widths: tuple[int, ...] = (16, 32, 64, 128)
    # Channels of a 1^3 layer before the last; 0: none. See ResidualUNet.
    head: int = 64
    # Give the network each voxel's place in the volume: for cohorts that are registered. Paper: no.
    coordinates: bool = False
    # Keep fewer activations for the gradient and compute them twice: for cards with little memory.
    remat: bool = False
    # "weighted_l2" (Eq. 2) or "cross_entropy" (of a softmax over all voxels; ours).
    loss: str = "weighted_l2"
    sigma_mm: float = 1.5
    alpha: float = 1000.0
    learning_rate: float = 1e-4
    # Share of the steps over which the rate falls to zero along a cosine at the end; the paper: 0.
    decay: float = 0.0
    # Largest norm of a network's gradient, longer ones are shortened; 0: any, as in the paper.
    clip_norm: float = 0.0

    @property
    def needs_unpaired(self) -> bool:
        """See `Settings`."""
        return False

    def build(self, task: Task) -> Method:
        """The method for volumes of `task.crop`, whose sides 2^(levels - 1) must divide."""
        check(self, task)
        generator = Generator(self, task)
        rate = learning_rate(self.learning_rate, self.steps, self.decay)
        optimizer = clipped(self.clip_norm, optax.adam(rate))

        def init(key: Array) -> State:
            params = generator.init(key)
            return State(
                step=jnp.zeros((), jnp.int32),
                params={"generator": params},
                optimizer={"generator": optimizer.init(params)},
            )

        step = pretraining_step(generator, optimizer)
        return Method(
            init=init,
            phases=(Phase("pretrain", self.steps, step),),
            predict=lambda params, image: generator.predict(params["generator"], image),
        )


class Generator:
    """The network, its loss and its decoding, as pure functions of its parameters."""

    def __init__(self, settings: HeatmapRegression, task: Task):
        self.settings, self.task = settings, task
        self._net = ResidualUNet(
            settings.widths,
            len(task.landmarks),
            settings.head,
            dtype=task.dtype,
            remat=settings.remat,
        )

    def init(self, key: Array) -> Params:
        """Parameters of both halves, body and head."""
        channels = 4 if self.settings.coordinates else 1
        return self._net.init(key, jnp.zeros((1, *self.task.crop, channels)))

    def features(self, params: Params, image: Array) -> Array:
        """Volumes (B, X, Y, Z, 1) -> what the head makes heatmaps of, voxel by voxel."""
        image = append_coordinates(image) if self.settings.coordinates else image
        return jnp.asarray(self._net.apply(params, image, method="features"))

    def head(self, params: Params) -> Head:
        """Features to heatmaps, or with the cross-entropy to logits of a softmax."""
        return lambda x: jnp.asarray(self._net.apply(params, x, method="heatmaps"))

    def maps(self, params: Params, image: Array) -> Array:
        """What the head makes of volumes (B, X, Y, Z, 1), whole: (B, X, Y, Z, K).

        In the network's arithmetic; between features and maps nothing is whole.
        """
        head, features = self.head(params), self.features(params, image)
        return whole(map_slabs(lambda slab, _: head(slab).astype(self.task.dtype), features))

    def heatmaps(self, features: Array, head: Head) -> Head:
        """Features (any slab of them) to heatmaps whose peaks should be 1, whatever the loss.

        `features` are those of the whole volumes, over which a softmax has to run.
        """
        if self.settings.loss != "cross_entropy":
            return head
        total = gaussian_sum(self.task.spacing_mm, self.settings.sigma_mm)
        logits = map_slabs(lambda slab, _: logsumexp(head(slab), axis=(1, 2, 3)), features)
        log_sum = logsumexp(logits, axis=0)[:, None, None, None]
        return lambda x: total * jnp.exp(head(x) - log_sum)

    def loss(
        self, features: Array, head: Head, landmarks_ijk: Array, present: Array, absent: Array
    ) -> Array:
        """L_heat of Eq. 2, or the cross-entropy in its place."""
        heatmap_loss: Callable[..., Array] = functools.partial(
            heatmap_cross_entropy, presence=self.task.presence
        )
        if self.settings.loss == "weighted_l2":
            heatmap_loss = functools.partial(weighted_heatmap_loss, alpha=self.settings.alpha)
        return heatmap_loss(
            features,
            landmarks_ijk,
            present,
            spacing_mm=self.task.spacing_mm,
            sigma_mm=self.settings.sigma_mm,
            absent=absent,
            head=head,
        )

    def predict(self, params: Params, image: Array) -> Prediction:
        """Landmarks of volumes (B, X, Y, Z, 1)."""
        peak, fine, score, evidence = decode(
            self.features(params, image),
            self.head(params),
            spacing_mm=self.task.spacing_mm,
            sigma_mm=self.settings.sigma_mm,
            softmax=self.settings.loss == "cross_entropy",
        )
        return Prediction(argmax_ijk=peak, subvoxel_ijk=fine, score=score, evidence=evidence)


def pretraining_step(
    generator: Generator, optimizer: optax.GradientTransformation
) -> Callable[[State, Batch, Array], tuple[State, Metrics]]:
    """A step of the generator alone on L_heat; other networks of the state stay as they are."""

    def loss(params: Params, image: Array, landmarks_ijk: Array, batch: Batch) -> Array:
        features = generator.features(params, image)
        head = generator.head(params)
        return generator.loss(features, head, landmarks_ijk, batch.present, batch.absent)

    def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        image, landmarks_ijk = augmented(generator.task, batch, key)
        params, opt_state = state.params["generator"], state.optimizer["generator"]
        value, gradient = jax.value_and_grad(loss)(params, image, landmarks_ijk, batch)
        update, opt_state = optimizer.update(gradient, opt_state, params)
        new = State(
            step=state.step + 1,
            params={**state.params, "generator": optax.apply_updates(params, update)},
            optimizer={**state.optimizer, "generator": opt_state},
        )
        return new, {"loss": value, "gradient_norm": optax.tree.norm(gradient)}

    return step


def augmented(task: Task, batch: Batch, key: Array) -> tuple[Array, Array]:
    """Random views of a batch: volumes of the crop's shape, and landmarks in their voxels."""
    return augment(
        key,
        batch.image,
        batch.landmarks_ijk,
        margin=task.margin,
        spacing_mm=task.spacing_mm,
        **dataclasses.asdict(task.augment),
    )


def check(settings: HeatmapRegression, task: Task) -> None:
    """InputError where a setting is impossible, or does not fit the volumes."""
    block = 2 ** (len(settings.widths) - 1)
    if any(n % block for n in task.crop):
        raise InputError(
            "config.data.crop",
            f"{task.crop} has a side that is not a multiple of {block}, which "
            f"{len(settings.widths)} levels (config.method.widths) need",
        )
    if settings.loss not in ("weighted_l2", "cross_entropy"):
        raise InputError(
            "config.method.loss", f"{settings.loss!r} is not 'weighted_l2' or 'cross_entropy'"
        )
    positive = ("steps", "sigma_mm", "learning_rate", "alpha")
    for name in positive:
        if getattr(settings, name) <= 0:
            raise InputError(f"config.method.{name}", f"{getattr(settings, name)} is not positive")
    if not settings.widths or min(settings.widths) < 1 or settings.head < 0:
        raise InputError("config.method.widths", "and head need positive numbers of channels")
    if settings.clip_norm < 0:
        raise InputError("config.method.clip_norm", f"{settings.clip_norm} is negative")
    if not 0 <= settings.decay <= 1:
        raise InputError("config.method.decay", f"{settings.decay} is not between 0 and 1")


def clipped(norm: float, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser of gradients of at most this norm; 0: of any."""
    return optax.chain(optax.clip_by_global_norm(norm), optimizer) if norm else optimizer


def learning_rate(peak: float, steps: int, decay: float) -> optax.Schedule:
    """Constant, then a cosine to zero over the last `decay` share of the steps."""
    if not decay:
        return optax.constant_schedule(peak)
    start = round(steps * (1 - decay))
    return optax.join_schedules(
        [optax.constant_schedule(peak), optax.cosine_decay_schedule(peak, max(1, steps - start))],
        [start],
    )
