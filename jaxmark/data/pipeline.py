"""Grain pipeline: prepared cases -> host batches, shuffled, read ahead by threads.

Threads, not worker processes: reading a case is one memory copy that releases the interpreter lock,
and the state of a process-based iterator depends on the number of processes.
"""

from collections.abc import Sequence

import grain.python as grain
import numpy as np

from jaxmark.data.cases import PreparedCase

# Fields of `methods.method.Batch`, and under `CASE` which of the cases they are of.
HostBatch = dict[str, np.ndarray]
CASE = "case"


class CaseSource(grain.RandomAccessDataSource):
    """Random access to prepared cases as numpy records."""

    def __init__(self, cases: Sequence[PreparedCase]):
        self._cases = tuple(cases)

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> HostBatch:
        return record(self._cases[index]) | {CASE: np.asarray(index, np.int32)}


def record(case: PreparedCase) -> HostBatch:
    """One case's part of a batch, as in `methods.method.Batch`."""
    return {
        "image": case.image()[..., None],
        "landmarks_ijk": np.nan_to_num(case.landmarks_ijk).astype(np.float32),
        "present": case.present,
        "absent": case.absent,
    }


def training_batches(
    cases: Sequence[PreparedCase],
    *,
    batch: int,
    seed: int,
    threads: int,
    prefetch: int,
    process: int = 0,
    processes: int = 1,
) -> grain.DatasetIterator:
    """An endless iterator over batches of this process' share, anew shuffled in each epoch.

    The order is a function of the seed alone: the processes' shares of a batch, one after another,
    are the batch that a single process gets. `get_state()` after a batch and `set_state()` later
    continue with the batch that follows, in any number of processes. `batch` counts all processes'
    volumes.
    """
    dataset = (
        grain.MapDataset.source(CaseSource(cases))
        .seed(seed)
        .shuffle()
        .repeat()
        # Batched before they are shared out, so that all shares together are one process' batch.
        .batch(batch // processes, drop_remainder=True)
        .slice(slice(process, None, processes))
    )
    return iter(
        dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, 1))
        )
    )
