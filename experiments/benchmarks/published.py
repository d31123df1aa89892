"""SpatialConfiguration-Net against one that others published: `landmarker`, with copied weights.

pip install --no-deps landmarker==0.4.1 monai==1.6.1 && python -m experiments.benchmarks.published

(After `pip install '.[bench]'`. With its own dependencies landmarker would replace PyTorch and
SciPy; for this network it needs no others.) Exit code 1 where the networks differ.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from torch import Tensor, nn

from experiments.benchmarks.common import Weights
from experiments.benchmarks.step import relative
from experiments.benchmarks.timing import table
from jaxmark.models.scn import SLOPE, SpatialConfigurationNet, upsample_cubic

# What landmarker 0.4.1 does otherwise than the authors' public code of 2019, which ours follows.
DEVIATIONS = (
    "its lowest level has two layers; the authors have a third one on every level",
    "its local heatmaps are made by a 1^3 convolution, the authors' by a 3^3 one",
    "it has zeros outside of volumes; the authors mirror them, except for the first layer and the "
    "local heatmaps",
    "it interpolates the spatial part linearly, then takes tanh; the authors take tanh, then "
    "interpolate by cubics",
    "its dropout takes whole channels, the authors' single values",
    "its spatial part sees blocks of 4 voxels a side by default, the authors' of 8",
    "its 3-D network starts with PyTorch's own weights; the authors have He's, and a normal "
    "distribution of 0.001 for what makes heatmaps",
)
SHAPE = (32, 24, 16)
LANDMARKS, FILTERS, LEVELS, DOWNSAMPLE = 5, 8, 3, 4
LIMIT = 1e-4  # of the largest value: rounding in float32


def own(reflect: bool) -> SpatialConfigurationNet:
    """Ours, small, with zeros or mirror images outside of volumes."""
    return SpatialConfigurationNet(
        LANDMARKS, "2019", FILTERS, LEVELS, DOWNSAMPLE, 1, dropout=0.5, reflect=reflect
    )


def random_weights() -> Weights:
    """For `own`, no heatmap near zero and no bias zero."""
    shapes = jax.eval_shape(own(False).init, jax.random.key(0), jnp.zeros((1, *SHAPE, 1)))
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> np.ndarray:
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

    flat = flatten_dict(shapes["params"], sep="/")
    return {name: draw(leaf) for name, leaf in flat.items()}


def theirs(weights: Weights, reflect: bool) -> nn.Module:
    """landmarker's network with our weights, changed where `DEVIATIONS` leave these no place."""
    from landmarker.models import OriginalSpatialConfigurationNet3d

    def fill(layer: nn.Module, name: str, mirrored: bool = reflect) -> nn.Module:
        found = (weights[f"{name}/{part}"] for part in ("kernel", "bias"))
        kernel, bias = map(torch.from_numpy, found)
        layer.weight.data = kernel.permute(4, 3, 0, 1, 2).contiguous()
        layer.bias.data = bias
        if mirrored:
            layer.padding_mode = "reflect"
            layer._reversed_padding_repeated_twice = [kernel.shape[0] // 2] * 6
        return layer

    net = OriginalSpatialConfigurationNet3d(
        out_channels=LANDMARKS,
        la_channels=FILTERS,
        la_depth=LEVELS - 1,
        sp_channels=FILTERS,
        sp_downsample=DOWNSAMPLE,
    )
    fill(net.first_conv[0], "local/Layer_0/Conv_0", mirrored=False)
    for level, (down, up) in enumerate(
        zip(net.la_downlayers, reversed(net.up_layers), strict=True)
    ):
        for number, layer in enumerate((down.conv1, down.conv2, up.conv1)):
            fill(layer[0], f"local/level_{level}/Layer_{number}/Conv_0")
    lowest = f"local/level_{LEVELS - 1}"
    third = nn.Conv3d(FILTERS, FILTERS, 3, padding="same")
    net.bottleneck_layer.append(third).append(nn.LeakyReLU(SLOPE))
    for number in range(3):
        fill(net.bottleneck_layer[2 * number], f"{lowest}/Layer_{number}/Conv_0")
    net.last_layer = nn.Conv3d(FILTERS, LANDMARKS, 3, padding="same")
    fill(net.last_layer, "local_heatmaps", mirrored=False)
    for number in range(3):
        fill(net.sc_net[1 + 2 * number], f"spatial_{number}/Conv_0")
    fill(net.sc_net[7], "spatial_heatmaps")
    return net.eval()


def compared(weights: Weights, image: np.ndarray, reflect: bool) -> dict[str, Any]:
    """Largest differences of both parts, as shares of the largest value."""
    net, caught = theirs(weights, reflect), {}

    def catch(name: str, layer: nn.Module) -> None:
        layer.register_forward_hook(lambda *found: caught.update({name: found[-1]}))

    catch("local", net.last_layer)
    catch("coarse", net.sc_net[7])
    with torch.inference_mode():
        product = last(net(torch.from_numpy(image).permute(0, 4, 1, 2, 3)))
    params = {"params": unflatten_dict(weights, sep="/")}
    found: Any = jax.jit(own(reflect).apply)(params, image)
    heatmaps, local, spatial = map(np.asarray, found)
    # In the authors' order: tanh, then cubic.
    expected = upsample_cubic(jnp.tanh(last(caught["coarse"])), DOWNSAMPLE)
    return {
        "outside": "mirrored" if reflect else "zeros",
        "local": relative(local, last(caught["local"])),
        "spatial": relative(spatial, np.asarray(expected)),
        "product, with its interpolation": relative(heatmaps, product),
    }


def last(volume: Tensor) -> np.ndarray:
    """Channels, from the second axis."""
    return volume.permute(0, 2, 3, 4, 1).numpy()


def parameters() -> dict[str, int]:
    """Counts at the paper's size: 64 filters, 4 levels, 19 landmarks."""
    from landmarker.models import OriginalSpatialConfigurationNet3d

    net = SpatialConfigurationNet(19, "2019", 64, 4, 8, 1, dropout=0.5, reflect=True)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))

    def layer(side: int, c_in: int, c_out: int) -> int:
        return side**3 * c_in * c_out + c_out

    local = layer(3, 1, 64) + 4 * 3 * layer(3, 64, 64) + layer(3, 64, 19)
    spatial = layer(7, 19, 64) + 2 * layer(7, 64, 64) + layer(7, 64, 19)
    there = sum(p.numel() for p in OriginalSpatialConfigurationNet3d(1, 19).parameters())
    return {
        "ours": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "by hand": local + spatial,
        "landmarker": there,
        "landmarker with a third layer and 3^3 heatmaps": there
        + layer(3, 64, 64)
        + layer(3, 64, 19)
        - layer(1, 64, 19),
    }


def main() -> None:
    """Exit code 1 where the networks differ, or landmarker is not there."""
    try:
        counts: Mapping[str, int] = parameters()
    except ModuleNotFoundError as error:
        install = "pip install --no-deps landmarker==0.4.1 monai==1.6.1"
        print(f"error: {error} ({install})", file=sys.stderr)
        sys.exit(1)
    print("parameters: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    image = np.random.default_rng(1).standard_normal((1, *SHAPE, 1), np.float32)
    rows = [compared(random_weights(), image, reflect) for reflect in (False, True)]
    shown = [
        {name: value if name == "outside" else f"{value:.1e}" for name, value in row.items()}
        for row in rows
    ]
    print(
        "\nLargest differences as shares of the largest value, copied weights, landmarker with a "
        f"third layer on its lowest level and 3^3 heatmaps:\n{table(shown)}"
    )
    print("\nWhat landmarker 0.4.1 does otherwise than the authors' code:")
    print("\n".join(f"- {line}" for line in DEVIATIONS))
    equal = counts["ours"] == counts["by hand"] == list(counts.values())[-1]
    if not (equal and all(row[part] <= LIMIT for row in rows for part in ("local", "spatial"))):
        print("error: they differ", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
