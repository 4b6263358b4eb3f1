"""One table of errors: number, name, class, hint, exit status. Wire, Python and command line read it.

Three families by what the caller can do: `RetriableError` (wait or refresh, then the same call may succeed),
`RequestError` (change the call), `FatalError` (stop and look). Numbers below 1000 are Kafka's; 1000 and up are
ours; 2000 and up are made by the client and never travel.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar, NamedTuple


class Code(enum.IntEnum):
    """The numbers of the wire's `error` field."""

    UNKNOWN_SERVER_ERROR = -1
    NONE = 0
    OFFSET_OUT_OF_RANGE = 1
    CORRUPT_MESSAGE = 2
    UNKNOWN_TOPIC_OR_PARTITION = 3
    LEADER_NOT_AVAILABLE = 5
    NOT_LEADER_OR_FOLLOWER = 6
    REQUEST_TIMED_OUT = 7
    BROKER_NOT_AVAILABLE = 8
    MESSAGE_TOO_LARGE = 10
    OFFSET_METADATA_TOO_LARGE = 12
    COORDINATOR_LOAD_IN_PROGRESS = 14
    COORDINATOR_NOT_AVAILABLE = 15
    NOT_COORDINATOR = 16
    INVALID_TOPIC_EXCEPTION = 17
    NOT_ENOUGH_REPLICAS = 19
    NOT_ENOUGH_REPLICAS_AFTER_APPEND = 20
    INVALID_REQUIRED_ACKS = 21
    INVALID_GROUP_ID = 24
    UNKNOWN_MEMBER_ID = 25
    TOPIC_AUTHORIZATION_FAILED = 29
    INVALID_TIMESTAMP = 32
    UNSUPPORTED_VERSION = 35
    TOPIC_ALREADY_EXISTS = 36
    INVALID_PARTITIONS = 37
    INVALID_REPLICATION_FACTOR = 38
    INVALID_CONFIG = 40
    NOT_CONTROLLER = 41
    INVALID_REQUEST = 42
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45
    INVALID_PRODUCER_EPOCH = 47
    STORAGE_ERROR = 56
    UNKNOWN_PRODUCER_ID = 59
    NON_EMPTY_GROUP = 68
    GROUP_ID_NOT_FOUND = 69
    FENCED_LEADER_EPOCH = 74
    UNKNOWN_LEADER_EPOCH = 75
    UNSUPPORTED_COMPRESSION_TYPE = 76
    STALE_BROKER_EPOCH = 77
    OFFSET_NOT_AVAILABLE = 78
    PREFERRED_LEADER_NOT_AVAILABLE = 80
    GROUP_MAX_SIZE_REACHED = 81
    FENCED_INSTANCE_ID = 82
    ELECTION_NOT_NEEDED = 84
    GROUP_SUBSCRIBED_TO_TOPIC = 86
    INVALID_RECORD = 87
    INVALID_UPDATE_VERSION = 95
    UNKNOWN_TOPIC_ID = 100
    DUPLICATE_BROKER_REGISTRATION = 101
    INCONSISTENT_TOPIC_ID = 103
    INELIGIBLE_REPLICA = 107
    NEW_LEADER_ELECTED = 108
    FENCED_MEMBER_EPOCH = 110
    UNRELEASED_INSTANCE_ID = 111
    UNSUPPORTED_ASSIGNOR = 112
    STALE_MEMBER_EPOCH = 113
    INVALID_REGULAR_EXPRESSION = 128
    BUSY = 1000
    BROKER_GONE = 1001
    DISK_FULL = 1002
    LOG_CORRUPT = 1003
    BUFFER_FULL = 2000
    DELIVERY_TIMEOUT = 2001
    LOG_TRUNCATED = 2002
    NO_CLUSTER = 2003
    CLOSED = 2004
    SERIALIZATION = 2005


class ShmlogError(Exception):
    """Any error of shmlog. `code` is the protocol's number; facts stand as attributes, not only in the text."""

    default: ClassVar[Code] = Code.UNKNOWN_SERVER_ERROR
    retriable: ClassVar[bool] = False

    def __init__(self, message: str, *, code: Code | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.code = self.default if code is None else code
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        # Facts (topic, partition, offset, leader ...) read like attributes.
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(f"{type(self).__name__} has no {name}")

    @property
    def name(self) -> str:
        """The code's name, as on the wire."""
        return self.code.name

    @property
    def hint(self) -> str:
        """What to do next, in one sentence; empty where the message says all there is to say."""
        hint: str = self.facts.get("hint", TABLE[self.code].hint)
        return hint

    @property
    def exit_status(self) -> int:
        """The command line's exit status for this error."""
        return TABLE[self.code].exit_status


class RetriableError(ShmlogError):
    """Wait or refresh, then repeat the same call. The client does so by itself until its deadline."""

    retriable = True


class RequestError(ShmlogError):
    """Change the call; the client stays usable."""


class FatalError(ShmlogError):
    """Stop the thing concerned (producer, reading of that partition, connection) and look."""


class NotLeader(RetriableError):
    """The partition is led elsewhere or under another epoch."""

    default = Code.NOT_LEADER_OR_FOLLOWER


class LeaderUnavailable(RetriableError):
    """No leader just now."""

    default = Code.LEADER_NOT_AVAILABLE


class NotEnoughReplicas(RetriableError):
    """Fewer in-sync replicas live than `min_insync_replicas`: nothing was written (19), or not committed (20)."""

    default = Code.NOT_ENOUGH_REPLICAS


class RequestTimedOut(RetriableError):
    """The deadline has passed; the fate of a produce is unknown."""

    default = Code.REQUEST_TIMED_OUT


class CorruptMessage(RetriableError):
    """A checksum or a size did not fit: the bytes were damaged on their way or at rest."""

    default = Code.CORRUPT_MESSAGE


class StorageError(RetriableError):
    """The broker cannot read that range."""

    default = Code.STORAGE_ERROR


class Backpressure(RetriableError):
    """The broker holds as much unanswered work as it is allowed to (`retry_after_ms`)."""

    default = Code.BUSY


class BrokerGone(RetriableError):
    """The broker died or the connection broke before the answer; a produce may or may not have been stored."""

    default = Code.BROKER_GONE


class DiskFull(RetriableError):
    """No space left for the log; nothing was written."""

    default = Code.DISK_FULL


class BufferFull(RetriableError):
    """The producer's byte budget stayed used up for `max_block`; the record was not queued."""

    default = Code.BUFFER_FULL


class UnknownTopic(RequestError):
    """No such topic or partition, or the topic was deleted."""

    default = Code.UNKNOWN_TOPIC_OR_PARTITION


class TopicExists(RequestError):
    """The name is taken, or too much like a taken one."""

    default = Code.TOPIC_ALREADY_EXISTS


class PartitionMoved(RequestError):
    """The partition is another member's by now: the offset was not committed. What is still assigned goes on."""

    default = Code.STALE_MEMBER_EPOCH


class OffsetOutOfRange(RequestError):
    """The offset lies below the log start or beyond the end (`log_start`, `high_watermark`)."""

    default = Code.OFFSET_OUT_OF_RANGE


class LogTruncated(RequestError):
    """Records that were read are not in the log any more; reading goes on at `offset`.

    Gone are `offset` to `end_offset`, the first one not gone; other records may stand there now.
    """

    default = Code.LOG_TRUNCATED


class RecordTooLarge(RequestError):
    """A record, batch or request is over its limit (`size`, `limit`)."""

    default = Code.MESSAGE_TOO_LARGE


class InvalidConfig(RequestError):
    """An unknown setting, a value out of bounds, or a setting that is not built yet."""

    default = Code.INVALID_CONFIG


class NotAllowed(RequestError):
    """The topic is internal."""

    default = Code.TOPIC_AUTHORIZATION_FAILED


class OutOfSequence(RequestError):
    """The broker's producer state does not fit the batch; records of unknown fate are reported."""

    default = Code.OUT_OF_ORDER_SEQUENCE_NUMBER


class InvalidRequest(RequestError):
    """The request as it stands can never succeed."""

    default = Code.INVALID_REQUEST


class InvalidRecord(InvalidRequest):
    """The record or batch breaks a rule of the format or of its topic."""

    default = Code.INVALID_RECORD


class UnsupportedCompression(InvalidRequest):
    """The codec is unknown, or its package is not installed."""

    default = Code.UNSUPPORTED_COMPRESSION_TYPE


class Outdated(RequestError):
    """Between brokers: proposed on facts that have changed since. Never asked again as it stands."""

    default = Code.INVALID_UPDATE_VERSION


class ServerError(RequestError):
    """An unexpected error inside the broker; its log has the details."""

    default = Code.UNKNOWN_SERVER_ERROR


class ClusterNotFound(RequestError):
    """No running cluster where one was expected."""

    default = Code.NO_CLUSTER


class ClientClosed(RequestError):
    """The client was closed, or was copied by fork."""

    default = Code.CLOSED


class SerializationError(RequestError):
    """A serde could not encode or decode a key or value."""

    default = Code.SERIALIZATION


class ProducerFenced(FatalError):
    """Another instance has taken over this producer id."""

    default = Code.INVALID_PRODUCER_EPOCH


class MemberFenced(FatalError):
    """Another process has taken over this member's instance id."""

    default = Code.FENCED_INSTANCE_ID


class CorruptLog(FatalError):
    """Stored records are damaged; the range is named, nothing is skipped silently."""

    default = Code.LOG_CORRUPT


class VersionMismatch(FatalError):
    """Client and broker speak no common protocol version (`versions`)."""

    default = Code.UNSUPPORTED_VERSION


class DeliveryError(ShmlogError):
    """Some records were not delivered. `failures` is a list of (delivery, cause), in the order of sending."""

    def __init__(self, message: str, failures: list[tuple[Any, ShmlogError]]) -> None:
        super().__init__(message, code=failures[0][1].code if failures else None)
        self.failures = failures


class Entry(NamedTuple):
    """What the table says of one code."""

    raises: type[ShmlogError]
    exit_status: int
    hint: str


TABLE: dict[Code, Entry] = {
    Code.UNKNOWN_SERVER_ERROR: Entry(ServerError, 1, "look into the broker's log"),
    Code.OFFSET_OUT_OF_RANGE: Entry(OffsetOutOfRange, 1, "choose an offset of the range named"),
    Code.CORRUPT_MESSAGE: Entry(CorruptMessage, 7, "send or fetch again"),
    Code.UNKNOWN_TOPIC_OR_PARTITION: Entry(UnknownTopic, 3, "list the topics, or create this one"),
    Code.LEADER_NOT_AVAILABLE: Entry(LeaderUnavailable, 5, "wait for a leader"),
    Code.NOT_LEADER_OR_FOLLOWER: Entry(NotLeader, 5, "ask the leader named in the answer"),
    Code.REQUEST_TIMED_OUT: Entry(RequestTimedOut, 4, "send the same request again"),
    Code.BROKER_NOT_AVAILABLE: Entry(LeaderUnavailable, 5, "wait for the brokers to come back"),
    Code.MESSAGE_TOO_LARGE: Entry(
        RecordTooLarge, 1, "send less at once, or raise max.message.bytes"
    ),
    Code.OFFSET_METADATA_TOO_LARGE: Entry(
        RecordTooLarge, 1, "shorten the metadata of the committed offset"
    ),
    Code.COORDINATOR_LOAD_IN_PROGRESS: Entry(
        LeaderUnavailable, 5, "wait until the coordinator has read its groups"
    ),
    Code.COORDINATOR_NOT_AVAILABLE: Entry(LeaderUnavailable, 5, "wait for a coordinator"),
    Code.NOT_COORDINATOR: Entry(NotLeader, 5, "ask the coordinator named in the answer"),
    Code.INVALID_TOPIC_EXCEPTION: Entry(InvalidRequest, 1, "use 1 to 249 of A-Z a-z 0-9 . _ -"),
    Code.NOT_ENOUGH_REPLICAS: Entry(NotEnoughReplicas, 5, "wait for replicas to come back"),
    Code.NOT_ENOUGH_REPLICAS_AFTER_APPEND: Entry(
        NotEnoughReplicas, 5, "it is in the log: send the same sequence again"
    ),
    Code.INVALID_REQUIRED_ACKS: Entry(InvalidRequest, 2, 'use "all", "1" or "0"'),
    Code.INVALID_GROUP_ID: Entry(InvalidRequest, 1, "use 1 to 249 printable characters"),
    Code.UNKNOWN_MEMBER_ID: Entry(PartitionMoved, 1, "the member was removed: join again"),
    Code.TOPIC_AUTHORIZATION_FAILED: Entry(NotAllowed, 1, "internal topics are the brokers' own"),
    Code.INVALID_TIMESTAMP: Entry(InvalidRequest, 1, "check the clock that made the timestamp"),
    Code.UNSUPPORTED_VERSION: Entry(VersionMismatch, 1, "use a client of this broker's version"),
    Code.TOPIC_ALREADY_EXISTS: Entry(TopicExists, 1, "choose another name"),
    Code.INVALID_PARTITIONS: Entry(InvalidRequest, 1, "1 to 1024 partitions, and never fewer"),
    Code.INVALID_REPLICATION_FACTOR: Entry(InvalidRequest, 1, "at most one replica a broker"),
    Code.INVALID_CONFIG: Entry(InvalidConfig, 2, "see the table of settings"),
    Code.NOT_CONTROLLER: Entry(NotLeader, 5, "wait for a majority of the voters"),
    Code.INVALID_REQUEST: Entry(InvalidRequest, 1, "see docs/protocol.md"),
    Code.OUT_OF_ORDER_SEQUENCE_NUMBER: Entry(OutOfSequence, 1, "take a new producer epoch"),
    Code.INVALID_PRODUCER_EPOCH: Entry(ProducerFenced, 1, "another instance has taken over; stop"),
    Code.STORAGE_ERROR: Entry(StorageError, 7, "run shmlog fsck on the stopped cluster"),
    Code.UNKNOWN_PRODUCER_ID: Entry(OutOfSequence, 1, "take a new producer epoch and send again"),
    Code.NON_EMPTY_GROUP: Entry(InvalidRequest, 1, "stop the group's members first"),
    Code.GROUP_ID_NOT_FOUND: Entry(InvalidRequest, 3, "list the groups"),
    Code.FENCED_LEADER_EPOCH: Entry(NotLeader, 5, "refresh the metadata"),
    Code.UNKNOWN_LEADER_EPOCH: Entry(NotLeader, 5, "wait for the broker's metadata"),
    Code.UNSUPPORTED_COMPRESSION_TYPE: Entry(
        UnsupportedCompression, 1, "use a codec that both sides have"
    ),
    Code.STALE_BROKER_EPOCH: Entry(Outdated, 1, "brokers only: register again"),
    Code.OFFSET_NOT_AVAILABLE: Entry(
        LeaderUnavailable, 5, "wait: a new leader does not know it yet"
    ),
    Code.PREFERRED_LEADER_NOT_AVAILABLE: Entry(
        LeaderUnavailable, 5, "wait until that replica is in sync"
    ),
    Code.GROUP_MAX_SIZE_REACHED: Entry(InvalidRequest, 1, "a group has at most 1000 members"),
    Code.FENCED_INSTANCE_ID: Entry(MemberFenced, 1, "another process has this instance id; stop"),
    Code.ELECTION_NOT_NEEDED: Entry(InvalidRequest, 0, "nothing to do: it leads already"),
    Code.GROUP_SUBSCRIBED_TO_TOPIC: Entry(
        InvalidRequest, 1, "a member of the group subscribes to the topic; stop it first"
    ),
    Code.INVALID_RECORD: Entry(InvalidRecord, 1, "see docs/protocol.md, record batch"),
    Code.INVALID_UPDATE_VERSION: Entry(Outdated, 1, "brokers only: read the image again"),
    Code.UNKNOWN_TOPIC_ID: Entry(UnknownTopic, 3, "the topic was deleted; refresh the metadata"),
    Code.DUPLICATE_BROKER_REGISTRATION: Entry(
        InvalidConfig, 2, "another process is this broker: end one of the two"
    ),
    Code.INCONSISTENT_TOPIC_ID: Entry(UnknownTopic, 3, "the name has another topic; refresh"),
    Code.INELIGIBLE_REPLICA: Entry(Outdated, 1, "brokers only: read the image again"),
    Code.NEW_LEADER_ELECTED: Entry(Outdated, 1, "brokers only: read the image again"),
    Code.FENCED_MEMBER_EPOCH: Entry(PartitionMoved, 1, "the member was left behind: join again"),
    Code.UNRELEASED_INSTANCE_ID: Entry(
        InvalidRequest, 1, "another living member has this instance id"
    ),
    Code.UNSUPPORTED_ASSIGNOR: Entry(InvalidRequest, 1, 'use "uniform" or "range"'),
    Code.STALE_MEMBER_EPOCH: Entry(PartitionMoved, 1, "go on with what is still assigned"),
    Code.INVALID_REGULAR_EXPRESSION: Entry(
        InvalidRequest, 1, "subscribe to names, or patterns with * and ?"
    ),
    Code.BUSY: Entry(Backpressure, 5, "wait retry_after_ms and send less at once"),
    Code.BROKER_GONE: Entry(BrokerGone, 5, "send again; with idempotence nothing is doubled"),
    Code.DISK_FULL: Entry(DiskFull, 5, "make room on the broker's disk"),
    Code.LOG_CORRUPT: Entry(CorruptLog, 7, "run shmlog fsck; seek past the range to go on"),
    Code.BUFFER_FULL: Entry(BufferFull, 5, "the broker does not keep up, or is gone"),
    Code.DELIVERY_TIMEOUT: Entry(
        RequestTimedOut, 4, "the text says whether it may have been written"
    ),
    Code.LOG_TRUNCATED: Entry(LogTruncated, 1, "undo what was made of these records, then read on"),
    Code.NO_CLUSTER: Entry(ClusterNotFound, 5, "start one: shmlog dev, or shmlog up --dir DIR"),
    Code.CLOSED: Entry(ClientClosed, 1, "make a new client"),
    Code.SERIALIZATION: Entry(SerializationError, 1, "check the serde against the data"),
}

assert set(TABLE) == set(Code) - {Code.NONE}


def is_retriable(code: Code) -> bool:
    """May the same request succeed later?"""
    return TABLE[code].raises.retriable


def from_wire(code: int, message: str, **facts: Any) -> ShmlogError:
    """The exception for an answer's error number; an unknown number becomes a ServerError."""
    try:
        known = Code(code)
    except ValueError:
        return ServerError(f"error {code}: {message}", **facts)
    return TABLE[known].raises(message, code=known, **facts)
