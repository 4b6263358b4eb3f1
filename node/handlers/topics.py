"""hello, metadata, and the life of topics."""

from __future__ import annotations

from collections.abc import Callable

from node import journal
from node.core.cluster import controller
from node.core.cluster.image import Image, PartitionRecord, Record, Topic
from node.handlers.exchange import READY, Context, Exchange
from node.handlers.lookup import find_topic
from shmlog.errors import Code, InvalidRequest, ServerError, ShmlogError, VersionMismatch
from shmlog.protocol.header import HEADER_SIZE_MAX
from shmlog.protocol.messages import (
    FETCH_BYTES_MAX,
    OPERATION_NAMES,
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
from shmlog.records.compression import available
from shmlog.settings import TOPIC_SETTINGS

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
    names = sorted(image.topics) if request.topics is None else dict.fromkeys(request.topics)
    identity = context.identity
    assert exchange.id is not None
    exchange.answer(
        MetadataAnswer(
            id=exchange.id,
            cluster=identity.cluster,
            controller=identity.broker,
            brokers=[
                BrokerInfo(
                    broker=b.broker, incarnation=b.incarnation, endpoint=b.endpoint, alive=True
                )
                for b in image.brokers.values()
            ],
            topics=[_topic_info(context, name) for name in names],
            metadata_offset=image.offset,
        )
    )


def _may_create(context: Context, name: str) -> bool:
    request = CreateTopic(op="create_topic", id=0, topic=name)
    try:
        _create_plan(context, request, bytes(16))(context.metadata.image)
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
                leader=p.leader,
                leader_epoch=p.leader_epoch,
                replicas=list(p.replicas),
                isr=list(p.isr),
            )
            for p in topic.partitions
        ],
    )


class _ReadyWait:
    """A new topic whose partitions are being opened."""

    def __init__(
        self, context: Context, topic: Topic, deadline_ns: int, done: Callable[[bool], None]
    ) -> None:
        self._context = context
        self._topic = topic
        self._deadline_ns = deadline_ns
        self._done = done

    def resume(self) -> None:
        """All partitions open, or the topic gone again?"""
        if self._context.metadata.image.by_id(self._topic.topic_id) is None:
            self._done(False)
            return
        count = sum(
            (self._topic.name, p.partition) in self._context.partitions
            for p in self._topic.partitions
        )
        if count == len(self._topic.partitions):
            self._done(True)
        else:
            key = (self._topic.topic_id, READY)
            self._context.purgatory.wait(
                self, [(key, len(self._topic.partitions))], self._deadline_ns
            )

    def expire(self) -> None:
        """Time is up: created, not ready."""
        self._done(False)


def _create_plan(
    context: Context, request: CreateTopic, topic_id: bytes
) -> Callable[[Image], list[Record]]:
    def plan(image: Image) -> list[Record]:
        records = controller.create_topic(
            image,
            name=request.topic,
            topic_id=topic_id,
            partition_count=request.partition_count,
            replication_factor=request.replication_factor,
            configs=request.configs,
            brokers=context.identity.brokers,
        )
        check_descriptors(context, image, records)
        return records

    return plan


def check_descriptors(context: Context, image: Image, records: list[Record]) -> None:
    """Raises InvalidRequest (37) where this broker has no descriptors for the new partitions' files."""
    new = sum(
        isinstance(r, PartitionRecord) and context.identity.broker in r.replicas for r in records
    )
    hosted = sum(
        context.identity.broker in p.replicas for t in image.topics.values() for p in t.partitions
    )
    if hosted + new > context.partitions_max:
        raise InvalidRequest(
            f"{hosted + new} partitions on broker {context.identity.broker}: its limit of open files allows "
            f"{context.partitions_max} (raise ulimit -n, and start it again)",
            code=Code.INVALID_PARTITIONS,
        )


def _safe(plan: Callable[[Image], list[Record]]) -> Callable[[Image], list[Record]]:
    """A plan that is made in a later turn: a bug in it is answered -1, and nothing has been changed."""

    def run(image: Image) -> list[Record]:
        try:
            return plan(image)
        except ShmlogError:
            raise
        except Exception as error:  # noqa: BLE001 - a plan touches nothing
            journal.failure("change could not be planned", error)
            raise ServerError("internal error: the broker's log has the details") from None

    return run


def create_topic(
    context: Context, exchange: Exchange, request: CreateTopic, frames: list[bytes]
) -> None:
    """Make a topic; answered when its partitions serve, or created but not ready at the deadline."""
    topic_id = context.new_topic_id()
    plan = _create_plan(context, request, topic_id)
    assert exchange.id is not None
    correlation_id = exchange.id
    if request.validate_only:
        plan(context.metadata.image)
        exchange.answer(
            CreateTopicAnswer(
                id=correlation_id,
                topic_id="",
                created=False,
                ready=False,
                metadata_offset=context.metadata.image.offset,
            )
        )
        return

    def answer(ready: bool) -> None:
        exchange.answer(
            CreateTopicAnswer(
                id=correlation_id,
                topic_id=topic_id.hex(),
                created=True,
                ready=ready,
                metadata_offset=context.metadata.image.offset,
            )
        )

    _create(context, exchange, plan, lambda: context.metadata.image.by_id(topic_id), answer)


def _create(
    context: Context,
    exchange: Exchange,
    plan: Callable[[Image], list[Record]],
    made: Callable[[], Topic | None],
    done: Callable[[bool], None],
) -> None:
    """Submit a plan; once it is committed wait until the topic that `made` finds serves."""

    def committed(_: int, error: ShmlogError | None) -> None:
        if error is not None:
            exchange.fail(error)
            return
        topic = made()
        if topic is None:  # deleted again in the same turn
            done(False)
        else:
            _ReadyWait(context, topic, exchange.deadline_ns, done).resume()

    context.metadata.submit(_safe(plan), committed)


def create_default_topic(
    context: Context, exchange: Exchange, name: str, then: Callable[[], None]
) -> None:
    """First use of a missing topic where that creates it: then go on, whoever made it."""
    topic_id = context.new_topic_id()
    request = CreateTopic(op="create_topic", id=0, topic=name)
    plan = _create_plan(context, request, topic_id)

    def unless_there(image: Image) -> list[Record]:
        return [] if name in image.topics else plan(image)

    made = lambda: context.metadata.image.topics.get(name)  # noqa: E731 - by whomever
    _create(context, exchange, unless_there, made, lambda _: then())


def _change(context: Context, exchange: Exchange, plan: Callable[[Image], list[Record]]) -> None:
    def done(offset: int, error: ShmlogError | None) -> None:
        if error is not None:
            exchange.fail(error)
        else:
            assert exchange.id is not None
            exchange.answer(ChangeAnswer(id=exchange.id, metadata_offset=offset))

    context.metadata.submit(_safe(plan), done)


def alter_topic(
    context: Context, exchange: Exchange, request: AlterTopic, frames: list[bytes]
) -> None:
    """Change a topic's settings."""
    _change(
        context,
        exchange,
        lambda image: controller.alter_topic(
            image, name=request.topic, set_values=request.set, delete=request.delete
        ),
    )


def add_partitions(
    context: Context, exchange: Exchange, request: AddPartitions, frames: list[bytes]
) -> None:
    """Raise the number of partitions; answered when they serve."""

    def done(offset: int, error: ShmlogError | None) -> None:
        if error is not None:
            exchange.fail(error)
            return
        answer = lambda _: exchange.answer(  # noqa: E731
            ChangeAnswer(id=exchange.id or 0, metadata_offset=offset)
        )
        topic = context.metadata.image.topics[request.topic]
        _ReadyWait(context, topic, exchange.deadline_ns, answer).resume()

    def plan(image: Image) -> list[Record]:
        records = controller.add_partitions(
            image,
            name=request.topic,
            partition_count=request.partition_count,
            brokers=context.identity.brokers,
        )
        check_descriptors(context, image, records)
        return records

    context.metadata.submit(_safe(plan), done)


def delete_topic(
    context: Context, exchange: Exchange, request: DeleteTopic, frames: list[bytes]
) -> None:
    """Remove a topic and its data."""
    _change(context, exchange, lambda image: controller.delete_topic(image, name=request.topic))


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
        hosted = context.partitions.get((topic.name, state.partition))
        partitions.append(
            PartitionDescription(
                partition=state.partition,
                leader=state.leader if hosted else -1,
                leader_epoch=state.leader_epoch,
                replicas=list(state.replicas),
                isr=list(state.isr),
                log_start=hosted.log_start if hosted else state.log_start,
                high_watermark=hosted.high_watermark if hosted else -1,
                end_offset=hosted.log.log_end_offset if hosted else -1,
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
