"""Short keys of what results were made from: the same key means that a result can be used again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxmark.system.errors import InputError

# A path whose name begins so stands for some of the files in its folder.
PART_OF_FOLDER = "series="
# A path whose name begins so stands for a frame of the file above it.
FRAME_OF_FILE = "frame="


def json_key(tree: Any) -> str:
    """A key of 20 characters; different trees of JSON types have different keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:20]


def file_state(path: Path) -> dict[str, Any]:
    """Sizes and times of a file, or of the files of a DICOM folder; InputError if it is missing.

    For a part of a folder, the state of the whole folder: any of its files may belong to the part.
    For a frame, the state of the whole file.
    """
    is_part = path.name.startswith((PART_OF_FOLDER, FRAME_OF_FILE)) and not path.exists()
    folder = path.parent if is_part else path
    try:
        files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    return {"scan": str(path.absolute()), "files": stats}
