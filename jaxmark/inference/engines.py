"""Engines that compute networks in prediction: XLA, or OpenVINO if the user chooses it.

A stage is traced once, with the weights as constants. Its networks (calls of Flax modules) become
graphs of OpenVINO; JAX computes the rest. Methods need no code for this. A network inside of a loop
stays with XLA.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.extend import core as jex

from jaxmark.methods.method import Prediction, Variables
from jaxmark.system.errors import InputError
from jaxmark.system.messages import say

XLA, OPENVINO, OPENVINO_16, FASTEST = "xla", "openvino", "openvino_bf16", "fastest"
Run = Callable[[Variables, Mapping[str, Any]], Prediction]
# Name, in a jaxpr, of a call that becomes one graph.
_NETWORK = "jaxmark_network"
# Methods of modules with convolutions; all other methods work voxel by voxel and stay with JAX.
_WITH_CONVOLUTIONS = ("__call__", "features")
_TIMED_RUNS = 3


def check_engine(engine: str, platform: str, devices: int) -> None:
    """InputError if the engine is not installed, or does not work on these devices."""
    if engine == XLA:
        return
    field = "config.predict.engine"
    if importlib.util.find_spec("openvino") is None:
        raise InputError(
            field, f"{engine} needs OpenVINO, which is not installed: pip install openvino"
        )
    if platform != "cpu" or devices > 1:
        where = "a CPU" if platform != "cpu" else "one device"
        raise InputError(field, f"{engine} computes on {where} alone; leave it at {XLA}")


class EngineRun:
    """`Stage.run` by an engine, with the arguments of the jitted one: variables and arrays.

    Graphs hold the weights, so other variables make new graphs.
    """

    def __init__(self, run: Run, jitted: Run, engine: str):
        self._run, self._jitted, self._engine = run, jitted, engine
        self._weights: Any = None
        self._chosen: Run = jitted

    def __call__(self, variables: Variables, arrays: Mapping[str, Any]) -> Prediction:
        """The prediction of a batch."""
        if self._weights is not variables:
            self._weights = variables
            self._chosen = self._choose(variables, arrays)
        return self._chosen(variables, arrays)

    def _choose(self, variables: Variables, arrays: Mapping[str, Any]) -> Run:
        precision = "bf16" if self._engine == OPENVINO_16 else "f32"
        parts = partition(self._run, variables, arrays, precision)
        if parts is None:
            return self._jitted

        def graphs(_: Variables, arrays: Mapping[str, Any]) -> Prediction:
            return parts(arrays)

        if self._engine != FASTEST:
            return graphs
        both: dict[str, Run] = {XLA: self._jitted, OPENVINO: graphs}
        seconds = {name: _median_s(run, variables, arrays) for name, run in both.items()}
        best = min(seconds, key=lambda name: seconds[name])
        times = ", ".join(f"{name} {1e3 * s:.0f} ms" for name, s in seconds.items())
        say(f"networks are computed by {best} ({times} for a batch)")
        return both[best]


def _median_s(run: Run, variables: Variables, arrays: Mapping[str, Any]) -> float:
    """Median seconds of a run after a first one that does not count."""
    seconds = []
    for _ in range(1 + _TIMED_RUNS):
        begin = time.perf_counter()
        jax.block_until_ready(run(variables, arrays))
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds[1:]))


def partition(
    run: Run, variables: Variables, arrays: Mapping[str, Any], precision: str
) -> Callable[[Mapping[str, Any]], Prediction] | None:
    """`run` with these variables and its networks as OpenVINO graphs; None if it has no such graph.

    `precision` is "f32" or "bf16". If OpenVINO lacks an operation, a printed line names it.
    """
    from jaxmark.inference.graph import Unknown
    from jaxmark.inference.openvino_graph import compiled

    fixed = jax.device_get(variables)
    arrays = jax.tree.map(np.asarray, dict(arrays))
    with nn.intercept_methods(_marker()):
        closed, shape = jax.make_jaxpr(lambda x: run(fixed, x), return_shape=True)(arrays)
    tree = jax.tree.structure(shape)
    graph = closed.jaxpr
    known = dict(zip(graph.constvars, closed.consts, strict=True))
    needed: Sequence[Any]
    made: Sequence[Any]
    steps: list[tuple[Callable[..., Sequence[Any]], Sequence[Any], Sequence[Any]]] = []
    found = False
    for equations in _grouped(graph.eqns):
        if _is_network(equations[0]):
            found = True
            inputs = equations[0].invars
            fixed_inputs = [v.val if isinstance(v, jex.Literal) else known.get(v) for v in inputs]
            try:
                function = compiled(equations[0].params["jaxpr"], fixed_inputs, precision)
            except Unknown as operation:
                say(f"OpenVINO has nothing for {operation}: the networks stay with XLA")
                return None
            needed = [v for v, value in zip(inputs, fixed_inputs, strict=True) if value is None]
            made = equations[0].outvars
        else:
            needed, made = _borders(equations, graph)
            part = jex.Jaxpr(
                (), needed, made, equations, graph.effects, debug_info=graph.debug_info
            )
            function = jax.jit(jex.jaxpr_as_fun(jex.ClosedJaxpr(part, ())))
        steps.append((function, needed, made))
    if not found:
        return None

    def parts(arrays: Mapping[str, Any]) -> Prediction:
        values = {**known}
        values.update(zip(graph.invars, jax.tree.leaves(dict(arrays)), strict=True))
        for function, needed, made in steps:
            results = function(*(values[var] for var in needed))
            values.update(zip(made, results, strict=True))
        ends = [v.val if isinstance(v, jex.Literal) else values[v] for v in graph.outvars]
        prediction: Prediction = jax.tree.unflatten(tree, ends)
        return prediction

    return parts


def _marker() -> Callable[..., Any]:
    """An interceptor of Flax: each call of a whole module becomes one named call in the jaxpr."""
    inside = False

    def mark(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, name = context.module, context.method_name
        if inside or module.path or name not in _WITH_CONVOLUTIONS:
            return next_call(*args, **kwargs)
        alone, variables = module.clone(parent=None), module.variables

        def network(*arrays: Any) -> Any:
            nonlocal inside
            inside = True
            try:
                return alone.apply(variables, *arrays, method=name, **kwargs)
            finally:
                inside = False

        network.__name__ = _NETWORK
        return jax.jit(network)(*args)

    return mark


def _is_network(equation: Any) -> bool:
    return equation.params.get("name") == _NETWORK


def _grouped(equations: Sequence[Any]) -> Iterator[list[Any]]:
    """Groups of consecutive equations; each network is a group by itself."""
    group: list[Any] = []
    for equation in equations:
        if _is_network(equation):
            if group:
                yield group
            yield [equation]
            group = []
        else:
            group.append(equation)
    if group:
        yield group


def _borders(equations: Sequence[Any], graph: Any) -> tuple[list[Any], list[Any]]:
    """Variables that equations need from earlier ones, and those that later ones need from them."""
    inside = {var for equation in equations for var in equation.outvars}
    used = {id(equation) for equation in equations}
    needed: dict[Any, None] = {}
    for equation in equations:
        for var in equation.invars:
            if not isinstance(var, jex.Literal) and var not in inside:
                needed[var] = None
    later = {
        var
        for equation in graph.eqns
        if id(equation) not in used
        for var in equation.invars
        if not isinstance(var, jex.Literal)
    }
    later |= {var for var in graph.outvars if not isinstance(var, jex.Literal)}
    return list(needed), [var for var in inside if var in later]
