"""SIGTERM and SIGINT: a cluster takes its machine back, or somebody presses Ctrl-C.

A handler of Python's runs only when the main thread comes back to Python, and that may be in a
compiler for ten seconds. So a command (`leave_on_signals`) has a thread that waits for signals and
ends the process itself, with one line and `EXIT_CODE`. It ends it without tidying up, for threads
of a compiler that is still at work crash the interpreter on its way out. Files are written whole or
not at all; what was begun of one is deleted (`unfinished`).

Training wants to save first: in a `deferred` block that has something to lose the first signal is
only named.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

# Of the command line; what was done is kept, and the same command continues.
EXIT_CODE = 3
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """One of these signals came; its name is the message."""


class Deferral:
    """A block of work that a signal must not end in the middle."""

    def __init__(self) -> None:
        # Whether there is anything that would be lost.
        self.holds = True
        # The name of the signal that came.
        self.came: str | None = None


_deferral: Deferral | None = None
_watching = False
# Where the numbers of signals are written to; a 0 asks `_watch` to say that it has got so far.
_wakeup = -1
_caught_up = threading.Event()
# Files and folders that are being written under a temporary name.
_unfinished: set[Path] = set()


def leave_on_signals() -> None:
    """From now on either signal ends this process at once, but in `deferred` blocks.

    To be called in the main thread, before what takes long to import. Signals that are blocked (see
    `blocked`) are let in.
    """
    global _watching, _wakeup
    if _watching:
        return
    _watching = True
    read, _wakeup = os.pipe()
    os.set_blocking(_wakeup, False)
    # The interpreter's own handler writes the signal's number there, whatever the main thread does.
    signal.set_wakeup_fd(_wakeup, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _nothing)
    # The thread itself takes none: those that the main thread has blocked wait for it.
    with blocked():
        threading.Thread(target=_watch, args=(read,), daemon=True, name="signals").start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def catch_up() -> None:
    """Returns when all signals that came before were acted on, which may end this process."""
    if _watching:
        _caught_up.clear()
        os.write(_wakeup, b"\0")
        _caught_up.wait(timeout=5)


def leave_signals_to_others() -> None:
    """Undo `leave_on_signals`: JAX handles the signals of a job of several processes."""
    global _watching
    if _watching:
        _watching = False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(name: str) -> None:
    """End this process because of the signal of this name: one line, `EXIT_CODE`, no tidying up."""
    # A progress bar leaves the cursor behind it.
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    line = "\n" * bool(len(bars)) + f"stopped by {name}; the same command continues\n"
    # Not by Python's own files: the main thread may hold their locks.
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    discard_unfinished()
    os._exit(EXIT_CODE)


def end(code: int) -> None:
    """End this process with an exit code when all is done, without Python's tidying up.

    That takes a while, and a signal in it would end the process as if nothing were done.
    """
    for stream in (sys.stdout, sys.stderr):
        # Who read it may be gone.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def discard_unfinished() -> None:
    """Delete what this process has begun to write."""
    for path in list(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """In this block a file or folder has a temporary name, and is deleted if the process ends."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


@contextlib.contextmanager
def blocked(signals: Iterable[signal.Signals] = SIGNALS) -> Iterator[None]:
    """In this block signals wait; processes that are started in it begin with them waiting."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def deferred() -> Iterator[Deferral]:
    """In this block the first signal is only noted, while the deferral `holds`; a second one ends.

    For work that comes to a good end first. Outside of a command (see `leave_on_signals`) the
    second signal raises Interrupted.
    """
    global _deferral
    deferral = Deferral()
    if _watching:
        _deferral = deferral
        try:
            yield deferral
        finally:
            _deferral = None
        return

    def note(number: int, frame: FrameType | None) -> None:
        if deferral.came or not deferral.holds:
            raise Interrupted(signal.Signals(number).name)
        deferral.came = signal.Signals(number).name

    with handling(note):
        yield deferral


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Both signals go to `handler` in this block; of the main thread alone."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _watch(read: int) -> None:
    while _watching:
        for number in os.read(read, 64):
            if number == 0:
                _caught_up.set()
            if number not in SIGNALS or not _watching:
                continue
            name = signal.Signals(number).name
            if _deferral is not None and _deferral.holds and _deferral.came is None:
                _deferral.came = name
            else:
                leave(name)


def _nothing(number: int, frame: FrameType | None) -> None:
    """The thread does it."""
