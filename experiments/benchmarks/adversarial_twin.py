"""The PyTorch twin of the adversarial phase: the same networks, losses and optimisers."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarks.common import Spec, Weights
from experiments.benchmarks.methods import adversarial
from experiments.benchmarks.twin import ResidualUNet, TorchTwin, gaussians, weighted_loss
from jaxmark.methods.adversarial import Adversarial

SLOPE = 0.2  # of D's leaky rectifiers
# Loss of G, loss of D, G itself.
Functions = tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]


class Discriminator(nn.Module):
    """The twin of `jaxmark.models.discriminator.HeatmapDiscriminator` with positions."""

    def __init__(self, spec: Spec, settings: Adversarial):
        super().__init__()
        first, *widths = settings.discriminator_widths
        stem = nn.Conv3d(spec.landmarks + 4, first, 2, stride=2)
        self.weight, self.bias = stem.weight, stem.bias
        inputs = (first, *widths)
        self.strided = nn.ModuleList(
            nn.Conv3d(a, b, 2, stride=2) for a, b in zip(inputs, widths, strict=False)
        )
        self.convs = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for width in widths)
        voxels = 1
        for side in spec.volume:
            side //= 2
            for _ in widths:
                side = -(-side // 2)
            voxels *= side
        hidden = settings.discriminator_hidden
        self.dense = nn.ModuleList([nn.Linear(voxels * inputs[-1], hidden), nn.Linear(hidden, 1)])
        self.register_buffer("positions", positions(spec.volume), persistent=False)

    def forward(self, heatmaps: Tensor) -> Tensor:
        """(B, K, X, Y, Z) to logits (B,)."""
        place = self.get_buffer("positions").to(heatmaps.dtype)
        x = torch.cat([heatmaps, place.expand(len(heatmaps), -1, -1, -1, -1)], dim=1)
        x = F.leaky_relu(F.conv3d(x, self.weight, self.bias, stride=2), SLOPE)
        for strided, conv in zip(self.strided, self.convs, strict=True):
            x = F.pad(x, [p for n in reversed(x.shape[2:]) for p in (0, n % 2)])
            x = F.leaky_relu(strided(x), SLOPE)
            x = F.leaky_relu(conv(x), SLOPE)
        x = F.leaky_relu(self.dense[0](x.permute(0, 2, 3, 4, 1).flatten(1)), SLOPE)
        with torch.autocast(x.device.type, enabled=False):
            return self.dense[1](x.float())[:, 0]


def positions(shape: Sequence[int]) -> Tensor:
    """(1, 4, X, Y, Z), channels last: coordinates from -1 to 1 and the distance from the centre."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    distance = torch.linalg.vector_norm(place, dim=0, keepdim=True) / 3**0.5
    found = torch.cat([place, distance])[None]
    return found.contiguous(memory_format=torch.channels_last_3d)


class Networks(nn.Module):
    """G by its own names, so that it loads as in `TorchTwin`, and D."""

    def __init__(self, generator: ResidualUNet, discriminator: Discriminator):
        super().__init__()
        self.blocks, self.ups, self.convs = generator.blocks, generator.ups, generator.convs
        self.discriminator = discriminator
        self.generate = generator.forward

    def forward(self, x: Tensor) -> Tensor:
        """G's heatmaps."""
        return self.generate(x)


class AdversarialTwin(TorchTwin):
    """As `TorchTwin`, for the adversarial phase."""

    def __init__(self, spec: Spec, weights: Weights):
        self.settings = adversarial(spec)
        super().__init__(spec, weights)
        self._plain: Functions = (self._of_g, self._of_d, self.net)
        g_loss, d_loss, generate = map(torch.compile, self._plain)
        self._fast: Functions = (g_loss, d_loss, generate)

    def network(self) -> nn.Module:
        """Both."""
        generator = super().network()
        assert isinstance(generator, ResidualUNet)
        return Networks(generator, Discriminator(self.spec, self.settings))

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return adams(self.net, self.spec.learning_rate)

    def step(self, dtype: str) -> Tensor:
        """One step of D and one of G; returns the loss of G."""
        g_adam, d_adam = self.optimizers
        d = self.net.discriminator
        # As in `TorchTwin`: compiled on a GPU but for showing equality in float32.
        g_loss, d_loss, generate = self._fast if dtype == "bfloat16" else self._plain
        with self._arithmetic(dtype):
            fake = generate(self._crop())
            loss = d_loss(fake.detach())
        d_adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.get_total_norm([p.grad for p in d.parameters() if p.grad is not None])
        d_adam.step()
        d.requires_grad_(False)
        g_adam.zero_grad(set_to_none=True)
        with self._arithmetic(dtype):
            loss = g_loss(fake)
        loss.backward()
        d.requires_grad_(True)
        parameters = g_adam.param_groups[0]["params"]
        nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        g_adam.step()
        return loss.detach()

    def _of_d(self, fake: Tensor) -> Tensor:
        """Eq. 4."""
        d, shown = self.net.discriminator, self.present[:, :, None, None, None]
        real = gaussians(self.points - self.spec.margin, self.spec)
        return F.softplus(-d(real * shown)).mean() + F.softplus(d(fake * shown)).mean()

    def _of_g(self, fake: Tensor) -> Tensor:
        """Eqs. 2 and 3."""
        points, shown = self.points - self.spec.margin, self.present[:, :, None, None, None]
        heat = weighted_loss(fake, points, self.present, self.spec)
        adversarial_loss = F.softplus(-self.net.discriminator(fake * shown)).mean()
        return heat + self.settings.lambda_adv * adversarial_loss


def adams(net: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Of a network with a `discriminator`: one of all else, and one of that."""
    d = list(net.get_submodule("discriminator").parameters())
    ours = {id(parameter) for parameter in d}
    g = [p for p in net.parameters() if id(p) not in ours]
    return [torch.optim.Adam(some, lr=rate, fused=True) for some in (g, d)]
