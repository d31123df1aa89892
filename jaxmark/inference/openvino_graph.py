"""A jaxpr as a graph of OpenVINO, operation by operation.

OpenVINO keeps channels before the axes of space, JAX's volumes have them last. So a `Node` knows in
which order its axes stand, and is turned only where an operation needs another order. Where what is
computed has a name of its own in OpenVINO (group normalisation, pooling, transposed convolution),
that is taken instead of the parts that JAX makes of it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import openvino
from jax.extend import core as jex
from openvino import opset13

from jaxmark.core.normalization import EPSILON

# Its own types lack most of what it has.
runtime: Any = openvino
ops: Any = opset13


class Unknown(ValueError):
    """An operation that is not translated; its name is the message."""


class Node:
    """An array of a graph, with its axes in some order.

    Axis i of `output` is axis `order[i]` of the array of this `shape`.
    """

    def __init__(self, output: Any, shape: Sequence[int], order: Sequence[int] | None = None):
        self.output, self.shape = output, tuple(int(n) for n in shape)
        self.order = tuple(range(len(self.shape)) if order is None else order)

    def turned(self, order: Sequence[int]) -> Any:
        """The output with its axes in this order."""
        if tuple(order) == self.order:
            return self.output
        return ops.transpose(self.output, _whole(self.order.index(axis) for axis in order))

    @property
    def plain(self) -> Any:
        """The output with its axes as the array has them."""
        return self.turned(range(len(self.shape)))


Value = Any  # a Node, or an array that does not depend on the graph's inputs


def compiled(closed: Any, inputs: Sequence[Any], precision: str) -> Callable[..., list[np.ndarray]]:
    """What computes a closed jaxpr on the CPU.

    Args:
      inputs: one for each of its inputs: an array that stays, or None of one that is given to the
        function.
      precision: "f32" or "bf16", of products; results are float32.

    Raises:
      Unknown: the jaxpr holds an operation that is not translated.
    """
    parameters, values = [], []
    for var, value in zip(closed.jaxpr.invars, inputs, strict=True):
        if value is None:
            parameters.append(ops.parameter(list(var.aval.shape), np.dtype(var.aval.dtype)))
            value = Node(parameters[-1], var.aval.shape)
        values.append(value)
    made = [_node(value) for value in translated(closed, values)]
    model = runtime.Model([ops.result(node.plain) for node in made], parameters)
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = runtime.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(*arrays: Any) -> list[np.ndarray]:
        results = request.infer([np.asarray(array) for array in arrays])
        # The next call writes over them.
        return [np.array(results[number]) for number in range(len(made))]

    return run


def translated(closed: Any, values: Sequence[Value]) -> list[Value]:
    """What a closed jaxpr makes of nodes and arrays."""
    known: dict[Any, Value] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    known.update(zip(closed.jaxpr.invars, values, strict=True))

    def value_of(var: Any) -> Value:
        return var.val if isinstance(var, jex.Literal) else known[var]

    for equation in closed.jaxpr.eqns:
        made = _made(equation, [value_of(var) for var in equation.invars])
        known.update(zip(equation.outvars, made, strict=True))
    return [value_of(var) for var in closed.jaxpr.outvars]


def _made(equation: Any, values: Sequence[Value]) -> list[Value]:
    """What an equation makes."""
    name, settings = equation.primitive.name, equation.params
    if name == "platform_index":
        # The textbook's form, which stands for all platforms that have none of their own.
        return [settings["platforms"].index(None)]
    if name == "cond":
        return translated(settings["branches"][int(values[0])], values[1:])
    if not any(isinstance(value, Node) for value in values):
        made = equation.primitive.bind(*(jnp.asarray(value) for value in values), **settings)
        return [
            np.asarray(array) for array in (made if equation.primitive.multiple_results else [made])
        ]
    inner = settings.get("jaxpr", settings.get("call_jaxpr"))
    if name in ("checkpoint", "remat2"):
        return translated(jex.ClosedJaxpr(inner, ()), values)
    if name in ("jit", "pjit", "custom_vjp_call", "custom_jvp_call", "closed_call"):
        own = _NAMED.get(inner.jaxpr.debug_info.func_name)
        return [own(inner, *values)] if own else translated(inner, values)
    rule = _RULES.get(name)
    if rule is None:
        raise Unknown(name)
    return [rule(equation, *values)]


def _constant(array: Any) -> Any:
    return ops.constant(np.ascontiguousarray(array))


def _whole(numbers: Iterable[int]) -> Any:
    return _constant(np.array([int(number) for number in numbers], np.int64))


def _node(value: Value) -> Node:
    return value if isinstance(value, Node) else Node(_constant(value), np.shape(value))


def _at(value: Value, order: Sequence[int]) -> Any:
    """A value's output with its axes in this order, or as they are if it has fewer."""
    if isinstance(value, Node):
        return value.turned(order) if len(value.shape) == len(order) else value.plain
    array = np.asarray(value)
    return _constant(array.transpose(order) if array.ndim == len(order) else array)


def _channels_first(axes: int) -> tuple[int, ...]:
    return (0, axes - 1, *range(1, axes - 1))


def _group_norm(inner: Any, x: Node, scale: Value, bias: Value) -> Node:
    """`core.normalization.group_norm`."""
    order = _channels_first(len(x.shape))
    # (2, B, groups, channels of a group)
    group = next(e.params["new_sizes"] for e in inner.jaxpr.eqns if e.primitive.name == "reshape")[
        -1
    ]
    groups = x.shape[-1] // group
    scale, bias = (_node(value).plain for value in (scale, bias))
    return Node(
        ops.group_normalization(x.turned(order), scale, bias, groups, EPSILON), x.shape, order
    )


def _max_pool_2(_: Any, x: Node) -> Node:
    """`core.conv.max_pool_2`."""
    axes = len(x.shape) - 2
    two, one, none = [2] * axes, [1] * axes, [0] * axes
    order = _channels_first(len(x.shape))
    pooled = ops.max_pool(x.turned(order), two, one, none, none, two)
    return Node(
        pooled.output(0), (x.shape[0], *(n // 2 for n in x.shape[1:-1]), x.shape[-1]), order
    )


def _conv_transpose_2(_: Any, x: Node, kernel: Value) -> Node:
    """`core.conv.conv_transpose_2`."""
    axes = len(x.shape) - 2
    two, one, none = [2] * axes, [1] * axes, [0] * axes
    order = _channels_first(len(x.shape))
    # (2, 2, 2, in, out) to (in, out, 2, 2, 2)
    turned = _constant(np.moveaxis(np.asarray(kernel), (-2, -1), (0, 1)))
    made = ops.convolution_backprop_data(
        x.turned(order), turned, two, pads_begin=none, pads_end=none, dilations=one
    )
    shape = (x.shape[0], *(2 * n for n in x.shape[1:-1]), np.shape(kernel)[-1])
    return Node(made, shape, order)


def _matmul(_: Any, x: Node, weight: Value) -> Node:
    """Products with a matrix (in, out); in space they are a convolution of one voxel."""
    shape = (*x.shape[:-1], np.shape(weight)[-1])
    axes = len(x.shape) - 2
    if axes not in (1, 2, 3) or isinstance(weight, Node):
        return Node(ops.matmul(x.plain, _node(weight).plain, False, False), shape)
    order = _channels_first(len(x.shape))
    turned = np.asarray(weight).T
    kernel = _constant(turned.reshape(*turned.shape, *(1,) * axes))
    one, none = [1] * axes, [0] * axes
    return Node(ops.convolution(x.turned(order), kernel, one, none, none, one), shape, order)


# Functions by their own names: what OpenVINO has an operation for.
_NAMED: dict[str, Callable[..., Node]] = {
    "group_norm": _group_norm,
    "max_pool_2": _max_pool_2,
    "conv_transpose_2": _conv_transpose_2,
    "matmul": _matmul,
}


def _pairwise(operation: Callable[..., Any]) -> Callable[..., Node]:
    def rule(equation: Any, first: Value, second: Value) -> Node:
        shape = equation.outvars[0].aval.shape
        nodes = [value for value in (first, second) if isinstance(value, Node)]
        order = max(nodes, key=lambda node: int(np.prod(node.shape))).order
        order = order if len(order) == len(shape) else tuple(range(len(shape)))
        return Node(operation(_at(first, order), _at(second, order)), shape, order)

    return rule


def _single(operation: Callable[[Any], Any]) -> Callable[..., Node]:
    return lambda equation, x: Node(operation(x.output), x.shape, x.order)


def _power(equation: Any, x: Node) -> Node:
    exponent = np.asarray(equation.params["y"], np.float32)
    return Node(ops.power(x.output, _constant(exponent)), x.shape, x.order)


def _convert(equation: Any, x: Node) -> Node:
    return Node(
        ops.convert(x.output, np.dtype(equation.params["new_dtype"]).name), x.shape, x.order
    )


def _reduce(operation: Callable[..., Any]) -> Callable[..., Node]:
    def rule(equation: Any, x: Node) -> Node:
        axes = equation.params["axes"]
        made = operation(x.output, _whole(x.order.index(axis) for axis in axes), False)
        left = [axis for axis in x.order if axis not in axes]
        order = [sorted(left).index(axis) for axis in left]
        return Node(made, equation.outvars[0].aval.shape, order)

    return rule


def _transpose(equation: Any, x: Node) -> Node:
    permutation = equation.params["permutation"]
    order = [permutation.index(axis) for axis in x.order]
    return Node(x.output, equation.outvars[0].aval.shape, order)


def _concatenate(equation: Any, *values: Value) -> Node:
    order = next(value for value in values if isinstance(value, Node)).order
    parts = [_at(value, order) for value in values]
    axis = order.index(equation.params["dimension"])
    return Node(ops.concat(parts, axis), equation.outvars[0].aval.shape, order)


def _stack(equation: Any, *values: Value) -> Node:
    axis = equation.params["axis"]
    parts = [ops.unsqueeze(_node(value).plain, _whole([axis])) for value in values]
    return Node(ops.concat(parts, axis), equation.outvars[0].aval.shape)


def _slice(equation: Any, x: Node) -> Node:
    settings, axes = equation.params, range(len(x.shape))
    steps = settings["strides"] or [1] * len(x.shape)
    start, stop, step = (
        _whole(bounds[axis] for axis in x.order)
        for bounds in (settings["start_indices"], settings["limit_indices"], steps)
    )
    made = ops.slice(x.output, start, stop, step, _whole(axes))
    return Node(made, equation.outvars[0].aval.shape, x.order)


def _pad(equation: Any, x: Node, value: Value) -> Node:
    widths = equation.params["padding_config"]
    if any(inside for _, _, inside in widths):
        raise Unknown("pad between elements")
    low, high = (_whole(widths[axis][side] for axis in x.order) for side in (0, 1))
    # Negative widths cut.
    made = ops.pad(x.output, low, high, "constant", _node(value).plain)
    return Node(made, equation.outvars[0].aval.shape, x.order)


def _reshape(equation: Any, x: Node) -> Node:
    sizes = equation.params["new_sizes"]
    return Node(ops.reshape(x.plain, _whole(sizes), False), sizes)


def _squeeze(equation: Any, x: Node) -> Node:
    made = ops.squeeze(x.plain, _whole(equation.params["dimensions"]))
    return Node(made, equation.outvars[0].aval.shape)


def _broadcast(equation: Any, x: Node) -> Node:
    shape = equation.params["shape"]
    sizes = [1] * len(shape)
    for axis, size in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        sizes[axis] = size
    made = ops.reshape(x.plain, _whole(sizes), False)
    return Node(made if tuple(sizes) == tuple(shape) else ops.broadcast(made, _whole(shape)), shape)


def _convolution(equation: Any, x: Value, kernel: Value) -> Node:
    settings = equation.params
    numbers = settings["dimension_numbers"]
    groups = settings["feature_group_count"], settings["batch_group_count"]
    if groups != (1, 1) or any(n != 1 for n in settings["lhs_dilation"]):
        raise Unknown("convolution with groups, or of a dilated array")
    low, high = ([int(pair[side]) for pair in settings["padding"]] for side in (0, 1))
    made = ops.convolution(
        _node(x).turned(numbers.lhs_spec),
        _at(kernel, numbers.rhs_spec),
        list(settings["window_strides"]),
        low,
        high,
        list(settings["rhs_dilation"]),
    )
    return Node(made, equation.outvars[0].aval.shape, numbers.out_spec)


def _dot_general(equation: Any, first: Value, second: Value) -> Node:
    contracted, batch = equation.params["dimension_numbers"]
    if batch[0]:
        raise Unknown("a product with a batch of matrices")
    left, right = _node(first), _node(second)
    if (list(contracted[0]), list(contracted[1])) == ([len(left.shape) - 1], [0]):
        if len(right.shape) == 2 and not isinstance(second, Node):
            return _matmul(None, left, second)
    rows, columns = (
        [axis for axis in range(len(node.shape)) if axis not in axes]
        for node, axes in zip((left, right), contracted, strict=True)
    )
    inner = math.prod(left.shape[axis] for axis in contracted[0])
    matrices = (
        ops.reshape(left.turned([*rows, *contracted[0]]), _whole([-1, inner]), False),
        ops.reshape(right.turned([*contracted[1], *columns]), _whole([inner, -1]), False),
    )
    shape = equation.outvars[0].aval.shape
    return Node(ops.reshape(ops.matmul(*matrices, False, False), _whole(shape), False), shape)


def _reverse(equation: Any, x: Node) -> Node:
    axes = [x.order.index(axis) for axis in equation.params["dimensions"]]
    # From the last on, to before the first: as a negative number that is one beyond.
    last, before = [-1] * len(axes), [-1 - x.shape[x.order[axis]] for axis in axes]
    made = ops.slice(x.output, _whole(last), _whole(before), _whole(last), _whole(axes))
    return Node(made, x.shape, x.order)


def _select(equation: Any, which: Value, *cases: Value) -> Node:
    if len(cases) != 2:
        raise Unknown("a choice between more than two")
    order = next(value for value in (which, *cases) if isinstance(value, Node)).order
    no, yes = (_at(value, order) for value in cases)
    return Node(ops.select(_at(which, order), yes, no), equation.outvars[0].aval.shape, order)


_RULES: dict[str, Callable[..., Node]] = {
    "add": _pairwise(ops.add),
    "sub": _pairwise(ops.subtract),
    "mul": _pairwise(ops.multiply),
    "div": _pairwise(ops.divide),
    "max": _pairwise(ops.maximum),
    "min": _pairwise(ops.minimum),
    "gt": _pairwise(ops.greater),
    "ge": _pairwise(ops.greater_equal),
    "lt": _pairwise(ops.less),
    "select_n": _select,
    "exp": _single(ops.exp),
    "log": _single(ops.log),
    "neg": _single(ops.negative),
    "abs": _single(ops.abs),
    "tanh": _single(ops.tanh),
    "sqrt": _single(ops.sqrt),
    "logistic": _single(ops.sigmoid),
    "stop_gradient": _single(lambda output: output),
    "copy": _single(lambda output: output),
    "rsqrt": _single(lambda output: ops.power(output, _constant(np.float32(-0.5)))),
    "square": _single(lambda output: ops.multiply(output, output)),
    "integer_pow": _power,
    "convert_element_type": _convert,
    "reduce_sum": _reduce(ops.reduce_sum),
    "reduce_max": _reduce(ops.reduce_max),
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "rev": _reverse,
}
