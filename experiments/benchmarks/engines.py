"""Inference by what computes the networks, and by what people run a PyTorch network with."""

import contextlib
import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.common import JAX, Options, Row, Spec
from experiments.benchmarks.contenders import JaxContender, own_method
from experiments.benchmarks.step import TORCH
from experiments.benchmarks.timing import Worker, WorkerError, interleave, job, median_ms, ratio
from jaxmark.data.frame import Frame
from jaxmark.inference.engines import OPENVINO, OPENVINO_16, XLA, EngineRun
from jaxmark.inference.portable import program_of

METHOD = (
    "A stage of prediction as `--mode=predict` runs it (network, sub-voxel decoding, spread) by "
    "each of config.predict.engine; onnx_...: the file that `--mode=export` makes of it, by "
    "onnxruntime, there also with kernels and activations of 8 bits, and by OpenVINO. Peers: the "
    "twin's network and argmax alone, by PyTorch, by torch.compile, and exported for onnxruntime "
    "and OpenVINO. Same random weights, float32 where it doesn't say bf16 or int8; processes of "
    "their own, interleaved; medians. within 0.01: share of landmarks that lie within 0.01 voxel "
    "of XLA's, by OpenVINO, and by the file in onnxruntime."
)
ENGINES = (XLA, OPENVINO, OPENVINO_16)
EXPORTED = "experiments.benchmarks.exported:Exported"
ONNX = {
    "onnx_onnxruntime": "onnxruntime",
    "onnx_onnxruntime_int8": "onnxruntime",
    "onnx_openvino": "openvino",
    "onnx_openvino_bf16": "openvino",
}
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

    def exported(self) -> bytes:
        """What `--mode=export` writes of it as ONNX."""
        from jaxmark.inference.onnx_graph import model_of

        method = own_method(dataclasses.replace(self.spec, platform="onnx"), jnp.float32)
        frame = frame_of(self.spec)
        program = program_of(method, frame, "subvoxel")
        fixed = functools.partial(program, jax.device_get(self._variables))
        model = model_of(fixed, {"image": frame.shape, "background": ()})
        return bytes(model.SerializeToString())

    def positions(self) -> np.ndarray:
        """(B, K, 3) voxels."""
        found = self._predict(self._variables, self._arrays)
        return np.asarray(found.positions_ijk["subvoxel"])


def frame_of(spec: Spec) -> Frame:
    """Of volumes whose intensities are scaled already, as those of the benchmark are."""
    x, y, z = np.add(spec.volume, np.multiply(2, spec.margins)).tolist()
    return Frame(
        register="none",
        metric="correlation",
        search_degrees=0.0,
        template=None,
        common_to_template=np.eye(4),
        grid_to_common=np.diag([*spec.spacing_mm, 1.0]),
        shape=(x, y, z),
        intensity="window",
        intensity_range=(0.0, 1.0),
    )


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
            if _installed("torch", NEEDS[name]):
                peer = (TORCH, spec, weights), (PEERS, spec, weights, name)
                factories[name] = peer[name != "torch"]
        files = {name: need for name, need in ONNX.items() if _installed("onnx", need)}
        if files:
            with Worker("experiments.benchmarks.engines:Engine", spec, XLA) as engine:
                model = engine.call("exported")
            factories |= {name: (EXPORTED, spec, model, name) for name in files}
        for name, arguments in factories.items():
            try:
                workers[name] = stack.enter_context(Worker(*arguments))
                workers[name].call("prepare", "inference")
                jobs[name] = job(workers[name], "inference")
            except WorkerError as error:
                yield f"{spec}: {name} is not timed: {error}"
        tell = (*ENGINES, *ONNX)
        places = {name: workers[name].call("positions") for name in tell if name in jobs}
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
            "file within 0.01": near(places.get("onnx_onnxruntime"), places[XLA]),
            "seconds": dict(times),
        }


def _installed(*packages: str) -> bool:
    return all(map(importlib.util.find_spec, packages))


def near(found: np.ndarray | None, expected: np.ndarray) -> float | None:
    """Share of landmarks within 0.01 voxel of where they are expected."""
    if found is None:
        return None
    return float((np.abs(found - expected).max(-1) < 0.01).mean())
