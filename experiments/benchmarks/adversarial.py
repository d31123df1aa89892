"""Part (i): a step of the adversarial phase against PyTorch."""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp

from experiments.benchmarks.common import Options, Row, Spec
from experiments.benchmarks.contenders import JaxContender, task
from experiments.benchmarks.methods import adversarial
from experiments.benchmarks.step import compared
from jaxmark.methods.method import Method

METHOD = (
    "One step of the adversarial phase as published (D on heatmaps, with the coordinates): one "
    "pass through G, Eq. 4 and Adam for D, Eqs. 2 and 3 and Adam for G. D's real landmarks are the "
    "batch's, so that both do the same; else as in part step. PyTorch: the usual alternation, with "
    "whole heatmaps, D seeing G's result detached from it and then again."
)
OWN = "experiments.benchmarks.adversarial:AdversarialContender"
TORCH = "experiments.benchmarks.adversarial_twin:AdversarialTwin"


def rows(spec: Spec, options: Options) -> Iterator[Row | str]:
    """As `step.rows`."""
    yield from compared(spec, options, OWN, TORCH, {}, works=("step",))


class AdversarialContender(JaxContender):
    """jaxmark's adversarial phase, from the weights that all contenders start with."""

    phase = 1

    def method(self, dtype: str) -> Method:
        """By its public way."""
        settings = dataclasses.replace(
            adversarial(self.spec),
            real="images",
            sigma_mm=self.spec.sigma_mm,
            alpha=self.spec.alpha,
            learning_rate=self.spec.learning_rate,
        )
        return settings.build(task(self.spec, jnp.dtype(dtype)))
