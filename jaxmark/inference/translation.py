"""A jaxpr as a graph of another library, operation by operation; see `graph`.

Functions for which libraries have one operation (group normalisation, pooling, transposed
convolution) are translated whole, not as the parts of which JAX computes them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from jaxmark.inference.graph import Array, Node, Operations, Unknown

Value = Any  # a Node, or an array that does not depend on the graph's inputs
# A broadcast to more elements than this stays an operation of the graph.
_MOST_ELEMENTS = 4096
# (translation, equation, inputs) -> one output or several.
Rule = Callable[..., Any]


Library = TypeVar("Library", bound=Operations)


class Translation(Generic[Library]):
    """Translates jaxprs to a library's graph.

    `more`: name of a JAX primitive -> rule, in addition to `RULES`.
    """

    def __init__(self, to: Library, more: Mapping[str, Rule] | None = None):
        self.to, self._rules = to, {**RULES, **(more or {})}

    def translated(self, closed: Any, values: Sequence[Value]) -> list[Value]:
        """The outputs of a closed jaxpr for these inputs, nodes or arrays.

        Raises:
          Unknown: the jaxpr holds an operation that is not translated.
        """
        known: dict[Any, Value] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        known.update(zip(closed.jaxpr.invars, values, strict=True))

        def value_of(var: Any) -> Value:
            return _literal(var) if isinstance(var, jex.Literal) else known[var]

        for equation in closed.jaxpr.eqns:
            made = self._made(equation, [value_of(var) for var in equation.invars])
            known.update(zip(equation.outvars, made, strict=True))
        return [value_of(var) for var in closed.jaxpr.outvars]

    def node(self, value: Value) -> Node:
        """The value as a part of the graph."""
        if isinstance(value, Node):
            return value
        return Node(self.to, self.constant(value), np.shape(value))

    def constant(self, array: Any) -> Array:
        """A constant of the graph."""
        return self.to.constant(np.ascontiguousarray(array).reshape(np.shape(array)))

    def at(self, value: Value, order: Sequence[int]) -> Array:
        """A value's output with its axes in this order, or unchanged if it has fewer axes.

        Along some axes it may have one element for all.
        """
        if isinstance(value, Node):
            return value.loose(order) if len(value.shape) == len(order) else value.plain
        array = np.asarray(value)
        return self.constant(array.transpose(order) if array.ndim == len(order) else array)

    def whole(self, value: Value, order: Sequence[int]) -> Array:
        """As `at`, with all elements."""
        return value.turned(order) if isinstance(value, Node) else self.at(value, order)

    def _made(self, equation: Any, values: Sequence[Value]) -> Sequence[Value]:
        """The outputs of an equation."""
        name, settings = equation.primitive.name, equation.params
        if name == "platform_index":
            # None is the default, for platforms without a special form.
            return [settings["platforms"].index(None)]
        if name == "cond":
            return self.translated(settings["branches"][int(values[0])], values[1:])
        inner = settings.get("jaxpr", settings.get("call_jaxpr"))
        if name in ("checkpoint", "remat2"):
            return self.translated(jex.ClosedJaxpr(inner, ()), values)
        if not any(isinstance(value, Node) for value in values):
            if all(self._is_constant(name, var.aval.shape) for var in equation.outvars):
                return _computed(equation, values)
        if name in ("jit", "pjit", "custom_vjp_call", "custom_jvp_call", "closed_call"):
            own = NAMED.get(inner.jaxpr.debug_info.func_name)
            return [own(self, inner, *values)] if own else self.translated(inner, values)
        rule = self._rules.get(name)
        if rule is None:
            raise Unknown(name)
        made = rule(self, equation, *values)
        return made if isinstance(made, list) else [made]

    def _is_constant(self, name: str, shape: Sequence[int]) -> bool:
        """Whether an equation without graph inputs is computed now; a large broadcast is not."""
        large = name == "broadcast_in_dim" and math.prod(shape) > _MOST_ELEMENTS
        return self.to.fixed(shape) and not large


def _literal(var: Any) -> np.ndarray:
    return np.asarray(var.val, var.aval.dtype)


def _computed(equation: Any, values: Sequence[Value]) -> list[Value]:
    """The outputs of an equation, computed by JAX now."""
    made = equation.primitive.bind(*(jnp.asarray(value) for value in values), **equation.params)
    return [
        np.asarray(array) for array in (made if equation.primitive.multiple_results else [made])
    ]


def _channels_first(axes: int) -> tuple[int, ...]:
    return (0, axes - 1, *range(1, axes - 1))


def _group_norm(by: Translation[Any], inner: Any, x: Node, scale: Value, bias: Value) -> Node:
    """`core.normalization.group_norm`."""
    order = _channels_first(len(x.shape))
    # (2, B, groups, channels of a group)
    group = next(e.params["new_sizes"] for e in inner.jaxpr.eqns if e.primitive.name == "reshape")[
        -1
    ]
    groups = x.shape[-1] // group
    made = by.to.group_norm(x.turned(order), by.node(scale).plain, by.node(bias).plain, groups)
    return Node(by.to, made, x.shape, order)


def _max_pool_2(by: Translation[Any], _: Any, x: Node) -> Node:
    """`core.conv.max_pool_2`."""
    axes, order = len(x.shape) - 2, _channels_first(len(x.shape))
    shape = (x.shape[0], *(n // 2 for n in x.shape[1:-1]), x.shape[-1])
    return Node(by.to, by.to.max_pool_2(x.turned(order), axes), shape, order)


def _conv_transpose_2(by: Translation[Any], _: Any, x: Node, kernel: Value) -> Node:
    """`core.conv.conv_transpose_2`."""
    order = _channels_first(len(x.shape))
    # (2, 2, 2, in, out) to (in, out, 2, 2, 2)
    turned = by.constant(np.moveaxis(np.asarray(kernel), (-2, -1), (0, 1)))
    shape = (x.shape[0], *(2 * n for n in x.shape[1:-1]), np.shape(kernel)[-1])
    return Node(by.to, by.to.conv_transpose_2(x.turned(order), turned), shape, order)


def _matmul(by: Translation[Any], _: Any, x: Value, weight: Value) -> Node:
    """Products with a matrix (in, out); for volumes a convolution with a kernel of one voxel."""
    x = by.node(x)
    shape = (
        *x.shape[:-1],
        np.shape(weight)[-1] if not isinstance(weight, Node) else weight.shape[-1],
    )
    axes = len(x.shape) - 2
    if axes not in (1, 2, 3) or isinstance(weight, Node):
        return Node(by.to, by.to.matmul(x.plain, by.node(weight).plain), shape)
    order = _channels_first(len(x.shape))
    turned = np.asarray(weight).T
    kernel = by.constant(turned.reshape(*turned.shape, *(1,) * axes))
    one, none = [1] * axes, [0] * axes
    made = by.to.convolution(x.turned(order), kernel, one, none, none, one)
    return Node(by.to, made, shape, order)


# Named functions for which libraries have one operation.
NAMED: dict[str, Rule] = {
    "group_norm": _group_norm,
    "max_pool_2": _max_pool_2,
    "conv_transpose_2": _conv_transpose_2,
    "matmul": _matmul,
}


def _elementwise(by: Translation[Any], equation: Any, *values: Value) -> Node:
    shape = equation.outvars[0].aval.shape
    order = _order_of(values, len(shape))
    made = by.to.elementwise(equation.primitive.name, *(by.at(value, order) for value in values))
    return Node(by.to, made, shape, order, _repeated(values, len(shape)))


def _order_of(values: Sequence[Value], axes: int) -> tuple[int, ...]:
    """The order of the axes of the largest value with this number of axes."""
    nodes = [value for value in values if isinstance(value, Node) and len(value.shape) == axes]
    if not nodes:
        return tuple(range(axes))
    return max(
        nodes, key=lambda n: math.prod(n.shape[a] for a in n.order if a not in n.repeated)
    ).order


def _repeated(values: Sequence[Value], axes: int) -> frozenset[int]:
    """Axes along which every value has one element for all."""
    everywhere = frozenset(range(axes))
    for value in values:
        if isinstance(value, Node):
            everywhere &= value.repeated if len(value.shape) == axes else everywhere
        elif np.ndim(value) == axes:
            everywhere = frozenset()
    return everywhere


def _unchanged(by: Translation[Any], equation: Any, x: Node) -> Node:
    return x


def _power(by: Translation[Any], equation: Any, x: Node) -> Node:
    dtype = np.dtype(equation.invars[0].aval.dtype)
    exponent = by.constant(np.asarray(equation.params["y"], dtype))
    made = by.to.elementwise("pow", x.output, exponent)
    return Node(by.to, made, x.shape, x.order, x.repeated)


def _square(by: Translation[Any], equation: Any, x: Node) -> Node:
    made = by.to.elementwise("mul", x.output, x.output)
    return Node(by.to, made, x.shape, x.order, x.repeated)


def _convert(by: Translation[Any], equation: Any, x: Node) -> Node:
    dtype = np.dtype(equation.params["new_dtype"])
    return Node(by.to, by.to.convert(x.output, dtype), x.shape, x.order, x.repeated)


def _reduce(by: Translation[Any], equation: Any, x: Node) -> Node:
    axes = equation.params["axes"]
    places = [x.order.index(axis) for axis in axes]
    made = by.to.reduce(equation.primitive.name, x.whole, places)
    left = [axis for axis in x.order if axis not in axes]
    order = [sorted(left).index(axis) for axis in left]
    return Node(by.to, made, equation.outvars[0].aval.shape, order)


def _transpose(by: Translation[Any], equation: Any, x: Node) -> Node:
    permutation = equation.params["permutation"]
    order = [permutation.index(axis) for axis in x.order]
    repeated = [permutation.index(axis) for axis in x.repeated]
    return Node(by.to, x.output, equation.outvars[0].aval.shape, order, repeated)


def _concatenate(by: Translation[Any], equation: Any, *values: Value) -> Node:
    shape = equation.outvars[0].aval.shape
    order = _order_of(values, len(shape))
    # `jnp.pad` also joins empty arrays.
    filled = [value for value in values if 0 not in np.shape(value)]
    parts = [by.whole(value, order) for value in filled]
    axis = order.index(equation.params["dimension"])
    return Node(by.to, by.to.concatenate(parts, axis), shape, order)


def _stack(by: Translation[Any], equation: Any, *values: Value) -> Node:
    axis, shape = equation.params["axis"], equation.outvars[0].aval.shape
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [by.to.reshape(by.node(value).plain, one) for value in values]
    return Node(by.to, by.to.concatenate(parts, axis), shape)


def _slice(by: Translation[Any], equation: Any, x: Node) -> Node:
    settings = equation.params
    steps = settings["strides"] or [1] * len(x.shape)
    start, stop, step, shape = (
        [int(bounds[axis]) for axis in x.order]
        for bounds in (settings["start_indices"], settings["limit_indices"], steps, x.shape)
    )
    made = by.to.slice(x.whole, shape, start, stop, step)
    return Node(by.to, made, equation.outvars[0].aval.shape, x.order)


def _pad(by: Translation[Any], equation: Any, x: Node, value: Value) -> Node:
    widths = equation.params["padding_config"]
    if any(inside for _, _, inside in widths):
        raise Unknown("pad between elements")
    low, high = ([int(widths[axis][side]) for axis in x.order] for side in (0, 1))
    made = by.to.pad(x.whole, low, high, by.node(value).plain)
    return Node(by.to, made, equation.outvars[0].aval.shape, x.order)


def _reshape(by: Translation[Any], equation: Any, x: Node) -> Node:
    """Rule for `reshape` and `squeeze`."""
    shape = equation.outvars[0].aval.shape
    return Node(by.to, by.to.reshape(x.plain, shape), shape)


def _broadcast(by: Translation[Any], equation: Any, x: Value) -> Node:
    x, shape = by.node(x), equation.params["shape"]
    sizes = [1] * len(shape)
    for axis, size in enumerate(x.shape):
        if axis not in x.repeated:
            sizes[equation.params["broadcast_dimensions"][axis]] = size
    made = by.to.reshape(x.loose(range(len(x.shape))), sizes)
    repeated = [axis for axis, n in enumerate(shape) if n != sizes[axis]]
    return Node(by.to, made, shape, repeated=repeated)


def _convolution(by: Translation[Any], equation: Any, x: Value, kernel: Value) -> Node:
    settings = equation.params
    numbers = settings["dimension_numbers"]
    groups = settings["feature_group_count"], settings["batch_group_count"]
    if groups != (1, 1) or any(n != 1 for n in settings["lhs_dilation"]):
        raise Unknown("convolution with groups, or of a dilated array")
    low, high = ([int(pair[side]) for pair in settings["padding"]] for side in (0, 1))
    made = by.to.convolution(
        by.node(x).turned(numbers.lhs_spec),
        by.whole(kernel, numbers.rhs_spec),
        list(settings["window_strides"]),
        low,
        high,
        list(settings["rhs_dilation"]),
    )
    return Node(by.to, made, equation.outvars[0].aval.shape, numbers.out_spec)


def _dot_general(by: Translation[Any], equation: Any, first: Value, second: Value) -> Node:
    """Products of matrices, one for each element of the batch axes, if there are any."""
    contracted, batch = equation.params["dimension_numbers"]
    left, right = by.node(first), by.node(second)
    if not batch[0] and (list(contracted[0]), list(contracted[1])) == ([len(left.shape) - 1], [0]):
        if len(right.shape) == 2 and not isinstance(second, Node):
            return _matmul(by, None, left, second)
    rows, columns = (
        [axis for axis in range(len(node.shape)) if axis not in (*inner, *many)]
        for node, inner, many in zip((left, right), contracted, batch, strict=True)
    )
    matrices = (
        _flattened(left, batch[0], rows, contracted[0]),
        _flattened(right, batch[1], contracted[1], columns),
    )
    shape = equation.outvars[0].aval.shape
    return Node(by.to, by.to.reshape(by.to.matmul(*matrices), shape), shape)


def _flattened(node: Node, *groups: Sequence[int]) -> Array:
    """The array with its axes in this order, and the axes of each group flattened into one."""
    shape = [math.prod(node.shape[axis] for axis in group) for group in groups]
    order = [axis for group in groups for axis in group]
    return node.to.reshape(node.turned(order), shape if groups[0] else shape[1:])


def _reverse(by: Translation[Any], equation: Any, x: Node) -> Node:
    axes = [x.order.index(axis) for axis in equation.params["dimensions"]]
    return Node(by.to, by.to.reverse(x.whole, axes), x.shape, x.order)


def _select(by: Translation[Any], equation: Any, which: Value, *cases: Value) -> Node:
    if len(cases) != 2:
        raise Unknown("a choice between more than two")
    shape = equation.outvars[0].aval.shape
    order = _order_of((which, *cases), len(shape))
    no, yes = (by.at(value, order) for value in cases)
    made = by.to.select(by.at(which, order), yes, no)
    return Node(by.to, made, shape, order, _repeated((which, *cases), len(shape)))


_ELEMENTWISE: tuple[str, ...] = (
    "add",
    "sub",
    "mul",
    "div",
    "max",
    "min",
    "gt",
    "ge",
    "lt",
    "le",
    "eq",
    "ne",
)
_ELEMENTWISE += ("and", "or", "not", "rem", "exp", "log", "neg", "abs", "tanh", "sqrt", "logistic")
_ELEMENTWISE += ("rsqrt", "sign", "floor", "round", "expm1", "log1p", "is_finite")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "select_n": _select,
    "stop_gradient": _unchanged,
    "copy": _unchanged,
    "square": _square,
    "integer_pow": _power,
    "convert_element_type": _convert,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _reduce),
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "rev": _reverse,
}
