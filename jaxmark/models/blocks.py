"""Layers shared by the networks.

Volumes are `(B, X, Y, Z, C)`, pictures `(B, X, Y, C)`: what a network is shown makes its layers 3-D
or 2-D. A volume of one plane is still a volume, so that on every level a network is what it is on
the finest.
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
    """`x` with a channel more for each axis, `coordinates`.

    A convolution sees the same everywhere (Liu et al., NeurIPS 2018); with these it may know where.
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
    # Outside of the volume is its mirror image instead of zeros.
    reflect: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        # Layers of one voxel work on arrays with any number of axes, with the same parameters.
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
        # Each output voxel sees one kernel tap, not eight: scale He's variance for that.
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
    """Two convolutions and a shortcut (He et al. 2016), which a layer of one voxel widens.

    Kernels have 3 voxels a side.
    """

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
    """Layers of one voxel on arrays `(..., C)`: one, or two with a rectifier between."""

    features: int
    hidden: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.hidden:
            x = relu(Conv(self.hidden, kernel=1, dtype=self.dtype)(x))
        # Heatmaps are nearly everywhere 0, and start so: a network that first has to unlearn He's
        # random ones doesn't find the landmarks again with a squared error.
        small = nn.initializers.normal(1e-3)
        last = Conv(self.features, kernel=1, dtype=self.dtype, initializer=small)
        # They are what loss and decoding see: in full precision.
        return last(x).astype(jnp.float32)


def each(function: Callable[..., Any], *stacked: Any, platform: str) -> Any:
    """`function` of every slice of the arguments' first axes, results stacked: K networks as one.

    A `vmap`; on the platforms "cpu" and "onnx" one after another, where convolutions with a kernel
    for each slice are three times slower than K plain ones.
    """
    if platform in ("cpu", "onnx"):
        return jax.lax.map(lambda arguments: function(*arguments), stacked)
    return jax.vmap(function)(*stacked)
