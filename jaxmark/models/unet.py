"""The residual U-Net that turns a volume into one heatmap a landmark."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxmark.core.conv import max_pool_2
from jaxmark.models.blocks import Conv, ResidualBlock, Up


class ResidualUNet(nn.Module):
    """U-Net with a residual block on every level and long skip connections (Tan et al. 2023).

    Widths, depth and normalisation are open in the paper. `head` channels of a 1^3 layer with a
    rectifier stand before the last one: without them, all heatmaps are linear mixtures of the
    `widths[0]` channels of the finest level, too few to keep more landmarks than that apart.

    Input `(B, X, Y, Z, C)`, output `(B, X, Y, Z, out_channels)` in float32; X, Y and Z must be
    multiples of `2 ** (levels - 1)`.
    """

    widths: Sequence[int]
    out_channels: int
    head: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        block = 2 ** (len(self.widths) - 1)
        if any(n % block for n in x.shape[1:4]):
            raise ValueError(f"volume {x.shape[1:4]} has a side that is not a multiple of {block}")
        x = x.astype(self.dtype)
        skips = []
        for width in self.widths[:-1]:
            x = ResidualBlock(width, dtype=self.dtype)(x)
            skips.append(x)
            x = max_pool_2(x)
        x = ResidualBlock(self.widths[-1], dtype=self.dtype)(x)
        for width, skip in zip(reversed(self.widths[:-1]), reversed(skips), strict=True):
            x = Up(width, dtype=self.dtype)(x)
            x = ResidualBlock(width, dtype=self.dtype)(jnp.concatenate([x, skip], axis=-1))
        if self.head:
            x = nn.relu(Conv(self.head, kernel=1, dtype=self.dtype)(x))
        # A linear head in full precision: heatmaps are what loss and decoding see.
        return Conv(self.out_channels, kernel=1, dtype=self.dtype)(x).astype(jnp.float32)
