"""The parts of a graph of another library: its operations, and arrays with axes in some order.

Such libraries have channels before the axes of space; JAX's volumes have them last. So a `Node`
stores the order of its axes, and is transposed only where an operation needs another order.
`openvino_graph` and `onnx_graph` implement `Operations`; `translation` makes graphs of jaxprs.
"""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

Array = Any  # an array of a graph, in the library's type


class Unknown(ValueError):
    """An operation that is not translated; its name is the message."""


class Operations(Protocol):
    """The operations of a library. Volumes are (B, C, X, Y, Z) here, pictures (B, C, X, Y)."""

    def fixed(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape can be a constant: all its sides are known."""
        ...

    def constant(self, array: np.ndarray) -> Array:
        """An array that does not depend on the graph's inputs."""
        ...

    def elementwise(self, name: str, *arrays: Array) -> Array:
        """JAX's primitive of this name, with NumPy's broadcasting; Unknown if there is none."""
        ...

    def convert(self, array: Array, dtype: np.dtype) -> Array: ...

    def select(self, which: Array, yes: Array, no: Array) -> Array: ...

    def transpose(self, array: Array, order: Sequence[int]) -> Array: ...

    def reshape(self, array: Array, shape: Sequence[int]) -> Array: ...

    def expand(self, array: Array, shape: Sequence[int]) -> Array:
        """Repeat sides of 1."""
        ...

    def concatenate(self, arrays: Sequence[Array], axis: int) -> Array: ...

    def slice(
        self,
        array: Array,
        shape: Sequence[int],
        start: Sequence[int],
        stop: Sequence[int],
        step: Sequence[int],
    ) -> Array:
        """A part of an array of this shape, with limits for each axis."""
        ...

    def reverse(self, array: Array, axes: Sequence[int]) -> Array: ...

    def pad(self, array: Array, low: Sequence[int], high: Sequence[int], value: Array) -> Array:
        """Pad; negative widths cut."""
        ...

    def reduce(self, name: str, array: Array, axes: Sequence[int]) -> Array:
        """JAX's `reduce_sum` or another reduction, by name."""
        ...

    def matmul(self, first: Array, second: Array) -> Array: ...

    def convolution(
        self,
        array: Array,
        kernel: Array,
        strides: Sequence[int],
        low: Sequence[int],
        high: Sequence[int],
        dilations: Sequence[int],
    ) -> Array:
        """Convolve with zeros around; the kernel is (out, in, x, y, z)."""
        ...

    def conv_transpose_2(self, array: Array, kernel: Array) -> Array:
        """Transposed convolution of stride 2 without padding; the kernel is (in, out, 2, 2, 2)."""
        ...

    def max_pool_2(self, array: Array, axes: int) -> Array:
        """The maxima of blocks of 2 voxels a side."""
        ...

    def group_norm(self, array: Array, scale: Array, bias: Array, groups: int) -> Array: ...


class Node:
    """An array of a graph, with its axes in some order.

    Axis i of `output` is axis `order[i]` of the array of this `shape`. Along `repeated` axes the
    output has one element for all, which is enough for broadcasting.
    """

    def __init__(
        self,
        to: Operations,
        output: Array,
        shape: Sequence[int],
        order: Sequence[int] | None = None,
        repeated: Collection[int] = (),
    ):
        self.to, self.output, self.shape = to, output, tuple(int(n) for n in shape)
        self.order = tuple(range(len(self.shape)) if order is None else order)
        self.repeated = frozenset(repeated)

    def loose(self, order: Sequence[int]) -> Array:
        """The output with its axes in this order; repeated axes stay at one element."""
        if tuple(order) == self.order:
            return self.output
        return self.to.transpose(self.output, [self.order.index(axis) for axis in order])

    def turned(self, order: Sequence[int]) -> Array:
        """The whole array with its axes in this order."""
        made = self.loose(order)
        return self.to.expand(made, [self.shape[axis] for axis in order]) if self.repeated else made

    @property
    def plain(self) -> Array:
        """The whole array with its axes in JAX's order."""
        return self.turned(range(len(self.shape)))

    @property
    def whole(self) -> Array:
        """The whole array with its axes in the output's order."""
        return self.turned(self.order)
