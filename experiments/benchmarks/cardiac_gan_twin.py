"""The PyTorch twin of the cardiac GAN: the same networks, losses and optimisers."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarks.adversarial_twin import adams
from experiments.benchmarks.cardiac_gan import settings
from experiments.benchmarks.common import Spec, Weights
from experiments.benchmarks.twin import TorchTwin, to_torch
from jaxmark.core.shared_heatmap import REACH
from jaxmark.models.cardiac_gan import SLOPE


class Layer(nn.Module):
    """Convolution, batch normalisation, leaky rectifier."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        normalised: bool = True,
        rectified: bool = True,
    ):
        super().__init__()
        # Flax pads sides that a stride of 2 halves at their ends alone.
        self.ahead = stride == 2
        padding = 0 if self.ahead else kernel // 2
        conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=not normalised)
        self.convs = nn.ModuleList([conv])
        self.norms = nn.ModuleList([nn.BatchNorm2d(c_out)] * normalised)
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](F.pad(x, (0, 1, 0, 1)) if self.ahead else x)
        for norm in self.norms:
            x = norm(x)
        return F.leaky_relu(x, SLOPE) if self.rectified else x


class FeatureFilter(nn.Module):
    """Residual bottleneck, weighed by squeeze and excitation."""

    def __init__(self, channels: int):
        super().__init__()
        half, few = max(1, channels // 2), max(1, channels // 8)
        self.layers = nn.ModuleList(
            [
                Layer(channels, half, kernel=1),
                Layer(half, half),
                Layer(half, channels, kernel=1, rectified=False),
            ]
        )
        self.dense = nn.ModuleList([nn.Linear(channels, few), nn.Linear(few, channels)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y)
        hidden = F.leaky_relu(self.dense[0](y.mean((2, 3)).float()), SLOPE)
        weights = torch.sigmoid(self.dense[1](hidden)).to(y.dtype)
        return F.leaky_relu(x + weights[:, :, None, None] * y, SLOPE)


class Discriminator(nn.Module):
    """The twin of `jaxmark.models.cardiac_gan.PatchDiscriminator`."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        pairs = zip((2, *widths), widths, strict=False)
        self.layers = nn.ModuleList(
            Layer(a, b, stride=2, normalised=i > 0) for i, (a, b) in enumerate(pairs)
        )
        self.convs = nn.ModuleList([nn.Conv2d(widths[-1], 1, 1)])

    def forward(self, image: Tensor, heatmap: Tensor) -> Tensor:
        """(B, 1, X, Y) twice to the mean response to each picture, (B,)."""
        x = torch.cat([image, heatmap], dim=1)
        for layer in self.layers:
            x = layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.convs[0](x.float()).mean((1, 2, 3))


class Networks(nn.Module):
    """The twin of `jaxmark.models.cardiac_gan.UNetGenerator`, and D."""

    def __init__(self, widths: Sequence[int], filters: int, discriminator: Discriminator):
        super().__init__()
        up = [widths[0], *widths[:-1]][::-1]  # channels that the decoder makes
        beside = [1, *widths[:-1]][::-1]  # those of the skip connections
        inputs = [
            1,
            *widths[:-1],
            *(a + b for a, b in zip((widths[-1], *up), beside, strict=False)),
        ]
        self.depth = len(widths)
        self.layers = nn.ModuleList(
            Layer(a, b, stride=1 + (i < self.depth))
            for i, (a, b) in enumerate(zip(inputs, [*widths, *up], strict=True))
        )
        self.filters = nn.ModuleList(FeatureFilter(widths[-1]) for _ in range(filters))
        self.convs = nn.ModuleList([nn.Conv2d(widths[0], 1, 3, padding=1)])
        self.discriminator = discriminator

    def forward(self, x: Tensor) -> Tensor:
        """G: (B, 1, X, Y) to heatmaps (B, 1, X, Y) float32."""
        skips = []
        for layer in self.layers[: self.depth]:
            skips.append(x)
            x = layer(x)
        for block in self.filters:
            x = block(x)
        for layer in self.layers[self.depth :]:
            x = layer(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], dim=1))
        return self.convs[0](x).float()


class CardiacTwin(TorchTwin):
    """As `TorchTwin`, for both networks."""

    def __init__(self, spec: Spec, weights: Weights):
        self.settings = settings(spec)
        self.variance = self.settings.variance or (5.0 if spec.landmarks > 1 else 7.0)
        super().__init__(spec, weights)
        plain = self._g_loss, self._d_loss, self.net.forward
        self._plain: Sequence[Any] = plain
        self._fast: Sequence[Any] = tuple(map(torch.compile, plain))

    def network(self) -> nn.Module:
        """Both."""
        s = self.settings
        return Networks(s.widths, s.filters, Discriminator(s.discriminator_widths))

    def _restart(self) -> None:
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        self.net.load_state_dict(
            {**dict(self.net.named_buffers()), **to_torch(self.weights, self.axes)}
        )
        self.net.eval()
        self.optimizers = self._optimizers()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return adams(self.net, self.spec.learning_rate)

    def step(self, dtype: str) -> Tensor:
        """One step of D and one of G; returns the loss of G."""
        self.net.train()
        g_adam, d_adam = self.optimizers
        d = self.net.discriminator
        # As in `TorchTwin`: compiled on a GPU but for showing equality in float32.
        g_loss, d_loss, generate = self._fast if dtype == "bfloat16" else self._plain
        image = self._crop()
        truth, square = self._truth()
        with self._arithmetic(dtype):
            heatmap = generate(image)
            loss = d_loss(image, truth, heatmap.detach())
        d_adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.get_total_norm([p.grad for p in d.parameters()])
        d_adam.step()
        d.requires_grad_(False)
        g_adam.zero_grad(set_to_none=True)
        with self._arithmetic(dtype):
            loss = g_loss(image, truth, square, heatmap)
        loss.backward()
        d.requires_grad_(True)
        nn.utils.get_total_norm([p.grad for p in g_adam.param_groups[0]["params"]])
        g_adam.step()
        return loss.detach()

    def inference(self, dtype: str) -> tuple[Tensor, Tensor]:
        """Brightest pixels and heights, by the running means."""
        self.net.eval()
        return super().inference(dtype)

    def _truth(self) -> tuple[Tensor, Tensor]:
        """True heatmaps and foreground squares (bool), each (B, 1, X, Y)."""
        points = (self.points - self.margins)[..., :2]
        shown = self.present[..., None]
        x, y = (
            (torch.arange(n, device=self.device) - points[..., axis, None]) ** 2
            for axis, n in enumerate(self.spec.volume[:2])
        )  # (B, K, n)
        spots = torch.exp(-0.5 / self.variance * (x[..., None] + y[:, :, None]))
        truth = (spots * shown[..., None]).amax(1, keepdim=True)
        low = points.masked_fill(~shown, torch.inf).amin(1)
        high = points.masked_fill(~shown, -torch.inf).amax(1)
        half = (high - low).amax(-1) / 2 + REACH * self.variance**0.5
        x, y = (
            (torch.arange(n, device=self.device) - centre[:, None]) ** 2 <= half[:, None] ** 2
            for n, centre in zip(self.spec.volume, ((low + high) / 2).unbind(-1), strict=False)
        )
        return truth, (x[:, :, None] & y[:, None])[:, None]

    def _d_loss(self, image: Tensor, truth: Tensor, heatmap: Tensor) -> Tensor:
        """Eqs. 4 to 6, least squares."""
        d = self.net.discriminator
        return 0.5 * (((d(image, truth) - 1) ** 2).mean() + (d(image, heatmap) ** 2).mean())

    def _g_loss(self, image: Tensor, truth: Tensor, square: Tensor, heatmap: Tensor) -> Tensor:
        """Eqs. 1 to 3 and 7."""
        a_l = ((self.net.discriminator(image, heatmap) - 1) ** 2).mean()
        error = (heatmap - truth).abs()
        near = error.clamp(max=self.settings.huber_delta)
        l_l = (near * (error - near / 2)).mean()
        where = (self.settings.alpha * error**2 + error) * square
        fpl = (where.sum((1, 2, 3)) / square.sum((1, 2, 3))).mean()
        return a_l + self.settings.beta * l_l + fpl
