"""Huge pages for large buffers: Linux gives memory in pieces of 2 MiB instead of 4 KiB.

On a CPU every step takes new buffers from malloc, and getting them page by page is a good part of
its time (a training step of 96 x 80 x 48 voxels: 0.92 s without, 0.65 s with huge pages). glibc
reads the variable that turns them on only when a process starts; so a command starts itself again,
once. Keeping freed memory for the next step (mallopt: no mmap, no trim) is as fast and needs no new
start, but took up to twice the memory.
"""

import importlib.util
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

from jaxmark.system.interrupts import blocked, catch_up

VARIABLE = "GLIBC_TUNABLES"
TUNABLE = "glibc.malloc.hugetlb"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Starts this command again with huge pages, in the same process, and does not return.

    Returns where nothing would change (see `environment`).
    """
    if changes := environment():
        sys.stdout.flush()
        sys.stderr.flush()
        # argv[0] may be a bare "python"; the full path finds the same virtual environment.
        arguments = [sys.executable, *sys.orig_argv[1:]]
        # New signals wait until the new start can handle them. Earlier ones would be lost, so they
        # are handled first.
        with blocked():
            catch_up()
            os.execve(sys.executable, arguments, {**os.environ, **changes})


def nothing_but_a_cpu() -> bool:
    """Whether JAX can find no device but a CPU, without importing JAX; False if in doubt."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    if os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS") or entry_points(group="jax_plugins"):
        return False
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def environment() -> dict[str, str]:
    """The environment variable that gives new processes huge pages.

    Empty where there can be none, and where the environment sets the tunable already (0 is off).
    """
    tunables = os.environ.get(VARIABLE, "")
    if setting(tunables) is not None or obstacle():
        return {}
    return {VARIABLE: f"{tunables}:{TUNABLE}=1" if tunables else f"{TUNABLE}=1"}


def state() -> str:
    """Whether this process has huge pages: "on", or "off" and why."""
    if why := obstacle():
        return f"off ({why})"
    return "on" if setting(os.environ.get(VARIABLE, "")) in ("1", "2") else "off"


def setting(tunables: str) -> str | None:
    """The tunable's value in `name=value:name=value`; the last one counts."""
    return dict(entry.partition("=")[::2] for entry in tunables.split(":")).get(TUNABLE)


def obstacle() -> str | None:
    """Why there can be no huge pages; None where there can."""
    if glibc_version() < (2, 35):
        return "needs Linux with glibc 2.35"
    if not KERNEL.exists() or "[never]" in KERNEL.read_text():
        return f"{KERNEL} is never"
    return None


def glibc_version() -> tuple[int, ...]:
    """As in (2, 36); empty where the C library is another."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError, AttributeError):
        return ()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()
