"""SpatialConfiguration-Net: the look of a landmark, times the places where it can be.

Payer et al., Medical Image Analysis 54 (2019), and two public implementations by the authors: of
the paper, and for the VerSe 2020 challenge. Layers, paddings and initial weights are those of the
code; docstrings name the differences.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxmark.core.conv import avg_pool, upsample_2
from jaxmark.core.normalization import leaky_relu
from jaxmark.models.blocks import Conv

# Slope of the leaky rectifiers.
SLOPE = 0.1
# For layers that make heatmaps: these are nearly everywhere 0, so they start near 0.
small_init = nn.initializers.truncated_normal(1e-3)


class Layer(nn.Module):
    """Convolution, bias and leaky rectifier."""

    features: int
    kernel: int = 3
    # Pad with the volume's mirror image, else with zeros.
    reflect: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = Conv(self.features, self.kernel, reflect=self.reflect, dtype=self.dtype)
        return leaky_relu(conv(x), SLOPE)


class DownAndAcross(nn.Module):
    """Two layers with dropout between, and a third for the skip connection to the way up."""

    filters: int
    dropout: float
    reflect: bool
    training: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        def layer() -> Layer:
            return Layer(self.filters, reflect=self.reflect, dtype=self.dtype)

        x = layer()(x)
        x = layer()(nn.Dropout(self.dropout, deterministic=not self.training)(x))
        return x, layer()(x)


class AddingUNet(nn.Module):
    """The U-Net of the paper: the same width on every level, and no layers on the way up.

    Sides must be multiples of `2 ** (levels - 1)`. Up-sampling repeats the edges, as the authors'
    does with channels last; with channels first the authors' pads with zeros.
    """

    filters: int
    levels: int
    dropout: float
    reflect: bool
    training: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, X, Y, Z, C) to (B, X, Y, Z, filters)."""
        kind = nn.remat(DownAndAcross) if self.remat else DownAndAcross
        # This layer pads with zeros, even with `reflect`, as in the authors' code.
        x = Layer(self.filters, dtype=self.dtype)(x)
        across = []
        for level in range(self.levels):
            x = avg_pool(x, 2) if level else x
            block = kind(
                self.filters,
                self.dropout,
                self.reflect,
                self.training,
                dtype=self.dtype,
                name=f"level_{level}",
            )
            x, kept = block(x)
            across.append(kept)
        x = across.pop()
        while across:
            x = upsample_2(x) + across.pop()
        return x


class Repeated(nn.Module):
    """`repeats` layers with dropout after each."""

    filters: int
    repeats: int
    dropout: float
    reflect: bool
    training: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for _ in range(self.repeats):
            x = Layer(self.filters, reflect=self.reflect, dtype=self.dtype)(x)
            x = nn.Dropout(self.dropout, deterministic=not self.training)(x)
        return x


class ConcatenatingUNet(nn.Module):
    """The later U-Net: `repeats` layers on each level of the way down and of the way up.

    The lowest level has both.

    Sides must be multiples of `2 ** (levels - 1)`.
    """

    filters: int
    levels: int
    repeats: int
    dropout: float
    reflect: bool
    training: bool = False
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, X, Y, Z, C) to (B, X, Y, Z, filters)."""
        kind = nn.remat(Repeated) if self.remat else Repeated

        def layers(name: str, x: Array) -> Array:
            block = kind(
                self.filters,
                self.repeats,
                self.dropout,
                self.reflect,
                self.training,
                dtype=self.dtype,
                name=name,
            )
            return jnp.asarray(block(x))

        skips = []
        for level in range(self.levels):
            x = layers(f"down_{level}", avg_pool(x, 2) if level else x)
            skips.append(x)
        x = layers(f"up_{self.levels - 1}", skips.pop())
        for level in reversed(range(self.levels - 1)):
            x = jnp.concatenate([skips.pop(), upsample_2(x)], axis=-1)
            x = layers(f"up_{level}", x)
        return x


class SpatialConfigurationNet(nn.Module):
    """Volumes to heatmaps: local heatmaps times spatial ones, made from all local heatmaps.

    Local heatmaps have the volume's resolution and many peaks. The spatial part's only input is
    local heatmaps, averaged over blocks of `downsample` voxels a side; its output is interpolated
    back (cubic).

    - `recipe="2019"`: `AddingUNet`; linear local heatmaps by a 3^3 convolution; three layers of
      7^3, a convolution of 7^3, tanh, then interpolation.
    - `recipe="later"`: `ConcatenatingUNet`; local heatmaps by a 1^3 convolution and tanh; a second
      `ConcatenatingUNet` of `spatial_levels`, interpolation, then tanh.
    """

    landmarks: int
    recipe: str
    filters: int
    levels: int
    downsample: int
    spatial_levels: int
    dropout: float
    reflect: bool
    # Whether dropout is on; it asks for a random key named "dropout".
    training: bool = False
    # Compute layers again for the gradient, level by level, instead of keeping their outputs.
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, Array, Array]:
        """(B, X, Y, Z, C) to heatmaps, local and spatial ones, (B, X, Y, Z, K) float32 each.

        Pictures have no Z. For the sides see `multiples`.
        """
        shared: dict[str, Any] = {
            "dropout": self.dropout,
            "reflect": self.reflect,
            "training": self.training,
            "remat": self.remat,
            "dtype": self.dtype,
        }
        x = image.astype(self.dtype)
        if self.recipe == "2019":
            x = AddingUNet(self.filters, self.levels, name="local", **shared)(x)
            local = self._heatmaps("local_heatmaps", kernel=3)(x).astype(jnp.float32)
        else:
            x = ConcatenatingUNet(self.filters, self.levels, 2, name="local", **shared)(x)
            local = self._heatmaps("local_heatmaps", kernel=1)(x).astype(jnp.float32)
            local = jnp.tanh(local)

        x = avg_pool(local, self.downsample).astype(self.dtype)
        if self.recipe == "2019":
            for number in range(3):
                x = Layer(
                    self.filters, 7, self.reflect, dtype=self.dtype, name=f"spatial_{number}"
                )(x)
            x = self._heatmaps("spatial_heatmaps", kernel=7, reflect=self.reflect)(x)
            spatial = upsample_cubic(jnp.tanh(x.astype(jnp.float32)), self.downsample)
        else:
            x = ConcatenatingUNet(self.filters, self.spatial_levels, 1, name="spatial", **shared)(x)
            x = self._heatmaps("spatial_heatmaps", kernel=1)(x)
            spatial = jnp.tanh(upsample_cubic(x.astype(jnp.float32), self.downsample))
        return local * spatial, local, spatial

    def _heatmaps(self, name: str, kernel: int, reflect: bool = False) -> Conv:
        return Conv(
            self.landmarks,
            kernel,
            reflect=reflect,
            dtype=self.dtype,
            initializer=small_init,
            name=name,
        )


def multiples(recipe: str, levels: int, downsample: int, spatial_levels: int) -> tuple[int, int]:
    """The numbers that must divide all sides: for the local part, and for the spatial part."""
    spatial = 1 if recipe == "2019" else 2 ** (spatial_levels - 1)
    return 2 ** (levels - 1), downsample * spatial


def upsample_cubic(x: Array, factor: int) -> Array:
    """`factor` times the voxels a side, by Keys' cubic convolution (a = -1/2).

    Half-pixel centres. At the edges, weights of voxels outside are dropped and the rest sums to 1.
    """
    b, *sides, c = x.shape
    return jax.image.resize(x, (b, *(factor * n for n in sides), c), "cubic")
