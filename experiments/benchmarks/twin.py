"""The PyTorch twin: the same network, loss, optimiser and decoding, as one would write them there.

Volumes are `(B, C, X, Y, Z)`, in memory channels last.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Spec, Weights, cores, example
from torch import Tensor, nn

# Names of parameters: jaxmark's (as `common.Weights` has them) -> those of the modules below.
NAMES = (
    ("ResidualBlock_", "blocks."),
    ("Up_", "ups."),
    ("Conv_", "convs."),
    ("Norm_", "norms."),
    ("/", "."),
    ("kernel", "weight"),
    ("scale", "weight"),
)


class Up(nn.ConvTranspose3d):
    """Doubles every side; jaxmark scales this kernel by sqrt(8), so the twin has to."""

    def __init__(self, channels: int, features: int):
        super().__init__(channels, features, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose3d(x, self.weight * math.sqrt(8), stride=2)


class ResidualBlock(nn.Module):
    """Two 3^3 convolutions and a shortcut."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv3d(channels, features, 3, padding=1, bias=False),
                nn.Conv3d(features, features, 3, padding=1, bias=False),
            ]
        )
        if channels != features:
            self.convs.append(nn.Conv3d(channels, features, 1, bias=False))
        groups = features // math.gcd(8, features)
        # Flax's epsilon; PyTorch's own is 1e-5.
        self.norms = nn.ModuleList([nn.GroupNorm(groups, features, eps=1e-6) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norms[0](self.convs[0](x)))
        y = self.norms[1](self.convs[1](y))
        if len(self.convs) == 3:
            x = self.convs[2](x)
        return F.relu(x + y)


class ResidualUNet(nn.Module):
    """The twin of `jaxmark.models.unet.ResidualUNet`; heatmaps are float32."""

    def __init__(self, widths: Sequence[int], out_channels: int, head: int):
        super().__init__()
        self.levels = len(widths)
        down, up = list(widths), list(reversed(widths[:-1]))
        inputs = [1, *down[:-1], *(2 * width for width in up)]
        self.blocks = nn.ModuleList(map(ResidualBlock, inputs, [*down, *up]))
        self.ups = nn.ModuleList(map(Up, reversed(widths[1:]), up))
        last = [widths[0], *([head] if head else []), out_channels]
        self.convs = nn.ModuleList(
            nn.Conv3d(a, b, 1) for a, b in zip(last[:-1], last[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.blocks[: self.levels - 1]:
            x = block(x)
            skips.append(x)
            x = F.max_pool3d(x, 2)
        x = self.blocks[self.levels - 1](x)
        for up, block in zip(self.ups, self.blocks[self.levels :], strict=True):
            x = block(torch.cat([up(x), skips.pop()], dim=1))
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        return self.convs[-1](x).float()


def gaussians(points: Tensor, spec: Spec) -> Tensor:
    """Targets (B, K, X, Y, Z) of points (B, K, 3) in voxels."""
    x, y, z = (
        torch.exp(
            -0.5
            * (
                (torch.arange(n, device=points.device) - points[..., axis, None])
                * (spec.spacing_mm[axis] / spec.sigma_mm)
            )
            ** 2
        )
        for axis, n in enumerate(spec.volume)
    )
    return x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]


def weighted_loss(heatmaps: Tensor, points: Tensor, present: Tensor, spec: Spec) -> Tensor:
    """Eq. 2 of Tan et al. 2023, as `jaxmark.core.losses.weighted_heatmap_loss`."""
    target = gaussians(points, spec)
    error = (spec.alpha**target * (heatmaps - target) ** 2).mean((2, 3, 4))
    return error[present].mean()


def decode_argmax(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, K, 3) and scores (B, K)."""
    score, index = heatmaps.flatten(2).max(dim=2)
    return torch.stack(torch.unravel_index(index, heatmaps.shape[2:]), dim=-1), score


class TorchTwin:
    """The methods of `contenders.JaxContender` that comparisons call."""

    def __init__(self, spec: Spec, weights: Weights):
        self.spec = spec
        self.device = torch.device("cuda" if spec.platform == "gpu" else "cpu")
        torch.set_num_threads(cores())
        # Equality is shown in float32 proper. bfloat16 is timed, which this does not touch.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        host = example(spec)
        image = torch.from_numpy(host["image"]).permute(0, 4, 1, 2, 3)
        self.image = image.to(self.device, memory_format=torch.channels_last_3d)
        self.points = torch.from_numpy(host["landmarks_ijk"]).to(self.device)
        self.present = torch.from_numpy(host["present"]).to(self.device)
        net = ResidualUNet(spec.widths, spec.landmarks, spec.head)
        net.load_state_dict({_name(k): torch.tensor(_layout(k, v)) for k, v in weights.items()})
        self.net = net.to(self.device, memory_format=torch.channels_last_3d)
        self.adam = torch.optim.Adam(self.net.parameters(), lr=spec.learning_rate, fused=True)
        self._names = list(weights)
        on_gpu = self.device.type == "cuda"
        self._loss = torch.compile(self._plain_loss) if on_gpu else self._plain_loss
        self._decode = torch.compile(self._plain_decode) if on_gpu else self._plain_decode

    def run(self, work: str, count: int) -> float:
        """Seconds of `count` in a row; the device is waited for once, at the end."""
        self._half = self.spec.dtype == "bfloat16"
        self._wait()
        begin = time.perf_counter()
        for _ in range(count):
            if work == "inference":
                self.inference()
            else:
                self.step(self.spec.translation if work == "step+translation" else 0)
        self._wait()
        return time.perf_counter() - begin

    def step(self, translation: int) -> Tensor:
        """One training step; returns the loss. The norm is what jaxmark's step reports as well."""
        image, points = self._crop(translation)
        self.adam.zero_grad(set_to_none=True)
        loss = self._loss(image, points)
        loss.backward()
        nn.utils.get_total_norm([p.grad for p in self.net.parameters()])
        self.adam.step()
        return loss.detach()

    def inference(self) -> tuple[Tensor, Tensor]:
        """Positions and scores of the batch."""
        with torch.inference_mode():
            return self._decode(self._crop(0)[0])

    def outcome(self) -> dict[str, Any]:
        """What one float32 step from the start gives; see `step.differences`."""
        self._half = False
        with torch.inference_mode():
            heatmaps = self._heatmaps(self._crop(0)[0])
        found, _ = self.inference()
        loss = self.step(0)
        state = self.net.state_dict()
        moment = {name: self.adam.state[p]["exp_avg"] for name, p in self.net.named_parameters()}
        return {
            "heatmaps": heatmaps.permute(0, 2, 3, 4, 1).cpu().numpy(),
            "argmax_ijk": found.cpu().numpy().astype(np.float32),
            "loss": loss.cpu().numpy(),
            "gradient": {k: _back(k, moment[_name(k)]) for k in self._names},
            "weights": {k: _back(k, state[_name(k)]) for k in self._names},
        }

    def _plain_loss(self, image: Tensor, points: Tensor) -> Tensor:
        return weighted_loss(self._heatmaps(image), points, self.present, self.spec)

    def _plain_decode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return decode_argmax(self._heatmaps(image))

    def _heatmaps(self, image: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            return self.net(image)

    def _crop(self, translation: int) -> tuple[Tensor, Tensor]:
        """The crops (B, 1, X, Y, Z) in float32 at random whole-voxel offsets, and their points."""
        size = (self.spec.batch, 3)
        offset = self.spec.margin + torch.randint(-translation, translation + 1, size)
        nx, ny, nz = self.spec.volume
        crops = [
            volume[:, x : x + nx, y : y + ny, z : z + nz]
            for volume, (x, y, z) in zip(self.image, offset.tolist(), strict=True)
        ]
        image = torch.stack(crops).float().contiguous(memory_format=torch.channels_last_3d)
        return image, self.points - offset[:, None].to(self.device)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _name(name: str) -> str:
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def _axes(name: str) -> tuple[int, ...]:
    """Order of axes from (kx, ky, kz, C_in, C_out) to PyTorch's."""
    return (3, 4, 0, 1, 2) if name.startswith("Up_") else (4, 3, 0, 1, 2)


def _layout(name: str, value: np.ndarray) -> np.ndarray:
    return value.transpose(_axes(name)).copy() if value.ndim == 5 else value


def _back(name: str, value: Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy().copy()
    return array.transpose(np.argsort(_axes(name))) if array.ndim == 5 else array
