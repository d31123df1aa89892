"""SIGTERM and SIGINT: a cluster takes its machine back, or the user presses Ctrl-C.

Python runs a signal handler only when the main thread is in Python; a compiler can keep it for ten
seconds. So a command (`leave_on_signals`) has a thread that waits for signals and ends the process
with one line and `EXIT_CODE`. It skips Python's cleanup: compiler threads that still run would
crash the interpreter there. Files are written whole or not at all; the thread deletes unfinished
ones (`unfinished`).

Training saves first: in a `deferred` block with something to lose, the first signal is only noted.
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

# The command's exit code; finished work is kept, and the same command continues.
EXIT_CODE = 3
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """One of `SIGNALS` came; its name is the message."""


class Deferral:
    """A block of work that a signal must not end in the middle."""

    def __init__(self) -> None:
        # Whether ending now would lose work.
        self.holds = True
        # The name of the signal that came.
        self.came: str | None = None


_deferral: Deferral | None = None
_watching = False
# The pipe that signal numbers are written to; a 0 asks `_watch` to set `_caught_up`.
_wakeup = -1
_caught_up = threading.Event()
# Files and folders that are being written under a temporary name.
_unfinished: set[Path] = set()


def leave_on_signals() -> None:
    """From now on either signal ends this process at once, except in `deferred` blocks.

    Call it in the main thread, before slow imports. It unblocks both signals (see `blocked`).
    """
    global _watching, _wakeup
    if _watching:
        return
    _watching = True
    read, _wakeup = os.pipe()
    os.set_blocking(_wakeup, False)
    # The interpreter's C handler writes the signal's number there even if the main thread is busy.
    signal.set_wakeup_fd(_wakeup, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _nothing)
    # The new thread takes no signals: the main thread gets them all.
    with blocked():
        threading.Thread(target=_watch, args=(read,), daemon=True, name="signals").start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def catch_up() -> None:
    """Waits until `_watch` has handled all earlier signals, which may end this process."""
    if _watching:
        _caught_up.clear()
        os.write(_wakeup, b"\0")
        _caught_up.wait(timeout=5)


def leave_signals_to_others() -> None:
    """Undoes `leave_on_signals`: JAX handles signals where a job has several processes."""
    global _watching
    if _watching:
        _watching = False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(name: str) -> None:
    """Ends this process because of this signal: one line, `EXIT_CODE`, no cleanup of Python's."""
    # A progress bar leaves the cursor at its end.
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    line = "\n" * bool(len(bars)) + f"stopped by {name}; the same command continues\n"
    # Not through `sys.stderr`: the main thread may hold its lock.
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    discard_unfinished()
    os._exit(EXIT_CODE)


def end(code: int) -> None:
    """Ends this process with an exit code when all is done, without Python's cleanup.

    Cleanup is slow, and a signal during it would change the exit code of finished work.
    """
    for stream in (sys.stdout, sys.stderr):
        # The other end of the pipe may be closed.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def discard_unfinished() -> None:
    """Deletes the files and folders that this process has not finished writing."""
    for path in list(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """If the process ends in this block, it deletes `path`, a temporary file or folder."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


@contextlib.contextmanager
def blocked(signals: Iterable[signal.Signals] = SIGNALS) -> Iterator[None]:
    """In this block signals wait, also for processes that are started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def deferred() -> Iterator[Deferral]:
    """In this block the first signal is only noted while the deferral `holds`; a second one ends.

    It gives work time to finish. Outside of a command (see `leave_on_signals`) the second signal
    raises Interrupted.
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
    """Both signals go to `handler` in this block; for the main thread only."""
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
    """A handler that does nothing: `_watch` acts on the signal."""
