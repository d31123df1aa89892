"""The PyTorch twin's inference, taken to what people run it with: compiled, or exported.

Each has the methods of `twin.TorchTwin` that `engines` calls, and gives positions and scores of the
maxima. Imports neither JAX nor jaxmark.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.benchmarks.common import Spec, Weights, cores
from experiments.benchmarks.twin import TorchTwin

Run = Callable[[np.ndarray], Any]


class Maxima(nn.Module):
    """A network with the maximum of each heatmap: scores and flat indices, (B, K)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of crops (B, 1, X, Y, Z)."""
        return self.net(x).flatten(2).max(dim=2)


class Exported(TorchTwin):
    """Inference by one of `KINDS`; lives in a `timing.Worker`."""

    def __init__(self, spec: Spec, weights: Weights, kind: str):
        super().__init__(spec, weights)
        self._maxima = Maxima(self.net).eval()
        crop = self._crop()
        # Exported graphs know one order of axes, whatever the order in memory.
        self._array = crop.contiguous().numpy()
        with torch.inference_mode():
            self._predict = KINDS[kind](self._maxima, crop)

    def inference(self, dtype: str) -> Any:
        """Scores and flat indices of the batch."""
        return self._predict(self._array)

    def heatmap_maxima(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and flat indices, (B, K): for tests of equality."""
        score, index = self.inference(self.spec.dtype)
        return np.asarray(score), np.asarray(index)


def torch_compiled(maxima: nn.Module, crop: Tensor) -> Run:
    """`torch.compile`, channels last."""
    program = torch.compile(maxima)

    def run(_: np.ndarray) -> Any:
        with torch.inference_mode():
            return program(crop)

    return run


def onnxruntime(maxima: nn.Module, crop: Tensor) -> Run:
    """ONNX, run by onnxruntime."""
    import onnxruntime as runtime

    file: Any = io.BytesIO()
    torch.onnx.export(maxima, (crop,), file, input_names=["x"], dynamo=False)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = cores()
    session = runtime.InferenceSession(
        file.getvalue(), settings, providers=["CPUExecutionProvider"]
    )
    return lambda array: session.run(None, {"x": array})


def openvino(precision: str) -> Callable[[nn.Module, Tensor], Run]:
    """OpenVINO's own conversion, with products of this precision."""

    def exported(maxima: nn.Module, crop: Tensor) -> Run:
        import openvino as runtime

        model = runtime.convert_model(maxima, example_input=crop.contiguous(), input=crop.shape)
        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        request = runtime.Core().compile_model(model, "CPU", settings).create_infer_request()
        return lambda array: request.infer([array]).to_tuple()

    return exported


KINDS: dict[str, Callable[[nn.Module, Tensor], Run]] = {
    "torch_compiled": torch_compiled,
    "onnxruntime": onnxruntime,
    "exported_openvino": openvino("f32"),
    "exported_openvino_bf16": openvino("bf16"),
}
