"""Grain pipeline: prepared or drawn cases -> host batches, shuffled, read ahead by threads.

It uses threads, not processes: reading a case is one memory copy that releases the interpreter
lock, and the state of a process-based iterator depends on the number of processes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import grain.python as grain
import numpy as np

from jaxmark.data.cases import HostBatch, PreparedCase, read_case
from jaxmark.data.stream import Order, Source

# The batch's field with the number of each case.
CASE = "case"
# The length of an endless stream, for Grain.
_STREAM_LENGTH = 1 << 31


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
    """An endless iterator over batches of this process' share, shuffled anew in each epoch.

    The order, and what `read` draws, depend on the seed only: the processes' shares of a batch,
    joined in order, are the batch that a single process gets. `set_state()` with the state that
    `get_state()` returned after a batch continues with the next batch, in any number of processes.
    `batch` counts the volumes of all processes.
    """

    def record(index: int, rng: np.random.Generator) -> HostBatch:
        return read(cases[index], rng) | {CASE: np.asarray(index, np.int32)}

    dataset = grain.MapDataset.range(len(cases)).seed(seed).shuffle().repeat().random_map(record)
    return _shared(dataset, batch // processes, process, processes, threads, prefetch)


def streamed_batches(
    draw: Callable[[int], HostBatch],
    order: Order,
    pool: Executor,
    *,
    batch: int,
    threads: int,
    prefetch: int,
    process: int = 0,
    processes: int = 1,
) -> grain.DatasetIterator:
    """As `training_batches`, but the processes of a pool draw the cases; see `data.stream`."""
    share = batch // processes
    source = Source(draw, order, pool, lambda position: position // share % processes == process)

    def record(position: int) -> HostBatch:
        number, drawn = source(position)
        return drawn | {CASE: np.asarray(number, np.int32)}

    dataset = grain.MapDataset.range(_STREAM_LENGTH).map(record)
    return _shared(dataset, share, process, processes, threads, prefetch)


def _shared(
    dataset: grain.MapDataset, batch: int, process: int, processes: int, threads: int, prefetch: int
) -> grain.DatasetIterator:
    """An iterator over a process' share, in batches of this many volumes."""
    dataset = (
        # Batched before they are shared out, so that all shares together are one process' batch.
        dataset.batch(batch, drop_remainder=True).slice(slice(process, None, processes))
    )
    return iter(
        dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch, 1))
        )
    )
