"""Fixtures of all tests. JAX gets two CPU devices, so that sharding is tested for real."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pathlib import Path

import pytest
from absl import flags

# Grain reads absl flags, which nobody parses in a test.
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def real_data() -> Path:
    """The folder in JAXMARK_DATA, with `mouse_ct/` and `afids/`."""
    folder = os.environ.get("JAXMARK_DATA")
    if not folder:
        pytest.skip("JAXMARK_DATA names no folder of real scans")
    return Path(folder)
