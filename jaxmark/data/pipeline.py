"""Grain pipeline: prepared cases, or drawn ones -> host batches, shuffled, read ahead by threads.

Threads, not worker processes: reading a case is one memory copy that releases the interpreter lock,
and the state of a process-based iterator depends on the number of processes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import grain.python as grain
import numpy as np

from jaxmark.data.cases import HostBatch, PreparedCase, read_case
from jaxmark.data.stream import Order, Source

# Of a batch: which of the cases it is of.
CASE = "case"
# Positions of a stream.
_ENDLESS = 1 << 31


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
    """As `training_batches`, of cases that a pool's processes draw; see `data.stream`."""
    share = batch // processes
    source = Source(draw, order, pool, lambda position: position // share % processes == process)

    def record(position: int) -> HostBatch:
        number, drawn = source(position)
        return drawn | {CASE: np.asarray(number, np.int32)}

    dataset = grain.MapDataset.range(_ENDLESS).map(record)
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
