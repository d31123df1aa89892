"""Regression and classification by patches, global to local (Noothout et al., IEEE TMI 2020).

For each patch of 8 voxels a side, a global network predicts whether the patch holds a landmark, and
the displacement to it. The landmark's position is the mean of the patches' votes, weighted by the
probability that they hold it. Around this position a small local network for each landmark does the
same with patches of 2 voxels. The global network is trained first and then stays fixed.

Two choices are ours: displacements are in voxels, and both losses are means over patches and
landmarks.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxmark.bounds import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Problem,
    check,
    divisible,
    positive_numbers,
    setting,
)
from jaxmark.core.patches import decode_votes, vote_losses
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
    Variables,
    whole_volume_stage,
)
from jaxmark.methods.optimizers import clipped, cosine_at_the_end, descent
from jaxmark.methods.views import augmented
from jaxmark.models.blocks import for_each_landmark
from jaxmark.models.noothout import GLOBAL_STRIDE, LOCAL_STRIDE, LocalPatchNet, PatchResNet

# Loss of a network's parameters: cross-entropy and displacement error (`vote_losses`).
Losses = Callable[[Params, Batch, Array], tuple[Array, Array]]


@dataclasses.dataclass
class RegressionClassification:
    """Settings. Defaults are those reported of the authors' code, which was not available to check
    them; values called ours are choices.
    """

    # Training steps of the global network, then of the local ones; ours.
    steps: int = setting(20_000, POSITIVE)
    local_steps: int = setting(20_000, POSITIVE)
    # Channels of the first convolution; channels and residual blocks of each stage.
    stem: int = setting(16, POSITIVE)
    widths: tuple[int, ...] = setting(
        (32, 64, 128, 256),
        positive_numbers("needs at least two positive numbers of channels", least=2),
    )
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    # Channels of a 1^3 layer before the last layer of both heads in all networks; 0: none. Ours.
    head: int = setting(128, NOT_NEGATIVE)
    # Channels of the local networks' 3^3 layers; the first has full resolution. Ours.
    local_widths: tuple[int, ...] = setting(
        (16, 32, 32), positive_numbers("must be positive numbers of channels")
    )
    # Voxels a side of the random cubes that the global network is trained on; a smaller crop is
    # used whole.
    chunk: int = setting(72, POSITIVE)
    # Voxels a side of the cubes that the local networks see.
    local_crop: int = setting(16, POSITIVE)
    # In training such a cube is centred up to this far from the landmark along each axis; ours. It
    # should be about the global network's error.
    jitter_voxels: float = setting(4.0, NOT_NEGATIVE)
    # Weight of the cross-entropy; the displacements' error has weight 1.
    class_weight: float = setting(8.0, NOT_NEGATIVE)
    # AMSGrad's rates for the global network and for the local ones.
    learning_rate: float = setting(1e-3, POSITIVE)
    local_learning_rate: float = setting(1e-3, POSITIVE)
    # Last share of each phase's steps, over which the rate falls to zero along a cosine; the paper:
    # 0.
    decay: float = setting(0.0, SHARE)
    # Gradients of a stage are clipped to this norm; 0: not, as in the paper.
    clip_norm: float = setting(0.0, NOT_NEGATIVE)

    decoders: ClassVar[tuple[str, ...]] = ("argmax", "subvoxel")
    metrics: ClassVar[Mapping[str, str]] = {
        "loss": LOSS,
        "classification_loss": LOSS,
        "displacement_loss": LOSS,
        "gradient_norm": GRADIENT,
    }

    @property
    def needs(self) -> frozenset[str]:
        """See `Settings`."""
        return frozenset()

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        for name, side in (("chunk", GLOBAL_STRIDE), ("local_crop", LOCAL_STRIDE)):
            if getattr(self, name) % side:
                yield name, f"{getattr(self, name)} is not a multiple of {side}, a patch"
        if len(self.blocks) != len(self.widths) or min(self.blocks) < 1:
            yield (
                "blocks",
                f"needs a positive number for each of the {len(self.widths)} stages "
                "(config.method.widths)",
            )
        if self.jitter_voxels >= self.local_crop / 2:
            yield (
                "jitter_voxels",
                f"{self.jitter_voxels} takes landmarks out of crops of {self.local_crop} "
                "voxels (config.method.local_crop)",
            )

    def misfits(self, task: Task) -> Iterator[Problem]:
        """See `Settings`."""
        why = "patches of the global network need"
        yield from divisible(task.crop, GLOBAL_STRIDE, why)

    def build(self, task: Task) -> Method:
        """The method for volumes of `task.crop`; 8 must divide its sides."""
        check(self, "config.method", task)
        stages = Stages(self, task)
        rates = {
            "global": cosine_at_the_end(self.learning_rate, self.steps, self.decay),
            "local": cosine_at_the_end(self.local_learning_rate, self.local_steps, self.decay),
        }
        optimizers = {
            name: clipped(self.clip_norm, optax.amsgrad(rate)) for name, rate in rates.items()
        }

        def init(key: Array) -> State:
            params = stages.init(key)
            return State(
                step=jnp.zeros((), jnp.int32),
                params=params,
                optimizer={name: optimizers[name].init(params[name]) for name in optimizers},
                # 1 when the local networks are trained; until then their output is ignored.
                statistics={"refine": jnp.zeros(())},
            )

        def phase(name: str, steps: int, losses: Losses) -> Phase:
            return Phase(name, steps, stage_step(name, self.class_weight, losses, optimizers[name]))

        return Method(
            init=init,
            phases=(
                phase("global", self.steps, stages.global_losses),
                phase("local", self.local_steps, stages.local_losses),
            ),
            stages=whole_volume_stage(task, stages.predict),
        )


class Stages:
    """Both stages, as pure functions of their parameters."""

    def __init__(self, settings: RegressionClassification, task: Task):
        self.settings, self.task = settings, task
        self._global = PatchResNet(
            len(task.landmarks),
            settings.stem,
            settings.widths,
            settings.blocks,
            settings.head,
            dtype=task.dtype,
        )
        self._local = LocalPatchNet(settings.local_widths, settings.head, dtype=task.dtype)

    def init(self, key: Array) -> dict[str, Params]:
        """Parameters: `global`, and `local` with a first axis over the landmarks."""
        k_global, k_local = jax.random.split(key)
        # The parameters of convolutions do not depend on the volume's size.
        volume = jnp.zeros((1, *(GLOBAL_STRIDE,) * self.task.axes, 1))
        keys = jax.random.split(k_local, len(self.task.landmarks))
        return {
            "global": self._global.init(k_global, volume),
            "local": jax.vmap(self._local.init, (0, None))(keys, volume),
        }

    def global_votes(self, params: Params, image: Array) -> tuple[Array, Array]:
        """Logits and displacements of all landmarks from volumes (B, X, Y, Z, 1).

        Here and below, arrays of pictures have no Z, and positions in them have two coordinates.
        """
        logits, votes = self._global.apply(params, image)
        return jnp.asarray(logits), jnp.asarray(votes)

    def local_votes(
        self, params: Params, image: Array, centres_ijk: Array
    ) -> tuple[Array, Array, Array]:
        """Logits and displacements of each landmark's crop, and the crop's first voxel (B, K, 3).

        `centres_ijk` (B, K, 3) are the crops' centres, in voxels of `image`.
        """
        crops, first = cut_crops(image, centres_ijk, self.settings.local_crop)
        logits, votes = for_each_landmark(
            self._local.apply, params, crops, platform=self.task.platform
        )
        # From (K, B, x, y, z, 1) to (B, x, y, z, K).
        return jnp.moveaxis(logits[..., 0], 0, -1), jnp.moveaxis(votes[..., 0, :], 0, -2), first

    def global_losses(self, params: Params, batch: Batch, key: Array) -> tuple[Array, Array]:
        """`vote_losses` of the global network on random chunks of random views."""
        k_view, k_chunk = jax.random.split(key)
        view = augmented(self.task, batch, k_view)
        image, landmarks_ijk = random_chunks(
            k_chunk,
            self.task.squeezed(view.image),
            view.landmarks_ijk[..., : self.task.axes],
            self.settings.chunk,
        )
        logits, votes = self.global_votes(params, image)
        return vote_losses(
            logits, votes, landmarks_ijk, view.present, view.absent, stride=GLOBAL_STRIDE
        )

    def local_losses(self, params: Params, batch: Batch, key: Array) -> tuple[Array, Array]:
        """`vote_losses` of the local networks on crops near the landmarks, in random views.

        Only present landmarks count: an absent landmark has no position for a crop.
        """
        k_view, k_jitter = jax.random.split(key)
        view = augmented(self.task, batch, k_view)
        image, far = self.task.squeezed(view.image), self.settings.jitter_voxels
        points = view.landmarks_ijk[..., : self.task.axes]
        jitter = jax.random.uniform(k_jitter, points.shape, minval=-far, maxval=far)
        logits, votes, first = self.local_votes(params, image, points + jitter)
        nothing = jnp.zeros_like(view.absent)
        return vote_losses(
            logits, votes, points - first, view.present, nothing, stride=LOCAL_STRIDE
        )

    def predict(self, variables: Variables, image: Array) -> Prediction:
        """Landmarks of volumes (B, X, Y, Z, 1).

        There is no heatmap with a maximum: "argmax" is the voxel that holds the position. Presence
        comes from the global network, since only it has seen volumes without a landmark:
        `evidence` is its largest logit of all patches, `score` the sigmoid of this logit.
        """
        params, image = variables.params, self.task.squeezed(image)
        logits, votes = self.global_votes(params["global"], image)
        position, evidence = decode_votes(logits, votes, stride=GLOBAL_STRIDE)
        logits, votes, first = self.local_votes(params["local"], image, position)
        refined, _ = decode_votes(logits, votes, stride=LOCAL_STRIDE)
        position = jnp.where(variables.statistics["refine"] > 0, first + refined, position)
        position = jnp.pad(position, [(0, 0), (0, 0), (0, 3 - self.task.axes)])
        return Prediction(
            {"argmax": jnp.round(position), "subvoxel": position},
            score=jax.nn.sigmoid(evidence),
            evidence=evidence,
        )


def stage_step(
    name: str, class_weight: float, losses: Losses, optimizer: optax.GradientTransformation
) -> Callable[[State, Batch, Array], tuple[State, Metrics]]:
    """A training step of the network `name`; the other one stays as it is."""

    def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        entropy, error = losses(params, batch, key)
        parts = {"classification_loss": entropy, "displacement_loss": error}
        return error + class_weight * entropy, parts

    def statistics(found: dict[str, Any]) -> dict[str, Any]:
        return {"refine": jnp.maximum(found["refine"], float(name == "local"))}

    return descent(name, loss, optimizer, statistics)


def random_chunks(key: Array, image: Array, landmarks_ijk: Array, side: int) -> tuple[Array, Array]:
    """A random cube of `side` voxels from each volume, or of the volume's side if that is less.

    Volumes are (B, X, Y, Z, C); landmarks come back in voxels of the cubes. Pictures give squares.
    """
    shape = image.shape[1:-1]
    size = tuple(min(side, n) for n in shape)
    room = jnp.asarray([n - m for n, m in zip(shape, size, strict=True)])
    first = jax.random.randint(key, (image.shape[0], len(shape)), 0, room + 1)

    def cut(volume: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(volume, (*corner, 0), (*size, volume.shape[-1]))

    return jax.vmap(cut)(image, first), landmarks_ijk - first[:, None]


def cut_crops(image: Array, centres_ijk: Array, side: int) -> tuple[Array, Array]:
    """Cubes of `side` voxels around positions (B, K, 3) of volumes (B, X, Y, Z, C).

    A cube's middle lies within half a voxel of its position, or of the volume's edge for a position
    outside. Voxels outside of the volume repeat its edge.

    Returns:
      Crops (K, B, side, side, side, C), and their first voxels (B, K, 3), whole numbers.
    """
    half, axes = side // 2, image.ndim - 2
    padded = jax.vmap(lambda x: jnp.pad(x, [*[(half, half)] * axes, (0, 0)], mode="edge"))(image)
    last = jnp.asarray(image.shape[1:-1], jnp.float32) - 1
    first = jnp.round(jnp.clip(centres_ijk, 0, last) - (side - 1) / 2).astype(jnp.int32)

    def cut(volume: Array, corner: Array) -> Array:
        size = (*(side,) * axes, volume.shape[-1])
        return jax.lax.dynamic_slice(volume, (*corner, 0), size)

    crops = jax.vmap(jax.vmap(cut, (None, 0)))(padded, first + half)
    return crops.swapaxes(0, 1), first
