"""A jaxpr as a graph of OpenVINO; see `translation`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import openvino
from openvino import opset13

from jaxmark.core.normalization import EPSILON
from jaxmark.inference.graph import Node, Unknown
from jaxmark.inference.translation import Translation

# OpenVINO's type stubs lack most of its functions.
runtime: Any = openvino
ops: Any = opset13


def compiled(closed: Any, inputs: Sequence[Any], precision: str) -> Callable[..., list[np.ndarray]]:
    """A function that computes a closed jaxpr on the CPU.

    Args:
      inputs: for each input of the jaxpr a constant array, or None for an argument of the function.
      precision: "f32" or "bf16", of products; results are float32.

    Raises:
      Unknown: the jaxpr holds an operation that is not translated.
    """
    by = Translation(OpenVINO())
    parameters, values = [], []
    for var, value in zip(closed.jaxpr.invars, inputs, strict=True):
        if value is None:
            parameters.append(ops.parameter(list(var.aval.shape), np.dtype(var.aval.dtype)))
            value = Node(by.to, parameters[-1], var.aval.shape)
        values.append(value)
    made = [by.node(value) for value in by.translated(closed, values)]
    model = runtime.Model([ops.result(node.plain) for node in made], parameters)
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = runtime.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(*arrays: Any) -> list[np.ndarray]:
        results = request.infer([np.asarray(array) for array in arrays])
        # Copies, since the next call writes over the results.
        return [np.array(results[number]) for number in range(len(made))]

    return run


class OpenVINO:
    """See `graph.Operations`."""

    def fixed(self, shape: Sequence[int]) -> bool:
        return True

    def constant(self, array: np.ndarray) -> Any:
        return ops.constant(array)

    def elementwise(self, name: str, *arrays: Any) -> Any:
        if name == "rsqrt":
            return ops.power(*arrays, ops.constant(np.float32(-0.5)))
        if name not in _ELEMENTWISE:
            raise Unknown(name)
        return _ELEMENTWISE[name](*arrays)

    def convert(self, array: Any, dtype: np.dtype) -> Any:
        return ops.convert(array, dtype.name)

    def select(self, which: Any, yes: Any, no: Any) -> Any:
        return ops.select(which, yes, no)

    def transpose(self, array: Any, order: Sequence[int]) -> Any:
        return ops.transpose(array, _whole(order))

    def reshape(self, array: Any, shape: Sequence[int]) -> Any:
        return ops.reshape(array, _whole(shape), False)

    def expand(self, array: Any, shape: Sequence[int]) -> Any:
        return ops.broadcast(array, _whole(shape))

    def concatenate(self, arrays: Sequence[Any], axis: int) -> Any:
        return ops.concat(list(arrays), axis)

    def slice(
        self,
        array: Any,
        shape: Sequence[int],
        start: Sequence[int],
        stop: Sequence[int],
        step: Sequence[int],
    ) -> Any:
        return ops.slice(
            array, _whole(start), _whole(stop), _whole(step), _whole(range(len(shape)))
        )

    def reverse(self, array: Any, axes: Sequence[int]) -> Any:
        # A slice with step -1, from the last element to before the first.
        last, before = [-1] * len(axes), [np.iinfo(np.int32).min] * len(axes)
        return ops.slice(array, _whole(last), _whole(before), _whole(last), _whole(axes))

    def pad(self, array: Any, low: Sequence[int], high: Sequence[int], value: Any) -> Any:
        return ops.pad(array, _whole(low), _whole(high), "constant", value)

    def reduce(self, name: str, array: Any, axes: Sequence[int]) -> Any:
        return getattr(ops, name)(array, _whole(axes), False)

    def matmul(self, first: Any, second: Any) -> Any:
        return ops.matmul(first, second, False, False)

    def convolution(
        self,
        array: Any,
        kernel: Any,
        strides: Sequence[int],
        low: Sequence[int],
        high: Sequence[int],
        dilations: Sequence[int],
    ) -> Any:
        return ops.convolution(array, kernel, strides, low, high, dilations)

    def conv_transpose_2(self, array: Any, kernel: Any) -> Any:
        axes = len(kernel.get_output_shape(0)) - 2
        two, one, none = [2] * axes, [1] * axes, [0] * axes
        return ops.convolution_backprop_data(
            array, kernel, two, pads_begin=none, pads_end=none, dilations=one
        )

    def max_pool_2(self, array: Any, axes: int) -> Any:
        two, one, none = [2] * axes, [1] * axes, [0] * axes
        return ops.max_pool(array, two, one, none, none, two).output(0)

    def group_norm(self, array: Any, scale: Any, bias: Any, groups: int) -> Any:
        return ops.group_normalization(array, scale, bias, groups, EPSILON)


def _whole(numbers: Iterable[int]) -> Any:
    return ops.constant(np.array([int(number) for number in numbers], np.int64))


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": ops.add,
    "sub": ops.subtract,
    "mul": ops.multiply,
    "div": ops.divide,
    "max": ops.maximum,
    "min": ops.minimum,
    "pow": ops.power,
    "gt": ops.greater,
    "ge": ops.greater_equal,
    "lt": ops.less,
    "le": ops.less_equal,
    "exp": ops.exp,
    "log": ops.log,
    "neg": ops.negative,
    "abs": ops.abs,
    "tanh": ops.tanh,
    "sqrt": ops.sqrt,
    "logistic": ops.sigmoid,
}
