"""Several processes in one run: joining, writing by one of them, waiting for each other.

JAX joins them (`jax.distributed`). They share a file system: the primary, process 0, writes files,
and the others read them. A process that dies ends all, so that none waits forever. In a run of one
process all this does nothing.
"""

import atexit
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

from jaxmark.system import interrupts
from jaxmark.system.errors import InputError

# At most this long from the first process' start to the last one's.
JOIN_SECONDS = 300
# A process without a heartbeat for this long is dead, and JAX ends the others. A separate thread
# sends heartbeats, so a busy process still sends them.
HEARTBEAT_SECONDS = 60
# How long processes wait for one that works alone; its heartbeat shows whether it is alive.
WAIT_SECONDS = 24 * 3600
# How long a failed process waits for others that fail for the same reason.
FAREWELL_SECONDS = 5

T = TypeVar("T")

_numbers = itertools.count()


def join(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes of a job. Call it before anything asks for a device.

    Without arguments JAX finds them by SLURM, Open MPI, Kubernetes or a TPU's metadata.
    `coordinator` is HOST:PORT where process 0 listens; it needs `processes`, their number, and
    `process`, the number of this one. Only process 0 prints to standard output.

    Raises:
      InputError: JAX knows no cluster that started this process; arguments are wrong or missing.
    """
    timeouts: dict[str, Any] = {
        "initialization_timeout": JOIN_SECONDS,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        # For the end of the job; `_part` waits for all processes before.
        "shutdown_timeout_seconds": HEARTBEAT_SECONDS,
    }
    if coordinator:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError("--coordinator", f"{coordinator!r} is not HOST:PORT")
        if processes is None or process is None or not 0 <= process < processes:
            raise InputError(
                "--coordinator", f"needs --processes=N and --process=I, 0 to N - 1, not {process}"
            )
        # When time is up, JAX ends the process with a traceback.
        print(
            f"process {process} of {processes} waits for the others at {coordinator}, "
            f"{JOIN_SECONDS} s at most",
            file=sys.stderr,
            flush=True,
        )
        jax.distributed.initialize(
            coordinator, processes, process, cluster_detection_method="deactivate", **timeouts
        )
    else:
        try:
            jax.distributed.initialize(**timeouts)
        except ValueError as error:
            raise InputError(
                "--distributed",
                "found no cluster that started this process (srun, mpirun, ...); without one: "
                "--coordinator=HOST:PORT --processes=N --process=I",
            ) from error
    atexit.register(_part)
    if not primary():
        sys.stdout = open(os.devnull, "w")


def primary() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def barrier(name: str, seconds: float = WAIT_SECONDS) -> None:
    """Waits until all processes are here.

    A collective operation of the devices would use the CPU all the while, and time out.
    """
    # JAX allows each barrier name once.
    _wait(f"{name}-{next(_numbers)}", seconds)


def _wait(key: str, seconds: float) -> None:
    get_barrier_sync_fn()(key=f"jaxmark-{key}", timeout_ms=int(1000 * seconds))


def gather(name: str, value: Any) -> list[Any]:
    """The values of all processes, of JSON types, in order of the processes."""
    if jax.process_count() == 1:
        return [value]
    barrier(name)
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size))
    row = np.pad(data, (0, sizes.max() - data.size))
    rows = multihost_utils.process_allgather(row)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def from_primary(name: str, value: Any) -> Any:
    """The primary's value, of JSON types, in all processes.

    For decisions that depend on files: two processes may see different states of a shared file
    system.
    """
    return gather(name, value)[0]


@contextmanager
def primary_first(name: str) -> Iterator[None]:
    """The primary runs the block, then the others run it and find the files that it wrote.

    Raises:
      InputError: in the others, if the primary failed.
    """
    if not primary() and (problem := from_primary(name, None)):
        raise InputError("process 0", problem)
    try:
        yield
    except Exception as error:
        if primary():
            from_primary(name, str(error) or type(error).__name__)
        raise
    if primary():
        from_primary(name, None)


def own_share(items: Iterable[T]) -> list[T]:
    """The items that this process works on; `items` must be the same in all processes."""
    return list(items)[jax.process_index() :: jax.process_count()]


def check_alike(what: str, value: Any) -> None:
    """Raises InputError where a process has another value, of JSON types, than the primary."""
    first, *others = gather(what, value)
    for number, other in enumerate(others, start=1):
        if other != first:
            raise InputError("--distributed", f"process {number} has another {what} than process 0")


@dataclass(frozen=True)
class Stops:
    """What a block of `stops` knows about signals."""

    # The name of a signal that came. To be called after every training step, with its number.
    after: Callable[[int], str | None]
    # The same at any time; always None where there are several processes.
    now: Callable[[], str | None]
    # Takes whether ending now would lose work. After False a signal ends the process at once.
    hold: Callable[[bool], None]


@contextmanager
def stops() -> Iterator[Stops]:
    """In this block a signal ends nothing; `Stops.after` returns its name.

    All processes call `after` after every step, and it names a signal in all of them after the same
    step: JAX catches a SIGTERM and finds the first step that no process has passed. (A Python
    handler would take the signal from JAX.) The first SIGINT is handed on as a SIGTERM.
    """
    if jax.process_count() == 1:
        with interrupts.deferred() as deferral:
            yield Stops(
                after=lambda step: deferral.came,
                now=lambda: deferral.came,
                hold=lambda holds: setattr(deferral, "holds", holds),
            )
        return
    before = signal.getsignal(signal.SIGINT)

    def hand_on(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, hand_on)
    try:
        yield Stops(
            after=lambda step: (
                "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
            ),
            now=lambda: None,
            hold=lambda holds: None,
        )
    finally:
        signal.signal(signal.SIGINT, before)


_done = False


def done() -> None:
    """Waits for all processes at the end of a run without errors."""
    global _done
    barrier("done")
    _done = True


def _part() -> None:
    """At exit: ends a failed process, which must not wait for others that wait for it.

    JAX's handler, which runs next, would wait.
    """
    if _done:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        # Processes that fail for the same reason end together, each with its message.
        _wait("failed", FAREWELL_SECONDS)
    except Exception:
        os._exit(1)
