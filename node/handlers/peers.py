"""Messages of other brokers: to the metadata log and its Raft, or to replication.

A message of an incarnation that is not the registered one changes nothing (docs/rules.md, I11), but for those of Raft
and for the registration itself: who is not registered yet takes part in the quorum all the same. Damage is said and
dropped, as if the message had been lost: whoever waits for its answer asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from node import journal
from node.metadata import Metadata
from node.replication import Replication
from shmlog.clock import Clock
from shmlog.errors import CorruptMessage, InvalidRecord, InvalidRequest
from shmlog.log.storage import Buffer
from shmlog.protocol import header, peers


def sender(
    broker: int, incarnation: int, put: Callable[[int, list[bytes]], None]
) -> Callable[[int, peers.PeerMessage, Sequence[bytes]], None]:
    """How this broker sends: `put(to, frames)` after the message has been given its sender."""

    def send(to: int, message: peers.PeerMessage, frames: Sequence[bytes]) -> None:
        message.broker, message.incarnation = broker, incarnation
        put(to, [header.encode(message, header.Codec.MSGPACK), *frames])

    return send


class PeerHandler:
    """Decodes, checks who speaks, and hands over."""

    def __init__(self, metadata: Metadata, replication: Replication, clock: Clock) -> None:
        self._metadata = metadata
        self._replication = replication
        self._clock = clock

    def receive(self, frames: Sequence[Buffer]) -> None:
        """One message."""
        try:
            message: peers.PeerUnion = header.decode(bytes(frames[0]), peers.PeerUnion)  # type: ignore[arg-type]
            self._handle(message, frames[1:])
        except (InvalidRequest, CorruptMessage, InvalidRecord) as error:
            journal.warning("message of a peer dropped", reason=str(error))

    def _handle(self, message: peers.PeerUnion, frames: Sequence[Buffer]) -> None:
        voting = self._metadata.voting
        if message.broker == voting.broker or message.broker not in voting.brokers:
            raise InvalidRequest(f"broker {message.broker} is no peer")
        now_ns = self._clock.monotonic_ns()
        replication = self._replication
        current = self._metadata.image.is_current(message.broker, message.incarnation)
        match message:
            case peers.ReplicaFetch() if current:
                replication.handle_fetch(message, now_ns)
            case peers.ReplicaFetched() if current:
                replication.handle_fetched(message, frames, now_ns)
            case peers.ReplicaStored() if current:
                replication.handle_stored(message, now_ns)
            case peers.EpochQuestion() if current:
                replication.handle_question(message)
            case peers.EpochAnswer() if current:
                replication.handle_epochs(message, now_ns)
            case (
                peers.ReplicaFetch()
                | peers.ReplicaFetched()
                | peers.ReplicaStored()
                | peers.EpochQuestion()
                | peers.EpochAnswer()
            ):
                pass
            case _:
                self._metadata.receive(message, frames, now_ns)
