"""The command line in real processes, on devices and disks of a test's choosing."""

import json
import os
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from jaxmark.system.huge_pages import VARIABLE

ROOT = Path(__file__).parents[1]
TINY = "--config=experiments/cow.py:tiny"
PROGRAM = "from jaxmark.main import console; console()"
# Fast code is of no use here and takes long to compile: with the newer emitters of fusions, four
# times as long as with the older ones.
PLAIN = "--xla_backend_optimization_level=0"
# 0.12 has no older ones, and ends the process at a flag that it does not know.
OLDER_EMITTERS = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
QUICK = f"{PLAIN} --xla_cpu_use_fusion_emitters=false" if OLDER_EMITTERS else PLAIN
# A shell with a view of the file systems of its own, in which it may mount one.
OWN_VIEW = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def jaxmark(*arguments, **environment):
    """A finished command. None in the environment: without such a variable."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", VARIABLE)}
    changed = {**inherited, "XLA_FLAGS": QUICK, **environment}
    return subprocess.run(
        [sys.executable, "-m", "jaxmark.main", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={k: v for k, v in changed.items() if v is not None},
        cwd=ROOT,
        timeout=300,
    )


# Runs each command line that stdin has, and writes exit codes and outputs to stdout: in processes
# that are copies of one which has imported what they need. A short one's imports take most of it.
COPIES = """
import json, os, subprocess, sys, tempfile
import jax, jaxmark.workflow
from jaxmark.main import console

def run(arguments):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv[1:] = arguments
            console()
        _, status = os.waitpid(child, 0)
        texts = [file.seek(0) or file.read().decode() for file in (out, err)]
    return [os.waitstatus_to_exitcode(status), *texts]

json.dump([run(arguments) for arguments in json.load(sys.stdin)], sys.stdout)
"""


def jaxmark_copies(commands):
    """As `jaxmark` for each list of arguments, one after another; processes start in no time."""
    inherited = {k: v for k, v in os.environ.items() if k != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", COPIES],
        input=json.dumps([[str(argument) for argument in command] for command in commands]),
        capture_output=True,
        encoding="utf-8",
        env={**inherited, "XLA_FLAGS": QUICK},
        cwd=ROOT,
        timeout=500,
        check=True,
    )
    return [subprocess.CompletedProcess("jaxmark", *found) for found in json.loads(done.stdout)]


class Process:
    """A running `jaxmark` on so many devices, with its output in files."""

    def __init__(self, folder, name, *arguments, devices=1, program=PROGRAM):
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                [sys.executable, "-c", program, "--nohuge_pages", *map(str, arguments)],
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}",
                },
            )

    def wait(self, seconds=500):
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise

    def lines(self):
        """What it said on stderr, without progress bars."""
        return [
            line for line in self.err.read_text("utf-8").splitlines() if line and "%|" not in line
        ]

    def errors(self):
        return [line for line in self.lines() if line.startswith("error: ")]


def wait_for(condition, *processes, seconds=300):
    """Until the condition holds; none of the processes may end meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert all(process.popen.poll() is None for process in processes), processes[0].lines()
        time.sleep(0.05)


def with_disk(folder: Path, size: str, *command: object) -> subprocess.CompletedProcess[str]:
    """Runs a command that sees an empty disk of this size at `folder`."""
    return subprocess.run(
        [*OWN_VIEW, MOUNT, "sh", size, str(folder), *map(str, command)],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        timeout=300,
    )


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
