"""Compiled programs that commands keep for later commands, in JAX's persistent compilation cache.

Two things are added. The cache's keys lack the CPU's instruction set, so each kind of CPU has its
own folder. The cache writes files in place, so a killed command may leave half a file: each command
stores the programs' digests when it ends, and deletes files without a matching digest at its start.
"""

import contextlib
import hashlib
import time
import warnings
from pathlib import Path

import jax

from jaxmark.system.compiler import cpu
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_json, user_cache, write_json

_FOLDER = "jax_compilation_cache_dir"
# A program that compiles faster is not worth a file.
_MIN_COMPILE_SECONDS = 0.3
_MAX_AGE_DAYS = 60
_SIGNATURES = "signatures.json"
_SCHEMA_VERSION = 1


def keep() -> Path | None:
    """Lets JAX keep compiled programs in the user's cache folder; returns that folder.

    None where `JAX_COMPILATION_CACHE_DIR` or JAX's configuration names another folder, and where
    the folder can't be written. Programs over 60 days old are deleted.
    """
    if getattr(jax.config, _FOLDER) is not None:
        return None
    try:
        folder = user_cache() / "programs" / hashlib.sha256(cpu().encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        # A folder that can't be written fails here, not at the end of a long run.
        _sign(folder, _sound(folder))
    except (OSError, InputError):
        return None
    jax.config.update(_FOLDER, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    # A program that can't be read or kept is compiled as usual: JAX's warning would only disturb.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    return folder


def sign(folder: Path | None) -> None:
    """Stores digests of the programs in the folder that `keep` returned, at a command's end."""
    if folder is not None:
        with contextlib.suppress(OSError):
            _sign(folder, {path.name: _digest(path) for path in _programs(folder)})


def _sound(folder: Path) -> dict[str, str]:
    """Digests of the programs that match theirs; the others, and old ones, are deleted."""
    signed: object = None
    with contextlib.suppress(InputError):
        signed = read_json(folder / _SIGNATURES, _SCHEMA_VERSION).get("programs")
    known = signed if isinstance(signed, dict) else {}
    sound = {}
    for path in _programs(folder):
        days = (time.time() - path.stat().st_mtime) / 86400
        if days < _MAX_AGE_DAYS and known.get(path.name) == (digest := _digest(path)):
            sound[path.name] = digest
        else:
            path.unlink()
    return sound


def _programs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith("-cache"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sign(folder: Path, digests: dict[str, str]) -> None:
    write_json(folder / _SIGNATURES, {"schema_version": _SCHEMA_VERSION, "programs": digests})
