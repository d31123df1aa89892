"""jaxmark's exported model as a hospital would run it. Imports neither JAX nor jaxmark."""

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.common import Spec, cores, example

# Of the inputs by name, the outputs by name.
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class Exported:
    """Inference of a model in ONNX by one of `KINDS`; lives in a `timing.Worker`."""

    def __init__(self, spec: Spec, model: bytes, kind: str):
        self._run = KINDS[kind](model)
        self._margins = spec.margins
        image = example(spec)["image"][..., 0].astype(np.float32)
        self._inputs = {"image": image, "background": np.zeros(len(image), np.float32)}

    def prepare(self, work: str) -> float:
        """Seconds until the first prediction is there."""
        return self.run(work, 1)

    def run(self, work: str, count: int) -> float:
        """Seconds of `count` predictions."""
        begin = time.perf_counter()
        for _ in range(count):
            self._run(self._inputs)
        return time.perf_counter() - begin

    def positions(self) -> np.ndarray:
        """(B, K, 3) voxels of the crop."""
        return self._run(self._inputs)["positions_ijk"] - np.array(self._margins, np.float32)


def onnxruntime(model: bytes) -> Run:
    """On all cores."""
    import onnxruntime as runtime

    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = cores()
    session = runtime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))


def onnxruntime_of_8_bits(model: bytes) -> Run:
    """Kernels quantised once, what they meet in each run."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It advises what changes nothing here, on the root logger.
    logging.disable(logging.WARNING)

    with tempfile.TemporaryDirectory() as folder:
        wide, narrow = Path(folder) / "wide.onnx", Path(folder) / "narrow.onnx"
        wide.write_bytes(model)
        quantize_dynamic(wide, narrow, op_types_to_quantize=["Conv"], weight_type=QuantType.QUInt8)
        return onnxruntime(narrow.read_bytes())


def openvino(precision: str) -> Callable[[bytes], Run]:
    """With products of this precision, for the size of the first batch."""

    def read(model: bytes) -> Run:
        import openvino as runtime

        core: Any = runtime.Core()
        graph = core.read_model(model)
        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        made: dict[tuple[int, ...], Any] = {}

        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            shape = inputs["image"].shape
            if shape not in made:
                # A batch that is known is faster than any.
                graph.reshape({name: array.shape for name, array in inputs.items()})
                made[shape] = core.compile_model(graph, "CPU", settings).create_infer_request()
            request = made[shape]
            results = request.infer(inputs)
            return {key.get_any_name(): np.array(results[key]) for key in results}

        return run

    return read


KINDS: dict[str, Callable[[bytes], Run]] = {
    "onnx_onnxruntime": onnxruntime,
    "onnx_onnxruntime_int8": onnxruntime_of_8_bits,
    "onnx_openvino": openvino("f32"),
    "onnx_openvino_bf16": openvino("bf16"),
}
