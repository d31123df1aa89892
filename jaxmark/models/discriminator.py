"""Discriminators: CNNs that tell where landmarks truly are from where they were predicted."""

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

    It comes in two halves: `stem`, the first convolution, is linear and works on any even number of
    planes, so heatmaps need never be whole; `judge` takes what the stem made of all of them.
    """

    landmarks: int
    # 3, or 2 of pictures: all arrays are without Z then.
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
        """What the stem made of all planes -> logits (B,) float32."""
        if self.positions:
            place = positions([2 * n for n in x.shape[1:-1]]).astype(self.dtype)
            kernel = self.kernel[..., self.landmarks :, :].astype(self.dtype)
            # Once a case: else a kernel's gradient would first be summed over cases as a volume,
            # which then travels from device to device.
            x = x + conv_strided_2(jnp.broadcast_to(place, (len(x), *place.shape)), kernel)
        return self.verdict(nn.leaky_relu(x + self.bias.astype(self.dtype), SLOPE))

    def squared_input_gradient(self, gradient: Array) -> Array:
        """|d logit / d heatmaps|^2 (B,) from `gradient`, that to the stem's result.

        The stem is linear and its blocks don't overlap, so the gradient to the heatmaps is the
        kernel times that of each block, and its square a quadratic form: no volume of K channels.
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
        # A landmark fills a few of thousands of cells: a scale at which a network gets going.
        x = 4 * cells.astype(self.dtype)
        if self.positions:
            place = positions(x.shape[1:-1]).astype(self.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(place, (len(x), *place.shape))], axis=-1)
        x = nn.leaky_relu(Conv(self.widths[0], dtype=self.dtype)(x), SLOPE)
        return Verdict(self.widths[1:], self.hidden, dtype=self.dtype)(x)


# Of the leaky rectifiers.
SLOPE = 0.2


class Verdict(nn.Module):
    """A volume to one logit: each width halves every side, then comes a hidden layer over the rest.

    Leaky rectifiers, and no normalisation: it would hide how high what is shown is.
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

    Of pictures (X, Y, 3). Tan et al. 2023 name both and leave their scale open.
    """
    place = coordinates(shape)
    distance = jnp.linalg.norm(place, axis=-1, keepdims=True) / jnp.sqrt(float(len(shape)))
    return jnp.concatenate([place, distance], axis=-1)
