"""The discriminator's halves against the whole, and its count of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.core.conv import conv_strided_2
from jaxmark.models.discriminator import CellDiscriminator, HeatmapDiscriminator, positions

SHAPE = (12, 8, 6)


def build(axes=3, **changes):
    net = HeatmapDiscriminator(3, axes, widths=(4, 6), hidden=5, **changes)
    heatmaps = jax.random.uniform(jax.random.key(1), (2, *SHAPE[:axes], 3))
    return net, net.init(jax.random.key(0), heatmaps), heatmaps


@pytest.mark.parametrize("shown", [False, True])
def test_parameters_are_those_counted_by_hand(shown):
    _, params, _ = build(positions=shown)
    channels = 3 + 4 * shown
    stem = 8 * channels * 4 + 4
    strided, same = 8 * 4 * 6 + 6, 27 * 6 * 6 + 6
    # 12 x 8 x 6 becomes 6 x 4 x 3, whose odd side gets a plane: 3 x 2 x 2.
    dense, last = 3 * 2 * 2 * 6 * 5 + 5, 5 + 1
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == stem + strided + same + dense + last


@pytest.mark.parametrize("axes", [3, 2])
def test_the_stem_works_on_slabs(axes):
    net, params, heatmaps = build(axes, positions=True)
    whole = net.apply(params, heatmaps, method="stem")
    parts = [net.apply(params, heatmaps[:, i : i + 4], method="stem") for i in (0, 4, 8)]
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-6)
    logits = net.apply(params, heatmaps)
    assert logits.shape == (2,) and logits.dtype == jnp.float32
    np.testing.assert_allclose(net.apply(params, whole, method="judge"), logits, atol=1e-5)


@pytest.mark.parametrize("axes", [3, 2])
def test_positions_are_part_of_the_first_convolution(axes):
    # The convolution of heatmaps and positions as one, as the paper draws it.
    net, params, heatmaps = build(axes, positions=True)
    place = positions(SHAPE[:axes])
    both = jnp.concatenate([heatmaps, jnp.broadcast_to(place, (2, *place.shape))], axis=-1)
    plain = HeatmapDiscriminator(3 + axes + 1, axes, widths=(4, 6), hidden=5)
    expected = plain.apply(params, both)
    np.testing.assert_allclose(net.apply(params, heatmaps), expected, atol=1e-5)
    assert params["params"]["kernel"].shape == (*(2,) * axes, 3 + axes + 1, 4)


def test_positions_reach_one_at_the_corners():
    place = np.asarray(positions((3, 5, 7)))
    np.testing.assert_allclose(place[0, 0, 0], [-1, -1, -1, 1])
    np.testing.assert_allclose(place[-1, 0, -1], [1, -1, 1, 1])
    np.testing.assert_allclose(place[1, 2, 3], [0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(positions((3, 5))[0, -1], [-1, 1, 1])


@pytest.mark.parametrize("axes", [3, 2])
def test_squared_gradient_to_the_heatmaps(axes):
    net, params, heatmaps = build(axes)
    gradient = jax.grad(lambda h: net.apply(params, h).sum())(heatmaps)
    expected = np.square(np.asarray(gradient, np.float64)).reshape(2, -1).sum(1)
    stem = net.apply(params, heatmaps, method="stem")
    to_stem = jax.grad(lambda s: net.apply(params, s, method="judge").sum())(stem)
    found = net.apply(params, to_stem, method="squared_input_gradient")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected.min() > 0


def test_no_normalisation_hides_how_high_a_heatmap_is():
    net, params, heatmaps = build()
    low, high = net.apply(params, 0.1 * heatmaps), net.apply(params, heatmaps)
    assert not np.allclose(low, high, rtol=0.05)


def test_the_stem_is_linear():
    net, params, heatmaps = build(positions=True)
    kernel = params["params"]["kernel"][..., :3, :]
    np.testing.assert_allclose(
        net.apply(params, heatmaps, method="stem"), conv_strided_2(heatmaps, kernel), atol=1e-6
    )


@pytest.mark.parametrize("shown", [False, True])
def test_parameters_of_the_one_on_cells(shown):
    net = CellDiscriminator(widths=(4, 6), hidden=5, positions=shown)
    cells = jnp.zeros((2, 6, 4, 3, 3))
    params = net.init(jax.random.key(0), cells)
    first = 27 * (3 + 4 * shown) * 4 + 4
    strided, same = 8 * 4 * 6 + 6, 27 * 6 * 6 + 6
    # 6 x 4 x 3 becomes 3 x 2 x 2.
    dense, last = 3 * 2 * 2 * 6 * 5 + 5, 5 + 1
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == first + strided + same + dense + last
    logits = net.apply(params, cells)
    assert logits.shape == (2,) and logits.dtype == jnp.float32
