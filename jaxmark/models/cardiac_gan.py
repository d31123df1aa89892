"""The two networks of the cardiac GAN (Kanakatte et al.), on pictures `(B, X, Y, C)`.

The paper describes the layers of the encoder alone: 3 x 3, stride 2, He's normal kernels, batch
normalisation, leaky rectifier. Widths, and choices called ours below, are not in the paper.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxmark.core.conv import conv_doubled, conv_halving, conv_same
from jaxmark.core.normalization import leaky_relu
from jaxmark.models.blocks import kernel_init

# Slope of the leaky rectifiers; ours.
SLOPE = 0.2


class UNetGenerator(nn.Module):
    """U-Net: one picture in, one picture with a spot at every landmark out.

    The encoder halves the sides once for each of `widths`; feature filters follow. The decoder
    doubles the sides by repetition, concatenates the encoder's features of that size, and convolves
    with stride 1. The encoder has no layer at full size, so the last skip connection is the picture
    itself (ours): only there edges are sharp.

    Dropout of rate `dropout` follows the feature filters alone (ours): nearer to the output it is
    noise in the heatmap.
    """

    widths: Sequence[int]
    filters: int = 3
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, dropout: Array | None = None) -> Array:
        """(B, X, Y, 1) to (B, X, Y) float32; sides are multiples of `2 ** len(widths)`.

        Without `dropout`: prediction, with the running means of batch normalisation.
        """
        train = dropout is not None
        x = x.astype(self.dtype)
        skips = []
        for width in self.widths:
            skips.append(x)
            x = Layer(width, halving=True, dtype=self.dtype)(x, train)
        for _ in range(self.filters):
            x = FeatureFilter(dtype=self.dtype)(x, train)
        x = Dropout()(x, dropout)
        widths = [self.widths[0], *self.widths[:-1]]
        for width, skip in zip(widths[::-1], skips[::-1], strict=True):
            x = Layer(width, dtype=self.dtype)(x, train, skip)
        # A heatmap is nearly everywhere 0, so it starts near 0.
        small = nn.initializers.normal(1e-3)
        return Conv(1, dtype=self.dtype, initializer=small)(x)[..., 0].astype(jnp.float32)


class PatchDiscriminator(nn.Module):
    """(image, heatmap) to one response for each patch: 1 for a true heatmap, 0 for a predicted one.

    Layers of stride 2 as in the generator's encoder, one for each of `widths`, and a 1 x 1
    convolution (PatchGAN, Isola et al., CVPR 2017). Six layers make 4 x 4 patches of 256 x 256
    pixels. Two choices are ours. The first layer has no normalisation, which would hide the height
    of a spot. Dropout follows the last layer alone: at rate 0.6 after several layers D could not
    tell the heatmaps apart.

    D is used in training alone, so it always normalises by the batch.
    """

    widths: Sequence[int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Array, heatmap: Array, dropout: Array) -> Array:
        """(B, X, Y, 1) and (B, X, Y) to (B, X / 2^n, Y / 2^n) float32."""
        x = jnp.concatenate([image, heatmap[..., None]], axis=-1).astype(self.dtype)
        for i, width in enumerate(self.widths):
            x = Layer(width, halving=True, normalised=i > 0, dtype=self.dtype)(x, True)
        x = Dropout()(x, dropout)
        return Conv(1, kernel=1)(x.astype(jnp.float32))[..., 0]


class FeatureFilter(nn.Module):
    """One block of the feature-filter enhancing block, which the paper names but does not describe.

    The paper wants it to select the few features that matter, with few parameters, and to
    regularise. Ours: a residual bottleneck of half the channels (He et al., CVPR 2016). Each of its
    output channels has a weight from 0 to 1, computed from the means of all channels (squeeze and
    excitation, Hu et al., CVPR 2018). A channel of weight 0 passes the block unchanged.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = x.shape[-1]
        half, few = max(1, channels // 2), max(1, channels // 8)
        y = Layer(half, kernel=1, dtype=self.dtype)(x, train)
        y = Layer(half, dtype=self.dtype)(y, train)
        y = Layer(channels, kernel=1, rectified=False, dtype=self.dtype)(y, train)
        means = y.mean((1, 2), dtype=jnp.float32)
        hidden = leaky_relu(nn.Dense(few, kernel_init=kernel_init)(means), SLOPE)
        weights = nn.sigmoid(nn.Dense(channels)(hidden)).astype(self.dtype)
        return leaky_relu(x + weights[:, None, None] * y, SLOPE)


class Layer(nn.Module):
    """Convolution, batch normalisation, leaky rectifier."""

    features: int
    kernel: int = 3
    halving: bool = False
    normalised: bool = True
    rectified: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool, skip: Array | None = None) -> Array:
        """Normalise with the batch's statistics in training, else with the running ones."""
        bias = not self.normalised
        x = Conv(self.features, self.kernel, self.halving, bias, self.dtype)(x, skip)
        if self.normalised:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
        return leaky_relu(x, SLOPE) if self.rectified else x


class Conv(nn.Module):
    """A convolution that keeps the sides or halves them; it has the parameters of `nn.Conv`.

    With a `skip` it doubles them: its input is `x` with every pixel repeated, and `skip`.
    """

    features: int
    kernel: int = 3
    halving: bool = False
    bias: bool = True
    dtype: DTypeLike = jnp.float32
    initializer: Initializer = kernel_init

    @nn.compact
    def __call__(self, x: Array, skip: Array | None = None) -> Array:
        channels = x.shape[-1]
        both = channels + (0 if skip is None else skip.shape[-1])
        shape = (self.kernel, self.kernel, both, self.features)
        kernel = self.param("kernel", self.initializer, shape).astype(self.dtype)
        if skip is not None:
            y = conv_doubled(x, kernel[..., :channels, :])
            y = y + conv_same(skip, kernel[..., channels:, :])
        else:
            y = (conv_halving if self.halving else conv_same)(x, kernel)
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class Dropout(nn.Module):
    """Dropout whose rate is an array: it may change without a new compilation."""

    @nn.compact
    def __call__(self, x: Array, rate: Array | None) -> Array:
        """`x` with that share of its values 0 and the others larger; None: `x` itself."""
        if rate is None:
            return x
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate).astype(x.dtype), 0)
