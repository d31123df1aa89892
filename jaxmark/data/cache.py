"""The folder in which what was computed from scans is kept for later runs."""

import os
from pathlib import Path

from jaxmark.config import Data


def cache_folder(data: Data) -> Path:
    """Where prepared cases lie: `config.data.cache`, or `jaxmark` in the user's cache folder."""
    if data.cache:
        return Path(data.cache)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "jaxmark"
