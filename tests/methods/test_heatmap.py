"""The heatmap method: its step under jit, and that it learns what there is to learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spots import MARGIN, SPACING, TASK, batch, error_mm, predict

from jaxmark.config import Augment
from jaxmark.core.heatmaps import gaussians
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.system.errors import InputError


@pytest.mark.parametrize("loss", ["weighted_l2", "cross_entropy"])
def test_training_finds_the_landmarks(loss):
    settings = HeatmapRegression(
        steps=200, widths=(8, 16), head=16, loss=loss, sigma_mm=2.0, learning_rate=1e-2
    )
    method = settings.build(TASK)
    state = method.init(jax.random.key(0))
    data = batch()
    step = jax.jit(method.phases[0].step)

    def error(state):
        found = predict(method, state, data.image)
        return float(error_mm(found, data.landmarks_ijk).mean()), found.score

    before, _ = error(state)
    first = None
    for i in range(settings.steps):
        state, metrics = step(state, data, jax.random.key(i))
        first = metrics["loss"] if first is None else first
    after, score = error(state)
    assert metrics["loss"] < 0.8 * first  # of a softmax, log(voxels) at the start
    assert after < 1.5 < before
    assert int(state.step) == settings.steps
    # A found landmark has a peak near one.
    assert 0.3 < score.min() and score.max() < 3


def test_a_step_is_a_function_of_state_batch_and_key():
    method = HeatmapRegression(widths=(4, 8), head=4).build(TASK)
    state, data = method.init(jax.random.key(0)), batch()
    step = jax.jit(method.phases[0].step)
    a, b, c = (step(state, data, jax.random.key(seed))[1]["loss"] for seed in (1, 1, 2))
    assert a == b != c


def test_parameters_stay_in_full_precision_when_arithmetic_is_half():
    task = dataclasses.replace(TASK, dtype=jnp.bfloat16)
    method = HeatmapRegression(widths=(4, 8), head=4).build(task)
    state, metrics = jax.jit(method.phases[0].step)(
        method.init(jax.random.key(0)), batch(), jax.random.key(0)
    )
    assert metrics["loss"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


def test_coordinates_let_a_network_without_contrast_know_where_it_is():
    # The image is empty: only the coordinates can tell one voxel from another.
    settings = HeatmapRegression(
        widths=(8, 8), head=16, coordinates=True, loss="cross_entropy", sigma_mm=2.0,
        learning_rate=1e-2,
    )  # fmt: skip
    method = settings.build(dataclasses.replace(TASK, augment=Augment(translation_voxels=0)))
    state = method.init(jax.random.key(0))
    data = batch(1)
    data = data.replace(image=jnp.zeros_like(data.image))
    step = jax.jit(method.phases[0].step)
    for i in range(200):
        state, _ = step(state, data, jax.random.key(i))
    assert error_mm(predict(method, state, data.image), data.landmarks_ijk).max() < 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (4, 4, 4, 4, 4)}, r"config\.data\.crop: \(16, 16, 8\) .* multiple of 16"),
        ({"loss": "l1"}, r"config\.method\.loss: 'l1'"),
        ({"sigma_mm": 0.0}, r"config\.method\.sigma_mm: 0\.0 is not positive"),
        ({"widths": ()}, r"config\.method\.widths"),
        ({"decay": 2.0}, r"config\.method\.decay: 2\.0"),
        ({"clip_norm": -1.0}, r"config\.method\.clip_norm: -1\.0 is negative"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        HeatmapRegression(**changes).build(TASK)


@pytest.mark.parametrize("loss", ["weighted_l2", "cross_entropy"])
def test_what_is_stated_to_be_absent_is_learned(loss):
    settings = HeatmapRegression(
        steps=200, widths=(8, 16), head=16, loss=loss, sigma_mm=2.0, learning_rate=1e-2
    )
    method = settings.build(TASK)

    def sometimes(count, seed):
        """The small spot is there in half of the volumes, and stated to be absent in others."""
        whole, rng = batch(count, seed), np.random.default_rng(seed)
        there = np.stack([np.ones(count, bool), rng.random(count) < 0.5], 1)
        big = gaussians(whole.landmarks_ijk[:, :1], whole.image.shape[1:4], SPACING, 2.5)
        keep = there[:, 1, None, None, None, None]
        image = jnp.where(keep, whole.image, big.astype(jnp.float16))
        return whole.replace(image=image, present=jnp.asarray(there), absent=jnp.asarray(~there))

    state, step = method.init(jax.random.key(0)), jax.jit(method.phases[0].step)
    for number in range(settings.steps):
        state, _ = step(state, sometimes(4, number), jax.random.key(1))
    seen = sometimes(32, 10_000)
    found = predict(method, state, seen.image)
    evidence, there = np.asarray(found.evidence), np.asarray(seen.present)
    # Of any two volumes, one with the small spot and one without, the first has more evidence.
    with_spot, without = evidence[there[:, 1], 1], evidence[~there[:, 1], 1]
    assert (with_spot[:, None] > without).mean() > 0.95
    error = np.linalg.norm(
        np.asarray(found.positions_ijk["argmax"] + MARGIN - seen.landmarks_ijk), axis=-1
    )
    assert np.median(error[there]) < 1.5
