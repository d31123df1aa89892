"""The machine and the versions, for the JSON."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks.common import cores


class Machine:
    """Lives in a `timing.Worker` that ends at once: asking JAX starts a backend."""

    def describe(self) -> dict[str, Any]:
        """JSON types."""
        device = jax.devices()[0]
        packages = ("jax", "jaxlib", "flax", "numpy", "torch")
        installed = [p for p in packages if importlib.util.find_spec(p)]
        tuning = ("GLIBC_TUNABLES", "XLA_FLAGS", "OMP_NUM_THREADS")
        return {
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "platform": device.platform,
            "device": device.device_kind,
            "machine": f"{platform.machine()}, {processor()}",
            "cores": cores(),
            "load": round(os.getloadavg()[0], 2),
            "versions": {
                "python": platform.python_version(),
                **{package: importlib.metadata.version(package) for package in installed},
            },
            "environment": {name: os.environ[name] for name in tuning if name in os.environ},
        }


def processor() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text() if path.exists() else "")
    return found[1] if found else platform.processor()
