"""Regression and classification by patches: crops and chunks, both phases, and what is found."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from spots import CROP, TASK, error_mm
from spots import batch as batch_of

from jaxmark.methods.method import State, Variables
from jaxmark.methods.noothout import (
    RegressionClassification,
    Stages,
    cut_crops,
    random_chunks,
    stage_step,
)
from jaxmark.system.errors import InputError

SMALL = RegressionClassification(
    steps=120,
    local_steps=60,
    stem=4,
    widths=(8, 8),
    blocks=(1, 1),
    head=16,
    local_widths=(4, 8),
    local_crop=8,
    jitter_voxels=2,
    learning_rate=1e-2,
    local_learning_rate=1e-2,
)


@functools.cache
def compiled():
    """The small method's first state, prediction, and a step of either phase."""
    method = SMALL.build(TASK)
    steps = [jax.jit(phase.step) for phase in method.phases]
    return jax.jit(method.init)(jax.random.key(0)), jax.jit(method.stages[0].run), steps


def batch(count=4, seed=0):
    return batch_of(count, seed, nearest=5)


def test_training_finds_the_landmarks_and_the_second_phase_finds_them_better():
    method = SMALL.build(TASK)
    assert [phase.name for phase in method.phases] == ["global", "local"]
    (state, predict, steps), data = compiled(), batch()

    def error(state):
        found = predict(state.variables, {"image": data.image})
        positions = found.positions_ijk
        np.testing.assert_array_equal(positions["argmax"], jnp.round(positions["subvoxel"]))
        assert ((0 <= found.score) & (found.score <= 1)).all()
        return float(error_mm(found, data.landmarks_ijk).mean())

    errors, count = [error(state)], 0
    for phase, step in zip(method.phases, steps, strict=True):
        before, losses = state, []
        for _ in range(phase.steps):
            state, metrics = step(state, data, jax.random.key(count))
            losses.append(float(metrics["loss"]))
            count += 1
        assert np.mean(losses[-10:]) < 0.5 * losses[0]
        errors.append(error(state))
        # The other network is as it was.
        other = {"global": "local", "local": "global"}[phase.name]
        for part in ("params", "optimizer"):
            a, b = getattr(before, part)[other], getattr(state, part)[other]
            assert all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
    untrained, coarse, fine = errors
    assert coarse < 2.5 < untrained and fine < 0.7 * coarse
    assert int(state.step) == count


def test_before_the_second_phase_the_local_networks_say_nothing():
    state, predict, _ = compiled()
    params, image = state.params, batch().image
    other = {**params, "local": jax.tree.map(lambda p: p + 1, params["local"])}

    def found(params, refine):
        variables = Variables(params, {"refine": jnp.asarray(refine)})
        return predict(variables, {"image": image}).positions_ijk["subvoxel"]

    coarse = found(params, 0.0)
    np.testing.assert_array_equal(coarse, found(other, 0.0))
    assert state.statistics["refine"] == 0
    # Once they are trained they do, within their crops, whose middle is the global prediction; the
    # first parameters of a head say "here", which is the middle.
    assert 0 < jnp.abs(found(params, 1.0) - coarse).max() < 0.6


def test_a_local_step_is_a_function_of_its_arguments_and_learns_from_what_is_present():
    # Its losses are those of the jittered crops.
    (state, _, (_, step)), data = compiled(), batch()
    assert step(state, data, jax.random.key(0))[0].statistics["refine"] == 1
    present = data.present.at[:, 1].set(False)
    data = data.replace(present=present, absent=~present)
    (new, a), (_, b), (_, c) = (step(state, data, jax.random.key(seed)) for seed in (1, 1, 2))
    assert a["loss"] == b["loss"] != c["loss"]
    moved = [
        [bool((p[k] != q[k]).any()) for k in (0, 1)]
        for p, q in zip(*(jax.tree.leaves(s.params["local"]) for s in (state, new)), strict=True)
    ]
    assert np.any(moved, axis=0).tolist() == [True, False]


@pytest.mark.parametrize("number", [0, 1])
def test_parameters_stay_in_full_precision_when_arithmetic_is_half(number):
    method = SMALL.build(dataclasses.replace(TASK, dtype=jnp.bfloat16))
    state = jax.eval_shape(method.init, jax.random.key(0))
    state, metrics = jax.eval_shape(method.phases[number].step, state, batch(), jax.random.key(0))
    assert metrics["loss"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


def test_a_step_is_one_of_amsgrad_on_the_weighted_sum():
    # One parameter p, of which the losses are 3 p and p^2: the gradient is 2 * 3 + 2 p.
    def losses(params, batch, key):
        return 3 * params, params**2

    optimizer = optax.amsgrad(0.1)
    step = stage_step("global", 2.0, losses, optimizer)
    start = jnp.asarray(5.0)
    state = State(
        step=jnp.zeros((), jnp.int32),
        params={"global": start},
        optimizer={"global": optimizer.init(start)},
        statistics={"refine": jnp.zeros(())},
    )
    p, m, v, largest = 5.0, 0.0, 0.0, 0.0
    for t in (1, 2, 3):
        state, metrics = step(state, None, None)
        gradient = 6 + 2 * p
        np.testing.assert_allclose(metrics["loss"], 6 * p + p**2, rtol=1e-5)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        largest = max(largest, v / (1 - 0.999**t))
        p -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(largest) + 1e-8)
        np.testing.assert_allclose(state.params["global"], p, rtol=1e-5)
        np.testing.assert_allclose(metrics["gradient_norm"], gradient, rtol=1e-5)
    assert state.statistics["refine"] == 0


def test_chunks_are_pieces_of_the_volume_with_the_landmarks_in_their_voxels():
    shape, side = (20, 9, 8), 8
    i, j, k = np.indices(shape)
    image = jnp.broadcast_to(
        jnp.asarray(i + 100 * j + 10_000 * k)[None, ..., None], (40, *shape, 1)
    )
    points = jnp.asarray(np.random.default_rng(0).uniform(0, 20, (40, 3, 3)), jnp.float32)
    chunks, moved = random_chunks(jax.random.key(0), image, points, side)
    assert chunks.shape == (40, 8, 8, 8, 1)
    code = np.asarray(chunks[:, 0, 0, 0, 0])
    first = np.stack([code % 100, code // 100 % 100, code // 10_000], -1)
    np.testing.assert_allclose(moved, points - first[:, None], atol=1e-5)
    # Every place there is, drawn apart for each volume; the last axis has but one.
    assert set(first[:, 0]) == set(range(13)) and set(first[:, 1]) == {0, 1} == {*first[:, 1]}
    assert set(first[:, 2]) == {0}
    for chunk, (x, y, z) in zip(chunks, first, strict=True):
        np.testing.assert_array_equal(chunk, image[0, x : x + 8, y : y + 8, z : z + 8])
    # A volume that is smaller than a chunk stays whole.
    assert random_chunks(jax.random.key(0), image, points, 16)[0].shape == (40, 16, 9, 8, 1)


def test_crops_are_around_their_places_also_at_the_edge_and_beyond():
    rng, side = np.random.default_rng(0), 8
    image = rng.normal(size=(2, 16, 12, 10, 1)).astype(np.float32)
    places = rng.uniform(-5, 20, (2, 7, 3)).astype(np.float32)
    crops, first = cut_crops(jnp.asarray(image), jnp.asarray(places), side)
    assert crops.shape == (7, 2, side, side, side, 1)
    padded = np.pad(image, [(0, 0), (4, 4), (4, 4), (4, 4), (0, 0)], mode="edge")
    for b, k in np.ndindex(2, 7):
        x, y, z = np.asarray(first[b, k]) + 4
        expected = padded[b, x : x + side, y : y + side, z : z + side]
        np.testing.assert_array_equal(crops[k, b], expected)
    # The middle of a crop of voxels a to a + 7 is a + 3.5.
    nearest = np.clip(places, 0, np.array(image.shape[1:4]) - 1)
    assert np.abs(np.asarray(first) + 3.5 - nearest).max() <= 0.5


def test_local_networks_see_their_own_landmark_alone():
    stages = Stages(SMALL, TASK)
    rng = np.random.default_rng(0)
    like = jax.eval_shape(stages.init, jax.random.key(0))["local"]
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), like)
    image = jnp.asarray(rng.normal(size=(3, *CROP, 1)), jnp.float32)
    places = jnp.asarray(rng.uniform(0, 8, (3, 2, 3)), jnp.float32)
    votes = jax.jit(stages.local_votes)
    logits, away, first = votes(params, image, places)
    assert logits.shape == (3, 4, 4, 4, 2) and away.shape == (3, 4, 4, 4, 2, 3)
    # Landmark 1 of case 2 is looked for elsewhere: that changes what is said of it, nothing else.
    others = votes(params, image, places.at[2, 1].add(6))
    changed = [
        (np.asarray(a) != np.asarray(b)) for a, b in zip((logits, away), others, strict=False)
    ]
    for values in changed:
        assert values[2, :, :, :, 1].any()
        values[2, :, :, :, 1] = False
        assert not values.any()
    # And its own parameters alone speak of it.
    own = jax.tree.map(lambda p: p.at[0].set(0), params)
    np.testing.assert_array_equal(votes(own, image, places)[0][..., 1], logits[..., 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"config\.method\.steps: 0 is not positive"),
        ({"local_learning_rate": 0.0}, r"config\.method\.local_learning_rate: 0\.0 is not"),
        ({"chunk": 20}, r"config\.method\.chunk: 20 is not a multiple of 8"),
        ({"local_crop": 7}, r"config\.method\.local_crop: 7 is not a multiple of 2"),
        ({"jitter_voxels": 8.0}, r"config\.method\.jitter_voxels: 8\.0 .* crops of 16"),
        ({"jitter_voxels": -1.0}, r"config\.method\.jitter_voxels: -1\.0 is negative"),
        ({"widths": (4,), "blocks": (1,)}, r"config\.method\.widths: needs at least two"),
        ({"blocks": (3, 4)}, r"config\.method\.blocks: .* each of the 4 stages"),
        ({"local_widths": ()}, r"config\.method\.local_widths"),
        ({"decay": 2.0}, r"config\.method\.decay: 2\.0"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        RegressionClassification(**changes).build(TASK)


def test_volumes_that_are_no_number_of_patches_are_refused():
    with pytest.raises(InputError, match=r"config\.data\.crop: \(16, 12, 8\) .* multiple of 8"):
        RegressionClassification().build(dataclasses.replace(TASK, crop=(16, 12, 8)))
