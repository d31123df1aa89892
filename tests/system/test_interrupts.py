"""Signals in a process that is no command: deferred, or as Python has them."""

import os
import signal
import threading

import pytest

from jaxmark.system import interrupts
from jaxmark.system.files import replacing
from jaxmark.system.interrupts import Interrupted, blocked, deferred, discard_unfinished


def test_a_deferred_signal_is_told_and_a_second_one_ends_the_work():
    before = signal.getsignal(signal.SIGTERM)
    with deferred() as deferral:
        assert deferral.came is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert deferral.came == "SIGTERM"
        with pytest.raises(Interrupted, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_deferred_where_nothing_would_be_lost():
    with deferred() as deferral:
        deferral.holds = False
        with pytest.raises(Interrupted, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        deferral.holds = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert deferral.came == "SIGTERM"


def test_a_blocked_signal_waits():
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        with blocked():
            # To this thread: of a process, any thread would take it.
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert not came
        assert came
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_was_begun_of_a_file_is_deleted(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "whole") as temporary:
        temporary.write_text("half")
        assert temporary in interrupts._unfinished
        discard_unfinished()
        assert not list(tmp_path.iterdir())
    assert not interrupts._unfinished
