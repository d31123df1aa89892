"""Grain pipeline: prepared cases -> host batches, shuffled, read ahead by threads.

Threads, not worker processes: reading a case is one memory copy that releases the interpreter lock,
and the state of a process-based iterator depends on the number of processes.
"""

from collections.abc import Callable, Sequence

import grain.python as grain
import numpy as np

from jaxmark.data.cases import HostBatch, PreparedCase, read_case

# Of a batch: which of the cases it is of.
CASE = "case"


def training_batches(
    cases: Sequence[PreparedCase],
    *,
    batch: int,
    seed: int,
    threads: int,
    prefetch: int,
    process: int = 0,
    processes: int = 1,
    read: Callable[[PreparedCase, np.random.Generator], HostBatch] = read_case,
) -> grain.DatasetIterator:
    """An endless iterator over batches of this process' share, anew shuffled in each epoch.

    The order, and what `read` draws, are functions of the seed alone: the processes' shares of a
    batch, one after another, are the batch that a single process gets. `get_state()` after a batch
    and `set_state()` later continue with the batch that follows, in any number of processes.
    `batch` counts all processes' volumes.
    """

    def record(index: int, rng: np.random.Generator) -> HostBatch:
        return read(cases[index], rng) | {CASE: np.asarray(index, np.int32)}

    dataset = (
        grain.MapDataset.range(len(cases))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(record)
        # Batched before they are shared out, so that all shares together are one process' batch.
        .batch(batch // processes, drop_remainder=True)
        .slice(slice(process, None, processes))
    )
    return iter(
        dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, 1))
        )
    )
