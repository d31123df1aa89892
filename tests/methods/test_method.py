"""What all methods have in common: declared metrics, states of one shape, a told platform."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spots import CROP, TASK, batch

from jaxmark.core import slabs
from jaxmark.methods import method
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.cardiac_gan import CardiacGAN
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.coarse_to_fine import CoarseToFine
from jaxmark.methods.heatmap import Generator, HeatmapRegression
from jaxmark.methods.method import LandmarkSets, Prediction, State, whole_volume_stage
from jaxmark.methods.multitask import Multitask
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import SpatialConfiguration
from jaxmark.registry import METHODS

SMALL = (
    HeatmapRegression(widths=(4, 8), head=4),
    HeatmapRegression(widths=(4, 8), head=4, loss="cross_entropy"),
    Adversarial(widths=(4, 8), head=4, discriminator_widths=(4, 8)),
    Adversarial(widths=(4, 8), discriminator_widths=(4, 8), shown="cells", real_sets=2, r1=1.0),
    RegressionClassification(stem=4, widths=(8, 8), blocks=(1, 1), head=4, local_widths=(4, 8)),
    SpatialConfiguration(filters=4, levels=2, downsample=4),
    SpatialConfiguration(recipe="later", filters=4, levels=1, downsample=4, spatial_levels=1),
)
PEOPLE = LandmarkSets(np.full((3, 2, 3), 8, np.float32), np.ones((3, 2), bool))
TRAINING = dataclasses.replace(TASK, unpaired=PEOPLE)


def test_every_method_is_looked_at_here():
    # These have batches or stages of their own, or look at pictures, and the same is asked of them
    # in their own files.
    elsewhere = {Multitask, Cascade, CardiacGAN, CoarseToFine}
    assert {type(settings) for settings in SMALL} == set(METHODS.values()) - elsewhere


@pytest.mark.parametrize("settings", SMALL, ids=lambda s: type(s).__name__)
def test_a_step_returns_the_declared_metrics_and_a_state_of_the_same_shape(settings):
    built = settings.build(TRAINING)
    state = jax.eval_shape(built.init, jax.random.key(0))
    returned = set()
    for phase in built.phases:
        new, metrics = jax.eval_shape(phase.step, state, batch(2), jax.random.key(0))
        assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())
        assert "loss" in metrics
        returned |= set(metrics)
        same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, new)
        assert all(jax.tree.leaves(same))
    # All of them, and none that no phase has.
    assert returned == set(settings.metrics)
    known = {method.LOSS, method.SHARE, method.GRADIENT, method.LENGTH_MM}
    assert set(settings.metrics.values()) <= known


@pytest.mark.parametrize("settings", SMALL, ids=lambda s: type(s).__name__)
def test_a_stage_says_what_the_decoders_are(settings):
    built = settings.build(TASK)  # prediction needs no unpaired cohort
    state = jax.eval_shape(built.init, jax.random.key(0))
    (stage,) = built.stages
    found = jax.eval_shape(stage.run, state.variables, {"image": batch(3).image})
    assert set(found.positions_ijk) == set(settings.decoders)
    assert {p.shape for p in found.positions_ijk.values()} == {(3, 2, 3)}
    assert found.score.shape == found.evidence.shape == (3, 2)
    learned = built.learned(state.params)
    assert all(numbers.shape == (2,) for numbers in learned.values())


def test_positions_come_back_in_voxels_of_the_prepared_volume():
    margin = (3, 1, 0)
    task = dataclasses.replace(TASK, margin=margin)
    shape = tuple(n + 2 * m for n, m in zip(CROP, margin, strict=True))
    image = np.random.default_rng(0).normal(size=(2, *shape, 1)).astype(np.float16)
    seen = []

    def predict(variables, crop):
        seen.append(crop)
        ijk = {"a": jnp.zeros((2, 1, 3)), "b": jnp.ones((2, 1, 3))}
        return Prediction(ijk, score=variables.params["x"], evidence=jnp.zeros((2, 1)))

    (stage,) = whole_volume_stage(task, predict)
    state = State(jnp.zeros((), jnp.int32), {"x": jnp.ones((2, 1))}, {})
    found = stage.run(state.variables, {"image": jnp.asarray(image)})
    assert seen[0].dtype == jnp.float32
    np.testing.assert_array_equal(seen[0], image[:, 3:-3, 1:-1])
    one = stage.finish(jax.tree.map(lambda x: np.asarray(x)[1], found))
    np.testing.assert_array_equal(one.positions_ijk["a"], [[3, 1, 0]])
    np.testing.assert_array_equal(one.positions_ijk["b"], [[4, 2, 1]])
    assert one.score == 1


def test_slabs_are_of_the_task_s_platform_and_nobody_asks_which_there_is(monkeypatch):
    def asked(*_, **__):
        raise AssertionError("the platform is the task's")

    for name in ("default_backend", "devices", "local_devices"):
        monkeypatch.setattr(jax, name, asked)
    monkeypatch.setattr(slabs, "SLAB_VOXELS_CPU", 2 * 16 * 8)
    settings = HeatmapRegression(widths=(4, 8), head=4)

    def loops(platform):
        """Whether a traced program goes over slabs one after another."""
        task = dataclasses.replace(TASK, platform=platform)
        generator = Generator(settings, task)
        params = jax.eval_shape(generator.init, jax.random.key(0))
        maps = jax.make_jaxpr(generator.maps)(params, jnp.zeros((1, *CROP, 1)))
        return "scan" in str(maps)

    assert loops("cpu")
    assert not loops("gpu") and not loops("tpu")
    gpu = dataclasses.replace(TASK, platform="gpu")
    assert gpu.slab_voxels == slabs.SLAB_VOXELS > TASK.slab_voxels == 2 * 16 * 8


def test_programs_are_made_for_devices_that_are_not_here():
    there = dataclasses.replace(TASK, platform="gpu", dtype=jnp.bfloat16)
    built = HeatmapRegression(widths=(4, 8), head=4).build(there)
    state = jax.eval_shape(built.init, jax.random.key(0))
    traced = jax.jit(built.phases[0].step).trace(state, batch(2), jax.random.key(0))
    assert "bf16" in traced.lower(lowering_platforms=("cuda",)).as_text()
    stage = jax.jit(built.stages[0].run).trace(state.variables, {"image": batch(2).image})
    assert "bf16" in stage.lower(lowering_platforms=("cuda",)).as_text()
