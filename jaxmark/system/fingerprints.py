"""Short names for what results were made from, so that they are used again while it is the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxmark.system.errors import InputError

# How the name of a path begins that stands for some of the files of its folder.
PART_OF_FOLDER = "series="
# ... and of one that stands for a frame of the file that it seems to lie in.
FRAME_OF_FILE = "frame="


def json_key(tree: Any) -> str:
    """A short key of JSON types; long enough that two never meet."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:20]


def file_state(path: Path) -> dict[str, Any]:
    """A file, or a folder of DICOM slices, as it is now: InputError where there is none.

    Of a part of a folder it is the whole folder: any file of it may belong to the part. Of a frame
    it is the whole file.
    """
    is_part = path.name.startswith((PART_OF_FOLDER, FRAME_OF_FILE)) and not path.exists()
    folder = path.parent if is_part else path
    try:
        files = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    return {"scan": str(path.absolute()), "files": stats}
