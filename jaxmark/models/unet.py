"""The residual U-Net: a volume or a picture to one heatmap for each landmark."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxmark.core.conv import max_pool_2
from jaxmark.models.blocks import Pointwise, ResidualBlock, Up


class ResidualUNet(nn.Module):
    """U-Net with a residual block on every level and long skip connections (Tan et al. 2023).

    The paper states no widths, depth or normalisation. Before the last layer comes a 1^3 layer with
    `head` channels and a rectifier. Without it, all heatmaps are linear mixtures of the `widths[0]`
    channels of the finest level, which can't separate more landmarks than channels.

    Input `(B, X, Y, Z, C)`, output `(B, X, Y, Z, out_channels)` in float32; pictures have no Z.
    Sides must be multiples of `2 ** (levels - 1)`. Both halves can be called: `features`, and
    `heatmaps`, which treats each voxel by itself and so takes any part of the volume.
    """

    widths: Sequence[int]
    out_channels: int
    head: int = 0
    dtype: DTypeLike = jnp.float32
    # Compute activations of residual blocks again for the gradient instead of keeping them.
    remat: bool = False

    def setup(self) -> None:
        self.body = UNetBody(self.widths, dtype=self.dtype, remat=self.remat)
        self.last = Pointwise(self.out_channels, hidden=self.head, dtype=self.dtype)

    def __call__(self, x: Array) -> Array:
        return self.heatmaps(self.features(x))

    def features(self, x: Array) -> Array:
        """`(B, X, Y, Z, widths[0])` in `dtype`."""
        return self.body(x)

    def heatmaps(self, features: Array) -> Array:
        """`(..., widths[0])` to `(..., out_channels)` in float32."""
        return self.last(features)


class UNetBody(nn.Module):
    """Down and up: everything but the last layers."""

    widths: Sequence[int]
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        block = 2 ** (len(self.widths) - 1)
        if any(n % block for n in x.shape[1:-1]):
            raise ValueError(f"volume {x.shape[1:-1]} has a side that is not a multiple of {block}")
        # Explicit names: parameters are the same with and without `remat`.
        kind = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        widths = [*self.widths, *reversed(self.widths[:-1])]
        blocks = [
            kind(width, dtype=self.dtype, name=f"ResidualBlock_{i}")
            for i, width in enumerate(widths)
        ]
        x = x.astype(self.dtype)
        skips = []
        levels = len(self.widths)
        for residual in blocks[: levels - 1]:
            x = residual(x)
            skips.append(x)
            x = max_pool_2(x)
        x = blocks[levels - 1](x)
        for residual, skip in zip(blocks[levels:], reversed(skips), strict=True):
            x = Up(skip.shape[-1], dtype=self.dtype)(x)
            x = residual(jnp.concatenate([x, skip], axis=-1))
        return x
