"""Huge pages: real processes that start again, and say what they were given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxmark.system.huge_pages import (
    KERNEL,
    TUNABLE,
    VARIABLE,
    nothing_but_a_cpu,
    obstacle,
    setting,
)

ROOT = Path(__file__).parents[2]

# Memory of malloc, not of NumPy, which asks for huge pages by itself.
PROGRAM = """
import json, os, sys
from jaxmark.system.huge_pages import restart_with_huge_pages, state
print("once more")
if "off" not in sys.argv:
    restart_with_huge_pages()
buffer = b"x" * 2**26
rollup = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup").readlines()[1:])
print(json.dumps({
    "pid": os.getpid(), "argv": sys.argv[1:], "state": state(),
    "huge_mib": int(rollup["AnonHugePages:"]) // 1024,
    "tunables": os.environ.get("GLIBC_TUNABLES"),
}))
sys.exit(7)
"""

possible = pytest.mark.skipif(obstacle() is not None, reason=f"huge pages: {obstacle()}")


def program(*arguments, tunables=None):
    """What PROGRAM says of itself, and how often it began."""
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    if tunables is not None:
        environment[VARIABLE] = tunables
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
        cwd=ROOT,
    )
    *begun, said = process.communicate(timeout=60)[0].splitlines()
    assert process.returncode == 7
    said = json.loads(said)
    assert said.pop("pid") == process.pid
    assert said.pop("argv") == list(arguments)
    return said, len(begun)


@possible
def test_a_command_starts_again_once_with_the_same_arguments():
    said, begun = program("--a=b c", "", "*", "ä")
    assert begun == 2
    assert (said["state"], said["tunables"]) == ("on", f"{TUNABLE}=1")
    assert said["huge_mib"] >= 60


@pytest.mark.skipif(not KERNEL.exists(), reason="needs Linux")
def test_what_is_switched_off_stays_off():
    said, begun = program("off")
    assert begun == 1 and said["tunables"] is None and said["state"].startswith("off")
    if "[always]" not in KERNEL.read_text():
        assert said["huge_mib"] == 0


@possible
@pytest.mark.parametrize(("value", "state"), [("0", "off"), ("1", "on")])
def test_what_the_environment_says_of_huge_pages_holds(value, state):
    said, begun = program(tunables=f"{TUNABLE}={value}")
    assert (begun, said["state"], said["tunables"]) == (1, state, f"{TUNABLE}={value}")


@possible
def test_other_tunables_are_kept():
    said, begun = program(tunables="glibc.malloc.arena_max=2")
    assert (begun, said["tunables"]) == (2, f"glibc.malloc.arena_max=2:{TUNABLE}=1")
    assert said["huge_mib"] >= 60


def test_the_setting_is_found_among_others():
    assert setting("") is None
    assert setting("glibc.malloc.arena_max=2") is None
    assert setting(f"a=1:{TUNABLE}=0:b=2:{TUNABLE}=1") == "1"


# A signal just before the command starts again, or between the two starts.
STOPPED = """
import os, signal, sys, time
from jaxmark.system import huge_pages, interrupts
interrupts.leave_on_signals()
stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
block, execute = huge_pages.blocked, os.execve
if sys.argv[1] == "before":
    huge_pages.blocked = lambda: (stop(), block())[1]
else:
    os.execve = lambda *arguments: (stop(), execute(*arguments))
huge_pages.restart_with_huge_pages()
time.sleep(5)
print("no signal came")
"""


@possible
@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_signal_is_not_forgotten_when_a_command_starts_again(moment):
    for _ in range(5):
        result = subprocess.run(
            [sys.executable, "-c", STOPPED, moment],
            capture_output=True,
            encoding="utf-8",
            env={k: v for k, v in os.environ.items() if k != VARIABLE},
            cwd=ROOT,
            timeout=60,
        )
        said = (result.returncode, result.stdout, result.stderr)
        assert said == (3, "", "stopped by SIGTERM; the same command continues\n")


@pytest.mark.parametrize(("platforms", "alone"), [("cpu", True), ("cuda,cpu", False)])
def test_named_platforms_decide_whether_there_is_but_a_cpu(platforms, alone, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert nothing_but_a_cpu() is alone


def test_a_plugin_may_bring_another_device(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    before = nothing_but_a_cpu()
    monkeypatch.setenv("PJRT_NAMES_AND_LIBRARY_PATHS", "other:/lib/other.so")
    assert not nothing_but_a_cpu()
    monkeypatch.delenv("PJRT_NAMES_AND_LIBRARY_PATHS")
    assert nothing_but_a_cpu() is before
    # As JAX's plugins say it: by a package in `jax_plugins`, or by an entry point.
    for name in ("jax_plugins/other/__init__.py", "other-1.dist-info/entry_points.txt"):
        place = tmp_path / name.partition("/")[0].replace(".", "_")
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text("[jax_plugins]\nother = other\n" if "dist-info" in name else "")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(place)
            assert not nothing_but_a_cpu()
