"""2-D is 3-D with one voxel along Z: every method for pictures learns from its settings alone."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spots import predict

from jaxmark.config import Augment
from jaxmark.core.anatomy import scheme_of
from jaxmark.core.heatmaps import decode, gaussian_sum, gaussians
from jaxmark.methods.adversarial import Adversarial
from jaxmark.methods.cascade import Cascade
from jaxmark.methods.heatmap import HeatmapRegression
from jaxmark.methods.method import Batch, Task
from jaxmark.methods.multitask import Multitask
from jaxmark.methods.noothout import RegressionClassification
from jaxmark.methods.scn import ScaledHeatmaps, SpatialConfiguration
from jaxmark.methods.views import augmented
from jaxmark.models.blocks import Conv, Up, append_coordinates
from jaxmark.models.unet import ResidualUNet
from jaxmark.system.errors import InputError

# A slice is thick: nothing may depend on how thick.
CROP, MARGIN, SPACING = (32, 24, 1), (3, 3, 0), (0.5, 0.6, 8.0)
TASK = Task(
    scheme=scheme_of(("a", "b")),
    crop=CROP,
    margin=MARGIN,
    spacing_mm=SPACING,
    augment=Augment(translation_voxels=3, rotation_degrees=10, scale=0.1),
)


@functools.partial(jax.jit, static_argnums=(1, 2))
def pictures(key, count, crop=CROP):
    """Pictures with a large bright spot and a small dim one, the two landmarks, and noise."""
    k_points, k_noise = jax.random.split(key)
    full = np.add(crop, 2 * np.array(MARGIN))
    low, high = jnp.array([6.0, 6, 0]), jnp.array([full[0] - 7.0, full[1] - 7, 0])
    points = jax.random.uniform(k_points, (count, 2, 3), minval=low, maxval=high)
    big = gaussians(points[:, :1], full, SPACING, 1.5)
    small = gaussians(points[:, 1:], full, SPACING, 0.7)
    image = big + 0.5 * small + 0.02 * jax.random.normal(k_noise, big.shape)
    there = jnp.ones((count, 2), bool)
    return Batch(image.astype(jnp.float16), points, there, ~there)


def trained(method):
    """The state after all phases, on pictures that are new at every step."""
    state = jax.jit(method.init)(jax.random.key(0))
    for phase in method.phases:
        step = jax.jit(phase.step)
        for number in range(phase.steps):
            key = jax.random.key(number)
            state, metrics = step(state, pictures(key, 8), key)
            assert np.isfinite(float(metrics["loss"]))
    return state


HEATMAP = {"widths": (8, 16, 16), "head": 16, "sigma_mm": 1.0, "learning_rate": 1e-2}
CRITIC = {"adversarial_steps": 20, "real": "images", "discriminator_widths": (8, 8, 8), "r1": 1.0}
SCN = {"filters": 8, "levels": 2, "dropout": 0.0, "optimizer": "adam", "learning_rate": 5e-3}
METHODS = {
    "weighted_l2": HeatmapRegression(steps=180, **HEATMAP),
    "cross_entropy": HeatmapRegression(
        steps=120, loss="cross_entropy", coordinates=True, **HEATMAP
    ),
    "heatmaps": Adversarial(steps=160, **HEATMAP, **CRITIC),
    "cells": Adversarial(steps=160, shown="cells", cell_mm=2.0, **HEATMAP, **CRITIC),
    "scn_2019": SpatialConfiguration(
        "2019", steps=200, downsample=4, sigma_mm=1.0, target_sum=30.0, weight_decay=0.0,
        sigma_penalty=1.0, **SCN,
    ),
    "scn_later": SpatialConfiguration("later", steps=200, spatial_levels=2, sigma_mm=1.0, **SCN),
    "noothout": RegressionClassification(
        steps=250, local_steps=150, stem=8, widths=(16, 16), blocks=(1, 1), local_widths=(8, 16),
        chunk=32, local_crop=12, jitter_voxels=4.0, learning_rate=1e-2, local_learning_rate=1e-2,
    ),
}  # fmt: skip


# One variant of each method is enough where minutes count.
SLOW = ("cells", "weighted_l2", "heatmaps", "scn_2019")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in METHODS],
)
def test_every_method_finds_spots_in_pictures_it_has_not_seen(name):
    method = METHODS[name].build(TASK)
    state = trained(method)
    unseen = pictures(jax.random.key(10_000), 64)
    found = predict(method, state, unseen.image)
    truth = unseen.landmarks_ijk - np.array(MARGIN)
    for decoder, limit in (("subvoxel", 1.0), ("argmax", 1.2)):
        place = found.positions_ijk[decoder]
        assert place.shape == (64, 2, 3) and (place[..., 2] == 0).all()
        error = jnp.linalg.norm(place - truth, axis=-1)
        assert jnp.median(error) < limit
        # Of guesses, a fiftieth.
        assert (error < 2).mean() > 0.6


def test_landmarks_beside_the_picture_lie_in_it():
    data = pictures(jax.random.key(3), 2)
    raised = data.replace(landmarks_ijk=data.landmarks_ijk + jnp.array([0.0, 0, 0.4]))
    a, b = (augmented(TASK, batch, jax.random.key(1)) for batch in (data, raised))
    np.testing.assert_allclose(a.landmarks_ijk, b.landmarks_ijk, atol=1e-4)
    assert (b.landmarks_ijk[..., 2] == 0).all()
    np.testing.assert_array_equal(a.image, b.image)


@pytest.mark.parametrize("settings", [Multitask(), Cascade()])
def test_methods_for_volumes_alone_say_so(settings):
    with pytest.raises(InputError) as problem:
        settings.build(TASK)
    said = "config.data.crop: (32, 24, 1) is a picture, and this method is for volumes"
    assert str(problem.value) == said


@pytest.mark.parametrize("name", METHODS)
def test_of_a_picture_two_sides_must_fit_the_network(name):
    METHODS[name].build(TASK)
    with pytest.raises(InputError, match=r"config\.data\.crop: \(32, 23, 1\) has a side"):
        METHODS[name].build(dataclasses.replace(TASK, crop=(32, 23, 1)))


def test_kernels_are_flat_and_have_the_variance_of_he():
    picture = jnp.zeros((1, 8, 8, 40))
    found = Conv(50).init(jax.random.key(0), picture)["params"]["kernel"]
    assert found.shape == (3, 3, 40, 50)
    np.testing.assert_allclose(found.std(), math.sqrt(2 / (9 * 40)), rtol=0.03)
    # Each pixel of what is enlarged sees one tap.
    noise = jax.random.normal(jax.random.key(1), (4, 16, 16, 40))
    large = Up(50).init_with_output(jax.random.key(0), noise)[0]
    assert large.shape == (4, 32, 32, 50)
    np.testing.assert_allclose(large.std(), math.sqrt(2), rtol=0.1)
    assert append_coordinates(picture).shape == (1, 8, 8, 42)


def test_a_volume_that_becomes_flat_on_coarse_levels_is_still_a_volume():
    net = ResidualUNet((2, 2, 2), 1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4, 1)))
    kernels = shapes["params"]["body"]["ResidualBlock_2"]["Conv_0"]["kernel"]
    assert kernels.shape == (3, 3, 3, 2, 2)


@pytest.mark.parametrize("shape", [(48, 40, 1), (48, 40, 32)])
def test_a_gaussians_sum(shape):
    spacing, sigma = (0.7, 0.9, 1.2), 3.0
    middle = (np.array(shape) - 1) / 2 + np.array([0.3, -0.2, 0.0])
    squares = sum(
        ((grid - m) * s) ** 2 for grid, m, s in zip(np.indices(shape), middle, spacing, strict=True)
    )
    expected = np.exp(-squares / (2 * sigma**2)).sum()
    np.testing.assert_allclose(gaussian_sum(shape, spacing, sigma), expected, rtol=1e-3)


def test_a_gaussians_sum_in_a_slice_of_any_thickness():
    a, b = (gaussian_sum(CROP, (0.5, 0.6, thickness), 2.0) for thickness in (8.0, 0.1))
    assert a == b


def test_widths_in_voxels_are_of_the_pixels():
    model = ScaledHeatmaps(SpatialConfiguration(), TASK)
    assert model.voxel_mm == pytest.approx(math.sqrt(0.5 * 0.6))
    sigma = jnp.array([1.0, 1.5])
    middle = jnp.full((1, 2, 3), 20.0).at[..., 2].set(0)
    target = gaussians(middle, (41, 41, 1), SPACING, sigma) * model.height(sigma)
    np.testing.assert_allclose(target.sum((1, 2, 3)), 1000, rtol=1e-3)


def test_a_peak_is_found_between_pixels_and_in_their_plane():
    truth = jnp.array([[[10.3, 7.6, 0.0], [20.0, 12.4, 0.0]]])
    heatmaps = gaussians(truth, CROP, SPACING, 1.0)
    _, fine, score, *_ = decode(
        heatmaps, lambda x: x, spacing_mm=SPACING, sigma_mm=1.0, softmax=False
    )
    # The window ends at two sigma, not as far on both sides.
    np.testing.assert_allclose(fine, truth, atol=0.03)
    assert (fine[..., 2] == 0).all()
    # As logits of a softmax that is that Gaussian: the height is 1 again.
    logits = -0.5 * (((jnp.indices(CROP).T - truth[0, 0]) * jnp.array(SPACING)) ** 2).sum(-1).T
    _, fine, score, *_ = decode(
        logits[None, ..., None], lambda x: x, spacing_mm=SPACING, sigma_mm=1.0, softmax=True
    )
    np.testing.assert_allclose(fine, truth[:, :1], atol=0.03)
    # At the maximum, a third of a pixel away from the peak.
    np.testing.assert_allclose(score, jnp.exp(-0.5 * (0.15**2 + 0.24**2)), rtol=2e-3)
