"""Adversarial heatmap regression across modalities (Tan et al., ISBI 2023).

A generator G, the network of `heatmap`, is trained on images. A discriminator D learns what a
configuration of landmarks looks like, from the same people and from others without images. G is
trained to deceive D. Equations are in the paper's order.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

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
    either,
    positive_numbers,
    setting,
)
from jaxmark.core.heatmaps import (
    cell_masses,
    cell_voxels,
    gaussian_cell_masses,
    gaussian_sum,
    gaussians,
)
from jaxmark.core.losses import adversarial_loss, discriminator_loss
from jaxmark.core.slabs import join_slabs, make_slabs, map_slabs
from jaxmark.methods import method
from jaxmark.methods.heatmap import Generator, HeatmapRegression, pretraining_step
from jaxmark.methods.method import (
    GRADIENT,
    LOSS,
    Batch,
    Method,
    Metrics,
    Params,
    Phase,
    State,
    Task,
    whole_volume_stage,
)
from jaxmark.methods.optimizers import clipped, cosine_at_the_end
from jaxmark.methods.views import augmented, draw_view, view_landmarks
from jaxmark.models.discriminator import CellDiscriminator, HeatmapDiscriminator

# A discriminator is saturated if for this many records in a row its accuracy is at least, and its
# loss at most, as follows. At chance the loss is 2 log 2 = 1.39.
SATURATED_ACCURACY, SATURATED_LOSS, SATURATED_RECORDS = 0.995, 0.3, 5


@dataclasses.dataclass
class Adversarial(HeatmapRegression):
    """Settings; the generator's come first. `steps` is the length of pretraining.

    The paper states the losses, Adam and its rate for all networks, and D's input; weights, widths
    and schedule are ours. The stabilisers are off, as in the paper.
    """

    adversarial_steps: int = setting(20_000, POSITIVE)
    # Weight of the adversarial loss (Eq. 3); the paper does not state it.
    lambda_adv: float = setting(1e-3, POSITIVE)
    # Landmarks that D gets as real: "images", those of the training cases (the paper's D-MRA); or
    # "both", these and those of the unpaired cohort (D-MRA-CTA).
    real: str = setting("both", either("images", "both"))
    # Share of the unpaired cohort among real heatmaps; the paper's union: 500 of 570.
    unpaired_share: float = setting(500 / 570, SHARE)
    # Real cases for each predicted one; with "cells" they take hardly any time. The paper: 1.
    real_sets: int = setting(1, POSITIVE)
    # D also gets the coordinate matrix and the distance map: the paper's dagger.
    positions: bool = True
    # D's input. "heatmaps": the paper's. "cells", ours: each heatmap's values, raised to the power
    # `sharpness`, as a distribution over cells of at most `cell_mm`. True heatmaps are noiseless
    # Gaussians, so D recognises predicted heatmaps by the shape of their peaks alone. Cells hide
    # this shape: they show only where a landmark is, and whether it is in one place.
    shown: str = setting("heatmaps", either("heatmaps", "cells"))
    cell_mm: float = setting(8.0, POSITIVE)
    sharpness: float = setting(2.0, POSITIVE)
    discriminator_widths: tuple[int, ...] = setting(
        (32, 64, 128, 128), positive_numbers("must be positive numbers")
    )
    discriminator_hidden: int = 64
    # Learning rate of D, as a multiple of G's.
    rate_ratio: float = setting(1.0, POSITIVE)
    # Adam's first moment in D; the paper: its default.
    discriminator_beta1: float = setting(0.9, SHARE)
    # D's target for real heatmaps is 1 minus this.
    label_smoothing: float = setting(0.0, SHARE)
    # Weight of D's squared gradient to its input, on real cases (R1, Mescheder et al., ICML 2018).
    r1: float = setting(0.0, NOT_NEGATIVE)

    metrics: ClassVar[Mapping[str, str]] = {
        "loss": LOSS,
        "heatmap_loss": LOSS,
        "adversarial_loss": LOSS,
        "discriminator_loss": LOSS,
        "real_accuracy": method.SHARE,
        "fake_accuracy": method.SHARE,
        "gradient_norm": GRADIENT,
        "discriminator_gradient_norm": GRADIENT,
        "adversarial_to_heatmap_gradient": GRADIENT,
    }

    @property
    def needs(self) -> frozenset[str]:
        """See `Settings`."""
        return frozenset({method.UNPAIRED} if self.real == "both" else ())

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        if self.shown == "heatmaps" and self.real_sets > 1:
            yield "real_sets", "more than 1 goes with config.method.shown='cells'"

    def misfits(self, task: Task) -> Iterator[Problem]:
        """See `Settings`."""
        yield from super().misfits(task)
        if self.shown == "heatmaps":
            yield from divisible(task.crop, 2, "D's first layer needs")

    def build(self, task: Task) -> Method:
        """The method; InputError where settings and volumes don't fit."""
        check(self, "config.method", task)
        generator = Generator(self, task)
        critic: Critic = HeatmapCritic(self, generator)
        if self.shown == "cells":
            critic = CellCritic(self, generator)
        total = self.steps + self.adversarial_steps
        g_rate = cosine_at_the_end(self.learning_rate, total, self.decay)
        g_optimizer = clipped(self.clip_norm, optax.adam(g_rate))
        decay = min(1.0, self.decay * total / self.adversarial_steps)
        d_rate = cosine_at_the_end(
            self.learning_rate * self.rate_ratio, self.adversarial_steps, decay
        )
        d_optimizer = clipped(self.clip_norm, optax.adam(d_rate, b1=self.discriminator_beta1))

        def init(key: Array) -> State:
            params = {
                "generator": generator.init(key),
                "discriminator": critic.init(jax.random.fold_in(key, 1)),
            }
            return State(
                step=jnp.zeros((), jnp.int32),
                params=params,
                optimizer={
                    "generator": g_optimizer.init(params["generator"]),
                    "discriminator": d_optimizer.init(params["discriminator"]),
                },
            )

        return Method(
            init=init,
            phases=(
                Phase("pretrain", self.steps, pretraining_step(generator, g_optimizer)),
                Phase(
                    "adversarial",
                    self.adversarial_steps,
                    adversarial_step(self, generator, critic, g_optimizer, d_optimizer),
                    saturation,
                ),
            ),
            stages=whole_volume_stage(
                task,
                lambda variables, image: generator.predict(variables.params["generator"], image),
            ),
        )


class Critic(Protocol):
    """D as pure functions of its parameters: the logits of true and of predicted landmarks.

    Heatmaps, true and predicted, are made slab by slab; none is in memory as a whole. Each of the B
    predicted cases is paired with R true ones (`Adversarial.real_sets`). `shared` (R B, K) marks
    the landmarks that both cases of a pair have. The others are removed from both, so D can't learn
    from absence.
    """

    def init(self, key: Array) -> Params:
        """Parameters of D."""
        ...

    def fake(self, d: Params, maps: Array, shared: Array) -> Array:
        """Logits (R B,) of G(I), from the output (B, X, Y, Z, K) of G's head."""
        ...

    def real(self, d: Params, landmarks_ijk: Array, shared: Array) -> tuple[Array, Array]:
        """Logits (R B,) of true landmarks, and D's mean squared gradient to its input.

        The gradient is 0 unless the settings have `r1`.
        """
        ...


class HeatmapCritic:
    """D on heatmaps, as in the paper: Gaussians (Eq. 1) against G(I)."""

    def __init__(self, settings: Adversarial, generator: Generator):
        self.settings, self.generator = settings, generator
        self._net = HeatmapDiscriminator(
            len(generator.task.landmarks),
            generator.task.axes,
            settings.discriminator_widths,
            settings.discriminator_hidden,
            positions=settings.positions,
            dtype=generator.task.dtype,
        )

    def init(self, key: Array) -> Params:
        """See `Critic`."""
        task = self.generator.task
        heatmaps = jnp.zeros((1, *task.crop, len(task.landmarks)))
        return self._net.init(key, task.squeezed(heatmaps))

    def fake(self, d: Params, maps: Array, shared: Array) -> Array:
        """See `Critic`."""
        heatmaps = self.generator.heatmaps(maps)
        voxels = self.generator.task.slab_voxels
        stem = map_slabs(
            lambda slab, _: self._stem(d, heatmaps(slab), shared), maps, voxels=voxels, multiple=2
        )
        return self._judge(d, join_slabs(stem))

    def real(self, d: Params, landmarks_ijk: Array, shared: Array) -> tuple[Array, Array]:
        """See `Critic`."""
        task, sigma_mm = self.generator.task, self.settings.sigma_mm

        def one(first: Array, shape: tuple[int, int, int]) -> Array:
            points = landmarks_ijk - jnp.stack([first, 0, 0])
            return self._stem(d, gaussians(points, shape, task.spacing_mm, sigma_mm), shared)

        stem = join_slabs(make_slabs(one, task.crop, voxels=task.slab_voxels, multiple=2))
        if not self.settings.r1:
            return self._judge(d, stem), jnp.zeros(())
        logits, pull = jax.vjp(lambda x: self._judge(d, x), stem)
        (gradient,) = pull(jnp.ones_like(logits))
        squared = self._net.apply(d, gradient, method="squared_input_gradient")
        return logits, jnp.asarray(squared).mean()

    def _stem(self, d: Params, heatmaps: Array, shared: Array) -> Array:
        seen = self.generator.task.squeezed(heatmaps * shared[:, None, None, None])
        return jnp.asarray(self._net.apply(d, seen, method="stem"))

    def _judge(self, d: Params, stem: Array) -> Array:
        return jnp.asarray(self._net.apply(d, stem, method="judge"))


class CellCritic:
    """D on distributions over cells; see `Adversarial.shown`."""

    def __init__(self, settings: Adversarial, generator: Generator):
        self.settings, self.generator = settings, generator
        task = generator.task
        self._cell = cell_voxels(task.crop, task.spacing_mm, settings.cell_mm)
        # A Gaussian to a power above 1 is a narrower Gaussian.
        narrow = settings.sigma_mm / math.sqrt(settings.sharpness)
        self._true_mass = gaussian_sum(task.crop, task.spacing_mm, narrow)
        self._net = CellDiscriminator(
            settings.discriminator_widths,
            settings.discriminator_hidden,
            positions=settings.positions,
            dtype=task.dtype,
        )

    def init(self, key: Array) -> Params:
        """See `Critic`."""
        task = self.generator.task
        grid = (n // c for n, c in zip(task.crop, self._cell, strict=True))
        cells = jnp.zeros((1, *grid, len(task.landmarks)))
        return self._net.init(key, task.squeezed(cells))

    def fake(self, d: Params, maps: Array, shared: Array) -> Array:
        """See `Critic`."""
        heatmaps = self.generator.heatmaps(maps)
        masses = map_slabs(
            lambda slab, _: cell_masses(heatmaps(slab), self._cell, self.settings.sharpness),
            maps,
            voxels=self.generator.task.slab_voxels,
            multiple=self._cell[0],
        )
        cells = jnp.tile(join_slabs(masses), (self.settings.real_sets, 1, 1, 1, 1))
        return self._judge(d, _distribution(cells, self._true_mass, shared))

    def real(self, d: Params, landmarks_ijk: Array, shared: Array) -> tuple[Array, Array]:
        """See `Critic`."""
        task, settings = self.generator.task, self.settings
        masses = gaussian_cell_masses(
            landmarks_ijk,
            task.crop,
            task.spacing_mm,
            settings.sigma_mm,
            self._cell,
            settings.sharpness,
        )
        cells = _distribution(masses, self._true_mass, shared)
        logits, pull = jax.vjp(lambda x: self._judge(d, x), cells)
        if not settings.r1:
            return logits, jnp.zeros(())
        (gradient,) = pull(jnp.ones_like(logits))
        return logits, (gradient**2).sum((1, 2, 3, 4)).mean()

    def _judge(self, d: Params, cells: Array) -> Array:
        return jnp.asarray(self._net.apply(d, self.generator.task.squeezed(cells)))


def _distribution(masses: Array, true_mass: float, shared: Array) -> Array:
    """Masses (B, X, Y, Z, K) normalised to a sum of 1 for shared landmarks, 0 for the others.

    A heatmap with less than half of a true landmark's mass keeps a sum under 1. With a sum of 1, D
    could not see that it fades, and its gradient would grow without bound.
    """
    total = masses.sum((1, 2, 3), keepdims=True)
    return masses / jnp.maximum(total, true_mass / 2) * shared[:, None, None, None]


def adversarial_step(
    settings: Adversarial,
    generator: Generator,
    critic: Critic,
    g_optimizer: optax.GradientTransformation,
    d_optimizer: optax.GradientTransformation,
) -> Callable[[State, Batch, Array], tuple[State, Metrics]]:
    """A step of D, then one of G against the new D, with one pass forward and one back through G.

    G's maps don't change while D learns, so one `jax.vjp` serves both steps: the gradients of Eq. 2
    and of the new D to the maps are summed and pulled back through G once.
    """
    task = generator.task

    def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        k_view, k_real = jax.random.split(key)
        view = augmented(task, batch, k_view)
        real_ijk, real_present = real_landmarks(settings, task, k_real, batch)
        shared = jnp.tile(view.present, (settings.real_sets, 1)) & real_present
        g, d = state.params["generator"], state.params["discriminator"]

        maps, pull = jax.vjp(lambda p: generator.maps(p, view.image), g)  # G(I)

        def loss_heat(maps: Array) -> Array:  # Eq. 2
            return generator.loss(maps, view.landmarks_ijk, view.present, absent=view.absent)

        def loss_adv(maps: Array, d: Params) -> Array:  # Eq. 3, second term
            return settings.lambda_adv * adversarial_loss(critic.fake(d, maps, shared))

        def loss_d(d: Params) -> tuple[Array, tuple[Array, Array]]:  # Eq. 4
            real, squared_gradient = critic.real(d, real_ijk, shared)
            fake = critic.fake(d, maps, shared)
            loss = discriminator_loss(real, fake, label_smoothing=settings.label_smoothing)
            return loss + settings.r1 / 2 * squared_gradient, (real, fake)

        (d_loss, (real, fake)), d_gradient = jax.value_and_grad(loss_d, has_aux=True)(d)
        update, d_opt_state = d_optimizer.update(d_gradient, state.optimizer["discriminator"], d)
        d = optax.apply_updates(d, update)

        heat, heat_gradient = jax.value_and_grad(loss_heat)(maps)
        adv, adv_gradient = jax.value_and_grad(loss_adv)(maps, d)
        (g_gradient,) = pull(heat_gradient + adv_gradient)
        update, g_opt_state = g_optimizer.update(g_gradient, state.optimizer["generator"], g)
        g = optax.apply_updates(g, update)

        new = state.replace(  # type: ignore[attr-defined]
            step=state.step + 1,
            params={"generator": g, "discriminator": d},
            optimizer={"generator": g_opt_state, "discriminator": d_opt_state},
        )
        return new, {
            "loss": heat + adv,
            "heatmap_loss": heat,
            "adversarial_loss": adv / settings.lambda_adv,
            "discriminator_loss": d_loss,
            "real_accuracy": (real > 0).mean(),
            "fake_accuracy": (fake < 0).mean(),
            "gradient_norm": optax.tree.norm(g_gradient),
            "discriminator_gradient_norm": optax.tree.norm(d_gradient),
            # D's gradient to G's maps, relative to that of Eq. 2.
            "adversarial_to_heatmap_gradient": _norm(adv_gradient)
            / jnp.maximum(_norm(heat_gradient), 1e-30),
        }

    return step


def _norm(x: Array) -> Array:
    return jnp.sqrt((x.astype(jnp.float32) ** 2).sum())


def real_landmarks(
    settings: Adversarial, task: Task, key: Array, batch: Batch
) -> tuple[Array, Array]:
    """Landmarks (R B, K, 3) in voxels of the crop and presence (R B, K) that D gets as real.

    They come from the batch, or also from the unpaired cohort if `settings.real` is "both". Each
    set gets a random view; R is `settings.real_sets`.
    """
    k_which, k_share, k_view = jax.random.split(key, 3)
    landmarks_ijk = jnp.tile(batch.landmarks_ijk, (settings.real_sets, 1, 1))
    present = jnp.tile(batch.present, (settings.real_sets, 1))
    count = present.shape[0]
    if settings.real == "both":
        sets = task.unpaired
        if sets is None:
            raise ValueError("training with real='both' needs Task.unpaired")
        which = jax.random.randint(k_which, (count,), 0, len(sets.present))
        unpaired = jax.random.uniform(k_share, (count, 1)) < settings.unpaired_share
        unpaired_ijk = jnp.asarray(sets.landmarks_ijk)[which]
        landmarks_ijk = jnp.where(unpaired[..., None], unpaired_ijk, landmarks_ijk)
        present = jnp.where(unpaired, jnp.asarray(sets.present)[which], present)
    moved, present = view_landmarks(task, draw_view(task, k_view, count), landmarks_ijk, present)
    return moved, present


def saturation(records: Sequence[Mapping[str, float]]) -> str | None:
    """A warning if D is saturated: its accuracy is high and its loss low, so G learns little.

    High accuracy alone is no reason: a D with a penalty may recognise all cases and still have a
    useful gradient.
    """
    last = records[-SATURATED_RECORDS:]
    for record in last:
        right = min(record["real_accuracy"], record["fake_accuracy"]) >= SATURATED_ACCURACY
        if not (right and record["discriminator_loss"] <= SATURATED_LOSS):
            return None
    if len(last) < SATURATED_RECORDS:
        return None
    return (
        f"the discriminator has told all true from predicted landmarks, and was sure, in the last "
        f"{len(last)} records of the log: it is saturated. A smaller config.method.rate_ratio, a "
        "larger config.method.r1 or config.method.label_smoothing hold it back"
    )
