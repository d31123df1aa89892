"""Meshes over devices: parameters are copied to each, batches are split between them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """A 1-D mesh named `data` over every device of all processes."""
    return _mesh(jax.devices())


def local_mesh() -> Mesh:
    """The same over the devices of this process only."""
    return _mesh(jax.local_devices())


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=list(devices)
    )


def platform(mesh: Mesh) -> str:
    """JAX's name for the kind of the mesh's devices: "cpu", "gpu" or "tpu"."""
    return str(mesh.devices.flat[0].platform)


def own_rows(mesh: Mesh, rows: int) -> slice:
    """The rows of a batch that go to this process; `rows` is a multiple of the devices' number."""
    owners = [device.process_index for device in mesh.devices.flat]
    own = jax.process_index()
    first, count = owners.index(own), owners.count(own)
    return slice(first * rows // mesh.size, (first + count) * rows // mesh.size)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding in which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding that divides the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, tree: Any) -> Any:
    """Host arrays of this process -> global device arrays; returns before the copy has ended."""
    sharding = split(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )
