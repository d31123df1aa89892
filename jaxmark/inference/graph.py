"""What a graph of another library is made of: its operations, and arrays with axes in some order.

Such libraries keep channels before the axes of space, JAX's volumes have them last. So a `Node`
knows in which order its axes stand, and is turned only where an operation needs another order.
`openvino_graph` and `onnx_graph` have such `Operations`; `translation` makes graphs of jaxprs.
"""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

Array = Any  # of a graph, as its library knows it


class Unknown(ValueError):
    """An operation that is not translated; its name is the message."""


class Operations(Protocol):
    """What a library has. Volumes are (B, C, X, Y, Z) here, pictures (B, C, X, Y)."""

    def fixed(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape can be a constant; not where a side is not known."""
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
        """Sides of 1 repeated."""
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
        """Part of an array of this shape, along each of its axes."""
        ...

    def reverse(self, array: Array, axes: Sequence[int]) -> Array: ...

    def pad(self, array: Array, low: Sequence[int], high: Sequence[int], value: Array) -> Array:
        """Negative widths cut."""
        ...

    def reduce(self, name: str, array: Array, axes: Sequence[int]) -> Array:
        """JAX's `reduce_sum` or the like."""
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
        """With zeros around; the kernel is (out, in, x, y, z)."""
        ...

    def conv_transpose_2(self, array: Array, kernel: Array) -> Array:
        """Stride 2, without padding; the kernel is (in, out, 2, 2, 2)."""
        ...

    def max_pool_2(self, array: Array, axes: int) -> Array:
        """Of blocks of 2 voxels a side."""
        ...

    def group_norm(self, array: Array, scale: Array, bias: Array, groups: int) -> Array: ...


class Node:
    """An array of a graph, with its axes in some order.

    Axis i of `output` is axis `order[i]` of the array of this `shape`. Along `repeated` axes the
    output has one element, which stands for all: operations on pairs need no more.
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
        """The output with its axes in this order, and as few elements as it has."""
        if tuple(order) == self.order:
            return self.output
        return self.to.transpose(self.output, [self.order.index(axis) for axis in order])

    def turned(self, order: Sequence[int]) -> Array:
        """The whole array with its axes in this order."""
        made = self.loose(order)
        return self.to.expand(made, [self.shape[axis] for axis in order]) if self.repeated else made

    @property
    def plain(self) -> Array:
        """The whole array with its axes as they are."""
        return self.turned(range(len(self.shape)))

    @property
    def whole(self) -> Array:
        """The whole array with its axes in its order."""
        return self.turned(self.order)
