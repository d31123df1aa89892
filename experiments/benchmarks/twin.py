"""The PyTorch twin: the same network, loss, optimiser and decoding, as one would write them there.

Volumes are `(B, C, X, Y, Z)`, pictures `(B, C, X, Y)`, in memory channels last.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarks.common import Spec, Weights, cores, example

# Names of parameters: jaxmark's (as `common.Weights` has them) -> those of the modules below.
NAMES = (
    ("ResidualBlock_", "blocks."),
    ("Up_", "ups."),
    ("FeatureFilter_", "filters."),
    ("Layer_", "layers."),
    ("Conv_", "convs."),
    ("Norm_", "norms."),
    ("Strided_", "strided."),
    ("Dense_", "dense."),
    ("/", "."),
    ("kernel", "weight"),
    ("scale", "weight"),
)


# Layers of volumes, and those of pictures.
CONVOLUTION: dict[int, Any] = {3: nn.Conv3d, 2: nn.Conv2d}
DECONVOLUTION: dict[int, Any] = {3: nn.ConvTranspose3d, 2: nn.ConvTranspose2d}
ENLARGE: dict[int, Any] = {3: F.conv_transpose3d, 2: F.conv_transpose2d}
POOL: dict[int, Any] = {3: F.max_pool3d, 2: F.max_pool2d}
CHANNELS_LAST = {3: torch.channels_last_3d, 2: torch.channels_last}


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, c_in: int, c_out: int, axes: int):
        super().__init__()
        sizes = [(c_in, 3), (c_out, 3)] + [(c_in, 1)] * (c_in != c_out)
        self.convs = nn.ModuleList(
            CONVOLUTION[axes](c, c_out, kernel, padding=kernel // 2, bias=False)
            for c, kernel in sizes
        )
        groups = c_out // math.gcd(8, c_out)
        # Flax's epsilon; PyTorch's own is 1e-5.
        self.norms = nn.ModuleList(nn.GroupNorm(groups, c_out, eps=1e-6) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.convs[0](x)))
        y = self.norms[1](self.convs[1](y))
        if len(self.convs) == 3:
            x = self.convs[2](x)
        return F.relu(x + y)


class ResidualUNet(nn.Module):
    """The twin of `jaxmark.models.unet.ResidualUNet`; heatmaps are float32."""

    def __init__(self, widths: Sequence[int], out_channels: int, head: int, axes: int = 3):
        super().__init__()
        self.axes = axes
        conv = CONVOLUTION[axes]
        down, up = list(widths), list(reversed(widths[:-1]))
        inputs = [1, *down[:-1], *(2 * width for width in up)]
        self.blocks = nn.ModuleList(
            ResidualBlock(a, b, axes) for a, b in zip(inputs, [*down, *up], strict=True)
        )
        self.ups = nn.ModuleList(
            DECONVOLUTION[axes](a, b, 2, stride=2, bias=False)
            for a, b in zip(reversed(widths[1:]), up, strict=True)
        )
        self.convs = nn.ModuleList([conv(widths[0], head, 1), conv(head, out_channels, 1)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.blocks[: len(self.ups)]:
            skips.append(block(x))
            x = POOL[self.axes](skips[-1], 2)
        x = self.blocks[len(self.ups)](x)
        for up, block in zip(self.ups, self.blocks[len(self.ups) + 1 :], strict=True):
            # jaxmark scales this kernel so. Adam would notice if the weights were scaled.
            x = ENLARGE[self.axes](x, up.weight * math.sqrt(2**self.axes), stride=2)
            x = block(torch.cat([x, skips.pop()], dim=1))
        return self.convs[1](F.relu(self.convs[0](x))).float()


def gaussians(points: Tensor, spec: Spec) -> Tensor:
    """Targets (B, K, X, Y, Z), channels last as the heatmaps, of points (B, K, 3) in voxels.

    Of pictures (B, K, X, Y).
    """
    scales = [spacing / spec.sigma_mm for spacing in spec.spacing_mm]
    x, y, z = (
        torch.exp(
            -0.5 * ((torch.arange(n, device=points.device)[:, None] - p[:, None]) * scale) ** 2
        )
        for n, p, scale in zip(spec.volume, points.unbind(-1), scales, strict=True)
    )
    target = x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]
    target = target.permute(0, 4, 1, 2, 3)
    return target.squeeze(-1) if spec.planar else target


def weighted_loss(heatmaps: Tensor, points: Tensor, present: Tensor, spec: Spec) -> Tensor:
    """Eq. 2 of Tan et al. 2023, as `jaxmark.core.losses.weighted_heatmap_loss`."""
    target = gaussians(points, spec)
    weight = torch.exp(math.log(spec.alpha) * target)
    error = (weight * (heatmaps - target) ** 2).flatten(2).mean(2)
    return (error * present).sum() / present.sum()


def decode_argmax(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, K, 3), or of pictures (B, K, 2), and scores (B, K)."""
    score, index = heatmaps.flatten(2).max(dim=2)
    return torch.stack(torch.unravel_index(index, heatmaps.shape[2:]), dim=-1), score


class TorchTwin:
    """The methods of `contenders.JaxContender` that comparisons call."""

    def __init__(self, spec: Spec, weights: Weights):
        self._resident = resident()
        self.spec, self.weights = spec, weights
        self.device = torch.device("cuda" if spec.platform == "gpu" else "cpu")
        torch.set_num_threads(cores())
        # Equality is shown in float32 proper. bfloat16 is timed, which this does not touch.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        host = example(spec)
        image = torch.from_numpy(host["image"]).permute(0, 4, 1, 2, 3)
        self.axes = 2 if spec.planar else 3
        self.last: Any = CHANNELS_LAST[self.axes]
        self.image = image.to(self.device, memory_format=torch.channels_last_3d)
        self.points = torch.from_numpy(host["landmarks_ijk"]).to(self.device)
        self.margins = torch.tensor(spec.margins, device=self.device)
        self.present = torch.from_numpy(host["present"]).to(self.device)
        self.net: Any = self.network().to(self.device, memory_format=self.last)
        self._restart()
        self._compiled = [torch.compile(self._loss), torch.compile(self._decode)]

    def network(self) -> nn.Module:
        """What is trained; volumes to heatmaps."""
        return ResidualUNet(self.spec.widths, self.spec.landmarks, self.spec.head, self.axes)

    def _restart(self) -> None:
        self.net.load_state_dict(to_torch(self.weights, self.axes))
        self.optimizers = self._optimizers()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        rate = self.spec.learning_rate
        return [torch.optim.Adam(self.net.parameters(), lr=rate, fused=True)]

    def prepare(self, work: str) -> float:
        """Seconds of the first run, which compiles on a GPU."""
        return self.run(work, 1)

    def run(self, work: str, count: int) -> float:
        """Seconds of `count` in a row; the device is waited for once, at the end."""
        one = self.inference if work == "inference" else self.step
        self._wait()
        begin = time.perf_counter()
        for _ in range(count):
            one(self.spec.dtype)
        self._wait()
        return time.perf_counter() - begin

    def step(self, dtype: str) -> Tensor:
        """One training step; returns the loss. The norm is what jaxmark's step reports as well."""
        (adam,) = self.optimizers
        adam.zero_grad(set_to_none=True)
        with self._arithmetic(dtype):
            loss = self._functions(dtype)[0](self._crop())
        loss.backward()
        nn.utils.get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        adam.step()
        return loss.detach()

    def inference(self, dtype: str) -> tuple[Tensor, Tensor]:
        """Positions and scores of the batch."""
        with torch.inference_mode(), self._arithmetic(dtype):
            return self._functions(dtype)[1](self._crop())

    def outcome(self, dtype: str) -> dict[str, Any]:
        """What one step and inference from the same start give; see `step.differences`."""
        self._restart()
        with torch.inference_mode(), self._arithmetic(dtype):
            heatmaps = self.net(self._crop())
        found, _ = self.inference(dtype)
        loss = self.step(dtype)
        states = {p: state for adam in self.optimizers for p, state in adam.state.items()}
        moment = {name: states[p]["exp_avg"] for name, p in self.net.named_parameters()}
        return {
            "heatmaps": heatmaps.movedim(1, -1).cpu().numpy(),
            "argmax_ijk": F.pad(found, (0, 3 - self.axes)).cpu().numpy().astype(np.float32),
            "loss": loss.cpu().numpy(),
            "gradient": from_torch(moment, self.weights),
            "weights": from_torch(self.net.state_dict(), self.weights),
        }

    def memory(self) -> int:
        """Bytes of a step: the most that the GPU held, or by how much the process has grown."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.run("step", 1)
        return torch.cuda.max_memory_allocated() if on_gpu else resident() - self._resident

    def _loss(self, image: Tensor) -> Tensor:
        points = self.points - self.margins
        return weighted_loss(self.net(image), points, self.present, self.spec)

    def _decode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return decode_argmax(self.net(image))

    def _functions(self, dtype: str) -> Sequence[Callable[[Tensor], Any]]:
        """Loss and decoding; compiled on a GPU but for showing equality in float32."""
        return self._compiled if dtype == "bfloat16" else (self._loss, self._decode)

    def _arithmetic(self, dtype: str) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def _crop(self) -> Tensor:
        """The crops (B, 1, X, Y, Z) or (B, 1, X, Y) in float32."""
        x, y, z = (slice(m, -m or None) for m in self.spec.margins)
        image = self.image[:, :, x, y, z].float()
        image = image.squeeze(-1) if self.spec.planar else image
        return image.contiguous(memory_format=self.last)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def resident() -> int:
    """The most bytes of memory that this process ever had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _name(name: str) -> str:
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def _axes(name: str, ndim: int) -> tuple[int, ...]:
    """Order of axes from (kx, ky, kz, C_in, C_out), (kx, ky, ...) or (C_in, C_out) to PyTorch's."""
    if ndim < 4:
        return tuple(reversed(range(ndim)))
    c_in, c_out = ndim - 2, ndim - 1
    channels = (c_in, c_out) if "Up_" in name else (c_out, c_in)
    return (*channels, *range(ndim - 2))


def to_torch(weights: Weights, axes: int = 3) -> dict[str, Tensor]:
    """Under PyTorch's names and in its layouts.

    With 2 `axes`, those of a network of pictures, whose layers of one voxel have kernels of 3 axes.
    """
    found = {k: v.transpose(_axes(k, v.ndim)) for k, v in weights.items()}
    return {
        _name(k): torch.from_numpy(v.reshape(v.shape[: 2 + axes]).copy()) for k, v in found.items()
    }


def from_torch(state: Mapping[str, Tensor], like: Weights) -> Weights:
    """The way back, to arrays of shapes as in `like`."""
    found = {}
    for name, weight in like.items():
        order = _axes(name, weight.ndim)
        array = state[_name(name)].detach().cpu().numpy().copy()
        found[name] = array.reshape(weight.transpose(order).shape).transpose(np.argsort(order))
    return found
