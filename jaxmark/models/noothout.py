"""Networks of Noothout et al. (IEEE TMI 2020): a volume to votes of all its patches.

Both return logits `(B, x, y, z, K)` and displacements `(B, x, y, z, K, 3)` in float32, see
`core/patches`; for pictures `(B, x, y, K)` and `(B, x, y, K, 2)`. Group normalisation replaces the
batch normalisation of a ResNet (ours), so no case depends on the others of its batch. Its
statistics are those of the input: a network trained on chunks gets others from whole volumes.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxmark.core.conv import avg_pool_2, conv_same, to_blocks
from jaxmark.core.normalization import relu
from jaxmark.models.blocks import Conv, Norm, Pointwise, ResidualBlock, kernel_init

# Voxels of a patch's side, for either network.
GLOBAL_STRIDE, LOCAL_STRIDE = 8, 2


class PatchResNet(nn.Module):
    """All landmarks in a whole volume, by patches of 8 voxels: ResNet-34 in 3-D, narrower.

    A 7^3 convolution with stride 2, then stages of residual blocks. Before each of the first two
    stages a mean over 2 x 2 x 2 halves every side. Input `(B, X, Y, Z, C)`, sides multiples of 8.
    """

    landmarks: int
    stem: int = 16
    widths: Sequence[int] = (32, 64, 128, 256)
    blocks: Sequence[int] = (3, 4, 6, 3)
    head: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        if any(n % GLOBAL_STRIDE for n in x.shape[1:-1]):
            raise ValueError(f"volume {x.shape[1:-1]} has a side that is not a multiple of 8")
        x = Stem(self.stem, dtype=self.dtype)(x.astype(self.dtype))
        x = relu(Norm()(x))
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            if stage < 2:
                x = avg_pool_2(x)
            for _ in range(blocks):
                x = ResidualBlock(width, dtype=self.dtype)(x)
        return PatchHeads(self.landmarks, self.head, dtype=self.dtype)(x)


class LocalPatchNet(nn.Module):
    """One landmark in a small crop, by patches of 2 voxels. The layers are ours.

    3^3 convolutions: the first sees voxels; a mean over 2 x 2 x 2 makes patches for the others.
    Input `(B, X, Y, Z, C)`, even sides; K is 1.
    """

    widths: Sequence[int]
    head: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        x = x.astype(self.dtype)
        for layer, width in enumerate(self.widths):
            x = relu(Norm()(Conv(width, bias=False, dtype=self.dtype)(x)))
            if layer == 0:
                x = avg_pool_2(x)
        return PatchHeads(1, self.head, dtype=self.dtype)(x)


class Stem(nn.Module):
    """Convolution with a 7^3 kernel, stride 2 and 3 zeros around; it halves every (even) side."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = (7,) * (x.ndim - 2)
        kernel = self.param("kernel", kernel_init, (*size, x.shape[-1], self.features))
        return conv_same(to_blocks(x), over_blocks(kernel).astype(self.dtype))


def over_blocks(kernel: Array) -> Array:
    """The kernel (7, 7, 7, C, D) of stride 2 as one of stride 1 on `to_blocks`: (5, 5, 5, 8 C, D).

    Output i sees voxels 2i - 3 to 2i + 3, which lie in the blocks i - 2 to i + 1. One block more
    makes the kernel odd, as `conv_same` wants it, and is all zeros.
    """
    *sides, c, d = kernel.shape
    axes = len(sides)
    taps = jnp.pad(kernel, [(1, 2)] * axes + [(0, 0)] * 2).reshape(*(5, 2) * axes, c, d)
    blocks, inside = range(0, 2 * axes, 2), range(1, 2 * axes, 2)
    taps = taps.transpose(*blocks, *inside, 2 * axes, 2 * axes + 1)
    return taps.reshape(*(5,) * axes, 2**axes * c, d)


class PatchHeads(nn.Module):
    """Two heads with 1^3 layers: logits (..., K) and displacements (..., K, 3 or 2)."""

    landmarks: int
    hidden: int = 0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        logits = Pointwise(self.landmarks, self.hidden, self.dtype, name="holds")(x)
        axes = x.ndim - 2
        votes = Pointwise(axes * self.landmarks, self.hidden, self.dtype, name="votes")(x)
        return logits, votes.reshape(*votes.shape[:-1], self.landmarks, axes)
