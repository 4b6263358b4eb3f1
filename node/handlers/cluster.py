"""The cluster for those who run it: brokers, leaders, epochs, and the log of what was changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from node.core.cluster.image import (
    BrokerRecord,
    ClusterRecord,
    ConfigRecord,
    FenceRecord,
    Image,
    NoopRecord,
    PartitionRecord,
    ProducerIdsRecord,
    Record,
    RemoveTopicRecord,
    Topic,
    TopicRecord,
    decode_record,
)
from node.handlers.exchange import Context, Exchange
from node.handlers.lookup import find_partition
from shmlog.errors import ShmlogError
from shmlog.protocol.header import Big
from shmlog.protocol.messages import (
    BrokerDescription,
    ChangeAnswer,
    DescribeCluster,
    DescribeClusterAnswer,
    Elect,
    Epochs,
    EpochsAnswer,
    MetadataLog,
    MetadataLogAnswer,
    MetadataRecord,
)
from shmlog.records import batch as batches

_READ_BYTES = 128 << 10  # of one answer, about; in JSON they are a few times as many


def describe_cluster(
    context: Context, exchange: Exchange, request: DescribeCluster, frames: list[bytes]
) -> None:
    """Brokers, controller, and how many partitions lack something, as this broker's image has it."""
    image, identity = context.metadata.image, context.identity
    has_quorum = context.metadata.has_lease(context.clock.monotonic_ns())
    brokers = {broker: _described(image, broker) for broker in identity.brokers}
    without_leader = under_minimum = not_full = 0
    for topic, state in _partitions(image):
        without_leader += state.leader < 0 or not state.started
        present = sum(broker not in image.fenced for broker in state.isr)
        under_minimum += present < topic.config.minimum_isr(len(state.replicas))
        not_full += len(state.isr) < len(state.replicas)
        if state.leader in brokers:
            brokers[state.leader].leaders += 1
        for broker in state.replicas:
            if broker in brokers:
                brokers[broker].replicas += 1
    exchange.answer(
        DescribeClusterAnswer(
            id=exchange.id or 0,
            cluster=identity.cluster,
            controller=context.metadata.controller_id if has_quorum else -1,
            controller_term=context.metadata.raft.term,
            metadata_offset=image.offset,
            voters=list(identity.voters),
            brokers=list(brokers.values()),
            partitions_without_leader=without_leader,
            partitions_under_minimum=under_minimum,
            partitions_not_full=not_full,
        )
    )


def _partitions(image: Image) -> Iterator[tuple[Topic, PartitionRecord]]:
    return ((topic, state) for topic in image.topics.values() for state in topic.partitions)


def _described(image: Image, broker: int) -> BrokerDescription:
    record = image.brokers.get(broker)
    if record is None:
        return BrokerDescription(broker=broker)
    return BrokerDescription(
        broker=broker,
        incarnation=record.incarnation,
        pid=record.pid,
        endpoint=record.endpoints["client"],
        alive=broker not in image.fenced,
        fenced=broker in image.fenced,
        reason=image.fenced.get(broker, ""),
    )


def elect(context: Context, exchange: Exchange, request: Elect, frames: list[bytes]) -> None:
    """Hand a partition that is led here to its preferred leader."""
    partition = find_partition(context, request.topic, request.partition)

    def moved(error: ShmlogError | None) -> None:
        if error is not None:
            exchange.fail(error)
            return
        offset = context.metadata.image.offset
        exchange.answer(ChangeAnswer(id=exchange.id or 0, metadata_offset=offset))

    context.elect(partition, context.clock.monotonic_ns(), moved)


def epochs(context: Context, exchange: Exchange, request: Epochs, frames: list[bytes]) -> None:
    """The epoch history of a partition that is led here."""
    log = find_partition(context, request.topic, request.partition).log
    entries = list(log.epochs.entries)
    answer = EpochsAnswer(id=exchange.id or 0, entries=entries, end_offset=log.log_end_offset)
    exchange.answer(answer)


# -- the metadata log -----------------------------------------------------------------------------


def metadata_log(
    context: Context, exchange: Exchange, request: MetadataLog, frames: list[bytes]
) -> None:
    """Committed records from an offset on."""
    log, end = context.metadata.log, context.metadata.image.offset
    start = max(request.from_offset, log.log_start_offset)
    names = dict(context.metadata.image.names)
    records: list[MetadataRecord] = []
    if start < end:
        data = memoryview(log.read(start, max_bytes=_READ_BYTES, end_offset=end))
        for position, header in batches.iterate(data):
            batch = batches.RecordBatch(data[position:], header)
            for offset, value in enumerate(batch.values(), header.base_offset):
                if value is not None and offset >= start and len(records) < request.max_records:
                    record = decode_record(value)
                    if isinstance(record, TopicRecord):
                        names[record.topic_id] = record.name  # it may be gone since
                    records.append(_shown(offset, header, record, names))
    exchange.answer(
        MetadataLogAnswer(
            id=exchange.id or 0,
            records=records,
            next_offset=records[-1].offset + 1 if records else max(start, end),
            end_offset=end,
        )
    )


def _shown(
    offset: int, header: batches.BatchHeader, record: Record, names: dict[bytes, str]
) -> MetadataRecord:
    data: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(bytes,))
    kind = data.pop("kind")
    if "topic_id" in data:
        data["topic_id"] = data["topic_id"].hex()
    return MetadataRecord(
        offset=offset,
        term=header.leader_epoch,
        time_ns=Big(header.append_time_ns),
        kind=kind,
        summary=_summary(record, names),
        data=data,
    )


def _summary(record: Record, names: dict[bytes, str]) -> str:
    def name(topic_id: bytes) -> str:
        return names.get(topic_id) or topic_id.hex()[:8]

    match record:
        case ClusterRecord():
            return f"cluster {record.cluster}"
        case BrokerRecord():
            return f"broker {record.broker} (pid {record.pid}) incarnation {record.incarnation}"
        case FenceRecord():
            what = "fenced" if record.fenced else "back"
            return f"broker {record.broker} {what}" + (f": {record.reason}" * bool(record.reason))
        case TopicRecord():
            return f"topic {record.name}, partitions {record.partition_count}"
        case RemoveTopicRecord():
            return f"topic {name(record.topic_id)} removed"
        case PartitionRecord():
            leader = "no leader" if record.leader < 0 else f"leader {record.leader}"
            start = f" from {record.epoch_start}" if record.started else ""
            isr = ",".join(map(str, record.isr))
            return (
                f"{name(record.topic_id)}-{record.partition}: {leader}, "
                f"epoch {record.leader_epoch}{start}, isr {isr}"
            )
        case ConfigRecord():
            value = "default" if record.value is None else record.value
            return f"topic {name(record.topic_id)}: {record.key} = {value}"
        case ProducerIdsRecord():
            return f"producer ids below {record.next_id} to broker {record.broker}"
        case NoopRecord():
            return "a new controller"
