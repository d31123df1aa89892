"""The residual U-Net that turns a volume or a picture into one heatmap a landmark."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxmark.core.conv import max_pool_2
from jaxmark.models.blocks import Pointwise, ResidualBlock, Up


class ResidualUNet(nn.Module):
    """U-Net with a residual block on every level and long skip connections (Tan et al. 2023).

    Widths, depth and normalisation are open in the paper. `head` channels of a layer of one voxel
    with a rectifier stand before the last one: without them, all heatmaps are linear mixtures of
    the `widths[0]` channels of the finest level, too few to keep more landmarks than that apart.

    Input `(B, X, Y, Z, C)`, output `(B, X, Y, Z, out_channels)` in float32; pictures have no Z.
    Sides must be multiples of `2 ** (levels - 1)`. The two halves are there by themselves:
    `features`, and `heatmaps`, which works on voxels one by one and so on any part of the volume.
    """

    widths: Sequence[int]
    out_channels: int
    head: int = 0
    dtype: DTypeLike = jnp.float32
    # Compute the activations of residual blocks anew for the gradient instead of keeping them.
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
        # Under its own name, so that parameters are the same either way.
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
