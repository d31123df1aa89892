"""Networks of the cascade (Tan et al., 2019): a U-Net with side paths, and a small CNN."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxmark.core.conv import max_pool_2
from jaxmark.core.normalization import relu
from jaxmark.models.blocks import Conv, Pointwise, Up


class SidePathUNet(nn.Module):
    """U-Net of plain convolutions with rectifiers, and heatmaps on its coarser levels as well.

    Two 3^3 convolutions a level, max-pooling on the way down, deconvolutions on the way up (the
    paper draws them and states no widths). Input `(B, X, Y, Z, 1)`; `2 ** (levels - 1)` divides its
    sides. Returns `channels` heatmaps and those of the side paths: up to three coarser levels of
    the way up, the coarsest first. Side paths stay on their level's voxels; the paper enlarges
    them.
    """

    widths: Sequence[int]
    channels: int
    head: int = 0
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        widths = [*self.widths, *reversed(self.widths[:-1])]
        self.levels = [Level(width, dtype=self.dtype) for width in widths]
        self.ups = [Up(width, dtype=self.dtype) for width in reversed(self.widths[:-1])]
        self.last = Pointwise(self.channels, hidden=self.head, dtype=self.dtype)
        count = min(3, len(self.widths) - 1)
        self.sides = [Pointwise(self.channels, dtype=self.dtype) for _ in range(count)]

    def __call__(self, x: Array) -> tuple[Array, list[Array]]:
        features, sides = self.features(x)
        return self.heatmaps(features), sides

    def features(self, x: Array) -> tuple[Array, list[Array]]:
        """Features of the finest level, and heatmaps of the side paths."""
        depth = len(self.widths)
        skips = []
        x = x.astype(self.dtype)
        for level in self.levels[: depth - 1]:
            x = level(x)
            skips.append(x)
            x = max_pool_2(x)
        x = self.levels[depth - 1](x)
        seen = [x]
        for up, level, skip in zip(self.ups, self.levels[depth:], reversed(skips), strict=True):
            x = level(jnp.concatenate([up(x), skip], axis=-1))
            seen.append(x)
        coarser = seen[:-1][-len(self.sides) :] if self.sides else []
        pairs = zip(self.sides, coarser, strict=True)
        return x, [self._from_empty(side, features) for side, features in pairs]

    def heatmaps(self, features: Array) -> Array:
        """`(..., widths[0])` to `(..., channels)` in float32."""
        return self._from_empty(self.last, features)

    def _from_empty(self, layer: Pointwise, features: Array) -> Array:
        """Heatmaps plus those of an empty volume: landmarks 0, background 1.

        Without this, Adam needs a thousand steps to move the background's bias from 0 to 1.
        Meanwhile its error drives the features, and most rectifiers die.
        """
        empty = jnp.zeros(self.channels).at[-1].set(1.0)
        return layer(features) + empty


class Level(nn.Module):
    """Two 3^3 convolutions, each with a rectifier."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(2):
            x = relu(Conv(self.features, dtype=self.dtype)(x))
        return x


class DisplacementNet(nn.Module):
    """Patches `(B, n, n, n, 1)` to displacements `(B, 3)` in units of the largest one allowed.

    For each width a 3^3 convolution, a rectifier and max-pooling; then two dense layers. The last
    starts at zero, and a hyperbolic tangent keeps its output under 1 (the paper restricts the
    change "in a small range" and does not say how).
    """

    widths: Sequence[int]
    hidden: int
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.body = PatchBody(self.widths, self.hidden, dtype=self.dtype)
        self.last = nn.Dense(3, kernel_init=nn.initializers.zeros)

    def __call__(self, x: Array) -> Array:
        return self.displacements(self.features(x))

    def features(self, x: Array) -> Array:
        """`(B, hidden)` in `dtype`: all but the last layer."""
        return self.body(x)

    def displacements(self, features: Array) -> Array:
        """`(B, hidden)` to `(B, 3)` in float32."""
        return jnp.tanh(self.last(features.astype(jnp.float32)))


class PatchBody(nn.Module):
    """The convolutions and the first dense layer."""

    widths: Sequence[int]
    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(self.dtype)
        for width in self.widths:
            x = max_pool_2(relu(Conv(width, dtype=self.dtype)(x)))
        x = x.reshape(x.shape[0], -1)
        return relu(nn.Dense(self.hidden, dtype=self.dtype)(x))
