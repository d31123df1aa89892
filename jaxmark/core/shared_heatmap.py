"""One picture with a spot at every landmark, and the squares around the spots.

Pictures are (B, X, Y), landmarks (B, K, 3) in pixels (centres at integers; the third coordinate is
not used).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

# Standard deviations from a landmark to the edge of its square: its Gaussian is under 0.012 there.
REACH = 3.0


def shared_heatmap(
    landmarks_ijk: Array, present: Array, shape: Sequence[int], variance: float
) -> Array:
    """Gaussians of height 1 at all landmarks that are present, in one picture (Kanakatte et al.).

    Where two meet, the larger one counts, so that each keeps its height of 1: a sum would be
    brighter between two that are near each other than at either.

    Args:
      landmarks_ijk: (B, K, 3); present: (B, K) bool.
      shape: (X, Y).
      variance: of the Gaussians, in pixels^2.
    """
    x, y = (_squares(landmarks_ijk[..., axis], n) for axis, n in enumerate(shape))
    spots = jnp.exp(-0.5 / variance * (x[:, :, None] + y[:, None]))
    return jnp.where(present[:, None, None], spots, 0.0).max(-1)


def foreground(
    landmarks_ijk: Array,
    present: Array,
    shape: Sequence[int],
    variance: float,
    *,
    single: bool,
) -> Array:
    """The foreground square of each picture, (B, X, Y) bool; see Kanakatte et al., Eq. 7.

    The smallest square that holds all spots to `REACH` standard deviations, as far as it lies
    within the picture: its size is another for every picture. Or, with `single`, a square a spot.
    A picture without landmarks has none.
    """
    reach = REACH * variance**0.5
    points, shown = landmarks_ijk[..., :2], present[..., None]
    if single:
        centre, half = points, jnp.full(present.shape, reach)
    else:
        low = jnp.where(shown, points, jnp.inf).min(1, keepdims=True)
        high = jnp.where(shown, points, -jnp.inf).max(1, keepdims=True)
        present = present.any(1, keepdims=True)
        centre = jnp.where(present[..., None], (low + high) / 2, 0.0)
        half = jnp.where(present, (high - low).max(-1) / 2, 0.0) + reach
    x, y = (_squares(centre[..., axis], n) <= half[:, None] ** 2 for axis, n in enumerate(shape))
    return (x[:, :, None] & y[:, None] & present[:, None, None]).any(-1)


def patches_with(foreground: Array, patches: Sequence[int]) -> Array:
    """Which of so many equal patches (px, py) of a picture hold foreground: (B, px, py) bool."""
    b, *shape = foreground.shape
    (px, nx), (py, ny) = ((p, n // p) for p, n in zip(patches, shape, strict=True))
    return foreground.reshape(b, px, nx, py, ny).any((2, 4))


def _squares(centre: Array, n: int) -> Array:
    """(B, K) -> (B, n, K): squared distances of the pixels along an axis."""
    return (jnp.arange(n)[:, None] - centre[:, None]) ** 2
