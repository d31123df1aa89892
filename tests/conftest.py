"""Fixtures of all tests. JAX gets two CPU devices, so that sharding is tested for real."""

import os
import shutil
import tempfile

from running import QUICK, with_disk

# Most of the tests' time is the compiler's, and many tests, and the processes that they start,
# compile the same programs.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=2 {QUICK}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR"
) or tempfile.mkdtemp(prefix="jaxmark-compiled-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from absl import flags

from jaxmark.core.geometry import rotation_from_quaternion
from jaxmark.system.errors import InputError

# Grain reads absl flags, which nobody parses in a test.
flags.FLAGS.mark_as_parsed()

# The same examples every time, however slow the machine is.
hypothesis.settings.register_profile(
    "same", derandomize=True, deadline=None, max_examples=50, database=None
)
hypothesis.settings.load_profile("same")


# Files that take longest: last, they would keep one process busy while the other has nothing left.
FIRST = ("test_main.py", "test_sharding.py", "test_adversarial.py", "test_heatmap.py")
FIRST += ("test_benchmarks.py", "test_loop.py", "test_survival.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which the processes get files (with --no-loadscope-reorder)."""
    last = len(FIRST)
    items.sort(key=lambda item: FIRST.index(n) if (n := item.path.name) in FIRST else last)


def pytest_sessionfinish() -> None:
    """Compiled programs are of this session alone; its first process clears them away."""
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    if folder.name.startswith("jaxmark-compiled-") and "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def real_data() -> Path:
    """The folder in JAXMARK_DATA, with `mouse_ct/` and `afids/`."""
    folder = os.environ.get("JAXMARK_DATA")
    if not folder:
        pytest.skip("JAXMARK_DATA names no folder of real scans")
    return Path(folder)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder for `with_disk`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("unshare") or with_disk(folder, "64k", "true").returncode:
        pytest.skip("no file system can be mounted here")
    return folder


def refused(call: Callable[[], object], *fragments: str | Path) -> None:
    """The call raises an InputError of one line, which holds the fragments."""
    with pytest.raises(InputError) as caught:
        call()
    line = str(caught.value)
    print(line)
    assert "\n" not in line and r"\n" not in line
    for fragment in fragments:
        assert str(fragment) in line


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A (3, 3) rotation, uniform over all rotations."""
    return rotation_from_quaternion(rng.standard_normal(4))
