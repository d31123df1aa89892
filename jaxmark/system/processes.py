"""Several processes that do one run: joining, the one that writes, waiting for each other.

JAX joins them (`jax.distributed`). They have one file system in common: the primary, process 0,
writes what there is one of, and the others read it. A process that dies ends them all, so that
none waits forever. In a run of one process all this does nothing.
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

# From the first process' start to the last one's.
JOIN_SECONDS = 300
# A process that was not heard of for so long is dead: it ends the others. Its heart is a thread
# of its own, which beats whatever the process is busy with.
HEARTBEAT_SECONDS = 60
# Others wait so long for one that works alone. That it is alive is the heartbeat's to say.
WAIT_SECONDS = 24 * 3600
# A process that failed waits so long for others that fail of the same.
FAREWELL_SECONDS = 5

T = TypeVar("T")

_numbers = itertools.count()


def join(coordinator: str = "", processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes of a job; before anything asks for a device.

    Without arguments JAX finds out who and where they are from what SLURM, Open MPI, Kubernetes or
    a TPU tells each. With `coordinator`, HOST:PORT where process 0 listens, the other two say how
    many there are and which this is. What the others print is not shown.

    Raises:
      InputError: nothing started this process that JAX knows; arguments that make no sense.
    """
    timeouts: dict[str, Any] = {
        "initialization_timeout": JOIN_SECONDS,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        # Of all processes at the end, where `_part` has brought them together.
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
        # JAX ends the process, with a trace of its own, when time is up.
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

    Not by a collective operation of the devices, which would spin meanwhile and time out.
    """
    # No name may be waited at twice.
    _wait(f"{name}-{next(_numbers)}", seconds)


def _wait(key: str, seconds: float) -> None:
    get_barrier_sync_fn()(key=f"jaxmark-{key}", timeout_ms=int(1000 * seconds))


def gather(name: str, value: Any) -> list[Any]:
    """The values, of JSON types, that all processes give, in order of the processes."""
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

    For what is read of files before all do something together: no two processes are sure to see
    the same of a shared file system.
    """
    return gather(name, value)[0]


@contextmanager
def primary_first(name: str) -> Iterator[None]:
    """The block is run by the primary, and then by the others, who find the files it wrote.

    Raises:
      InputError: in the others, where the primary failed.
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
    """What of some work, listed alike in all processes, is this one's."""
    return list(items)[jax.process_index() :: jax.process_count()]


def check_alike(what: str, value: Any) -> None:
    """InputError where a process has another value, of JSON types, than the primary."""
    first, *others = gather(what, value)
    for number, other in enumerate(others, start=1):
        if other != first:
            raise InputError("--distributed", f"process {number} has another {what} than process 0")


@dataclass(frozen=True)
class Stops:
    """What is known of signals in a block of `stops`."""

    # The name of a signal that came, to be asked for after every step of training.
    after: Callable[[int], str | None]
    # The same at any time; of several processes it knows nothing.
    now: Callable[[], str | None]
    # Told whether anything would be lost now; if not, a signal ends the process at once.
    hold: Callable[[bool], None]


@contextmanager
def stops() -> Iterator[Stops]:
    """In this block a signal ends nothing, but is named by `Stops.after`.

    All processes call that after every step, and it names a signal in all of them after the same
    step: JAX catches a SIGTERM and finds the first step that none of them has passed. (A handler of
    Python's would take the signal from it.) A SIGINT is handed on as a SIGTERM, the first time.
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
    """Waits until all processes are here, at the end of a run without errors."""
    global _done
    barrier("done")
    _done = True


def _part() -> None:
    """At exit. A process that failed must not wait for others that wait for it.

    JAX's own handler, which comes next, would.
    """
    if _done:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        # Those that fail for the same reason go together and in peace.
        _wait("failed", FAREWELL_SECONDS)
    except Exception:
        os._exit(1)
