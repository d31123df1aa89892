"""One residual U-Net with a branch for each of several tasks (Tan et al., ISBI 2022)."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxmark.core.conv import max_pool_2
from jaxmark.models.blocks import Conv, Pointwise, ResidualBlock, append_coordinates
from jaxmark.models.unet import UNetBody


class MultitaskUNet(nn.Module):
    """A shared body and a branch a task; a count of 0 leaves a branch out.

    Input `(B, X, Y, Z, C)`; X, Y and Z must be multiples of `2 ** (levels - 1)`. Branches of voxels
    (`heatmaps`, `labels`, `axes`) take any part of the features and return float32, channels last.
    Branches of attributes take all features and return logits `(B, count)`. The paper draws the
    branches and describes none: their layers are ours.
    """

    widths: Sequence[int]
    landmarks: int
    classes: int = 0  # of the segmentation, the background among them
    orientation: bool = False
    fork_attributes: int = 0
    segment_attributes: int = 0
    # Numbers of evidence for each attribute, beside the features; 0: none.
    evidence: int = 0
    head: int = 0
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        self.body = UNetBody(self.widths, dtype=self.dtype, remat=self.remat)
        by_voxel = functools.partial(Pointwise, hidden=self.head, dtype=self.dtype)
        self.landmark_branch = by_voxel(self.landmarks)
        if self.classes:
            self.label_branch = by_voxel(self.classes)
        if self.orientation:
            self.axis_branch = by_voxel(3)
        depth = len(self.widths) - 1
        if self.fork_attributes:
            self.fork_branch = AttributeBranch(self.fork_attributes, depth, self.dtype)
        if self.segment_attributes:
            self.segment_branch = AttributeBranch(self.segment_attributes, depth, self.dtype)

    def __call__(self, x: Array) -> list[Array]:
        """All branches, so that `init` makes parameters for each."""
        features = self.features(x)
        made = [self.heatmaps(features)]
        made += [self.labels(features)] if self.classes else []
        made += [self.axes(features)] if self.orientation else []
        for branch, count in (
            (self.forks, self.fork_attributes),
            (self.segments, self.segment_attributes),
        ):
            evidence = jnp.zeros((x.shape[0], count, self.evidence)) if self.evidence else None
            made += [branch(features, evidence)] if count else []
        return made

    def features(self, x: Array) -> Array:
        """`(B, X, Y, Z, widths[0])`, what all branches share."""
        return self.body(x)

    def heatmaps(self, features: Array) -> Array:
        """`(..., landmarks)`"""
        return self.landmark_branch(features)

    def labels(self, features: Array) -> Array:
        """Logits `(..., classes)`."""
        return self.label_branch(features)

    def axes(self, features: Array) -> Array:
        """Vectors `(..., 3)` of any length."""
        return self.axis_branch(features)

    def forks(self, features: Array, evidence: Array | None = None) -> Array:
        """Logits `(B, fork_attributes)`; see `AttributeBranch`."""
        return self.fork_branch(features, evidence)

    def segments(self, features: Array, evidence: Array | None = None) -> Array:
        """Logits `(B, segment_attributes)`; see `AttributeBranch`."""
        return self.segment_branch(features, evidence)


class AttributeBranch(nn.Module):
    """Features of a volume to one logit for each attribute, which has its own attention map.

    Max-pooling, which keeps thin vessels, halves the sides `depth` times. Then each attribute has a
    softmax over the voxels and a linear layer on the features averaged with it. Coordinates are
    among the features, since right and left look alike. `evidence` (B, count, E), if given, adds a
    linear function of these numbers, which starts as their sum.
    """

    count: int
    depth: int
    dtype: DTypeLike = jnp.float32
    width: int = 64

    @nn.compact
    def __call__(self, features: Array, evidence: Array | None = None) -> Array:
        x = features
        for level in range(self.depth):
            x = max_pool_2(x)
            # Only where voxels are few: on finer levels a block takes as long as the U-Net.
            if level == 1 or level == self.depth - 1:
                x = ResidualBlock(self.width, dtype=self.dtype)(append_coordinates(x))
        if not self.depth:
            x = append_coordinates(x)
        where = Conv(self.count, kernel=1, dtype=self.dtype)(x).astype(jnp.float32)
        shape = where.shape
        share = jax.nn.softmax(where.reshape(shape[0], -1, self.count), axis=1)
        seen = x.astype(jnp.float32).reshape(shape[0], share.shape[1], -1)
        picked = jnp.einsum("bpn,bpc->bnc", share, seen)
        kernel = self.param("kernel", nn.initializers.normal(1e-2), (self.count, picked.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.count,))
        logits = (picked * kernel).sum(-1) + bias
        if evidence is None:
            return logits
        slope = self.param("slope", nn.initializers.constant(0.1), (self.count, evidence.shape[-1]))
        offset = self.param("offset", nn.initializers.zeros, (self.count,))
        # Adam moves all parameters at one pace; these few have the farthest to go.
        return logits + 10 * ((evidence * slope).sum(-1) + offset)
