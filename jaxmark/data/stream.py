"""An endless stream of synthetic cases, drawn by worker processes ahead of those who read it.

What is read at a position is a function of the position alone: a run that was killed continues with
the same cases, in any number of processes.
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

# Of the libraries under NumPy: threads of all workers together would be more than cores.
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Order(NamedTuple):
    """Which case is read at which position.

    Positions lie in blocks of `window * reuse`. Each block has `window` cases that are new in it,
    and those of the `reuse - 1` blocks before once more, in an order drawn from `seed` and the
    block's number. So each case is read `reuse` times, in blocks that follow each other.
    (Choi et al., "Faster neural network training with data echoing", arXiv:1907.05550.)
    """

    seed: int
    window: int
    reuse: int

    def block(self, position: int) -> int:
        """The block that a position lies in."""
        return position // (self.window * self.reuse)

    def number(self, position: int) -> int:
        """The case that is read there."""
        size = self.window * self.reuse
        block, place = divmod(position, size)
        return self.window * block + _shuffled(self.seed, block, size)[place]

    def last_block(self, number: int) -> int:
        """The last block that a case is read in."""
        return number // self.window


@functools.lru_cache(maxsize=8)
def _shuffled(seed: int, block: int, size: int) -> list[int]:
    """The numbers under `size`, in an order of the block's own."""
    order: list[int] = np.random.default_rng([seed, block]).permutation(size).tolist()
    return order


class Source:
    """Cases by position, drawn by the processes of a pool, a bounded number ahead.

    Threads may read it at once. Of cases that will be read again the arrays are kept.

    Args:
      draw: makes the case of a number; a function that processes can take, with its settings.
      mine: whether a position is read by this process of a run; others are not drawn.
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
        """Have those drawn that are read within a block's length, and forget those of the past."""
        length = self._order.window * self._order.reuse
        for later in range(position + 1, position + 1 + length):
            if self._mine(later):
                self._case(self._order.number(later))
        # Threads that are a little behind may still ask for those of the block before.
        block = self._order.block(position) - 1
        for number in [n for n in self._drawn if self._order.last_block(n) < block]:
            del self._drawn[number]

    def _case(self, number: int) -> "Future[HostBatch]":
        if number not in self._drawn:
            self._drawn[number] = self._pool.submit(self._draw, number)
        return self._drawn[number]


@contextlib.contextmanager
def drawing_pool(workers: int) -> Iterator[Executor]:
    """Processes for a `Source`, each on one core; 0: one a CPU core."""
    with contextlib.ExitStack() as stack:
        with _environment(dict.fromkeys(_THREADS, "1")):
            pool = stack.enter_context(spawned(workers))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that processes inherit which are started meanwhile."""
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update(before)
