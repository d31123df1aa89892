"""Votes of patches against float64 numpy, one patch after another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmark.core.patches import (
    decode_votes,
    displacements,
    patch_centres,
    shrink,
    stretch,
    vote_losses,
)

GRID, STRIDE, B, K = (3, 2, 4), 8, 2, 3
decode = jax.jit(decode_votes, static_argnames="stride")
losses = jax.jit(vote_losses, static_argnames="stride")


def drawn(seed=0, spread=1.0, axes=3):
    """What patches say, and where landmarks are: some beyond the volume. Two axes: of a picture."""
    rng = np.random.default_rng(seed)
    grid = GRID[:axes]
    return (
        spread * rng.normal(size=(B, *grid, K)),
        rng.normal(size=(B, *grid, K, axes)),
        rng.uniform(-6, STRIDE * np.array(grid) + 6, (B, K, axes)),
    )


def centre(patch, stride=STRIDE):
    """The mean of the voxels of a patch."""
    return np.array([np.mean(np.arange(stride * i, stride * (i + 1))) for i in patch])


def test_displacements_are_shrunk_by_a_logarithm_and_stretched_back():
    d = np.array([-99.0, -9.0, -0.5, 0.0, 1e-4, 1.0, 9.0, 999.0])
    expected = np.sign(d) * np.log10(np.abs(d) + 1)
    np.testing.assert_allclose(shrink(jnp.asarray(d)), expected, rtol=1e-6)
    assert shrink(jnp.asarray(9.0)) == pytest.approx(1.0)
    np.testing.assert_allclose(stretch(shrink(jnp.asarray(d))), d, rtol=1e-5)


def test_displacements_lead_from_the_middle_of_each_patch_to_the_landmark():
    _, _, points = drawn()
    centres = np.asarray(patch_centres(GRID, STRIDE))
    found = np.asarray(displacements(jnp.asarray(points, jnp.float32), GRID, STRIDE))
    for patch in np.ndindex(GRID):
        np.testing.assert_array_equal(centres[patch], centre(patch))
        np.testing.assert_allclose(found[:, *patch], points - centre(patch), atol=1e-5)


def losses_in_float64(logits, votes, points, present, absent):
    """Both means, written as sums over every patch of every landmark."""
    entropies, errors = [], []
    for b, k in itertools.product(range(B), range(K)):
        for patch in np.ndindex(logits.shape[1:-1]):
            true = points[b, k] - centre(patch)
            voxel = np.floor(points[b, k] + 0.5)
            first = STRIDE * np.array(patch)
            holds = present[b, k] and (voxel >= first).all() and (voxel < first + STRIDE).all()
            p = 1 / (1 + np.exp(-logits[b, *patch, k]))
            if present[b, k] or absent[b, k]:
                entropies.append(-np.log(p if holds else 1 - p))
            if present[b, k]:
                target = np.sign(true) * np.log10(np.abs(true) + 1)
                errors.extend(np.abs(votes[b, *patch, k] - target))
    return np.mean(entropies), np.mean(errors)


@pytest.mark.parametrize("axes", [3, 2])
def test_losses_are_those_of_float64(axes):
    logits, votes, points = drawn(axes=axes)
    present = np.array([[True, False, False], [True, True, True]])
    absent = np.array([[False, True, False], [False, False, False]])
    arguments = (logits, votes, points, present, absent)
    found = losses(*map(jnp.asarray, arguments), stride=STRIDE)
    np.testing.assert_allclose(found, losses_in_float64(*arguments), rtol=1e-5)


def test_a_landmark_is_in_one_patch_or_in_none():
    # On a border it is in the patch behind; a logit of 1 costs 1 less there, over all 24 patches.
    logits, votes = jnp.ones((1, *GRID, 1)), jnp.zeros((1, *GRID, 1, 3))
    yes, no = jnp.ones((1, 1), bool), jnp.zeros((1, 1), bool)

    def held(*point):
        points = jnp.asarray(point, jnp.float32)[None, None]
        entropy, _ = losses(logits, votes, points, yes, no, stride=STRIDE)
        return round(24 * float(np.log1p(np.exp(1)) - entropy), 3)

    assert held(7.5, 7.5, 7.5) == held(-0.5, -0.5, -0.5) == held(23.4, 15.4, 31.4) == 1
    assert held(-0.6, 0, 0) == held(23.5, 0, 0) == held(3, 40, 3) == 0


def test_what_is_not_known_has_no_gradient_and_what_is_absent_only_that_of_its_class():
    logits, votes, points = (jnp.asarray(x, jnp.float32) for x in drawn())
    present = jnp.asarray([[True, False, False], [True, False, False]])
    absent = jnp.asarray([[False, True, False], [False, True, False]])

    def total(logits, votes, points):
        return sum(losses(logits, votes, points, present, absent, stride=STRIDE))

    of_logits, of_votes = jax.jit(jax.grad(total, (0, 1)))(logits, votes, points)
    assert (of_logits[..., :2] != 0).all() and (of_logits[..., 2] == 0).all()
    assert (of_votes[..., 0, :] != 0).all() and (of_votes[..., 1:, :] == 0).all()
    # Nothing absent is anywhere: every patch is told to say no.
    assert (of_logits[..., 1] > 0).all()
    # Positions that nobody knows may be anything.
    nonsense = points.at[:, 1:].set(1e6)
    assert total(logits, votes, nonsense) == total(logits, votes, points)


def test_nothing_known_is_no_loss():
    logits, votes, points = (jnp.asarray(x, jnp.float32) for x in drawn())
    nothing = jnp.zeros((B, K), bool)
    assert losses(logits, votes, points, nothing, nothing, stride=STRIDE) == (0, 0)


@pytest.mark.parametrize("offset", [0.0, -200.0, 50.0])
def test_votes_are_averaged_as_in_float64(offset):
    logits, votes, _ = drawn(spread=3.0)
    found, largest = decode(
        jnp.asarray(logits + offset, jnp.float32), jnp.asarray(votes, jnp.float32), stride=STRIDE
    )
    # exp(-200) is nothing in float32, and something in float64.
    p = 1 / (1 + np.exp(-(logits + offset)))
    for b, k in itertools.product(range(B), range(K)):
        total, weights = np.zeros(3), 0.0
        for patch in np.ndindex(GRID):
            vote = votes[b, *patch, k]
            away = np.sign(vote) * (10 ** np.abs(vote) - 1)
            total += p[b, *patch, k] * (centre(patch) + away)
            weights += p[b, *patch, k]
        np.testing.assert_allclose(found[b, k], total / weights, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(largest[b, k], logits[b, ..., k].max() + offset, rtol=1e-5)


@pytest.mark.parametrize("axes", [3, 2])
def test_patches_that_are_right_are_decoded_to_the_landmark_wherever_it_is(axes):
    logits, _, points = drawn(axes=axes)
    votes = shrink(displacements(jnp.asarray(points, jnp.float32), GRID[:axes], STRIDE))
    found, _ = decode(jnp.asarray(logits, jnp.float32), votes, stride=STRIDE)
    np.testing.assert_allclose(found, points, atol=1e-3)


def test_positions_move_turn_and_are_mirrored_with_the_patches():
    logits, votes, _ = (jnp.asarray(x, jnp.float32) for x in drawn(spread=3.0))
    found, _ = decode(logits, votes, stride=STRIDE)
    # Moved: a plane of patches in front that hold nothing.
    none = [(0, 0), (1, 0), (0, 0), (0, 0), (0, 0)]
    moved, _ = decode(
        jnp.pad(logits, none, constant_values=-100), jnp.pad(votes, [*none, (0, 0)]), stride=STRIDE
    )
    np.testing.assert_allclose(moved, found + jnp.asarray([STRIDE, 0, 0]), atol=1e-3)
    # Mirrored along Y.
    mirrored, _ = decode(
        logits[:, :, ::-1], votes[:, :, ::-1] * jnp.asarray([1, -1, 1]), stride=STRIDE
    )
    expected = found.at[..., 1].set(STRIDE * GRID[1] - 1 - found[..., 1])
    np.testing.assert_allclose(mirrored, expected, atol=1e-3)
    # Axes exchanged.
    turned, _ = decode(
        logits.transpose(0, 3, 1, 2, 4),
        votes.transpose(0, 3, 1, 2, 4, 5)[..., jnp.asarray([2, 0, 1])],
        stride=STRIDE,
    )
    np.testing.assert_allclose(turned, found[..., jnp.asarray([2, 0, 1])], atol=1e-3)
