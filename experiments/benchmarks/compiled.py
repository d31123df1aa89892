"""Part (h): what XLA makes of the programs for a GPU that need not be there."""

import importlib.metadata
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmarks import hlo, roofline
from experiments.benchmarks.common import Options, Row, Spec
from experiments.benchmarks.methods import MethodContender
from experiments.benchmarks.timing import Worker, WorkerError, ratio
from jaxmark.methods.method import State
from jaxmark.system.memory import bytes_at_once

METHOD = (
    "Compiled for an NVIDIA H100 (80 GB) by JAX's CUDA plugin (pip install '.[cuda13]'), without a "
    "GPU or a driver and without autotuning; nothing is run. peak_MB: what the program needs at "
    "once, with weights, batch and optimiser, but without cuDNN's work space. moved_MB: what its "
    "kernels read from and write to the device's memory, counted from the compiled program; of an "
    "array that a kernel takes slices of, those; what a cache still holds is counted, too. "
    "floor_MB: the least, if all else were fused into the convolutions (roofline); ms_to_move, "
    "of moved_MB, at 3.35 TB/s, the memory's rate on paper. The columns after it are its parts. "
    "channels: where 3-D convolutions have them; XLA puts them first and transposes, with "
    "--xla_gpu_force_conv_nhwc they stay last. products: of matrices, fused with what stands "
    "around them, or apart (cuBLAS), where the compiler can't choose a fused form without a GPU."
)
HERE = "experiments.benchmarks.compiled:CompiledContender"
WORKS = {
    "step": ("heatmap", "step"),
    "inference": ("heatmap", "inference"),
    "adversarial": ("adversarial", "step"),
}
CHANNELS: dict[str, dict[str, Any]] = {"first": {}, "last": {"xla_gpu_force_conv_nhwc": True}}
BYTES_PER_MS = 3.35e9
# An H100 SXM: figures of NVIDIA's data sheet, names of XLA's stream_executor/device_description.
TARGET = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# The plugin asks a driver for versions, which need not be here; JAX's own work is the CPU's.
ENVIRONMENT = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "cpu"}


def rows(spec: Spec, options: Options) -> Iterator[Row | str]:
    """A row a program and order of channels; what can't be compiled is a note."""
    if not importlib.metadata.entry_points(group="jax_plugins"):
        yield f"{spec}: needs JAX's CUDA plugin (pip install '.[cuda13]')"
        return
    for work, (name, program) in WORKS.items():
        with Worker(HERE, spec, name, env=ENVIRONMENT) as worker:
            for channels in CHANNELS:
                try:
                    yield row(spec, work, channels, worker.call("facts", program, channels))
                except WorkerError as error:
                    yield f"{spec}: {work}, channels {channels}, is left out: {error}"


def row(spec: Spec, work: str, channels: str, known: dict[str, Any]) -> Row:
    """All in MB but for counts and times."""
    moved = sum(known["moved"].values())
    floor = sum(size for _, size in roofline.costs(work, spec)) if work != "adversarial" else None
    return {
        **spec.columns,
        "work": work,
        "channels": channels,
        "products": known["products"],
        "peak_MB": known["peak"] / 1e6,
        "moved_MB": moved / 1e6,
        "floor_MB": ratio(floor, 1e6),
        "moved/floor": ratio(moved, floor),
        "ms_to_move": moved / BYTES_PER_MS,
        **{kind: size / 1e6 for kind, size in known["moved"].items()},
        "kernels": known["kernels"],
        "compile_s": known["compile_s"],
        "largest": {k.source + " " + k.name: k.moved for k in known["largest"]},
    }


class CompiledContender(MethodContender):
    """A method's programs for the GPU of `TARGET`; lives in a `timing.Worker`."""

    def initial(self) -> State:
        """Shapes do: nothing is run."""
        return self.shapes

    def facts(self, work: str, channels: str) -> dict[str, Any]:  # type: ignore[override]
        """Bytes at once, bytes moved by kind, the largest kernels, seconds to compile."""
        there = on_target()
        data = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
            (self.shapes, self.batch, self.key),
        )
        return compiled_facts(self.traced(work, self.spec.dtype, data), CHANNELS[channels])


def on_target() -> NamedSharding:
    """Arrays of programs that are compiled for the GPU of `TARGET`; see `ENVIRONMENT`."""
    target = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology="1x1x1")
    return NamedSharding(topologies.make_mesh(target, (1,), ("data",)), PartitionSpec())


def compiled_facts(traced: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes at once, bytes moved by kind, the largest kernels, seconds to compile.

    Args:
      traced: a lowered program of arrays that are `on_target`.
      options: of XLA, beside those that a compiler without a GPU needs.
    """
    options = {"xla_gpu_autotune_level": 0, **options}
    begin = time.perf_counter()
    try:
        compiled, products = traced.compile(compiler_options=options), "fused"
    except jax.errors.JaxRuntimeError:
        # Some products that Triton should fuse with a transposition need a GPU to choose from.
        options["xla_gpu_enable_triton_gemm"] = False
        compiled, products = traced.compile(compiler_options=options), "apart"
    seconds = time.perf_counter() - begin
    found = hlo.kernels(compiled.as_text())
    return {
        "peak": bytes_at_once(compiled),
        "moved": hlo.by_kind(found),
        "kernels": sum(kernel.repeats for kernel in found),
        "largest": largest(found),
        "products": products,
        "compile_s": seconds,
    }


def largest(found: Sequence[hlo.Kernel], count: int = 30) -> list[hlo.Kernel]:
    """Those that move most."""
    return sorted(found, key=lambda kernel: -kernel.moved)[:count]
