"""SpatialConfiguration: targets, loss and penalty by hand, training, decoding, memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spots import CROP, MARGIN, SPACING, TASK, batch, error_mm, predict

from jaxmark.config import Augment
from jaxmark.core.heatmaps import gaussians
from jaxmark.methods.method import Batch, State
from jaxmark.methods.optimizers import kernels
from jaxmark.methods.scn import (
    RECIPES,
    ScaledHeatmaps,
    SpatialConfiguration,
    memory_notes,
    resolved,
    training_memory,
    training_step,
)
from jaxmark.system.errors import InputError
from jaxmark.system.memory import nbytes

VOXEL_MM = 2.0 ** (1 / 3)
TINY = SpatialConfiguration(
    filters=8,
    levels=2,
    downsample=4,
    dropout=0.0,
    reflect=False,
    optimizer="adam",
    learning_rate=3e-4,
    weight_decay=0.0,
    sigma_mm=2.0,
    sigma_rate=30.0,
    target_sum=400.0,
    sigma_penalty=16.0,
)


def by_hand(heatmaps, points, present, absent, sigma, target_sum, penalty):
    """Loss and penalty voxel by voxel in float64, in the authors' voxels."""
    fit = cost = 0.0
    grid = np.stack(np.meshgrid(*map(np.arange, CROP), indexing="ij"), -1)
    for b in range(len(heatmaps)):
        for k in range(2):
            voxels = sigma[k] / VOXEL_MM
            squared = (((grid - points[b, k]) * SPACING) ** 2).sum(-1)
            target = np.exp(-squared / (2 * sigma[k] ** 2))
            if target_sum:
                target *= target_sum / (np.sqrt(2 * np.pi) * voxels) ** 3
            if present[b, k]:
                cost += penalty * voxels**2 / 2
            if present[b, k] or absent[b, k]:
                fit += ((heatmaps[b, ..., k] - present[b, k] * target) ** 2).sum() / 2
    return fit / len(heatmaps), cost / len(heatmaps)


@pytest.mark.parametrize("recipe", ["2019", "later"])
def test_loss_and_penalty_by_hand(recipe):
    model = ScaledHeatmaps(SpatialConfiguration(recipe=recipe), TASK)
    rng = np.random.default_rng(0)
    heatmaps, points = rng.normal(size=(3, *CROP, 2)), rng.uniform(3, 8, (3, 2, 3))
    # Present, absent, unknown, in both columns.
    present = np.array([[1, 0], [0, 1], [1, 0]], bool)
    absent = np.array([[0, 1], [0, 0], [0, 0]], bool)
    sigma = np.array([2.0, 3.0])
    params = {"sigma_mm": jnp.asarray(sigma, jnp.float32)}
    args = [jnp.asarray(a) for a in (heatmaps.astype(np.float32), points, present, absent)]
    fit, penalty = model.losses(params, *args)
    expected = by_hand(
        heatmaps, points, present, absent, sigma, 1000.0 if recipe == "2019" else 0.0, 100.0
    )
    np.testing.assert_allclose(fit, expected[0], rtol=1e-5)
    np.testing.assert_allclose(penalty, expected[1] if recipe == "2019" else 0.0, rtol=1e-6)
    # And its gradient to the widths.
    found = jax.grad(lambda s: sum(model.losses({"sigma_mm": s}, *args)))(params["sigma_mm"])
    if recipe == "later":
        np.testing.assert_array_equal(found, 0)
        return
    for k in range(2):
        moved = [sigma + sign * 1e-5 * (np.arange(2) == k) for sign in (-1, 1)]
        low, high = (
            sum(by_hand(heatmaps, points, present, absent, s, 1000.0, 100.0)) for s in moved
        )
        np.testing.assert_allclose(found[k], (high - low) / 2e-5, rtol=1e-4)


def test_a_target_sums_to_what_is_asked_for():
    model = ScaledHeatmaps(SpatialConfiguration(), TASK)
    for sigma in (1.5, 2.5):
        target = gaussians(jnp.full((1, 2, 3), 20.0), (41, 41, 41), SPACING, jnp.full(2, sigma))
        total = target.sum((1, 2, 3)) * model.height(jnp.full(2, sigma))
        np.testing.assert_allclose(total, 1000, rtol=1e-3)


def test_training_finds_the_landmarks_and_learns_widths():
    settings = dataclasses.replace(TINY, steps=200, learning_rate=1e-2)
    method = settings.build(TASK)
    state = jax.jit(method.init)(jax.random.key(0))
    np.testing.assert_array_equal(state.params["sigma_mm"], [2.0, 2.0])
    data, step = batch(), jax.jit(method.phases[0].step)
    for number in range(settings.steps):
        state, metrics = step(state, data, jax.random.key(number))
    found = predict(method, state, data.image)
    # One point of eight may still be at the other spot, from one seed or rounding to the next.
    assert jnp.median(error_mm(found, data.landmarks_ijk)) < 1.0
    assert 0.3 < found.score.min() and found.score.max() < 1.5
    learned = method.learned(state.params)["sigma_mm"]
    moved = jnp.abs(learned - 2.0)
    # How far the other one gets differs with rounding.
    assert moved.max() > 0.05 and moved.min() > 1e-3 and learned.min() > 0
    np.testing.assert_allclose(metrics["mean_sigma_mm"], learned.mean(), rtol=1e-6)
    assert int(state.step) == settings.steps


def test_widths_stay_positive_however_they_are_pulled():
    model = ScaledHeatmaps(TINY, TASK)
    moved = model.in_mm({"sigma_mm": jnp.array([-3.0, 2.0])})
    np.testing.assert_allclose(moved["sigma_mm"], [0.5 * VOXEL_MM, 2 * VOXEL_MM], rtol=1e-6)
    np.testing.assert_allclose(model.in_voxels(moved)["sigma_mm"], [0.5, 2], rtol=1e-6)
    assert np.isfinite(model.height(moved["sigma_mm"])).all()


def test_the_first_step_of_the_paper_by_hand(monkeypatch):
    """Nesterov's first step is 1.99 times the rate times the gradient, that of kernels decayed.

    The network is two numbers a landmark, so that float64 and differences can follow.
    """
    task = dataclasses.replace(TASK, augment=Augment(translation_voxels=0))
    settings = SpatialConfiguration(
        filters=4, levels=2, downsample=4, learning_rate=1e-6, sigma_rate=2.0
    )
    model, data = ScaledHeatmaps(settings, task), batch(1)

    def stub(params, image, key):
        values = params["scn"]["kernel"] + params["scn"]["bias"]
        heatmaps = jnp.broadcast_to(values, (1, *CROP, 2))
        return heatmaps, heatmaps, heatmaps

    monkeypatch.setattr(model, "heatmaps", stub)
    net = {"kernel": jnp.array([2.0, -3.0]), "bias": jnp.array([1.0, 5.0])}
    params = {"scn": net, "sigma_mm": jnp.array([2.0, 3.0])}
    optimizer = model.optimizer()
    state = State(jnp.zeros((), jnp.int32), params, {"scn": optimizer.init(params)})
    new, metrics = jax.jit(training_step(model, optimizer))(state, data, jax.random.key(0))

    points, here = np.asarray(data.landmarks_ijk - MARGIN), np.ones((1, 2), bool)

    def cost(kernel, bias, voxels):
        heatmaps = np.broadcast_to(kernel + bias, (1, *CROP, 2))
        fit, penalty = by_hand(heatmaps, points, here, ~here, voxels * VOXEL_MM, 1000.0, 100.0)
        return fit + penalty + 5e-4 * (kernel**2).sum() / 2

    before = [np.array([2.0, -3.0]), np.array([1.0, 5.0]), np.array([2.0, 3.0]) / VOXEL_MM]
    after = [new.params["scn"]["kernel"], new.params["scn"]["bias"], new.params["sigma_mm"]]
    after[2] = after[2] / VOXEL_MM
    for which, k in np.ndindex(3, 2):
        sides = []
        for sign in (-1, 1):
            moved = [value.copy() for value in before]
            moved[which][k] += sign * 1e-4
            sides.append(cost(*moved))
        rate = 2e-6 if which == 2 else 1e-6
        step = -1.99 * rate * (sides[1] - sides[0]) / 2e-4
        np.testing.assert_allclose(after[which][k] - before[which][k], step, rtol=1e-3, atol=1e-6)
    assert metrics["loss"] == metrics["heatmap_loss"] + metrics["sigma_penalty"]
    fit, penalty = by_hand(
        np.broadcast_to([3.0, 2.0], (1, *CROP, 2)), points, here, ~here, [2.0, 3.0], 1000.0, 100.0
    )
    np.testing.assert_allclose(metrics["loss"], fit + penalty, rtol=1e-5)


def test_kernels_alone_decay():
    model = ScaledHeatmaps(SpatialConfiguration(weight_decay=1.0, learning_rate=1.0), TASK)
    tree = {
        "scn": {"Conv_0": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}},
        "sigma_mm": jnp.ones(2),
    }
    assert jax.tree.leaves(kernels(tree)) == [False, True, False]
    still = jax.tree.map(jnp.zeros_like, tree)
    optimizer = model.optimizer()
    update, _ = optimizer.update(still, optimizer.init(tree), tree)
    assert [float(leaf[0]) != 0 for leaf in jax.tree.leaves(update)] == [False, True, False]


@functools.cache
def one_step():
    """A state, and a compiled step in which nothing but dropout is random."""
    # Without the paper's large kernels, which take long to compile.
    settings = SpatialConfiguration(
        recipe="later", filters=4, levels=1, downsample=4, spatial_levels=1, dropout=0.5,
        learn_sigma=True, target_sum=50.0,
    )  # fmt: skip
    method = settings.build(dataclasses.replace(TASK, augment=Augment(translation_voxels=0)))
    return jax.jit(method.init)(jax.random.key(0)), jax.jit(method.phases[0].step)


def test_a_step_is_a_function_of_state_batch_and_key():
    state, step = one_step()
    a, b, c = (step(state, batch(), jax.random.key(seed))[0].params for seed in (1, 1, 2))
    same = jax.tree.map(lambda x, y: bool((x == y).all()), a, b)
    other = jax.tree.map(lambda x, y: bool((x == y).all()), a, c)
    assert all(jax.tree.leaves(same)) and not all(jax.tree.leaves(other))


def test_unknown_landmarks_teach_nothing_and_absent_ones_do():
    state, step = one_step()
    data = batch()
    none = jnp.zeros_like(data.present)
    unknown = step(state, data.replace(present=none), jax.random.key(0))[1]
    absent = step(state, data.replace(present=none, absent=~none), jax.random.key(0))[1]
    assert unknown["loss"] == 0 and unknown["gradient_norm"] == 0
    assert absent["heatmap_loss"] > 0 and absent["sigma_penalty"] == 0


def test_scores_are_heights_relative_to_the_target(monkeypatch):
    settings = SpatialConfiguration(filters=4, levels=2, downsample=4)
    model = ScaledHeatmaps(settings, TASK)
    points = jnp.array([[[5.0, 6.0, 3.0], [8.0, 7.0, 4.0]]])
    sigma = jnp.array([2.0, 3.0])
    params = {"scn": {}, "sigma_mm": sigma}
    share = jnp.array([1.0, 0.25])
    perfect = gaussians(points, CROP, SPACING, sigma) * model.height(sigma) * share
    monkeypatch.setattr(model, "heatmaps", lambda *_: (perfect, perfect, perfect))
    found = model.predict(params, jnp.zeros((1, *CROP, 1)))
    np.testing.assert_array_equal(found.positions_ijk["argmax"], points)
    np.testing.assert_allclose(found.score, share[None], rtol=1e-5)
    assert found.evidence[0, 0] > found.evidence[0, 1]


@pytest.mark.parametrize("recipe", ["2019", "later"])
def test_rematerialisation_keeps_less(recipe):
    """What JAX keeps for the gradient; a CPU's compiler merges both computations again."""
    plain = SpatialConfiguration(recipe=recipe, filters=8, levels=2, downsample=4, spatial_levels=2)
    remat = dataclasses.replace(plain, remat=True)
    layer = 4 * 8 * 16 * 16 * 8
    saved = training_memory(plain, TASK, 1).kept - training_memory(remat, TASK, 1).kept
    assert saved > 2 * layer
    # The parameters are the same either way.
    inits = (
        jax.eval_shape(ScaledHeatmaps(s, TASK).init, jax.random.key(0)) for s in (plain, remat)
    )
    first, second = map(jax.tree.structure, inits)
    assert first == second


def test_what_a_step_is_said_to_need_is_what_the_compiler_counts():
    task = dataclasses.replace(TASK, crop=(32, 32, 32), margin=(0, 0, 0), augment=Augment(0))
    settings = SpatialConfiguration(recipe="later", filters=16, levels=2, spatial_levels=1)
    said = training_memory(settings, task, 2)
    model = ScaledHeatmaps(settings, task)
    optimizer = model.optimizer()
    params = jax.eval_shape(model.init, jax.random.key(0))

    def init(key):
        return settings.build(task).init(key)

    state = jax.eval_shape(init, jax.random.key(0))
    assert said.parameters == 2 * nbytes(params) + nbytes(state.optimizer)
    data = jax.eval_shape(
        lambda: Batch(
            image=jnp.zeros((2, 32, 32, 32, 1), jnp.float16),
            landmarks_ijk=jnp.zeros((2, 2, 3)),
            present=jnp.zeros((2, 2), bool),
            absent=jnp.zeros((2, 2), bool),
        )
    )
    step = jax.jit(training_step(model, optimizer))
    compiled = step.lower(state, data, jax.random.key(0)).compile()
    counted = compiled.memory_analysis().temp_size_in_bytes + said.parameters
    assert 0.6 < said.total / counted < 1.6


def test_what_is_printed_before_training():
    settings = SpatialConfiguration(filters=8, levels=2, downsample=4)
    (line,) = settings.build(TASK).notes(3)
    assert line.startswith("a training step of 3 volume(s) of 16x16x8 voxels with 8 filters needs")
    assert "remat" not in line
    later = dataclasses.replace(settings, recipe="later", spatial_levels=1)
    (line,) = memory_notes(later, TASK, 3)
    assert "config.method.remat=True" in line
    (line,) = memory_notes(dataclasses.replace(later, remat=True), TASK, 3)
    assert "remat" not in line


def test_settings_take_the_place_of_the_recipes():
    assert resolved(SpatialConfiguration()) == RECIPES["2019"]
    own = resolved(SpatialConfiguration(recipe="later", dropout=0.0, learning_rate=1.0))
    assert own == dataclasses.replace(RECIPES["later"], dropout=0.0, learning_rate=1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"config\.data\.crop: \(16, 16, 12\) .* multiple of 8, which 4 levels"),
        (
            {"levels": 2},
            r"config\.data\.crop: .* multiple of 8, which config\.method\.downsample=8",
        ),
        ({"recipe": "later", "levels": 2}, r"multiple of 32, .*=4 and 4 levels of the spatial"),
        ({"recipe": "2020"}, r"config\.method\.recipe: '2020' is not '2019' or 'later'"),
        ({"optimizer": "sgd"}, r"config\.method\.optimizer: 'sgd'"),
        ({"filters": 0}, r"config\.method\.filters: 0 is not positive"),
        ({"sigma_mm": 0.0}, r"config\.method\.sigma_mm: 0\.0 is not positive"),
        ({"sigma_penalty": -1.0}, r"config\.method\.sigma_penalty: -1\.0 is negative"),
        ({"dropout": 1.0}, r"config\.method\.dropout: 1\.0 is not in"),
        ({"recipe": "later", "learn_sigma": True}, r"learn_sigma: needs a config\.method\.target"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        SpatialConfiguration(**changes).build(dataclasses.replace(TASK, crop=(16, 16, 12)))
