"""Voxel-to-world maps of scans, for landmarks in voxels; read once, then kept on disk."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxmark.config import Data
from jaxmark.data.cache import cache_folder
from jaxmark.data.pictures import read_picture, states_pixel_size
from jaxmark.data.scans import read_scan
from jaxmark.system.errors import InputError
from jaxmark.system.files import read_sealed, sealed, write_json
from jaxmark.system.fingerprints import file_state, json_key
from jaxmark.system.parallel import parallel, worker_pool

# Raise it when the file's format or `read_scan`'s reading of headers changes.
_SCHEMA_VERSION = 1


def scan_places(scans: Mapping[str, Path], data: Data) -> dict[str, np.ndarray]:
    """Case -> (4, 4) voxel indices -> LPS mm, as `read_scan` returns it.

    Raises:
      InputError, or an ExceptionGroup of them: scans cannot be read.
    """
    folder = cache_folder(data) / "places"
    files = {
        case: folder / f"{json_key({**file_state(path), 'version': _SCHEMA_VERSION})}.json"
        for case, path in scans.items()
    }
    places = {case: _read(file) for case, file in files.items()}
    unknown = [case for case, place in places.items() if place is None]
    with worker_pool(data.workers, len(unknown)) as pool:
        jobs = [(scans[case], files[case]) for case in unknown]
        found = parallel(pool, _find, jobs, "reading where scans lie")
    places |= dict(zip(unknown, found, strict=True))
    return {case: place for case, place in places.items() if place is not None}


def picture_sizes(
    pictures: Mapping[str, tuple[Path, float]], data: Data
) -> dict[str, tuple[float, float] | None]:
    """Case -> mm between columns and between rows of its picture; None where it is not stated.

    Args:
      pictures: case -> its file, and the size stated elsewhere; 0: none.

    Raises:
      InputError, or an ExceptionGroup of them: pictures cannot be read, or contradict the size
      stated elsewhere.
    """
    asked = {case: path for case, (path, _) in pictures.items() if states_pixel_size(path)}
    with worker_pool(data.workers, len(asked)) as pool:
        jobs = [(path, pictures[case][1]) for case, path in asked.items()]
        found = parallel(pool, _size, jobs, "reading pixel sizes")
    stated = {case: (mm, mm) if mm else None for case, (_, mm) in pictures.items()}
    return stated | dict(zip(asked, found, strict=True))


def _size(job: tuple[Path, float]) -> tuple[float, float] | None:
    path, stated_mm = job
    return read_picture(path, "px", stated_mm).pixel_mm


def _find(job: tuple[Path, Path]) -> np.ndarray:
    scan, file = job
    place = read_scan(scan).ijk_to_lps
    write_json(file, sealed({"schema_version": _SCHEMA_VERSION, "ijk_to_lps": place.tolist()}))
    return place


def _read(file: Path) -> np.ndarray | None:
    """The map stored earlier; None where the file is missing or damaged."""
    if not file.exists():
        return None
    try:
        tree = read_sealed(file, _SCHEMA_VERSION)
        return np.asarray(tree["ijk_to_lps"], np.float64).reshape(4, 4)
    except (InputError, KeyError, TypeError, ValueError):
        return None
