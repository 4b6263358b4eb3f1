"""The broker's socket: the only zmq in the broker, and its one waiting place.

ROUTER over ipc. Clients set no identity, so a session is the routing id that libzmq gave a connection.

- Mandatory routing: an answer to a client that is gone is an error we see, not a silent drop.
- A frame above FRAME_SIZE_MAX ends its connection inside libzmq before anything is allocated for it.
- A client that does not read its answers: libzmq holds PIPE_MESSAGES of them, then ours wait here, at most
  BACKLOG_BYTES_MAX (one answer of any allowed size may always wait on an empty queue); then the session is cut
  off: what waits is dropped and further requests of that session are ignored. A ROUTER cannot close one peer; so
  the first request after the session has begun to read again is answered as usual, and before it goes a message
  with id null and error 1000 that says that answers were dropped.
- libzmq aborts the process when accept fails for lack of descriptors. So the listener is closed while connections
  use more than half of the descriptors that the logs leave, and opened again below a quarter.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import zmq

from node import journal
from shmlog import process
from shmlog.errors import Code
from shmlog.protocol import header

FRAME_SIZE_MAX = 16 << 20
PIPE_MESSAGES = 64
BACKLOG_BYTES_MAX = 4 << 20
CUT_OFF_MAX = 4096
_POLLIN = int(zmq.POLLIN)


class Received(NamedTuple):
    """One multipart message and the session that it came from."""

    client: bytes
    frames: list[bytes]


def _dropped_notice(frames: Sequence[bytes]) -> list[bytes]:
    """What a session that was cut off is told, in the form of its request."""
    envelope = not frames[0]
    message = {
        "id": None,
        "error": int(Code.BUSY),
        "name": Code.BUSY.name,
        "retriable": True,
        "message": "this session did not read: answers to earlier requests were dropped",
    }
    first = frames[1] if envelope and len(frames) > 1 else frames[0] or b"{"
    encoded = header.encode(message, header.codec_of(first))
    return [b"", encoded] if envelope else [encoded]


class Wire(Protocol):
    """What the loop needs of its sockets."""

    def poll(self, timeout_ms: int) -> bool:
        """Wait until a request or a completion is there, or the time is up; True: requests wait."""
        ...

    def receive(self) -> Received | None:
        """One waiting message; None if there is none."""
        ...

    def send(self, client: bytes, frames: Sequence[bytes]) -> None:
        """Answer a session; never blocks."""
        ...

    def flush(self) -> bool:
        """Send what had to wait; True if something still does."""
        ...

    def guard_descriptors(self) -> None:
        """Stop or resume accepting, by the number of open descriptors."""
        ...

    def close(self) -> None:
        """Close the sockets; what clients have not received is dropped."""
        ...


class ZmqWire:
    """The wire over ZeroMQ."""

    def __init__(
        self, endpoint: str, wake_fd: int, descriptors_max: int, log_files: Callable[[], int]
    ) -> None:
        self._endpoint = endpoint
        self._context = zmq.Context(io_threads=1)
        self._socket: Any = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.LINGER, 0),
            (zmq.SNDHWM, PIPE_MESSAGES),
            (zmq.RCVHWM, 1000),
            (zmq.MAXMSGSIZE, FRAME_SIZE_MAX),
            (zmq.BACKLOG, 1024),
            (zmq.HANDSHAKE_IVL, 3000),
        ):
            self._socket.setsockopt(option, value)
        self._path = endpoint.removeprefix("ipc://")
        self._bound = False
        self._bind()
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(wake_fd, zmq.POLLIN)
        self._descriptors_max = descriptors_max
        self._log_files = log_files
        self._backlog: dict[bytes, deque[Sequence[bytes]]] = {}
        self._backlog_bytes: dict[bytes, int] = {}
        self._cut_off: dict[bytes, None] = {}

    def _bind(self) -> None:
        # The caller holds the lock of the data directory, so a socket file here is a dead broker's.
        if os.path.lexists(self._path):
            os.unlink(self._path)
        self._socket.bind(self._endpoint)
        os.chmod(self._path, 0o600)
        self._bound = True

    def poll(self, timeout_ms: int) -> bool:
        return any(source is self._socket for source, _ in self._poller.poll(timeout_ms))

    def receive(self) -> Received | None:
        # Asking first is a tenth of the cost of the exception that an empty socket raises.
        if not self._socket.getsockopt(zmq.EVENTS) & _POLLIN:
            return None
        client, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
        if client in self._cut_off:
            if not frames or not self._try_send(client, _dropped_notice(frames)):
                return Received(client, [])
            del self._cut_off[client]
            journal.event("client reads again", client=client.hex())
        return Received(client, frames)

    def send(self, client: bytes, frames: Sequence[bytes]) -> None:
        if client in self._cut_off:
            return
        if client in self._backlog or not self._try_send(client, frames):
            self._park(client, frames)

    def _try_send(self, client: bytes, frames: Sequence[bytes]) -> bool:
        try:
            self._socket.send_multipart([client, *frames], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            # The client is gone; so is its interest in the answer.
        return True

    def _park(self, client: bytes, frames: Sequence[bytes]) -> None:
        size = sum(map(len, frames))
        waiting = self._backlog_bytes.get(client, 0)
        if waiting and waiting + size > BACKLOG_BYTES_MAX:
            journal.warning("client cut off", reason="does not read", waiting_bytes=waiting)
            self._drop(client)
            if len(self._cut_off) >= CUT_OFF_MAX:
                del self._cut_off[next(iter(self._cut_off))]
            self._cut_off[client] = None
            return
        self._backlog.setdefault(client, deque()).append(frames)
        self._backlog_bytes[client] = waiting + size

    def _drop(self, client: bytes) -> None:
        self._backlog.pop(client, None)
        self._backlog_bytes.pop(client, None)

    def flush(self) -> bool:
        for client in list(self._backlog):
            queue = self._backlog[client]
            while queue and self._try_send(client, queue[0]):
                self._backlog_bytes[client] -= sum(map(len, queue.popleft()))
            if not queue:
                self._drop(client)
        return bool(self._backlog)

    def guard_descriptors(self) -> None:
        files = self._log_files()
        used, limit = process.open_descriptors() - files, self._descriptors_max - files
        if self._bound and used > limit // 2:
            self._socket.unbind(self._endpoint)
            self._bound = False
            journal.warning(
                "listener closed",
                open_descriptors=used,
                log_files=files,
                limit=self._descriptors_max,
            )
        elif not self._bound and used < limit // 4:
            self._bind()
            journal.event("listener opened", open_descriptors=used)

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()
        if os.path.lexists(self._path):
            os.unlink(self._path)
