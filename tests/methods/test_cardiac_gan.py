"""The cardiac GAN: its step against the equations, what is learned, and how spots get names."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmark.config import Augment
from jaxmark.core.anatomy import Scheme, scheme_of
from jaxmark.core.point_distribution import learned_configuration, unknown_configuration
from jaxmark.methods import method
from jaxmark.methods.cardiac_gan import (
    LEAST_SCALE,
    CardiacGAN,
    Networks,
    landmarks_of,
    optimizer,
    scale,
    training_step,
    verdict,
)
from jaxmark.methods.method import Batch, Prediction, Task
from jaxmark.methods.views import augmented
from jaxmark.system.devices import data_mesh
from jaxmark.system.errors import InputError
from jaxmark.training.checkpoints import Checkpoints, Writer

CROP, MARGIN = (32, 32, 1), (2, 2, 0)
FULL = tuple(n + 2 * m for n, m in zip(CROP, MARGIN, strict=True))
TASK = Task(
    scheme=scheme_of(("a", "b")),
    crop=CROP,
    margin=MARGIN,
    spacing_mm=(1.0, 1.0, 1.0),
    augment=Augment(translation_voxels=2),
)
SMALL = CardiacGAN(
    steps=3,
    widths=(8, 16),
    filters=1,
    discriminator_widths=(4, 8, 8),
    learning_rate=5e-3,
    beta=300.0,
    alpha=3.0,
    dropout=0.1,
    variance=2.0,
    window=5,
    patience=2,
)


def batch(count=4, seed=0):
    """Pictures with a large spot and a small one, which lies to the lower right of it."""
    rng = np.random.default_rng(seed)
    first = rng.uniform(8, 17, (count, 2))
    points = np.stack([first, first + rng.uniform(7, 10, (count, 2))], axis=1)
    x, y = np.meshgrid(*map(np.arange, FULL[:2]), indexing="ij")
    image = np.zeros((count, *FULL, 1))
    for k, (height, variance) in enumerate(((1.0, 6.0), (0.6, 2.0))):
        px, py = (points[:, k, axis, None, None] for axis in range(2))
        spot = height * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * variance))
        image[:, :, :, 0, 0] += spot
    known = jnp.ones((count, 2), bool)
    ijk = jnp.asarray(np.pad(points, [(0, 0), (0, 0), (0, 1)]), jnp.float32)
    return Batch(jnp.asarray(image, jnp.float16), ijk, known, ~known)


@functools.cache
def programs(settings_changes=()):
    """Method, first state and jitted step of the small settings with changes."""
    built = dataclasses.replace(SMALL, **dict(settings_changes)).build(TASK)
    step = jax.jit(
        lambda state, data, key: built.phases[0].step(
            state, data, jax.random.fold_in(key, state.step)
        )
    )
    return built, jax.jit(built.init)(jax.random.key(0)), step


def trained(steps):
    built, state, step = programs()
    for i in range(steps):
        state, metrics = step(state, batch(8, seed=i), jax.random.key(1))
    return built, state, metrics


def predicted(built, state, data):
    """What the stage says of a batch, on the host."""
    (stage,) = built.stages
    found = jax.device_get(jax.jit(stage.run)(state.variables, {"image": data.image}))
    rows = range(len(data.image))
    return [stage.finish(jax.tree.map(lambda x, row=row: x[row], found)) for row in rows]


def test_it_learns_where_two_landmarks_are_and_which_is_which():
    built, state, _ = trained(150)
    data = batch(6, seed=1000)
    for found, points in zip(predicted(built, state, data), data.landmarks_ijk, strict=True):
        assert set(found.positions_ijk) == set(SMALL.decoders) and not found.maps
        for positions in found.positions_ijk.values():
            # In voxels of the volume with its margin, in the picture's plane.
            assert np.linalg.norm(positions - points, axis=-1).max() < 1.5
        assert (found.positions_ijk["argmax"] % 1 == 0).all()
        assert found.score.min() > 0.3 and found.evidence.min() > 0
    known = state.statistics["configuration"]
    apart = known["mean"].reshape(2, 2)
    np.testing.assert_allclose(apart[1] - apart[0], 8.5, atol=1.0)
    # The pair moves together: that is what tells one from the other.
    covariance = np.asarray(known["covariance"])
    assert covariance[0, 2] > 0.5 * covariance[0, 0]


def textbook(settings, state, view, keys):
    """Both losses of Eqs. 1 to 8 as functions of parameters, heatmaps made anew for each."""
    networks = Networks(settings, TASK)
    image, points = view.image[:, :, :, 0], np.asarray(view.landmarks_ijk)
    x, y = np.meshgrid(*map(np.arange, CROP[:2]), indexing="ij")
    truth, square = np.zeros((2, len(image), *CROP[:2]))
    for case in range(len(image)):
        for px, py, _ in points[case]:
            spot = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * settings.variance))
            truth[case] = np.maximum(truth[case], spot)
        low, high = points[case].min(0), points[case].max(0)
        half = (high - low).max() / 2 + 3 * math.sqrt(settings.variance)
        cx, cy, _ = (low + high) / 2
        square[case] = (np.abs(x - cx) <= half) & (np.abs(y - cy) <= half)
    truth = jnp.asarray(truth, jnp.float32)
    rates = settings.dropout, settings.discriminator_dropout
    g_rate, d_rate = (jnp.asarray(rate) for rate in rates)

    def generated(g):
        return networks.generate(g, state.statistics["generator"], image, g_rate, keys["g"])[0]

    def eq_7(first, second, where):
        error = first - second
        each = (where * (settings.alpha * error**2 + jnp.abs(error))).sum((1, 2))
        return (each / where.sum((1, 2))).mean()

    def d_says(d, heatmap, key):
        return networks.responses(d, image, heatmap, d_rate, keys[key])

    def loss_g(g, d):
        heatmap = generated(g)
        if settings.adversarial == "printed":
            a_l = ((image[..., 0] - heatmap) ** 2).mean()
        else:
            a_l = ((d_says(d, heatmap, "adv").mean((1, 2)) - 1) ** 2).mean()
        l_l = optax.losses.huber_loss(heatmap, truth, delta=0.4).mean()
        loss = a_l + settings.beta * l_l
        if settings.foreground == "generator":
            loss += eq_7(truth, heatmap, square)
        return loss

    def loss_d(d, g):
        heatmap = generated(g)
        real, fake = d_says(d, truth, "real"), d_says(d, heatmap, "fake")
        loss = ((real.mean((1, 2)) - 1) ** 2 + fake.mean((1, 2)) ** 2).mean() / 2
        if settings.adversarial == "printed":
            loss = jnp.zeros(())
        if settings.foreground == "discriminator":
            shown = square.reshape(-1, 4, 8, 4, 8).max((2, 4))
            loss += (eq_7(real, 1.0, shown) + eq_7(fake, 0.0, shown)) / 2
        return loss

    return loss_g, loss_d


@pytest.mark.parametrize(
    ("adversarial", "foreground"),
    [
        ("least_squares", "generator"),
        ("least_squares", "discriminator"),
        ("printed", "printed"),
    ],
)
def test_a_step_is_that_of_the_equations(adversarial, foreground):
    settings = dataclasses.replace(SMALL, adversarial=adversarial, foreground=foreground)
    _, state, _ = trained(3)
    # Adam would make as much of a gradient that is rounding as of one that is not.
    sgd = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=9))
    both = ("generator", "discriminator")
    state = state.replace(optimizer={name: sgd.init(state.params[name]) for name in both})
    step = training_step(Networks(settings, TASK), {name: sgd for name in both})
    key, data = jax.random.key(5), batch()
    new, metrics = jax.jit(step)(state, data, key)

    names = ("view", "g", "real", "fake", "adv")
    keys = dict(zip(names, jax.random.split(key, 5), strict=True))
    loss_g, loss_d = textbook(settings, state, augmented(TASK, data, keys["view"]), keys)

    def moved(params, gradient):
        return jax.tree.map(lambda p, d: p - 0.1 * d, params, gradient)

    g, d = (state.params[name] for name in both)
    new_d = moved(d, jax.jit(jax.grad(loss_d))(d, g))
    loss, gradient = jax.jit(jax.value_and_grad(loss_g))(g, new_d)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
    for old, expected, found in (
        (d, new_d, new.params["discriminator"]),
        (g, moved(g, gradient), new.params["generator"]),
    ):
        change = max(
            float(jnp.abs(a - b).max())
            for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(old), strict=True)
        )
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3 * change + 1e-7)
        # As printed no equation has D in it: it learns nothing.
        assert (change == 0) == (old is d and adversarial == "printed")
    assert set(metrics) == set(settings.metrics)


def test_metrics_are_declared_and_a_state_keeps_its_shape():
    built, state, step = programs()
    new, metrics = jax.eval_shape(step, state, batch(), jax.random.key(0))
    assert set(metrics) == set(SMALL.metrics)
    assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, new)
    assert all(jax.tree.leaves(same))
    known = {method.LOSS, method.SHARE, method.GRADIENT, method.LENGTH_MM}
    assert set(SMALL.metrics.values()) <= known


def test_the_variance_is_the_paper_s_for_one_landmark_and_for_several():
    plain = dataclasses.replace(SMALL, variance=0.0)
    assert Networks(plain, TASK).variance == 5
    assert Networks(plain, dataclasses.replace(TASK, scheme=scheme_of(("a",)))).variance == 7
    assert Networks(SMALL, TASK).variance == 2


def test_where_a_landmark_is_not_known_an_empty_heatmap_is_no_target():
    _, state, _ = trained(3)
    networks = Networks(SMALL, TASK)
    step = jax.jit(training_step(networks, {n: optimizer(SMALL) for n in state.optimizer}))
    data = batch()
    unknown = data.replace(present=data.present.at[:, 1].set(False))
    known_absent = unknown.replace(absent=~unknown.present)
    key = jax.random.key(0)
    _, one = step(state, unknown, key)
    _, other = step(state, known_absent, key)
    # Around the one spot that is known the error is large, and nothing else counts.
    assert one["heatmap_loss"] > 3 * other["heatmap_loss"]
    # D sees no picture whose heatmap may lack a spot.
    assert one["discriminator_loss"] == 0 and one["adversarial_loss"] == 0
    assert other["discriminator_loss"] > 0


def test_rates_are_halved_when_the_loss_no_longer_falls():
    settings = dataclasses.replace(SMALL, window=3, patience=2, learning_rate=1.0)
    params = {"x": jnp.zeros(())}

    def updates(settings, values):
        """What the rule makes of a constant gradient, and its scales, while losses have values."""
        rule = optimizer(settings)

        def step(state, value):
            update, state = rule.update({"x": jnp.ones(())}, state, params, value=value)
            return state, (-update["x"], scale(state))

        _, found = jax.jit(lambda v: jax.lax.scan(step, rule.init(params), v))(jnp.array(values))
        return map(np.asarray, found)

    # Falling for three windows, then not.
    sizes, scales = updates(settings, [9.0, 9, 9, 8, 8, 8, 7, 7, 7, *[7] * 200])
    assert scales[:21].tolist() == [1.0] * 14 + [0.5] * 6 + [0.25]
    assert scales[-1] == LEAST_SCALE
    # Adam's step on a constant gradient is its rate.
    np.testing.assert_allclose(sizes, scales, rtol=1e-3)
    _, scales = updates(dataclasses.replace(settings, patience=0), [7.0] * 40)
    assert set(scales) == {1.0}


def test_dropout_follows_the_rates():
    _, state, step = programs()
    _, before = step(state, batch(), jax.random.key(0))
    np.testing.assert_allclose(before["generator_dropout"], 0.1)
    np.testing.assert_allclose(before["discriminator_dropout"], 0.6)
    adam, plateau = state.optimizer["discriminator"]
    halved = {
        **state.optimizer,
        "discriminator": (adam, plateau._replace(scale=jnp.float32(0.5))),
    }
    _, after = step(state.replace(optimizer=halved), batch(), jax.random.key(0))
    np.testing.assert_allclose(after["generator_dropout"], 0.1)
    np.testing.assert_allclose(after["discriminator_dropout"], 0.3)


def test_training_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    built, state, step = programs()
    key = jax.random.key(1)
    for i in range(12):
        state, _ = step(state, batch(seed=i), key)
        if i == 6:
            writer = Writer(tmp_path, keep=1)
            writer.save(state, {}, {}, None)
            writer.close()
    abstract = jax.eval_shape(built.init, jax.random.key(0))
    again, _ = Checkpoints(tmp_path).state(7, abstract, data_mesh())
    again = jax.device_get(again)
    for i in range(7, 12):
        again, _ = step(again, batch(seed=i), key)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_in_a_mirror_the_spots_exchange_their_names():
    sides = Scheme("sides", ("r", "l"), (("r", "l"),), ())
    flip = Augment(translation_voxels=0, flip=1.0)
    task = dataclasses.replace(TASK, scheme=sides, augment=flip)
    plain = dataclasses.replace(task, augment=dataclasses.replace(flip, flip=0.0))
    known = []
    for each in (plain, task):
        view = augmented(each, batch(), jax.random.key(0))
        mean, _ = learned_configuration(
            *unknown_configuration(CROP[:2], 2), view.landmarks_ijk, view.present, jnp.zeros(())
        )
        known.append(np.asarray(mean).reshape(2, 2))
    # What lies to the right in the picture keeps the name of the right one.
    straight, mirrored = known
    np.testing.assert_allclose(mirrored[::-1] * [-1, 1] + [CROP[0] - 1, 0], straight, atol=1e-4)
    assert np.sign(np.diff(mirrored[:, 0])) == np.sign(np.diff(straight[:, 0]))
    target = Networks(SMALL, task).target(view)
    ijk = np.asarray(view.landmarks_ijk[0, 0]).round().astype(int)
    assert target[0, ijk[0], ijk[1]] > 0.8


def heatmap_prediction(places, mean=((10, 10), (20, 20))):
    """What the stage's device part would say of a heatmap with these spots."""
    x, y = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    spots = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 4) for a, b in places]
    together = np.kron(np.ones((2, 2)), np.eye(2)) * 20 + np.eye(4)
    return Prediction(
        {"configuration": np.pad(np.array(mean, np.float32), [(0, 0), (0, 1)])},
        score=np.zeros(2),
        evidence=np.zeros(2),
        maps={"heatmap": np.max([np.zeros((40, 40)), *spots], 0), "covariance": together},
    )


@pytest.mark.parametrize("decoder", SMALL.decoders)
def test_a_landmark_without_a_spot_is_placed_by_the_other_one(decoder):
    found = landmarks_of(heatmap_prediction([(25, 22)]), 2.0, 0.1)
    # One spot, nearer to where the second landmark is expected.
    np.testing.assert_allclose(found.positions_ijk[decoder][1], [25, 22, 0], atol=0.05)
    np.testing.assert_allclose(found.positions_ijk[decoder][0], [15, 12, 0], atol=1.0)
    assert found.score[0] == 0 and found.score[1] == 1
    assert found.evidence[0] < 0 < found.evidence[1]


def test_what_is_not_found_is_placed_within_the_picture():
    found = landmarks_of(heatmap_prediction([], mean=((-5, 10), (20, 47))), 2.0, 0.1)
    for positions in found.positions_ijk.values():
        np.testing.assert_allclose(positions, [[0, 10, 0], [20, 39, 0]])
    assert not found.score.any() and (found.evidence < 0).all()


def test_of_three_spots_the_two_that_fit_together_are_the_landmarks():
    found = landmarks_of(heatmap_prediction([(12, 11), (22, 21), (33, 8)]), 2.0, 0.1)
    np.testing.assert_allclose(
        found.positions_ijk["contour"][:, :2], [[12, 11], [22, 21]], atol=0.1
    )
    assert found.score.min() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial": "hinge"}, r"config\.method\.adversarial: 'hinge' is not 'least_squares'"),
        ({"foreground": "both"}, r"config\.method\.foreground: 'both' is not one of"),
        ({"square": "case"}, r"config\.method\.square"),
        ({"dropout": 1.0}, r"config\.method\.dropout: 1 leaves nothing"),
        ({"huber_delta": 0.0}, r"config\.method\.huber_delta: 0\.0 is not positive"),
        (
            {"widths": (4,) * 6},
            r"config\.data\.crop: \(32, 32, 1\) has a side .* of 64, which 6 layers",
        ),
        ({"discriminator_widths": (4,) * 6}, r"config\.method\.discriminator_widths\) need"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **changes).build(TASK)


def test_volumes_are_refused():
    task = dataclasses.replace(TASK, crop=(32, 32, 8))
    with pytest.raises(InputError, match=r"config\.data\.crop: \(32, 32, 8\) is a volume"):
        SMALL.build(task)


def test_a_verdict_is_the_mean_of_the_patches():
    np.testing.assert_allclose(verdict(jnp.arange(8.0).reshape(2, 2, 2)), [1.5, 5.5])
