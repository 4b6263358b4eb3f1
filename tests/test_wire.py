"""The broker's socket by itself: who does not read is cut off, by bytes and by age; the listener's guard."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from node.io import wire as wires
from node.io.wire import ZmqWire
from shmlog import process
from shmlog.clock import NS_PER_S, ManualClock

ANSWER = [b"x" * 60_000]


class Pair:
    """A wire and one client that reads only when the test does."""

    def __init__(self, directory: str) -> None:
        self.clock = ManualClock(monotonic_ns=10**9)
        self.endpoint = f"ipc://{directory}/s"
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.wire = ZmqWire(
            self.endpoint, f"{self.endpoint}.peer", {}, self.wake_fd, 1000, lambda: 0, self.clock
        )
        self.context = zmq.Context()
        self.socket = self.connect()
        self.client = self.ask()

    def connect(self) -> Any:
        socket: Any = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self.endpoint)
        return socket

    def ask(self) -> bytes:
        """Send a request; the routing id it comes from, or nothing if it is ignored."""
        self.socket.send(b"hi")
        deadline = time.monotonic() + 10
        while (received := self.wire.receive()) is None:
            assert time.monotonic() < deadline
            self.wire.poll(100)
        return received.client if received.frames else b""

    def stuff(self) -> None:
        """Answer until answers have to wait and the kernel takes no more."""
        while not self.wire.flush() or self.moves():
            self.wire.send(self.client, ANSWER)

    def moves(self) -> bool:
        before = self.wire._backlog_bytes[self.client]
        self.wire.poll(20)
        self.wire.flush()
        return self.wire._backlog_bytes.get(self.client, 0) < before

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()
        self.wire.close()
        os.close(self.wake_fd)


def eventually(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline


@pytest.fixture
def pair() -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as directory:
        made = Pair(directory)
        yield made
        made.close()


def test_a_client_with_too_much_unread_is_cut_off_and_served_no_more(pair: Pair) -> None:
    pair.stuff()
    for _ in range(wires.BACKLOG_BYTES_MAX // len(ANSWER[0]) + 1):
        pair.wire.send(pair.client, ANSWER)
    assert pair.wire.flush() == 0
    assert pair.ask() == b""
    pair.wire.send(pair.client, ANSWER)
    assert pair.wire.flush() == 0
    pair.socket.close(0)
    pair.socket = pair.connect()
    assert pair.ask() not in (b"", pair.client)  # a new session is another one


def test_a_client_that_reads_nothing_for_long_is_cut_off_however_little_waits(pair: Pair) -> None:
    pair.stuff()
    pair.clock.advance(wires.STUCK_NS_MAX - NS_PER_S)
    assert pair.wire.flush() > 0
    assert pair.ask() == pair.client
    pair.clock.advance(2 * NS_PER_S)
    assert pair.wire.flush() == 0
    assert pair.ask() == b""


def test_who_reads_slowly_is_not_cut_off_and_who_is_stuck_is_looked_at_seldom(pair: Pair) -> None:
    pair.stuff()
    pauses = [pair.wire.flush() for _ in range(10)]
    assert pauses[-1] == wires.RETRY_MS_MAX
    for _ in range(5):
        while not pair.moves():
            pair.socket.recv()
        pair.stuff()
        pair.clock.advance(wires.STUCK_NS_MAX - NS_PER_S)
        pair.wire.flush()
    assert pair.ask() == pair.client


def test_the_listener_is_closed_while_descriptors_are_scarce(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pair.endpoint.removeprefix("ipc://")

    def accepts(path: str) -> bool:
        with socket.socket(socket.AF_UNIX) as raw:
            return raw.connect_ex(path) == 0

    for used, listens in ((501, False), (400, False), (249, True), (499, True)):
        monkeypatch.setattr(process, "open_descriptors", lambda used=used: used)
        pair.wire.guard_descriptors()
        eventually(lambda path=path, listens=listens: accepts(path) == listens)  # libzmq's thread
    pair.socket.close(0)
    pair.socket = pair.connect()
    assert pair.ask()
