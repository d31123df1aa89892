"""The multi-task method: its losses and branches, and that it learns what there is to learn."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spots import MARGIN, SPACING, TASK, batch, error_mm, predict

from jaxmark.core.anatomy import COW19, Scheme, Segment
from jaxmark.core.heatmaps import gaussians
from jaxmark.methods.method import (
    BY_SEGMENT,
    FORKS,
    LABEL_MAPS,
    LABELS,
    SEGMENTATION,
    SEGMENTS,
    SEGMENTS_ABSENT,
    SEGMENTS_PRESENT,
)
from jaxmark.methods.multitask import Multitask, Network
from jaxmark.system.errors import InputError

# The large spot is a segment that everyone has, the small one may be missing.
SCHEME = Scheme(
    "spots", ("a", "b"), (), (Segment("big", ("a",)), Segment("small", ("a", "b"), True))
)
TARGETS = {SEGMENTS_PRESENT: BY_SEGMENT, SEGMENTS_ABSENT: BY_SEGMENT, SEGMENTATION: LABELS}
SPOTS = dataclasses.replace(TASK, scheme=SCHEME, targets=TARGETS)
SMALL = Multitask(
    steps=250, widths=(8, 16), head=16, sigma_mm=2.0, learning_rate=5e-3, decay=0.5, clip_norm=2.0
)
OFF = {"segmentation": 0.0, "fork_attributes": 0.0, "segment_attributes": 0.0, "consistency": 0.0}


def labelled(count=4, seed=0):
    """Spots with their label maps; the small one is missing in half of the volumes."""
    whole, rng = batch(count, seed), np.random.default_rng(seed)
    there = jnp.asarray(np.stack([np.ones(count, bool), rng.permutation(count) % 2 == 0], 1))
    full = whole.image.shape[1:4]
    big, small = (
        gaussians(whole.landmarks_ijk[:, k : k + 1], full, SPACING, width)[..., 0]
        for k, width in ((0, 2.5), (1, 1.6))
    )
    small = small * there[:, 1, None, None, None]
    labels = jnp.where(small > 0.3, 2, jnp.where(big > 0.5, 1, 0)).astype(jnp.uint8)
    targets = {SEGMENTS_PRESENT: there, SEGMENTS_ABSENT: ~there, SEGMENTATION: labels}
    image = (big + 0.5 * small)[..., None].astype(jnp.float16)
    return whole.replace(image=image, targets=targets)


def test_all_tasks_are_learned_together():
    settings = dataclasses.replace(
        SMALL,
        # With all of the weight, labels leave the small spot's heatmap little of so few steps.
        balance=0.5,
        label_cross_entropy=1.0,
        orientation=0.1,
        fork_attributes=1.0,
        segment_attributes=1.0,
        rare=2.0,
    )
    method = settings.build(SPOTS)
    state, step = method.init(jax.random.key(0)), jax.jit(method.phases[0].step)
    for number in range(settings.steps):
        state, metrics = step(state, labelled(4, number), jax.random.key(1))
    assert set(metrics) == set(Multitask.metrics)
    seen = labelled(16, 10_000)
    found = predict(method, state, seen.image)
    there = np.asarray(seen.targets[SEGMENTS_PRESENT])
    crop = (slice(None), *(slice(MARGIN, -MARGIN),) * 3)
    error = error_mm(found, seen.landmarks_ijk)
    assert np.median(error[:, 0]) < 1.0 and np.median(error[there[:, 1], 1]) < 1.0
    truth, labels = np.asarray(seen.targets[SEGMENTATION][crop]), found.maps[SEGMENTATION]
    assert labels.dtype == jnp.uint8 and labels.shape == truth.shape
    for label in (1, 2):
        same = 2 * ((truth == label) & (labels == label)).sum()
        assert same / ((truth == label).sum() + (labels == label).sum()) > 0.7
    small = np.asarray(found.probabilities[SEGMENTS_PRESENT])[:, 1]
    assert ((small > 0.5) == there[:, 1]).mean() > 0.85
    forks = np.asarray(found.probabilities[FORKS])
    assert ((forks[:, 1] > 0.5) == there[:, 1]).mean() > 0.85


def test_a_task_without_a_weight_has_no_branch_and_reads_nothing():
    alone = dataclasses.replace(SMALL, **OFF)
    assert alone.needs == frozenset()
    method = alone.build(TASK)
    params = method.init(jax.random.key(0)).params["network"]["params"]
    assert set(params) == {"body", "landmark_branch"}
    _, metrics = jax.jit(method.phases[0].step)(
        method.init(jax.random.key(0)), batch(), jax.random.key(0)
    )
    assert set(metrics) == {"loss", "heatmap_loss", "gradient_norm"}
    assert metrics["loss"] == metrics["heatmap_loss"]
    attributes = dataclasses.replace(alone, segment_attributes=1.0)
    assert attributes.needs == {SEGMENTS}
    assert dataclasses.replace(alone, orientation=1.0).needs == {SEGMENTS, LABEL_MAPS}
    assert SMALL.needs == {SEGMENTS, LABEL_MAPS}


@pytest.mark.parametrize(
    "off", [(), ("fork_attributes",), ("segment_attributes",), ("segmentation",), tuple(OFF)]
)
def test_predictions_hold_what_the_method_tells(off):
    weights = dict.fromkeys((*off, "consistency"), 0.0)
    method = dataclasses.replace(SMALL, **weights).build(SPOTS)

    def predicted():
        variables = method.init(jax.random.key(0)).variables
        return method.stages[0].run(variables, {"image": batch().image})

    found = jax.eval_shape(predicted)
    assert {*found.maps, *found.probabilities} == method.tells
    assert len(method.tells) == 3 - len({*off} - {"consistency"})


def test_the_sum_of_losses_is_weighted():
    settings = dataclasses.replace(SMALL, orientation=0.3, label_cross_entropy=0.7)
    network = Network(settings, SPOTS)
    params = network.init(jax.random.key(0))
    weights = {
        "heatmap_loss": 1.0,
        "dice_loss": 1.0,
        "label_cross_entropy": 0.7,
        "orientation_loss": 0.3,
        "fork_loss": 0.1,
        "segment_loss": 0.1,
        "consistency_loss": 0.1,
    }
    crop = (slice(None), *(slice(MARGIN, -MARGIN),) * 3)
    data = labelled()
    labels = data.targets[SEGMENTATION][crop]
    view = data.replace(
        image=data.image[crop].astype(jnp.float32),
        targets={**data.targets, SEGMENTATION: labels},
    )
    total, parts = network.loss(params, view)
    assert set(parts) == set(weights)
    assert total == pytest.approx(sum(w * float(parts[name]) for name, w in weights.items()))


@pytest.mark.parametrize("derived", ["hard", "soft"])
def test_forks_that_segments_imply(derived):
    task = dataclasses.replace(SPOTS, scheme=COW19)
    network = Network(dataclasses.replace(SMALL, derived=derived), task)
    may = np.flatnonzero(COW19.may_be_missing)
    some = [list(itertools.combinations(may, count)) for count in (0, 1, 2)]
    for gone in itertools.chain(*some):
        there = np.ones(20, bool)
        there[list(gone)] = False
        logits = jnp.where(jnp.asarray(there), 20.0, -20.0)[None]
        found = network.derived_forks(logits)[0]
        assert np.allclose(found, COW19.landmark_attributes(there), atol=1e-6)


def test_soft_derivation_multiplies_probabilities_and_has_a_gradient():
    network = Network(dataclasses.replace(SMALL, derived="soft"), SPOTS)
    logits = jnp.array([[-5.0, 1.0]])
    assert np.allclose(network.derived_forks(logits), jax.nn.sigmoid(1.0))
    slope = jax.grad(lambda x: network.derived_forks(x).sum())(logits)
    # What can't be missing says nothing.
    assert slope[0, 0] == 0 and slope[0, 1] > 0


def test_evidence_is_what_the_segmentation_found_of_each_segment():
    network = Network(dataclasses.replace(SMALL, attributes_from="labels"), SPOTS)
    peak, volume = jnp.array([[1.0, 0.9, 0.2]]), jnp.array([[900.0, 50.0, 3.0]])
    forks, segments = network.evidence(peak, volume)
    expected = np.stack([np.log([0.9, 0.2]), np.log1p([50.0, 3.0])], -1)
    np.testing.assert_allclose(segments[0], expected, rtol=1e-4)
    # "big" is never missing: "small" alone says whether a and b are forks.
    np.testing.assert_allclose(forks[0], expected[[1, 1]], rtol=1e-4)
    assert Network(SMALL, SPOTS).evidence(peak, volume) is None


def test_where_little_is_found_of_a_segment_it_is_probably_missing():
    settings = dataclasses.replace(SMALL, attributes_from="labels")
    network = Network(settings, SPOTS)
    params = network.init(jax.random.key(0))
    features = network.features(params, jnp.zeros((1, 16, 16, 8, 1)))
    much, little = (
        network.attributes(params, features, network.evidence(jnp.full((1, 3), p), volume))
        for p, volume in ((0.9, jnp.full((1, 3), 50.0)), (0.01, jnp.zeros((1, 3))))
    )
    # From the start: log(0.9 / 0.01) + log(51 / 1).
    for high, low in zip(much, little, strict=True):
        np.testing.assert_allclose(high - low, np.log(90) + np.log(51), atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"segment_attributes": 0.0},
            r"config\.method\.consistency: compares fork_attributes",
        ),
        ({**OFF, "label_cross_entropy": 1.0}, r"config\.method\.label_cross_entropy: is added"),
        ({"widths": (4, 4, 4, 4, 4)}, r"config\.data\.crop: \(16, 16, 8\) .* multiple of 16"),
        (
            {**OFF, "attributes_from": "labels"},
            r"config\.method\.attributes_from: 'labels' needs the segmentation",
        ),
        ({"derived": "maybe"}, r"config\.method\.derived: 'maybe'"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **changes).build(SPOTS)


def test_a_scheme_without_what_the_tasks_need_is_named():
    with pytest.raises(InputError, match=r"config\.method: learns from segments"):
        SMALL.build(TASK)
    certain = Scheme("own", ("a", "b"), (), (Segment("big", ("a",)),))
    with pytest.raises(InputError, match=r"fork_attributes: needs segments that may be missing"):
        SMALL.build(dataclasses.replace(SPOTS, scheme=certain))
