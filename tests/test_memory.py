"""What the compiler itself says that losses, decoding and the network keep in memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import OLDER_EMITTERS

from jaxmark.config import Augment
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.heatmaps import cell_masses, decode, gaussians
from jaxmark.core.losses import (
    heatmap_cross_entropy,
    segmentation_cross_entropy,
    segmentation_sums,
    weighted_dice_loss,
    weighted_heatmap_loss,
)
from jaxmark.methods.adversarial import Adversarial, CellCritic, HeatmapCritic
from jaxmark.methods.heatmap import Generator
from jaxmark.methods.method import Task
from jaxmark.models.unet import ResidualUNet

SHAPE, SPACING, K, HIDDEN = (32, 32, 16), (1.0, 1.0, 2.0), 12, 32
PLACE = {"spacing_mm": SPACING, "sigma_mm": 2.0}
HEATMAPS = 4 * K * 32 * 32 * 16  # bytes


def temporary(function, *args):
    """Bytes besides arguments and results, as XLA fuses where nothing is set."""
    default = {"xla_cpu_use_fusion_emitters": True} if OLDER_EMITTERS else {}
    compiled = jax.jit(function).lower(*args).compile(compiler_options=default)
    return compiled.memory_analysis().temp_size_in_bytes


def weighted(*args, **kwargs):
    return weighted_heatmap_loss(*args, alpha=1000.0, **PLACE, **kwargs)


def cross_entropy(*args, **kwargs):
    return heatmap_cross_entropy(*args, **PLACE, **kwargs)


@pytest.fixture
def landmarks():
    return jnp.full((1, K, 3), 5.0), jnp.ones((1, K), bool)


def test_no_target_is_stored(landmarks):
    prediction = jnp.ones((1, *SHAPE, K))
    # Heatmaps that are there as a whole would be copied to slabs.
    squares, entropy = (
        functools.partial(loss, slab_voxels=math.prod(SHAPE)) for loss in (weighted, cross_entropy)
    )
    assert temporary(squares, prediction, *landmarks) < 0.1 * HEATMAPS
    assert temporary(jax.grad(squares), prediction, *landmarks) < 0.1 * HEATMAPS
    # XLA stores the exponentials of a softmax, on a CPU at least, but no target beside them.
    assert temporary(entropy, prediction, *landmarks) < 1.1 * HEATMAPS
    assert temporary(jax.grad(entropy), prediction, *landmarks) < 1.1 * HEATMAPS


@pytest.mark.parametrize("loss", [weighted, cross_entropy])
def test_with_a_head_no_heatmaps_are_stored_either(loss, landmarks):
    features = jnp.ones((1, *SHAPE, 4))
    first, second = jnp.ones((4, HIDDEN)), jnp.ones((HIDDEN, K))

    def head(first, second):
        return lambda x: jax.nn.relu(x @ first) @ second

    def by_slabs(features, first, second):
        return loss(features, *landmarks, head=head(first, second), slab_voxels=32 * 16)

    def whole(features, first, second):
        heatmaps = head(first, second)(features)
        return loss(heatmaps, *landmarks, slab_voxels=heatmaps.size)

    assert temporary(by_slabs, features, first, second) < 0.6 * HEATMAPS
    gradients = [jax.grad(f, (0, 1, 2)) for f in (whole, by_slabs)]
    plain, slabwise = (temporary(g, features, first, second) for g in gradients)
    assert slabwise < 0.8 * HEATMAPS and plain > 8 * slabwise


@pytest.mark.parametrize("softmax", [False, True])
def test_decoding_stores_no_heatmaps(softmax):
    features, weight = jnp.ones((1, *SHAPE, 4)), jnp.ones((4, K))

    def positions(features, weight):
        return decode(features, lambda x: x @ weight, softmax=softmax, slab_voxels=32 * 16, **PLACE)

    assert temporary(positions, features, weight) < 0.6 * HEATMAPS


def kept_for_the_gradient(net, params, x):
    """Bytes of what the forward pass leaves for the backward pass."""
    kept = jax.eval_shape(lambda params: jax.vjp(lambda p: net.apply(p, x), params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def test_rematerialisation_keeps_less_and_changes_no_result():
    # Not asked of the compiler: on a CPU, XLA merges the second computation with the first.
    plain, remat = (ResidualUNet((8, 16), K, HIDDEN, remat=flag) for flag in (False, True))
    x = jax.random.normal(jax.random.key(0), (1, *SHAPE, 1))
    params = plain.init(jax.random.key(1), x)
    assert jax.tree.structure(params) == jax.tree.structure(remat.init(jax.random.key(1), x))
    body = 4 * 8 * 32 * 32 * 16
    saved = kept_for_the_gradient(plain, params, x) - kept_for_the_gradient(remat, params, x)
    # Two convolutions and two normalisations of both blocks at full size, at least.
    assert saved > 6 * body

    def total(net, params):
        return (net.apply(params, x) ** 2).mean()

    gradients = [jax.jit(jax.grad(total, 1), static_argnums=0)(n, params) for n in (plain, remat)]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shown", ["heatmaps", "cells"])
def test_what_a_discriminator_sees_is_not_stored(shown, monkeypatch):
    monkeypatch.setattr(Task, "slab_voxels", 4 * 32 * 16)
    task = Task(scheme_of([str(k) for k in range(K)]), SHAPE, (0, 0, 0), SPACING, Augment(0))
    settings = Adversarial(
        widths=(4, 8),
        head=HIDDEN,
        loss="cross_entropy",
        shown=shown,
        cell_mm=4.0,
        discriminator_widths=(4, 8),
    )
    generator = Generator(settings, task)
    critic = {"heatmaps": HeatmapCritic, "cells": CellCritic}[shown](settings, generator)
    d = critic.init(jax.random.key(0))
    points, shared = jnp.full((1, K, 3), 5.0), jnp.ones((1, K), bool)

    def judged(heatmaps):
        seen = cell_masses(heatmaps, (4, 4, 2), 2.0) if shown == "cells" else heatmaps
        return critic._net.apply(d, seen).sum()

    # True heatmaps: only what the first convolution makes of them is as a whole.
    true = temporary(lambda points: critic.real(d, points, shared)[0], points)
    assert true < 0.5 * HEATMAPS
    if shown == "heatmaps":
        assert temporary(lambda p: judged(gaussians(p, SHAPE, **PLACE)), points) > HEATMAPS

    # Predicted ones: the softmax of the maps, which are there, is not there as well.
    maps = jnp.ones((1, *SHAPE, K))
    by_slabs = temporary(jax.grad(lambda maps: critic.fake(d, maps, shared).sum()), maps)
    whole = temporary(jax.grad(lambda maps: judged(generator.heatmaps(maps)(maps))), maps)
    assert by_slabs < whole - 0.5 * HEATMAPS


def test_a_segmentation_s_softmax_and_one_hot_labels_are_not_stored():
    features, weight = jnp.ones((1, *SHAPE, 4)), jnp.ones((4, K))
    labels = jnp.zeros((1, *SHAPE), jnp.uint8)

    def loss(features, weight, slab_voxels):
        sums = segmentation_sums(
            features, labels, head=lambda x: x @ weight, slab_voxels=slab_voxels
        )
        return weighted_dice_loss(sums) + segmentation_cross_entropy(sums)

    def gradient(slab_voxels):
        return jax.grad(lambda f, w: loss(f, w, slab_voxels), (0, 1))

    # As many classes as there are heatmaps elsewhere here.
    by_slabs = temporary(gradient(32 * 16), features, weight)
    assert by_slabs < 0.6 * HEATMAPS < HEATMAPS < temporary(gradient(10**9), features, weight)
