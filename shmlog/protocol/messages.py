"""What clients and brokers say to each other, as values.

One struct a message; decoding checks types and bounds. Those of groups are in group_messages.py; operations.py has
the table of all. A name is never removed and never changes its meaning.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from shmlog.protocol.header import Big, Octets

PROTOCOL_VERSION = 1
SIMPLE_RECORDS_MAX = 1000
SIMPLE_BYTES_MAX = 1 << 20
REQUEST_BYTES_MAX = 8 << 20  # of batches, in one produce
FETCH_BYTES_MAX = 16 << 20  # in one answer
METADATA_RECORDS_MAX = 500  # in one answer
FRAMES_MAX = 2 * 1024 + 2

Int53 = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)]
Int32 = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Name = Annotated[str, Meta(max_length=1024)]
TopicIdHex = Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?$")]
Int64 = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
SettingValue = bool | Int64 | float | str  # as a client writes one
HeaderList = list[tuple[str, Octets | None]]


class Request(Struct, kw_only=True, omit_defaults=True):
    """What every request carries. Deadline: `timeout_ms`; freshness: `min_metadata`."""

    op: Name
    id: Int53
    timeout_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 30_000
    min_metadata: Count = 0


class Envelope(Request):
    """A request as far as it can be told before its operation is known."""

    mode: Name = ""


class Hello(Request, kw_only=True, omit_defaults=True):
    """Optional greeting: who says none speaks version 1."""

    versions: tuple[Int32, Int32] = (1, 1)
    client: Name = ""


class HelloAnswer(Struct, kw_only=True):
    """The version chosen, who answers, and what it can do."""

    id: int
    error: int = 0
    version: int
    software: str
    cluster: str
    broker: int
    incarnation: int
    ops: list[str]
    features: list[str]
    limits: dict[str, int]


class Metadata(Request, kw_only=True, omit_defaults=True):
    """Brokers, topics, leaders; `topics` absent means all."""

    topics: list[Name] | None = None
    auto_create: bool = False


class BrokerInfo(Struct, kw_only=True):
    """One broker, with the endpoint of the listener that was asked through."""

    broker: int
    incarnation: int
    endpoint: str
    alive: bool


class PartitionInfo(Struct, kw_only=True):
    """Who leads a partition; leader -1: nobody now."""

    partition: int
    leader: int
    leader_epoch: int
    replicas: list[int]
    isr: list[int]


class TopicInfo(Struct, kw_only=True):
    """A topic as its clients need it; with an error all else is empty."""

    topic: str
    topic_id: str = ""
    error: int = 0
    partitioner: str = ""
    max_message_bytes: int = 0
    partitions: list[PartitionInfo] = []


class MetadataAnswer(Struct, kw_only=True):
    """The image at `metadata_offset`."""

    id: int
    error: int = 0
    cluster: str
    controller: int
    brokers: list[BrokerInfo]
    topics: list[TopicInfo]
    metadata_offset: int


class ProduceSimple(Request, kw_only=True, omit_defaults=True):
    """Records as plain frames (key, value, ...) for one partition; the broker builds the batch."""

    mode: Name
    topic: Name
    count: Annotated[int, Meta(ge=1, le=SIMPLE_RECORDS_MAX)]
    partition: Int32 = -1
    acks: Name = "all"
    null_keys: list[Count] = []
    null_values: list[Count] = []
    timestamps: list[Big] | None = None
    headers: list[HeaderList] | None = None
    producer_id: Big = Big(-1)
    producer_epoch: Annotated[int, Meta(ge=-1, le=32767)] = -1
    base_sequence: Annotated[int, Meta(ge=-1, lt=1 << 31)] = -1
    topic_id: TopicIdHex = ""
    leader_epoch: Int32 = -1


class ProduceSimpleAnswer(Struct, kw_only=True, omit_defaults=True):
    """Where the records are; base_offset -1 at acks "0"."""

    id: int
    error: int
    topic: str
    partition: int
    base_offset: int
    append_time: Big
    log_start: int
    leader_epoch: int


class ProducePartition(Struct, kw_only=True, omit_defaults=True):
    """Names the partition of one batch."""

    topic: Name
    partition: Int32
    topic_id: TopicIdHex = ""
    leader_epoch: Int32 = -1


class ProduceFast(Request, kw_only=True, omit_defaults=True):
    """One columnar batch a partition, in the order of the entries."""

    mode: Name
    partitions: list[ProducePartition]
    acks: Name = "all"


class ProduceResult(Struct, kw_only=True):
    """The fate of one batch."""

    topic: str
    partition: int
    error: int = 0
    base_offset: int
    append_time: Big
    log_start: int
    leader_epoch: int


class ProduceFastAnswer(Struct, kw_only=True):
    """One result per entry, same order; an entry that failed is an error map instead."""

    id: int
    error: int = 0
    partitions: list[Any]


class FetchSimple(Request, kw_only=True, omit_defaults=True):
    """Records of one partition as plain frames; `max_bytes` 0 is the wake-up call.

    `last_epoch`: leader epoch of the last record read, -1 = not known; with it a log that was cut
    below `offset` is noticed. Then there are no records in the answer, but `diverging_epoch`, the
    largest epoch in the log at or below `last_epoch`, and `diverging_end`, where it ends: go on
    there if that is lower, and in any case with that epoch as `last_epoch`.
    """

    mode: Name
    topic: Name
    partition: Int32
    offset: Int53
    max_bytes: Count = SIMPLE_BYTES_MAX
    min_bytes: Count = 1
    max_wait_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 500
    topic_id: TopicIdHex = ""
    leader_epoch: Int32 = -1
    last_epoch: Int32 = -1


class FetchSimpleAnswer(Struct, kw_only=True, omit_defaults=True):
    """`count` records from `base_offset`; go on at `next_offset`.

    `offsets` only where compaction has left gaps: of each record. Without it record i is at `base_offset` + i.
    `next_offset` may lie further on than the last record, also where there is none.
    """

    id: int
    error: int
    topic: str
    partition: int
    base_offset: int
    count: int
    next_offset: int
    high_watermark: int
    log_start: int
    leader_epoch: int
    null_keys: list[int]
    null_values: list[int]
    timestamps: list[Big]
    headers: list[HeaderList] | None = None
    offsets: list[int] | None = None


class FetchSimpleDiverged(FetchSimpleAnswer, kw_only=True, omit_defaults=True):
    """The log does not hold what was read."""

    diverging_epoch: int
    diverging_end: int


class FetchPartition(Struct, kw_only=True, omit_defaults=True):
    """Where to read one partition from, and how much of it; `last_epoch` as in simple mode."""

    topic: Name
    partition: Int32
    offset: Int53
    max_bytes: Count = 1 << 20
    topic_id: TopicIdHex = ""
    leader_epoch: Int32 = -1
    last_epoch: Int32 = -1


class FetchFast(Request, kw_only=True, omit_defaults=True):
    """Whole batches of many partitions; `max_bytes` 0 is the wake-up call for whichever comes first.

    With `doorbell`, which needs `max_bytes` 0, new records are no reason to answer: the client hears the doorbells of
    the rings. It is answered at `max_wait_ms`, or when a partition is led here no more.
    """

    mode: Name
    partitions: list[FetchPartition]
    max_bytes: Count = 8 << 20
    min_bytes: Count = 1
    max_wait_ms: Annotated[int, Meta(ge=0, le=3_600_000)] = 500
    doorbell: bool = False


class FetchResult(Struct, kw_only=True):
    """One partition of an answer; a frame follows if bytes > 0."""

    topic: str
    partition: int
    error: int = 0
    bytes: int
    high_watermark: int
    log_start: int
    leader_epoch: int


class FetchDiverged(FetchResult, kw_only=True):
    """The log does not hold what was read: go back to `diverging_end`, if it is lower."""

    diverging_epoch: int
    diverging_end: int


class FetchFastAnswer(Struct, kw_only=True):
    """Results; an entry that failed is an error map instead. Frames follow in the order of the entries.

    An entry with `diverging_epoch` and `diverging_end` too: as in simple mode.
    """

    id: int
    error: int = 0
    partitions: list[Any]


class OffsetQuestion(Struct, kw_only=True, omit_defaults=True):
    """timestamp >= 0 ns: first record at or after it; -1: latest; -2: earliest."""

    topic: Name
    partition: Int32
    timestamp: Big
    leader_epoch: Int32 = -1


class ListOffsets(Request, kw_only=True, omit_defaults=True):
    """Offsets by time, or the ends."""

    partitions: list[OffsetQuestion]


class OffsetAnswer(Struct, kw_only=True):
    """offset -1: no such record. `timestamp` -1 where an end was asked for."""

    topic: str
    partition: int
    error: int = 0
    offset: int
    timestamp: Big
    last_epoch: int


class ListOffsetsAnswer(Struct, kw_only=True):
    """One entry per question, same order; one that failed is an error map instead."""

    id: int
    error: int = 0
    partitions: list[Any]


class InitProducer(Request, kw_only=True, omit_defaults=True):
    """Ask for a producer id."""


class InitProducerAnswer(Struct, kw_only=True):
    """A new id with epoch 0; a client raises its epoch itself."""

    id: int
    error: int = 0
    producer_id: Big
    producer_epoch: int


class CreateTopic(Request, kw_only=True, omit_defaults=True):
    """Make a topic; config names in either spelling, values as numbers, text or booleans."""

    topic: Name
    partition_count: Int32 = 1
    replication_factor: Int32 = -1
    configs: dict[Name, SettingValue] = {}
    validate_only: bool = False


class CreateTopicAnswer(Struct, kw_only=True):
    """`ready`: every partition has a serving leader."""

    id: int
    error: int = 0
    topic_id: str
    created: bool
    ready: bool
    metadata_offset: int


class AlterTopic(Request, kw_only=True, omit_defaults=True):
    """Change a topic's own settings: all or none."""

    topic: Name
    set: dict[Name, SettingValue] = {}
    delete: list[Name] = []


class AddPartitions(Request, kw_only=True, omit_defaults=True):
    """Raise the number of partitions to `partition_count`; keys map differently from then on."""

    topic: Name
    partition_count: Int32


class DeleteTopic(Request, kw_only=True, omit_defaults=True):
    """Remove a topic and its data."""

    topic: Name


class ChangeAnswer(Struct, kw_only=True):
    """The change is committed at `metadata_offset`."""

    id: int
    error: int = 0
    metadata_offset: int


class DescribeTopic(Request, kw_only=True, omit_defaults=True):
    """All there is to say of a topic."""

    topic: Name


class ConfigValue(Struct, kw_only=True):
    """A setting as it is in force: `source` is topic, cluster or default."""

    value: Any
    source: str
    default: Any


class PartitionDescription(Struct, kw_only=True, omit_defaults=True):
    """One partition. Its ends and what follows them are told by the broker that leads it alone: elsewhere the ends
    are -1 and the rest is absent, so a client asks each leader and puts the answers together. `leader` -1: nobody.

    `lost`, absent if there was no election of a replica that was not in sync (recovery or unclean): that
    one may have given up what was acked from `lost[0]` on, of which up to `lost[1]` (exclusive) is known.

    `size` in bytes of batches, and the number of `segments`. `oldest_append_time` of the oldest record (ns, to the
    segment), absent if there is none; `oldest_goes_at`, when `retention` deletes it (ns; later if more is appended to
    its segment), absent if it does not.
    """

    partition: int
    leader: int
    leader_epoch: int
    replicas: list[int]
    isr: list[int]
    log_start: int
    high_watermark: int
    end_offset: int
    lost: list[int] | None = None
    size: int | None = None
    segments: int | None = None
    oldest_append_time: Big | None = None
    oldest_goes_at: Big | None = None


class DescribeTopicAnswer(Struct, kw_only=True):
    """The object that `shmlog topic describe --json` prints."""

    id: int
    error: int = 0
    topic: str
    topic_id: str
    partition_count: int
    replication_factor: int
    configs: dict[str, ConfigValue]
    partitions: list[PartitionDescription]


class TrimPartition(Struct, kw_only=True, omit_defaults=True):
    """offset -1: the high watermark."""

    topic: Name
    partition: Int32
    offset: Int53


class DeleteRecords(Request, kw_only=True, omit_defaults=True):
    """Raise the log start of partitions: records below `offset` are gone for good."""

    partitions: list[TrimPartition]


class TrimResult(Struct, kw_only=True):
    """The log start in force."""

    topic: str
    partition: int
    error: int = 0
    log_start: int


class DeleteRecordsAnswer(Struct, kw_only=True):
    """One entry per partition asked, same order; one that failed is an error map instead."""

    id: int
    error: int = 0
    partitions: list[Any]
    metadata_offset: int


class DescribeCluster(Request, kw_only=True, omit_defaults=True):
    """Brokers and the health of their partitions, in one broker's image."""


class BrokerDescription(Struct, kw_only=True):
    """One broker of cluster.toml. Incarnation 0: it has never registered.

    `alive`: registered and not `fenced`; `reason`: why it is. `leaders`: partitions that it leads,
    `replicas`: partitions that it is to hold.
    """

    broker: int
    incarnation: int = 0
    pid: int = 0
    endpoint: str = ""
    alive: bool = False
    fenced: bool = False
    reason: str = ""
    leaders: int = 0
    replicas: int = 0


class DescribeClusterAnswer(Struct, kw_only=True):
    """The image at `metadata_offset`. controller -1: none now. Not full: the ISR lacks a replica."""

    id: int
    error: int = 0
    cluster: str
    controller: int
    controller_term: int
    metadata_offset: int
    voters: list[int]
    brokers: list[BrokerDescription]
    partitions_without_leader: int
    partitions_under_minimum: int
    partitions_not_full: int


class Elect(Request, kw_only=True, omit_defaults=True):
    """Give the partition to its preferred leader, the first of its replicas. Ask its leader (6).

    84 if it leads already: done; 80 while it is not in sync.
    """

    topic: Name
    partition: Int32


class Epochs(Request, kw_only=True, omit_defaults=True):
    """The leader epochs of a partition. Ask its leader (6)."""

    topic: Name
    partition: Int32


class EpochsAnswer(Struct, kw_only=True):
    """Each leader epoch with records in the log, and the offset of its first one."""

    id: int
    error: int = 0
    entries: list[tuple[int, int]]
    end_offset: int


class MetadataLog(Request, kw_only=True, omit_defaults=True):
    """Committed records of the metadata log: who changed what, and when."""

    from_offset: Count = 0
    max_records: Annotated[int, Meta(ge=1, le=METADATA_RECORDS_MAX)] = METADATA_RECORDS_MAX


class MetadataRecord(Struct, kw_only=True):
    """One record; `data` is all that it says, `summary` the same in short."""

    offset: int
    term: int
    time_ns: Big
    kind: str
    summary: str
    data: dict[str, Any]


class MetadataLogAnswer(Struct, kw_only=True):
    """Go on at `next_offset`, until it is `end_offset`."""

    id: int
    error: int = 0
    records: list[MetadataRecord]
    next_offset: int
    end_offset: int


class ErrorAnswer(Struct, kw_only=True, omit_defaults=True):
    """The answer to a request that failed, or (without id) the entry of a partition that failed."""

    error: int
    name: str
    retriable: bool
    message: str
    id: int | None = None
    topic: str | None = None
    partition: int | None = None
    leader: int | None = None
    leader_epoch: int | None = None
    endpoint: str | None = None
    log_start: int | None = None
    high_watermark: int | None = None
    retry_after_ms: int | None = None
    versions: tuple[int, int] | None = None
