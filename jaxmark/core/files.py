"""Whole files or none: everything jaxmark writes goes to a temporary file that is then renamed."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxmark.core.errors import InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to; it becomes `path` when the block ends without an error.

    The temporary file is hidden, in the same folder, and has the same extension (which some
    writers choose the format by). The folder is created. After an error `path` is as it was.

    Raises:
      OSError: the folder or file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, schema_version: int | None = None) -> dict[str, Any]:
    """The object in a JSON file that jaxmark wrote.

    Raises:
      InputError: the file cannot be read, is not a JSON object, or is of another schema version.
    """
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})") from error
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


def write_json(path: Path, tree: Any) -> None:
    """Writes `tree` as JSON; the caller puts the schema version into it.

    Raises:
      ValueError: a number is NaN or infinite: JSON has no such numbers.
      TypeError: something in `tree` is not a JSON type.
      OSError: the file cannot be written.
    """
    text = json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False)
    write_text_atomic(path, text + "\n")
