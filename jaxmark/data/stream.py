"""An endless stream of synthetic cases that worker processes draw ahead of the training.

The case at a position depends on the position only: a killed run continues with the same cases, in
any number of processes.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np

from jaxmark.data.cases import HostBatch
from jaxmark.system.parallel import spawned

# Variables that give NumPy's libraries one thread: each worker has one core.
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Order(NamedTuple):
    """The case at each position.

    Positions form blocks of `window * reuse`. A block has `window` new cases, and the new cases of
    the `reuse - 1` blocks before it, in an order drawn from `seed` and the block's number. So each
    case is read `reuse` times, in consecutive blocks.
    (Choi et al., "Faster neural network training with data echoing", arXiv:1907.05550.)
    """

    seed: int
    window: int
    reuse: int

    def block(self, position: int) -> int:
        """The block that a position lies in."""
        return position // (self.window * self.reuse)

    def number(self, position: int) -> int:
        """The number of the case at a position."""
        size = self.window * self.reuse
        block, place = divmod(position, size)
        return self.window * block + _shuffled(self.seed, block, size)[place]

    def last_block(self, number: int) -> int:
        """The last block that a case is read in."""
        return number // self.window


@functools.lru_cache(maxsize=8)
def _shuffled(seed: int, block: int, size: int) -> list[int]:
    """The numbers below `size`, shuffled for this block."""
    order: list[int] = np.random.default_rng([seed, block]).permutation(size).tolist()
    return order


class Source:
    """Cases by position; a pool's processes draw a bounded number of them ahead.

    Several threads may call it at once. It keeps the arrays of cases that will be read again.

    Args:
      draw: returns the case with a number; it must be possible to send it to other processes.
      mine: whether this process of the run reads a position; others are not drawn.
    """

    def __init__(
        self,
        draw: Callable[[int], HostBatch],
        order: Order,
        pool: Executor,
        mine: Callable[[int], bool] = lambda position: True,
    ):
        self._draw, self._order, self._pool, self._mine = draw, order, pool, mine
        self._drawn: dict[int, Future[HostBatch]] = {}
        self._lock = threading.Lock()

    def __call__(self, position: int) -> tuple[int, HostBatch]:
        """The number of the case that is read at a position, and its arrays."""
        with self._lock:
            number = self._order.number(position)
            case = self._case(number)
            self._look_ahead(position)
        return number, case.result()

    def _look_ahead(self, position: int) -> None:
        """Starts drawing the cases of the next block's length, and drops past cases."""
        length = self._order.window * self._order.reuse
        for later in range(position + 1, position + 1 + length):
            if self._mine(later):
                self._case(self._order.number(later))
        # Slower threads may still need cases of the block before.
        block = self._order.block(position) - 1
        for number in [n for n in self._drawn if self._order.last_block(n) < block]:
            del self._drawn[number]

    def _case(self, number: int) -> "Future[HostBatch]":
        if number not in self._drawn:
            self._drawn[number] = self._pool.submit(self._draw, number)
        return self._drawn[number]


@contextlib.contextmanager
def drawing_pool(workers: int) -> Iterator[Executor]:
    """Processes for a `Source`, with one thread each; 0: one process for each CPU core."""
    with contextlib.ExitStack() as stack:
        with _environment(dict.fromkeys(_THREAD_VARIABLES, "1")):
            pool = stack.enter_context(spawned(workers))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables that processes started in this block inherit."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update(before)
