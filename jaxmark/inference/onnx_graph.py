"""A jaxpr as a model in ONNX; see `translation`.

It translates whole programs, not only networks, so it adds rules for decoding to the common ones.
The batch may have any size. A program is traced with the size `BATCH`, a prime. A side of an array
that `BATCH` divides is then the batch or a multiple of it, since no side of a volume is as long.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jaxmark.core.normalization import EPSILON
from jaxmark.inference.graph import Node, Unknown
from jaxmark.inference.translation import Rule, Translation, Value

BATCH = 10007
# The first version whose GroupNormalization has scale and bias for channels.
OPSET = 21
_NAME = "batch"
_END = np.iinfo(np.int64).max


def model_of(
    program: Callable[..., Mapping[str, Any]],
    inputs: Mapping[str, tuple[int, ...]],
) -> onnx.ModelProto:
    """An ONNX model of a program on batches of float32 arrays.

    Args:
      program: takes an array for each of `inputs`, in order; returns arrays by name.
      inputs: name -> shape of one case.

    Raises:
      Unknown: the program holds an operation that is not translated.
    """
    shapes = [jax.ShapeDtypeStruct((BATCH, *shape), np.float32) for shape in inputs.values()]
    closed, made = jax.make_jaxpr(program, return_shape=True)(*shapes)
    by = Translation(to := ONNX(), DECODING)
    nodes = [Node(to, name, array.shape) for name, array in zip(inputs, shapes, strict=True)]
    to.first = nodes[0].output
    # JAX orders a dictionary's leaves by name.
    for name, value in zip(sorted(made), by.translated(closed, nodes), strict=True):
        to.name(by.node(value).plain, name)
    to.finish()
    graph = helper.make_graph(
        to.nodes,
        "jaxmark",
        [_value(name, shapes[i]) for i, name in enumerate(inputs)],
        [_value(name, made[name]) for name in sorted(made)],
        to.constants,
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, producer_name="jaxmark")
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(name: str, like: Any) -> onnx.ValueInfoProto:
    shape = [_NAME if n == BATCH else n for n in like.shape]
    return helper.make_tensor_value_info(name, _type(np.dtype(like.dtype)), shape)


def _type(dtype: np.dtype) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))


class ONNX:
    """See `graph.Operations`. Arrays are names; nodes and constants are collected."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.first = ""  # an input, whose first side is the batch
        self.named: dict[str, str] = {}  # output of the model -> array
        self._known: dict[tuple[Any, ...], str] = {}

    def add(self, operation: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """The last output of a new node, or of an equal node that exists already."""
        key = (operation, inputs, outputs, *sorted((k, str(v)) for k, v in attributes.items()))
        if key not in self._known:
            names = [f"{operation}_{len(self.nodes)}_{i}" for i in range(outputs)]
            self.nodes.append(helper.make_node(operation, list(inputs), names, **attributes))
            self._known[key] = names[-1]
        return self._known[key]

    def name(self, array: str, name: str) -> None:
        """Make an array the model's output with this name."""
        made = next((node for node in self.nodes if array in node.output), None)
        if made is None or array in self.named.values():
            self.nodes.append(helper.make_node("Identity", [array], [name]))
            self.named[name] = name
        else:
            self.named[name] = array

    def finish(self) -> None:
        """Keep only nodes that lead to the outputs, and name the outputs."""
        needed, nodes = set(self.named.values()), []
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.output):
                needed.update(node.input)
                nodes.append(node)
        self.nodes = nodes[::-1]
        self.constants = [constant for constant in self.constants if constant.name in needed]
        new = {array: name for name, array in self.named.items()}
        for node in self.nodes:
            for arrays in (node.input, node.output):
                arrays[:] = [new.get(array, array) for array in arrays]

    def fixed(self, shape: Sequence[int]) -> bool:
        return not any(map(_varies, shape))

    def constant(self, array: np.ndarray) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(np.asarray(array), self._known[key]))
        return self._known[key]

    def elementwise(self, name: str, *arrays: str) -> str:
        if name in _ELEMENTWISE:
            return self.add(_ELEMENTWISE[name], *arrays)
        one = self.constant(np.ones((), np.float32))
        if name == "ne":
            # `x != x` is true for NaN alone.
            if arrays[0] == arrays[1]:
                return self.add("IsNaN", arrays[0])
            return self.add("Not", self.add("Equal", *arrays))
        if name == "rem":
            return self.add("Mod", *arrays, fmod=1)
        if name == "rsqrt":
            return self.add("Reciprocal", self.add("Sqrt", *arrays))
        if name == "expm1":
            return self.add("Sub", self.add("Exp", *arrays), one)
        if name == "log1p":
            return self.add("Log", self.add("Add", *arrays, one))
        if name == "is_finite":
            other = self.add("Or", self.add("IsNaN", *arrays), self.add("IsInf", *arrays))
            return self.add("Not", other)
        raise Unknown(name)

    def convert(self, array: str, dtype: np.dtype) -> str:
        return self.add("Cast", array, to=_type(dtype))

    def select(self, which: str, yes: str, no: str) -> str:
        return self.add("Where", which, yes, no)

    def transpose(self, array: str, order: Sequence[int]) -> str:
        return self.add("Transpose", array, perm=[int(axis) for axis in order])

    def reshape(self, array: str, shape: Sequence[int]) -> str:
        sizes = [-1 if _varies(n) else n for n in shape]
        if sizes.count(-1) > 1:
            raise Unknown("reshape with the batch along two axes")
        return self.add("Reshape", array, self._whole(sizes))

    def expand(self, array: str, shape: Sequence[int]) -> str:
        sizes = self._whole(shape)
        if not self.fixed(shape):
            # (1,), the batch.
            batch = self.add("Shape", self.first, start=0, end=1)
            parts = [
                self.add("Mul", batch, self._whole([n // BATCH]))
                if _varies(n)
                else self._whole([n])
                for n in shape
            ]
            sizes = self.add("Concat", *parts, axis=0)
        return self.add("Expand", array, sizes)

    def concatenate(self, arrays: Sequence[str], axis: int) -> str:
        return self.add("Concat", *arrays, axis=axis)

    def slice(
        self,
        array: str,
        shape: Sequence[int],
        start: Sequence[int],
        stop: Sequence[int],
        step: Sequence[int],
    ) -> str:
        whole = zip([0] * len(shape), shape, [1] * len(shape), strict=True)
        asked = zip(start, stop, step, strict=True)
        pairs = zip(whole, asked, strict=True)
        axes = [axis for axis, (all_of_it, part) in enumerate(pairs) if all_of_it != part]
        if not axes:
            return array
        if any(_varies(shape[axis]) for axis in axes):
            raise Unknown("a part of a batch")
        bounds = (self._whole(values[axis] for axis in axes) for values in (start, stop))
        return self.add(
            "Slice", array, *bounds, self._whole(axes), self._whole(step[a] for a in axes)
        )

    def reverse(self, array: str, axes: Sequence[int]) -> str:
        last, before = [-1] * len(axes), [-_END] * len(axes)
        return self.add("Slice", array, *map(self._whole, (last, before, axes, last)))

    def pad(self, array: str, low: Sequence[int], high: Sequence[int], value: str) -> str:
        return self.add("Pad", array, self._whole([*low, *high]), value)

    def reduce(self, name: str, array: str, axes: Sequence[int]) -> str:
        return self.add(_REDUCTIONS[name], array, self._whole(sorted(axes)), keepdims=0)

    def matmul(self, first: str, second: str) -> str:
        return self.add("MatMul", first, second)

    def convolution(
        self,
        array: str,
        kernel: str,
        strides: Sequence[int],
        low: Sequence[int],
        high: Sequence[int],
        dilations: Sequence[int],
    ) -> str:
        return self.add(
            "Conv",
            array,
            kernel,
            strides=list(strides),
            pads=[*low, *high],
            dilations=list(dilations),
        )

    def conv_transpose_2(self, array: str, kernel: str) -> str:
        shape = next(c.dims for c in self.constants if c.name == kernel)
        return self.add("ConvTranspose", array, kernel, strides=[2] * (len(shape) - 2))

    def max_pool_2(self, array: str, axes: int) -> str:
        two = [2] * axes
        return self.add("MaxPool", array, kernel_shape=two, strides=two)

    def group_norm(self, array: str, scale: str, bias: str, groups: int) -> str:
        return self.add(
            "GroupNormalization", array, scale, bias, num_groups=groups, epsilon=EPSILON
        )

    def _whole(self, numbers: Any) -> str:
        return self.constant(np.array([int(number) for number in numbers], np.int64))


def _varies(side: int) -> bool:
    return side > 0 and side % BATCH == 0


_ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "lt": "Less",
    "le": "LessOrEqual",
    "eq": "Equal",
    "and": "And",
    "or": "Or",
    "not": "Not",
    "exp": "Exp",
    "log": "Log",
    "neg": "Neg",
    "abs": "Abs",
    "tanh": "Tanh",
    "sqrt": "Sqrt",
    "logistic": "Sigmoid",
    "sign": "Sign",
    "floor": "Floor",
    # ONNX rounds halves to even, as JAX does with TO_NEAREST_EVEN.
    "round": "Round",
}
_REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
}


def _argmax(by: Translation[ONNX], equation: Any, x: Node) -> Node:
    (axis,), to = equation.params["axes"], by.to
    made = to.add("ArgMax", x.plain, axis=axis, keepdims=0)
    made = to.convert(made, np.dtype(equation.params["index_dtype"]))
    return Node(to, made, equation.outvars[0].aval.shape)


def _sort(by: Translation[ONNX], equation: Any, x: Node) -> Node:
    axis, to = equation.params["dimension"], by.to
    count = to.constant(np.array([x.shape[axis]], np.int64))
    # Values, then indices.
    order = to.add("TopK", x.plain, count, outputs=2, axis=axis, largest=0)
    return Node(to, order.removesuffix("_1") + "_0", x.shape)


def _scan(by: Translation[ONNX], equation: Any, *values: Value) -> list[Value]:
    """The loop unrolled, step after step."""
    settings = equation.params
    fixed, carried = settings["num_consts"], settings["num_carry"]
    constants, state = values[:fixed], list(values[fixed : fixed + carried])
    rows: list[list[Value]] = []
    steps = range(settings["length"])
    for step in reversed(steps) if settings["reverse"] else steps:
        seen = [_row(by, value, step) for value in values[fixed + carried :]]
        made = by.translated(settings["jaxpr"], [*constants, *state, *seen])
        state = made[:carried]
        rows.append(made[carried:])
    if settings["reverse"]:
        rows.reverse()
    stacked = []
    for number, var in enumerate(equation.outvars[carried:]):
        shape = var.aval.shape
        parts = [by.to.reshape(by.node(row[number]).plain, (1, *shape[1:])) for row in rows]
        stacked.append(Node(by.to, by.to.concatenate(parts, 0), shape))
    return [*state, *stacked]


def _row(by: Translation[ONNX], value: Value, number: int) -> Value:
    """One element along the first axis."""
    if not isinstance(value, Node):
        return np.asarray(value)[number]
    shape, zeros, ones = value.shape, [0] * (len(value.shape) - 1), [1] * len(value.shape)
    made = by.to.slice(value.plain, shape, [number, *zeros], [number + 1, *shape[1:]], ones)
    return Node(by.to, by.to.reshape(made, shape[1:]), shape[1:])


def _gather(by: Translation[ONNX], equation: Any, x: Value, starts: Value) -> Node:
    """Boxes of an array, each from its own start; starts that are too far are moved back.

    Axes that boxes cover whole stay as they are; the others are flattened into one for the look-up.
    """
    numbers, sizes, to = equation.params["dimension_numbers"], equation.params["slice_sizes"], by.to
    x, batched = by.node(x), [int(axis) for axis in numbers.operand_batching_dims]
    if batched not in ([], [0]) or list(numbers.start_indices_batching_dims) != batched:
        raise Unknown("gather with a batch that is not the first axis")
    collapsed = {int(axis) for axis in numbers.collapsed_slice_dims}
    axes = [axis for axis in range(len(x.shape)) if axis not in batched]
    whole = [axis for axis in axes if sizes[axis] == x.shape[axis] and axis not in collapsed]
    cut = [axis for axis in axes if axis not in whole]
    boxed = [axis for axis in cut if axis not in collapsed]
    places = starts.shape[:-1] if isinstance(starts, Node) else np.shape(starts)[:-1]
    index = _flat_index(by, x.shape, sizes, starts, numbers.start_index_map, cut, boxed)
    rows = math.prod(x.shape[axis] for axis in cut)
    rest = [x.shape[axis] for axis in whole]
    table = to.reshape(
        x.turned([*batched, *cut, *whole]), [*(x.shape[a] for a in batched), rows, *rest]
    )
    if batched:
        flat = to.reshape(
            index, (places[0], math.prod([*places[1:], *(sizes[a] for a in boxed)]), 1)
        )
        made = to.add("GatherND", table, flat, batch_dims=1)
    else:
        made = to.add("Gather", table, index, axis=0)
    shape = equation.outvars[0].aval.shape
    # Axis of the boxes, without collapsed axes -> axis of the result.
    kept = dict(
        zip([a for a in axes if a not in collapsed], map(int, numbers.offset_dims), strict=True)
    )
    order = [axis for axis in range(len(shape)) if axis not in kept.values()]
    order += [kept[axis] for axis in (*boxed, *whole)]
    return Node(to, to.reshape(made, [shape[axis] for axis in order]), shape, order)


def _flat_index(
    by: Translation[ONNX],
    shape: Sequence[int],
    sizes: Sequence[int],
    starts: Value,
    named: Sequence[int],
    cut: Sequence[int],
    boxed: Sequence[int],
) -> str:
    """Indices along the flattened axes `cut`: int64 (places..., sizes of `boxed`...)."""
    to, node = by.to, by.node(starts)
    dims, named = len(node.shape) - 1, [int(axis) for axis in named]
    indices = to.convert(node.plain, np.dtype(np.int64))
    total = to.constant(np.zeros((1,) * (dims + len(boxed)), np.int64))
    for number, axis in enumerate(cut):
        stride = math.prod(shape[a] for a in cut[number + 1 :])
        if axis in named:
            column = named.index(axis)
            begin, end = [0] * dims + [column], [*node.shape[:-1], column + 1]
            start = to.slice(indices, node.shape, begin, end, [1] * (dims + 1))
            start = to.reshape(start, (*node.shape[:-1], *(1,) * len(boxed)))
            start = to.elementwise("max", start, to.constant(np.asarray(0)))
            last = to.constant(np.asarray(shape[axis] - sizes[axis]))
            start = to.elementwise("min", start, last)
            total = to.elementwise(
                "add", total, to.elementwise("mul", start, to.constant(np.asarray(stride)))
            )
        if axis in boxed:
            sides = [1] * (dims + len(boxed))
            sides[dims + boxed.index(axis)] = sizes[axis]
            along = stride * np.arange(sizes[axis], dtype=np.int64).reshape(sides)
            total = to.elementwise("add", total, to.constant(along))
    return total


# Rules for operations outside of networks.
DECODING: dict[str, Rule] = {
    "argmax": _argmax,
    "sort": _sort,
    "scan": _scan,
    "gather": _gather,
}
