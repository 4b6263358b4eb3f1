"""hello, metadata, and the life of topics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from node.core.cluster import topics
from node.core.cluster.image import PartitionRecord
from node.handlers.exchange import METADATA, Context, Exchange
from node.handlers.lookup import find_topic
from node.partition import Partition
from shmlog.errors import InvalidRequest, ShmlogError, VersionMismatch
from shmlog.log import retention
from shmlog.protocol import peers
from shmlog.protocol.header import HEADER_SIZE_MAX, Big
from shmlog.protocol.messages import (
    FETCH_BYTES_MAX,
    PROTOCOL_VERSION,
    REQUEST_BYTES_MAX,
    SIMPLE_BYTES_MAX,
    SIMPLE_RECORDS_MAX,
    AddPartitions,
    AlterTopic,
    BrokerInfo,
    ChangeAnswer,
    ConfigValue,
    CreateTopic,
    CreateTopicAnswer,
    DeleteTopic,
    DescribeTopic,
    DescribeTopicAnswer,
    Hello,
    HelloAnswer,
    Metadata,
    MetadataAnswer,
    PartitionDescription,
    PartitionInfo,
    TopicInfo,
)
from shmlog.protocol.operations import OPERATION_NAMES
from shmlog.records.compression import available
from shmlog.settings import INT64_MAX, TOPIC_SETTINGS

SOFTWARE = "shmlog 0.1.0"
TOPIC_NAMES_MAX = 2048


def hello(context: Context, exchange: Exchange, request: Hello, frames: list[bytes]) -> None:
    """Agree on a protocol version; say who this is and what it can do."""
    low, high = request.versions
    if not low <= PROTOCOL_VERSION <= high:
        raise VersionMismatch(
            f"this broker speaks version {PROTOCOL_VERSION}, the client {low} to {high}",
            versions=(PROTOCOL_VERSION, PROTOCOL_VERSION),
        )
    features = available() + (["auto_create"] if context.settings.auto_create_topics else [])
    assert exchange.id is not None
    exchange.answer(
        HelloAnswer(
            id=exchange.id,
            version=PROTOCOL_VERSION,
            software=SOFTWARE,
            cluster=context.identity.cluster,
            broker=context.identity.broker,
            incarnation=context.identity.incarnation,
            ops=OPERATION_NAMES,
            features=features,
            limits={
                "request_bytes": REQUEST_BYTES_MAX,
                "header_bytes": HEADER_SIZE_MAX,
                "simple_records": SIMPLE_RECORDS_MAX,
                "simple_bytes": SIMPLE_BYTES_MAX,
                "fetch_bytes": FETCH_BYTES_MAX,
            },
        )
    )


def metadata(context: Context, exchange: Exchange, request: Metadata, frames: list[bytes]) -> None:
    """Brokers, topics, leaders; a producer's missing topics are made first where that is on."""
    image = context.metadata.image
    if request.topics is not None and len(request.topics) > TOPIC_NAMES_MAX:
        raise InvalidRequest(f"{len(request.topics)} topic names: at most {TOPIC_NAMES_MAX}")
    if request.auto_create and context.settings.auto_create_topics:
        for name in request.topics or ():
            if name not in image.topics and _may_create(context, name):
                context.create_default_topic(
                    exchange, name, lambda: context.handle(exchange, request, frames)
                )
                return
    public = (name for name in image.topics if not name.startswith("__"))
    names = sorted(public) if request.topics is None else dict.fromkeys(request.topics)
    identity = context.identity
    assert exchange.id is not None
    exchange.answer(
        MetadataAnswer(
            id=exchange.id,
            cluster=identity.cluster,
            controller=context.metadata.controller_id,
            brokers=[
                BrokerInfo(
                    broker=b.broker,
                    incarnation=b.incarnation,
                    endpoint=b.endpoints["client"],
                    alive=b.broker not in image.fenced,
                )
                for b in image.brokers.values()
            ],
            topics=[_topic_info(context, name) for name in names],
            metadata_offset=image.offset,
        )
    )


def _may_create(context: Context, name: str) -> bool:
    change = _creation(CreateTopic(op="create_topic", id=0, topic=name), bytes(16))
    image = context.metadata.image
    try:
        topics.create_topic(
            image, change, context.identity.brokers, image.unfenced(), context.metadata.replicas_max
        )
    except ShmlogError:
        return False  # it comes back as an entry of its own, unknown
    return True


def _topic_info(context: Context, name: str) -> TopicInfo:
    try:
        topic = find_topic(context, name)
    except ShmlogError as error:
        return TopicInfo(topic=name, error=int(error.code))
    return TopicInfo(
        topic=name,
        topic_id=topic.topic_id.hex(),
        partitioner="crc32",
        max_message_bytes=topic.config.max_message_bytes,
        partitions=[
            PartitionInfo(
                partition=p.partition,
                leader=p.leader if p.started else -1,
                leader_epoch=p.leader_epoch,
                replicas=list(p.replicas),
                isr=list(p.isr),
            )
            for p in topic.partitions
        ],
    )


class _ReadyWait:
    """A topic with partitions whose leaders have not begun their epoch: they show in the image when they have."""

    def __init__(
        self, context: Context, topic_id: bytes, deadline_ns: int, done: Callable[[bool], None]
    ) -> None:
        self._context = context
        self._topic_id = topic_id
        self._deadline_ns = deadline_ns
        self._done = done

    def resume(self) -> None:
        """All partitions served, or the topic gone again?"""
        image = self._context.metadata.image
        topic = image.by_id(self._topic_id)
        if topic is None:
            self._done(False)
        elif all(map(self._serves, topic.partitions)):
            self._done(True)
        else:
            key = ("image", METADATA)
            self._context.purgatory.wait(self, [(key, image.offset + 1)], self._deadline_ns)

    def _serves(self, state: PartitionRecord) -> bool:
        if state.leader != self._context.identity.broker:
            return state.started
        name = self._context.metadata.image.names[state.topic_id]
        partition = self._context.partitions.get((name, state.partition))
        return partition is not None and partition.leader is not None

    def expire(self) -> None:
        """Time is up: created, not ready."""
        self._done(False)


def _creation(
    request: CreateTopic, topic_id: bytes, *, if_missing: bool = False
) -> peers.CreateTopic:
    return peers.CreateTopic(
        name=request.topic,
        topic_id=topic_id,
        partition_count=request.partition_count,
        replication_factor=request.replication_factor,
        configs=request.configs,
        if_missing=if_missing,
    )


def create_topic(
    context: Context, exchange: Exchange, request: CreateTopic, frames: list[bytes]
) -> None:
    """Make a topic; answered when its partitions serve, or created but not ready at the deadline."""
    topics.check_topic_name(request.topic)
    topic_id = context.new_topic_id()
    change = _creation(request, topic_id)
    metadata = context.metadata

    def answer(*, created: bool, ready: bool) -> None:
        exchange.answer(
            CreateTopicAnswer(
                id=exchange.id or 0,
                topic_id=topic_id.hex() if created else "",
                created=created,
                ready=ready,
                metadata_offset=metadata.image.offset,
            )
        )

    if request.validate_only:
        topics.create_topic(
            metadata.image,
            change,
            context.identity.brokers,
            metadata.image.unfenced(),
            metadata.replicas_max,
        )
        answer(created=False, ready=False)
        return
    _create(context, exchange, change, lambda ready: answer(created=True, ready=ready))


def _create(
    context: Context, exchange: Exchange, change: peers.CreateTopic, done: Callable[[bool], None]
) -> None:
    """Have a topic made; once that is committed wait until it serves."""

    def committed(_: int, error: ShmlogError | None) -> None:
        if error is not None:
            exchange.fail(error)
            return
        topic = context.metadata.image.topics.get(change.name)
        if topic is None:  # deleted again in the same turn
            done(False)
        else:
            _ReadyWait(context, topic.topic_id, exchange.deadline_ns, done).resume()

    context.metadata.submit(change, committed, exchange.deadline_ns)


def create_default_topic(
    context: Context, exchange: Exchange, name: str, then: Callable[[], None]
) -> None:
    """First use of a missing topic where that creates it: then go on, whoever made it."""
    request = CreateTopic(op="create_topic", id=0, topic=name)
    change = _creation(request, context.new_topic_id(), if_missing=True)
    _create(context, exchange, change, lambda _: then())


def create_offsets_topic(context: Context, exchange: Exchange, then: Callable[[], None]) -> None:
    """First use of groups: make the internal topic, then go on."""
    change = peers.CreateTopic(
        name=topics.OFFSETS_TOPIC,
        topic_id=context.new_topic_id(),
        partition_count=topics.OFFSETS_PARTITIONS,
        replication_factor=-1,
        configs=topics.OFFSETS_CONFIGS,
        if_missing=True,
    )
    _create(context, exchange, change, lambda _: then())


def _change(context: Context, exchange: Exchange, change: peers.Change) -> None:
    def done(offset: int, error: ShmlogError | None) -> None:
        if error is not None:
            exchange.fail(error)
        else:
            exchange.answer(ChangeAnswer(id=exchange.id or 0, metadata_offset=offset))

    context.metadata.submit(change, done, exchange.deadline_ns)


def alter_topic(
    context: Context, exchange: Exchange, request: AlterTopic, frames: list[bytes]
) -> None:
    """Change a topic's settings."""
    change = peers.AlterTopic(
        name=request.topic, set_values=request.set, delete=tuple(request.delete)
    )
    _change(context, exchange, change)


def add_partitions(
    context: Context, exchange: Exchange, request: AddPartitions, frames: list[bytes]
) -> None:
    """Raise the number of partitions; answered when they serve."""

    def done(offset: int, error: ShmlogError | None) -> None:
        if error is not None:
            exchange.fail(error)
            return

        def answer(_: bool) -> None:
            exchange.answer(ChangeAnswer(id=exchange.id or 0, metadata_offset=offset))

        topic = context.metadata.image.topics.get(request.topic)
        if topic is None:
            answer(False)
        else:
            _ReadyWait(context, topic.topic_id, exchange.deadline_ns, answer).resume()

    change = peers.AddPartitions(name=request.topic, partition_count=request.partition_count)
    context.metadata.submit(change, done, exchange.deadline_ns)


def delete_topic(
    context: Context, exchange: Exchange, request: DeleteTopic, frames: list[bytes]
) -> None:
    """Remove a topic and its data."""
    _change(context, exchange, peers.DeleteTopic(name=request.topic))


def _ends(partition: Partition | None) -> dict[str, Any]:
    """What of a description only the partition's leader tells."""
    if partition is None or partition.leader is None:
        return {"log_start": -1, "high_watermark": -1, "end_offset": -1}
    segments, config = partition.log.segments, partition.config
    retention_ms = config.retention if retention.may_delete(config) else -1
    goes_at_ns = retention.goes_at_ns(segments, retention_ms)
    return {
        "log_start": partition.log_start,
        "high_watermark": partition.high_watermark,
        "end_offset": partition.log.log_end_offset,
        "size": sum(segment.size for segment in segments),
        "segments": len(segments),
        "oldest_append_time": Big(segments[0].first_append_time_ns) if segments[0].size else None,
        "oldest_goes_at": None if goes_at_ns is None else Big(min(goes_at_ns, INT64_MAX)),
    }


def describe_topic(
    context: Context, exchange: Exchange, request: DescribeTopic, frames: list[bytes]
) -> None:
    """All there is to say of a topic."""
    topic = find_topic(context, request.topic)
    defaults = context.metadata.image.topic_defaults
    configs = {}
    for key, setting in TOPIC_SETTINGS.items():
        source = "topic" if key in topic.overrides else "cluster" if key in defaults else "default"
        value = getattr(topic.config, key)
        configs[key] = ConfigValue(value=value, source=source, default=setting.default)
    partitions = []
    for state in topic.partitions:
        partitions.append(
            PartitionDescription(
                partition=state.partition,
                leader=state.leader if state.started else -1,
                leader_epoch=state.leader_epoch,
                replicas=list(state.replicas),
                isr=list(state.isr),
                lost=list(state.lost) if state.lost else None,
                **_ends(context.partitions.get((topic.name, state.partition))),
            )
        )
    assert exchange.id is not None
    exchange.answer(
        DescribeTopicAnswer(
            id=exchange.id,
            topic=topic.name,
            topic_id=topic.topic_id.hex(),
            partition_count=len(topic.partitions),
            replication_factor=len(topic.partitions[0].replicas),
            configs=configs,
            partitions=partitions,
        )
    )
