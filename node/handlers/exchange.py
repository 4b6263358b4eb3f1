"""One request and its one answer; and what every handler may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from node.core.purgatory import Purgatory
from node.metadata import Metadata
from node.partition import Partition
from node.stats import Counters
from shmlog.clock import NS_PER_MS, Clock
from shmlog.errors import Code, ShmlogError, is_retriable
from shmlog.protocol import header
from shmlog.protocol.messages import Request
from shmlog.settings import ClusterConfig

if TYPE_CHECKING:
    from node.handlers.coordinator import Coordinator

# Facts of an error that travel beside it.
_FACTS = (
    "topic partition leader leader_epoch endpoint log_start high_watermark retry_after_ms versions"
).split()


def error_fields(error: ShmlogError) -> dict[str, Any]:
    """An error as the fields of an answer, or of one partition's entry in it."""
    fields: dict[str, Any] = {
        "error": int(error.code),
        "name": error.name,
        "retriable": is_retriable(error.code),
        "message": str(error),
    }
    fields.update({key: error.facts[key] for key in _FACTS if key in error.facts})
    return fields


class Outgoing(NamedTuple):
    """An answer on its way to a session."""

    client: bytes
    frames: list[bytes]


REQUEST_BYTES_MIN = 1024  # what a parked request costs however short it is


class Exchange:
    """A request that was admitted. Invariant: answered exactly once."""

    __slots__ = (
        "_context",
        "_envelope",
        "appended",
        "client",
        "codec",
        "deadline_ns",
        "id",
        "open",
        "sender",
        "size",
    )

    def __init__(
        self,
        context: Context,
        client: bytes,
        codec: header.Codec,
        envelope: bool,
        size: int,
        sender: Any = None,
    ) -> None:
        self._context = context
        self._envelope = envelope
        self.client = client
        self.sender = sender
        self.codec = codec
        self.size = max(size, REQUEST_BYTES_MIN)
        self.id: int | None = None
        self.deadline_ns = 0
        self.open = True
        self.appended = False  # has it changed a partition?
        context.admitted_bytes += self.size

    def begin(self, request: Request) -> None:
        """The request could be read: its id and its deadline."""
        self.id = request.id
        self.deadline_ns = self._context.clock.monotonic_ns() + request.timeout_ms * NS_PER_MS

    def answer(self, message: Any, frames: Sequence[bytes] = ()) -> None:
        """Answer with a struct or map, and frames behind it."""
        assert self.open, f"request {self.id} answered twice"
        self.open = False
        self._context.admitted_bytes -= self.size
        parts = [header.encode(message, self.codec), *frames]
        if self._envelope:
            parts.insert(0, b"")
        self._context.outbox.append(Outgoing(self.client, parts))

    def fail(self, error: ShmlogError) -> None:
        """Answer with an error."""
        self._context.counters.errors += 1
        self._context.counters.busy_answers += error.code is Code.BUSY
        self.answer({"id": self.id, **error_fields(error)})


class Waiter(Protocol):
    """Something parked in the purgatory."""

    def resume(self) -> None:
        """A key has reached its threshold, or is gone: look again, answer or park again."""
        ...

    def expire(self) -> None:
        """The deadline has come: answer."""
        ...


def _unbound(*_: object) -> None:
    raise AssertionError("handlers are not put together")


@dataclass(slots=True)
class Identity:
    """Who this broker is."""

    cluster: str
    broker: int
    incarnation: int
    endpoint: str
    brokers: tuple[int, ...]
    voters: tuple[int, ...]


@dataclass(slots=True)
class Context:
    """What handlers share. One owner: the loop."""

    identity: Identity
    settings: ClusterConfig
    clock: Clock
    metadata: Metadata
    partitions: dict[tuple[str, int], Partition]
    new_topic_id: Callable[[], bytes]
    pid_of: Callable[[Any], int]
    has_lease: bool = True  # may this broker ack (E7)? Looked at once a turn
    no_space: str = (
        ""  # why produce is refused for lack of disk space, if it is. Looked at once a turn
    )
    knows_image: bool = False  # after a start: does the image hold all that was committed before?
    purgatory: Purgatory[tuple[object, str], Waiter] = field(default_factory=Purgatory)
    outbox: list[Outgoing] = field(default_factory=list)
    dirty: dict[Partition, None] = field(default_factory=dict)  # appended to in this turn
    admitted_bytes: int = 0
    counters: Counters = field(default_factory=Counters)
    producer_ids: list[int] = field(default_factory=list)  # [next, end) of this broker's block
    simple_records: int = 0  # built or opened in this turn
    spread: int = 0  # where the next simple batch without key and partition goes

    # Bound where the parts are put together: run a request (again), hand a partition to its preferred
    # leader, and make a missing topic first.
    handle: Callable[[Exchange, Request, list[bytes]], None] = field(default=_unbound)
    elect: Callable[[Partition, int, Callable[[ShmlogError | None], None]], None] = field(
        default=_unbound
    )
    create_default_topic: Callable[[Exchange, str, Callable[[], None]], None] = field(
        default=_unbound
    )
    create_offsets_topic: Callable[[Exchange, Callable[[], None]], None] = field(default=_unbound)
    coordinator: Coordinator = field(init=False, repr=False)  # bound likewise


# What one waits for at a partition: its ends; or, LEADERSHIP, only what becomes of it, which `drop_key` tells.
STORED, COMMITTED, LEADERSHIP, METADATA = "stored", "committed", "leadership", "metadata"
