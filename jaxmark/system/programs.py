"""Compiled programs that are kept from one command to the next, which need not compile them again.

JAX's persistent compilation cache keeps them. Two things are added here. Its keys do not hold a
CPU's instruction set, so each kind of CPU has its own folder. It writes files in place, so a killed
command may leave half of one: each command stores digests of the programs when it ends, and deletes
those without a matching digest when it starts.
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
# What compiles faster is not worth a file.
_LEAST_S = 0.3
_MOST_DAYS = 60
_SIGNATURES = "signatures.json"
_SCHEMA_VERSION = 1


def keep() -> Path | None:
    """Let JAX keep what it compiles in the user's cache folder; returns that folder.

    None where `JAX_COMPILATION_CACHE_DIR` or JAX's configuration names another one, and where the
    folder can't be written. Programs made over 60 days ago are deleted.
    """
    if getattr(jax.config, _FOLDER) is not None:
        return None
    try:
        folder = user_cache() / "programs" / hashlib.sha256(cpu().encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        # Fails now where nothing can be written, and not at the end of a long run.
        _sign(folder, _sound(folder))
    except (OSError, InputError):
        return None
    jax.config.update(_FOLDER, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_S)
    # Without a kept program it is compiled as before, so nobody needs JAX's warning.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    return folder


def sign(folder: Path | None) -> None:
    """Sign the programs in the folder that `keep` gave, at the end of a command."""
    if folder is not None:
        with contextlib.suppress(OSError):
            _sign(folder, {path.name: _digest(path) for path in _programs(folder)})


def _sound(folder: Path) -> dict[str, str]:
    """Digests of the signed programs; the others, and old ones, are deleted."""
    signed: object = None
    with contextlib.suppress(InputError):
        signed = read_json(folder / _SIGNATURES, _SCHEMA_VERSION).get("programs")
    known = signed if isinstance(signed, dict) else {}
    sound = {}
    for path in _programs(folder):
        days = (time.time() - path.stat().st_mtime) / 86400
        if days < _MOST_DAYS and known.get(path.name) == (digest := _digest(path)):
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
