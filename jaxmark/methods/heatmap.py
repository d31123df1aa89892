"""Heatmap regression with a residual U-Net: the generator of Tan et al. (ISBI 2023) trained alone.

This is the paper's "Baseline" row and its pretraining phase.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.special import logsumexp

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
)
from jaxmark.core.heatmaps import decode, gaussian_sum, log_gaussians, places
from jaxmark.core.losses import heatmap_cross_entropy, weighted_heatmap_loss
from jaxmark.core.slabs import Head, join_slabs, map_slabs
from jaxmark.methods.method import (
    GRADIENT,
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
from jaxmark.methods.optimizers import clipped, cosine_at_the_end, descent
from jaxmark.methods.views import augmented
from jaxmark.models.blocks import append_coordinates
from jaxmark.models.unet import ResidualUNet


@dataclasses.dataclass
class HeatmapRegression:
    """Settings. The paper states alpha, Adam and its learning rate; all other values are ours."""

    steps: int = setting(20_000, POSITIVE)
    widths: tuple[int, ...] = setting(
        (16, 32, 64, 128), positive_numbers("and head need positive numbers of channels")
    )
    # Channels of a 1^3 layer before the last; 0: none. See ResidualUNet.
    head: int = setting(64, NOT_NEGATIVE)
    # Give the network each voxel's place in the volume: for registered cohorts. Paper: no.
    coordinates: bool = False
    # Keep fewer activations for the gradient and compute them twice: for GPUs with little memory.
    remat: bool = False
    # "weighted_l2" (Eq. 2) or "cross_entropy" (of a softmax over all voxels; ours).
    loss: str = setting("weighted_l2", either("weighted_l2", "cross_entropy"))
    sigma_mm: float = setting(1.5, POSITIVE)
    alpha: float = setting(1000.0, POSITIVE)
    learning_rate: float = setting(1e-4, POSITIVE)
    # Last share of the steps, over which the rate falls to zero along a cosine; the paper: 0.
    decay: float = setting(0.0, SHARE)
    # Gradients of a network are clipped to this norm; 0: not, as in the paper.
    clip_norm: float = setting(0.0, NOT_NEGATIVE)

    decoders: ClassVar[tuple[str, ...]] = ("argmax", "subvoxel")
    metrics: ClassVar[Mapping[str, str]] = {"loss": LOSS, "gradient_norm": GRADIENT}

    @property
    def needs(self) -> frozenset[str]:
        """See `Settings`."""
        return frozenset()

    def misfits(self, task: Task) -> Iterator[Problem]:
        """See `Settings`."""
        levels = len(self.widths)
        why = f"{levels} levels (config.method.widths) need"
        yield from divisible(task.crop, 2 ** (levels - 1), why)

    def build(self, task: Task) -> Method:
        """The method for volumes of `task.crop`, whose sides 2^(levels - 1) must divide."""
        check(self, "config.method", task)
        generator = Generator(self, task)
        rate = cosine_at_the_end(self.learning_rate, self.steps, self.decay)
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
            stages=whole_volume_stage(
                task,
                lambda variables, image: generator.predict(variables.params["generator"], image),
            ),
        )


class LandmarkPrior(NamedTuple):
    """A Gaussian for each landmark: where it usually lies."""

    means_mm: np.ndarray  # (K, 3) from the middle of the crop
    sd_mm: float  # along each axis


class Generator:
    """The network, its loss and its decoding, as pure functions of its parameters.

    With a `prior`, for the cross-entropy alone, the network's logits are added to the logarithm of
    the prior. The network then learns only what the image adds to the prior.
    """

    def __init__(self, settings: HeatmapRegression, task: Task, prior: LandmarkPrior | None = None):
        self.settings, self.task, self._prior = settings, task, prior
        self._net = ResidualUNet(
            settings.widths,
            len(task.landmarks),
            settings.head,
            dtype=task.dtype,
            remat=settings.remat,
        )
        place: dict[str, Any] = {
            "spacing_mm": task.spacing_mm,
            "sigma_mm": settings.sigma_mm,
            "slab_voxels": task.slab_voxels,
        }
        # L_heat of Eq. 2, or the cross-entropy in its place.
        self.loss: Callable[..., Array] = functools.partial(
            weighted_heatmap_loss, alpha=settings.alpha, **place
        )
        if settings.loss == "cross_entropy":
            self.loss = functools.partial(heatmap_cross_entropy, presence=task.presence, **place)

    def init(self, key: Array) -> Params:
        """Parameters of both halves, body and head."""
        channels = 1 + (self.task.axes if self.settings.coordinates else 0)
        return self._net.init(key, self.task.squeezed(jnp.zeros((1, *self.task.crop, channels))))

    def features(self, params: Params, image: Array) -> Array:
        """Volumes (B, X, Y, Z, 1) -> features, from which the head makes heatmaps by voxels."""
        image = self.task.squeezed(image)
        image = append_coordinates(image) if self.settings.coordinates else image
        found = self.task.restored(jnp.asarray(self._net.apply(params, image, method="features")))
        if self._prior is None:
            return found
        # Places are float32: 16 bits can't tell millimetres apart.
        where = jnp.broadcast_to(self._places, (*found.shape[:-1], 4))
        return jnp.concatenate([found.astype(jnp.float32), where], -1)

    def head(self, params: Params) -> Head:
        """Features to heatmaps, or with the cross-entropy to logits of a softmax."""

        def last_layers(x: Array) -> Array:
            return jnp.asarray(self._net.apply(params, x, method="heatmaps"))

        if self._prior is None:
            return last_layers
        log_prior = functools.partial(
            log_gaussians,
            means_mm=jnp.asarray(self._prior.means_mm, jnp.float32),
            sd_mm=self._prior.sd_mm,
            shape=self.task.crop,
            spacing_mm=self.task.spacing_mm,
        )
        return lambda x: last_layers(x[..., :-4]) + log_prior(x[..., -4:])

    @property
    def _places(self) -> Array:
        return places(self.task.crop, self.task.spacing_mm)

    def maps(self, params: Params, image: Array) -> Array:
        """Volumes (B, X, Y, Z, 1) -> the head's whole output (B, X, Y, Z, K) in `task.dtype`.

        The head runs slab by slab: its hidden layer is never in memory as a whole.
        """
        head, features = self.head(params), self.features(params, image)
        slabs = map_slabs(
            lambda slab, _: head(slab).astype(self.task.dtype),
            features,
            voxels=self.task.slab_voxels,
        )
        return join_slabs(slabs)

    def heatmaps(self, maps: Array) -> Callable[[Array], Array]:
        """A function from slabs of `maps` to heatmaps whose peaks should be 1, for either loss.

        `maps` must be whole: the softmax runs over all voxels.
        """
        if self.settings.loss != "cross_entropy":
            return lambda slab: slab.astype(jnp.float32)
        total = gaussian_sum(self.task.crop, self.task.spacing_mm, self.settings.sigma_mm)
        sums = map_slabs(
            lambda slab, _: logsumexp(slab.astype(jnp.float32), axis=(1, 2, 3)),
            maps,
            voxels=self.task.slab_voxels,
        )
        log_sum = logsumexp(sums, axis=0)[:, None, None, None]
        return lambda slab: total * jnp.exp(slab.astype(jnp.float32) - log_sum)

    def predict(self, params: Params, image: Array, *, mirror: bool = False) -> Prediction:
        """Landmarks of volumes (B, X, Y, Z, 1).

        With `mirror` the network also sees each volume with left and right exchanged, and the mean
        of both outputs is decoded; for logits this is the geometric mean of the softmaxes.
        """
        features, head = self.features(params, image), self.head(params)
        if mirror:
            seen = jnp.flip(self.features(params, jnp.flip(image, 1)), 1)
            features, head = jnp.concatenate([features, seen], -1), self._mean_head(head)
        peak, fine, score, evidence, spread_mm = decode(
            features,
            head,
            spacing_mm=self.task.spacing_mm,
            sigma_mm=self.settings.sigma_mm,
            softmax=self.settings.loss == "cross_entropy",
            slab_voxels=self.task.slab_voxels,
        )
        positions = {"argmax": peak, "subvoxel": fine}
        return Prediction(positions, score, evidence, spread_mm=spread_mm)

    def _mean_head(self, head: Head) -> Head:
        """A head for features of the image and its mirror image: the mean of both outputs."""
        mirrored = np.asarray(self.task.scheme.mirrored)

        def mean(x: Array) -> Array:
            own, other = jnp.split(x, 2, axis=-1)
            return (head(own) + head(other)[..., mirrored]) / 2

        return mean


def pretraining_step(
    generator: Generator, optimizer: optax.GradientTransformation
) -> Callable[[State, Batch, Array], tuple[State, Metrics]]:
    """A step of the generator alone on L_heat; other networks of the state stay as they are."""

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:  # Eq. 2
        view = augmented(generator.task, batch, key)
        features, head = generator.features(params, view.image), generator.head(params)
        points, present, absent = view.landmarks_ijk, view.present, view.absent
        return generator.loss(features, points, present, absent=absent, head=head), {}

    return descent("generator", loss, optimizer)
