"""The folder that keeps results computed from scans for later runs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from jaxmark.config import Data
from jaxmark.system.errors import InputError
from jaxmark.system.files import user_cache

T = TypeVar("T")


def cache_folder(data: Data) -> Path:
    """Where prepared cases lie: `config.data.cache`, or `jaxmark` in the user's cache folder."""
    return Path(data.cache) if data.cache else user_cache()


def in_cache(read: Callable[[Path], T], places: dict[str, Path]) -> tuple[dict[str, T], list[str]]:
    """Case -> what an earlier run stored, for what can be read; and the other files' problems."""

    def found(path: Path) -> T | InputError | None:
        try:
            return read(path) if path.exists() else None
        except InputError as error:
            return error

    # Reading and checksums let other threads run.
    with ThreadPoolExecutor() as pool:
        results = dict(zip(places, pool.map(found, places.values()), strict=True))
    whole = {
        name: result
        for name, result in results.items()
        if result is not None and not isinstance(result, InputError)
    }
    return whole, [str(result) for result in results.values() if isinstance(result, InputError)]
