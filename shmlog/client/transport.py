"""Sockets of a client: the only module of the client that imports zmq.

One DEALER per endpoint, without identity, and one monitor beside it. What libzmq hides, this shows:

    connect --> (IMMEDIATE: nothing is queued before the handshake) --> messages --> lost
                 our own backlog waits here                                          |
                 socket and backlog thrown away, one event with `frames` None  <-----+

A lost connection is reported once and its socket is closed at once. With IMMEDIATE, libzmq drops
what was queued in it, so nothing is delivered later to a restarted broker behind the session's back.
Every request in flight there has an unknown fate; the session decides what to send again. The next
`send` makes a new socket.

Where the process behind an endpoint can be watched, its pidfd stands beside the sockets: its death
is an event of its own, whether the loss of the connection was told before or not. A watch outlives
its connection; it ends with the process, and a new connection to the endpoint looks for a new one.

Waiting is apart from receiving, so that one thread may sleep in `wait` while another one sends:

    wait (touches no socket) --> what is readable --> receive --> events
                                  send --> unsure links ---^

The descriptor of a ZeroMQ socket is no socket: it becomes readable when commands for the socket
arrive, and any use of the socket may take them in. So a use leaves its link *unsure* until the
socket has been asked (EVENTS) and had nothing to say; and as long as a link is unsure, `wait` does
not sleep and the link is looked at in the next `receive`. Nothing can come in unseen: after such an
answer, whatever arrives makes the descriptor readable, and it stays so until the socket is used.

All methods belong to one thread at a time, with a lock between the uses by different threads; but
`wait`, which needs no lock beside `send` and `settle`, and `wake`, which any thread may call.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import zmq

from shmlog.client.bootstrap import Watch
from shmlog.clock import NS_PER_MS
from shmlog.ring.doorbell import Doorbells
from shmlog.sockets import LINGER_MS

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
_POLLOUT = int(zmq.POLLOUT)
_READY_MAX = 64  # descriptors that one wait reports; the others are in the next one


class Event(NamedTuple):
    """An answer from an endpoint, or (frames None) the loss of the connection to it; with `died`,
    because that process ended.
    """

    endpoint: str
    frames: list[bytes] | None
    died: Watch | None = None


class _Link:
    """One connection: the socket, its monitor, and what waits for the handshake."""

    __slots__ = ("backlog", "endpoint", "monitor", "monitor_fd", "socket", "socket_fd")

    def __init__(self, endpoint: str, socket: Any, monitor: Any) -> None:
        self.endpoint = endpoint
        self.socket = socket
        self.monitor = monitor
        self.socket_fd: int = socket.getsockopt(zmq.FD)
        self.monitor_fd: int = monitor.getsockopt(zmq.FD)
        self.backlog: deque[Sequence[Any]] = deque()


class Transport:
    """Messages to and from brokers, by endpoint."""

    def __init__(self, watch: Callable[[str], Watch | None] = lambda _: None) -> None:
        self._watch = watch
        self._watches: dict[str, Watch] = {}
        self._watched_fds: dict[int, str] = {}
        self._untold: list[Event] = []  # losses that were found while sending
        self._context = zmq.Context(io_threads=1)
        self._epoll = select.epoll()
        self._links: dict[str, _Link] = {}
        self._by_fd: dict[int, _Link] = {}
        self._unsure: dict[_Link, None] = {}
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._bells: Doorbells | None = None
        self._deaf = False
        self._closed = False

    @property
    def endpoints(self) -> Container[str]:
        """Those with a connection, or with one being made."""
        return self._links.keys()

    @property
    def ready_fd(self) -> int | None:
        """What is readable when `wait` would return; None: it would return at once."""
        return None if self._unsure or self._untold else self._epoll.fileno()

    @property
    def doorbells(self) -> Doorbells | None:
        """Those of rings that end a wait; None if the user has as many inotify instances as there may be."""
        if self._bells is None and not self._deaf:
            try:
                self._bells = Doorbells()
            except OSError:
                self._deaf = True
            else:
                self._epoll.register(self._bells.fd, select.EPOLLIN)
        return self._bells

    def send(self, endpoint: str, frames: Sequence[Any]) -> None:
        """Send one message, or keep it until the connection stands."""
        link = self._links.get(endpoint)
        if link is None:
            dead = self._watch_process(endpoint)
            if dead is not None:
                self._untold.append(Event(endpoint, None, dead))
                return
            link = self._connect(endpoint)
        self._unsure[link] = None
        if not link.backlog:
            try:
                link.socket.send_multipart(frames, zmq.NOBLOCK)
                return
            except zmq.Again:
                pass
        link.backlog.append(frames)

    def poll(self, timeout_ns: int | None) -> list[Event]:
        """Wait up to `timeout_ns` (None: for ever) for answers, losses or `wake`."""
        if self._unsure or self._untold:
            events = self.receive(())
            if events:
                return events
        return self.receive(self.wait(timeout_ns))

    def wait(self, timeout_ns: int | None) -> list[int]:
        """Sleep until something comes in, `wake`, or the time is up; what `receive` has to look at.

        Other threads may send meanwhile.
        """
        if self._unsure or self._untold:
            timeout_ns = 0
        timeout_s = None if timeout_ns is None else -(-max(timeout_ns, 0) // NS_PER_MS) / 1000
        ready = [fd for fd, _ in self._epoll.poll(timeout_s, _READY_MAX)]
        if self._wake_fd in ready:
            ready.remove(self._wake_fd)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)
        return ready

    def receive(self, ready: Sequence[int]) -> list[Event]:
        """The answers and losses that there are."""
        events, self._untold = self._untold, []
        monitors, others = [], []
        for fd in ready:
            link = self._by_fd.get(fd)
            if link is None:
                others.append(fd)
            elif fd == link.monitor_fd:
                monitors.append(link)
            else:
                self._unsure[link] = None
        for link in list(self._unsure):
            self._serve(link, events)
        for link in monitors:
            if link.monitor.getsockopt(zmq.EVENTS) & _POLLIN:
                self._lose(link, events)
        for fd in others:
            if self._bells is not None and fd == self._bells.fd:
                self._bells.hush()  # the caller looks into the rings after this
            else:
                self._see_death(fd, events)
        return events

    def settle(self) -> bool:
        """Ask the unsure links; True if there is something to `receive`, which no `wait` of another
        thread might see.
        """
        for link in list(self._unsure):
            mask = link.socket.getsockopt(zmq.EVENTS)
            if not (mask & _POLLIN or (link.backlog and mask & _POLLOUT)):
                del self._unsure[link]
        return bool(self._unsure or self._untold)

    def disconnect(self) -> None:
        """Close every connection without a report: all that is queued or on its way is forgotten."""
        self._untold.clear()
        for link in list(self._links.values()):
            self._drop(link)
        for endpoint in list(self._watches):
            self._unwatch(endpoint)

    def wake(self) -> None:
        """Make a `poll` of another thread return. Callable from any thread, also after `close`."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Close every socket; what was not sent is dropped. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.disconnect()
        self._context.term()
        self._epoll.close()
        if self._bells is not None:
            self._bells.close()

    def __del__(self) -> None:
        # Not in `close`: another thread may be about to `wake`, and the number may be a file's by then.
        if hasattr(self, "_wake_fd"):
            os.close(self._wake_fd)

    def _connect(self, endpoint: str) -> _Link:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
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
        for fd in (link.socket_fd, link.monitor_fd):
            self._by_fd[fd] = link
            self._epoll.register(fd, select.EPOLLIN)
        monitor.getsockopt(zmq.EVENTS)  # nothing yet: so what comes makes its descriptor readable
        socket.connect(endpoint)
        return link

    def _serve(self, link: _Link, events: list[Event], limit: int = _MESSAGES_PER_TURN) -> None:
        """Send what waited and receive; sure again unless the limit ends it."""
        socket = link.socket
        for _ in range(limit):
            mask = socket.getsockopt(zmq.EVENTS)  # a third of what zmq.Again costs
            if link.backlog and mask & _POLLOUT:
                self._flush(link)
            elif mask & _POLLIN:
                events.append(Event(link.endpoint, socket.recv_multipart(zmq.NOBLOCK)))
            else:
                self._unsure.pop(link, None)
                return

    def _flush(self, link: _Link) -> None:
        with contextlib.suppress(zmq.Again):
            while link.backlog:
                link.socket.send_multipart(link.backlog[0], zmq.NOBLOCK)
                link.backlog.popleft()

    def _lose(self, link: _Link, events: list[Event]) -> None:
        # Answers that arrived before the loss still count.
        self._serve(link, events, 1 << 20)
        self._drop(link)
        watch = self._watches.get(link.endpoint)
        if watch is not None and watch.has_ended:
            self._unwatch(link.endpoint)
            events.append(Event(link.endpoint, None, watch))
        else:
            events.append(Event(link.endpoint, None))

    def _watch_process(self, endpoint: str) -> Watch | None:
        """Watch who serves the endpoint now. Who served it, if he is dead and nobody does."""
        known = self._watches.get(endpoint)
        if known is not None:
            if not known.has_ended:
                return None
            self._unwatch(endpoint)
        watch = self._watch(endpoint)
        if watch is None:
            return known
        self._watches[endpoint] = watch
        self._watched_fds[watch.pidfd] = endpoint
        self._epoll.register(watch.pidfd, select.EPOLLIN)
        return None

    def _unwatch(self, endpoint: str) -> None:
        watch = self._watches.pop(endpoint)
        del self._watched_fds[watch.pidfd]
        self._epoll.unregister(watch.pidfd)
        os.close(watch.pidfd)

    def _see_death(self, fd: int, events: list[Event]) -> None:
        """A process ended: whatever its connection has still to say counts, then it is lost."""
        endpoint = self._watched_fds.get(fd)
        if endpoint is None:
            return  # closed since
        watch = self._watches[endpoint]
        self._unwatch(endpoint)
        link = self._links.get(endpoint)
        if link is not None:
            self._serve(link, events, 1 << 20)
            self._drop(link)
        events.append(Event(endpoint, None, watch))

    def _drop(self, link: _Link) -> None:
        del self._links[link.endpoint]
        self._unsure.pop(link, None)
        for fd in (link.socket_fd, link.monitor_fd):
            del self._by_fd[fd]
            self._epoll.unregister(fd)  # libzmq closes it later, in a thread of its own
        link.socket.disable_monitor()
        link.monitor.close(0)
        link.socket.close()
