"""Landmarks of pictures by a generative adversarial network (Kanakatte et al.).

A generator G turns a picture into a heatmap with a Gaussian spot at every landmark. A discriminator
D tells (picture, true heatmap) from (picture, predicted heatmap). Equations are in the paper's
order: 1 to 3 for G, 4 to 6 and 8 for D, then 7. The paper leaves four important points open:

- Eqs. 2, 4 and 5 as printed compare the picture with the heatmap and do not contain D. We read them
  as least squares on D's verdict (Mao et al., ICCV 2017), the mean of its patches as the paper
  says. `adversarial="printed"` is the printed form: D learns nothing, and G is pulled towards the
  picture.
- Eq. 7, printed as a term of D's loss, compares the true with the predicted heatmap. Neither
  depends on D, so the term has no gradient in D. We read it as a term of G's loss; `foreground`
  offers the other readings.
- All landmarks share one heatmap, which does not tell which spot belongs to which landmark.
  `core.spots` assigns them by the landmarks' configuration, a Gaussian that is learned from the
  training batches (`core.point_distribution`) and kept with the statistics.
- The learning and dropout rates are "adjusted on the loss". We halve both rates of a network when
  its own loss has not fallen for a while (`patience`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

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
    at_least,
    between,
    check,
    divisible,
    either,
    one_of,
    pictures_only,
    positive_numbers,
    setting,
)
from jaxmark.core.losses import huber_loss, least_squares_loss, square_and_absolute_loss
from jaxmark.core.point_distribution import learned_configuration, unknown_configuration
from jaxmark.core.shared_heatmap import foreground, patches_with, shared_heatmap
from jaxmark.core.spots import contour_centre, find_spots, mean_shift, most_spots, named
from jaxmark.methods import method
from jaxmark.methods.method import (
    GRADIENT,
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
    whole_volume_stage,
)
from jaxmark.methods.views import augmented
from jaxmark.models.cardiac_gan import PatchDiscriminator, UNetGenerator

# Learning and dropout rates are not halved below this share of their first values.
LEAST_SCALE = 1 / 32
# A loss counts as lower only if it falls by at least this share.
_LEAST_FALL = 0.01
# A pixel belongs to a spot where the true heatmap exceeds this.
_SPOT_HEIGHT = 0.01


@dataclasses.dataclass
class CardiacGAN:
    """Settings. The paper states depths, kernels, strides, variances, delta, Adam, its rate and
    both dropouts. Widths, steps, weights and values called ours are not in the paper.
    """

    # The paper: 500 to 1500 epochs.
    steps: int = setting(20_000, POSITIVE)
    # Channels of the encoder's levels; the decoder mirrors them. The paper: four levels.
    widths: tuple[int, ...] = setting(
        (32, 64, 128, 256), positive_numbers("must be positive numbers of channels")
    )
    # Blocks of the feature-filter enhancing block; 0: none. See `models.cardiac_gan`.
    filters: int = setting(3, NOT_NEGATIVE)
    # The paper: six layers.
    discriminator_widths: tuple[int, ...] = setting(
        (32, 64, 128, 256, 256, 256), positive_numbers("must be positive numbers of channels")
    )
    # Variance of a spot, in pixels^2; 0: 7 for one landmark and 5 for several, as in the paper.
    variance: float = setting(0.0, NOT_NEGATIVE)
    # Huber's loss of the heatmap (Eq. 3) is quadratic up to this error, then linear.
    huber_delta: float = setting(0.4, POSITIVE)
    # Weight of Huber's loss (Eq. 1). It is large, since the loss is a mean over pixels and few of
    # them have a spot. For 64 x 64 pixels a sixteenth weights spots as this does for 256 x 256.
    beta: float = setting(1e4, POSITIVE)
    # Eqs. 2, 4, 5: "least_squares" on D's verdict, or as "printed".
    adversarial: str = setting("least_squares", either("least_squares", "printed"))
    # Weight of the square within Eq. 7.
    alpha: float = setting(10.0, NOT_NEGATIVE)
    # Where Eq. 7 is a term. "generator": in G's loss, comparing both heatmaps. "discriminator": in
    # D's loss, comparing D's responses in the square with 1 for true heatmaps and with 0 for
    # predicted ones, so that D has to look there. "printed": in D's loss, comparing both heatmaps;
    # this changes only the loss's value, by which D's rates are adjusted. "none": no term, the
    # paper's comparison.
    foreground: str = setting("generator", one_of("generator", "discriminator", "printed", "none"))
    # The square of Eq. 7: one for each "picture", around all of its spots, as the paper seems to
    # mean ("the size is decided on the run time"); or one for each "spot" (ours, since there is
    # little foreground between spots).
    square: str = setting("picture", either("picture", "spot"))
    learning_rate: float = setting(2e-4, POSITIVE)
    # Adam's first moment in both networks; the paper: Adam's default.
    beta1: float = setting(0.9, SHARE)
    dropout: float = setting(0.4, at_least(0), SHARE)
    discriminator_dropout: float = setting(0.6, at_least(0), SHARE)
    # A network's loss is averaged over windows of this many steps.
    window: int = setting(100, POSITIVE)
    # The network's learning and dropout rates are halved after this many windows without a new
    # lowest mean; 0: never.
    patience: int = setting(20, NOT_NEGATIVE)
    # A local maximum of the heatmap from this height on is a spot; true spots have height 1.
    least_height: float = setting(0.1, between(0, 1))

    decoders: ClassVar[tuple[str, ...]] = ("argmax", "contour", "subvoxel")
    metrics: ClassVar[Mapping[str, str]] = {
        "loss": LOSS,
        "heatmap_loss": LOSS,
        "adversarial_loss": LOSS,
        "foreground_loss": LOSS,
        "discriminator_loss": LOSS,
        "real_accuracy": method.SHARE,
        "fake_accuracy": method.SHARE,
        "generator_dropout": method.SHARE,
        "discriminator_dropout": method.SHARE,
        "gradient_norm": GRADIENT,
        "discriminator_gradient_norm": GRADIENT,
    }

    @property
    def needs(self) -> frozenset[Need]:
        """See `Settings`."""
        return frozenset()

    def conflicts(self) -> Iterator[Problem]:
        """See `bounds`."""
        for name in ("dropout", "discriminator_dropout"):
            if getattr(self, name) == 1:
                yield name, "1 leaves nothing"

    def misfits(self, task: Task) -> Iterator[Problem]:
        """See `Settings`."""
        yield from pictures_only(task.crop)
        for name in ("widths", "discriminator_widths"):
            layers = len(getattr(self, name))
            why = f"{layers} layers of stride 2 (config.method.{name}) need"
            yield from divisible(task.crop, 2**layers, why)

    def build(self, task: Task) -> Method:
        """The method for pictures; InputError where settings and task don't fit."""
        check(self, "config.method", task)
        networks = Networks(self, task)
        optimizers = {name: optimizer(self) for name in ("generator", "discriminator")}

        def init(key: Array) -> State:
            params, statistics = networks.init(key)
            return State(
                step=jnp.zeros((), jnp.int32),
                params=params,
                optimizer={name: optimizers[name].init(params[name]) for name in optimizers},
                statistics=statistics,
            )

        return Method(
            init=init,
            phases=(Phase("adversarial", self.steps, training_step(networks, optimizers)),),
            stages=picture_stage(networks),
        )


def optimizer(settings: CardiacGAN) -> optax.GradientTransformationExtraArgs:
    """Adam whose rate is halved on a plateau of the loss; each update gets the loss as `value`."""
    return optax.chain(
        optax.adam(settings.learning_rate, b1=settings.beta1),
        optax.contrib.reduce_on_plateau(
            factor=0.5,
            patience=settings.patience or np.iinfo(np.int32).max,
            rtol=_LEAST_FALL,
            accumulation_size=settings.window,
            min_scale=LEAST_SCALE,
        ),
    )


def scale(opt_state: Any) -> Array:
    """() the factor by which the plateau rule has scaled a network's first rates."""
    return jnp.asarray(opt_state[-1].scale)


class Networks:
    """G, D and their inputs, as pure functions of their parameters."""

    def __init__(self, settings: CardiacGAN, task: Task):
        self.settings, self.task = settings, task
        several = len(task.landmarks) > 1
        self.variance = settings.variance or (5.0 if several else 7.0)
        self._generator = UNetGenerator(settings.widths, settings.filters, dtype=task.dtype)
        self._discriminator = PatchDiscriminator(settings.discriminator_widths, dtype=task.dtype)

    def init(self, key: Array) -> tuple[dict[str, Params], dict[str, Any]]:
        """Parameters of both networks; statistics: G's normalisation and the configuration."""
        shape, nothing = self.task.crop[:2], jnp.zeros(())
        image, heatmap = jnp.zeros((1, *shape, 1)), jnp.zeros((1, *shape))
        keys = dict(
            zip(("params", "dropout", "d", "d_dropout"), jax.random.split(key, 4), strict=True)
        )
        g = self._generator.init(
            {name: keys[name] for name in ("params", "dropout")}, image, nothing
        )
        rngs = {"params": keys["d"], "dropout": keys["d_dropout"]}
        d = self._discriminator.init(rngs, image, heatmap, nothing)
        mean, covariance = unknown_configuration(shape, len(self.task.landmarks))
        statistics = {
            "generator": g["batch_stats"],
            "configuration": {"mean": mean, "covariance": covariance},
        }
        return {"generator": g["params"], "discriminator": d["params"]}, statistics

    def generate(
        self, params: Params, statistics: Params, image: Array, rate: Array, key: Array
    ) -> tuple[Array, Params]:
        """G(I) of pictures (B, X, Y, 1), in training: heatmaps (B, X, Y), and new statistics."""
        heatmap, new = self._generator.apply(
            {"params": params, "batch_stats": statistics},
            image,
            rate,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return jnp.asarray(heatmap), new["batch_stats"]

    def predict(self, variables: Variables, image: Array) -> Array:
        """G(I) of pictures (B, X, Y, 1): heatmaps (B, X, Y)."""
        g = {
            "params": variables.params["generator"],
            "batch_stats": variables.statistics["generator"],
        }
        return jnp.asarray(self._generator.apply(g, image))

    def responses(
        self, params: Params, image: Array, heatmap: Array, rate: Array, key: Array
    ) -> Array:
        """D's response to each patch of (I, heatmap): (B, px, py)."""
        found, _ = self._discriminator.apply(
            {"params": params}, image, heatmap, rate, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return jnp.asarray(found)

    def target(self, view: Batch) -> Array:
        """GT_h of the paper, (B, X, Y)."""
        shape = self.task.crop[:2]
        return shared_heatmap(view.landmarks_ijk, view.present, shape, self.variance)

    def square(self, view: Batch) -> Array:
        """The foreground square(s) of each picture, (B, X, Y) bool."""
        return foreground(
            view.landmarks_ijk,
            view.present,
            self.task.crop[:2],
            self.variance,
            single=self.settings.square == "spot",
        )


def verdict(responses: Array) -> Array:
    """(B,) D's prediction: "the average of all the patch responses"."""
    return responses.mean((1, 2))


class Pictures(NamedTuple):
    """Pictures of a training step with their true heatmaps."""

    image: Array  # (B, X, Y, 1), I of the paper
    truth: Array  # (B, X, Y), GT_h
    square: Array  # (B, X, Y) bool: the foreground of Eq. 7
    # (B,) bool: every landmark is known as present or absent. Else the true heatmap is known at its
    # spots alone, and D does not learn from the picture.
    whole: Array

    @property
    def counted(self) -> Array:
        """(B, X, Y) bool: where the true heatmap is known."""
        return self.whole[:, None, None] | (self.truth > _SPOT_HEIGHT)


def pictures_of(networks: Networks, view: Batch) -> Pictures:
    """The pictures of a random view."""
    whole = (view.present | view.absent).all(1)
    return Pictures(view.image[:, :, :, 0], networks.target(view), networks.square(view), whole)


def generator_loss(
    networks: Networks, seen: Pictures, heatmap: Array, d: Params, rate: Array, key: Array
) -> tuple[Array, tuple[Array, Array]]:
    """G_L (Eq. 1) for G's heatmap GP_h (B, X, Y); A_L and L_L. `rate` is D's dropout."""
    settings = networks.settings
    if settings.adversarial == "printed":
        a_l = ((seen.image[..., 0] - heatmap) ** 2).mean()  # Eq. 2
    else:
        fake = networks.responses(d, seen.image, heatmap, rate, key)
        a_l = least_squares_loss(verdict(fake), 1.0, seen.whole)  # Eq. 2
    l_l = huber_loss(heatmap, seen.truth, settings.huber_delta, seen.counted)  # Eq. 3
    g_l = a_l + settings.beta * l_l
    if settings.foreground == "generator":
        g_l += foreground_loss(settings, seen, heatmap)
    return g_l, (a_l, l_l)


def discriminator_loss(
    networks: Networks,
    seen: Pictures,
    heatmap: Array,
    d: Params,
    rate: Array,
    keys: Sequence[Array],
) -> tuple[Array, tuple[Array, Array]]:
    """MDL (Eq. 8) for GP_h (B, X, Y); D's verdicts (B,) on true and predicted heatmaps."""
    settings = networks.settings
    real = networks.responses(d, seen.image, seen.truth, rate, keys[0])
    fake = networks.responses(d, seen.image, heatmap, rate, keys[1])
    if settings.adversarial == "printed":
        drl = ((seen.image[..., 0] - seen.truth) ** 2).mean()  # Eq. 4
        dfl = ((seen.image[..., 0] - heatmap) ** 2).mean()  # Eq. 5
    else:
        drl = least_squares_loss(verdict(real), 1.0, seen.whole)  # Eq. 4
        dfl = least_squares_loss(verdict(fake), 0.0, seen.whole)  # Eq. 5
    loss = 0.5 * (drl + dfl)  # SDL, Eq. 6
    if settings.foreground == "printed":
        loss += foreground_loss(settings, seen, heatmap)
    elif settings.foreground == "discriminator":
        patches = patches_with(seen.square, real.shape[1:]) & seen.whole[:, None, None]
        wanted = ((real, 1.0), (fake, 0.0))
        loss += 0.5 * sum(
            square_and_absolute_loss(responses, target, settings.alpha, patches)
            for responses, target in wanted
        )
    return loss, (verdict(real), verdict(fake))


def foreground_loss(settings: CardiacGAN, seen: Pictures, heatmap: Array) -> Array:
    """FPL (Eq. 7) for G's heatmap GP_h (B, X, Y)."""
    return square_and_absolute_loss(seen.truth, heatmap, settings.alpha, seen.square)


def training_step(
    networks: Networks, optimizers: Mapping[str, optax.GradientTransformationExtraArgs]
) -> Callable[[State, Batch, Array], tuple[State, Metrics]]:
    """A step of D, then one of G against the new D; one pass forward and one back through G."""
    settings = networks.settings

    def updated(name: str, gradient: Any, state: State, loss: Array) -> tuple[Params, Any]:
        params = state.params[name]
        update, opt_state = optimizers[name].update(
            gradient, state.optimizer[name], params, value=loss
        )
        return optax.apply_updates(params, update), opt_state

    def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        k_view, k_g, k_real, k_fake, k_adv = jax.random.split(key, 5)
        view = augmented(networks.task, batch, k_view)
        seen = pictures_of(networks, view)
        g_rate = settings.dropout * scale(state.optimizer["generator"])
        d_rate = settings.discriminator_dropout * scale(state.optimizer["discriminator"])

        heatmap, pull, normalisation = jax.vjp(  # GP_h
            lambda p: networks.generate(p, state.statistics["generator"], seen.image, g_rate, k_g),
            state.params["generator"],
            has_aux=True,
        )
        (d_loss, (real, fake)), d_gradient = jax.value_and_grad(
            lambda d: discriminator_loss(networks, seen, heatmap, d, d_rate, (k_real, k_fake)),
            has_aux=True,
        )(state.params["discriminator"])
        d, d_opt_state = updated("discriminator", d_gradient, state, d_loss)
        (g_loss, (a_l, l_l)), heatmap_gradient = jax.value_and_grad(
            lambda h: generator_loss(networks, seen, h, d, d_rate, k_adv), has_aux=True
        )(heatmap)
        (g_gradient,) = pull(heatmap_gradient)
        g, g_opt_state = updated("generator", g_gradient, state, g_loss)

        known = state.statistics["configuration"]
        mean, covariance = learned_configuration(
            known["mean"], known["covariance"], view.landmarks_ijk, view.present, state.step
        )
        new = State(
            step=state.step + 1,
            params={"generator": g, "discriminator": d},
            optimizer={"generator": g_opt_state, "discriminator": d_opt_state},
            statistics={
                "generator": normalisation,
                "configuration": {"mean": mean, "covariance": covariance},
            },
        )
        return new, {
            "loss": g_loss,
            "heatmap_loss": l_l,
            "adversarial_loss": a_l,
            "foreground_loss": foreground_loss(settings, seen, heatmap),
            "discriminator_loss": d_loss,
            "real_accuracy": (real > 0.5).mean(),
            "fake_accuracy": (fake < 0.5).mean(),
            "generator_dropout": g_rate,
            "discriminator_dropout": d_rate,
            "gradient_norm": optax.tree.norm(g_gradient),
            "discriminator_gradient_norm": optax.tree.norm(d_gradient),
        }

    return step


# Names of arrays that `picture_stage` passes from the device to `landmarks_of` on the host.
_MEAN, _HEATMAP, _COVARIANCE = "configuration", "heatmap", "covariance"


def picture_stage(networks: Networks) -> tuple[Stage]:
    """Heatmaps on the device, landmarks from them on the host."""
    landmarks = len(networks.task.landmarks)

    def predict(variables: Variables, volumes: Array) -> Prediction:
        heatmap = networks.predict(variables, volumes[:, :, :, 0])
        count, known = len(heatmap), variables.statistics["configuration"]
        mean = jnp.pad(known["mean"].reshape(landmarks, 2), [(0, 0), (0, 1)])
        nothing = jnp.zeros((count, landmarks))
        return Prediction(
            {_MEAN: jnp.broadcast_to(mean, (count, *mean.shape))},
            score=nothing,
            evidence=nothing,
            maps={
                _HEATMAP: heatmap,
                _COVARIANCE: jnp.broadcast_to(
                    known["covariance"], (count, *known["covariance"].shape)
                ),
            },
        )

    (whole,) = whole_volume_stage(networks.task, predict)

    def finish(found: Prediction) -> Prediction:
        least = networks.settings.least_height
        return whole.finish(landmarks_of(found, networks.variance, least))

    return (Stage(whole.run, finish=finish),)


def landmarks_of(found: Prediction, variance: float, least: float) -> Prediction:
    """The landmarks of one picture, from its heatmap and the configuration of landmarks.

    "contour" is the centre of the contour around each landmark's spot, as in the paper; "argmax"
    the spot's brightest pixel; "subvoxel" its sub-pixel peak. A landmark without a spot gets the
    position that is likely from the others, moved to the picture's edge if it is outside, and the
    score 0. `score` is a spot's height. `evidence` rates the spot against a stray one, by its
    height and its place among the others (`core.spots`).
    """
    heatmap = np.asarray(found.maps[_HEATMAP], np.float64)
    sigma = variance**0.5
    spots = find_spots(heatmap, sigma, least, most_spots(len(found.score)))
    whose = named(
        spots,
        np.asarray(found.positions_ijk[_MEAN])[:, :2].ravel(),
        np.asarray(found.maps[_COVARIANCE]),
        heatmap.shape,
        variance,
    )
    places: dict[str, Callable[[int], np.ndarray]] = {
        "argmax": lambda spot: spots.peaks[spot],
        "contour": lambda spot: contour_centre(heatmap, spots, spot, sigma),
        "subvoxel": lambda spot: mean_shift(heatmap, spots, spot, sigma),
    }
    inside = np.clip(whose.expected, 0, np.array(heatmap.shape) - 1)
    positions = {name: inside.copy() for name in places}
    score = np.zeros(len(whose.spot), np.float32)
    for k in np.flatnonzero(whose.spot >= 0):
        score[k] = spots.heights[whose.spot[k]]
        for name, place in places.items():
            positions[name][k] = place(int(whose.spot[k]))
    return Prediction(
        {name: np.pad(xy, [(0, 0), (0, 1)]).astype(np.float32) for name, xy in positions.items()},  # type: ignore[misc]
        score=score,  # type: ignore[arg-type]
        evidence=whose.evidence.astype(np.float32),  # type: ignore[arg-type]
    )
