"""The table of operations: for each its request and its answer. docs/protocol.md is generated from it."""

from __future__ import annotations

from msgspec import Struct

from shmlog.protocol.group_messages import (
    Commit,
    CommitAnswer,
    Committed,
    CommittedAnswer,
    DeleteGroup,
    DeleteGroupAnswer,
    DescribeGroup,
    DescribeGroupAnswer,
    GroupHeartbeat,
    GroupHeartbeatAnswer,
    GroupLeave,
    GroupLeaveAnswer,
    ListGroups,
    ListGroupsAnswer,
    ResetGroup,
    ResetGroupAnswer,
)
from shmlog.protocol.messages import (
    AddPartitions,
    AlterTopic,
    ChangeAnswer,
    CreateTopic,
    CreateTopicAnswer,
    DeleteRecords,
    DeleteRecordsAnswer,
    DeleteTopic,
    DescribeCluster,
    DescribeClusterAnswer,
    DescribeTopic,
    DescribeTopicAnswer,
    Elect,
    Epochs,
    EpochsAnswer,
    FetchFast,
    FetchFastAnswer,
    FetchSimple,
    FetchSimpleAnswer,
    Hello,
    HelloAnswer,
    InitProducer,
    InitProducerAnswer,
    ListOffsets,
    ListOffsetsAnswer,
    Metadata,
    MetadataAnswer,
    MetadataLog,
    MetadataLogAnswer,
    ProduceFast,
    ProduceFastAnswer,
    ProduceSimple,
    ProduceSimpleAnswer,
    Request,
)


class Operation(Struct, frozen=True):
    """An operation's name (with its mode), request, answer, and how many frames follow the request."""

    name: str
    request: type[Request]
    answer: type[Struct]
    frames: str = "none"


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("hello", ""): Operation("hello", Hello, HelloAnswer),
    ("metadata", ""): Operation("metadata", Metadata, MetadataAnswer),
    ("produce", "simple"): Operation(
        "produce", ProduceSimple, ProduceSimpleAnswer, "two a record: key, value"
    ),
    ("produce", "fast"): Operation("produce", ProduceFast, ProduceFastAnswer, "one batch an entry"),
    ("fetch", "simple"): Operation("fetch", FetchSimple, FetchSimpleAnswer),
    ("fetch", "fast"): Operation("fetch", FetchFast, FetchFastAnswer),
    ("list_offsets", ""): Operation("list_offsets", ListOffsets, ListOffsetsAnswer),
    ("init_producer", ""): Operation("init_producer", InitProducer, InitProducerAnswer),
    ("create_topic", ""): Operation("create_topic", CreateTopic, CreateTopicAnswer),
    ("alter_topic", ""): Operation("alter_topic", AlterTopic, ChangeAnswer),
    ("add_partitions", ""): Operation("add_partitions", AddPartitions, ChangeAnswer),
    ("delete_topic", ""): Operation("delete_topic", DeleteTopic, ChangeAnswer),
    ("describe_topic", ""): Operation("describe_topic", DescribeTopic, DescribeTopicAnswer),
    ("delete_records", ""): Operation("delete_records", DeleteRecords, DeleteRecordsAnswer),
    ("describe_cluster", ""): Operation("describe_cluster", DescribeCluster, DescribeClusterAnswer),
    ("elect", ""): Operation("elect", Elect, ChangeAnswer),
    ("epochs", ""): Operation("epochs", Epochs, EpochsAnswer),
    ("metadata_log", ""): Operation("metadata_log", MetadataLog, MetadataLogAnswer),
    ("group_heartbeat", ""): Operation("group_heartbeat", GroupHeartbeat, GroupHeartbeatAnswer),
    ("group_leave", ""): Operation("group_leave", GroupLeave, GroupLeaveAnswer),
    ("commit", ""): Operation("commit", Commit, CommitAnswer),
    ("committed", ""): Operation("committed", Committed, CommittedAnswer),
    ("list_groups", ""): Operation("list_groups", ListGroups, ListGroupsAnswer),
    ("describe_group", ""): Operation("describe_group", DescribeGroup, DescribeGroupAnswer),
    ("reset_group", ""): Operation("reset_group", ResetGroup, ResetGroupAnswer),
    ("delete_group", ""): Operation("delete_group", DeleteGroup, DeleteGroupAnswer),
}
OPERATION_NAMES = sorted({op for op, _ in OPERATIONS})
