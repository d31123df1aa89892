"""Inference by what computes the networks, and by what people run a PyTorch network with."""

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.common import JAX, Options, Row, Spec
from experiments.benchmarks.contenders import JaxContender
from experiments.benchmarks.step import TORCH
from experiments.benchmarks.timing import Worker, WorkerError, interleave, job, median_ms, ratio
from jaxmark.inference.engines import OPENVINO, OPENVINO_16, XLA, EngineRun

METHOD = (
    "A stage of prediction as `--mode=predict` runs it (network, sub-voxel decoding, spread) by "
    "each of config.predict.engine. Peers: the twin's network and argmax alone, by PyTorch, by "
    "torch.compile, and exported for onnxruntime and OpenVINO. Same random weights, float32 where "
    "it doesn't say bf16; processes of their own, interleaved; medians. within 0.01: share of "
    "landmarks that lie within 0.01 voxel of XLA's."
)
ENGINES = (XLA, OPENVINO, OPENVINO_16)
PEERS = "experiments.benchmarks.peers:Exported"
# What each peer imports; `peers.KINDS` and PyTorch itself.
NEEDS = {
    "torch": "torch",
    "torch_compiled": "torch",
    "onnxruntime": "onnxruntime",
    "exported_openvino": "openvino",
    "exported_openvino_bf16": "openvino",
}


class Engine(JaxContender):
    """jaxmark's prediction by an engine; lives in a `timing.Worker`."""

    def __init__(self, spec: Spec, engine: str):
        super().__init__(spec, "jaxmark")
        run = self.method(spec.dtype).stages[0].run
        self._predict = jax.jit(run) if engine == XLA else EngineRun(run, jax.jit(run), engine)
        self._arrays = {"image": self.batch.image}
        self._variables = self.state.variables

    def prepare(self, work: str) -> float:
        """Seconds until the first prediction is there."""
        return self.run(work, 1)

    def run(self, work: str, count: int) -> float:
        """Seconds of `count` predictions."""
        begin = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(self._predict(self._variables, self._arrays))
        return time.perf_counter() - begin

    def positions(self) -> np.ndarray:
        """(B, K, 3) voxels."""
        found = self._predict(self._variables, self._arrays)
        return np.asarray(found.positions_ijk["subvoxel"])


def rows(spec: Spec, options: Options) -> Iterator[Row | str]:
    """One row: times of all, and where OpenVINO's landmarks are beside XLA's."""
    if spec.platform != "cpu":
        yield "engines other than XLA are for CPUs"
        return
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        jobs: dict[str, Callable[[], float]] = {}
        weights = stack.enter_context(Worker(JAX, spec, "jaxmark")).call("weights")
        factories: dict[str, tuple[Any, ...]] = {
            name: ("experiments.benchmarks.engines:Engine", spec, name) for name in ENGINES
        }
        for name in NEEDS if "torch" in options.rivals else ():
            if all(map(importlib.util.find_spec, ("torch", NEEDS[name]))):
                peer = (TORCH, spec, weights), (PEERS, spec, weights, name)
                factories[name] = peer[name != "torch"]
        for name, arguments in factories.items():
            try:
                workers[name] = stack.enter_context(Worker(*arguments))
                workers[name].call("prepare", "inference")
                jobs[name] = job(workers[name], "inference")
            except WorkerError as error:
                yield f"{spec}: {name} is not timed: {error}"
        places = {name: workers[name].call("positions") for name in ENGINES if name in jobs}
        times = interleave(jobs, options, f"{spec} engines")
        medians = {name: median_ms(times.get(name, ())) for name in factories}
        yield {
            **spec.columns,
            **{f"{name}_ms": value for name, value in medians.items()},
            **{
                f"{name}/{XLA}": ratio(value, medians[XLA])
                for name, value in medians.items()
                if name != XLA
            },
            "within 0.01": near(places.get(OPENVINO), places[XLA]),
            "seconds": dict(times),
        }


def near(found: np.ndarray | None, expected: np.ndarray) -> float | None:
    """Share of landmarks within 0.01 voxel of where they are expected."""
    if found is None:
        return None
    return float((np.abs(found - expected).max(-1) < 0.01).mean())
