"""Layers shared by the networks.

Volumes are `(B, X, Y, Z, C)`, pictures `(B, X, Y, C)`; the input's number of axes makes a network's
layers 3-D or 2-D. A volume of one plane is still a volume: layers stay 3-D on every level.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxmark.core.conv import conv_reflect, conv_same, conv_transpose_2
from jaxmark.core.normalization import group_norm, relu

# He et al. 2015, for layers followed by a rectifier.
kernel_init = nn.initializers.he_normal()


def coordinates(shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
    """(X, Y, Z, 3), or (X, Y, 2): each voxel's place, from -1 to 1 on each axis."""
    axes = (jnp.linspace(-1, 1, n, dtype=dtype) for n in shape)
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


def append_coordinates(x: Array) -> Array:
    """`x` and its `coordinates`, one more channel for each axis.

    Convolutions can't tell places apart; coordinates let them (Liu et al., NeurIPS 2018).
    """
    place = coordinates(x.shape[1:-1], x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(place, (len(x), *place.shape))], axis=-1)


class Conv(nn.Module):
    """Convolution that keeps the shape; parameters are float32, arithmetic is `dtype`."""

    features: int
    kernel: int = 3
    bias: bool = True
    dtype: DTypeLike = jnp.float32
    initializer: Initializer = kernel_init
    # Pad with the volume's mirror image instead of zeros.
    reflect: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # Layers with kernels of one voxel have one shape of parameters for any number of axes.
        axes = 3 if self.kernel == 1 else x.ndim - 2
        shape = (self.kernel,) * axes + (x.shape[-1], self.features)
        convolve = conv_reflect if self.reflect else conv_same
        y = convolve(x, self.param("kernel", self.initializer, shape).astype(self.dtype))
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class Up(nn.Module):
    """Transposed convolution with a kernel of 2 voxels a side that doubles every side."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = x.ndim - 2
        kernel = self.param("kernel", kernel_init, (*(2,) * axes, x.shape[-1], self.features))
        # Each output voxel sees one tap of the kernel, not eight, so He's deviation is scaled.
        kernel = kernel * math.sqrt(2**axes)
        return conv_transpose_2(x.astype(self.dtype), kernel.astype(self.dtype))


class Norm(nn.Module):
    """Group normalisation; 8 channels a group, or the most that divide them."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return group_norm(x, scale, bias, math.gcd(8, channels))


class ResidualBlock(nn.Module):
    """Two 3^3 convolutions and a shortcut (He et al. 2016); a 1^3 layer widens the shortcut."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Conv(self.features, bias=False, dtype=self.dtype)(x)
        y = relu(Norm()(y))
        y = Conv(self.features, bias=False, dtype=self.dtype)(y)
        y = Norm()(y)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1, bias=False, dtype=self.dtype)(x)
        return relu(x + y)


class Pointwise(nn.Module):
    """Layers with kernels of one voxel on `(..., C)`: one, or two with a rectifier between."""

    features: int
    hidden: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.hidden:
            x = relu(Conv(self.hidden, kernel=1, dtype=self.dtype)(x))
        # Heatmaps are nearly everywhere 0, so they start near 0. From He's larger start a network
        # with a squared error first learns to output 0, and then does not find the landmarks.
        small = nn.initializers.normal(1e-3)
        last = Conv(self.features, kernel=1, dtype=self.dtype, initializer=small)
        # Loss and decoding need full precision.
        return last(x).astype(jnp.float32)


def for_each_landmark(function: Callable[..., Any], *stacked: Any, platform: str) -> Any:
    """Map `function` over the first axis of all arguments: K networks run as one.

    This is a `vmap`. On the platforms "cpu" and "onnx" it is a loop: there, batched convolutions
    with a kernel for each slice are three times slower than K plain ones.
    """
    if platform in ("cpu", "onnx"):
        return jax.lax.map(lambda arguments: function(*arguments), stacked)
    return jax.vmap(function)(*stacked)
