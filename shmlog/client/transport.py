"""Sockets of a client: the only module of the client that imports zmq.

One DEALER per endpoint, without identity, and one monitor beside it. What libzmq hides, this shows:

    connect --> (IMMEDIATE: nothing is queued before the handshake) --> messages --> lost
                 our own backlog waits here                                          |
                 socket and backlog thrown away, one event with `frames` None  <-----+

A lost connection is reported once and its socket is closed at once, so nothing that was queued in
it can be delivered later to a restarted broker behind the session's back. Every request in flight
there has an unknown fate; the session decides what to send again. The next `send` makes a new
socket.

All methods belong to one thread at a time, but `wake`, which any thread may call.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import zmq

from shmlog.clock import NS_PER_MS

_MESSAGES_PER_TURN = 64  # of one connection, so that a busy one does not starve the others
_TROUBLE = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_RECONNECT_MS = 100  # never reached: the socket is closed at the first failure
_MESSAGE_BYTES_MAX = 32 << 20
_POLLIN = int(zmq.POLLIN)


class Event(NamedTuple):
    """An answer from an endpoint, or (frames None) the loss of the connection to it."""

    endpoint: str
    frames: list[bytes] | None


class _Link:
    """One connection: the socket, its monitor, and what waits for the handshake."""

    __slots__ = ("backlog", "endpoint", "monitor", "socket")

    def __init__(self, endpoint: str, socket: Any, monitor: Any) -> None:
        self.endpoint = endpoint
        self.socket = socket
        self.monitor = monitor
        self.backlog: deque[Sequence[Any]] = deque()


class Transport:
    """Messages to and from brokers, by endpoint."""

    def __init__(self) -> None:
        self._context = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._links: dict[str, _Link] = {}
        self._by_socket: dict[Any, _Link] = {}
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._closed = False

    def send(self, endpoint: str, frames: Sequence[Any]) -> None:
        """Send one message, or keep it until the connection stands."""
        link = self._links.get(endpoint)
        if link is None:
            link = self._connect(endpoint)
        if not link.backlog:
            try:
                link.socket.send_multipart(frames, zmq.NOBLOCK)
                return
            except zmq.Again:
                self._poller.modify(link.socket, zmq.POLLIN | zmq.POLLOUT)
        link.backlog.append(frames)

    def poll(self, timeout_ns: int | None) -> list[Event]:
        """Wait up to `timeout_ns` (None: for ever) for answers, losses or `wake`."""
        timeout_ms = None if timeout_ns is None else -(-max(timeout_ns, 0) // NS_PER_MS)
        events: list[Event] = []
        for ready, mask in self._poller.poll(timeout_ms):
            if ready == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
                continue
            link = self._by_socket.get(ready)
            if link is None:
                continue  # closed earlier in this very turn
            if ready is link.socket:
                self._serve(link, mask, events)
            else:
                self._lose(link, events)
        return events

    def wake(self) -> None:
        """Make a `poll` of another thread return. Callable from any thread, also after `close`."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Close every socket; what was not sent is dropped. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for link in list(self._links.values()):
            self._drop(link)
        self._context.term()

    def __del__(self) -> None:
        # Not in `close`: another thread may be about to `wake`, and the number may be a file's by then.
        if hasattr(self, "_wake_fd"):
            os.close(self._wake_fd)

    def _connect(self, endpoint: str) -> _Link:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDHWM, 0)  # bounded by the credits of the layers above
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        socket.setsockopt(zmq.MAXMSGSIZE, _MESSAGE_BYTES_MAX)
        monitor = socket.get_monitor_socket(_TROUBLE)
        monitor.setsockopt(zmq.LINGER, 0)
        link = _Link(endpoint, socket, monitor)
        self._links[endpoint] = link
        self._by_socket[socket] = self._by_socket[monitor] = link
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)
        socket.connect(endpoint)
        return link

    def _serve(self, link: _Link, mask: int, events: list[Event]) -> None:
        if mask & zmq.POLLOUT:
            self._flush(link)
        if mask & zmq.POLLIN:
            self._receive(link, events, _MESSAGES_PER_TURN)

    def _flush(self, link: _Link) -> None:
        try:
            while link.backlog:
                link.socket.send_multipart(link.backlog[0], zmq.NOBLOCK)
                link.backlog.popleft()
        except zmq.Again:
            return
        self._poller.modify(link.socket, zmq.POLLIN)

    def _receive(self, link: _Link, events: list[Event], limit: int) -> None:
        socket = link.socket
        for _ in range(limit):
            if not socket.getsockopt(zmq.EVENTS) & _POLLIN:  # a third of what zmq.Again costs
                return
            events.append(Event(link.endpoint, socket.recv_multipart(zmq.NOBLOCK)))

    def _lose(self, link: _Link, events: list[Event]) -> None:
        # Answers that arrived before the loss still count.
        self._receive(link, events, 1 << 20)
        self._drop(link)
        events.append(Event(link.endpoint, None))

    def _drop(self, link: _Link) -> None:
        del self._links[link.endpoint], self._by_socket[link.socket], self._by_socket[link.monitor]
        self._poller.unregister(link.socket)
        self._poller.unregister(link.monitor)
        link.socket.disable_monitor()
        link.monitor.close(0)
        link.socket.close(0)
