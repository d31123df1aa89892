"""Whole files or none: everything jaxmark writes goes to a temporary file that is then renamed.

Reading is bounded: a file from elsewhere may have any size and be of any kind.
"""

import contextlib
import json
import os
import re
import stat
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmark.system.errors import InputError
from jaxmark.system.interrupts import unfinished

# Text files have kilobytes; the table of a large cohort has some megabytes.
_MAX_BYTES = 64 << 20


def user_cache() -> Path:
    """`jaxmark` in the user's cache folder; it may not exist.

    Raises:
      InputError: the user has no home, as in a container that runs under a bare user number.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmark"
    except RuntimeError as error:
        problem = "is not set and this user has no home folder; name one for what is kept"
        raise InputError("XDG_CACHE_HOME", problem) from error


@contextlib.contextmanager
def naming(path: Path, temporary: Path) -> Iterator[None]:
    """In this block an OSError without a file name, or with `temporary`'s, gets the name `path`.

    A full disk raises such errors.
    """
    try:
        yield
    except OSError as error:
        known = error.filename is not None and not str(error.filename).startswith(str(temporary))
        if known or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; it becomes `path` when the block ends without an error.

    The temporary file is hidden, in the same folder, with the same extension (some writers choose
    the format by it). The folder is created. After an error `path` is unchanged.

    Raises:
      OSError: the folder or file cannot be written; the error names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    with unfinished(temporary), naming(path, temporary):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """The content of a text file.

    Raises:
      InputError: it cannot be read, is not a file (reading a pipe would wait forever), or has over
        64 MiB.
    """
    try:
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise InputError(path, "is not a file")
        if found.st_size > _MAX_BYTES:
            problem = f"has {found.st_size} bytes; such a file has {_MAX_BYTES} at most"
            raise InputError(path, problem)
        return path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error


def read_json(path: Path, schema_version: int | None = None) -> dict[str, Any]:
    """The object in a JSON file that jaxmark wrote.

    Raises:
      InputError: `read_bytes` refuses the file, or it is not a JSON object, or of another schema
        version.
    """
    content = read_bytes(path)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"is not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise InputError(path, "is not a JSON object")
    if schema_version is not None and tree.get("schema_version") != schema_version:
        found = tree.get("schema_version")
        raise InputError(path, f"has schema version {found}, not {schema_version}")
    return tree


def write_text_atomic(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 with its line ends as they are.

    Raises:
      OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def json_text(tree: Any) -> str:
    """`tree` as JSON text that can be written as UTF-8.

    Raises:
      ValueError: a number is NaN or infinite: JSON has no such numbers.
      TypeError: something in `tree` is not a JSON type.
    """
    text = json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False)
    # Python puts surrogates into paths whose bytes are not UTF-8.
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def write_json(path: Path, tree: Any) -> None:
    """Writes `tree` as JSON; the caller puts the schema version into it.

    Raises:
      ValueError, TypeError: as `json_text`.
      OSError: the file cannot be written.
    """
    write_text_atomic(path, json_text(tree) + "\n")


def sealed(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` with a checksum of its content, for files that must not change silently."""
    return {**tree, "crc32": _crc32(tree)}


def read_sealed(path: Path, schema_version: int) -> dict[str, Any]:
    """The tree that `sealed` was given.

    Raises:
      InputError: as `read_json`, or the checksum does not match.
    """
    tree = read_json(path, schema_version)
    seal = tree.pop("crc32", None)
    if seal != _crc32(tree):
        raise InputError(path, "is damaged: its checksum is another one")
    return tree


def _crc32(tree: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(tree, sort_keys=True).encode())
