"""Short names for what results were made from, so that they are used again while it is the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxmark.system.errors import InputError


def json_key(tree: Any) -> str:
    """A short key of JSON types; long enough that two never meet."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:20]


def file_state(path: Path) -> dict[str, Any]:
    """A file, or a folder of DICOM slices, as it is now: InputError where there is none."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    return {"scan": str(path.absolute()), "files": stats}
