"""Signals end work at once, or after what was begun."""

import os
import signal

import pytest

from jaxmark.system.interrupts import SIGNALS, Interrupted, deferred, handling, raising


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_is_being_done(number):
    with pytest.raises(Interrupted, match=signal.Signals(number).name), handling(raising):
        os.kill(os.getpid(), number)


def test_a_deferred_signal_is_told_and_a_second_one_ends_the_work():
    before = signal.getsignal(signal.SIGTERM)
    with deferred() as name:
        assert name() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert name() == "SIGTERM"
        with pytest.raises(Interrupted, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
