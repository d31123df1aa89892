"""The adversarial method: its step against the plain alternation, and what D is shown."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import spots
from spots import CROP, MARGIN, SPACING

from jaxmark.core.heatmaps import gaussians
from jaxmark.core.losses import adversarial_loss, discriminator_loss
from jaxmark.methods.adversarial import (
    Adversarial,
    CellCritic,
    HeatmapCritic,
    adversarial_step,
    real_landmarks,
    saturation,
)
from jaxmark.methods.heatmap import Generator
from jaxmark.methods.method import UNPAIRED, Batch, LandmarkSets
from jaxmark.methods.views import augmented
from jaxmark.system.errors import InputError

FULL = tuple(n + 2 * MARGIN for n in CROP)


def unpaired(count=5):
    rng = np.random.default_rng(7)
    points = rng.uniform(6, np.array(FULL) - 6, (count, 2, 3)).astype(np.float32)
    present = np.ones((count, 2), bool)
    present[0, 1] = False
    return LandmarkSets(points, present)


TASK = dataclasses.replace(spots.TASK, unpaired=unpaired())
RATE = 0.1
SMALL = Adversarial(
    steps=3,
    adversarial_steps=5,
    widths=(4, 8),
    head=4,
    discriminator_widths=(4, 8),
    discriminator_hidden=8,
    learning_rate=1e-2,
    lambda_adv=0.3,
    cell_mm=5.0,
    label_smoothing=0.1,
    r1=0.7,
)


def batch(count=2, seed=0):
    rng = np.random.default_rng(seed)
    points = jnp.asarray(rng.uniform(6, np.array(FULL) - 6, (count, 2, 3)), jnp.float32)
    image = gaussians(points, FULL, SPACING, 2.0).sum(-1, keepdims=True)
    present = jnp.ones((count, 2), bool).at[1, 0].set(False)
    absent = jnp.zeros((count, 2), bool)
    return Batch(image.astype(jnp.float16), points, present, absent)


def critic_of(settings, generator):
    return {"heatmaps": HeatmapCritic, "cells": CellCritic}[settings.shown](settings, generator)


def plain_alternation(settings, state, data, key):
    """A step written as in a textbook: G twice, whole heatmaps, one network after the other."""
    generator = Generator(settings, TASK)
    net = critic_of(settings, generator)._net
    k_view, k_real = jax.random.split(key)
    view = augmented(TASK, data, k_view)
    real_ijk, real_present = real_landmarks(settings, TASK, k_real, data)
    pairs = settings.real_sets
    mask = (jnp.tile(data.present, (pairs, 1)) & real_present)[:, None, None, None]
    g, d = state.params["generator"], state.params["discriminator"]

    def show(heatmaps):
        if settings.shown == "heatmaps":
            return heatmaps * mask
        # Cells of 4 x 4 x 2 voxels.
        mass = jax.nn.relu(heatmaps) ** settings.sharpness
        cells = mass.reshape(-1, 4, 4, 4, 4, 4, 2, 2).sum((2, 4, 6))
        whole = (2 * np.pi) ** 1.5 * settings.sigma_mm**3 / 2.0 / settings.sharpness**1.5
        total = jnp.maximum(mass.sum((1, 2, 3)), whole / 2)
        return cells / total[:, None, None, None] * mask

    def generate(g):
        maps = generator.maps(g, view.image)
        heatmaps = generator.heatmaps(maps)(maps)
        return show(jnp.tile(heatmaps, (pairs, 1, 1, 1, 1)))

    real = show(gaussians(real_ijk, CROP, SPACING, settings.sigma_mm))
    fake = generate(g)

    def loss_d(d):
        inputs = jax.grad(lambda h: net.apply(d, h).sum())(real)
        penalty = (inputs**2).sum((1, 2, 3, 4)).mean()
        logits = net.apply(d, real), net.apply(d, fake)
        loss = discriminator_loss(*logits, label_smoothing=settings.label_smoothing)
        return loss + settings.r1 / 2 * penalty

    d = jax.tree.map(lambda p, gradient: p - RATE * gradient, d, jax.grad(loss_d)(d))

    def loss_g(g):
        features, head = generator.features(g, view.image), generator.head(g)
        truth = (view.landmarks_ijk, view.present)
        heat = generator.loss(features, *truth, absent=view.absent, head=head)
        return heat + settings.lambda_adv * adversarial_loss(net.apply(d, generate(g)))

    g = jax.tree.map(lambda p, gradient: p - RATE * gradient, g, jax.grad(loss_g)(g))
    return {"generator": g, "discriminator": d}


def trained(settings, steps=2):
    """A state in which the heatmaps are not nearly 0 any more."""
    method = settings.build(TASK)
    state = method.init(jax.random.key(0))
    for i in range(steps):
        state, _ = jax.jit(method.phases[0].step)(state, batch(seed=i), jax.random.key(i))
    return method, state


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        ("weighted_l2", "heatmaps"),
        ("weighted_l2", "cells"),
        pytest.param("cross_entropy", "cells", marks=pytest.mark.slow),
    ],
)
def test_one_pass_through_g_is_the_plain_alternation(loss, shown):
    # With and without what the dagger stands for, once each.
    positions = (loss == "weighted_l2") == (shown == "cells")
    settings = dataclasses.replace(SMALL, loss=loss, shown=shown, positions=positions)
    settings.real_sets = 3 if shown == "cells" else 1
    _, state = trained(settings)
    # Adam would make as much of a gradient that is rounding as of one that is not.
    sgd = optax.sgd(RATE)
    state = state.replace(optimizer={name: sgd.init(p) for name, p in state.params.items()})
    generator = Generator(settings, TASK)
    step = adversarial_step(settings, generator, critic_of(settings, generator), sgd, sgd)
    key = jax.random.key(3)
    new, metrics = jax.jit(step)(state, batch(), key)
    plain = jax.jit(lambda state, data: plain_alternation(settings, state, data, key))
    expected = plain(state, batch())
    for name in ("generator", "discriminator"):
        moved = jax.tree.map(lambda a, b: a - b, new.params[name], state.params[name])
        wanted = jax.tree.map(lambda a, b: a - b, expected[name], state.params[name])
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
        assert largest > 1e-5
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * largest)
    assert int(new.step) == 3
    assert set(metrics) >= {"real_accuracy", "fake_accuracy", "discriminator_loss"}
    assert all(np.isfinite(float(value)) for value in metrics.values())


def test_pretraining_leaves_the_discriminator_alone():
    method, state = trained(SMALL, steps=0)
    new, _ = jax.jit(method.phases[0].step)(state, batch(), jax.random.key(0))
    same = jax.tree.map(np.array_equal, new.params, state.params)
    assert all(jax.tree.leaves(same["discriminator"]))
    assert not all(jax.tree.leaves(same["generator"]))


@pytest.mark.parametrize("shown_as", ["heatmaps", "cells"])
def test_real_and_fake_lack_the_same_landmarks(shown_as):
    # The second landmark is absent: whatever either side has there, D's logits are the same.
    settings = dataclasses.replace(SMALL, shown=shown_as)
    generator = Generator(settings, TASK)
    critic = critic_of(settings, generator)
    d = critic.init(jax.random.key(1))
    shared = jnp.array([[True, False], [True, False]])
    maps = jax.random.normal(jax.random.key(2), (2, *CROP, 2))
    points = jnp.full((2, 2, 3), 5.0)
    elsewhere = points.at[:, 1].set(9.0)
    first, _ = critic.real(d, points, shared)
    second, _ = critic.real(d, elsewhere, shared)
    np.testing.assert_array_equal(first, second)
    everything, _ = critic.real(d, elsewhere, jnp.ones((2, 2), bool))
    assert not np.allclose(first, everything)

    changed = maps.at[..., 1].set(jnp.roll(maps[..., 1], 5, axis=1))
    before, after = (critic.fake(d, m, shared) for m in (maps, changed))
    np.testing.assert_array_equal(before, after)
    shown = [critic.fake(d, m, jnp.ones((2, 2), bool)) for m in (maps, changed)]
    assert not np.allclose(*shown)


def test_a_softmax_shows_gaussians_of_height_one():
    settings = dataclasses.replace(SMALL, loss="cross_entropy", sigma_mm=2.0)
    generator = Generator(settings, TASK)
    target = gaussians(jnp.full((1, 2, 3), 6.0), CROP, SPACING, 2.0)
    # Logits whose softmax is the Gaussian itself.
    logits = jnp.log(target + 1e-30)
    seen = generator.heatmaps(logits)(logits)
    # The crop cuts a little of it off, and what is left has the same sum.
    np.testing.assert_allclose(seen, target * seen.max() / target.max(), atol=1e-5)
    np.testing.assert_allclose(seen.max(), 1.0, atol=0.1)


def came_from(points, sets):
    """Which of the sets (U, 3) each point (N, 3) is a whole number of voxels from, and how many."""
    moved = points[:, None] - (sets - MARGIN)
    rows, which = np.nonzero(np.abs(moved - moved.round()).max(-1) < 1e-4)
    assert rows.tolist() == list(range(len(points)))
    return which, moved[rows, which]


@pytest.mark.parametrize(("real", "share"), [("images", 1.0), ("both", 0.0)])
def test_real_landmarks_are_those_of_the_images(real, share):
    settings = dataclasses.replace(SMALL, real=real, unpaired_share=share, real_sets=3)
    data = batch()
    points, present = real_landmarks(settings, TASK, jax.random.key(0), data)
    which, _ = came_from(np.asarray(points)[:, 1], np.asarray(data.landmarks_ijk)[:, 1])
    assert which.tolist() == [0, 1] * 3
    np.testing.assert_array_equal(present, np.tile(data.present, (3, 1)))


def test_real_landmarks_of_the_unpaired_cohort_are_moved_like_images():
    settings = dataclasses.replace(SMALL, unpaired_share=1.0, real_sets=60)
    sets = TASK.unpaired
    points, present = real_landmarks(settings, TASK, jax.random.key(0), batch())
    which, shift = came_from(np.asarray(points)[:, 0], sets.landmarks_ijk[:, 0])
    assert set(which) == set(range(5))
    np.testing.assert_array_equal(present, sets.present[which])
    assert shift.round().min() == -2 and shift.round().max() == 2


def test_training_without_the_unpaired_cohort_is_refused():
    method = SMALL.build(dataclasses.replace(TASK, unpaired=None))  # for prediction
    with pytest.raises(ValueError, match="unpaired"):
        method.phases[1].step(method.init(jax.random.key(0)), batch(), jax.random.key(0))
    assert SMALL.needs == {UNPAIRED}
    assert not dataclasses.replace(SMALL, real="images").needs


def test_saturation_is_told_after_some_records_without_mistakes_or_doubt():
    sure = {"real_accuracy": 1.0, "fake_accuracy": 1.0, "discriminator_loss": 0.01}
    wrong = {**sure, "fake_accuracy": 0.9}
    unsure = {**sure, "discriminator_loss": 1.3}
    assert saturation([]) is None and saturation([sure] * 4) is None
    assert "saturated" in (saturation([wrong] + [sure] * 5) or "")
    assert saturation([sure] * 8 + [wrong]) is None
    assert saturation([unsure] * 8) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_adv": 0.0}, r"config\.method\.lambda_adv: 0\.0 is not positive"),
        ({"label_smoothing": 1.5}, r"config\.method\.label_smoothing: 1\.5"),
        ({"unpaired_share": -0.1}, r"config\.method\.unpaired_share"),
        ({"r1": -1.0}, r"config\.method\.r1: -1\.0 is negative"),
        ({"real": "cta"}, r"config\.method\.real: 'cta'"),
        ({"shown": "points"}, r"config\.method\.shown: 'points' is not 'heatmaps' or 'cells'"),
        ({"real_sets": 2}, r"config\.method\.real_sets: more than 1 goes with"),
        ({"sharpness": 0.0}, r"config\.method\.sharpness: 0\.0 is not positive"),
        ({"discriminator_widths": ()}, r"config\.method\.discriminator_widths"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **changes).build(TASK)
