"""The broker's sockets: the only zmq in the broker, and its one waiting place.

    clients   ROUTER over ipc: requests and their answers
    peers     ROUTER over ipc: messages of other brokers, in only; one DEALER to each of them: out only

Clients set no identity, so a session is the routing id that libzmq gave a connection. A message to a peer goes
one way and may be lost: it is dropped where the peer is not connected or PEER_MESSAGES wait for it already, and
`reset_peer` throws away what waits for a peer that died, so that no later incarnation reads it.

- Mandatory routing: an answer to a client that is gone is an error we see, not a silent drop.
- A frame above FRAME_SIZE_MAX ends its connection inside libzmq before anything is allocated for it.
- A client that does not read its answers: libzmq holds PIPE_MESSAGES of them, then ours wait here, at most
  BACKLOG_BYTES_MAX (one answer of any allowed size may always wait on an empty queue), and at most STUCK_NS_MAX
  without one of them leaving; then the session is cut off: what waits is dropped and further requests of that
  session are ignored. While nothing leaves we look again ever more seldom, down to RETRY_MS_MAX. A ROUTER cannot
  close one peer; so the first request after the session has begun to read again is answered as usual, and before
  it goes a message with id null and error 1000 that says that answers were dropped.
- libzmq aborts the process when accept fails for lack of descriptors. So the listener is closed while connections
  use more than half of the descriptors that the logs leave, and opened again below a quarter. The sessions that it
  had accepted end with it, so it is the last resort that it looks like: clients come back when it is open, and
  repeat.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import zmq

from node import journal
from shmlog import process
from shmlog.clock import NS_PER_S, Clock
from shmlog.errors import Code
from shmlog.log.storage import Buffer
from shmlog.protocol import header
from shmlog.sockets import LINGER_MS

FRAME_SIZE_MAX = 16 << 20
PIPE_MESSAGES = 64
PEER_MESSAGES = 256
PEER_RECONNECT_MS, PEER_RECONNECT_MAX_MS = 10, 160
BACKLOG_BYTES_MAX = 4 << 20
STUCK_NS_MAX = 30 * NS_PER_S
RETRY_MS_MAX = 100
CUT_OFF_MAX = 4096
COPY_BYTES_MAX = 128 << 10  # of a peer's frame; what is larger is read where libzmq has put it
_POLLIN = int(zmq.POLLIN)


class Received(NamedTuple):
    """One multipart message and the session that it came from. `sender`: what `Wire.pid_of` can read."""

    client: bytes
    frames: list[bytes]
    sender: Any = None


class Ready(NamedTuple):
    """What a poll has found: requests of clients, messages of peers, finished jobs, watched descriptors."""

    requests: bool
    messages: bool
    jobs: bool
    descriptors: tuple[int, ...] = ()


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

    def poll(self, timeout_ms: int) -> Ready:
        """Wait until something is there, or the time is up."""
        ...

    def watch(self, descriptor: int) -> None:
        """Let `poll` end when the descriptor is readable."""
        ...

    def unwatch(self, descriptor: int) -> None:
        """Not any more; before it is closed."""
        ...

    def receive_peer(self) -> Sequence[Buffer] | None:
        """One message of another broker, its header as bytes; None if there is none."""
        ...

    def send_peer(self, broker: int, frames: Sequence[bytes]) -> None:
        """A message to another broker; never blocks, may be lost."""
        ...

    def reset_peer(self, broker: int) -> None:
        """That broker died: forget what waits for it."""
        ...

    def receive(self) -> Received | None:
        """One waiting message; None if there is none."""
        ...

    def pid_of(self, sender: Any) -> int:
        """The process that sent a message, as the kernel said when it connected; 0: not known."""
        ...

    def send(self, client: bytes, frames: Sequence[bytes]) -> None:
        """Answer a session; never blocks."""
        ...

    def flush(self) -> int:
        """Send what had to wait; in how many ms to come again, 0 if nothing waits."""
        ...

    def guard_descriptors(self) -> None:
        """Stop or resume accepting, by the number of open descriptors."""
        ...

    def close(self) -> None:
        """Close the sockets; what clients have not received is dropped."""
        ...


class ZmqWire:
    """The wire over ZeroMQ. `peers`: the endpoints of the other brokers."""

    def __init__(
        self,
        endpoint: str,
        peer_endpoint: str,
        peers: Mapping[int, str],
        wake_fd: int,
        descriptors_max: int,
        log_files: Callable[[], int],
        clock: Clock,
    ) -> None:
        self._context = zmq.Context(io_threads=1)
        self._endpoint = endpoint
        self._socket = self._router(SNDHWM=PIPE_MESSAGES, ROUTER_MANDATORY=1)
        self._peer_endpoint = peer_endpoint
        self._peer_socket = self._router()
        self._peers = dict(peers)
        self._dealers: dict[int, Any] = {}
        self._bound = False
        self._bind()
        _listen(self._peer_socket, peer_endpoint)
        self._poller = zmq.Poller()
        for waited in (self._socket, self._peer_socket, wake_fd):
            self._poller.register(waited, zmq.POLLIN)
        self._wake_fd = wake_fd
        self._descriptors_max = descriptors_max
        self._log_files = log_files
        self._backlog: dict[bytes, deque[Sequence[bytes]]] = {}
        self._backlog_bytes: dict[bytes, int] = {}
        self._moved_ns: dict[bytes, int] = {}  # when a client's backlog began or last shrank
        self._retry_ms = 1
        self._clock = clock
        self._cut_off: dict[bytes, None] = {}
        for broker in self._peers:
            self._dial(broker)  # early: what is sent before the connection stands is lost

    def _router(self, **options: int) -> Any:
        socket: Any = self._context.socket(zmq.ROUTER)
        common = {
            "LINGER": LINGER_MS,
            "RCVHWM": 1000,
            "MAXMSGSIZE": FRAME_SIZE_MAX,
            "BACKLOG": 1024,
            "HANDSHAKE_IVL": 3000,
        }
        for name, value in {**common, **options}.items():
            socket.setsockopt(getattr(zmq, name), value)
        return socket

    def _bind(self) -> None:
        _listen(self._socket, self._endpoint)
        self._bound = True

    def poll(self, timeout_ms: int) -> Ready:
        requests = messages = jobs = False
        descriptors: tuple[int, ...] = ()
        for source, _ in self._poller.poll(timeout_ms):
            if source is self._socket:
                requests = True
            elif source is self._peer_socket:
                messages = True
            elif source == self._wake_fd:
                jobs = True
            else:
                descriptors += (source,)
        return Ready(requests, messages, jobs, descriptors)

    def watch(self, descriptor: int) -> None:
        self._poller.register(descriptor, zmq.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        self._poller.unregister(descriptor)

    def receive_peer(self) -> Sequence[Buffer] | None:
        if not self._peer_socket.getsockopt(zmq.EVENTS) & _POLLIN:
            return None
        _, head, *rest = self._peer_socket.recv_multipart(zmq.NOBLOCK, copy=False)
        large = COPY_BYTES_MAX
        return [head.bytes, *(f.bytes if len(f) <= large else f.buffer for f in rest)]

    def send_peer(self, broker: int, frames: Sequence[bytes]) -> None:
        try:
            self._dealers[broker].send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            pass  # not connected, or it does not read: whoever waits for an answer asks again

    def _dial(self, broker: int) -> None:
        dealer: Any = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, LINGER_MS)
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.SNDHWM, PEER_MESSAGES)
        dealer.setsockopt(zmq.RECONNECT_IVL, PEER_RECONNECT_MS)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, PEER_RECONNECT_MAX_MS)
        dealer.connect(self._peers[broker])
        self._dealers[broker] = dealer

    def reset_peer(self, broker: int) -> None:
        self._dealers.pop(broker).close()
        self._dial(broker)

    def receive(self) -> Received | None:
        # Asking first is a tenth of the cost of the exception that an empty socket raises.
        if not self._socket.getsockopt(zmq.EVENTS) & _POLLIN:
            return None
        sender = self._socket.recv(zmq.NOBLOCK, copy=False)
        client, frames = sender.bytes, self._socket.recv_multipart(zmq.NOBLOCK)
        if client in self._cut_off:
            if not frames or not self._try_send(client, _dropped_notice(frames)):
                return Received(client, [])
            del self._cut_off[client]
            journal.event("client reads again", client=client.hex())
        return Received(client, frames, sender)

    def pid_of(self, sender: Any) -> int:
        # libzmq's property of a frame that came by ipc: "host:uid:gid:pid", from SO_PEERCRED. pid 0: it belongs to
        # another pid namespace.
        try:
            return int(sender.get("Peer-Address").rpartition(":")[2])
        except (zmq.ZMQError, ValueError):
            return 0

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
            self._cut(client)
            return
        self._backlog.setdefault(client, deque()).append(frames)
        self._backlog_bytes[client] = waiting + size
        self._moved_ns.setdefault(client, self._clock.monotonic_ns())

    def _cut(self, client: bytes) -> None:
        waiting = self._backlog_bytes[client]
        journal.warning("client cut off", reason="does not read", waiting_bytes=waiting)
        self._drop(client)
        if len(self._cut_off) >= CUT_OFF_MAX:
            del self._cut_off[next(iter(self._cut_off))]
        self._cut_off[client] = None

    def _drop(self, client: bytes) -> None:
        self._backlog.pop(client, None)
        self._backlog_bytes.pop(client, None)
        self._moved_ns.pop(client, None)

    def flush(self) -> int:
        now_ns = self._clock.monotonic_ns()
        moved = False
        for client in list(self._backlog):
            queue = self._backlog[client]
            while queue and self._try_send(client, queue[0]):
                self._backlog_bytes[client] -= sum(map(len, queue.popleft()))
                self._moved_ns[client] = now_ns
                moved = True
            if not queue:
                self._drop(client)
            elif now_ns - self._moved_ns[client] > STUCK_NS_MAX:
                self._cut(client)
        self._retry_ms = 1 if moved or not self._backlog else min(2 * self._retry_ms, RETRY_MS_MAX)
        return self._retry_ms if self._backlog else 0

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
        for socket in (self._socket, self._peer_socket, *self._dealers.values()):
            socket.close()
        self._context.term()
        for endpoint in (self._endpoint, self._peer_endpoint):
            _remove(endpoint)


def _listen(socket: Any, endpoint: str) -> None:
    # The caller holds the lock of the data directory, so a socket file here is a dead broker's.
    _remove(endpoint)
    socket.bind(endpoint)
    os.chmod(endpoint.removeprefix("ipc://"), 0o600)


def _remove(endpoint: str) -> None:
    path = endpoint.removeprefix("ipc://")
    if os.path.lexists(path):
        os.unlink(path)
