"""What methods log is what they say that they log."""

import dataclasses

import jax
import numpy as np
import pytest
import spots

from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import LandmarkSets
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import SpatialConfiguration
from jaxmark.registry import METHODS
from jaxmark.results import figures

SMALL = {
    "HeatmapRegression": HeatmapRegression(widths=(4, 8), head=4),
    "Adversarial": Adversarial(widths=(4, 8), head=4, discriminator_widths=(4, 8)),
    "RegressionClassification": RegressionClassification(
        widths=(4, 4), blocks=(1, 1), head=4, local_widths=(4, 4), local_crop=8, jitter_voxels=1
    ),
    "SpatialConfiguration": SpatialConfiguration(filters=4, levels=2, downsample=4),
}


def test_all_methods_are_here():
    assert SMALL.keys() == METHODS.keys()
    assert all(type(settings) is METHODS[name] for name, settings in SMALL.items())


@pytest.mark.parametrize("name", SMALL)
def test_every_metric_has_a_kind_and_every_decoder_a_position(name):
    sets = LandmarkSets(np.zeros((2, 2, 3), np.float32), np.ones((2, 2), bool))
    settings, data = SMALL[name], spots.batch(2)
    method = settings.build(dataclasses.replace(spots.TASK, unpaired=sets))
    state = jax.eval_shape(method.init, jax.random.key(0))
    logged = set()
    for phase in method.phases:
        _, metrics = jax.eval_shape(phase.step, state, data, jax.random.key(0))
        assert "loss" in metrics
        logged |= set(metrics)
    assert logged == set(settings.metrics)
    assert set(settings.metrics.values()) <= set(figures._PANELS)
    (stage,) = method.stages
    found = jax.eval_shape(stage.run, state.variables, {"image": data.image})
    assert tuple(found.positions_ijk) == settings.decoders
    assert all(ijk.shape == (2, 2, 3) for ijk in found.positions_ijk.values())
