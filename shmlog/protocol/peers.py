"""What brokers of one cluster say to each other, as values. Internal: no client speaks this.

Every message goes one way, over the sender's DEALER to the receiver's ROUTER, as `[header][frame]...` in
MessagePack; an answer is a message of its own in the other direction. So nobody is owed anything by a socket: a
message may be lost, late or doubled, and whoever waits asks again after a while. `broker` and `incarnation` say who
sends; a message of an incarnation that the image does not know (or not any more) changes nothing.

    raft         VoteRequest  VoteAnswer  AppendRequest  AppendAnswer          the metadata log
    controller   Propose      ProposeAnswer                                    a change of the cluster
    replica      ReplicaFetch ReplicaFetched ReplicaStored EpochQuestion EpochAnswer

Offsets in Raft's messages are offsets of the metadata log, terms are the leader epochs of its batches.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

MESSAGE_BYTES_MAX = 16 << 20

Term = Annotated[int, Meta(ge=0, lt=1 << 31)]  # a batch has 32 bits for it


def first_seq(incarnation: int) -> int:
    """Where an incarnation's `seq` numbers begin: an answer that its predecessor waited for is none of its own."""
    return incarnation << 32


class PeerMessage(Struct, kw_only=True, omit_defaults=True, tag_field="op"):
    """Who sends. `broker` and `incarnation` are filled in by whoever puts the message on the wire."""

    broker: int = -1
    incarnation: int = 0


# -- raft ---------------------------------------------------------------------------------------------


class VoteRequest(PeerMessage, kw_only=True, omit_defaults=True, tag="vote"):
    """May I lead in `term`? `pre`: only asked whether it would be granted, nothing is promised.

    `death_proven`: the leader of the term before is proven dead (its pidfd), so stickiness does not apply.
    A pre-vote for term 0 only asks for the voter's term. `sent_ns`: echoed.
    """

    term: Term
    last_term: Term
    end_offset: int
    pre: bool = False
    death_proven: bool = False
    sent_ns: int = 0


class VoteAnswer(PeerMessage, kw_only=True, omit_defaults=True, tag="vote_answer"):
    """`term`: the voter's, or for a granted pre-vote the one asked for. `sent_ns`: of the request."""

    term: Term
    granted: bool
    pre: bool = False
    sent_ns: int = 0


class AppendRequest(PeerMessage, kw_only=True, omit_defaults=True, tag="append"):
    """Batches from `prev_offset` on (one frame, back to back; none: a heartbeat), and the commit offset.

    `prev_term`: term of the record before `prev_offset` (0: none). `lease_until_ns`: until when (monotonic clock,
    one for all processes of a machine) the leader knows that a majority has followed it. `sent_ns`: echoed.
    `answered_ns`: the newest request that this receiver's incarnation has answered, as far as the leader knows.
    """

    term: Term
    prev_offset: int
    prev_term: Term
    commit: int
    sent_ns: int
    lease_until_ns: int = 0
    answered_ns: int = 0


class AppendAnswer(PeerMessage, kw_only=True, omit_defaults=True, tag="append_answer"):
    """Accepted: all below `stored_end` is synced here and equal to the leader's log.

    Refused: `diverging_term`, `diverging_end`: the largest term at most `prev_term` known here, and its end.
    `image_offset`: the image that this broker has published (a beat of its loop). `sent_ns`: of the request.
    """

    term: Term
    accepted: bool
    sent_ns: int
    stored_end: int = 0
    diverging_term: Term = 0
    diverging_end: int = 0
    image_offset: int = 0


# -- controller -----------------------------------------------------------------------------------------


class Change(Struct, kw_only=True, omit_defaults=True, tag_field="kind", frozen=True):
    """Something that the controller is asked to do: planned on the newest image, committed whole or refused."""


class CreateTopic(Change, kw_only=True, omit_defaults=True, tag="create_topic", frozen=True):
    """A topic under a fresh id. `if_missing`: nothing happens where the name exists."""

    name: str
    topic_id: bytes
    partition_count: int
    replication_factor: int = -1
    configs: dict[str, Any] = {}
    if_missing: bool = False


class AlterTopic(Change, kw_only=True, omit_defaults=True, tag="alter_topic", frozen=True):
    """A topic's own settings."""

    name: str
    set_values: dict[str, Any] = {}
    delete: tuple[str, ...] = ()


class AddPartitions(Change, kw_only=True, omit_defaults=True, tag="add_partitions", frozen=True):
    """Raise the number of partitions to `partition_count`."""

    name: str
    partition_count: int


class DeleteTopic(Change, kw_only=True, omit_defaults=True, tag="delete_topic", frozen=True):
    """Remove a topic."""

    name: str


class DeleteRecords(Change, kw_only=True, omit_defaults=True, tag="delete_records", frozen=True):
    """Raise a log start; the leader says at which epoch, and how far it has committed."""

    name: str
    partition: int
    leader_epoch: int
    offset: int
    high_watermark: int


class TakeProducerIds(Change, kw_only=True, omit_defaults=True, tag="producer_ids", frozen=True):
    """The next block of producer ids for a broker."""

    taker: int


class ReplicaReport(Struct, array_like=True, frozen=True):
    """A replica as its broker finds it: `last_epoch` of its last batch (-1: none) and its end.

    `leader_epoch`: of the image that the report was made by, so that it counts only if nobody was followed since; -1
    at the first registration of an incarnation, when it has followed nobody yet. `lossy` counts only then.
    """

    topic_id: bytes
    partition: int
    last_epoch: int
    end_offset: int
    lossy: bool
    leader_epoch: int = -1


class RegisterBroker(Change, kw_only=True, omit_defaults=True, tag="register", frozen=True):
    """A new incarnation, its logs recovered, with a report of each replica (one left out: as lost).

    Sent again to every new controller, and whenever the image shows a partition hosted here without leader at a
    leader epoch not reported yet: then only the reports count, made anew.
    """

    id: int
    incarnation: int
    boot_id: str
    pid: int
    endpoints: dict[str, str]
    replicas: tuple[ReplicaReport, ...] = ()


class EpochStart(Struct, array_like=True, frozen=True):
    """An elected leader has its log stored and begins its epoch at `start_offset`."""

    topic_id: bytes
    partition: int
    leader_epoch: int
    start_offset: int


class StartEpochs(Change, kw_only=True, omit_defaults=True, tag="start_epochs", frozen=True):
    """Epochs that their leader `leader` (of `incarnation`) has begun; those not current any more are skipped."""

    leader: int
    incarnation: int
    starts: tuple[EpochStart, ...]


class IsrMember(Struct, array_like=True, frozen=True):
    """A broker as the leader saw it when it made the proposal."""

    broker: int
    incarnation: int


class ProposeIsr(Change, kw_only=True, omit_defaults=True, tag="isr", frozen=True):
    """The in-sync replicas that a leader proposes, seen at `partition_epoch`. One partition a change."""

    topic_id: bytes
    partition: int
    leader: int
    leader_epoch: int
    partition_epoch: int
    isr: tuple[IsrMember, ...]


class HandOver(Change, kw_only=True, omit_defaults=True, tag="hand_over", frozen=True):
    """A leader whose `target` (in the ISR) has stored its whole log gives the partition to it."""

    topic_id: bytes
    partition: int
    leader: int
    leader_epoch: int
    target: int


class StopBroker(Change, kw_only=True, omit_defaults=True, tag="stop", frozen=True):
    """A broker that stops: fenced as `stopping`, so it leads nothing and leaves every ISR that allows it."""

    id: int
    incarnation: int


ChangeUnion = (
    CreateTopic
    | AlterTopic
    | AddPartitions
    | DeleteTopic
    | DeleteRecords
    | TakeProducerIds
    | RegisterBroker
    | StartEpochs
    | ProposeIsr
    | HandOver
    | StopBroker
)


class Propose(PeerMessage, kw_only=True, omit_defaults=True, tag="propose"):
    """A change, to the controller. `seq`: of the sender, for the answer."""

    seq: int
    change: ChangeUnion


class ProposeAnswer(PeerMessage, kw_only=True, omit_defaults=True, tag="propose_answer"):
    """error 0: committed at `metadata_offset`. Else the code, its sentence and its facts."""

    seq: int
    error: int = 0
    message: str = ""
    facts: dict[str, Any] = {}
    metadata_offset: int = -1


# -- replica ------------------------------------------------------------------------------------------


class FetchPosition(Struct, array_like=True):
    """One partition of a replica fetch. `stored_end` counts by `durability`; `last_epoch`: of the last batch.

    `can_append` false: there is no space here (J6), so nothing is to be sent. `log_start`: of the follower; a leader
    whose own is higher answers at once. -1: not said. `tombstones_known`: what the leader's answer to the epoch
    question had as `tombstones_dropped`; if it has grown above the position since, that is answered 1, and the
    follower asks and begins anew.
    """

    topic_id: bytes
    partition: int
    leader_epoch: int
    position: int
    stored_end: int
    durability: str
    last_epoch: int
    can_append: bool = True
    log_start: int = -1
    tombstones_known: int = 0


class ReplicaFetch(PeerMessage, kw_only=True, omit_defaults=True, tag="fetch"):
    """All that a follower wants of one leader: batches from each position on, waiting up to `max_wait_ms`.

    Takes the place of the follower's fetch before: a leader holds at most one a follower.
    """

    seq: int
    partitions: list[FetchPosition]
    max_wait_ms: int = 500
    max_bytes: int = 10 << 20
    partition_max_bytes: int = 1 << 20


class FetchedPartition(Struct, array_like=True):
    """error 0: `size` bytes of whole batches stand in the next frame (none if 0).

    A follower raises its log start to the leader's, `log_start`. `compacted_below`: records that are gone from the
    leader's log may have been replaced by any below it.
    """

    topic_id: bytes
    partition: int
    error: int
    leader_epoch: int
    size: int
    high_watermark: int
    log_start: int
    compacted_below: int = 0


class ReplicaFetched(PeerMessage, kw_only=True, omit_defaults=True, tag="fetched"):
    """The answer to fetch `seq`; partitions without news are left out."""

    seq: int
    partitions: list[FetchedPartition]


class StoredEnd(Struct, array_like=True):
    """A stored end that grew while a fetch is parked."""

    topic_id: bytes
    partition: int
    leader_epoch: int
    stored_end: int
    durability: str


class ReplicaStored(PeerMessage, kw_only=True, omit_defaults=True, tag="stored"):
    """Ends that a sync has moved: acks do not wait for the next fetch."""

    partitions: list[StoredEnd]


class EpochWanted(Struct, array_like=True):
    """Whose epoch history is asked for, at which leader epoch; and from a follower that begins anew, which producers:
    those with an id above `producers_after`.
    """

    topic_id: bytes
    partition: int
    leader_epoch: int
    producers_after: int | None = None


class EpochQuestion(PeerMessage, kw_only=True, omit_defaults=True, tag="epochs"):
    """The leader's epoch histories, for followers whose leader epoch rose."""

    seq: int
    partitions: list[EpochWanted]


class ProducerState(Struct, array_like=True):
    """What is remembered of a producer's newest batches below a log start.

    `batches`: (first sequence, last sequence, base offset, append time in ns), the newest last.
    """

    producer_id: int
    producer_epoch: int
    batches: list[tuple[int, int, int, int]]


class PartitionEpochs(Struct, array_like=True):
    """error 0: `entries` (leader epoch, start offset), both rising, up to `end_offset`.

    `tombstones_dropped`: no tombstone at or above it is missing in the leader's log. Who ends below it may have what
    they deleted, and would never hear of it: it begins anew. Then it needs `producers` too: the batches of which they
    tell are not in the log any more. None: not asked for, or no room in this answer; `more`: there are some with higher
    ids.
    """

    topic_id: bytes
    partition: int
    error: int
    leader_epoch: int
    entries: list[tuple[int, int]]
    end_offset: int
    log_start: int
    tombstones_dropped: int = 0
    producers: list[ProducerState] | None = None
    more: bool = False


class EpochAnswer(PeerMessage, kw_only=True, omit_defaults=True, tag="epochs_answer"):
    """The answer to question `seq`."""

    seq: int
    partitions: list[PartitionEpochs]


PeerUnion = (
    VoteRequest
    | VoteAnswer
    | AppendRequest
    | AppendAnswer
    | Propose
    | ProposeAnswer
    | ReplicaFetch
    | ReplicaFetched
    | ReplicaStored
    | EpochQuestion
    | EpochAnswer
)
