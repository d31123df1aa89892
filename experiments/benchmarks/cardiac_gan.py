"""Part (k): the cardiac GAN on pictures against PyTorch.

Their gradients are compared parameter by parameter, as root mean squares: in float32 a single
channel of the discriminator may differ by more, in float64 none does (`step.LIMITS`).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from experiments.benchmarks.common import Options, Row, Spec
from experiments.benchmarks.contenders import JaxContender, task
from experiments.benchmarks.methods import channels
from experiments.benchmarks.step import compared
from experiments.benchmarks.timing import ratio
from jaxmark.methods.cardiac_gan import CardiacGAN, Networks
from jaxmark.methods.method import Method, Prediction, Stage, State

METHOD = (
    "One step of the cardiac GAN at its defaults (a pass through G, Eq. 8 and Adam for D, Eq. 1 "
    "with Huber's loss and the foreground pixels' and Adam for G; dropout of rate 0, or both would "
    "not do the same) or inference (G alone: spots are named on the host) on pictures, else as in "
    "part step. PyTorch: the usual alternation, D seeing G's heatmap detached from it and then "
    "again; without the configuration of landmarks and the rule that halves rates. Flax pads a "
    "convolution of stride 2 at the far sides alone, so PyTorch pads before it."
)
OWN = "experiments.benchmarks.cardiac_gan:CardiacContender"
TORCH = "experiments.benchmarks.cardiac_gan_twin:CardiacTwin"


def rows(spec: Spec, options: Options) -> Iterator[Row | str]:
    """As `step.rows`, and pictures a second."""
    for found in compared(spec, dataclasses.replace(options, volumes=(spec,)), OWN, TORCH, {}):
        if isinstance(found, str):
            yield found
            continue
        times = {name: found[f"{name}_ms"] for name in ("jaxmark", "torch")}
        yield {**found, **{f"{k}_/s": ratio(1e3 * spec.batch, ms) for k, ms in times.items()}}


def settings(spec: Spec) -> CardiacGAN:
    """The defaults, with channels in proportion to the first of `spec.widths`."""
    return CardiacGAN(
        widths=channels(spec, *CardiacGAN.widths),
        discriminator_widths=channels(spec, *CardiacGAN.discriminator_widths),
        learning_rate=spec.learning_rate,
        dropout=0.0,
        discriminator_dropout=0.0,
    )


class CardiacContender(JaxContender):
    """The method, from the weights that both contenders start with."""

    def __init__(self, spec: Spec, name: str):
        super().__init__(spec, name)
        # Of a picture in which a landmark is unknown, D learns nothing: here it is absent.
        self.batch = self.batch.replace(absent=~self.batch.present)  # type: ignore[attr-defined]

    def method(self, dtype: str) -> Method:
        """By its public way, with the brightest pixel beside the heatmap."""
        method = settings(self.spec).build(task(self.spec, jnp.dtype(dtype)))
        (whole,) = method.stages

        def run(*given: Any) -> Prediction:
            found = whole.run(*given)
            heatmap = jnp.asarray(found.maps["heatmap"])
            peak = jnp.unravel_index(heatmap.reshape(len(heatmap), 1, -1).argmax(-1), self.picture)
            ijk = jnp.pad(jnp.stack(peak, axis=-1), [(0, 0), (0, 0), (0, 1)])
            return dataclasses.replace(found, positions_ijk={"argmax": ijk})

        return dataclasses.replace(method, stages=(Stage(run),))

    @property
    def picture(self) -> tuple[int, int]:
        """Pixels of the crop."""
        return self.spec.volume[:2]

    def initial(self) -> State:
        """The method's own but for the weights: variances and rates start with 1."""
        return self.afresh().replace(params=super().initial().params)  # type: ignore[attr-defined]

    def heatmaps(self, state: State, image: Array, dtype: str) -> Array:
        """(B, X, Y, 1)."""
        networks = Networks(settings(self.spec), task(self.spec, jnp.dtype(dtype)))
        return jnp.asarray(jax.jit(networks.predict)(state.variables, image))[..., None]
