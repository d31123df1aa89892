"""The folder of a cohort of synthetic scans, case by case."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxmark.system.parallel import parallel, worker_pool

# Starting processes costs about as much as making this many voxels.
_VOXELS_WORTH_PROCESSES = 5e7


def name_cases(counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Split -> names of its cases, from the number of cases in each."""
    names = iter([f"phantom-{number:03d}" for number in range(sum(counts.values()))])
    return {split: list(islice(names, count)) for split, count in counts.items()}


def unfinished(
    root: Path, names: Sequence[str], endings: Mapping[str, str]
) -> Iterator[tuple[int, str]]:
    """Number and name of the cases that lack a file; `endings`: folder -> end of files' names."""
    for number, name in enumerate(names):
        if not all((root / folder / f"{name}{end}").exists() for folder, end in endings.items()):
            yield number, name


def make_cases(
    write: Callable[[Any], None], jobs: Sequence[Any], shape: Sequence[int], workers: int
) -> None:
    """Writes one case for each job, of this shape each; 0 workers: one for each CPU core."""
    small = len(jobs) * np.prod(shape) < _VOXELS_WORTH_PROCESSES
    with worker_pool(1 if small else workers, len(jobs)) as pool:
        parallel(pool, write, jobs, "making phantoms")
