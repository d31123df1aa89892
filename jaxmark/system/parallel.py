"""Independent work on many items in processes; one progress bar, all errors raised together."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from tqdm import tqdm

from jaxmark.system.errors import InputError
from jaxmark.system.interrupts import SIGNALS, blocked, discard_unfinished

_TRACKER = "ignore:resource_tracker:UserWarning"

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def worker_pool(workers: int, jobs: int) -> Iterator[Executor | None]:
    """Processes for `parallel`; None (use this process) where one worker or one job is enough.

    They are started with "spawn": a fork would copy JAX's threads and locks. InputError where one
    of them is killed.
    """
    workers = min(workers or os.cpu_count() or 1, jobs)
    if workers <= 1:
        yield None
        return
    with spawned(workers) as pool:
        yield pool


@contextlib.contextmanager
def spawned(workers: int) -> Iterator[Executor]:
    """As `worker_pool`, but always separate processes, even one; 0: one for each CPU core."""
    workers = workers or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    # Python's resource tracker cleans up after a run that a signal ended; its warnings about that
    # are not shown.
    if _TRACKER not in sys.warnoptions:
        sys.warnoptions.append(_TRACKER)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_serve) as pool:
        try:
            # All workers start here. The terminal's signals go to them too, and wait until
            # `_serve` ignores them.
            with blocked():
                for _ in range(workers):
                    pool.submit(_nothing)
            yield pool
        except BrokenProcessPool as error:
            raise InputError(
                "config.data.workers",
                f"one of {workers} processes was killed, perhaps for memory; fewer may help. The "
                "same command goes on where this one stopped",
            ) from error
        except BaseException:
            # An error such as a full disk would meet the waiting jobs too.
            pool.shutdown(cancel_futures=True)
            raise


def _nothing() -> None:
    """A first job that makes a worker start."""


def _serve() -> None:
    """Prepares a worker: it ignores signals, and ends when its main process ends.

    Otherwise the worker of a killed process would wait for work forever.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        discard_unfinished()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def parallel(
    pool: Executor | None,
    function: Callable[[T], R],
    items: Sequence[T],
    description: str,
    unit: str = "scan",
) -> list[R]:
    """Results in order, with a progress bar; the InputErrors of all items are raised together."""
    results: dict[int, R] = {}
    errors: dict[int, InputError] = {}
    if pool is None:
        finished: Iterable[tuple[int, Callable[[], R]]] = (
            (number, functools.partial(function, item)) for number, item in enumerate(items)
        )
    else:
        futures = {pool.submit(function, item): number for number, item in enumerate(items)}
        finished = ((futures[future], future.result) for future in as_completed(futures))
    if not items:
        return []
    for number, result in tqdm(finished, total=len(items), desc=description, unit=unit):
        try:
            results[number] = result()
        except InputError as error:
            errors[number] = error
    if errors:
        found = [errors[number] for number in sorted(errors)]
        raise found[0] if len(found) == 1 else ExceptionGroup("bad input", found)
    return [results[number] for number in range(len(items))]


def ahead(
    pool: Executor | None, function: Callable[[T], R], jobs: Iterable[T], depth: int
) -> Iterator[tuple[T, R]]:
    """Jobs with their results, in order; the pool works on up to `depth` later jobs meanwhile."""
    if pool is None:
        yield from ((job, function(job)) for job in jobs)
        return
    pending: deque[tuple[T, Future[R]]] = deque()
    for job in jobs:
        pending.append((job, pool.submit(function, job)))
        if len(pending) > depth:
            first, future = pending.popleft()
            yield first, future.result()
    while pending:
        first, future = pending.popleft()
        yield first, future.result()
