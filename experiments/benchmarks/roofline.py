"""Part (e): the fastest that this device could do the step, by arithmetic and by traffic."""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import Options, Part, Row, Spec, Worker, cores, interleave, median_ms, timed

METHOD = (
    "Each convolution's multiply-adds (2 FLOP; backward twice the forward, less where no input "
    "gradient is needed), and its traffic if all else is fused: forward reads its input and writes "
    "its output, backward reads both gradients' inputs (input, output gradient) and writes the "
    "input gradient; Adam adds 8 passes over the weights. A layer takes at least the longer of "
    "FLOP / peak and bytes / bandwidth; the floor is their sum. Peak: a large matrix product; "
    "bandwidth: a triad in place; the best of the repeats, measured between the timed steps."
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of a whole batch; every kernel tap meets every input voxel once."""

    name: str
    voxels_in: int
    voxels_out: int
    taps: int
    channels_in: int
    channels_out: int
    input_gradient: bool = True

    @property
    def weights(self) -> int:
        """Of the kernel."""
        return self.taps * self.channels_in * self.channels_out

    @property
    def forward_flops(self) -> int:
        """Borders are counted as if they were not."""
        return 2 * self.voxels_in * self.weights

    @property
    def backward_flops(self) -> int:
        """Gradient of the kernel, and of the input where something trains before it."""
        return (1 + self.input_gradient) * self.forward_flops

    def forward_bytes(self, item: int) -> int:
        """Input read, output written."""
        return item * (self.voxels_in * self.channels_in + self.voxels_out * self.channels_out)

    def backward_bytes(self, item: int) -> int:
        """Input and output gradient read, input gradient written."""
        written = self.input_gradient * item * self.voxels_in * self.channels_in
        return self.forward_bytes(item) + written


def layers(spec: Spec) -> list[Layer]:
    """All convolutions of the network, in order."""
    found: list[Layer] = []

    def conv(name: str, voxels: int, kernel: int, c_in: int, c_out: int) -> None:
        gradient = name not in ("down0.conv0", "down0.shortcut")  # the image needs none
        found.append(Layer(name, voxels, voxels, kernel**3, c_in, c_out, gradient))

    def block(name: str, voxels: int, c_in: int, c_out: int) -> None:
        conv(f"{name}.conv0", voxels, 3, c_in, c_out)
        conv(f"{name}.conv1", voxels, 3, c_out, c_out)
        if c_in != c_out:
            conv(f"{name}.shortcut", voxels, 1, c_in, c_out)

    voxels = spec.batch * math.prod(spec.volume)
    widths = spec.widths
    for level, (c_in, c_out) in enumerate(zip((1, *widths), widths, strict=False)):
        block(f"down{level}", voxels // 8**level, c_in, c_out)
    for level in reversed(range(len(widths) - 1)):
        fine, width = voxels // 8**level, widths[level]
        found.append(Layer(f"up{level}", fine // 8, fine, 8, widths[level + 1], width))
        block(f"join{level}", fine, 2 * width, width)
    if spec.head:
        conv("head", voxels, 1, widths[0], spec.head)
    conv("out", voxels, 1, spec.head or widths[0], spec.landmarks)
    return found


@dataclasses.dataclass(frozen=True)
class Device:
    """What it can do."""

    flops_per_s: float
    bytes_per_s: float

    def seconds(self, flops: float, size: float) -> float:
        """The least time for so much arithmetic and traffic."""
        return max(flops / self.flops_per_s, size / self.bytes_per_s)


def adam_bytes(layers: Sequence[Layer]) -> int:
    """float32: the gradient written and read, weights and two moments read and written."""
    return 8 * 4 * sum(layer.weights for layer in layers)


def floor_seconds(work: str, layers: Sequence[Layer], item: int, device: Device) -> float:
    """The least time of "inference" or "step"; `item` bytes an activation."""
    forward = sum(device.seconds(x.forward_flops, x.forward_bytes(item)) for x in layers)
    if work == "inference":
        return forward
    back = sum(device.seconds(x.backward_flops, x.backward_bytes(item)) for x in layers)
    return forward + back + device.seconds(0, adam_bytes(layers))


class DeviceProbe:
    """Measures the device, and says what it is; lives in a `common.Worker`."""

    def __init__(self, spec: Spec):
        side = 16384 if spec.platform == "gpu" else 3072
        length = 2**28 if spec.platform == "gpu" else 2**26
        dtype = jnp.dtype(spec.dtype)
        self._a = jnp.ones((side, side), dtype)
        self._x, self._y = jnp.ones(length), jnp.ones(length)
        self._dot = jax.jit(jnp.dot)
        # In place: fresh pages would be measured otherwise.
        self._triad = jax.jit(lambda x, y: 0.5 * x + y, donate_argnums=0)

    def run(self, work: str, count: int) -> float:
        """Seconds of `count` matrix products ("dot") or triads ("triad")."""
        jax.block_until_ready((self._a, self._x, self._y))
        result = None
        begin = time.perf_counter()
        for _ in range(count):
            if work == "dot":
                result = self._dot(self._a, self._a)
            else:
                result = self._x = self._triad(self._x, self._y)
        jax.block_until_ready(result)
        return time.perf_counter() - begin

    def sizes(self) -> dict[str, int]:
        """FLOP of a product, bytes of a triad (two reads, one write)."""
        return {"dot": 2 * self._a.shape[0] ** 3, "triad": 3 * self._x.nbytes}


class About:
    """The machine and the versions, asked of a process that ends at once."""

    def describe(self) -> dict[str, Any]:
        """JSON types."""
        device = jax.devices()[0]
        packages = ("jax", "jaxlib", "flax", "numpy", "torch")
        installed = [p for p in packages if importlib.util.find_spec(p)]
        return {
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "platform": device.platform,
            "device": device.device_kind,
            "machine": f"{platform.machine()}, {_processor()}",
            "cores": cores(),
            "load": round(os.getloadavg()[0], 2),
            "versions": {
                "python": platform.python_version(),
                **{package: importlib.metadata.version(package) for package in installed},
            },
            "environment": {
                name: os.environ[name]
                for name in ("GLIBC_TUNABLES", "XLA_FLAGS", "OMP_NUM_THREADS")
                if name in os.environ
            },
        }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def measure(options: Options) -> Part:
    """Two rows a volume, training and inference."""
    part = Part("roofline", METHOD, [])
    for spec in options.specs():
        part.rows.extend(rows(spec, options))
    return part


def rows(spec: Spec, options: Options) -> list[Row]:
    """Floor and measured time of one problem."""
    with (
        Worker("roofline:DeviceProbe", spec) as probe,
        Worker("contenders:JaxContender", spec, "jaxmark") as contender,
    ):
        jobs = {name: timed(probe, name)[0] for name in ("dot", "triad")}
        jobs |= {name: timed(contender, name)[0] for name in ("step", "inference")}
        times = interleave(jobs, options, f"{spec.size} roofline")
        sizes = probe.call("sizes")
    device = Device(*(sizes[name] / min(times[name]) for name in ("dot", "triad")))
    net, item = layers(spec), 4 if spec.dtype == "float32" else 2
    found = []
    for work in ("step", "inference"):
        training = work == "step"
        flops = sum(x.forward_flops + training * x.backward_flops for x in net)
        size = sum(x.forward_bytes(item) + training * x.backward_bytes(item) for x in net)
        size += training * adam_bytes(net)
        floor = 1e3 * floor_seconds(work, net, item, device)
        measured = median_ms(times[work])
        assert measured is not None
        found.append(
            {
                "volume": spec.size,
                "work": work,
                "GFLOP": flops / 1e9,
                "GB": size / 1e9,
                "peak_GFLOP/s": device.flops_per_s / 1e9,
                "bandwidth_GB/s": device.bytes_per_s / 1e9,
                "floor_ms": floor,
                "measured_ms": measured,
                "floor/measured": floor / measured,
                "reached_GFLOP/s": flops / 1e6 / measured,
                **{f"{name}_seconds": times[name] for name in ("dot", "triad", work)},
            }
        )
    return found
