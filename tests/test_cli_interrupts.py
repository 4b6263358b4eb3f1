"""Ctrl-C behind a step and not in it, so that nothing that was done is missing from the account."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from shmlog.cli.interrupts import HELD_S, Interrupts


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_step_comes_behind_it() -> None:
    account = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.held():
        press()
        account.append("sent")
    assert account == ["sent"]


def test_ctrl_c_between_steps_comes_at_once() -> None:
    account = []
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        with interrupts.held():
            account.append("sent")
        press()
        account.append("never")
    assert account == ["sent"]


def test_a_second_ctrl_c_does_not_wait_for_the_step() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.held():
        press()
        press()
        pytest.fail("the step went on")


def test_a_step_that_waits_is_interrupted_after_a_while() -> None:
    room = threading.Event()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts, interrupts.held():
        press()
        assert room.wait(60)
    assert HELD_S <= time.monotonic() - began < 30


def test_the_error_of_a_step_goes_before_its_interruption() -> None:
    with pytest.raises(ValueError, match="refused"), Interrupts() as interrupts, interrupts.held():
        press()
        raise ValueError("refused")


def test_what_there_was_before_is_there_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
