"""SIGTERM and SIGINT: a cluster takes its machine back, or a person presses Ctrl-C."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

# Of the command line; what was done is kept, and the same command continues.
EXIT_CODE = 3
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """One of these signals came; its name is the message."""


def raising(number: int, frame: FrameType | None) -> None:
    """A handler that ends whatever is being done."""
    raise Interrupted(signal.Signals(number).name)


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Both signals go to `handler` in this block; of the main thread alone."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], str | None]]:
    """In this block the first signal only makes the given function name it; the second one raises.

    For work that comes to a good end first.
    """
    came: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            raising(number, frame)
        came.append(signal.Signals(number).name)

    with handling(note):
        yield lambda: came[0] if came else None
