"""C++ code that is compiled once on the machine where it runs, for its CPU.

The library is kept in the user's cache folder. Its name depends on the source, the compiler, the
CPU and jaxlib.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax
import jaxlib

from jaxmark.system.errors import InputError
from jaxmark.system.files import replacing, user_cache
from jaxmark.system.messages import say

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w")
NO_COMPILER = "no C++ compiler; looked for $CXX, g++, clang++ and c++"
# A compiler that takes longer is taken to hang.
_TIMEOUT_S = 180


class NoLibrary(Exception):
    """This machine can't make or load the library; the message says why."""


def library(source: Path) -> tuple[ctypes.CDLL, str]:
    """The library compiled from a C++ file that includes `xla/ffi/api/ffi.h`, and its digest.

    Raises:
      NoLibrary: there is no compiler, it fails, or the result cannot be loaded or stored.
    """
    compiler = compiler_found()
    if compiler is None:
        raise NoLibrary(NO_COMPILER)
    text = source.read_bytes()
    parts = (text, compiler, compiler_version(compiler), cpu(), jaxlib.__version__, *_FLAGS)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    try:
        path = user_cache() / "compiled" / f"{source.stem}-{digest}.so"
        if not path.exists():
            say(f"compiling {source.name} for this CPU, once ({compiler})")
            with replacing(path) as temporary:
                _compile(compiler, source, temporary)
        return ctypes.CDLL(str(path)), digest
    except (OSError, InputError) as error:
        raise NoLibrary(str(error)) from error


def compiler_found() -> str | None:
    """The C++ compiler: `$CXX`, or the first of the usual names that exists."""
    named = os.environ.get("CXX")
    names = [named] if named else ["g++", "clang++", "c++"]
    return next((path for path in map(shutil.which, names) if path), None)


def compiler_version(compiler: str) -> str:
    """The first line that `compiler --version` prints; empty if it prints none."""
    try:
        lines = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    return lines[0] if lines else ""


@functools.cache
def cpu() -> str:
    """The CPU's model and instructions, as far as the system knows them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = ("model name", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(kept)))


def has_instructions(*names: str) -> bool:
    """Whether the CPU has all these instructions (Linux' names); without Linux, if it is x86."""
    flags = next((line for line in cpu().splitlines() if line.startswith("flags")), None)
    if flags is None:
        return platform.machine() in ("x86_64", "AMD64")
    return set(names) <= set(flags.split())


def _compile(compiler: str, source: Path, target: Path) -> None:
    command: Sequence[str] = (
        *(compiler, *_FLAGS, f"-I{jax.ffi.include_dir()}"),
        *(str(source), "-o", str(target)),
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise NoLibrary(f"{compiler} took more than {_TIMEOUT_S} s") from error
    if done.returncode:
        problems = [line for line in done.stderr.splitlines() if "error" in line]
        why = problems[0].strip() if problems else f"exit code {done.returncode}"
        raise NoLibrary(f"{compiler}: {why}")
