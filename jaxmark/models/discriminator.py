"""Discriminators: CNNs that tell true landmarks from predicted ones."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxmark.core.conv import conv_strided_2
from jaxmark.models.blocks import Conv, coordinates, kernel_init


class HeatmapDiscriminator(nn.Module):
    """Heatmaps of all landmarks -> one logit a case, positive for real ones (Tan et al. 2023).

    It never sees an image. The paper says "CNN architecture" and a scalar output; the layers are
    ours: a convolution of 2 voxels a side and stride 2, and `Verdict`.

    It has two halves. `stem`, the first convolution, is linear and takes any even number of planes,
    so heatmaps are never in memory as a whole. `judge` takes the stem's output for all planes.
    """

    landmarks: int
    # 3; or 2 for pictures, whose arrays have no Z.
    axes: int = 3
    widths: Sequence[int] = (32, 64, 64)
    hidden: int = 64
    # The paper's dagger: also show a coordinate matrix and a map of distances from the centre.
    positions: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        first = self.widths[0]
        channels = self.landmarks + (self.axes + 1 if self.positions else 0)
        self.kernel = self.param("kernel", kernel_init, (*(2,) * self.axes, channels, first))
        self.bias = self.param("bias", nn.initializers.zeros, (first,))
        self.verdict = Verdict(self.widths[1:], self.hidden, dtype=self.dtype)

    def __call__(self, heatmaps: Array) -> Array:
        """(B, X, Y, Z, K), even sides, to logits (B,) float32."""
        return self.judge(self.stem(heatmaps))

    def stem(self, heatmaps: Array) -> Array:
        """(B, n, Y, Z, K) to (B, n / 2, Y / 2, Z / 2, widths[0]): linear in the heatmaps."""
        kernel = self.kernel[..., : self.landmarks, :].astype(self.dtype)
        return conv_strided_2(heatmaps.astype(self.dtype), kernel)

    def judge(self, x: Array) -> Array:
        """The stem's output for all planes -> logits (B,) float32."""
        if self.positions:
            place = positions([2 * n for n in x.shape[1:-1]]).astype(self.dtype)
            kernel = self.kernel[..., self.landmarks :, :].astype(self.dtype)
            # One copy for each case: with one for all, the gradient would be a volume summed over
            # cases, and so over devices.
            x = x + conv_strided_2(jnp.broadcast_to(place, (len(x), *place.shape)), kernel)
        return self.verdict(nn.leaky_relu(x + self.bias.astype(self.dtype), SLOPE))

    def squared_input_gradient(self, gradient: Array) -> Array:
        """|d logit / d heatmaps|^2 (B,) from `gradient`, the gradient to the stem's output.

        The stem is linear and its blocks don't overlap, so the gradient to the heatmaps is the
        kernel times each block's gradient. Its square is a quadratic form of the latter, which
        needs no volume of K channels.
        """
        kernel = self.kernel[..., : self.landmarks, :].reshape(-1, self.widths[0])
        gradient = gradient.astype(jnp.float32)
        return jnp.einsum("b...i,ij,b...j->b", gradient, kernel.T @ kernel, gradient)


class CellDiscriminator(nn.Module):
    """How much of each landmark lies in which cell of a coarse grid -> one logit a case.

    Ours: see `Adversarial.shown`. A 3^3 convolution, and `Verdict`.
    """

    widths: Sequence[int] = (64, 64, 64)
    hidden: int = 128
    positions: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, cells: Array) -> Array:
        """(B, X, Y, Z, K) or (B, X, Y, K), sums over cells 1 or 0, to logits (B,) float32."""
        # A landmark fills few of thousands of cells; this scale lets training start.
        x = 4 * cells.astype(self.dtype)
        if self.positions:
            place = positions(x.shape[1:-1]).astype(self.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(place, (len(x), *place.shape))], axis=-1)
        x = nn.leaky_relu(Conv(self.widths[0], dtype=self.dtype)(x), SLOPE)
        return Verdict(self.widths[1:], self.hidden, dtype=self.dtype)(x)


# Slope of the leaky rectifiers.
SLOPE = 0.2


class Verdict(nn.Module):
    """A volume to one logit: each width halves every side, then a dense hidden layer follows.

    It has leaky rectifiers and no normalisation, which would hide the height of heatmaps.
    """

    widths: Sequence[int]
    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, X, Y, Z, C) or (B, X, Y, C) to (B,) float32."""
        for width in self.widths:
            x = nn.leaky_relu(Strided(width, dtype=self.dtype)(x), SLOPE)
            x = nn.leaky_relu(Conv(width, dtype=self.dtype)(x), SLOPE)
        x = x.reshape(x.shape[0], -1)
        x = nn.leaky_relu(nn.Dense(self.hidden, dtype=self.dtype)(x), SLOPE)
        return nn.Dense(1, dtype=jnp.float32)(x.astype(jnp.float32))[..., 0]


class Strided(nn.Module):
    """Convolution with a kernel of 2 voxels a side, stride 2; odd sides get a plane of zeros."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        sides = x.shape[1:-1]
        size = (2,) * len(sides)
        kernel = self.param("kernel", kernel_init, (*size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = jnp.pad(x, [(0, 0), *((0, n % 2) for n in sides), (0, 0)])
        return conv_strided_2(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


def positions(shape: Sequence[int]) -> Array:
    """(X, Y, Z, 4): coordinates from -1 to 1, and the distance from the centre, 1 at the corners.

    For pictures (X, Y, 3). Tan et al. 2023 name both and do not state their scale.
    """
    place = coordinates(shape)
    distance = jnp.linalg.norm(place, axis=-1, keepdims=True) / jnp.sqrt(float(len(shape)))
    return jnp.concatenate([place, distance], axis=-1)
